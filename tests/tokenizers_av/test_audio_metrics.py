"""Measures of sound against known values; those of a long sound do not depend on how it is cut."""

import math

import pytest
import torch

from tokenizers_av.audio.metrics import SoundDistance, mel_distance, share_of_codes_used, si_sdr

RATE = 16000


def test_mel_distance_of_a_tenth_of_the_amplitude_is_a_decade_where_there_is_sound():
    torch.manual_seed(0)
    x = 0.3 * torch.randn(2, 8000)
    assert mel_distance(x, x, RATE).max() == 0
    torch.testing.assert_close(mel_distance(0.1 * x, x, RATE), torch.ones(2), atol=1e-3, rtol=0)


def test_si_sdr_against_known_values():
    torch.manual_seed(0)
    x = torch.randn(1, 16000, dtype=torch.float64)
    x -= x.mean()
    noise = torch.randn_like(x)
    noise -= noise.mean()
    noise -= (noise * x).sum() / (x * x).sum() * x  # orthogonal to x
    noise *= (x.norm() / noise.norm()) * 10 ** (-12 / 20)
    assert float(si_sdr(x + noise, x)) == pytest.approx(12, abs=1e-3)
    assert float(si_sdr(0.2 * (x + noise), x)) == pytest.approx(12, abs=1e-3)  # scale does not matter
    assert math.isnan(float(si_sdr(x, torch.zeros_like(x))))


def test_share_of_codes_used():
    ids = torch.tensor([[[0, 1, 1], [2, 2, 2]]])
    assert share_of_codes_used(ids, 4) == [0.5, 0.25]


def added(output: torch.Tensor, target: torch.Tensor, size: int) -> SoundDistance:
    distance = SoundDistance(RATE)
    for a, b in zip(output.split(size), target.split(size)):
        distance.add(a, b)
    return distance


@pytest.mark.parametrize("size", [333, 10**6])
@pytest.mark.parametrize("noise", [1.0, 0.1, 1e-4])
def test_si_sdr_in_pieces_is_that_of_the_whole(size, noise):
    torch.manual_seed(0)
    target = 0.1 * torch.randn(100_000) * torch.linspace(0, 1, 100_000) + 0.3  # an offset, and louder at the end
    output = 0.7 * target + 0.1 * noise * torch.randn(100_000) - 0.2
    distance = added(output, target, size)
    assert distance.si_sdr == pytest.approx(float(si_sdr(output[None], target[None])), abs=1e-3)
    error = (output - target).double()
    assert distance.snr == pytest.approx(float(10 * (target.double().norm() / error.norm()).square().log10()), abs=1e-6)
    assert distance.seconds == 6.25


def test_mel_distance_in_pieces_of_ten_seconds():
    torch.manual_seed(0)
    target, output = 0.3 * torch.randn(2, 25 * RATE)
    pieces = [10 * RATE, 10 * RATE, 5 * RATE]
    each = [float(mel_distance(a[None], b[None], RATE)) for a, b in zip(output.split(pieces), target.split(pieces))]
    by_hand = (10 * each[0] + 10 * each[1] + 5 * each[2]) / 25
    for size in (9999, 10**6):
        distance = added(output, target, size)
        assert distance.mel_distance == pytest.approx(by_hand, abs=1e-6)
        assert distance._waiting.shape[1] == 5 * RATE
    short = added(output[:5000], target[:5000], 100)
    assert short.mel_distance == pytest.approx(float(mel_distance(output[None, :5000], target[None, :5000], RATE)))


def test_silence_has_no_ratio_and_nothing_no_distance():
    silence = torch.zeros(1000)
    distance = added(silence + 0.1, silence, 100)
    assert math.isnan(distance.si_sdr) and math.isnan(distance.snr) and distance.mel_distance > 0
    assert added(silence, silence, 100).mel_distance == 0
    nothing = SoundDistance(RATE)
    assert all(math.isnan(x) for x in (nothing.si_sdr, nothing.snr, nothing.mel_distance)) and nothing.seconds == 0
    same = added(torch.ones(10), torch.ones(10), 3)
    assert same.snr == math.inf
    with pytest.raises(ValueError, match="twice"):
        nothing.add(silence, silence[1:])
