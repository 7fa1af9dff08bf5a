from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import lm.loss
from lm import IGNORE_INDEX, LM, Vocabulary, lm_config

FACTORISED = Vocabulary.build(["<bos>", "<eos>"], 30, (16, 16), 24, visual_factors=(5, 2, 3))


def small_model(vocabulary, **fields):
    """Weights far from those at the start, so that no factor is near uniform."""
    torch.manual_seed(0)
    model = LM(lm_config("debug", vocabulary, **fields))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8) if p.ndim > 1 else p.add_(0.3 * torch.randn_like(p))
    return model


def slow_loss(model, hidden, labels, z, shift=1):
    total, sums, vocabulary = 0.0, {}, model.vocabulary
    for b in range(labels.shape[0]):
        for i in range(labels.shape[1] - shift):
            for r in vocabulary:
                if r.name == "special" or not r.start <= labels[b, i + shift] < r.stop:
                    continue
                values = r.split(labels[b, i + shift] - r.start)
                for k, (start, stop) in enumerate(vocabulary.rows(r.name)):
                    logits = model.head_weight[start:stop] @ model.factor_hidden(r.name, k, hidden[b, i], values[:k])
                    nats = logits.logsumexp(0) - logits[values[k]]
                    total = total + nats + z * logits.logsumexp(0) ** 2
                    sums.setdefault(r.name, []).append(nats)
    counts = {name: len(s) // len(vocabulary[name].factors) for name, s in sums.items()}
    n = sum(counts.values())
    return total / n, {name: sum(s) / counts[name] for name, s in sums.items()}, n


@pytest.fixture(params=["plain", "factorised", "untied"])
def any_model(request, vocabulary):
    if request.param == "untied":
        return small_model(vocabulary, tie_embeddings=False)
    return small_model(FACTORISED if request.param == "factorised" else vocabulary)


@pytest.fixture
def targets(any_model):
    """Hidden states and labels: padding, special ids, first and last id of a range."""
    vocabulary = any_model.vocabulary
    torch.manual_seed(1)
    hidden = torch.randn(2, 15, 32, requires_grad=True)
    labels = torch.randint(vocabulary["visual"].start, vocabulary.size, (2, 15))
    labels[0, :6], labels[1, 9] = IGNORE_INDEX, vocabulary.special("<eos>")
    labels[:, 14] = vocabulary["visual"].start
    labels[:, 13] = vocabulary["visual"].stop - 1
    return hidden, labels


@pytest.mark.parametrize("z", [0.0, 0.1])
@pytest.mark.parametrize(
    ("elements", "least", "most"),
    [(10**6, 256, 2048), (1, 256, 2048), (100, 1, 2048), (40, 256, 4)],
    ids=["one tile", "one row at a time", "few positions at a time", "both"],
)
def test_loss_equals_its_definition(any_model, targets, monkeypatch, z, elements, least, most):
    monkeypatch.setattr(lm.loss, "TILE_ELEMENTS", elements)
    monkeypatch.setattr(lm.loss, "MIN_POSITIONS", least)
    monkeypatch.setattr(lm.loss, "MAX_POSITIONS", most)
    any_model.config.z_loss = z
    hidden, labels = targets
    weights = [p for name, p in any_model.named_parameters() if name.startswith(("embed", "head", "links"))]
    total, per_range, n = slow_loss(any_model, hidden, labels, z)
    wanted = torch.autograd.grad(total, (hidden, *weights), materialize_grads=True)
    loss = any_model.loss(hidden, labels)
    assert loss.n_targets == n and loss.per_range.keys() == per_range.keys() == loss.n_per_range.keys()
    torch.testing.assert_close(loss.total, total)
    for name, mean in per_range.items():
        torch.testing.assert_close(loss.per_range[name], mean.detach())
    got = torch.autograd.grad(3 * loss.total, (hidden, *weights), materialize_grads=True)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, 3 * b, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(any_model.loss(hidden, labels).total, total.detach())


@pytest.mark.parametrize("shift", [2, 7, 15, 20])
def test_a_block_is_predicted_from_the_block_before_it(any_model, targets, shift):
    hidden, labels = targets
    any_model.config.block_size = shift
    loss = any_model.loss(hidden, labels)
    if shift >= 15:
        assert loss.total == 0 and loss.n_targets == 0
    else:
        total, _, n = slow_loss(any_model, hidden, labels, any_model.config.z_loss, shift)
        torch.testing.assert_close(loss.total, total)
        assert loss.n_targets == n


def test_bf16_weights_get_bf16_gradients_close_to_float32(any_model, targets, monkeypatch):
    monkeypatch.setattr(lm.loss, "TILE_ELEMENTS", 40)  # rows of the gradient come from several chunks
    monkeypatch.setattr(lm.loss, "MAX_POSITIONS", 4)
    hidden, labels = targets
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        any_model.to(dtype).zero_grad()
        any_model.loss(hidden.to(dtype), labels).total.backward()
        gradients.append(any_model.head_weight.grad)
    assert gradients[1].dtype == torch.bfloat16
    assert torch.cosine_similarity(*(g.float().flatten() for g in gradients), dim=0) > 0.999


def test_frozen_weights_get_no_gradient_but_hidden_states_do(any_model, targets):
    hidden, labels = targets
    (wanted,) = torch.autograd.grad(any_model.loss(hidden, labels).total, hidden)
    any_model.requires_grad_(False)
    (got,) = torch.autograd.grad(any_model.loss(hidden, labels).total, hidden)
    assert torch.equal(got, wanted)


def test_a_second_backward_pass_is_refused(any_model, targets):  # the first has scaled the gradients in place
    total = any_model.loss(*targets).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        total.backward()


def test_without_targets_the_loss_is_zero_and_every_parameter_has_a_gradient(any_model):
    hidden = torch.randn(1, 4, 32, requires_grad=True)
    loss = any_model.loss(hidden, torch.full((1, 4), IGNORE_INDEX))
    loss.total.backward()
    assert loss.total == 0 and loss.n_targets == 0 and not loss.per_range and (hidden.grad == 0).all()
    for p in (any_model.head_weight, *any_model.links.parameters()):
        assert p.grad is not None and (p.grad == 0).all()


def test_special_ids_carry_no_loss(any_model):
    hidden = torch.randn(1, 6, 32)
    labels = torch.tensor([[300, 0, 1, 260, 0, 300]])
    free = labels.clone()
    free[labels < 256] = IGNORE_INDEX
    a, b = any_model.loss(hidden, labels), any_model.loss(hidden, free)
    assert a.total == b.total and a.n_targets == b.n_targets == 2


def peak_bytes(step):
    """The most that tensors took at one time during `step`, those inside of operators too."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_needs_little_more_memory_than_the_gradient(monkeypatch, autocast):
    monkeypatch.setattr(lm.loss, "TILE_ELEMENTS", 2**16)
    vocabulary = Vocabulary.build((), 2**14, (), 0)
    model = LM(lm_config("debug", vocabulary, dim=64))
    hidden, labels = torch.randn(1, 256, 64), torch.randint(256, vocabulary.size, (1, 256))

    def step(loss):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total = loss(hidden.clone().requires_grad_())
        total.backward()

    gradient = model.embed.weight.nbytes
    ours = peak_bytes(lambda: step(lambda h: model.loss(h, labels).total))
    plain = peak_bytes(lambda: step(lambda h: F.cross_entropy(h[0] @ model.head_weight.T, labels[0])))
    assert gradient < ours < 1.4 * gradient, f"{ours / gradient:.2f} times the gradient"
    assert plain > 5 * gradient  # what is measured does see logits
