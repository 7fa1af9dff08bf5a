"""What a codec pays for a reconstructed sound: errors in mel spectra, in spectra, in complex spectra, and in samples.

SoundStream (arXiv:2107.03312, III-E) compares mel spectra over several windows, which leaves phase and the exact onset
free; the complex and the sample terms ask for them. Mel amplitudes are compared as logarithms, so that an error in a
fading tail counts as much as one at its start and noise added to silence is expensive. The amplitude and sample terms
are root mean squares, not mean absolute errors, whose best answer is silence while phase is still uncertain.
"""
# Shapes: B batch, N samples

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizers_av.audio.mel import mel_filters, stft

TINY = 1e-14  # under square roots, against division by zero in their gradients
WINDOWS = (128, 256, 512, 1024, 2048)
BINS_PER_MEL = 6  # mel filters per window: (window / 2) / this
FLOOR = 1e-4  # amplitudes below this (-80 dB) count as silence


@dataclass
class AudioLoss:
    mel: Tensor  # () mean |difference of log10 mel amplitudes|, in decades
    linear: Tensor  # () rms difference of amplitudes / rms amplitude (spectral convergence)
    complex: Tensor  # () mean |difference of complex spectra| / mean amplitude
    wave: Tensor  # () rms difference / rms sample


def audio_loss(output: Tensor, target: Tensor, sample_rate: int) -> AudioLoss:
    """Compare output with target, both (B, N) in [-1, 1]; relative terms divide by what the whole batch has.

    Dividing by the batch's level, not the clip's, keeps clips without sound from dominating. Always float32.
    """
    if output.shape != target.shape:
        raise ValueError(f"output {tuple(output.shape)} and target {tuple(target.shape)} must have the same shape")
    with torch.autocast(output.device.type, enabled=False):
        output, target = output.float(), target.float()
        mel, linear, complex_ = [], [], []
        for window in WINDOWS:
            a, b = stft(output, window), stft(target, window)
            filters = mel_filters(sample_rate, window, max(4, window // 2 // BINS_PER_MEL)).to(a.device).T
            size_a, size_b = _magnitude(a), _magnitude(b)
            scale = size_b.mean().clamp(min=FLOOR)
            log_a, log_b = (filters @ size_a + FLOOR).log10(), (filters @ size_b + FLOOR).log10()
            mel.append((log_a - log_b).abs().mean())
            linear.append(_relative_rms(size_a - size_b, size_b))
            complex_.append(_magnitude(a - b).mean() / scale)
        means = [torch.stack(values).mean() for values in (mel, linear, complex_)]
        return AudioLoss(means[0], means[1], means[2], _relative_rms(output - target, target))


def _magnitude(z: Tensor) -> Tensor:
    """|z| with a gradient at zero, where the plain one has none."""
    return (z.real.square() + z.imag.square() + TINY).sqrt()


def _relative_rms(error: Tensor, target: Tensor) -> Tensor:
    """() rms of the error over rms of the target; a silent target counts as FLOOR."""
    return (error.square().mean() + TINY).sqrt() / target.square().mean().sqrt().clamp(min=FLOOR)
