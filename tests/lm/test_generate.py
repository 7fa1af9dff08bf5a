from __future__ import annotations

import pytest
import torch

from lm import LM, Plan, Prefix, Sampling, generate, generate_stream, lm_config


@pytest.fixture
def plan(vocabulary):
    visual, audio = vocabulary["visual"], vocabulary["audio_1"]
    start = [0] + [visual.start] * 8 + [1, 0] + [audio.start] * 4
    stop = [1] + [visual.stop] * 8 + [2, 1] + [audio.stop] * 4
    positions = torch.rand(15, 3, generator=torch.Generator().manual_seed(2)) * 9
    return Plan(torch.tensor(start), torch.tensor(stop), positions)


@pytest.fixture
def prefix(example):
    return Prefix([example.ids[0, :7], example.ids[1, :4]], [example.positions[0, :7], example.positions[1, :4]])


@pytest.fixture
def bare(example):
    return Prefix([example.ids[0, :2], example.ids[1, :3]], [example.positions[0, :2], example.positions[1, :3]])


def uncached_hidden(model, ids, positions, prefix_len, first):
    following = torch.cat((positions[1:], first[None]))
    return model(ids[None], positions[None], following[None], torch.tensor([prefix_len]))[0, -1]


@torch.no_grad()
def slow_generate(model, ids, positions, plan, other=None, scale=1.0):
    """Greedy, one full pass per id, one sample."""
    rows = [(ids, positions, len(ids))] + ([(*other, len(other[0]))] if other else [])
    drawn = []
    for i in range(len(plan)):
        hidden = [uncached_hidden(model, *row, plan.positions[i]) for row in rows]
        logits = [model.head_weight[plan.start[i] : plan.stop[i]] @ h for h in hidden]
        best = logits[0] if not other else logits[1] + scale * (logits[0] - logits[1])
        id = plan.start[i] + best.argmax()
        drawn.append(id)
        rows = [(torch.cat((r[0], id[None])), torch.cat((r[1], plan.positions[i : i + 1])), r[2]) for r in rows]
    return torch.stack(drawn)


GREEDY = {"visual": Sampling(0), "audio": Sampling(0)}


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("tie", [True, False])
def test_equals_one_full_pass_per_id(model, vocabulary, prefix, bare, plan, scale, tie):
    if not tie:
        torch.manual_seed(4)
        model = LM(lm_config("debug", vocabulary, tie_embeddings=False))
    got = generate(model, prefix, plan, unconditional=bare, guidance_scale=scale, sampling=GREEDY, seeds=[0, 1])
    for b in range(2):
        other = None if scale == 1 else (bare.ids[b], bare.positions[b])
        assert torch.equal(got[b], slow_generate(model, prefix.ids[b], prefix.positions[b], plan, other, scale))


def test_only_legal_ids_are_drawn(model, prefix, plan):
    many = Prefix(prefix.ids * 20, prefix.positions * 20)
    ids = generate(model, many, plan, sampling={"visual": Sampling(5.0)}, seeds=range(40))
    assert ids.shape == (40, 15) and (ids >= plan.start).all() and (ids < plan.stop).all()
    assert all(len(ids[:, i].unique()) > 3 for i in range(1, 9))


def test_a_seed_gives_its_ids_alone_and_in_a_batch(model, prefix, bare, plan):
    kwargs = {"guidance_scale": 1.5, "sampling": {"visual": Sampling(1.2, top_k=20), "audio_1": Sampling(top_p=0.9)}}
    both = generate(model, prefix, plan, unconditional=bare, seeds=[11, 12], **kwargs)
    for b in range(2):
        alone, other = (Prefix([p.ids[b]], [p.positions[b]]) for p in (prefix, bare))
        assert torch.equal(generate(model, alone, plan, unconditional=other, seeds=[11 + b], **kwargs)[0], both[b])
    again = generate(model, prefix, plan, unconditional=bare, seeds=[11, 12], **kwargs)
    different = generate(model, prefix, plan, unconditional=bare, seeds=[13, 14], **kwargs)
    assert torch.equal(again, both) and (different != both).any(dim=1).all()


def test_guidance_scale_one_is_plain(model, prefix, bare, plan):
    plain = generate(model, prefix, plan, seeds=[1, 2])
    assert torch.equal(generate(model, prefix, plan, unconditional=bare, guidance_scale=1.0, seeds=[1, 2]), plain)
    near = generate(model, prefix, plan, unconditional=bare, guidance_scale=1.0 + 1e-7, seeds=[1, 2])
    assert torch.equal(near, plain)
    assert not torch.equal(generate(model, prefix, plan, unconditional=bare, guidance_scale=8.0, seeds=[1, 2]), plain)


def test_unguided_ranges_are_drawn_as_if_there_were_no_guidance(model, prefix, bare, plan):
    names = [r.name for r in model.vocabulary if r.name != "special"]
    unguided = {name: Sampling(guided=False) for name in names}
    guidance = {"unconditional": bare, "guidance_scale": 8.0, "seeds": [1, 2]}
    assert torch.equal(generate(model, prefix, plan, sampling=unguided, **guidance),
                       generate(model, prefix, plan, seeds=[1, 2]))  # fmt: skip


def test_streams_and_leaves_no_inference_mode_behind(model, prefix, plan):
    whole = generate(model.train(), prefix, plan, seeds=[1, 2])
    assert not whole.is_inference() and model.training
    for i, ids in enumerate(generate_stream(model, prefix, plan, seeds=[1, 2])):
        assert torch.equal(ids, whole[:, i]) and ids.shape == (2,)
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_bfloat16_weights_generate_legal_ids(model, prefix, bare, plan):
    kwargs = {"unconditional": bare, "guidance_scale": 2.0, "seeds": [1, 2]}
    cast = generate(model, prefix, plan, dtype=torch.bfloat16, **kwargs)
    stored = generate(model.to(torch.bfloat16), prefix, plan, **kwargs)
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
    got = generate(model, Prefix(list(prefixes), [places] * n), plan, sampling=GREEDY, seeds=range(n))
    assert torch.equal(got, targets)


def test_wrong_requests_are_refused_at_once(model, prefix, bare, plan, vocabulary):
    def ask(message, prefix=prefix, plan=plan, seeds=(1, 2), **kwargs):
        with pytest.raises(ValueError, match=message):
            generate_stream(model, prefix, plan, seeds=seeds, **kwargs)

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
