"""The sampling engine: generation under a plan, in which each place takes only the ids that may stand there.

Prefill reads all prefixes in one pass (ragged ones padded on the left, equal ones once), then each step costs one pass
over the weights: for the next id, for the next block of ids (next-block prediction, arXiv:2502.07737), or for a window
of drafted ids of which the pass keeps the right ones (`lm.speculative`). Classifier-free guidance (arXiv:2207.12598)
runs the guided and the unguided rows in one batch: logits = unconditional + scale * (conditional - unconditional).
"""

# Shapes: B samples, R rows (B, or 2B with guidance), P longest prefix, N output places, n block size, V ids of a range

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lm.cache import KVCache
from lm.decode import Decoder
from lm.plan import Plan, Prefix
from lm.sampling import Sampling, distribution, draw, uniforms
from lm.session import Session
from lm.speculative import Counts, SpeculativeDecoder
from lm.transformer import LM
from lm.vocabulary import IdRange


@dataclass(frozen=True)
class Run:
    """Neighbouring places of one block that take the same ids in the same way."""

    first: int  # within the block
    last: int  # one past
    start: int  # ids start..stop-1
    stop: int
    range: IdRange
    rows: tuple[tuple[int, int], ...]  # of the embedding, per factor of the ids
    how: Sampling

    @property
    def key(self) -> tuple[int, int]:
        return self.start, self.stop

    @property
    def forced(self) -> bool:
        return self.stop - self.start == 1


class Engine:
    """A model ready to generate, its weights laid out in `dtype` (default: the model's own).

    After changing the model make a new engine: this one may read some weights as they were, others as they are.
    `compile` hands the step to torch.compile: tens of seconds at the first generation, faster after. `int8` rounds the
    weights to 8 bits, which on a CPU halves the bytes that a step reads. With either, a CPU has one kernel for up to
    four rows and another for more, which round differently. Of the last generation that was begun, `passes` counts the
    forward passes after the prefill, and `counts` how drafts fared, if there were any.
    """

    def __init__(
        self, model: LM, *, dtype: torch.dtype | None = None, compile: bool = False, int8: bool = False
    ) -> None:
        self.model, self.vocabulary, self.block_size = model, model.vocabulary, model.config.block_size
        self.n_factors = max(len(r.factors) for r in self.vocabulary)
        with torch.inference_mode():
            self.decoder = Decoder(model, dtype or model.embed.weight.dtype, int8=int8, compiled=compile)
        self._step: Callable[..., Tensor] | None = None
        self.compiled = compile
        if compile:
            on_gpu = self.decoder.device.type == "cuda"
            # sizes are guarded at the first layer; asserting all of them again took 3 % of a step of `tiny` and more
            options: dict[str, Any] = {"triton.cudagraphs": on_gpu, "size_asserts": False}
            self._step = torch.compile(self.decoder.forward, options={**options, "guard_filter_fn": _first_layers})
        self._spare: list[KVCache] = []
        self.passes = 0
        self.counts: Counts | None = None

    def generate(
        self,
        prefix: Prefix,
        plan: Plan,
        *,
        unconditional: Prefix | None = None,
        guidance_scale: float = 1.0,
        sampling: Mapping[str, Sampling] | None = None,
        seeds: Sequence[int],
        window: int = 0,
    ) -> Tensor:
        """All ids at once, (B, N) int64; see `stream`."""
        stream = self.stream(
            prefix, plan, unconditional=unconditional, guidance_scale=guidance_scale, sampling=sampling, seeds=seeds,
            window=window,
        )  # fmt: skip
        return torch.cat(list(stream), dim=1)

    def stream(
        self,
        prefix: Prefix,
        plan: Plan,
        *,
        unconditional: Prefix | None = None,
        guidance_scale: float = 1.0,
        sampling: Mapping[str, Sampling] | None = None,
        seeds: Sequence[int],
        window: int = 0,
    ) -> Iterator[Tensor]:
        """Yield the ids of all samples as they become known, (B, k) int64 with k >= 1, forced ids included, N in all.

        `sampling` goes by range name ("visual", "audio_0"); "audio" stands for all of "audio_0", "audio_1", ....
        With guidance_scale 1 the unconditional prefix is not run. `window` > 0 checks that many places in each pass of
        a classic model that is not compiled, all but the last of them drafted, and keeps what is right: fewer passes,
        other ids for a seed, the same distribution.
        The same seed gives the same ids alone and in a batch; compiled or in 8 bits, in one of up to four rows (two
        guided samples).
        Arguments are checked when called, before the first id is asked for; ValueError says what does not fit.
        """
        runs = self._runs(plan, sampling or {})
        if len(seeds) != len(prefix):
            raise ValueError(f"{len(seeds)} seeds for {len(prefix)} prefixes: give one seed per sample")
        if window < 0 or (window and self.block_size > 1):
            raise ValueError(f"window={window}: need 0, or 1 and more for a model that predicts one id at a time")
        if window and self.compiled:
            raise ValueError(f"window={window}: a compiled step takes one place, make an engine without compile")
        rows = prefix
        if guidance_scale != 1.0:
            if unconditional is None:
                raise ValueError(
                    f"guidance_scale={guidance_scale} needs an unconditional prefix; or use guidance_scale=1"
                )
            if len(unconditional) != len(prefix):
                raise ValueError(f"{len(unconditional)} unconditional prefixes for {len(prefix)} prefixes")
            rows = prefix + unconditional
        for ids in rows.ids:
            if int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary.size:
                raise ValueError(f"prefix ids must lie in [0, {self.vocabulary.size})")
        shortest = min(map(len, rows.ids))
        if shortest < self.block_size and not all(run.forced for run in runs[0]):
            raise ValueError(f"a prefix of {shortest} ids cannot predict a block of {self.block_size}")
        if window:
            return self._speculate(rows, plan, runs, guidance_scale, list(seeds), window)
        return self._run(rows, plan, runs, guidance_scale, list(seeds))

    @torch.inference_mode()  # entered while the generator runs, left at every yield
    def _run(
        self, rows: Prefix, plan: Plan, blocks: list[list[Run]], scale: float, seeds: list[int]
    ) -> Iterator[Tensor]:
        B, N, n = len(seeds), len(plan), self.block_size
        self.passes, self.counts = 0, None
        uniform = uniforms(seeds, N * self.n_factors, self.decoder.device).view(N, self.n_factors, B)
        cache = self._cache(len(rows), Session.capacity(rows, plan))
        try:
            session = Session(self.decoder, rows, plan, cache, self._step)
            hidden, known, fed = session.hidden, list[Tensor](), 0
            for b, runs in enumerate(blocks):
                if fed < b and not all(run.forced for run in runs):
                    hidden = session.feed(torch.cat(known[fed:], dim=1), fed * n)
                    self.passes, fed = self.passes + 1, b
                ids = [self._draw(hidden[:, r.first : r.last], r, scale, uniform[b * n + r.first : b * n + r.last])
                       for r in runs]  # fmt: skip
                known.append(torch.cat(ids, dim=1) if len(ids) > 1 else ids[0])
                yield known[-1]
        finally:
            self._spare.append(cache)

    def _draw(self, hidden: Tensor, run: Run, scale: float, uniform: Tensor) -> Tensor:
        """hidden (R, k, dim), uniform (k, factors, B) -> ids (B, k)."""
        k, _, B = uniform.shape
        if run.forced:
            return torch.full((B, k), run.start, device=uniform.device)
        values: list[Tensor] = []
        for f in range(len(run.range.factors)):
            logits = self._logits(hidden, run, scale, values)
            values.append(draw(logits.flatten(0, 1), run.how, uniform[:, f].T.flatten()).view(B, k))
        return run.range.join(values) + run.start

    def _logits(self, hidden: Tensor, run: Run, scale: float, values: Sequence[Tensor]) -> Tensor:
        """Guided scores of a factor after the values (B, k) of those before: hidden (R, k, dim) -> (B, k, V) float."""
        guided, row = scale != 1.0, run.rows[len(values)]
        hidden = self.decoder.factor_hidden(run.range.name, hidden, [v.repeat(1 + guided, 1) for v in values])
        logits = self.decoder.logits(hidden, *row).float()
        if not guided:
            return logits
        conditional, unconditional = logits.chunk(2)
        return torch.lerp(unconditional, conditional, scale) if run.how.guided else conditional

    @torch.inference_mode()
    def _speculate(
        self, rows: Prefix, plan: Plan, blocks: list[list[Run]], scale: float, seeds: list[int], window: int,
    ) -> Iterator[Tensor]:  # fmt: skip
        cache = self._cache(len(rows), Session.capacity(rows, plan, window))
        try:
            session = Session(self.decoder, rows, plan, cache, None, window)
            runs = [run for block in blocks for run in block]
            sizes = torch.ones(len(plan), self.n_factors, dtype=torch.int64)
            for place, run in enumerate(runs):
                if not run.forced:
                    sizes[place, : len(run.range.factors)] = torch.tensor([b - a for a, b in run.rows])
            last = torch.stack([ids[-1] for ids in rows.ids[: len(seeds)]]).to(self.decoder.device)
            passes = _Passes(self, session, runs, scale)
            steps = SpeculativeDecoder(passes, plan.start, sizes, last, window=window, seeds=seeds)
            self.passes, self.counts = 0, steps.counts
            waiting = [torch.empty(0, dtype=torch.int64, device=self.decoder.device)] * len(seeds)
            for known in steps:
                self.passes += 1
                waiting = [torch.cat(pair) for pair in zip(waiting, known, strict=True)]
                k = min(map(len, waiting))
                if k:
                    yield torch.stack([ids[:k] for ids in waiting])
                    waiting = [ids[k:] for ids in waiting]
        finally:
            self._spare.append(cache)

    def _cache(self, n_rows: int, capacity: int) -> KVCache:
        """A cache that no generation is using; one that was is taken again where it fits."""
        for i, spare in enumerate(self._spare):
            if spare.n_rows == n_rows and spare.capacity >= capacity:
                return self._spare.pop(i)
        self._spare.clear()
        cache = self.decoder.cache(n_rows, capacity)
        if self._step is not None:
            for data in cache.layers:
                torch._dynamo.mark_dynamic(data, 2)
        return cache

    def _runs(self, plan: Plan, sampling: Mapping[str, Sampling]) -> list[list[Run]]:
        """The plan as plain numbers, block by block."""
        stems = {r.name: r.name.rpartition("_")[0] or r.name for r in self.vocabulary}
        if unknown := sorted(sampling.keys() - stems.keys() - set(stems.values())):
            raise ValueError(f"sampling for unknown id ranges {unknown}, expected some of {list(stems)}")
        by_name = {name: sampling.get(name, sampling.get(stem, Sampling())) for name, stem in stems.items()}
        n = self.block_size
        if len(plan) % n:
            raise ValueError(f"a plan of {len(plan)} places is not one of whole blocks of {n}")
        legal = list(zip(plan.start.tolist(), plan.stop.tolist(), strict=True))
        ranges = {ids: self.vocabulary.range_of(*ids) for ids in set(legal)}
        blocks = []
        for b in range(0, len(plan), n):
            block, first = list[Run](), 0
            for (start, stop), same in itertools.groupby(legal[b : b + n]):
                last, r = first + len(list(same)), ranges[start, stop]
                block.append(Run(first, last, start, stop, r, self._rows(r, start, stop), by_name[r.name]))
                first = last
            blocks.append(block)
        return blocks

    def _rows(self, r: IdRange, start: int, stop: int) -> tuple[tuple[int, int], ...]:
        """The embedding rows of each factor that score ids start..stop-1 of a range."""
        rows = self.vocabulary.rows(r.name)
        if len(rows) == 1:
            return ((rows[0][0] + start - r.start, rows[0][0] + stop - r.start),)
        if stop - start not in (1, r.size):
            raise ValueError(
                f"ids {start}..{stop - 1}: a place takes all ids of the factorised range {r.name!r}, or one"
            )
        return rows


def _first_layers(guards: Sequence[Any]) -> list[bool]:
    """Which conditions of a compiled step are checked at each call: layers are alike, the first speaks for all."""
    return [re.search(r"\blayers\[[1-9]", guard.name) is None for guard in guards]


class _Passes:
    """One pass over a window of places for `SpeculativeDecoder`."""

    def __init__(self, engine: Engine, session: Session, runs: list[Run], scale: float) -> None:
        self.engine, self.session, self.scale = engine, session, scale
        kinds = {run.key: run for run in runs}
        self.kinds = list(kinds.values())
        number = {key: i for i, key in enumerate(kinds)}
        self.kind = torch.tensor([number[run.key] for run in runs], device=engine.decoder.device)

    def hidden(self, ids: Tensor, first: Tensor) -> Tensor:
        """See `Passes`."""
        hidden = self.session.feed_window(ids, first)
        return hidden.unflatten(0, (-1, len(ids))).permute(1, 2, 0, 3)  # (B, W, guided and unguided, dim)

    def probabilities(self, hidden: Tensor, first: Tensor, before: Sequence[Tensor]) -> Tensor:
        """See `Passes`."""
        f, N = len(before), len(self.kind)
        place = first[:, None] + torch.arange(hidden.shape[1], device=first.device)
        kind = torch.where(place < N, self.kind[place.clamp(max=N - 1)], -1)
        found = [k for k in kind.unique().tolist() if k >= 0]
        parts = []
        for k in found:
            run, where = self.kinds[k], (kind == k).nonzero(as_tuple=True)
            if run.forced or f >= len(run.rows):
                p = torch.ones(len(where[0]), 1, dtype=torch.float64, device=first.device)
            else:
                rows = hidden[where].transpose(0, 1)  # (guided and unguided, places, dim)
                values = [v[where][None] for v in before]
                p = distribution(self.engine._logits(rows, run, self.scale, values)[0], run.how)
            parts.append((where, p))
        wide = max((p.shape[-1] for _, p in parts), default=1)
        out = torch.zeros(*kind.shape, wide, dtype=torch.float64, device=first.device)
        for where, p in parts:
            out[(*where, slice(p.shape[-1]))] = p
        return out
