"""Measures of a reconstruction of sound: mel distance, SI-SDR, and how many codes are in use."""
# Shapes: B batch, N samples, Q levels, F frames

import torch
from torch import Tensor

from tokenizers_av.audio.mel import log_mel

MEL_WINDOWS = ((128, 10), (256, 20), (512, 40), (1024, 80), (2048, 160))  # (n_fft, n_mels)


def mel_distance(output: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Mean |difference of log10 mel amplitudes| over five windows: (B, N), (B, N) -> (B,), in decades, 0 = equal.

    Amplitudes below 1e-5 (-100 dB) count as 1e-5. One decade is 20 dB.
    """
    per_window = []
    for n_fft, n_mels in MEL_WINDOWS:
        a, b = (log_mel(x, sample_rate, n_fft, n_mels=n_mels) for x in (output, target))
        per_window.append((a - b).abs().mean((1, 2)))
    return torch.stack(per_window).mean(0)


def si_sdr(output: Tensor, target: Tensor, eps: float = 1e-8) -> Tensor:
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
