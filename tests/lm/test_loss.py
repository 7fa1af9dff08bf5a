from __future__ import annotations

import pytest
import torch

import lm.loss
from lm import IGNORE_INDEX


def slow_loss(hidden, weight, labels, vocabulary, z):
    total, sums = 0.0, {}
    for b in range(labels.shape[0]):
        for i in range(labels.shape[1] - 1):
            for r in vocabulary:
                if r.name != "special" and r.start <= labels[b, i + 1] < r.stop:
                    logits = weight[r.start : r.stop] @ hidden[b, i]
                    nats = logits.logsumexp(0) - logits[labels[b, i + 1] - r.start]
                    total = total + nats + z * logits.logsumexp(0) ** 2
                    sums.setdefault(r.name, []).append(nats)
    n = sum(map(len, sums.values()))
    return total / n, {name: sum(s) / len(s) for name, s in sums.items()}, n


@pytest.mark.parametrize("z", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 100, 10**6])
def test_loss_equals_its_definition(model, vocabulary, monkeypatch, z, chunk):
    monkeypatch.setattr(lm.loss, "CHUNK_ELEMENTS", chunk)
    model.config.z_loss = z
    torch.manual_seed(0)
    hidden = torch.randn(2, 15, 32, requires_grad=True)
    labels = torch.randint(vocabulary["visual"].start, vocabulary.size, (2, 15))
    labels[0, :6], labels[1, 9] = IGNORE_INDEX, vocabulary.special("<eos>")
    labels[:, 14] = vocabulary["visual"].start  # first and last id of a range
    labels[:, 13] = vocabulary["visual"].stop - 1
    total, per_range, n = slow_loss(hidden, model.head_weight, labels, vocabulary, z)
    wanted = torch.autograd.grad(total, (hidden, model.head_weight))
    loss = model.loss(hidden, labels)
    assert loss.n_targets == n and loss.per_range.keys() == per_range.keys()
    torch.testing.assert_close(loss.total, total)
    for name, mean in per_range.items():
        torch.testing.assert_close(loss.per_range[name], mean.detach())
    got = torch.autograd.grad(3 * loss.total, (hidden, model.head_weight))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, 3 * b, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(hidden, labels).total, total.detach())


def test_without_targets_the_loss_is_zero_and_has_a_gradient(model):
    hidden = torch.randn(1, 4, 32, requires_grad=True)
    loss = model.loss(hidden, torch.full((1, 4), IGNORE_INDEX))
    loss.total.backward()
    assert loss.total == 0 and loss.n_targets == 0 and not loss.per_range and (hidden.grad == 0).all()


def test_special_ids_carry_no_loss(model, vocabulary):
    hidden = torch.randn(1, 6, 32)
    labels = torch.tensor([[300, 0, 1, 260, 0, 300]])
    free = labels.clone()
    free[labels < 256] = IGNORE_INDEX
    a, b = model.loss(hidden, labels), model.loss(hidden, free)
    assert a.total == b.total and a.n_targets == b.n_targets == 2
