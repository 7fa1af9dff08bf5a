"""What moves from frame to frame, by DIS optical flow (arXiv:1603.03590): steady frames, and frames between others."""
# Shapes: B batch, T frames, H W height and width

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_av.optical_flow import MIN_SIDE, dis_flow

MIX = 0.5  # how much of the frame before is in a steady one, where both show the same
SAME = 24 * 2 / 255  # difference from which on they do not, on the scale of [-1, 1]


def steadied(frame: Tensor, before: Tensor, steady: Tensor) -> Tensor:
    """A frame (B, 3, H, W) in [-1, 1] mixed with `steady`, what this made of the frame before, moved along.

    The less, the more the frame differs from the one before at that place; not at all where it shows something else.
    """
    back = _to_the_other(frame, before)
    there = _moved(torch.cat([before, steady], dim=1), -back)
    apart = (there[:, :3] - frame).abs().amax(1, keepdim=True)
    return torch.lerp(frame, there[:, 3:], MIX * (1 - apart / SAME).clamp(min=0))


def frames_between(before: Tensor, after: Tensor, rate: int) -> list[Tensor]:
    """The rate - 1 frames (B, 3, H, W) in [-1, 1] that lie evenly between two such frames.

    Each pixel is the mean of what moves there from the one and from the other frame, along its share of the flow that
    lies on its own place, weighted by how near in time they are; of frames below 16x16 pixels, which flow does not work
    for, the mean of the same place.
    """
    there, back = _to_the_other(before, after), _to_the_other(after, before)
    shares = [k / rate for k in range(1, rate)]
    return [torch.lerp(_moved(before, s * there), _moved(after, (1 - s) * back), s) for s in shares]


def in_between(video: Tensor, rate: int) -> Tensor:
    """(B, 3, T, H, W) -> (B, 3, 1 + rate * (T - 1), H, W), each frame followed by those between it and the next."""
    if rate == 1:
        return video
    frames = video.unbind(2)
    made = [frames[0]]
    for before, after in pairwise(frames):
        made += [*frames_between(before, after, rate), after]
    return torch.stack(made, dim=2)


def _to_the_other(here: Tensor, there: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] twice -> (B, 2, H, W): how far, in x and y, pixels are from where they are there."""
    if min(here.shape[2:]) < MIN_SIDE:
        return torch.zeros_like(here[:, :2])
    frames = ((torch.stack([there, here], dim=1) + 1) * 127.5).round().to(torch.uint8).cpu()  # (B, 2, 3, H, W)
    return torch.stack([-dis_flow(pair)[1] for pair in frames.movedim(2, -1)]).permute(0, 3, 1, 2).to(here)


def _moved(frame: Tensor, by: Tensor) -> Tensor:
    """(B, C, H, W) with every pixel moved by (B, 2, H, W) x, y, which lies on where it arrives."""
    H, W = frame.shape[2:]
    y, x = torch.meshgrid(torch.arange(H, device=frame.device), torch.arange(W, device=frame.device), indexing="ij")
    places = torch.stack([x, y]).to(by) - by  # (B, 2, H, W)
    size = torch.tensor([W - 1, H - 1]).to(by).view(1, 2, 1, 1)
    return F.grid_sample(frame, (places * 2 / size - 1).permute(0, 2, 3, 1), mode="bilinear", padding_mode="border",
                         align_corners=True)  # fmt: skip
