"""Frozen matrices and kernels in the blocked layout of oneDNN, which torch.compile uses too: a CPU's fastest products.

Few rows are multiplied at the speed of reading the matrix, many two to three times as fast in float32 as by MKL on some
processors. On x86 with AVX2 or better a row is rounded alike whatever stands beside it, so that what is computed in
pieces equals the whole.
"""

# Shapes: M rows, I inputs, O outputs

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 4  # up to this many rows a product is bound by reading the matrix, not by multiplying
# of more inputs a single row, and no other, is summed in two halves, which rounds otherwise, and so it is by any matrix
# that is not laid out: then it gets a copy for company
SPLIT = 1024


class Packed:
    """x (..., I) times the transpose of weight (O, I) plus bias (O,), and what follows the product, in one pass."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), FEW_ROWS), bias
        self._pairs = weight.shape[1] > SPLIT

    @staticmethod
    def can(weight: Tensor) -> bool:
        """Whether this CPU and build of torch have it for `weight`."""
        if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return False
        return weight.dtype == torch.float32 or (
            weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )

    def __call__(self, x: Tensor, then: str = "none") -> Tensor:
        """(..., I) -> (..., O), `then` being "none" or "swish"."""
        if self._pairs and x.numel() == x.shape[-1]:
            return _in_company(x, self.weight, self.bias, then)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], "")

    def onto(self, x: Tensor, other: Tensor, how: str) -> Tensor:
        """(M, I) -> (M, O): `other` (M, O) and the product, how "add" or "mul"."""
        if self._pairs and len(x) == 1:
            return self.onto(x.expand(2, -1).contiguous(), other.expand(2, -1).contiguous(), how)[:1]
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, how)


class PackedConv:
    """x (N, I, H, W) convolved with kernel (O, I, h, w), plus bias (O,); in the layout that is best for images of
    `shape`, with which others are convolved, too."""

    def __init__(self, kernel: Tensor, bias: Tensor, padding: int, shape: torch.Size) -> None:
        self.how = ([padding, padding], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups
        self.kernel = torch.ops.mkldnn._reorder_convolution_weight(kernel.detach(), *self.how, list(shape))
        self.bias = bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, H', W'), channels last."""
        return torch.ops.mkldnn._convolution_pointwise(x, self.kernel, self.bias, *self.how, "none", [], "")


class _PackedWhenUsedAgain:
    """The same, laid out at the second product: laying it out takes longer than one."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self._used = False
        self._packed: Packed | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        if self._packed is None and self._used:
            self._packed = Packed(self.weight, self.bias)
        self._used = True
        if self._packed is not None:
            return self._packed(x)
        if x.numel() == x.shape[-1]:
            return _in_company(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def _in_company(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """A single row (..., I) -> (..., O), multiplied beside a copy of itself."""
    twice = x.reshape(1, -1).expand(2, -1).contiguous()
    return torch.ops.mkldnn._linear_pointwise(twice, weight, bias, then, [], "")[0].view(*x.shape[:-1], -1)


def frozen_linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """`F.linear` by weight (O, I), which must not change any more, in the fastest form that its device has."""
    weight = weight.detach()
    return _PackedWhenUsedAgain(weight, bias) if Packed.can(weight) else partial(F.linear, weight=weight, bias=bias)
