"""Mel spectrograms on torch.stft (HTK mel scale, triangular filters of height one, amplitudes of sines)."""

from functools import lru_cache

import torch
from torch import Tensor


def hz_to_mel(hz: Tensor) -> Tensor:
    """HTK mel scale: about linear below 1 kHz, logarithmic above."""
    return 2595 * torch.log10(1 + hz / 700)


def mel_to_hz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)


@lru_cache(maxsize=64)
def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """(n_fft // 2 + 1, n_mels) triangles evenly spaced in mel from 0 Hz to the Nyquist frequency.

    A filter narrower than a bin would miss every bin: each side of a triangle is at least one bin wide.
    """
    with torch.inference_mode(False):  # kept for later calls, which may need gradients
        return _triangles(sample_rate, n_fft, n_mels)


def _triangles(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    hz = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    edges = mel_to_hz(torch.linspace(0, float(hz_to_mel(hz[-1])), n_mels + 2, dtype=torch.float64))
    centre, bin_width = edges[1:-1], sample_rate / n_fft
    rise = (centre - edges[:-2]).clamp(min=bin_width)
    fall = (edges[2:] - centre).clamp(min=bin_width)
    up = 1 + (hz[:, None] - centre) / rise
    down = 1 - (hz[:, None] - centre) / fall
    return torch.minimum(up, down).clamp(min=0).float()


def stft(samples: Tensor, n_fft: int, hop: int | None = None) -> Tensor:
    """Complex spectrum, Hann window, frames centred (zeros outside): (B, N) -> (B, n_fft // 2 + 1, 1 + N // hop).

    Scaled so that a sine of amplitude a has magnitude a at its bin. Float32 even under autocast.
    """
    with torch.autocast(samples.device.type, enabled=False):
        window = torch.hann_window(n_fft, device=samples.device)
        spectrum = torch.stft(
            samples.float(),
            n_fft,
            hop or n_fft // 4,
            window=window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return spectrum * (2 / window.sum())


def mel_spectrogram(
    samples: Tensor, sample_rate: int, n_fft: int = 1024, hop: int | None = None, n_mels: int = 80
) -> Tensor:
    """Mel amplitudes: (B, N) in [-1, 1] -> (B, n_mels, 1 + N // hop) >= 0; hop is n_fft // 4 if None."""
    magnitude = stft(samples, n_fft, hop).abs()
    filters = mel_filters(sample_rate, n_fft, n_mels).to(magnitude.device)
    with torch.autocast(samples.device.type, enabled=False):
        return filters.T @ magnitude


def log_mel(
    samples: Tensor, sample_rate: int, n_fft: int = 1024, hop: int | None = None, n_mels: int = 80, floor: float = 1e-5
) -> Tensor:
    """log10 of the mel amplitudes, quieter ones raised to `floor`: (B, n_mels, frames) >= log10(floor)."""
    return mel_spectrogram(samples, sample_rate, n_fft, hop, n_mels).clamp(min=floor).log10()
