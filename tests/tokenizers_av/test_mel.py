"""Mel spectrograms: against a slow transform, and mel and resampling against librosa, scipy and torchaudio."""

import importlib
import math
import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tokenizers_av.audio.mel import hz_to_mel, mel_filters, mel_spectrogram, mel_to_hz, stft
from tokenizers_av.audio.resample import resample

resample_module = importlib.import_module("tokenizers_av.audio.resample")  # the package names its function alike


def optional(name: str) -> ModuleType:
    """A library that only these tests use, or a skip that says what is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library warns of while it loads
            return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}")
    except (OSError, RuntimeError) as error:  # built for another torch, such as CUDA's beside a CPU one
        pytest.skip(f"{name} does not load beside torch {torch.__version__}: {error}")


def sounds(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(2, n): noise, and a rising tone."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(n, dtype=torch.float64) / n
    tone = 0.5 * torch.sin(2 * math.pi * n * 0.2 * time**2)
    return torch.stack([0.3 * torch.randn(n, dtype=torch.float64, generator=generator), tone]).to(dtype)


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Equal up to `tolerance` of the largest value."""
    assert ours.shape == theirs.shape
    worst = float((ours.double() - theirs.double()).abs().max() / theirs.abs().max())
    print(f"largest difference {worst:.2e} of the largest value")
    assert worst < tolerance, f"largest difference {worst:.2e} of the largest value"


def test_mel_spectrogram_equals_a_slow_transform():
    torch.manual_seed(0)
    n_fft, hop, n_mels, rate = 64, 16, 8, 8000
    x = torch.randn(1, 160)
    mel = mel_spectrogram(x, rate, n_fft, hop, n_mels)
    assert mel.shape == (1, n_mels, 11)
    window = [0.5 - 0.5 * math.cos(2 * math.pi * i / n_fft) for i in range(n_fft)]
    padded = [0.0] * (n_fft // 2) + x[0].tolist() + [0.0] * (n_fft // 2)
    edges = [
        700 * (10 ** (m / 2595) - 1)
        for m in (i * 2595 * math.log10(1 + 4000 / 700) / (n_mels + 1) for i in range(n_mels + 2))
    ]
    for frame in (0, 4, 10):
        sizes = []
        for k in range(n_fft // 2 + 1):
            terms = [(window[i] * padded[frame * hop + i], 2 * math.pi * k * i / n_fft) for i in range(n_fft)]
            sizes.append(math.hypot(sum(a * math.cos(p) for a, p in terms), sum(a * math.sin(p) for a, p in terms)))
        for m in range(n_mels):
            low, mid, high = edges[m : m + 3]
            rise, fall = max(mid - low, rate / n_fft), max(high - mid, rate / n_fft)
            below = [mid - k * rate / n_fft for k in range(n_fft // 2 + 1)]
            heights = [max(0.0, min(1 - b / rise, 1 + b / fall)) for b in below]
            expected = sum(h * size for h, size in zip(heights, sizes)) * 2 / sum(window)
            assert float(mel[0, m, frame]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_sine_has_its_amplitude_at_its_bin():
    t = torch.arange(16000) / 16000
    spectrum = stft(0.3 * torch.sin(2 * math.pi * 1000 * t)[None], 1024)[0].abs()
    assert int(spectrum[:, 20].argmax()) == 64  # 1000 Hz / (16000 / 1024)
    assert float(spectrum[64, 20]) == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize(("n_fft", "n_mels"), [(64, 10), (128, 20), (1024, 80), (2048, 320)])
def test_every_mel_filter_hears_something(n_fft, n_mels):
    filters = mel_filters(16000, n_fft, n_mels)
    assert filters.shape == (n_fft // 2 + 1, n_mels)
    assert (filters.sum(0) > 0.4).all() and filters.max() <= 1


def test_mel_scale_is_inverted():
    hz = torch.tensor([0.0, 440.0, 8000.0])
    torch.testing.assert_close(mel_to_hz(hz_to_mel(hz)), hz, atol=1e-2, rtol=1e-4)


# no filter of these is narrower than a bin: there ours are widened, and both libraries leave some deaf
WIDE = [(16000, 1024, 40), (16000, 2048, 128), (24000, 2048, 80), (48000, 4096, 100)]


@pytest.mark.parametrize(("rate", "n_fft", "n_mels"), WIDE)
def test_mel_filters_equal_librosa(rate, n_fft, n_mels):
    librosa = optional("librosa")
    theirs = torch.from_numpy(librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, htk=True, norm=None)).T
    assert_near(mel_filters(rate, n_fft, n_mels), theirs, 1e-5)


@pytest.mark.parametrize(("rate", "n_fft", "n_mels"), WIDE)
def test_mel_filters_equal_torchaudio(rate, n_fft, n_mels):
    functional = optional("torchaudio.functional")
    theirs = functional.melscale_fbanks(n_fft // 2 + 1, 0.0, rate / 2, n_mels, rate, norm=None, mel_scale="htk")
    assert_near(mel_filters(rate, n_fft, n_mels), theirs, 1e-4)


@pytest.mark.parametrize(("rate", "n_fft", "n_mels"), WIDE)
@pytest.mark.parametrize("hop", [None, 160])
def test_mel_spectrogram_equals_librosa(rate, n_fft, n_mels, hop):
    librosa = optional("librosa")
    x = sounds(8000)
    theirs = librosa.feature.melspectrogram(
        y=x.numpy(), sr=rate, n_fft=n_fft, hop_length=hop or n_fft // 4, n_mels=n_mels, power=1.0, htk=True,
        norm=None, pad_mode="constant",
    )  # fmt: skip
    scale = 2 / torch.hann_window(n_fft).sum()  # ours are amplitudes of sines
    assert_near(mel_spectrogram(x, rate, n_fft, hop, n_mels), torch.from_numpy(theirs) * scale, 1e-5)


@pytest.mark.parametrize(("rate", "n_fft", "n_mels"), WIDE)
def test_mel_spectrogram_equals_torchaudio(rate, n_fft, n_mels):
    transforms = optional("torchaudio.transforms")
    x = sounds(8000)
    transform = transforms.MelSpectrogram(
        rate, n_fft, hop_length=n_fft // 4, n_mels=n_mels, power=1.0, norm=None, mel_scale="htk", pad_mode="constant"
    )
    scale = 2 / torch.hann_window(n_fft).sum()
    assert_near(mel_spectrogram(x, rate, n_fft, n_mels=n_mels), transform(x) * scale, 1e-4)


RATES = [(44100, 16000), (16000, 44100), (48000, 16000), (16000, 24000), (22050, 16000)]


def in_the_pass_band(n: int, from_rate: int, to_rate: int) -> Tensor:
    """(n,) noise up to 0.85 of the lower Nyquist frequency, where resamplers agree; quiet at both ends."""
    spectrum = torch.fft.rfft(sounds(n, torch.float64)[0])
    spectrum[int(0.85 * min(1, to_rate / from_rate) * len(spectrum)) :] = 0
    return torch.fft.irfft(spectrum, n=n) * torch.hann_window(n, dtype=torch.float64)


@pytest.mark.parametrize(("from_rate", "to_rate"), RATES)
def test_resampling_equals_librosa_in_the_pass_band(from_rate, to_rate):
    librosa = optional("librosa")
    x = in_the_pass_band(8000, from_rate, to_rate)
    theirs = librosa.resample(x.numpy(), orig_sr=from_rate, target_sr=to_rate, res_type="soxr_vhq")
    assert_near(resample(x, from_rate, to_rate), torch.from_numpy(theirs), 1e-3)


@pytest.mark.parametrize(("from_rate", "to_rate"), RATES)
def test_resampling_equals_scipy_in_the_pass_band_and_with_our_filter_everywhere(from_rate, to_rate):
    signal = optional("scipy.signal")
    x = in_the_pass_band(8000, from_rate, to_rate)
    common = math.gcd(from_rate, to_rate)
    up, down = to_rate // common, from_rate // common
    ours = resample(x, from_rate, to_rate)
    n_taps = 2 * 64 * max(up, down) + 1
    design = signal.firwin(n_taps, 1 / max(up, down), window=("kaiser", 8.0))  # longer and steeper than ours
    theirs = signal.resample_poly(x.numpy(), up, down, window=design)
    assert_near(ours, torch.from_numpy(theirs), 1e-3)

    x = sounds(8000, torch.float64)
    design = signal.firwin(
        2 * resample_module.ZERO_CROSSINGS * max(up, down) + 1,
        1 / max(up, down),
        window=("kaiser", resample_module.BETA),
    )
    theirs = signal.resample_poly(x.numpy(), up, down, axis=-1, window=design)
    assert_near(resample(x, from_rate, to_rate), torch.from_numpy(theirs), 2e-4)  # ours sum to one in each phase


@pytest.mark.parametrize(("from_rate", "to_rate"), RATES)
def test_resampling_equals_torchaudio_with_the_same_filter(from_rate, to_rate):
    functional = optional("torchaudio.functional")
    x = sounds(8000, torch.float64)
    theirs = functional.resample(
        x, from_rate, to_rate, lowpass_filter_width=resample_module.ZERO_CROSSINGS, rolloff=1.0,
        resampling_method="sinc_interp_kaiser", beta=resample_module.BETA,
    )  # fmt: skip
    assert_near(resample(x, from_rate, to_rate), theirs, 2e-4)


def test_filters_made_without_gradients_serve_where_they_are_needed():
    mel_filters.cache_clear()
    with torch.inference_mode():
        mel_spectrogram(torch.zeros(1, 4000), 16000)
    x = torch.randn(1, 4000, requires_grad=True)
    mel_spectrogram(x, 16000).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
