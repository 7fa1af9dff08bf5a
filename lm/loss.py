"""Cross entropy in which each target competes only with the ids that may stand in its place.

Sampling never draws outside the legal range of a position, so the loss does not spend capacity on telling ranges apart
and never builds logits over the whole vocabulary. The z-loss (PaLM, arXiv:2204.02311) keeps log-normalisers near zero.
Memory is bounded: chunks of positions are turned into their gradient at once, and the logits forgotten.
"""

# Shapes: N targets, V ids of a range, dim width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lm.vocabulary import IdRange

IGNORE_INDEX = -100
CHUNK_ELEMENTS = 4 * 2**20  # float32 logits alive at one time: 16 MiB


@dataclass
class LMLoss:
    """Mean cross entropy over all targets in nats (z-loss included in `total` only)."""

    total: Tensor  # () differentiable
    per_range: dict[str, Tensor]  # mean nats of each range that has targets, detached
    n_targets: Tensor  # () int64, targets of this batch; 0 makes `total` 0
    n_per_range: dict[str, int]


class _RangeCrossEntropy(torch.autograd.Function):
    """Sum over targets; the gradient is computed in the forward pass, while the logits of a chunk are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        groups: list[tuple[int, int, Tensor]],
        z: float,
        dtype: torch.dtype,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        dh = torch.zeros_like(hidden, dtype=torch.float32) if with_grad else None
        dw = torch.zeros_like(weight, dtype=torch.float32) if with_grad else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        sums = torch.zeros(len(groups), dtype=torch.float32, device=hidden.device)
        for g, (start, stop, where) in enumerate(groups):
            w = weight[start:stop].to(dtype)
            for index in where.split(max(1, CHUNK_ELEMENTS // (stop - start))):
                h = hidden[index].to(dtype)
                target = (ids[index] - start)[:, None]
                logits = (h @ w.t()).float()
                lse = logits.logsumexp(dim=-1, keepdim=True)
                nats = (lse - logits.gather(1, target)).sum()
                sums[g] += nats
                total += nats + z * lse.square().sum()
                if dh is None or dw is None:
                    continue
                p = logits.sub_(lse).exp_()
                if z:
                    p.mul_(1 + 2 * z * lse)
                p.scatter_add_(1, target, p.new_full(target.shape, -1.0))
                p = p.to(dtype)
                dh[index] = (p @ w).float()
                dw[start:stop] += p.t() @ h
        ctx.mark_non_differentiable(sums)
        ctx.save_for_backward(dh, dw)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total, sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dh, dw = ctx.saved_tensors
        scale = grads[0]
        return (dh * scale).to(ctx.dtypes[0]), (dw * scale).to(ctx.dtypes[1]), None, None, None, None, None


def range_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, ranges: Sequence[IdRange], z_loss: float = 0.0
) -> LMLoss:
    """Loss of hidden (B, L, dim) under labels (B, L): hidden[:, i] predicts labels[:, i + 1].

    weight (vocabulary, dim) is the output embedding; `ranges` are the ranges whose ids count as targets, every other
    label (IGNORE_INDEX, special ids) carries no loss.
    """
    ids = labels[:, 1:].reshape(-1)
    h = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    found = [(r, ((ids >= r.start) & (ids < r.stop)).nonzero().squeeze(1)) for r in ranges]
    found = [(r, where) for r, where in found if len(where)]
    kind = hidden.device.type
    dtype = (
        torch.get_autocast_dtype(kind)
        if torch.is_autocast_enabled(kind)
        else torch.promote_types(hidden.dtype, weight.dtype)
    )
    with_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    with torch.autocast(kind, enabled=False):
        groups = [(r.start, r.stop, where) for r, where in found]
        total, sums = _RangeCrossEntropy.apply(h, weight, ids, groups, z_loss, dtype, with_grad)
    counts = {r.name: len(where) for r, where in found}
    n = sum(counts.values())
    per_range = {r.name: sums[i] / len(where) for i, (r, where) in enumerate(found)}
    return LMLoss(total / max(n, 1), per_range, torch.tensor(n, device=hidden.device), counts)
