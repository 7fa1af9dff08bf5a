"""Generation under a plan: at each output position only the ids that may stand there can be drawn.

Prefill reads all prefixes in one pass (ragged ones padded on the left), then each step costs one pass over the weights.
Classifier-free guidance (arXiv:2207.12598) runs the guided and the unguided rows in one batch:
logits = unconditional + guidance_scale * (conditional - unconditional).
"""

# Shapes: B samples, R rows (B, or 2B with guidance), P longest prefix, N output positions

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lm.cache import KVCache
from lm.decode import Decoder
from lm.sampling import Sampling, draw, uniforms
from lm.transformer import LM


@dataclass
class Plan:
    """What may stand at each of N output positions, and where these positions lie."""

    start: Tensor  # (N,) int64
    stop: Tensor  # (N,) int64; stop - start == 1 forces the id
    positions: Tensor  # (N, 3) float: (t, h, w)

    def __post_init__(self) -> None:
        n = self.start.shape[0]
        if n < 1 or self.start.shape != (n,) or self.stop.shape != (n,) or self.positions.shape != (n, 3):
            raise ValueError(
                f"a plan needs start (N,), stop (N,) and positions (N, 3) with N >= 1, got {tuple(self.start.shape)}, "
                f"{tuple(self.stop.shape)}, {tuple(self.positions.shape)}"
            )

    def __len__(self) -> int:
        return self.start.shape[0]


@dataclass
class Prefix:
    """What the samples start from: one ragged batch of ids and their places."""

    ids: list[Tensor] = field(default_factory=list)  # (P_i,) int64 each
    positions: list[Tensor] = field(default_factory=list)  # (P_i, 3) float each

    def __post_init__(self) -> None:
        if not self.ids or len(self.ids) != len(self.positions):
            raise ValueError(f"a prefix needs as many ids as positions, got {len(self.ids)} and {len(self.positions)}")
        for i, (ids, positions) in enumerate(zip(self.ids, self.positions, strict=True)):
            if ids.ndim != 1 or not len(ids) or positions.shape != (len(ids), 3):
                raise ValueError(
                    f"prefix {i}: need ids (P,) with P >= 1 and positions (P, 3), "
                    f"got {tuple(ids.shape)} and {tuple(positions.shape)}"
                )

    def __len__(self) -> int:
        return len(self.ids)


def generate_stream(
    model: LM,
    prefix: Prefix,
    plan: Plan,
    *,
    unconditional: Prefix | None = None,
    guidance_scale: float = 1.0,
    sampling: Mapping[str, Sampling] | None = None,
    seeds: Sequence[int],
    dtype: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """Yield N tensors (B,) int64: the next id of every sample, forced ids included.

    `sampling` goes by range name ("visual", "audio_0"); "audio" stands for all of "audio_0", "audio_1", ....
    With guidance_scale 1 the unconditional prefix is not run. `dtype` casts the weights of the decoding steps.
    Arguments are checked when called, before the first id is asked for; ValueError says what does not fit.
    """
    steps = _steps(model, plan, sampling or {})
    if len(seeds) != len(prefix):
        raise ValueError(f"{len(seeds)} seeds for {len(prefix)} prefixes: give one seed per sample")
    guided = guidance_scale != 1.0
    if guided and unconditional is None:
        raise ValueError(f"guidance_scale={guidance_scale} needs an unconditional prefix; or use guidance_scale=1")
    if guided and unconditional is not None and len(unconditional) != len(prefix):
        raise ValueError(f"{len(unconditional)} unconditional prefixes for {len(prefix)} prefixes")
    rows = Prefix([*prefix.ids, *unconditional.ids], [*prefix.positions, *unconditional.positions]) \
        if guided and unconditional is not None else prefix  # fmt: skip
    for ids in rows.ids:
        if int(ids.min()) < 0 or int(ids.max()) >= model.config.vocab_size:
            raise ValueError(f"prefix ids must lie in [0, {model.config.vocab_size})")
    return _run(model, rows, plan, steps, guidance_scale if guided else None, list(seeds), dtype)


def generate(
    model: LM,
    prefix: Prefix,
    plan: Plan,
    *,
    unconditional: Prefix | None = None,
    guidance_scale: float = 1.0,
    sampling: Mapping[str, Sampling] | None = None,
    seeds: Sequence[int],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """All ids at once, (B, N) int64; see `generate_stream`."""
    stream = generate_stream(
        model, prefix, plan, unconditional=unconditional, guidance_scale=guidance_scale, sampling=sampling, seeds=seeds,
        dtype=dtype,
    )  # fmt: skip
    return torch.stack(list(stream), dim=1)


@torch.inference_mode()
def prefill(
    model: LM, prefix: Prefix, first: Tensor, capacity: int, dtype: torch.dtype | None = None
) -> tuple[KVCache, Tensor]:
    """Read the prefixes: a cache with room for `capacity` more ids, and hidden (R, dim), which predicts the next id.

    first (3,): the place that is filled next. Raises nothing of its own: `generate_stream` has checked its input.
    """
    device = model.embed.weight.device
    n, width = len(prefix), max(len(ids) for ids in prefix.ids)
    ids = torch.zeros(n, width, dtype=torch.int64, device=device)
    positions = torch.zeros(n, width + 1, 3, device=device)
    real = torch.zeros(n, width, dtype=torch.bool, device=device)
    for row, (i, p) in enumerate(zip(prefix.ids, prefix.positions, strict=True)):
        ids[row, width - len(i) :], real[row, width - len(i) :] = i.to(device), True
        positions[row, width - len(i) : width] = p.to(device, torch.float32)
    positions[:, width] = first.to(device, torch.float32)
    ragged = any(len(i) != width for i in prefix.ids)
    cache = KVCache(model.config, n, width + capacity, dtype or model.embed.weight.dtype, device)
    prefix_len = torch.full((n,), width, dtype=torch.int64, device=device)
    training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            hidden = model(ids, positions[:, :-1], positions[:, 1:], prefix_len, real if ragged else None, cache)
    finally:
        model.train(training)
    return cache, hidden[:, -1].to(cache.data.dtype)


@torch.inference_mode()  # entered while the generator runs, left at every yield
def _run(
    model: LM, rows: Prefix, plan: Plan, steps: list[tuple[int, int, Sampling]], scale: float | None, seeds: list[int],
    dtype: torch.dtype | None,
) -> Iterator[Tensor]:  # fmt: skip
    device = model.embed.weight.device
    B, last = len(seeds), len(steps) - 1
    with torch.autocast(device.type, enabled=False):
        cache, hidden = prefill(model, rows, plan.positions[0], len(plan), dtype)
        decoder = Decoder(model, cache, plan.positions.to(device, torch.float32))
        uniform = uniforms(seeds, len(plan), device)
        forced = plan.start.to(device)[:, None].expand(-1, B)
    for i, (start, stop, how) in enumerate(steps):
        with torch.autocast(device.type, enabled=False):
            if stop - start == 1:
                ids = forced[i]
            else:
                logits = decoder.logits(hidden, start, stop).float()
                if scale is not None:
                    logits = torch.lerp(logits[B:], logits[:B], scale) if how.guided else logits[:B]
                ids = draw(logits, how, uniform[i]) + start
        yield ids
        if i < last:
            with torch.autocast(device.type, enabled=False):
                hidden = decoder.step(ids if scale is None else ids.repeat(2))


def _steps(model: LM, plan: Plan, sampling: Mapping[str, Sampling]) -> list[tuple[int, int, Sampling]]:
    """The plan as plain numbers, with the way to draw at each position."""
    vocabulary = model.vocabulary
    stems = {r.name: r.name.rpartition("_")[0] or r.name for r in vocabulary}
    if unknown := sorted(sampling.keys() - stems.keys() - set(stems.values())):
        raise ValueError(f"sampling for unknown id ranges {unknown}, expected some of {list(stems)}")
    by_name = {name: sampling.get(name, sampling.get(stem, Sampling())) for name, stem in stems.items()}
    known: dict[tuple[int, int], Sampling] = {}
    steps = []
    for start, stop in zip(plan.start.tolist(), plan.stop.tolist(), strict=True):
        if (start, stop) not in known:
            known[start, stop] = by_name[vocabulary.range_of(start, stop).name]
        steps.append((start, stop, known[start, stop]))
    return steps
