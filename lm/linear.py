"""Frozen weight matrices of the decoding steps, laid out once so that few rows are multiplied at memory speed.

A step of decoding multiplies one row, or a few, by every matrix of the model: its time is that of reading the weights.
On a CPU the usual kernels of torch reach a third to a half of the memory bandwidth for such products. `OneDNN` has its
matrix in the layout of that library (`tokenizers_av.packed`); `Compiled` is a sum of products, which the compiler turns
into one loop over the matrix. `Int8` halves the bytes that a CPU reads: one scale per output, values of 8 bits; other
devices are handed a copy of it in the dtype of the rows, which saves memory, not time.
"""

# Shapes: M rows, I inputs, O outputs

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_av.packed import FEW_ROWS, Packed


class Linear:
    """x (M, I) times the transpose of weight (O, I)."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """(M, I) -> (M, O)."""
        return F.linear(x, self.weight)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """other (M, O) + product."""
        return other + self(x)

    def over(self, x: Tensor, norm: Tensor) -> Tensor:
        """(M, I), norms of the rows (M, 1) -> (M, O): the product of rows divided by their norms."""
        return self((x / norm).to(x.dtype))

    def swiglu(self, x: Tensor, norm: Tensor, up: Linear) -> Tensor:
        """(M, I), (M, 1) -> (M, O): SiLU of `over` times `over` of another matrix (SwiGLU, arXiv:2002.05202)."""
        x = (x / norm).to(x.dtype)
        return F.silu(self(x)) * up(x)


class OneDNN(Linear):
    """For a CPU: what follows the product fused into it."""

    def __init__(self, weight: Tensor) -> None:
        self.packed = Packed(weight)

    def __call__(self, x: Tensor) -> Tensor:
        return self.packed(x)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self.packed.onto(x, other, "add")

    def swiglu(self, x: Tensor, norm: Tensor, up: Linear) -> Tensor:
        assert isinstance(up, OneDNN)
        x = (x / norm).to(x.dtype)
        return up.packed.onto(x, self.packed(x, "swish"), "mul")


class Compiled(Linear):
    """Inside a compiled step on a CPU: one loop over the matrix serves all of a few rows.

    Sums are divided, not rows: the compiler would divide each row again for every output.
    """

    def __call__(self, x: Tensor) -> Tensor:
        return self._sums(x).to(x.dtype) if in_loops(x) else super().__call__(x)

    def over(self, x: Tensor, norm: Tensor) -> Tensor:
        return (self._sums(x) / norm).to(x.dtype) if in_loops(x) else super().over(x, norm)

    def swiglu(self, x: Tensor, norm: Tensor, up: Linear) -> Tensor:
        return F.silu(self.over(x, norm)) * up.over(x, norm) if in_loops(x) else super().swiglu(x, norm, up)

    def _sums(self, x: Tensor) -> Tensor:
        """(M, I) -> (M, O) float32."""
        weight = self.weight.float()
        return torch.stack([(weight * row.float()).sum(-1) for row in x])


class Int8(Linear):
    """Weights rounded to 8 bits, with one scale per output, as they lie."""

    def __init__(self, weight: Tensor) -> None:
        scale = weight.float().abs().amax(dim=1).clamp_(min=1e-12) / 127
        super().__init__((weight.float() / scale[:, None]).round_().to(torch.int8))
        self.scale = scale.to(weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] > FEW_ROWS or x.device.type != "cpu":
            return F.linear(x, self.weight.to(x.dtype)) * self.scale
        return torch._weight_int8pack_mm(x, self.weight, self.scale)


def in_loops(x: Tensor) -> bool:
    """Whether a step is being compiled for a CPU in which x has few rows: then sums are loops, not library calls."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and x.shape[0] <= FEW_ROWS


def frozen(weight: Tensor, dtype: torch.dtype, *, int8: bool = False, compiled: bool = False) -> Linear:
    """The fastest `Linear` for weight (O, I) in `dtype` on its device, alone or inside a compiled step."""
    weight = weight.detach().to(dtype)
    if int8:
        return Int8(weight)
    if compiled:
        return Compiled(weight) if weight.device.type == "cpu" else Linear(weight)
    return OneDNN(weight) if Packed.can(weight) else Linear(weight)
