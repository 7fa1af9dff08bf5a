"""A toy model by tables, so small that the exact distribution of its sequences can be written down."""

# Shapes: B samples, N places, W window, M factors, V widest range, S all sequences there are

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import lm.speculative
from lm.speculative import Look, SpeculativeDecoder, nearest, pick, residual, settle, uniform

START = 100  # of the ids at place 0; each other set of sizes starts elsewhere


class Toy:
    """Implements `Passes`: the distribution at a place is looked up by a hash of ALL ids before it."""

    def __init__(self, sizes, *, seed=0, scale=1.5, states=997):
        g = torch.Generator().manual_seed(seed)
        self.sizes = torch.tensor(sizes)
        N, M = self.sizes.shape
        kinds = self.sizes.unique(dim=0, return_inverse=True)[1]
        self.start = START * (1 + kinds)
        self.weights = torch.randint(1, states, (N + 1, M + 1), generator=g)
        logits = torch.randn(N, M, states, int(self.sizes.max()), generator=g, dtype=torch.float64) * scale
        logits[torch.rand(logits.shape, generator=g) < 0.2] = -torch.inf  # as top-k leaves them
        logits[..., 0].clamp_(min=-1)
        legal = torch.arange(logits.shape[-1]) < self.sizes[..., None, None]
        self.table = logits.masked_fill(~legal, -torch.inf).softmax(-1)  # (N, M, states, V)
        self.states, self.seen = states, None

    def hidden(self, ids, first):
        (B, W), (N, _) = ids.shape, self.sizes.shape
        if self.seen is None:
            self.seen = torch.zeros(B, N + W + 1, dtype=torch.int64)
        place = first[:, None] - 1 + torch.arange(W)
        at = place.clamp(0, N - 1)
        legal = (ids >= self.start[at]) & (ids < self.start[at] + self.sizes[at].prod(-1))
        assert (legal | (place < 0) | ((place >= N) & (ids == 0))).all(), "an id is fed that may not stand there"
        self.seen.scatter_(1, place + 1, ids)  # column 0 holds the id before place 0
        state = ((self.seen[:, : N + 1] + 1) * self.weights[:, 0]).cumsum(1) % self.states
        return state.gather(1, (first[:, None] + torch.arange(W)).clamp(max=N))

    def probabilities(self, hidden, first, before):
        places = first[:, None] + torch.arange(hidden.shape[1])
        at = places.clamp(max=len(self.sizes) - 1)
        for m, value in enumerate(before):
            hidden = hidden + (value + 1) * self.weights[at, m + 1]
        p = self.table[at, len(before), hidden % self.states, : self.sizes[at, len(before)].max()]
        return p.masked_fill((places >= len(self.sizes))[..., None], torch.nan)  # nobody may look there

    def ids(self, values):
        """values (B, N, M) -> (B, N)."""
        ids = values[..., 0]
        for m in range(1, values.shape[-1]):
            ids = ids * self.sizes[:, m] + values[..., m]
        return ids + self.start

    def exact(self, last):
        """All sequences (S, N) of ids, and their probabilities (S,)."""
        values = torch.tensor(list(itertools.product(*map(range, self.sizes.flatten().tolist()))))
        values = values.view(-1, *self.sizes.shape)
        ids, first = self.ids(values), torch.zeros(len(values), dtype=torch.int64)
        self.seen = None
        hidden = self.hidden(torch.cat((torch.full((len(ids), 1), last), ids[:, :-1]), 1), first)
        factors = []
        for m in range(values.shape[-1]):
            p = self.probabilities(hidden, first, list(values.unbind(-1)[:m]))
            factors.append(p.gather(-1, values[..., m, None])[..., 0])
        return ids, torch.stack(factors).prod(0).prod(-1)

    def greedy(self):
        """Every distribution moved onto its likeliest value."""
        self.table = F.one_hot(self.table.argmax(-1), self.table.shape[-1]).double()
        return self


def decode(passes, seeds, window, draft=nearest, last=None):
    """Ids (B, N), the pieces they came in, and the counts."""
    passes.seen = None
    last = torch.full((len(seeds),), 7) if last is None else last
    decoder = SpeculativeDecoder(passes, passes.start, passes.sizes, last, window=window, seeds=seeds, draft=draft)
    pieces = list(decoder)
    ids = torch.stack([torch.cat(own) for own in zip(*pieces, strict=True)])
    return ids, pieces, decoder.counts


def p_value(ids, sequences, probabilities):
    """Chi-square test of drawn ids (n, N) against the sequences (S, N) and their probabilities (S,)."""
    n, S = len(ids), len(sequences)
    which = torch.cat((sequences, ids)).unique(dim=0, return_inverse=True)[1]
    assert which.max() < S, "an id was drawn that may not stand there"
    counts = torch.zeros(S, dtype=torch.float64).index_add(0, which[S:], torch.ones(n, dtype=torch.float64))[which[:S]]
    if counts[probabilities == 0].any():
        return 0.0
    expected, order = (n * probabilities).sort(descending=True)
    counts, cells = counts[order], int((expected >= 10).sum())
    expected, counts = (torch.cat((x[:cells], x[cells:].sum()[None])) for x in (expected, counts))
    expected, counts = expected[expected > 0], counts[expected > 0]
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert len(expected) > 50
    return torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), chi2 / 2).item()


PAIRS = [[3, 1], [2, 2], [1, 1], [3, 1], [2, 2], [4, 1]]  # with a forced place and two of two factors
RUNS = 20_000


def wild(look, sample, place, factor):
    """Depends on what stands before, leaves legal values out, spills over the range, is nothing here and there."""
    before = look.values[sample, (place - 1).clamp(min=0)].sum(-1) + look.values[sample, place, :factor].sum(-1)
    weights = F.one_hot((before + place) % 3, 5) * 2.0 + F.one_hot((before + 1) % 3, 5)
    return weights * (place % 3 > 0)[:, None]


@pytest.mark.parametrize(
    ("window", "draft", "dtype"),
    [(3, nearest, torch.float64), (9, uniform, torch.float32), (4, wild, torch.float64)],
    ids=["nearest", "uniform", "wild"],
)
def test_draws_from_the_exact_distribution(window, draft, dtype):
    toy = Toy(PAIRS)
    sequences = toy.exact(7)
    toy.table = toy.table.to(dtype)
    ids, _, counts = decode(toy, range(RUNS), window, draft)
    assert p_value(ids, *sequences) > 1e-3
    assert counts.accepted.sum() > RUNS / 2


BROKEN = {
    "drafts always stay": ("stays", lambda q, p, uniform: torch.ones_like(uniform, dtype=torch.bool)),
    "drafts stay by p alone": ("stays", lambda q, p, uniform: uniform < p),
    "replaced from p": ("residual", lambda q, p: p),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found_out(monkeypatch, name):
    toy = Toy(PAIRS)
    monkeypatch.setattr(lm.speculative, *BROKEN[name])
    ids, _, _ = decode(toy, range(RUNS // 4), 4)
    assert p_value(ids, *toy.exact(7)) < 1e-6


def long_toy(**kwargs):
    """40 places: forced ones, one range of single ids, one of pairs."""
    return Toy(([[1, 1]] + [[5, 1]] * 12 + [[1, 1]] + [[3, 4]] * 6) * 2, **kwargs)


def test_a_sample_gives_the_same_alone_and_in_a_batch():
    toy, seeds, last = long_toy(), [3, 4, 5, 3], torch.tensor([7, 8, 9, 9])
    ids, pieces, counts = decode(toy, seeds, 6, last=last)
    assert (ids != ids[0]).any(1)[1:].all() and (counts.passes != counts.passes[0]).any()
    for b, seed in enumerate(seeds):
        alone, own, own_counts = decode(toy, [seed], 6, last=last[b : b + 1])
        assert torch.equal(alone[0], ids[b])
        assert [len(p[0]) for p in own] == [len(p[b]) for p in pieces][: len(own)]
        for name in ("passes", "tested", "accepted"):
            assert getattr(own_counts, name).item() == getattr(counts, name)[b]


@pytest.mark.parametrize("window", [1, 2, 7, 60])
def test_greedy_equals_greedy_one_by_one(window):
    toy, last = long_toy().greedy(), torch.tensor([7, 8, 9])
    N, M = toy.sizes.shape
    ids, _, counts = decode(toy, [0, 1, 2], window, last=last)
    toy.seen, values, known = None, torch.zeros(3, N, M, dtype=torch.int64), last[:, None]
    for i in range(N):
        at = torch.full((3,), i)
        state = toy.hidden(known[:, -1:], at)
        for m in range(M):
            values[:, i, m] = toy.probabilities(state, at, values[:, i : i + 1].unbind(-1)[:m])[:, 0].argmax(-1)
        known = torch.cat((known, toy.ids(values)[:, i : i + 1]), dim=1)
    assert torch.equal(ids, known[:, 1:])
    assert (counts.passes <= N).all() and (window > 1 or (counts.passes == N).all())


def test_streams_every_place_once_in_never_more_passes_than_places():
    toy = long_toy(scale=8.0)
    ids, pieces, counts = decode(toy, range(50), 6)
    n = torch.tensor([[len(own) for own in step] for step in pieces])  # (passes, B)
    known = n.cumsum(0)
    assert (known[-1] == 40).all() and n.max() == 6 and torch.equal(n == 0, known - n == 40)
    assert torch.equal(counts.passes, (n > 0).sum(0)) and counts.passes.max() < 40
    assert (ids >= toy.start).all() and (ids < toy.start + toy.sizes.prod(1)).all()


def fixed(values, sizes):
    """A toy whose place i takes values[i], whatever stands before."""
    toy = Toy([[size] for size in sizes])
    toy.table = F.one_hot(torch.tensor(values), 5).double()[:, None, None].expand(-1, 1, toy.states, -1)
    return toy


def test_nearest_is_the_last_place_that_takes_the_same_ids():
    p = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0))  # of places 2 to 5, and 1 to 4
    kind = torch.tensor([3, 0, 1, 0, 0, 1, 0, 1, 2])
    look = Look(torch.full((9, 1), 5), kind, torch.zeros(2, 9, 1, dtype=torch.int64), torch.tensor([2, 1]), [p])
    drafted = nearest(look, torch.tensor([0, 0, 0, 1]), torch.tensor([6, 7, 8, 5]), 0)
    assert torch.equal(drafted, torch.stack((p[0, 2], p[0, 3], torch.zeros(5), p[1, 1])))


def test_neighbours_that_are_distributed_alike_save_passes():
    toy = Toy([[5, 2]] * 41)
    toy.table = toy.table[:1, :, :1].expand(41, -1, toy.states, -1)
    _, _, counts = decode(toy, range(20), 8, nearest)
    _, _, other = decode(toy, range(20), 8, uniform)
    assert (counts.passes <= 6).all(), counts.passes  # one after the first drafts, then 8 places each
    assert (other.passes > 6).all(), other.passes


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-53])
def test_a_change_leaves_the_drafts_behind_it_where_their_distribution_stays(extreme):
    q = torch.rand(1, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    p = q.clone()
    p[0, 1] = F.one_hot(torch.tensor(4), 6)
    drafts, u = torch.tensor([[1, 2, 3, 5]]), torch.full((1, 4), extreme, dtype=torch.float64)
    values, stay = settle(drafts, q, p, torch.ones(1, 4, dtype=torch.bool), u, u)
    assert values.tolist() == [[1, 4, 3, 5]] and stay.tolist() == [[True, False, True, True]]


def test_what_rounding_leaves_is_still_possible():
    p = torch.tensor([[0, 0.5, 0.5, 0]], dtype=torch.float64)
    assert torch.equal(residual(p, p), p) and torch.equal(residual(p.flip(1), p * 0.9), p * 0.9)
    for u, value in ((0.0, 1), (0.499, 1), (0.5, 2), (1 - 2**-53, 2)):
        assert pick(p / 3, torch.tensor([u], dtype=torch.float64)).tolist() == [value]


def test_counts_drafts_that_were_judged_and_that_stayed():
    values, wrong = [3, 1, 4, 1, 0, 2, 2, 1, 4, 3], torch.tensor([2, 7])
    toy = fixed(values, [5, 5, 5, 5, 1, 5, 5, 5, 5, 5])  # place 4 is forced

    def draft(look, sample, place, factor):
        return F.one_hot((torch.tensor(values)[place] + torch.isin(place, wrong)) % 5, 5)

    _, pieces, counts = decode(toy, [0, 1], 4, draft)
    # 0 1 stay, 2 does not | 3 (4) 5 stay, 6 comes free | 7 does not stay | 8 9 stay
    assert [len(step[0]) for step in pieces] == [3, 4, 1, 2]
    assert counts.passes.tolist() == [4, 4]
    assert counts.tested.tolist() == [8, 8] and counts.accepted.tolist() == [6, 6]
    assert counts.acceptance.tolist() == [0.75, 0.75]


def test_wrong_requests_are_refused():
    toy, last = long_toy(), torch.tensor([7])

    def ask(message, start=toy.start, sizes=toy.sizes, seeds=(1,), window=4):
        with pytest.raises(ValueError, match=message):
            SpeculativeDecoder(toy, start, sizes, last, window=window, seeds=seeds)

    ask("need start", start=toy.start[:-1])
    ask("need start", sizes=toy.sizes[:, 0])
    ask("one seed per sample", seeds=(1, 2))
    ask("window=0", window=0)
