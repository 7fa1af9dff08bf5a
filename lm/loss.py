"""Cross entropy in which each target competes only with the ids that may stand in its place.

Sampling never draws outside the legal range of a position, so the loss does not spend capacity on telling ranges apart
and never builds logits over the whole vocabulary. The z-loss (PaLM, arXiv:2204.02311) keeps log-normalisers near zero.
An id of a factorised range costs the sum over its factors.

Memory is bounded: the logits of one tile (positions x embedding rows) exist at a time, and are turned into gradients in
the forward pass. A range too wide for one tile is gone through twice: for the log-normalisers, then for the gradients.
"""

# Shapes: N targets of a group, V embedding rows of a group, dim width

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lm.vocabulary import Vocabulary

IGNORE_INDEX = -100
TILE_ELEMENTS = 2 * 2**20  # logits of a tile: 8 MiB in float32
MIN_POSITIONS = 128  # fewer positions at a time than these: better go through the range twice, in narrower tiles
MAX_POSITIONS = 2048  # of such tiles; the weights are read and cast once for so many positions


@dataclass
class LMLoss:
    """Mean cross entropy over all targets in nats (z-loss included in `total` only)."""

    total: Tensor  # () differentiable
    per_range: dict[str, Tensor]  # mean nats per id of each range that has targets, detached
    n_targets: Tensor  # () int64, targets of this batch; 0 makes `total` 0
    n_per_range: dict[str, int]


@dataclass
class _Group:
    """Targets that compete among the same embedding rows: one factor of one range."""

    name: str
    start: int
    stop: int
    target: Tensor  # (N,) int64 in [0, stop - start)


class _RangeCrossEntropy(torch.autograd.Function):
    """Sum over all targets with z-loss, and the nats of each group; `hidden` are (N, dim), one for each group."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, groups: Sequence[_Group], z: float, dtype: torch.dtype, grad: bool, *hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        # the one buffer of the weight's size; it has the weight's dtype, so that none is needed to convert it
        dw = torch.zeros_like(weight) if grad and ctx.needs_input_grad[0] else None
        dh = [torch.zeros_like(h, dtype=torch.float32) if grad else None for h in hidden]
        sums = torch.zeros(len(groups), 2, device=weight.device)
        for i, (group, h) in enumerate(zip(groups, hidden, strict=True)):
            if len(h):
                rows = slice(group.start, group.stop)
                dw_rows = None if dw is None else dw[rows]
                sums[i] = _cross_entropy(h.to(dtype), weight[rows], group.target, z, dh[i], dw_rows)
        nats, squares = sums.unbind(1)
        ctx.mark_non_differentiable(nats)
        ctx.save_for_backward(dw, *dh)
        ctx.dtypes = [h.dtype for h in hidden]
        return nats.sum() + z * squares.sum(), nats

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dw, *dh = ctx.saved_tensors
        if dw is not None:
            dw.mul_(grads[0])  # in place; autograd notices, and refuses a second backward pass
        return dw, None, None, None, None, *((h * grads[0]).to(d) for h, d in zip(dh, ctx.dtypes, strict=True))


def _cross_entropy(h: Tensor, weight: Tensor, target: Tensor, z: float, dh: Tensor | None, dw: Tensor | None) -> Tensor:
    """Nats and squared log-normalisers, each summed over the targets (N,): h (N, dim), weight (V, dim) -> (2,).

    dh (N, dim) float32 and dw (V, dim) are filled with the gradients of nats + z * squares; None: not wanted. Matrix
    products are in the dtype of h.
    """
    N, V = len(h), len(weight)
    n = TILE_ELEMENTS // V
    if n < min(N, MIN_POSITIONS):
        n = MAX_POSITIONS
    n = min(n, N)
    width = min(V, max(1, TILE_ELEMENTS // n))
    chunks = [slice(i, min(N, i + n)) for i in range(0, N, n)]
    tiles = [slice(i, min(V, i + width)) for i in range(0, V, width)]
    lse = torch.full((N, 1), -torch.inf, device=h.device)
    correct = torch.zeros(N, 1, device=h.device)  # logit of the target
    passes = [(True, True)] if len(tiles) == 1 else [(True, False), (False, True)]
    for normalise, differentiate in passes if dh is not None else [(True, False)]:
        for tile in tiles:
            w = weight[tile].to(h.dtype)
            dw_tile = None if dw is None or not differentiate else dw[tile]
            if dw_tile is not None and dw_tile.dtype != torch.float32:  # too coarse to add up in
                dw_tile = torch.zeros(w.shape, device=w.device)
            for chunk in chunks:
                logits = (h[chunk] @ w.t()).float()
                # exp is what costs here: softmax takes it once, and gives the normaliser away
                p = logits.softmax(dim=-1)
                tile_lse = logits.amax(dim=-1, keepdim=True) - p.amax(dim=-1, keepdim=True).log_()
                column = target[chunk, None] - tile.start
                here = (column >= 0) & (column < len(w))
                column.clamp_(0, len(w) - 1)
                if normalise:
                    lse[chunk] = torch.logaddexp(lse[chunk], tile_lse)
                    correct[chunk] = logits.gather(1, column).where(here, correct[chunk])
                if differentiate and dh is not None:
                    p.mul_((tile_lse - lse[chunk]).exp_() * (1 + 2 * z * lse[chunk]))
                    p.scatter_add_(1, column, -here.float())
                    p = p.to(h.dtype)
                    _add_product(dh[chunk], p, w)
                    if dw_tile is not None:
                        _add_product(dw_tile, p.t(), h[chunk])
                del logits, p  # else they live on while the next ones are made
            if dw is not None and dw_tile is not None and dw_tile.dtype != dw.dtype:
                dw[tile] = dw_tile
    return torch.stack(((lse - correct).sum(), lse.square().sum()))


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b, without a temporary where the dtypes allow it."""
    if out.dtype == a.dtype:
        out.addmm_(a, b)
    else:
        out += a @ b


def range_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocabulary: Vocabulary,
    factor_hidden: Callable[[str, int, Tensor, Sequence[Tensor]], Tensor],
    z_loss: float = 0.0,
    shift: int = 1,
) -> LMLoss:
    """Loss of hidden (B, L, dim) under labels (B, L): hidden[:, i] predicts labels[:, i + shift].

    weight (vocabulary.n_rows, dim) is the output embedding, `factor_hidden` is `LM.factor_hidden`. Ids of all ranges
    but "special" are targets; every other label (IGNORE_INDEX, special ids) carries no loss.
    """
    ids = F.pad(labels[:, shift:], (0, min(shift, labels.shape[1])), value=IGNORE_INDEX).flatten()
    ranges = [r for r in vocabulary if r.name != "special"]
    found = [((ids >= r.start) & (ids < r.stop)).nonzero().squeeze(1) for r in ranges]
    counts = [len(where) for where in found]
    parts = hidden.flatten(0, 1).index_select(0, torch.cat(found)).split(counts)
    groups, states = [], []
    # ranges without targets take part, so that every parameter gets a gradient whatever the batch (DDP wants that)
    for r, where, part in zip(ranges, found, parts, strict=True):
        values = r.split(ids[where] - r.start)
        for k, ((start, stop), value) in enumerate(zip(vocabulary.rows(r.name), values, strict=True)):
            groups.append(_Group(r.name, start, stop, value))
            states.append(factor_hidden(r.name, k, part, values[:k]))
    kind = hidden.device.type
    dtype = (
        torch.get_autocast_dtype(kind)
        if torch.is_autocast_enabled(kind)
        else torch.promote_types(hidden.dtype, weight.dtype)
    )
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in (weight, *states))
    with torch.autocast(kind, enabled=False):
        total, nats = _RangeCrossEntropy.apply(weight, groups, z_loss, dtype, grad, *states)
    n_per_range = {r.name: n for r, n in zip(ranges, counts, strict=True) if n}
    per_range = {
        name: nats[[i for i, group in enumerate(groups) if group.name == name]].sum() / n
        for name, n in n_per_range.items()
    }
    n = sum(counts)
    return LMLoss(total / max(n, 1), per_range, torch.tensor(n, device=hidden.device), n_per_range)
