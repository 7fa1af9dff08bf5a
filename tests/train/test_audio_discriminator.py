"""The audio discriminators and their losses."""

import math

import pytest
import torch
from torch import nn

from train.audio_discriminator import (
    AudioDiscriminator,
    Judged,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
)

N = 4096


@pytest.fixture
def discriminator() -> AudioDiscriminator:
    torch.manual_seed(0)
    net = AudioDiscriminator()
    for sub in net.discriminators:
        nn.init.normal_(sub.head.weight)  # zero otherwise
    return net


def tones(B: int) -> torch.Tensor:
    phase = 2 * math.pi * (0.01 + 0.1 * torch.rand(B, 1)) * torch.arange(N) + 6 * torch.rand(B, 1)
    return 0.3 * torch.sin(phase)


@pytest.mark.parametrize("n", [2048, 2049, N])
def test_shapes_and_clips_judged_apart(discriminator, n):
    samples = torch.rand(3, n) * 2 - 1
    with torch.no_grad():
        judged, single = discriminator(samples), discriminator(samples[1:2])
    windows, scales = judged[:5], judged[5:]
    assert [j.logits.shape[1] for j in windows] == [1 + n // (w // 4) for w in (2048, 1024, 512, 256, 128)]
    assert [j.logits.shape[2] for j in scales] == [math.ceil(n // s / 256) for s in (1, 2, 4)]
    assert [len(j.features) for j in judged] == [5] * 5 + [6] * 3
    for whole, alone in zip(judged, single):
        assert whole.logits.shape[0] == 3 and whole.logits.dtype == torch.float32
        assert all(f.shape[0] == 3 and f.ndim == 4 for f in whole.features)
        torch.testing.assert_close(whole.logits[1:2], alone.logits, atol=1e-3, rtol=1e-3)


def test_gradients_reach_all_parameters_and_all_samples(discriminator):
    for n in (2048, N + 100):
        samples = (torch.rand(2, n) * 2 - 1).requires_grad_()
        judged = discriminator(samples)
        sum((j.logits * torch.randn_like(j.logits)).sum() for j in judged).backward()
        for name, p in discriminator.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name
        assert (samples.grad != 0).all()
        for sub in discriminator.discriminators:  # each by itself: none leaves samples out
            (grad,) = torch.autograd.grad(sub(samples).logits.square().sum(), samples)
            assert (grad != 0).float().mean() > 0.99, sub


def test_bfloat16_gradients_are_close_to_float32_whatever_was_in_memory(discriminator):
    torch.manual_seed(1)
    for n in (2048, N):
        samples = 0.1 * torch.randn(2, n)
        weights = [torch.rand_like(j.logits) for j in discriminator(samples)]
        grads = []
        for enabled in (False, True):
            junk = [torch.full((m,), 1e30, dtype=torch.bfloat16) for m in (10**4, 10**5, 10**6)]
            del junk
            discriminator.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                judged = discriminator(x := samples.clone().requires_grad_())
            assert all(j.logits.dtype == torch.float32 for j in judged)
            loss = sum((j.logits * w).sum() for j, w in zip(judged, weights)) + feature_matching_loss(
                [Judged(j.logits, [f + 1 for f in j.features]) for j in judged], judged
            )
            loss.backward()
            grads.append({"samples": x.grad} | {name: p.grad for name, p in discriminator.named_parameters()})
        for name, expected in grads[0].items():
            cosine = torch.cosine_similarity(expected.flatten(), grads[1][name].flatten(), 0)
            ratio = grads[1][name].norm() / expected.norm()
            assert cosine > 0.99 and 0.9 < ratio < 1.1, f"{name}: cosine {cosine}, ratio of norms {ratio}"


def test_an_untrained_discriminator_says_nothing():
    samples = torch.randn(1, 2048, requires_grad=True)
    judged = AudioDiscriminator(stft_width=4, wave_width=2)(samples)
    hinge_generator_loss(judged).backward()
    assert all(j.logits.abs().max() == 0 for j in judged) and samples.grad.abs().max() == 0
    assert float(hinge_discriminator_loss(judged, judged).detach()) == 2


def test_what_the_discriminator_refuses():
    net = AudioDiscriminator(windows=(512,), scales=(1, 4), stft_width=2, wave_width=2)
    assert net.min_samples == 1024 and AudioDiscriminator(scales=(1,), stft_width=1, wave_width=1).min_samples == 2048
    for shape in ((2, 1023), (2, 1, 2048), (2048,)):
        with pytest.raises(ValueError, match=r"need \(B, N\), N >= 1024"):
            net(torch.zeros(shape))
    with pytest.raises(ValueError, match="windows="):
        AudioDiscriminator(windows=(), scales=())
    with pytest.raises(ValueError, match="stft_width=0"):
        AudioDiscriminator(stft_width=0)


def test_losses_against_their_formulas():
    def judged(logits: list[float], *features: list[float]) -> Judged:
        return Judged(torch.tensor(logits), [torch.tensor(f) for f in features])

    real = [judged([2.0, 0.0], [1.0, -3.0]), judged([0.5], [2.0], [4.0])]
    fake = [judged([-2.0, 3.0], [2.0, -2.0]), judged([0.0], [2.0], [1.0])]
    assert float(hinge_generator_loss(fake)) == pytest.approx(((3 + 0) / 2 + 1) / 2)
    assert float(hinge_discriminator_loss(real, fake)) == pytest.approx(((1 / 2 + 4 / 2) + (0.5 + 1)) / 2)
    assert float(feature_matching_loss(real, fake)) == pytest.approx((1 / 2 + (0 + 3 / 4) / 2) / 2)


def test_feature_matching_is_zero_for_equal_samples_and_moves_only_the_fakes(discriminator):
    real, fake = (tones(2).requires_grad_() for _ in range(2))
    a = discriminator(real)
    assert float(feature_matching_loss(a, a).detach()) == 0
    silent = discriminator(torch.zeros(1, N))
    assert float(feature_matching_loss(silent, silent).detach()) == 0
    loss = feature_matching_loss(a, discriminator(fake))
    loss.backward()
    assert float(loss.detach()) > 0.1 and real.grad is None and fake.grad.abs().max() > 0


@pytest.mark.parametrize("kinds", [{"scales": ()}, {"windows": ()}], ids=["spectra", "waveforms"])
def test_discriminator_learns_to_tell_tones_from_noise(kinds):
    torch.manual_seed(0)
    net = AudioDiscriminator(**{"windows": (512,), "scales": (1, 2)} | kinds, stft_width=8, wave_width=8)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, betas=(0.5, 0.9))
    for _ in range(30):
        real, fake = tones(4), 0.3 * torch.randn(4, N)
        loss = hinge_discriminator_loss(net(real), net(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        a, b = (sum(j.logits.flatten(1).mean(1) for j in net(x)) for x in (tones(4), 0.3 * torch.randn(4, N)))
    assert a.min() > b.max() and float(loss.detach()) < 1  # it starts at 2
