"""Causal space-time layers in one memory layout, (B, T, H, W, C), so that no operation has to move data first.

Every layer is causal in time: frame t of the output depends on frames <= t of the input. Norms act over the channels of
one position. Parameter-free shortcuts round the resampling stages (DC-AE, arXiv:2410.10733) and residual branches that
start at zero are what makes the autoencoder converge.
"""
# Shapes: B batch, T frames, H W height and width, C channels (last)

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def space_to_depth(x: Tensor, r: int) -> Tensor:
    """(B, T, H*r, W*r, C) -> (B, T, H, W, r*r*C)."""
    B, T, H, W, C = x.shape
    x = x.view(B, T, H // r, r, W // r, r, C).permute(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(B, T, H // r, W // r, r * r * C)


def depth_to_space(x: Tensor, r: int) -> Tensor:
    """(B, T, H, W, r*r*C) -> (B, T, H*r, W*r, C)."""
    B, T, H, W, C = x.shape
    x = x.view(B, T, H, W, r, r, C // (r * r)).permute(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(B, T, H * r, W * r, C // (r * r))


def match_channels(x: Tensor, n: int) -> Tensor:
    """(..., C) -> (..., n) without parameters: average groups of channels, or repeat them."""
    C = x.shape[-1]
    if n < C:
        return x.unflatten(-1, (n, C // n)).mean(-1)
    return x.repeat_interleave(n // C, dim=-1)


class SpatialConv(nn.Module):
    """3x3 convolution of every frame by itself.

    The kernel is stored as a matrix (c_out, 3 * 3 * c_in): channels-last by itself, and open to matrix optimizers.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        bound = (9 * c_in) ** -0.5
        self.weight = nn.Parameter(torch.empty(c_out, 9 * c_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, c_in) -> (B, T, H, W, c_out)."""
        B, T, _, _, C = x.shape
        kernel = self.weight.view(-1, 3, 3, C).permute(0, 3, 1, 2)
        y = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), kernel, self.bias, padding=1)  # views, no copies
        return y.permute(0, 2, 3, 1).unflatten(0, (B, T))


class TemporalConv(nn.Linear):
    """Causal convolution over three frames as one matrix product; before the first frame there are zeros."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(3 * c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, c_in) -> (B, T, H, W, c_out)."""
        T = x.shape[1]
        past = F.pad(x, (0, 0, 0, 0, 0, 0, 2, 0))
        return super().forward(torch.cat([past[:, :T], past[:, 1 : T + 1], x], dim=-1))


class ChannelNorm(nn.RMSNorm):
    """Root-mean-square norm over the channels of one position, in the precision of its input."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> the same shape."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class ResidualBlock(nn.Module):
    """x + temporal(silu(spatial(norm(x)))); the branch is zero at the start."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.spatial = SpatialConv(dim, dim)
        self.temporal = TemporalConv(dim, dim)
        nn.init.zeros_(self.temporal.weight)
        nn.init.zeros_(self.temporal.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, dim) -> the same shape."""
        return x + self.temporal(F.silu(self.spatial(self.norm(x))))


class SpatialDown(nn.Module):
    """Halve height and width: a 2x2 strided convolution beside the averaged pixels."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.c_out = c_out
        self.conv = nn.Linear(4 * c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, c_in) -> (B, T, H/2, W/2, c_out)."""
        x = space_to_depth(x, 2)
        return self.conv(x) + match_channels(x, self.c_out)


class SpatialUp(nn.Module):
    """Double height and width by depth-to-space, beside repeated pixels."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.c_out = c_out
        self.conv = nn.Linear(c_in, 4 * c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, c_in) -> (B, T, 2H, 2W, c_out)."""
        return depth_to_space(self.conv(x) + match_channels(x, 4 * self.c_out), 2)


class TemporalDown(nn.Module):
    """1 + 2n frames -> 1 + n: the first frame by itself, then each pair, beside the pair's mean."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + 2n, H, W, dim) -> (B, 1 + n, H, W, dim)."""
        x = torch.cat([x[:, :1], x], dim=1)
        even, odd = x[:, ::2], x[:, 1::2]
        return self.conv(torch.cat([even, odd], dim=-1)) + (even + odd) / 2


class TemporalUp(nn.Module):
    """1 + n frames -> 1 + 2n: each becomes two, beside its repetition; the first of all is dropped (MAGVIT-v2 §3.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + n, H, W, dim) -> (B, 1 + 2n, H, W, dim)."""
        B, T, H, W, C = x.shape
        y = self.conv(x).view(B, T, H, W, 2, C) + x.unsqueeze(-2)
        return y.permute(0, 1, 4, 2, 3, 5).reshape(B, 2 * T, H, W, C)[:, 1:]
