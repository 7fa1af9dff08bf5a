"""RMSNorm (arXiv:1910.07467) with a backward pass that is cheap on a CPU.

Autograd spells the gradient of F.rms_norm on a CPU out as about ten element-wise passes. Here it is the fused
layer-norm gradient called with a mean of zero, plus the centring term that layer norm subtracts and RMSNorm does not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _CpuRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, dim = x.contiguous(), x.shape[-1]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(torch.full_like(norm, eps), norm, norm, value=1 / dim).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x, scale.to(x.dtype)).mul_(weight.to(x.dtype)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        g, w = grads[0].to(x.dtype).contiguous(), weight.to(x.dtype)
        dim = x.shape[-1]
        rstd = scale.to(x.dtype)
        dx, dw, _ = torch.ops.aten.native_layer_norm_backward(
            g, x, [dim], torch.zeros_like(rstd), rstd, w, None, [True, True, False]
        )
        mean = torch.matmul(g, w).unsqueeze(-1)
        return dx.addcmul_(mean, rstd, value=1 / dim), dw.to(weight.dtype), None, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., dim); under autocast the result is already in the dtype that the next product wants."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        if kind == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _CpuRMSNorm.apply(x, self.weight, self.eps, dtype)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps).to(dtype)
