"""A batch of sequences that is being continued: their prefixes read into a cache, new ids fed behind them."""

# Shapes: B samples, R rows (B, or 2B with guidance), P longest prefix, N output places, n block size, W window

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lm.cache import KVCache
from lm.decode import Decoder
from lm.plan import Plan, Prefix

READ_STEP = 64  # a compiled step reads the cache in multiples of this, so that few lengths are ever seen


class Session:
    """Reads the prefixes when made, equal ones once, ragged ones padded on the left; then takes new ids.

    `hidden` (R, n, dim) predicts the first block, from the last n ids of the prefixes. `cache` (see `capacity`) is
    filled anew. `step` replaces `decoder.forward` where one block is fed at a time. `slack` places may be fed beyond
    the plan's.
    """

    def __init__(
        self, decoder: Decoder, rows: Prefix, plan: Plan, cache: KVCache, step: Callable[..., Tensor] | None,
        slack: int = 0,
    ) -> None:  # fmt: skip
        self.decoder, self.cache, self.step = decoder, cache, step
        n = self.n = decoder.config.block_size
        device = decoder.device
        prefixes, which = rows.distinct()
        P = self.width = max(map(len, rows.ids))
        ids = torch.zeros(len(prefixes), P, dtype=torch.int64, device=device)
        positions = torch.zeros(len(prefixes), P + len(plan) + n + slack, 3, device=device)
        real = torch.zeros(len(prefixes), P, dtype=torch.bool, device=device)
        for row, (i, p) in enumerate(zip(prefixes.ids, prefixes.positions, strict=True)):
            ids[row, P - len(i) :], real[row, P - len(i) :] = i.to(device), True
            positions[row, P - len(i) : P] = p.to(device, torch.float32)
        positions[:, P : P + len(plan)] = plan.positions.to(device, torch.float32)
        positions[:, P + len(plan) :] = positions[:, P + len(plan) - 1, None]
        hides = torch.zeros(len(prefixes), 1, 1, cache.capacity, dtype=decoder.dtype, device=device)
        hides[:, 0, 0, :P].masked_fill_(~real, float("-inf"))
        bias = None if bool(real.all()) else hides[..., :P]
        places = decoder.places(positions[:, :P], positions[:, n : P + n])
        hidden = decoder.feed(ids, places, [data[: len(ids)] for data in cache.layers], 0, P, bias)
        cache.spread(P, which)
        self.hidden = hidden[which.to(device), -n:]
        self.last = ids[which.to(device), -1]
        self.positions = positions[which.to(device)]
        self.bias = None if bias is None else hides[which.to(device)]  # (R, 1, 1, S): hides padding
        self.table = decoder.places(positions[0, P:-n], positions[0, P + n :])
        # what a compiled step reads: all that is not filled yet is hidden too
        self.filled = hides[:1] if bias is None else hides[which.to(device)]
        self.filled[..., P:] = float("-inf")

    def feed(self, ids: Tensor, at: int) -> Tensor:
        """Ids (B, k) of output places at, ..., at + k - 1, in whole blocks -> (R, n, dim), which predicts the next."""
        copies = self.cache.n_rows // ids.shape[0]
        ids = ids.repeat(copies, 1) if copies > 1 else ids
        k, first = ids.shape[1], self.width + at
        stop, places = first + k, self.table[at : at + k]
        self.filled[..., first:stop] = 0
        if k == self.n and self.step is not None:
            stop = -(-stop // READ_STEP) * READ_STEP
            index = torch.arange(first, first + k, device=ids.device).expand(len(ids), k)
            filled = torch.narrow_copy(self.filled, 3, 0, stop)  # its strides must not tell of the capacity
            torch._dynamo.maybe_mark_dynamic(filled, 3)
            return self.decoder.feed(ids, places, self.cache.layers, index, None, filled, self.step)
        bias = None if self.bias is None else self.bias[..., :stop]
        if k > self.n:  # several blocks, each of which sees itself and those before it
            own = first + torch.arange(self.n, k + 1, self.n, device=ids.device).repeat_interleave(self.n)
            later = torch.arange(stop, device=ids.device) >= own[:, None]
            causal = torch.zeros(1, 1, k, stop, dtype=self.decoder.dtype, device=ids.device)
            causal.masked_fill_(later, float("-inf"))
            bias = causal if bias is None else bias + causal
        return self.decoder.feed(ids, places, self.cache.layers, first, stop, bias)[:, -self.n :]

    def feed_window(self, ids: Tensor, first: Tensor) -> Tensor:
        """Ids (B, W) of the output places first - 1, ..., first + W - 2, a place for each sample (B,), one by one.

        -> (R, W, dim), which predicts places first, .... Place -1 is the last of each row's own prefix, whatever id is
        given for it. Classic models only.
        """
        copies = self.cache.n_rows // ids.shape[0]
        ids, first = ids.repeat(copies, 1), first.repeat(copies)
        ids[:, 0] = torch.where(first == 0, self.last, ids[:, 0])
        index = self.width - 1 + first[:, None] + torch.arange(ids.shape[1], device=ids.device)  # (R, W) in the cache
        row = torch.arange(len(ids), device=ids.device)[:, None]
        places = self.decoder.places(self.positions[row, index], self.positions[row, index + 1])
        stop = int(index.max()) + 1
        later = torch.arange(stop, device=ids.device) > index[:, None, :, None]
        bias = torch.zeros(later.shape, dtype=self.decoder.dtype, device=ids.device).masked_fill_(later, float("-inf"))
        if self.bias is not None:
            bias += self.bias[..., :stop]
        return self.decoder.feed(ids, places, self.cache.layers, index, stop, bias)

    @staticmethod
    def capacity(rows: Prefix, plan: Plan, slack: int = 0) -> int:
        """Positions that a cache needs."""
        return (max(map(len, rows.ids)) + len(plan) + slack) // READ_STEP * READ_STEP + 2 * READ_STEP
