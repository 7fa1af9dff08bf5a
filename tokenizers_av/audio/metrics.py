"""Measures of a reconstruction of sound: mel distance, SI-SDR, and how many codes are in use."""
# Shapes: B batch, N samples, Q levels, F frames

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenizers_av.audio.mel import log_mel

MEL_WINDOWS = ((128, 10), (256, 20), (512, 40), (1024, 80), (2048, 160))  # (n_fft, n_mels)
PIECE = 10.0  # seconds of a long sound whose mel distance is taken at once
SILENT = 1e-8  # energy of a target below which there is nothing to compare with


def mel_distance(output: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Mean |difference of log10 mel amplitudes| over five windows: (B, N), (B, N) -> (B,), in decades, 0 = equal.

    Amplitudes below 1e-5 (-100 dB) count as 1e-5. One decade is 20 dB.
    """
    per_window = []
    for n_fft, n_mels in MEL_WINDOWS:
        a, b = (log_mel(x, sample_rate, n_fft, n_mels=n_mels) for x in (output, target))
        per_window.append((a - b).abs().mean((1, 2)))
    return torch.stack(per_window).mean(0)


def si_sdr(output: Tensor, target: Tensor, eps: float = SILENT) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB: (B, N), (B, N) -> (B,); NaN where the target is silent.

    10 log10(|s|^2 / |s - output|^2) with s the projection of the output on the target, means removed.
    """
    output, target = (x.double() - x.double().mean(-1, keepdim=True) for x in (output, target))
    power = target.square().sum(-1)
    scale = (output * target).sum(-1) / power.clamp(min=eps)
    signal = scale[:, None] * target
    ratio = signal.square().sum(-1).clamp(min=eps) / (output - signal).square().sum(-1).clamp(min=eps)
    return torch.where(power > eps, 10 * ratio.log10(), torch.nan).float()


def share_of_codes_used(ids: Tensor, codebook_size: int) -> list[float]:
    """Per level, the share of the codebook that occurs in ids (B, Q, F)."""
    return [level.unique().numel() / codebook_size for level in ids.unbind(1)]


class SoundDistance:
    """The measures of one sound of any length, added up piece by piece in constant memory.

    SI-SDR and SNR are those of the whole, however it is cut. The mel distance is the mean over pieces of ten seconds,
    weighted by their lengths: of a shorter sound exactly `mel_distance`.
    """

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.n_samples = 0
        # Means of the target and of the error, then sums of products about these means: sums of plain squares would
        # lose a small error under a large offset.
        self._means = torch.zeros(2, dtype=torch.float64)
        self._products = torch.zeros(2, 2, dtype=torch.float64)
        self._mel_sum = 0.0  # distance times samples, of the pieces that are complete
        self._waiting = torch.zeros(2, 0)  # output and target (2, n) of the piece that is not

    @torch.no_grad()
    def add(self, output: Tensor, target: Tensor) -> None:
        """The next samples (N,) of both, any N >= 0; raises ValueError where the lengths differ."""
        if output.ndim != 1 or output.shape != target.shape:
            raise ValueError(f"samples of shapes {tuple(output.shape)} and {tuple(target.shape)}: expected (N,) twice")
        piece = max(1, round(PIECE * self.sample_rate))
        for a, b in zip(output.split(piece), target.split(piece), strict=True):
            pair = torch.stack([a.float(), b.float()]).cpu()
            self._add_products(pair)
            self._waiting = torch.cat([self._waiting, pair], dim=1)
            if self._waiting.shape[1] >= piece:
                self._mel_sum += piece * self._mel(self._waiting[:, :piece])
                self._waiting = self._waiting[:, piece:].clone()

    def _add_products(self, pair: Tensor) -> None:
        n = pair.shape[1]
        if not n:
            return
        output, target = pair.double()
        values = torch.stack([target, output - target])
        means = values.mean(1)
        values = values - means[:, None]
        total, step = self.n_samples + n, means - self._means
        self._products += values @ values.T + step.outer(step) * (self.n_samples * n / total)
        self._means += step * (n / total)
        self.n_samples = total

    def _mel(self, pair: Tensor) -> float:
        return float(mel_distance(pair[:1], pair[1:], self.sample_rate))

    @property
    def seconds(self) -> float:
        return self.n_samples / self.sample_rate

    @property
    def mel_distance(self) -> float:
        """In decades; NaN without samples."""
        n = self._waiting.shape[1]
        total = self._mel_sum + (n * self._mel(self._waiting) if n else 0.0)
        return total / self.n_samples if self.n_samples else math.nan

    @property
    def si_sdr(self) -> float:
        """In dB, as `si_sdr` of the whole; NaN where the target is silent."""
        (power, both), (_, error) = self._products.tolist()
        if power <= SILENT:
            return math.nan
        share = both / power  # of the target in the error
        signal, noise = (1 + share) ** 2 * power, error - share * both
        return 10 * math.log10(max(signal, SILENT) / max(noise, SILENT))

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio in dB, means and scale left as they are; NaN where the target is silent."""
        power, error = (self._products.diagonal() + self.n_samples * self._means.square()).tolist()
        if power <= SILENT:
            return math.nan
        return 10 * math.log10(power / error) if error > 0 else math.inf
