"""Exact speculative Jacobi decoding (SJD, arXiv:2410.01699): one pass checks a window of drafted places.

Each pass gives, for every place of the window, the distribution p that plain sampling would use there after the drafts
before it. A draft x that was drawn from a known q stays with probability min(1, p(x) / q(x)) and is otherwise replaced
by a draw from max(p - q, 0) (speculative sampling, arXiv:2211.17192): either way the place now follows p. Up to and
including the first place that changes, every place has been judged after final ids only, so these are known. The places
behind it follow a p after ids that are no longer there: they go into the next pass as drafts, with that p as their q.

Differs from SJD: the places behind the first change are treated like those before it, where SJD draws them anew. Both
leave them with p as their q; drafts that need not change stay, and so stays what later places were judged after
(maximal coupling, arXiv:2510.24211).

Why the result is exact for any first draft: what happens at a place hangs on the places before it and on its own random
numbers, never on a place behind it. Given all that ever happened before a place, its draft therefore follows its q in
every pass, and the pass that makes it known is fixed.
"""

# Shapes: B samples, N output places, W window, F factors of an id, V widest range of a factor, K places that are new

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Passes(Protocol):
    """The model as the decoder sees it. All values are local: 0 is the first value that may stand at a place.

    Windows run past the last place near the end, and lie wholly behind it for samples that are done (first = N): what
    is returned there is ignored.
    """

    def hidden(self, ids: Tensor, first: Tensor) -> Tensor:
        """One pass: ids (B, W) int64 of the places first - 1, ..., first + W - 2; first (B,) in [0, N] -> (B, W, ...).

        Row i predicts place first + i. The id before place 0 is the last of the prefix; behind the last place ids are
        0. The ids of all places before first - 1 were fed by earlier passes and have not changed since.
        """

    def probabilities(self, hidden: Tensor, first: Tensor, before: Sequence[Tensor]) -> Tensor:
        """(B, W, V) float: the distribution of factor number len(before) at each place, zero beyond the place's range.

        before: the values (B, W) int64 of the factors already chosen for the same places. V may differ between calls,
        but reaches the widest range of that factor in the window. What is returned is read until the next pass: of
        several factors, each needs its own memory.
        """


@dataclass
class Look:
    """What a draft may look at when places enter the window. All of it lies before them."""

    sizes: Tensor  # (N + W, M) int64: how many values may stand there, 1 behind the end
    kind: Tensor  # (N + W,) int64: equal where places take the same ids
    values: Tensor  # (B, N + W, M) int64: known and drafted values
    first: Tensor  # (B,) int64: first place of the pass just made
    p: list[Tensor]  # M of (B, W, V): its distributions at first, ..., first + W - 1; empty before the first pass


class Draft(Protocol):
    """Chooses what the ids of places that enter the window are drawn from; any choice leaves the result exact."""

    def __call__(self, look: Look, sample: Tensor, place: Tensor, factor: int) -> Tensor:
        """(K, V) weights >= 0 of the values of `factor` at place (K,) int64 of sample (K,) int64.

        Need not sum to 1; what lies beyond a place's range is cut off; a row without any weight stands for all values
        alike. The earlier factors of a place have been drawn: look.values[sample, place, :factor].
        """


def uniform(look: Look, sample: Tensor, place: Tensor, factor: int) -> Tensor:
    """All values alike."""
    return torch.zeros(len(place), 1, dtype=torch.float64, device=place.device)


def nearest(look: Look, sample: Tensor, place: Tensor, factor: int) -> Tensor:
    """The distribution of the nearest place before it that takes the same ids, if one was in the window."""
    if not look.p:
        return uniform(look, sample, place, factor)
    p = look.p[factor]
    columns = torch.arange(p.shape[1], device=p.device)
    same = look.kind[look.first[sample, None] + columns] == look.kind[place, None]  # (K, W)
    column = torch.where(same, columns, -1).amax(1)
    return p[sample, column] * (column >= 0)[:, None]


@dataclass
class Counts:
    """How drafting went. Drafts of places that can take one id only are not counted."""

    passes: Tensor  # (B,) int64: passes until the sample was done
    tested: Tensor  # (B,) int64: drafts that were judged after final ids
    accepted: Tensor  # (B,) int64: those of them that stayed

    @property
    def acceptance(self) -> Tensor:
        """(B,) float in [0, 1]: share of the tested drafts that stayed; 0 where none was tested."""
        return self.accepted / self.tested.clamp(min=1)


class SpeculativeDecoder:
    """An iterator that makes one pass per step until N places of B samples are filled.

    Each step gives B tensors (n,) int64, n in [0, W]: the ids that became known, at least one of every sample that is
    not done. `counts` says how the drafts fared so far.

    start (N,) int64: the first legal id of each place. sizes (N, M) int64: how many values each factor of its id takes,
    1 for a factor that the place does not have; id = start + the values read as digits, the first factor leading.
    last (B,) int64: the id before place 0, on the device of the model. window: W; 1 is plain decoding.
    seeds: one per sample. A sample takes equally many numbers from its own generator in each pass, so it gets the same
    ids alone and in any batch. Raises ValueError for shapes that do not fit.
    """

    def __init__(
        self, passes: Passes, start: Tensor, sizes: Tensor, last: Tensor, *, window: int, seeds: Sequence[int],
        draft: Draft = nearest,
    ) -> None:  # fmt: skip
        if sizes.ndim != 2 or not sizes.numel() or start.shape != sizes.shape[:1]:
            raise ValueError(f"need start (N,) and sizes (N, M), got {tuple(start.shape)} and {tuple(sizes.shape)}")
        if not seeds or last.shape != (len(seeds),):
            raise ValueError(f"{len(seeds)} seeds for last ids of shape {tuple(last.shape)}: give one seed per sample")
        if window < 1:
            raise ValueError(f"window={window} must be 1 (plain decoding) or more")
        B, (N, M), device = len(seeds), sizes.shape, last.device
        self.passes, self.draft, self.last, self.N = passes, draft, last, N
        sizes = F.pad(sizes.to(device), (0, 0, 0, window), value=1)
        self.start = F.pad(start.to(device), (0, window))
        self.radix = sizes.flip(1).cumprod(1).flip(1) // sizes  # what one step of a factor adds to the id
        self.forced = (sizes == 1).all(1)
        kind = torch.cat((self.start[:, None], sizes), dim=1).unique(dim=0, return_inverse=True)[1]
        values = torch.zeros(B, N + window, M, dtype=torch.int64, device=device)
        self.first = torch.zeros(B, dtype=torch.int64, device=device)  # first place that is not known
        self.look = Look(sizes, kind, values, self.first, [])
        self.columns = torch.arange(window, device=device)
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.counts = Counts(*(torch.zeros_like(self.first) for _ in range(3)))
        self.left = [N] * B
        # what the drafts in the window were drawn from, (B, W, V) per factor; the last row has no draft
        self.q = [torch.zeros(B, window, 1, dtype=torch.float64, device=device) for _ in range(M)]
        self._enter(self.columns.expand(B, -1) >= 0, self._uniforms()[2])

    def __iter__(self) -> SpeculativeDecoder:
        return self

    @torch.no_grad()
    def __next__(self) -> list[Tensor]:
        if not any(self.left):
            raise StopIteration
        places = self.first[:, None] + self.columns  # (B, W)
        inside = places < self.N
        hidden = self.passes.hidden(self._ids(places - 1), self.first)
        uniforms = self._uniforms()
        drafts = self.look.values[self._rows, places]  # (B, W, M)
        kept = (self.columns < len(self.columns) - 1).expand_as(places)
        values: list[Tensor] = []
        ps: list[Tensor] = []
        for m, q in enumerate(self.q):
            p = self.passes.probabilities(hidden, self.first, tuple(values))
            x, kept = settle(drafts[..., m], q, p, kept, uniforms[0, ..., m], uniforms[1, ..., m])
            values.append(torch.where(inside, x, 0))
            ps.append(p)
        self.look.values[self._rows, places] = torch.stack(values, dim=-1)
        unchanged = kept.cumprod(1)  # (B, W), 1 before the first place that changed
        n = (unchanged.sum(1) + 1).minimum(self.N - self.first)
        self._count(unchanged.bool(), inside & ~self.forced[places])
        known = self._ids(places)
        self._advance(ps, n, uniforms[2])
        lengths = n.tolist()
        self.left = [left - n for left, n in zip(self.left, lengths, strict=True)]
        return list(known[self.columns < n[:, None]].split(lengths))

    @property
    def _rows(self) -> Tensor:
        """(B, 1), to index samples beside (B, W)."""
        return torch.arange(len(self.last), device=self.last.device)[:, None]

    def _uniforms(self) -> Tensor:
        """(3, B, W, M) float64 in [0, 1): to judge drafts, to replace them, to draw those of new places."""
        shape = (3, len(self.columns), len(self.q))
        numbers = [torch.rand(shape, generator=g, dtype=torch.float64) for g in self.generators]
        return torch.stack(numbers, dim=1).to(self.last.device)

    def _ids(self, places: Tensor) -> Tensor:
        """places (B, W) from -1 on -> (B, W) int64."""
        at = places.clamp(min=0)
        ids = self.start[at] + (self.look.values[self._rows, at] * self.radix[at]).sum(-1)
        return torch.where(places < 0, self.last[:, None], ids)

    def _count(self, unchanged: Tensor, free: Tensor) -> None:
        """unchanged (B, W): True before the first change; free (B, W): more than one id may stand there."""
        tested = F.pad(unchanged[:, :-1], (1, 0), value=True) & free
        tested[:, -1] = False
        self.counts.passes += self.first < self.N
        self.counts.tested += tested.sum(1)
        self.counts.accepted += (unchanged & free).sum(1)

    def _advance(self, ps: list[Tensor], n: Tensor, uniform: Tensor) -> None:
        """Move the windows on by n (B,); places that stay in them follow the p (B, W, V) of this pass."""
        source = self.columns + n[:, None]  # the column of this pass in which a place of the next window stood
        W = len(self.columns)
        self.q = [p[self._rows, source.clamp(max=W - 1)] for p in ps]
        self.look.first, self.look.p = self.first, ps
        self.first = self.first + n
        self._enter(source >= W, uniform)

    def _enter(self, new: Tensor, uniform: Tensor) -> None:
        """Draft the places of the window that are new (B, W); uniform (B, W, M)."""
        places = self.first[:, None] + self.columns
        sample, column = (new & (places < self.N) & (self.columns < len(self.columns) - 1)).nonzero(as_tuple=True)
        if not len(sample):
            return
        place = places[sample, column]
        for m, q in enumerate(self.q):
            size = self.look.sizes[place, m]
            weights = _widen(self.draft(self.look, sample, place, m).to(q.dtype), int(size.max()))
            legal = torch.arange(weights.shape[-1], device=size.device) < size[:, None]
            weights = weights * legal
            weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, legal.to(q.dtype))
            weights = weights / weights.sum(-1, keepdim=True)
            self.q[m] = _widen(q, weights.shape[-1])
            self.q[m][sample, column, : weights.shape[-1]] = weights
            self.look.values[sample, place, m] = pick(weights, uniform[sample, column, m])


def settle(
    drafts: Tensor, q: Tensor, p: Tensor, kept: Tensor, to_judge: Tensor, to_draw: Tensor
) -> tuple[Tensor, Tensor]:
    """One factor of all places: values (B, W) that follow p, and whether each is still the draft (B, W) bool.

    drafts (B, W) int64 were drawn from q (B, W, V); p (B, W, V). kept (B, W) bool: False where an earlier factor has
    changed or there is no draft; p is then drawn from as it is. to_judge, to_draw (B, W): uniform numbers.
    """
    q, p = _widen(q, p.shape[-1]), _widen(p, q.shape[-1])
    at = drafts[..., None]
    stay = kept & stays(q.gather(-1, at)[..., 0], p.gather(-1, at)[..., 0], to_judge)
    where = (~stay).nonzero(as_tuple=True)
    weights = torch.where(kept[where][:, None], residual(q[where], p[where]), p[where])
    values = drafts.clone()
    values[where] = pick(weights, to_draw[where])
    return values, stay


def stays(q: Tensor, p: Tensor, uniform: Tensor) -> Tensor:
    """Whether a draft of probability q stays where it should have p: with probability min(1, p / q), elementwise."""
    return uniform * q < p


def residual(q: Tensor, p: Tensor) -> Tensor:
    """What a draft that did not stay is replaced from: (K, V) weights; p itself should rounding leave nothing."""
    rest = (p - q).clamp_(min=0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)


def pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """One index per row of weights (K, V) by inverting their cumulative sum at uniform (K,) in [0, 1) -> (K,) int64."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    index = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return index.squeeze(1).clamp_(max=weights.shape[-1] - 1)


def _widen(x: Tensor, width: int) -> Tensor:
    """Zeros behind the last dimension up to a width; never narrower."""
    return F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x
