"""Whether enlarged clips have the detail of the true ones: sharp edges, as much texture, no flicker, nothing changed.

PSNR rewards the mean of all that is possible, which is blurred; these tell a blurred clip from a sharp one, and a sharp
one from a noisy one. Brightness is the luma of BT.709 in grey levels, 0 to 255.
"""
# Shapes: B clips, T frames, H W height and width of the large frames, h w of the small ones

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_av.optical_flow import BT709, dis_flow
from tokenizers_av.superres import downsample

STABILITY = 170.0  # of the gradients' similarity, in squared grey levels; Xue et al.'s own
ROUNDING = 1 / 12  # squared grey levels of the noise that rounding to 8 bits is


def gmsd(output: Tensor, target: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation, (B, 3, T, H, W) in [0, 1] twice -> (B,): 0 is equal, less is better.

    Xue et al. 2014 (arXiv:1308.3052): luma halved in size, Prewitt gradient magnitudes a and b, similarity
    (2ab + c) / (a^2 + b^2 + c) at every place; its standard deviation over a frame, the mean over frames. Only where
    the filter fits, where the authors' code fills up with black. Raises ValueError for other shapes or frames of less
    than 6x6.
    """
    _check(output, target)
    if min(output.shape[-2:]) < 6:
        raise ValueError(f"frames of {output.shape[-2]}x{output.shape[-1]} pixels: need at least 6x6")
    a, b = _gradient(luma(output)), _gradient(luma(target))
    similarity = (2 * a * b + STABILITY) / (a.square() + b.square() + STABILITY)
    return similarity.std((2, 3), correction=0).mean(1)


def _gradient(grey: Tensor) -> Tensor:
    """(B, T, H, W) -> (B, T, H / 2 - 2, W / 2 - 2)."""
    across = torch.tensor([1.0, 0.0, -1.0]).expand(3, 3) / 3
    kernels = torch.stack([across, across.T])[:, None].to(grey)  # (2, 1, 3, 3)
    return F.conv2d(F.avg_pool2d(grey.flatten(0, 1)[:, None], 2), kernels).norm(dim=1).unflatten(0, grey.shape[:2])


def detail(output: Tensor, target: Tensor, scale: int) -> Tensor:
    """How much detail there is for each bit of true detail, (B, 3, T, H, W) in [0, 1] twice -> (B,).

    1 is right, less is blur, more is noise: (E(output) + e) / (E(target) + e), where E sums |DFT|^2 of the luma under a
    Hann window over all frames and over the frequencies that a clip `scale` times smaller cannot hold, those above
    1 / (2 * scale) cycles a pixel in x or in y, and e is what rounding to 8 bits puts there: without it, clips that
    have no detail would decide the mean. Raises ValueError where the shapes differ.
    """
    _check(output, target)
    T, H, W = target.shape[2:]
    window = torch.hann_window(H)[:, None] * torch.hann_window(W)
    y, x = (torch.fft.fftfreq(side).abs() for side in (H, W))
    # half a bin for strictly above, one because the window smears a frequency over the bins on either side
    beyond = (y > 1 / (2 * scale) + 1.5 / H)[:, None] | (x > 1 / (2 * scale) + 1.5 / W)  # (H, W)
    rounding = ROUNDING * T * float(window.square().sum()) * int(beyond.sum())

    def energy(video: Tensor) -> Tensor:
        grey = luma(video).cpu()
        grey = grey - ((grey * window).sum((2, 3), keepdim=True) / window.sum())
        return torch.fft.fft2(grey * window)[..., beyond].abs().square().sum((1, 2))

    return (energy(output) + rounding) / (energy(target) + rounding)


def kept(output: Tensor, small: Tensor) -> Tensor:
    """Mean difference of the output, made small again, from what it was made of, in grey levels: -> (B,), 0 is none.

    (B, 3, T, H, W) and (B, 3, T, h, w) in [0, 1]. Raises ValueError where the first is not a multiple of the second.
    """
    scale = output.shape[-1] // small.shape[-1]
    if output.ndim != 5 or tuple(output.shape) != (*small.shape[:3], scale * small.shape[3], scale * small.shape[4]):
        raise ValueError(f"{tuple(output.shape)} is not an enlargement of {tuple(small.shape)}")
    again = (downsample(2 * output - 1, scale) + 1) / 2
    return 255 * (again - small).abs().mean((1, 2, 3, 4))


@dataclass(frozen=True)
class Motion:
    """Where the pixels of a true clip are found in the next frame."""

    places: Tensor  # (T - 1, H, W, 2) x, y in [-1, 1], the middles of the outermost pixels
    seen: Tensor  # (T - 1, H, W) bool: there, and neither covered nor outside

    @classmethod
    def of(cls, frames: Tensor) -> Motion:
        """Motion of (T, H, W, 3) uint8 by DIS optical flow (arXiv:1603.03590).

        A pixel is seen where the flow there and back again ends near where it began (Sundaram et al. 2010, eq. 5).
        Raises ValueError for less than two frames.
        """
        if len(frames) < 2:
            raise ValueError("one frame does not move, need at least two")
        H, W = frames.shape[1:3]
        there = -dis_flow(frames.flip(0)).flip(0)[:-1]  # lies on the frame before, as the clip runs backwards
        back = -dis_flow(frames)[1:]  # lies on the frame after
        y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
        places = (torch.stack([x, y], -1) + there) * 2 / torch.tensor([W - 1, H - 1]) - 1
        back = look_up(back.permute(0, 3, 1, 2), places).permute(0, 2, 3, 1)
        away = (there + back).square().sum(-1)
        near = away < 0.01 * (there.square().sum(-1) + back.square().sum(-1)) + 0.5
        return cls(places, near & (places.abs() <= 1).all(-1))


def flicker(output: Tensor, motion: Motion) -> float:
    """Mean change of what moves along with the true clip, in grey levels: less is steadier, NaN where none is seen.

    The warping error of arXiv:1808.00449 as an absolute difference: output (3, T, H, W) in [0, 1], each frame beside
    the next one looked up where the motion leads. The true clip does not score 0 either: lookup blurs, light changes.
    """
    frames = output.cpu().transpose(0, 1)
    change = (look_up(frames[1:], motion.places) - frames[:-1]).abs().mean(1)
    return float(255 * change[motion.seen].mean())


def look_up(frames: Tensor, places: Tensor) -> Tensor:
    """(N, C, H, W) at places (N, H, W, 2) between its pixels."""
    return F.grid_sample(frames, places, mode="bilinear", padding_mode="border", align_corners=True)


def luma(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [0, 1] -> (B, T, H, W) in [0, 255]."""
    return 255 * torch.einsum("c,bcthw->bthw", torch.tensor(BT709).to(video), video)


def _check(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape or output.ndim != 5:
        raise ValueError(f"shapes {tuple(output.shape)} and {tuple(target.shape)}: expected (B, 3, T, H, W) twice")
