"""Muon for the matrices, AdamW for everything else (Muon: momentum whose update is orthogonalised by Newton-Schulz)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from train.sharding import local, sharded_like


def matrix_optimizers(
    parameters: Iterable[tuple[str, Tensor]], lr: float, *, plain: tuple[str, ...] = (), weight_decay: float = 0.02
) -> list[torch.optim.Optimizer]:
    """Muon and AdamW for `parameters` (name, tensor); tensors whose name starts with one of `plain` go to AdamW.

    Muon's step is scaled to the size of AdamW's, so one learning rate serves both.
    """
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in parameters:
        (matrices if parameter.ndim == 2 and not name.startswith(plain) else rest).append(parameter)
    found: list[torch.optim.Optimizer] = []
    if matrices:
        muon = ShardedMuon if isinstance(matrices[0], DTensor) else torch.optim.Muon
        found.append(muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    if rest:
        found.append(torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0))
    return found


class ShardedMuon(torch.optim.Muon):
    """`torch.optim.Muon` for matrices sharded by rows over all processes, with the same update to the last bit.

    Momentum is kept sharded. Orthogonalising needs the whole matrix: the processes gather as many matrices as there are
    processes, each orthogonalises one of them and sends it to the others.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient; there is no `closure`."""
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            n = dist.get_world_size()
            for first in range(0, len(matrices), n):
                self._update(matrices[first : first + n], group)

    def _update(self, matrices: list[DTensor], group: dict[str, Any]) -> None:
        wholes = [self._direction(p, group) for p in matrices]
        rank = dist.get_rank()
        if rank < len(wholes):
            wholes[rank] = orthogonalise(wholes[rank], group["ns_coefficients"], group["ns_steps"], group["eps"])
        for owner, (p, update) in enumerate(zip(matrices, wholes, strict=True)):
            dist.broadcast(update, src=owner)
            mine = local(p)
            mine.mul_(1 - group["lr"] * group["weight_decay"])
            mine.add_(local(sharded_like(update, p)), alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))

    def _direction(self, p: DTensor, group: dict[str, Any]) -> Tensor:
        """Nesterov momentum of a matrix after its next gradient, whole, in bfloat16."""
        assert p.grad is not None
        state, gradient, beta = self.state[p], local(p.grad), group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        momentum = local(state["momentum_buffer"]).lerp_(gradient, 1 - beta)
        direction = gradient.lerp(momentum, beta).bfloat16()
        shards = DTensor.from_local(direction, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
        return shards.full_tensor()


def orthogonalise(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Nearly the closest matrix with orthonormal rows or columns: `steps` times an odd polynomial of degree 5 of its
    singular values; matrix (rows, columns) -> the same shape and dtype."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).contiguous()
