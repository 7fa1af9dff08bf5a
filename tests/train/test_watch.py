"""What a training warns of: each kind of trouble is noticed and said once, and a healthy run is left in peace."""

from __future__ import annotations

import math
import random

import pytest
import torch

from train.watch import FIRST_BATCHES, Watch


def run(watch: Watch, n: int, metrics, start: int = 0, ids=None) -> list[str]:
    """Messages of n logged steps, 20 apart; `metrics(i)` and `ids(i)` give what is logged."""
    said = []
    for i in range(start, start + n):
        said += watch.step(20 * (i + 1), metrics(i), ids(i) if ids else None)
    return said


def healthy(i: int) -> dict[str, float]:
    """A noisy run that first improves fast, then slowly."""
    loss = math.exp(-i / 10) - 0.2 + 0.02 * random.Random(i).gauss(0, 1)
    entropy = -0.69 + 0.5 * math.exp(-i / 5)
    return {"loss": loss, "grad_norm": 0.3, "entropy": entropy, "codes": 300.0, "soft": max(0.0, 1 - i / 50),
            "d_real": 0.7, "d_fake": -0.7, "g_adversarial": 1.1}  # fmt: skip


def test_a_healthy_run_is_left_in_peace() -> None:
    draw = torch.Generator().manual_seed(0)
    ids = lambda i: torch.randint(0, 4096, (2, 5, 8, 8), generator=draw)
    assert run(Watch(4096), 300, healthy, ids=ids) == []
    assert run(Watch(4096), 300, healthy) == []
    assert run(Watch(), 300, lambda i: {}) == []  # a job that logs nothing of what is known


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.rand(1, 3, 5, 8, 8) * 255, r"span .*255; feed|look like 0\.\.\.255; feed frames / 127.5 - 1"),
        (torch.full((1, 3, 5, 8, 8), 200, dtype=torch.uint8), "frames are torch.uint8"),
        (torch.randn(1, 3, 5, 8, 8) * 2, r"span \[-.*expected \[-1, 1\]$"),
        (torch.full((1, 3, 5, 8, 8), math.nan), "not numbers"),
    ],
)
def test_a_wrong_range_is_refused(video: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Watch().batch(video)


def test_frames_from_0_to_1_are_warned_of_once() -> None:
    watch, video = Watch(), torch.rand(1, 3, 5, 8, 8)
    said = [watch.batch(video) for _ in range(FIRST_BATCHES + 5)]
    assert [len(s) for s in said] == [i == FIRST_BATCHES - 1 for i in range(len(said))]
    assert "if the frames are 0...1, feed 2 * frames - 1" in said[FIRST_BATCHES - 1][0]
    watch = Watch()  # one bright clip among others
    assert not any(watch.batch(video if i else 2 * video - 1) for i in range(FIRST_BATCHES + 5))
    watch = Watch()  # white frames are no matter of range
    assert not any(watch.batch(torch.ones(1, 3, 5, 8, 8)) for _ in range(FIRST_BATCHES))


def test_collapsed_codes_are_counted_over_the_last_batches() -> None:
    watch, draw = Watch(4096), torch.Generator().manual_seed(0)
    few = lambda i: torch.randint(0, 7, (2, 5, 8, 8), generator=draw) * 500
    said = run(watch, 150, lambda i: {}, ids=few)
    assert len(said) == 1 and said[0].startswith("only 7 of 4,096 codes in the last 10 batches: the codes have coll")
    many = lambda i: torch.randint(0, 4096, (2, 5, 8, 8), generator=draw)
    assert run(watch, 5, lambda i: {}, ids=many) == []
    assert run(watch, 99, lambda i: {}, ids=few) == []  # the many are still among the last 100
    said = run(watch, 10, lambda i: {}, ids=few)
    assert len(said) == 1 and "only 7 of 4,096 codes in the last 100 batches" in said[0]  # said again


def test_one_code_nearly_everywhere_is_noticed() -> None:
    mostly = torch.zeros(2, 1000, dtype=torch.int64)
    mostly[0, :70] = torch.arange(70) * 50
    said = run(Watch(4096), 50, lambda i: {}, ids=lambda i: mostly)
    assert len(said) == 1 and "nearly all are the same code" in said[0]


def test_codes_are_judged_by_how_many_ids_could_show_them() -> None:
    ids = torch.arange(8).view(1, 2, 2, 2)  # a small batch has few codes, and that is no collapse
    assert run(Watch(1 << 18), 11, lambda i: {}, ids=lambda i: ids + 100 * i) == []
    assert len(run(Watch(1 << 18), 11, lambda i: {}, ids=lambda i: ids // 4)) == 1


def test_codes_of_batches_serve_where_ids_are_not_given() -> None:
    said = run(Watch(4096), 50, lambda i: {"codes": 3.0})
    assert len(said) == 1 and said[0].startswith("only 3 of 4,096 codes in each of the last 10 batches")


def test_codes_are_not_judged_while_most_samples_bypass_the_quantizer() -> None:
    one = torch.zeros(1, 100, dtype=torch.int64)
    assert run(Watch(4096), 50, lambda i: {"soft": 0.6, "codes": 1.0, "entropy": -0.01}, ids=lambda i: one) == []
    assert run(Watch(4096), 50, lambda i: {"soft": 0.4, "codes": 1.0, "entropy": -0.01}, ids=lambda i: one) != []


@pytest.mark.parametrize(
    ("entropy", "words"),
    [
        (lambda i: -0.03, "is -0.03 nats per bit, -0.69 is best"),
        (lambda i: -0.2, "is -0.20 nats per bit and does not fall"),
        (lambda i: -0.2 - i / 1000, None),
        (lambda i: -0.6, None),
        (lambda i: 0.0, None),  # FSQ has no entropy loss
    ],
)
def test_entropy_that_is_near_zero_or_does_not_fall(entropy, words) -> None:
    said = run(Watch(4096), 100, lambda i: {"entropy": entropy(i)})
    assert len(said) == (words is not None) and (words is None or words in said[0]), said


def test_a_loss_that_stays_above_its_best_points_at_the_learning_rate() -> None:
    loss = lambda i: 2.0 - i / 60 if i < 60 else 1.4
    watch = Watch()
    assert run(watch, 70, lambda i: {"loss": loss(i)}) == []  # a short bump is none
    (said,) = run(watch, 60, lambda i: {"loss": loss(i)}, start=70)
    assert "% above its best of step 1,2" in said and "learning rate may be too high" in said
    (said,) = run(Watch(), 130, lambda i: {"loss": loss(i) - 1.5})
    assert said.startswith("the loss is 0.3")  # below zero: no percent
    later = lambda i: {"loss": 1.0 + 0.005 * (i - 100) + 0.01 * (i % 3)}
    (said,) = run(Watch(), 60, later, start=100)  # a training that goes on
    assert "above its best of step 2,2" in said


def test_one_spike_and_a_new_term_are_no_trouble() -> None:
    assert run(Watch(), 200, lambda i: {"loss": 2 - i / 200 + 5 * (i % 16 == 7)}) == []
    joined = lambda i: {"loss": 2 - i / 200} if i < 100 else {"loss": 4 - i / 200, "d_real": 0.0}
    assert run(Watch(), 200, joined) == []


def test_a_loss_that_never_falls_points_at_the_gradient() -> None:
    noise = random.Random(0)
    said = run(Watch(), 100, lambda i: {"loss": 0.7 + 0.01 * noise.gauss(0, 1)})
    assert len(said) == 1 and "has not fallen since step 20" in said[0] and "too low" in said[0], said
    assert run(Watch(), 100, lambda i: {"loss": 0.7}, start=100) == []  # a training that goes on
    assert run(Watch(), 100, lambda i: {"loss": 0.7, "psnr": 25.0}) == []  # one that starts from a good model
    (said,) = run(Watch(), 12, lambda i: {"grad_norm": 0.0})
    assert "the gradient is zero" in said


def test_a_discriminator_that_has_won() -> None:
    won = lambda i: {"d_real": 9.0, "d_fake": -8.0, "g_adversarial": 8.0}
    watch = Watch()
    assert run(watch, 9, won) == []
    (said,) = run(watch, 20, won)
    assert said.startswith("the discriminator has won: 9.0 for real and -8.0 for decoded clips, generator loss 8.0")
    assert run(Watch(), 30, lambda i: {"d_real": 1.5, "d_fake": -1.5, "g_adversarial": 1.7}) == []


def test_a_gradient_that_grows_without_end_is_noticed_once() -> None:
    grows = lambda i: {"loss": math.exp(-i / 50), "grad_norm": 0.5 * (1.05 ** max(0, i - 50)) * (1 + 0.3 * (i % 3))}
    (words,) = run(Watch(), 200, grows)
    assert "the gradient is 1" in words and "lower the learning rate" in words
    noisy = lambda i: {"loss": math.exp(-i / 50), "grad_norm": 8.0 if i % 7 == 0 else 0.5}
    assert run(Watch(), 200, noisy) == []
    more = {"grad_norm": 9.0, "of another term": 1.0}
    joined = lambda i: {"loss": math.exp(-i / 50), "grad_norm": 0.5} | (more if i > 99 else {})
    assert run(Watch(), 200, joined) == []


@pytest.mark.parametrize(("level", "how"), [(-30.0, " dB quieter"), (30.0, " dB louder")])
def test_an_output_of_a_wrong_level_is_noticed_once(level: float, how: str) -> None:
    (words,) = run(Watch(), 100, lambda i: {"loss": math.exp(-i / 50), "level": level if i > 40 else 0.0})
    assert how in words
    assert run(Watch(), 100, lambda i: {"loss": math.exp(-i / 50), "level": level if i % 4 == 0 else -1.0}) == []
