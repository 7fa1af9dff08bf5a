"""Factorised id ranges in the model: embeddings of ids, chained heads."""

from __future__ import annotations

import itertools

import pytest
import torch

from lm import LM, Vocabulary, lm_config
from lm.heads import FactorLink


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request):
    """Weights large enough to make every factor depend on those before it."""
    vocabulary = Vocabulary.build(["<bos>", "<eos>"], 30, (16, 16), 24, visual_factors=(5, 2, 3))
    torch.manual_seed(0)
    model = LM(lm_config("debug", vocabulary, tie_embeddings=request.param)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8) if p.ndim > 1 else p.add_(0.3 * torch.randn_like(p))
    return model


@torch.no_grad()
def test_probabilities_of_all_ids_add_up_to_one(model):
    r = model.vocabulary["visual"]
    hidden = torch.randn(32)
    nats = [float(model.loss(hidden.expand(1, 2, 32), torch.tensor([[0, id]])).per_range["visual"]) for id in range(
        r.start, r.stop)]  # fmt: skip
    p = torch.tensor(nats, dtype=torch.float64).neg().exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert p.max() > 3 * p.min()


@torch.no_grad()
def test_each_factor_depends_on_all_values_before_it(model):
    hidden = torch.randn(32)
    assert model.factor_hidden("visual", 0, hidden, []) is hidden
    for k in (1, 2):
        pasts = itertools.product(*(range(n) for n in model.vocabulary["visual"].factors[:k]))
        states = [model.factor_hidden("visual", k, hidden, [torch.tensor(v) for v in past]) for past in pasts]
        assert all(s.shape == (32,) for s in states)
        assert min((a - b).abs().max() for a, b in itertools.combinations(states, 2)) > 1e-3


@torch.no_grad()
def test_factors_are_scored_alike_in_any_shape_and_dtype(model):
    hidden = torch.randn(2, 4, 32)
    values = [torch.randint(0, 5, (2, 4)), torch.randint(0, 2, (2, 4))]
    batch = model.factor_hidden("visual", 2, hidden, values)
    one = model.factor_hidden("visual", 2, hidden[1, 3], [v[1, 3] for v in values])
    torch.testing.assert_close(batch[1, 3], one)
    half = model.factor_hidden("visual", 2, hidden.bfloat16(), values)
    assert half.dtype == torch.bfloat16 and (half - batch).abs().mean() < 0.05


def test_which_value_follows_which_can_depend_on_the_context():
    """Exclusive or: in one context the second value repeats the first, in the other it differs.

    A head that adds a term for the first value to the context cannot learn this, and stays at 2 ln 2.
    """
    torch.manual_seed(0)
    vocabulary = Vocabulary.build((), 4, (), 0, visual_factors=(2, 2))
    model = LM(lm_config("debug", vocabulary, z_loss=0.0))
    context = torch.nn.Parameter(torch.randn(2, 32))
    labels = 256 + torch.tensor([[0, 3], [1, 2]])  # pairs of values: 00 or 11, 01 or 10
    parameters = [context, model.embed.weight, *model.links.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(200):
        loss = model.loss(context[:, None].expand(2, 3, 32), torch.cat((labels[:, :1], labels), 1)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item(), abs=0.02)


@torch.no_grad()
def test_ids_are_embedded_as_the_sum_of_their_values(model):
    ids = torch.arange(model.vocabulary.size).view(2, -1)
    x = model.embed_ids(ids)
    for id, row in zip(ids.flatten().tolist(), x.flatten(0, 1), strict=True):
        r = model.vocabulary.range_of(id, id + 1)
        starts = [start for start, _ in model.vocabulary.rows(r.name)]
        values = r.split(torch.tensor(id - r.start))
        wanted = sum(model.embed.weight[start + value] for start, value in zip(starts, values, strict=True))
        torch.testing.assert_close(row, wanted)


def test_only_factorised_models_have_links(model, vocabulary):
    assert {name.split(".")[0] for name in LM(lm_config("debug", vocabulary)).state_dict()} == {
        "embed", "place", "blocks", "norm",
    }  # fmt: skip
    assert model.embed.weight.shape == (256 + 10 + 32 + 24, 32)
    assert [len(links) for links in model.links.values()] == [2]


def test_initial_scales():
    vocabulary = Vocabulary.build((), 64, (), 0, visual_factors=(8, 8))
    (link,) = [m for m in LM(lm_config("debug", vocabulary, dim=64)).modules() if isinstance(m, FactorLink)]
    assert link.modulation.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (link.norm.weight == 1).all()


def test_saved_and_loaded_gives_the_same_loss(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = LM.from_pretrained(tmp_path)
    assert again.vocabulary == model.vocabulary and again.vocabulary["visual"].factors == (5, 2, 3)
    ids = torch.randint(256, model.vocabulary.size, (2, 9))
    positions = torch.rand(2, 9, 3)
    losses = [m(ids, positions, positions, torch.ones(2, dtype=torch.int64), labels=ids).total for m in (model, again)]
    assert losses[0] == losses[1]
