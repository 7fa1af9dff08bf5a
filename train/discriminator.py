"""The video discriminator: residual 3-D convolutions with anti-aliased downsampling, one logit per patch of space-time.

After MAGVIT-v2 (arXiv:2310.05737, App. A): a StyleGAN discriminator in three dimensions, blur pooling
(arXiv:1904.11486) in place of strided convolution, leaky ReLU, no norm. It differs in two ways that keep it affordable:
the stem halves the resolution at once, so that no wide convolution runs on whole frames, and logits are given per patch
instead of per clip. An image is a video of one frame; the same weights serve both.
"""
# Shapes: B batch, C channels, T frames, H W height and width in pixels, t h w the grid of patches

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SIZE = 16  # smallest height and width


def blur_matrix(n: int, like: Tensor) -> Tensor:
    """((n + 1) // 2, n): row i takes the mean of samples 2i - 1, 2i, 2i + 1 with weights 1/4, 1/2, 1/4."""
    m = (n + 1) // 2
    at = 2 * torch.arange(m, device=like.device)[:, None] + torch.tensor([-1, 0, 1], device=like.device)
    kernel = like.new_tensor([0.25, 0.5, 0.25]).expand(m, 3)
    return like.new_zeros(m, n).scatter_add_(1, at.clamp(0, n - 1), kernel)  # edges repeat outwards


def blur_pool(x: Tensor) -> Tensor:
    """Blur with [1, 2, 1] / 4 along T, H and W, keep every second sample: (B, C, T, H, W) -> sizes (n + 1) // 2.

    The kernel sums to one at the edges too, and passes a single frame unchanged. As products with small matrices it is
    fast in bfloat16 on a CPU: it takes 0.4 of the time of shifted slices, 0.11 of a depthwise convolution's.
    """
    T, H, W = x.shape[2:]
    x = x @ blur_matrix(W, x).T
    x = blur_matrix(H, x) @ x
    return (blur_matrix(T, x) @ x.flatten(3)).unflatten(3, x.shape[3:]) if T > 1 else x


class Conv3x3x3(nn.Conv3d):
    """3x3x3 convolution that keeps the size. Two frames are computed as three: in bfloat16 on a CPU the weight gradient
    of two is uninitialised memory (oneDNN as in torch 2.13)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, T, H, W) -> (B, c_out, T, H, W)."""
        if x.shape[2] == 2:
            return super().forward(F.pad(x, (0, 0, 0, 0, 0, 1)))[:, :, :2]
        return super().forward(x)


class DownBlock(nn.Module):
    """Residual block that halves T, H and W: conv, blur pool, conv beside blur pool and a 1x1x1 conv."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3x3(c_in, c_in)
        self.conv2 = Conv3x3x3(c_in, c_out)
        self.skip = nn.Conv3d(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, T, H, W) -> (B, c_out, (T + 1) // 2, (H + 1) // 2, (W + 1) // 2)."""
        y = blur_pool(F.leaky_relu(self.conv1(x), 0.2))
        y = F.leaky_relu(self.conv2(y), 0.2)
        return (y + self.skip(blur_pool(x))) * 0.5**0.5  # keeps the variance


class Discriminator(nn.Module):
    """Logits of patches, high for real, after len(dims) halvings; MAGVIT-v2 has widths (256, 512, 512, 512, 512)."""

    def __init__(self, dims: tuple[int, ...] = (64, 128, 256, 256)) -> None:
        super().__init__()
        if not dims or any(not isinstance(dim, int) or dim < 1 for dim in dims):
            raise ValueError(f"dims={dims!r}: need at least one width, each a whole number above 0")
        self.stem = Conv3x3x3(3, dims[0])
        self.blocks = nn.Sequential(*(DownBlock(a, b) for a, b in pairwise(dims)))
        self.head = nn.Conv3d(dims[-1], 1, 1)
        for conv in self.modules():
            if isinstance(conv, nn.Conv3d):
                nn.init.kaiming_normal_(conv.weight, 1 if conv.bias is None else 0.2)  # no leaky ReLU after the skip
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        # zero: what an untrained discriminator says is noise, and a tokenizer already trained must not follow it
        nn.init.zeros_(self.head.weight)

    def forward(self, video: Tensor) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1], any T >= 1 and H, W >= 16 -> logits (B, t, h, w), always float32."""
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] < 1 or min(video.shape[3:]) < MIN_SIZE:
            raise ValueError(f"video {tuple(video.shape)}: need (B, 3, T, H, W), T >= 1, H and W >= {MIN_SIZE}")
        x = blur_pool(F.leaky_relu(self.stem(video.contiguous()), 0.2))  # what follows is fast in this layout
        x = self.blocks(x)
        with torch.autocast(video.device.type, enabled=False):
            return self.head(x.float())[:, 0]
