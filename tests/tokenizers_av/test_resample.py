"""Sample rate conversion: lengths, pass band, stop band, phase, edges, dtypes, memory."""

import math
from importlib import import_module

import pytest
import torch
from torch import Tensor

from tokenizers_av.audio.resample import resample

resample_module = import_module("tokenizers_av.audio.resample")  # the package names its function alike
RATES = [(44100, 16000), (16000, 44100), (48000, 16000), (16000, 48000), (8000, 16000), (22050, 24000), (3, 7), (7, 3)]


def sine(n: int, rate: float, hz: float, phase: float = 0.4) -> Tensor:
    return torch.sin(2 * math.pi * hz / rate * torch.arange(n, dtype=torch.float64) + phase)


def decibels(ratio: Tensor) -> float:
    return 20 * math.log10(float(ratio))


def slow_resample(samples: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Each output sample as one sum over all the input."""
    cutoff = min(1.0, to_rate / from_rate)
    half = resample_module.ZERO_CROSSINGS / cutoff
    i = torch.arange(-1000, len(samples) + 1000, dtype=torch.float64)
    padded = torch.cat([torch.zeros(1000), samples, torch.zeros(1000)]).double()
    sums = []
    for j in range(math.ceil(len(samples) * to_rate / from_rate)):
        away = i - j * from_rate / to_rate
        near = away.abs() <= half + 1e-9
        away = away[near]
        window = torch.special.i0(resample_module.BETA * (1 - (away / half) ** 2).clamp(min=0).sqrt())
        weights = torch.sinc(cutoff * away) * window
        sums.append((weights * padded[near]).sum() / weights.sum())
    return torch.stack(sums)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(5, 3), (3, 5), (147, 160), (1, 4), (6, 1), (441, 442)])
def test_equals_a_slow_sum(from_rate, to_rate):
    torch.manual_seed(0)
    x = torch.randn(150, dtype=torch.float64)
    torch.testing.assert_close(resample(x, from_rate, to_rate), slow_resample(x, from_rate, to_rate), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("from_rate", "to_rate"), RATES)
@pytest.mark.parametrize("n", [0, 1, 2, 441, 1000])
def test_length_is_rounded_up(from_rate, to_rate, n):
    assert resample(torch.zeros(n), from_rate, to_rate).shape == (-(-n * to_rate // from_rate),)


@pytest.mark.parametrize(("from_rate", "to_rate"), RATES)
@pytest.mark.parametrize("part", [0.01, 0.5, 0.9])
def test_a_sine_in_the_pass_band_stays_the_same_sine(from_rate, to_rate, part):
    n = 4000
    hz = part * min(from_rate, to_rate) / 2
    y = resample(sine(n, from_rate, hz), from_rate, to_rate)
    expected = sine(len(y), to_rate, hz)  # the same phase: sample 0 lies on sample 0
    edge = math.ceil(resample_module.ZERO_CROSSINGS * max(1, to_rate / from_rate))
    worst = (y - expected)[edge:-edge].abs().max()
    assert worst < 10 ** (0.01 / 20) - 1 + 10 ** (-70 / 20), f"largest difference {float(worst):.2e}"


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 16000), (48000, 16000), (16000, 8000), (7, 3)])
@pytest.mark.parametrize("part", [1.1, 1.17, 1.5, 1.99])
def test_what_would_fold_back_is_70_decibels_down(from_rate, to_rate, part):
    y = resample(sine(8000, from_rate, part * to_rate / 2), from_rate, to_rate)
    edge = resample_module.ZERO_CROSSINGS
    level = decibels(y[edge:-edge].abs().max())
    assert level < -70, f"{level:.1f} dB"


@pytest.mark.parametrize(("from_rate", "to_rate"), [(16000, 48000), (16000, 44100), (3, 7)])
def test_images_of_the_spectrum_are_70_decibels_down(from_rate, to_rate):
    y = resample(sine(8000, from_rate, 0.9 * from_rate / 2), from_rate, to_rate)  # the first image is at 1.1
    rest = y - sine(len(y), to_rate, 0.9 * from_rate / 2)
    size = torch.fft.rfft(rest[500:-500] * torch.blackman_window(len(rest) - 1000, dtype=torch.float64)).abs()
    hz = torch.linspace(0, to_rate / 2, len(size))
    level = decibels(size[hz > 1.05 * from_rate / 2].max() / (0.42 / 2 * (len(rest) - 1000)))
    assert level < -70, f"{level:.1f} dB"


def test_frequency_response_has_the_figures_of_the_docstring():
    impulse = torch.zeros(8001, dtype=torch.float64)
    impulse[4000] = 1
    for up in (3, 4):  # a rise of the rate by a whole number shows the whole filter
        response = decibel_curve(resample(impulse, 1, up) / up)
        part = torch.linspace(0, up, len(response))  # of the lower Nyquist frequency
        assert response[part <= 0.9].abs().max() < 0.01
        assert float(response[(part - 1).abs().argmin()]) == pytest.approx(-6, abs=0.1)
        assert response[part >= 1.1].max() < -70


def decibel_curve(impulse_response: Tensor) -> Tensor:
    return 20 * torch.fft.rfft(impulse_response, n=1 << 17).abs().clamp(min=1e-12).log10()


@pytest.mark.parametrize(("low", "high"), [(16000, 48000), (16000, 44100), (22050, 48000)])
def test_up_and_down_again_gives_the_sound_back(low, high):
    torch.manual_seed(0)
    n = 4000
    spectrum = torch.randn(n // 2 + 1, dtype=torch.complex128)
    spectrum[int(0.9 * n / 2) :] = 0
    x = torch.fft.irfft(spectrum, n=n) * n**0.5
    back = resample(resample(x, low, high), high, low)[:n]
    worst = (back - x)[100:-100].abs().max() / x.abs().max()
    assert worst < 2e-3, f"largest difference {float(worst):.2e} of the peak"


def test_a_constant_stays_exactly_constant():
    for from_rate, to_rate in RATES:
        y = resample(torch.full((2000,), 0.25, dtype=torch.float64), from_rate, to_rate)
        edge = math.ceil(resample_module.ZERO_CROSSINGS * max(1, to_rate / from_rate)) + 1
        torch.testing.assert_close(y[edge:-edge], torch.full_like(y[edge:-edge], 0.25), atol=1e-14, rtol=0)


def test_an_impulse_keeps_its_place_and_shape_both_ways():
    x = torch.zeros(201, dtype=torch.float64)
    x[100] = 1
    y = resample(x, 1, 3)
    assert int(y.argmax()) == 300
    torch.testing.assert_close(y[300:500], y[101:301].flip(0))  # no delay, no phase


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept(dtype):
    torch.manual_seed(0)
    x = (torch.rand(2, 500, dtype=torch.float64) - 0.5).to(dtype)
    y = resample(x, 3, 2)
    assert y.dtype == dtype
    expected = resample(x.double(), 3, 2)
    torch.testing.assert_close(y.double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resample(x, 3, 2), y)


def test_leading_dimensions_are_independent():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 700)
    y = resample(x, 44100, 16000)
    assert y.shape == (2, 3, 254) and y.is_contiguous()
    for b in range(2):
        for c in range(3):
            torch.testing.assert_close(y[b, c], resample(x[b, c], 44100, 16000), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(resample(x.transpose(0, 1), 3, 2), resample(x, 3, 2).transpose(0, 1))  # strided
    assert resample(torch.zeros(0, 2, 9), 1, 2).shape == (0, 2, 18)


def test_work_in_pieces_equals_work_at_once(monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(2, 1500, dtype=torch.float64)
    whole = {rates: resample(x, *rates) for rates in RATES}
    for work in (1, 4000):
        monkeypatch.setattr(resample_module, "WORK", work)
        for rates, expected in whole.items():
            torch.testing.assert_close(resample(x, *rates), expected, atol=1e-12, rtol=0)


def test_no_step_grows_with_the_length(monkeypatch):
    sizes = []
    blocks = resample_module._blocks

    def counted(heard, *rest):
        out = blocks(heard, *rest)
        sizes.append(max(heard.numel(), out.numel()))
        return out

    monkeypatch.setattr(resample_module, "_blocks", counted)
    monkeypatch.setattr(resample_module, "WORK", 1 << 14)
    for rates in RATES:
        resample(torch.zeros(2, 100_000), *rates)
    assert max(sizes) <= 1 << 14 and len(sizes) > 50


def test_rates_without_a_common_factor_need_no_large_filter():
    resample_module._filters.cache_clear()
    y = resample(sine(300, 44100, 440).float(), 44100, 44101)
    torch.testing.assert_close(y[50:-50], sine(301, 44101, 440)[50:-50].float(), atol=1e-4, rtol=0)
    phases, begin = resample_module._filters(44101, 44100, 0, torch.float32, torch.device("cpu"))
    assert phases.numel() < 10_000 and begin == -24
    phases, _ = resample_module._filters(48000, 1, 0, torch.float32, torch.device("cpu"))
    assert phases.numel() < 20_000


def test_equal_rates_return_the_input():
    x = torch.randn(5)
    assert resample(x, 16000, 16000) is x


def test_gradients_pass_also_after_inference():
    resample_module._filters.cache_clear()
    with torch.inference_mode():
        resample(torch.zeros(50), 5, 3)  # fills the cache of filters
    x = torch.randn(2, 50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: resample(s, 5, 3), x)
    resample(torch.zeros(50, requires_grad=True), 5, 3).sum().backward()


def test_a_nan_stays_near_its_place():
    x = torch.zeros(4000)
    x[2000] = math.nan
    y = resample(x, 2, 1)
    assert y[1000].isnan() and y[:940].isfinite().all() and y[1060:].isfinite().all()


def test_wrong_input_is_refused():
    for from_rate, to_rate in ((0, 16000), (16000, 0), (-1, -1)):
        with pytest.raises(ValueError, match=f"from_rate={from_rate}, to_rate={to_rate}: both must be at least 1"):
            resample(torch.zeros(9), from_rate, to_rate)
    with pytest.raises(ValueError, match=r"torch\.int16; need floating point"):
        resample(torch.zeros(9, dtype=torch.int16), 2, 1)
    with pytest.raises(ValueError, match="no dimension"):
        resample(torch.tensor(1.0), 2, 1)
