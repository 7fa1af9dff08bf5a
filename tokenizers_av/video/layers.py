"""Causal space-time layers in one memory layout, (B, T, H, W, C), so that no operation has to move data first.

Every layer is causal in time: frame t of the output depends on frames <= t of the input. A clip may come in chunks,
with a `Flow` that carries what the layers must remember; chunk by chunk then equals the whole. Norms act over the
channels of one position. Parameter-free shortcuts round the resampling stages (DC-AE, arXiv:2410.10733) and residual
branches that start at zero are what makes the autoencoder converge.
"""
# Shapes: B batch, T frames, H W height and width, C channels (last), t h w latent frames, height and width

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_av.packed import Packed, PackedConv

# Laying out a kernel takes as long for a small image as for a large one: of a convolution from 192 to 192 channels 28 %
# at 256 positions, 6 % at 1,024. Six frames of 16x16.
FEW_POSITIONS = 1536


@dataclass
class Flow:
    """What goes along with a clip, or with the next chunk of one, through causal layers."""

    code: Tensor | None = None  # (B, t, h, w, C) the quantized latents the chunk is decoded from
    first: bool = True  # whether the chunk begins the clip
    tails: dict[nn.Module, Tensor] | None = None  # the last frames each temporal convolution saw; None for whole clips
    kernels: dict[nn.Module, PackedConv] = field(default_factory=dict)  # laid out; flows of the same layers may share


class Causal(nn.Module):
    """A layer that needs the `Flow`: forward(x, flow)."""


class CausalSequential(nn.ModuleList):
    """Layers one after another; those that are `Causal` get the flow."""

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """(B, T, H, W, C) -> what the last layer gives."""
        for layer in self:
            x = layer(x, flow) if isinstance(layer, Causal) else layer(x)
        return x


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
        return reduce(torch.add, x.unflatten(-1, (n, C // n)).unbind(-1)) / (C // n)  # on CPUs `mean` is far slower
    return x.repeat_interleave(n // C, dim=-1)


class Conv(Causal):
    """2-D convolution of images in one layout, (N, H, W, C).

    The kernel is stored as a matrix (c_out, h * w * c_in): channels-last by itself, and open to matrix optimizers.
    """

    def __init__(self, c_in: int, c_out: int, size: tuple[int, int], padding: int) -> None:
        super().__init__()
        self.size, self.padding = size, padding
        n_in = size[0] * size[1] * c_in
        self.weight = nn.Parameter(torch.empty(c_out, n_in).uniform_(-(n_in**-0.5), n_in**-0.5))
        self.bias = nn.Parameter(torch.zeros(c_out))

    def convolve(self, x: Tensor, flow: Flow) -> Tensor:
        """(N, H, W, c_in) -> (N, H', W', c_out)."""
        kernel = self.weight.view(len(self.weight), *self.size, -1).permute(0, 3, 1, 2)
        images = x.permute(0, 3, 1, 2)  # views, no copies
        if not _worth_laying_out(kernel, x, flow):
            y = F.conv2d(images, kernel, self.bias, padding=self.padding)
        else:
            if self not in flow.kernels:
                flow.kernels[self] = PackedConv(kernel, self.bias, self.padding, images.shape)
            y = flow.kernels[self](images)
        return y.permute(0, 2, 3, 1)


def _worth_laying_out(kernel: Tensor, x: Tensor, flow: Flow) -> bool:
    """Whether x (N, H, W, C) is one of several small chunks on a CPU, whose gradients nobody asks for."""
    if flow.tails is None or flow.first or x.shape[:3].numel() > FEW_POSITIONS:
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return False
    return x.dtype == kernel.dtype and Packed.can(kernel)


class SpatialConv(Conv):
    """3x3 convolution of every frame by itself."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, (3, 3), padding=1)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """(B, T, H, W, c_in) -> (B, T, H, W, c_out)."""
        return self.convolve(x.flatten(0, 1), flow).unflatten(0, x.shape[:2])


class TemporalConv(Conv):
    """Causal convolution over three frames, of a clip seen as one tall image with a row for each frame.

    Before the first frame there are zeros, or with `hold` that frame itself: then what stands still stays still.
    """

    def __init__(self, c_in: int, c_out: int, hold: bool = False) -> None:
        super().__init__(c_in, c_out, (3, 1), padding=0)
        self.hold = hold

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """(B, T, H, W, c_in) -> (B, T, H, W, c_out)."""
        T = x.shape[1]
        if flow.tails is None or flow.first:
            before = x[:, :1] if self.hold else torch.zeros_like(x[:, :1])
            whole = torch.cat([before, before, x], dim=1)
        else:
            whole = torch.cat([flow.tails[self], x], dim=1)
        if flow.tails is not None:
            flow.tails[self] = whole[:, T:].clone()  # a view would keep all of the chunk alive
        return self.convolve(whole.flatten(2, 3), flow).unflatten(2, x.shape[2:4])


def channel_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Root-mean-square norm over the channels of (..., C), in the precision of x (autocast would take float32), times a
    weight (C,) if there is one."""
    with torch.autocast(x.device.type, enabled=False):
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
            return F.rms_norm(x, x.shape[-1:], None if weight is None else weight.to(x.dtype), eps=1e-6)
        # On a CPU that would be several passes over all of x, and a copy of it in float32
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).float()
        y = x * torch.rsqrt(length.square() / x.shape[-1] + 1e-6).to(x.dtype)
        return y if weight is None else y * weight.to(x.dtype)


class ChannelNorm(nn.Module):
    """`channel_norm` of each position."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> the same shape."""
        return channel_norm(x, self.weight)


class AdaptiveNorm(Causal):
    """A norm scaled and shifted by the quantized latent that covers the position (MAGVIT-v2 §3.2, adaptive norm).

    Different from the paper: one scale and shift for each latent position rather than for the whole frame, so that it
    does not depend on the frame's size. It starts as a plain norm.
    """

    def __init__(self, dim: int, code_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.modulation = nn.Linear(code_dim, 2 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """(B, T, H, W, dim) -> the same shape; H and W are multiples of those of flow.code."""
        assert flow.code is not None
        B, T, H, W, C = x.shape
        t, h, w = flow.code.shape[1:4]
        modulation = self.modulation(flow.code).view(B, t, h, 1, w, 1, 2 * C)
        if t != T:  # frames per latent frame; the first latent frame of a clip is one frame
            stride = (T - 1) // (t - 1) if flow.first else T // t
            frame = torch.arange(T, device=x.device)
            modulation = modulation[:, (frame + stride - 1) // stride if flow.first else frame // stride]
        scale, shift = modulation.chunk(2, dim=-1)
        y = channel_norm(x).view(B, T, h, H // h, w, W // w, C)
        return torch.addcmul(shift, y, self.weight.to(x.dtype) * (1 + scale)).view(B, T, H, W, C)


class ResidualBlock(Causal):
    """x + temporal(silu(spatial(norm(x)))); the branch is zero at the start.

    With `code_dim` the norm is adaptive; `hold` is that of `TemporalConv`.
    """

    def __init__(self, dim: int, code_dim: int | None = None, hold: bool = False) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim) if code_dim is None else AdaptiveNorm(dim, code_dim)
        self.spatial = SpatialConv(dim, dim)
        self.temporal = TemporalConv(dim, dim, hold)
        nn.init.zeros_(self.temporal.weight)
        nn.init.zeros_(self.temporal.bias)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """(B, T, H, W, dim) -> the same shape."""
        y = self.norm(x, flow) if isinstance(self.norm, AdaptiveNorm) else self.norm(x)
        return x + self.temporal(F.silu(self.spatial(y, flow)), flow)


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


class TemporalDown(Causal):
    """Two frames become one, beside their mean; the first of a clip stands twice: 1 + 2n frames -> 1 + n."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """(B, 1 + 2n, H, W, dim) -> (B, 1 + n, H, W, dim); later chunks (B, 2n, ...) -> (B, n, ...)."""
        if flow.first:
            x = torch.cat([x[:, :1], x], dim=1)
        even, odd = x[:, ::2], x[:, 1::2]
        return self.conv(torch.cat([even, odd], dim=-1)) + (even + odd) / 2


class TemporalUp(Causal):
    """One frame becomes two, beside its repetition; the first of all is dropped (MAGVIT-v2 §3.2): 1 + n -> 1 + 2n."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """(B, 1 + n, H, W, dim) -> (B, 1 + 2n, H, W, dim); later chunks (B, n, ...) -> (B, 2n, ...)."""
        B, T, H, W, C = x.shape
        y = self.conv(x).view(B, T, H, W, 2, C) + x.unsqueeze(-2)
        y = y.permute(0, 1, 4, 2, 3, 5).reshape(B, 2 * T, H, W, C)
        return y[:, 1:] if flow.first else y
