"""The audio discriminators, on complex spectra and on waveforms at several scales each, and their losses.

Spectra as in EnCodec (arXiv:2210.13438, sec. 3.4), waveforms as in SoundStream (arXiv:2107.03312, III-D). Three choices
keep them affordable on a CPU in bfloat16: the first convolution on spectra has a stride of 4 over frequency, those on
spectra are 16 channels wide where EnCodec's have 32, and the strided ones on waveforms are dense with kernel 12 and
double the width, where SoundStream's are grouped with kernel 41 and quadruple it (a several times slower kind there).
"""
# Shapes: B batch, N samples, C channels, T frames, F frequencies, n samples of a waveform that was shortened

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_av.audio.mel import stft

SLOPE = 0.2  # of the leaky ReLU
STRIDE, N_DOWN = 4, 4  # a waveform discriminator shortens N_DOWN times by STRIDE
TINY = 1e-5  # mean amplitude of features below which a layer counts as silent


@dataclass
class Judged:
    """What one discriminator says of a batch."""

    logits: Tensor  # any shape, float32, high for real
    features: list[Tensor]  # after each hidden layer


def _init(hidden: list[nn.Conv2d], head: nn.Conv2d) -> None:
    for conv in hidden:
        nn.init.kaiming_normal_(conv.weight, SLOPE)
    nn.init.zeros_(head.weight)  # what an untrained discriminator says is noise, and a trained codec must not follow it
    for conv in (*hidden, head):
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)


def _head(head: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return head(x.float())[:, 0]


class STFTDiscriminator(nn.Module):
    """Logits of patches of the complex spectrum in one window: dilated in time, strided over frequency."""

    def __init__(self, window: int, width: int = 16) -> None:
        super().__init__()
        self.window = window
        layers = [nn.Conv2d(2, width, (3, 9), stride=(1, 4), padding=(1, 4))]
        for dilation in (1, 2, 4):
            layers.append(nn.Conv2d(width, width, (3, 9), stride=(1, 2), dilation=(dilation, 1), padding=(dilation, 4)))
        layers.append(nn.Conv2d(width, width, 3, padding=1))
        self.hidden = nn.ModuleList(layers)
        self.head = nn.Conv2d(width, 1, 3, padding=1)
        _init(layers, self.head)

    def forward(self, samples: Tensor) -> Judged:
        """Samples (B, N) in [-1, 1] -> logits (B, T, F'), features (B, C, T, F')."""
        spectrum = torch.view_as_real(stft(samples, self.window))  # (B, F, T, 2), a sine of amplitude a has magnitude a
        x = spectrum.permute(0, 3, 2, 1).contiguous(memory_format=torch.channels_last)  # fast in bfloat16 on a CPU
        features = []
        for conv in self.hidden:
            x = F.leaky_relu(conv(x), SLOPE)
            features.append(x)
        return Judged(_head(self.head, x), features)


class WaveDiscriminator(nn.Module):
    """Logits of stretches of the waveform at 1 / scale of its sample rate, one for every 256 * scale samples.

    Convolutions are 2-D over height 1 with channels innermost, which is fast in bfloat16 on a CPU. Four samples are
    folded into the channels before a kernel of 3: that is a convolution of kernel 12 and stride 4.
    """

    def __init__(self, scale: int, width: int = 16, max_width: int = 256) -> None:
        super().__init__()
        self.scale = scale
        dims = [min(width * 2**i, max_width) for i in range(N_DOWN + 1)]
        layers = [nn.Conv2d(1, dims[0], (1, 15), padding=(0, 7))]
        layers += [nn.Conv2d(a * STRIDE, b, (1, 3), padding=(0, 1)) for a, b in pairwise(dims)]
        layers.append(nn.Conv2d(dims[-1], dims[-1], (1, 5), padding=(0, 2)))
        self.hidden = nn.ModuleList(layers)
        self.head = nn.Conv2d(dims[-1], 1, (1, 3), padding=(0, 1))
        _init(layers, self.head)
        # an input of one channel cannot say which layout it has, so the weights do
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, samples: Tensor) -> Judged:
        """Samples (B, N) in [-1, 1] -> logits (B, 1, n), features (B, C, 1, n)."""
        x = samples[:, None]  # (B, 1, N)
        if self.scale > 1:  # windows overlap by half, so that little of what cannot be kept is aliased
            x = F.avg_pool1d(x, 2 * self.scale, self.scale, self.scale // 2, count_include_pad=False)
        x = F.pad(x, (0, -x.shape[-1] % STRIDE**N_DOWN))[:, :, None]
        features = []
        for i, conv in enumerate(self.hidden):
            x = F.leaky_relu(conv(_fold(x) if 1 <= i <= N_DOWN else x), SLOPE)
            features.append(x)
        return Judged(_head(self.head, x), features)


def _fold(x: Tensor) -> Tensor:
    """Stack STRIDE neighbours: (B, C, 1, n) -> (B, STRIDE * C, 1, n / STRIDE), no copy if channels are innermost."""
    B, C, _, n = x.shape
    return x.permute(0, 2, 3, 1).reshape(B, 1, n // STRIDE, STRIDE * C).permute(0, 3, 1, 2)


class AudioDiscriminator(nn.Module):
    """A discriminator for each window of the spectrum and each scale of the waveform."""

    def __init__(
        self,
        windows: tuple[int, ...] = (2048, 1024, 512, 256, 128),
        scales: tuple[int, ...] = (1, 2, 4),
        stft_width: int = 16,
        wave_width: int = 16,
    ) -> None:
        super().__init__()
        if not windows + scales or any(w < 32 for w in windows) or any(s < 1 for s in scales):
            raise ValueError(f"windows={windows}, scales={scales}: need one or more, windows >= 32 and scales >= 1")
        if min(stft_width, wave_width) < 1:
            raise ValueError(f"stft_width={stft_width}, wave_width={wave_width}: need at least 1")
        self.min_samples = max(windows + tuple(STRIDE**N_DOWN * scale for scale in scales))
        self.discriminators = nn.ModuleList(
            [STFTDiscriminator(window, stft_width) for window in windows]
            + [WaveDiscriminator(scale, wave_width) for scale in scales]
        )

    def forward(self, samples: Tensor) -> list[Judged]:
        """Samples (B, N) in [-1, 1] -> what each discriminator says, windows before scales.

        N must reach the longest window and 256 * the largest scale.
        """
        if samples.ndim != 2 or samples.shape[1] < self.min_samples:
            raise ValueError(f"samples {tuple(samples.shape)}: need (B, N), N >= {self.min_samples}")
        return [discriminator(samples) for discriminator in self.discriminators]


def hinge_generator_loss(fake: list[Judged]) -> Tensor:
    """mean relu(1 - D(fake)), (), averaged over discriminators (arXiv:2107.03312, eq. 2)."""
    return torch.stack([F.relu(1 - f.logits).mean() for f in fake]).mean()


def hinge_discriminator_loss(real: list[Judged], fake: list[Judged]) -> Tensor:
    """mean relu(1 - D(real)) + mean relu(1 + D(fake)), (), averaged over discriminators (arXiv:2107.03312, eq. 1).

    `fake` judges samples that were detached. Logits of zero give 2.
    """
    return torch.stack(
        [F.relu(1 - r.logits).mean() + F.relu(1 + f.logits).mean() for r, f in zip(real, fake, strict=True)]
    ).mean()


def feature_matching_loss(real: list[Judged], fake: list[Judged]) -> Tensor:
    """mean |real - fake| / mean |real| of each layer, (), averaged over layers, then discriminators.

    EnCodec's relative L1 (arXiv:2210.13438, sec. 3.4). Features of real samples are constants.
    """
    losses = []
    for r, f in zip(real, fake, strict=True):
        layers = []
        for a, b in zip(r.features, f.features, strict=True):
            a = a.detach()
            error, size = (x.abs().mean(dtype=torch.float32) for x in (a - b, a))
            layers.append(error / size.clamp(min=TINY))
        losses.append(torch.stack(layers).mean())
    return torch.stack(losses).mean()
