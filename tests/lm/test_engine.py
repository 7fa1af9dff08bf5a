from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch

from lm import LM, Engine, Plan, Prefix, Sampling, Vocabulary, lm_config
from lm.decode import Decoder
from lm.engine import _first_layers, _Passes
from lm.session import Session


@pytest.fixture
def plan(vocabulary):
    visual, audio = vocabulary["visual"], vocabulary["audio_1"]
    start = [0] + [visual.start] * 8 + [1, 0] + [audio.start] * 4
    stop = [1] + [visual.stop] * 8 + [2, 1] + [audio.stop] * 4
    positions = torch.rand(15, 3, generator=torch.Generator().manual_seed(2)) * 9
    return Plan(torch.tensor(start), torch.tensor(stop), positions)


def as_wide_as(plan, vocabulary):
    """The plan with the visual range of another vocabulary, and audio places only where ids are the same."""
    visual, audio = vocabulary["visual"], vocabulary["audio_1"]
    free = plan.stop - plan.start > 1
    of_video = free & (torch.arange(len(plan)) < 9)
    start = torch.where(of_video, visual.start, torch.where(free, audio.start, plan.start))
    stop = torch.where(of_video, visual.stop, torch.where(free, audio.stop, plan.stop))
    return Plan(start, stop, plan.positions)


@pytest.fixture
def prefix(example):
    return Prefix([example.ids[0, :7], example.ids[1, :4]], [example.positions[0, :7], example.positions[1, :4]])


@pytest.fixture
def bare(example):
    return Prefix([example.ids[0, :2], example.ids[1, :3]], [example.positions[0, :2], example.positions[1, :3]])


@torch.no_grad()
def slow_generate(model, ids, positions, plan, other=None, scale=1.0):
    """Greedy, one full pass per block of ids, one sample."""
    n = model.config.block_size
    rows = [(ids, positions, len(ids))] + ([(*other, len(other[0]))] if other else [])
    drawn = []
    for at in range(0, len(plan), n):
        hidden = [uncached_hidden(model, *row, plan, at) for row in rows]
        new = torch.stack([greedy_id(model, [h[i - n :][:1] for h in hidden], plan, at + i, scale) for i in range(n)])
        drawn.append(new)
        rows = [(torch.cat((r[0], new)), torch.cat((r[1], plan.positions[at : at + n])), r[2]) for r in rows]
    return torch.cat(drawn)


def uncached_hidden(model, ids, positions, prefix_len, plan, at):
    n = model.config.block_size
    everywhere = torch.cat((positions, plan.positions[at:]))
    following = everywhere[n : n + len(ids)]
    return model(ids[None], positions[None], following[None], torch.tensor([prefix_len]))[0]


def greedy_id(model, hidden, plan, place, scale):
    """The likeliest legal id, factor by factor; the unguided hidden state is the last."""
    start, stop = int(plan.start[place]), int(plan.stop[place])
    if stop - start == 1:
        return torch.tensor(start)
    r = model.vocabulary.range_of(start, stop)
    values = []
    for k, (a, b) in enumerate(model.vocabulary.rows(r.name)):
        scores = [model.head_weight[a:b] @ model.factor_hidden(r.name, k, h[0], values) for h in hidden]
        best = scores[0] if len(scores) == 1 else scores[1] + scale * (scores[0] - scores[1])
        values.append(best.argmax())
    return start + r.join(values)


GREEDY = {"visual": Sampling(0), "audio": Sampling(0)}


def other_model(vocabulary, **fields):
    torch.manual_seed(4)
    model = LM(lm_config("debug", vocabulary, **fields)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4) if p.ndim > 1 else p.add_(0.3 * torch.randn_like(p))
    return model


FACTORISED = Vocabulary.build(["<bos>", "<eos>"], 36, (16, 16), 24, visual_factors=(4, 9))


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["tied", "untied", "factorised"])
def test_equals_one_full_pass_per_id(model, vocabulary, prefix, bare, plan, scale, kind):
    if kind == "untied":
        model = other_model(vocabulary, tie_embeddings=False)
    if kind == "factorised":
        model, plan = other_model(FACTORISED), as_wide_as(plan, FACTORISED)
    got = Engine(model).generate(prefix, plan, unconditional=bare, guidance_scale=scale, sampling=GREEDY, seeds=[0, 1])
    for b in range(2):
        other = None if scale == 1 else (bare.ids[b], bare.positions[b])
        assert torch.equal(got[b], slow_generate(model, prefix.ids[b], prefix.positions[b], plan, other, scale))


def test_only_legal_ids_are_drawn(model, prefix, plan):
    many = Prefix(prefix.ids * 20, prefix.positions * 20)
    ids = Engine(model).generate(many, plan, sampling={"visual": Sampling(5.0)}, seeds=range(40))
    assert ids.shape == (40, 15) and (ids >= plan.start).all() and (ids < plan.stop).all()
    assert all(len(ids[:, i].unique()) > 3 for i in range(1, 9))


def test_a_seed_gives_its_ids_alone_and_in_a_batch(model, prefix, bare, plan):
    kwargs = {"guidance_scale": 1.5, "sampling": {"visual": Sampling(1.2, top_k=20), "audio_1": Sampling(top_p=0.9)}}
    both = Engine(model).generate(prefix, plan, unconditional=bare, seeds=[11, 12], **kwargs)
    for b in range(2):
        alone, other = (Prefix([p.ids[b]], [p.positions[b]]) for p in (prefix, bare))
        again = Engine(model).generate(alone, plan, unconditional=other, seeds=[11 + b], **kwargs)
        assert torch.equal(again[0], both[b])
    again = Engine(model).generate(prefix, plan, unconditional=bare, seeds=[11, 12], **kwargs)
    different = Engine(model).generate(prefix, plan, unconditional=bare, seeds=[13, 14], **kwargs)
    assert torch.equal(again, both) and (different != both).any(dim=1).all()


def test_guidance_scale_one_is_plain(model, prefix, bare, plan):
    engine = Engine(model)
    plain = engine.generate(prefix, plan, seeds=[1, 2])
    assert torch.equal(engine.generate(prefix, plan, unconditional=bare, guidance_scale=1.0, seeds=[1, 2]), plain)
    near = engine.generate(prefix, plan, unconditional=bare, guidance_scale=1.0 + 1e-7, seeds=[1, 2])
    assert torch.equal(near, plain)
    far = engine.generate(prefix, plan, unconditional=bare, guidance_scale=8.0, seeds=[1, 2])
    assert not torch.equal(far, plain)


def test_unguided_ranges_are_drawn_as_if_there_were_no_guidance(model, prefix, bare, plan):
    names = [r.name for r in model.vocabulary if r.name != "special"]
    unguided = {name: Sampling(guided=False) for name in names}
    guidance = {"unconditional": bare, "guidance_scale": 8.0, "seeds": [1, 2]}
    assert torch.equal(Engine(model).generate(prefix, plan, sampling=unguided, **guidance),
                       Engine(model).generate(prefix, plan, seeds=[1, 2]))  # fmt: skip


def test_streams_and_leaves_no_inference_mode_behind(model, prefix, plan):
    whole = Engine(model.train()).generate(prefix, plan, seeds=[1, 2])
    assert not whole.is_inference() and model.training
    for i, ids in enumerate(Engine(model).stream(prefix, plan, seeds=[1, 2])):
        assert torch.equal(ids, whole[:, i : i + 1])
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_bfloat16_weights_generate_legal_ids(model, prefix, bare, plan):
    kwargs = {"unconditional": bare, "guidance_scale": 2.0, "seeds": [1, 2]}
    cast = Engine(model, dtype=torch.bfloat16).generate(prefix, plan, **kwargs)
    stored = Engine(model.to(torch.bfloat16)).generate(prefix, plan, **kwargs)
    for ids in (cast, stored):
        assert (ids >= plan.start).all() and (ids < plan.stop).all()


def test_learns_a_batch_by_heart_and_generates_it(vocabulary, plan):
    torch.manual_seed(0)
    model = LM(lm_config("debug", vocabulary))
    n, text = 4, vocabulary["text"].start
    prefixes = torch.tensor([[0, text + b, text + b % 2] for b in range(n)])
    places = torch.tensor([[i, 0, 0] for i in range(3)]).float()
    targets = plan.start + (torch.rand(n, len(plan)) * (plan.stop - plan.start)).long()
    ids = torch.cat((prefixes, targets), 1)
    positions = torch.cat((places, plan.positions)).expand(n, -1, -1)
    following = torch.cat((positions[:, 1:], positions[:, -1:]), 1)
    labels = torch.cat((torch.full_like(prefixes, -100), targets), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(100):
        loss = model(ids, positions, following, torch.full((n,), 3), labels=labels)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.total < 0.1, loss
    got = Engine(model).generate(Prefix(list(prefixes), [places] * n), plan, sampling=GREEDY, seeds=range(n))
    assert torch.equal(got, targets)


def test_wrong_requests_are_refused_at_once(model, prefix, bare, plan, vocabulary):
    def ask(message, prefix=prefix, plan=plan, seeds=(1, 2), **kwargs):
        with pytest.raises(ValueError, match=message):
            Engine(model).stream(prefix, plan, seeds=seeds, **kwargs)

    ask("one seed per sample", seeds=(1,))
    ask("needs an unconditional prefix", guidance_scale=2.0)
    ask("1 unconditional prefixes for 2", guidance_scale=2.0, unconditional=Prefix(bare.ids[:1], bare.positions[:1]))
    ask("unknown id ranges", sampling={"smell": Sampling()})
    ask("do not lie in one id range", plan=Plan(plan.start, plan.stop + 99, plan.positions))
    ask("prefix ids must lie in", prefix=Prefix([i + 10**6 for i in prefix.ids], prefix.positions))
    with pytest.raises(ValueError, match="positions"):
        Prefix(prefix.ids, prefix.positions[::-1])
    with pytest.raises(ValueError, match="as many ids as positions"):
        Prefix(prefix.ids, prefix.positions[:1])
    with pytest.raises(ValueError, match="N >= 1"):
        Plan(plan.start[:0], plan.stop[:0], plan.positions[:0])

    ask("need 0, or 1 and more", window=-1)
    with pytest.raises(ValueError, match="make an engine without compile"):
        Engine(model, compile=True).stream(prefix, plan, seeds=(1, 2), window=4)
    block = other_model(vocabulary, block_size=4)
    for message, asked, options in (
        ("not one of whole blocks of 4", plan, {}),
        ("one id at a time", blocks_of(plan, 4), {"window": 4}),
        ("cannot predict a block of 4", Plan(plan.start[1:5], plan.stop[1:5], plan.positions[1:5]), {}),
    ):
        with pytest.raises(ValueError, match=message):
            Engine(block).stream(Prefix([i[:3] for i in prefix.ids], [p[:3] for p in prefix.positions]), asked,
                                 seeds=(1, 2), **options)  # fmt: skip
    with pytest.raises(ValueError, match="takes all ids of the factorised range 'visual'"):
        wide = as_wide_as(plan, FACTORISED)
        narrow = Plan(wide.start[1:9], wide.stop[1:9] - 1, wide.positions[1:9])
        Engine(other_model(FACTORISED)).stream(prefix, narrow, seeds=(1, 2))


def blocks_of(plan, n):
    """The plan in blocks of n: forced places repeated, runs of free ones filled up with <eos>."""
    start, stop, positions = [], [], []
    for a, b, p in zip(plan.start.tolist(), plan.stop.tolist(), plan.positions, strict=True):
        if b - a == 1:
            missing = -len(start) % n
            start += [1] * missing + [a] * n
            stop += [2] * missing + [b] * n
            positions += [p] * (missing + n)
        else:
            start, stop, positions = [*start, a], [*stop, b], [*positions, p]
    missing = -len(start) % n
    return Plan(torch.tensor(start + [1] * missing), torch.tensor(stop + [2] * missing),
                torch.stack(positions + [positions[-1]] * missing))  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("n", [2, 4])
def test_blocks_equal_one_full_pass_per_block(vocabulary, prefix, bare, plan, n, scale):
    model, plan = other_model(vocabulary, block_size=n), blocks_of(plan, n)
    engine = Engine(model)
    got = engine.generate(prefix, plan, unconditional=bare, guidance_scale=scale, sampling=GREEDY, seeds=[0, 1])
    for b in range(2):
        other = None if scale == 1 else (bare.ids[b], bare.positions[b])
        assert torch.equal(got[b], slow_generate(model, prefix.ids[b], prefix.positions[b], plan, other, scale))
    free = (plan.stop - plan.start > 1).view(-1, n).any(1)
    assert engine.passes == free.sum() < len(plan) / n  # forced blocks ride along


@torch.inference_mode()
def test_logits_with_a_cache_equal_those_without(model, vocabulary, prefix, plan):
    engine = Engine(model)
    for ids in (prefix, Prefix(prefix.ids[:1] * 2, prefix.positions[:1] * 2)):
        drawn = engine.generate(ids, plan, seeds=[3, 4])
        session = Session(engine.decoder, ids, plan, engine.decoder.cache(2, 64), None)
        hidden = [session.hidden] + [session.feed(drawn[:, i : i + 1], i) for i in range(len(plan) - 1)]
        for b in range(2):
            whole = torch.cat((ids.ids[b], drawn[b]))[None]
            positions = torch.cat((ids.positions[b], plan.positions))[None]
            following = torch.cat((positions[:, 1:], positions[:, -1:]), 1)
            expected = model(whole, positions, following, torch.tensor([len(ids.ids[b])]))[0]
            expected = expected[len(ids.ids[b]) - 1 : -1] @ model.head_weight.T
            got = torch.cat([h[b] for h in hidden]) @ model.head_weight.T
            worst = (got - expected).abs().max()
            assert worst < 1e-4, worst


@torch.inference_mode()
@pytest.mark.parametrize("n", [1, 2])
def test_blocks_fed_together_equal_blocks_fed_one_by_one(vocabulary, prefix, plan, n):
    model, plan = other_model(vocabulary, block_size=n), blocks_of(plan, n)
    engine = Engine(model)
    ids = engine.generate(prefix, plan, seeds=[3, 4])
    one, many = (Session(engine.decoder, prefix, plan, engine.decoder.cache(2, 64), None) for _ in range(2))
    last = [one.feed(ids[:, i : i + n], i) for i in range(0, 8 * n, n)]
    for at, stop in ((0, 3), (3, 4), (4, 8)):  # in blocks
        got = many.feed(ids[:, at * n : stop * n], at * n)
        worst = (got - last[stop - 1]).abs().max()
        assert worst < 1e-5, (at, stop, worst)


def test_equal_prefixes_are_read_once(model, prefix, plan, monkeypatch):
    engine, fed = Engine(model), []
    feed = engine.decoder.feed
    monkeypatch.setattr(engine.decoder, "feed", lambda ids, *a: fed.append(tuple(ids.shape)) or feed(ids, *a))
    order = [0, 1, 0, 0, 1]
    many = Prefix([prefix.ids[i].clone() for i in order], [prefix.positions[i].clone() for i in order])
    got = engine.generate(many, plan, seeds=[1, 2, 3, 4, 5])
    assert fed[0] == (2, 7) and {shape[0] for shape in fed[1:]} == {5}
    for b, i in enumerate(order):
        alone = engine.generate(Prefix([prefix.ids[i]], [prefix.positions[i]]), plan, seeds=[b + 1])
        assert torch.equal(alone[0], got[b])


@pytest.mark.parametrize("kind", ["classic", "factorised"])
def test_drafts_change_the_number_of_passes_only(model, prefix, bare, plan, kind):
    if kind == "factorised":
        model, plan = other_model(FACTORISED), as_wide_as(plan, FACTORISED)
    engine = Engine(model)
    guidance = {"unconditional": bare, "guidance_scale": 2.0}
    expected = engine.generate(prefix, plan, sampling=GREEDY, seeds=[0, 1], **guidance)
    plain = engine.passes
    for window in (1, 4, 20):
        stream = engine.stream(prefix, plan, sampling=GREEDY, seeds=[0, 1], window=window, **guidance)
        parts = list(stream)
        assert torch.equal(torch.cat(parts, dim=1), expected), window
        assert all(part.shape[1] > 0 for part in parts) and engine.passes <= len(plan)
    assert engine.passes < plain and (engine.counts.passes <= engine.passes).all()
    how = {"sampling": {"visual": Sampling(1.3, top_k=9), "audio": Sampling(top_p=0.8)}, "window": 5}
    both = engine.generate(prefix, plan, seeds=[7, 8], **how, **guidance)
    assert (both >= plan.start).all() and (both < plan.stop).all()
    for b in range(2):
        alone, other = (Prefix([p.ids[b]], [p.positions[b]]) for p in (prefix, bare))
        again = engine.generate(alone, plan, unconditional=other, guidance_scale=2.0, seeds=[7 + b], **how)
        assert torch.equal(again[0], both[b])


@pytest.mark.parametrize("whole", [True, False], ids=["guided", "guidance left out"])
def test_drafts_do_not_change_the_distribution(model, prefix, bare, plan, whole, monkeypatch):
    """Chi-square of 64 answers, 3,000 drawn one by one and 3,000 with drafts; a rule that is broken is found out."""
    n, first = 3000, int(plan.start[1])
    legal = torch.tensor([[first, 4], [0, 1], [first + 9, 4], [first, 4]])
    few = Plan(legal[:, 0], legal.sum(1), plan.positions[:4])
    given, other = (Prefix(p.ids[:1] * n, p.positions[:1] * n) for p in (prefix, bare))
    how = {"unconditional": other, "guidance_scale": 4.0, "sampling": {"visual": Sampling(1.5, top_p=0.95)}}
    engine = Engine(model)
    plain = engine.generate(given, few, seeds=range(n), **how)
    if not whole:
        monkeypatch.setattr("lm.engine._Passes", lambda *given: _Passes(*given[:-1], 1.0))
    drafted = engine.generate(given, few, seeds=range(n, 2 * n), window=3, **how)
    assert engine.counts.accepted.sum() > n / 2
    a, b = ((x[:, [0, 2, 3]] % 4 * torch.tensor([16, 4, 1])).sum(1).bincount(minlength=64) for x in (plain, drafted))
    cells = a + b >= 20
    chi2 = ((a - b)[cells] ** 2 / (a + b)[cells]).sum()
    p = torch.special.gammaincc((cells.sum() - 1) / 2, chi2 / 2)
    assert cells.sum() > 20 and (p > 1e-3 if whole else p < 1e-6), (cells.sum(), p)


def test_streams_of_one_engine_do_not_disturb_each_other(model, prefix, plan):
    engine = Engine(model)
    expected = [engine.generate(prefix, plan, seeds=seeds) for seeds in ((1, 2), (3, 4))]
    streams = [engine.stream(prefix, plan, seeds=seeds) for seeds in ((1, 2), (3, 4))]
    parts = list(zip(*streams, strict=True))
    for i in range(2):
        assert torch.equal(torch.cat([p[i] for p in parts], dim=1), expected[i])
    abandoned = engine.stream(prefix, plan, seeds=(5, 6))
    next(abandoned)
    abandoned.close()
    assert torch.equal(engine.generate(prefix, plan, seeds=(1, 2)), expected[0])


@torch.inference_mode()
def test_int8_weights_score_nearly_alike(model, prefix, bare, plan):
    exact, rounded = Engine(model), Engine(model, int8=True)
    for ids in (prefix, Prefix(prefix.ids * 4, prefix.positions * 4)):  # few rows and many go different ways
        hidden = [
            Session(e.decoder, ids, plan, e.decoder.cache(len(ids), 64), None).feed(torch.zeros(len(ids), 1).long(), 0)
            for e in (exact, rounded)
        ]
        similar = torch.cosine_similarity(*hidden, dim=-1)
        assert (similar > 0.98).all() and (similar < 1).any(), similar
    got = rounded.generate(prefix, plan, unconditional=bare, guidance_scale=2.0, seeds=[1, 2])
    assert (got >= plan.start).all() and (got < plan.stop).all()


@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_compiled_step_gives_the_same(model, prefix, bare, plan, int8):
    expected, compiled = Engine(model, int8=int8), Engine(model, compile=True, int8=int8)
    torch.compiler.reset()
    one, other = (Prefix(p.ids[1:], p.positions[1:]) for p in (prefix, bare))
    options = {"unconditional": other, "guidance_scale": 2.0, "sampling": GREEDY, "seeds": [1]}
    assert torch.equal(compiled.generate(one, plan, **options), expected.generate(one, plan, **options))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize("copies", [1, 2, 4])
@torch.inference_mode()
def test_what_is_compiled_as_loops_is_the_same_step(vocabulary, example, plan, monkeypatch, int8, block_size, copies):
    torch.manual_seed(5)
    model = LM(lm_config("debug", vocabulary, block_size=block_size)).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    ids = [example.ids[0, :7], *[example.ids[1, : 4 + i] for i in range(copies - 1)]]  # some are padded
    rows = Prefix(ids, [example.positions[0, : len(i)] for i in ids])
    even = Plan(plan.start[:14], plan.stop[:14], plan.positions[:14])
    hidden = []
    for compiling in (False, True):
        decoder = Decoder(model, torch.float32, int8=int8, compiled=compiling)
        cache = decoder.cache(copies, Session.capacity(rows, even))
        session = Session(decoder, rows, even, cache, decoder.forward)  # called as the compiled one is
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        hidden.append([session.feed(torch.full((copies, block_size), 3 + at), at) for at in (0, block_size)])
        monkeypatch.undo()
    torch.testing.assert_close(*hidden, atol=2e-5, rtol=1e-4)


def test_a_compiled_step_is_looked_up_by_its_first_layer():
    names = ["x", "layers", "layers[0]", "layers[7]", "self.layers[0][2].weight", "self.layers[12][1]", "self.D",
             "L['self'].layers[1]", "players[1]"]  # fmt: skip
    kept = _first_layers([SimpleNamespace(name=name) for name in names])
    assert [name for name, keep in zip(names, kept, strict=True) if not keep] == [
        "layers[7]", "self.layers[12][1]", "L['self'].layers[1]",
    ]  # fmt: skip


def test_compiled_steps_of_several_engines_are_kept_apart(model, prefix, plan, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # guards as ever, no loops
    torch.manual_seed(3)
    deeper = LM(lm_config("debug", model.vocabulary, n_layers=4)).eval()
    one = Prefix(prefix.ids[:1], prefix.positions[:1])
    for m, int8 in ((model, False), (deeper, False), (model, True)):
        engines = Engine(m, compile=True, int8=int8), Engine(m, int8=int8)
        ids = [engine.generate(one, plan, sampling=GREEDY, seeds=[1]) for engine in engines]
        assert torch.equal(*ids)
