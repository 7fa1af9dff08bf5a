"""Rotary positions over three axes (RoPE, arXiv:2104.09864, split over time, height and width).

Every token has a place (t, h, w) of real numbers. Each rotary pair of a head belongs to one axis, with frequencies
base^(-i/n) for the i-th of the axis' n pairs, so attention sees differences of places and other lengths, rates and
sizes than the trained ones still make sense.
"""

# Shapes: B batch, L sequence, H heads, D head_dim, P = D / 2 rotary pairs

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lm.config import LMConfig


def angles(positions: Tensor, config: LMConfig) -> Tensor:
    """Rotation angle of each pair: positions (..., 3) -> (..., P), always float32."""
    bases = (config.rope_base_time, config.rope_base_space, config.rope_base_space)
    parts = []
    for axis, (n, base) in enumerate(zip(config.rope_axes, bases, strict=True)):
        exponents = torch.arange(n, device=positions.device, dtype=torch.float32) / -max(n, 1)
        parts.append(positions[..., axis, None].float() * base**exponents)
    return torch.cat(parts, dim=-1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The pairs (x[..., i], x[..., i + P]) rotated by the angle; x (..., D), cos and sin (..., P)."""
    out, pairs = torch.empty_like(x), cos.shape[-1]
    a, b = x[..., :pairs], x[..., pairs:]
    torch.mul(a, cos, out=out[..., :pairs]).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out[..., pairs:]).addcmul_(a, sin)
    return out


def _turned_anew(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same for a compiler, which wants no views written to."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class _Rotate(torch.autograd.Function):
    """A rotation is undone by its transpose: the gradient is turned back by the same angle, nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, -sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions: x (B, L, H, D), cos and sin (B, L, 1, P) in x's dtype -> (B, L, H, D)."""
    return _turned_anew(x, cos, sin) if torch.compiler.is_compiling() else _Rotate.apply(x, cos, sin)
