"""How true a reconstruction is to its original, and how much of a codebook is in use."""
# Shapes: B clips, T frames, H W height and width, K codebook size

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CEILING = 100.0  # dB, what equal frames count as


def psnr(output: Tensor, target: Tensor, where: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB of each clip, (B, 3, T, H, W) in [0, 1] twice -> (B,): the mean over frames.

    `where` (B, T, H, W) bool are the pixels that count; frames without any do not count, a clip without any is NaN.
    Equal frames count as 100 dB. Raises ValueError where the shapes differ.
    """
    _same_shape(output, target)
    error = (output.double() - target.double()).square().mean(1)  # (B, T, H, W)
    if where is None:
        frames = error.mean((2, 3))
    else:
        frames = (error * where).sum((2, 3)) / where.sum((2, 3))
    return (-10 * frames.clamp(min=10 ** (-CEILING / 10)).log10()).nanmean(1).float()


def ssim(output: Tensor, target: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of each clip, (B, 3, T, H, W) in [0, 1] twice -> (B,).

    Wang et al. 2004: Gaussian window, K1 = 0.01, K2 = 0.03, per channel, only where the window fits; mean over places,
    channels and frames. Raises ValueError where the shapes differ or a frame is smaller than the window.
    """
    _same_shape(output, target)
    C, T, H, W = output.shape[1:]
    if min(H, W) < window:
        raise ValueError(f"frames of {H}x{W} pixels are smaller than the {window}x{window} window")
    at = torch.arange(window, device=output.device, dtype=torch.float64) - (window - 1) / 2
    kernel = torch.exp(-at.square() / (2 * sigma**2))
    down, across = (_bands(kernel / kernel.sum(), side) for side in (H, W))

    def local(x: Tensor) -> Tensor:
        return down @ x @ across.T  # five times as fast as convolutions, which are slow in float64

    values = []
    for a, b in zip(output.double(), target.double()):  # one clip at a time: float64 is hungry
        a, b = (x.reshape(C * T, H, W) for x in (a, b))
        mean_a, mean_b = local(a), local(b)
        var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
        both = local(a * b) - mean_a * mean_b
        c1, c2 = 0.01**2, 0.03**2
        bright = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        values.append((bright * (2 * both + c2) / (var_a + var_b + c2)).mean())
    return torch.stack(values).float()


def _bands(kernel: Tensor, side: int) -> Tensor:
    """(side - K + 1, side): the kernel (K,) at every place where it fits."""
    return torch.stack([F.pad(kernel, (i, side - len(kernel) - i)) for i in range(side - len(kernel) + 1)])


def _same_shape(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape or output.ndim != 5:
        raise ValueError(f"shapes {tuple(output.shape)} and {tuple(target.shape)}: expected (B, 3, T, H, W) twice")


@dataclass
class CodeUse:
    """Counts the codes of a codebook."""

    counts: Tensor  # (K,) int64

    @classmethod
    def of_size(cls, codebook_size: int) -> CodeUse:
        return cls(torch.zeros(codebook_size, dtype=torch.int64))

    def add(self, ids: Tensor) -> None:
        """Count ids of any shape."""
        self.counts += torch.bincount(ids.flatten().cpu(), minlength=len(self.counts))

    @property
    def share(self) -> float:
        """Distinct codes seen over the size of the codebook."""
        return float((self.counts > 0).double().mean())

    @property
    def entropy(self) -> float:
        """Bits per id of the histogram; log2 of the codebook size where all codes are used alike."""
        p = self.counts[self.counts > 0].double()
        p = p / p.sum()
        return max(0.0, float(-(p * p.log2()).sum()))
