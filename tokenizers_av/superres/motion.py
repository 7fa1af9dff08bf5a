"""What moves from frame to frame, by DIS optical flow (arXiv:1603.03590): steady frames, and frames between others."""
# Shapes: B batch, T frames, H W height and width

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_av.optical_flow import MIN_SIDE, dis_flow

MIX = 0.5  # how much of the frame before is in a steady one, where both show the same
STRIP = 1 << 20  # pixels that are moved at once, as it takes more memory than they do


def steadied(frame: Tensor, before: Tensor, steady: Tensor, same: float) -> Tensor:
    """A frame (B, 3, H, W) in [-1, 1] mixed with `steady`, what this made of the frame before, moved along.

    The less, the more the frame differs from the one before at that place; not at all where it differs by `same` or
    more (on the scale of [-1, 1]), as then it shows something else.
    """
    back, made = _to_the_other(frame, before), []
    for rows in _strips(frame):
        here, by = frame[:, :, rows], -back[:, :, rows]
        apart = (_moved(before, by, rows) - here).abs().amax(1, keepdim=True)
        made.append(torch.lerp(here, _moved(steady, by, rows), MIX * (1 - apart / same).clamp(min=0)))
    return torch.cat(made, dim=2)


def frames_between(before: Tensor, after: Tensor, rate: int) -> list[Tensor]:
    """The rate - 1 frames (B, 3, H, W) in [-1, 1] that lie evenly between two such frames.

    Each pixel is the mean of what moves there from the one and from the other frame, along its share of the flow that
    lies on its own place, weighted by how near in time they are; of frames below 16x16 pixels, which flow does not work
    for, the mean of the same place.
    """
    there, back = _to_the_other(before, after), _to_the_other(after, before)

    def between(share: float, rows: slice) -> Tensor:
        first = _moved(before, share * there[:, :, rows], rows)
        return torch.lerp(first, _moved(after, (1 - share) * back[:, :, rows], rows), share)

    return [torch.cat([between(k / rate, rows) for rows in _strips(before)], dim=2) for k in range(1, rate)]


def in_between(video: Tensor, rate: int) -> Tensor:
    """(B, 3, T, H, W) -> (B, 3, 1 + rate * (T - 1), H, W), each frame followed by those between it and the next."""
    if rate == 1:
        return video
    frames = video.unbind(2)
    made = [frames[0]]
    for before, after in pairwise(frames):
        made += [*frames_between(before, after, rate), after]
    return torch.stack(made, dim=2)


def _strips(frame: Tensor) -> Iterator[slice]:
    """Rows of a frame (B, C, H, W), of about STRIP pixels each."""
    H, W = frame.shape[2:]
    step = max(1, STRIP // W)
    return (slice(top, top + step) for top in range(0, H, step))


def _to_the_other(here: Tensor, there: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] twice -> (B, 2, H, W): how far, in x and y, pixels are from where they are there."""
    if min(here.shape[2:]) < MIN_SIDE:
        return torch.zeros_like(here[:, :2])
    seen = ((x + 1).mul_(127.5).round_().to(torch.uint8).cpu() for x in (there, here))
    frames = torch.stack(list(seen), dim=1)  # (B, 2, 3, H, W)
    return torch.stack([-dis_flow(pair)[1] for pair in frames.movedim(2, -1)]).permute(0, 3, 1, 2).to(here)


def _moved(frame: Tensor, by: Tensor, rows: slice = slice(None)) -> Tensor:
    """`rows` of (B, C, H, W) with every pixel moved by (B, 2, rows, W) x, y, which lies on where it arrives."""
    H, W = frame.shape[2:]
    x, y = (torch.arange(n, device=frame.device) for n in (W, H))
    places = torch.stack([x - by[:, 0], y[rows, None] - by[:, 1]], dim=-1)  # (B, rows, W, 2)
    size = torch.tensor([W - 1, H - 1]).to(by)
    return F.grid_sample(frame, places * 2 / size - 1, mode="bilinear", padding_mode="border", align_corners=True)
