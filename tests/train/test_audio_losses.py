"""Losses of the audio tokenizer."""

import math
from itertools import pairwise

import pytest
import torch

from train.audio_losses import AudioLoss, audio_loss

RATE = 16000


def tone(hertz: float, n: int = 8000, amplitude: float = 0.3, phase: float = 0.0) -> torch.Tensor:
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(n) / RATE + phase)[None]


def terms(loss: AudioLoss) -> torch.Tensor:
    return torch.stack([loss.mel, loss.linear, loss.complex, loss.wave])


def test_losses_of_equal_sounds_are_nearly_zero_and_grow_with_the_error():
    x = tone(440) + tone(900, amplitude=0.1)
    rows = [terms(audio_loss(x, x, RATE))]
    torch.manual_seed(0)
    noise = torch.randn_like(x)
    rows += [terms(audio_loss(x + level * noise, x, RATE)) for level in (0.003, 0.01, 0.1)]
    assert rows[0].max() < 1e-3
    for less, more in pairwise(rows):
        assert (less < more).all()


def test_terms_measure_what_they_say():
    x = tone(440)
    assert float(audio_loss(torch.zeros_like(x), x, RATE).wave) == pytest.approx(1, abs=1e-4)
    assert float(audio_loss(torch.zeros_like(x), x, RATE).linear) == pytest.approx(1, abs=1e-3)
    shifted = audio_loss(tone(440, phase=math.pi / 2), x, RATE)  # same spectrum, other phase
    assert float(shifted.wave) == pytest.approx(math.sqrt(2), rel=0.01)
    assert shifted.complex > 1 and shifted.mel < 0.15 and shifted.linear < 0.15


def test_gradients_are_finite_for_silent_output_and_silent_target():
    silence = torch.zeros(1, 8000)
    for output, target in ((silence, tone(440)), (silence, silence), (tone(440), tone(440))):
        output = output.clone().requires_grad_()
        terms(audio_loss(output, target, RATE)).sum().backward()
        assert torch.isfinite(output.grad).all()


def test_loss_refuses_other_shapes():
    with pytest.raises(ValueError, match="same shape"):
        audio_loss(torch.zeros(1, 100), torch.zeros(2, 100), RATE)


def test_loss_is_float32_under_autocast():
    x, y = tone(440), tone(450)
    with torch.autocast("cpu", torch.bfloat16):
        inside = audio_loss(x, y, RATE)
    torch.testing.assert_close(terms(inside), terms(audio_loss(x, y, RATE)))
