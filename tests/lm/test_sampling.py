from __future__ import annotations

import pytest
import torch

from lm import Sampling
from lm.sampling import distribution, draw, uniforms


def slow_distribution(logits, how):
    """What `draw` must follow, spelled out for one row."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order[: how.top_k] if how.top_k else order
    weights = {i: torch.exp(torch.tensor(logits[i]) / how.temperature).item() for i in kept}
    mass, nucleus = 0.0, []
    for i in kept:
        nucleus.append(i)
        mass += weights[i] / sum(weights.values())
        if mass >= how.top_p:
            break
    norm = sum(weights[i] for i in nucleus)
    return torch.tensor([weights[i] / norm if i in nucleus else 0.0 for i in range(len(logits))])


@pytest.mark.parametrize(
    "how",
    [Sampling(), Sampling(0.5), Sampling(2.0, top_k=4), Sampling(top_p=0.7), Sampling(1.5, top_k=6, top_p=0.6)],
)
def test_draws_follow_the_cut_distribution(how):
    torch.manual_seed(0)
    logits = torch.randn(9) * 2
    n = 4000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # every quantile once: counts are exact up to rounding
    counts = draw(logits.expand(n, 9), how, u).bincount(minlength=9) / n
    expected = slow_distribution(logits.tolist(), how)
    assert (counts - expected).abs().max() < 1e-3 and (counts[expected == 0] == 0).all()


@pytest.mark.parametrize(
    "how",
    [Sampling(), Sampling(0), Sampling(2.0, top_k=4), Sampling(top_k=1), Sampling(top_p=0.7), Sampling(1.5, 6, 0.6)],
)
def test_the_distribution_is_that_of_the_draws(how):
    torch.manual_seed(0)
    logits = torch.randn(3, 9) * 2
    p = distribution(logits, how)
    assert p.dtype == torch.float64
    for row, expected in zip(p, logits.tolist(), strict=True):
        greedy = how.temperature == 0 or how.top_k == 1
        likeliest = torch.tensor(expected) == max(expected)
        wanted = likeliest.float() if greedy else slow_distribution(expected, how)
        assert (row - wanted).abs().max() < 1e-6, (row, wanted)


def test_greedy_takes_the_likeliest():
    logits = torch.tensor([[0.0, 3, 1], [5, 3, 1]])
    for how in (Sampling(0), Sampling(top_k=1)):
        assert draw(logits, how, torch.tensor([0.99, 0.99], dtype=torch.float64)).tolist() == [1, 0]


def test_the_largest_number_draws_a_possible_id():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    u = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert draw(logits, Sampling(), u).item() == 1 and draw(logits, Sampling(top_p=1 - 1e-9), u).item() == 0


def test_numbers_depend_on_the_own_seed_only():
    a, b = uniforms([3, 4], 20), uniforms([5, 3], 20)
    assert torch.equal(a[:, 0], b[:, 1]) and not torch.equal(a[:, 0], a[:, 1])


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}])
def test_wrong_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
