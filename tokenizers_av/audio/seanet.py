"""Causal convolutional encoder and decoder of the codec, after SoundStream (arXiv:2107.03312, III-A and III-B).

Choices that differ from the paper:
- The first `fold` samples are laid side by side as channels instead of being convolved one by one: causal, lossless,
  and the network never works at single-sample rate with few channels, where most of the time would go.
- Parameter-free shortcuts run round every down and up stage, and every learned branch starts at zero (DC-AE,
  arXiv:2410.10733), so that the untrained network already passes the signal through.
- Up-sampling unfolds channels into time instead of a transposed convolution, so block k of the output depends on
  latent frames 0..k and on nothing later.
- Residual units run at the rate of the latents too, where parameters cost the least time.
- No biases: ELU(0) = Snake(0) = 0, so silence is zero everywhere and zero latents decode to exact silence.
"""
# Shapes: B batch, T frames at the rate of the stage, C channels; channels come last throughout

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_av.audio.config import AudioTokenizerConfig
from tokenizers_av.packed import frozen_linear


class Stream:
    """Lets a network be computed in pieces: what its convolutions have seen last, and their matrices, laid out once.

    The weights must not change while it is in use.
    """

    def __init__(self) -> None:
        self.seen: dict[nn.Module, Tensor] = {}  # (B, context, C) of each convolution
        self._products: dict[nn.Module, Callable[[Tensor], Tensor]] = {}

    def product(self, conv: CausalConv) -> Callable[[Tensor], Tensor]:
        """(..., I) -> (..., O) with the weight of `conv`."""
        if conv not in self._products:
            self._products[conv] = frozen_linear(conv.weight)
        return self._products[conv]


class CausalConv(nn.Module):
    """Convolution over the present and past frames, as one matrix product over shifted copies side by side."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int = 1, dilation: int = 1, zero: bool = False):
        super().__init__()
        self.kernel_size, self.dilation = kernel_size, dilation
        self.weight = nn.Parameter(torch.zeros(n_out, kernel_size * n_in))
        if not zero:
            nn.init.normal_(self.weight, std=(kernel_size * n_in) ** -0.5)

    @property
    def context(self) -> int:
        """How many past frames reach the output."""
        return (self.kernel_size - 1) * self.dilation

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, T, n_in) -> (B, T, n_out)."""
        if self.kernel_size > 1:
            n_frames = x.shape[1]
            past = None if stream is None else stream.seen.get(self)
            x = F.pad(x, (0, 0, self.context, 0)) if past is None else torch.cat([past, x], dim=1)
            if stream is not None:
                stream.seen[self] = x[:, n_frames:].clone()  # a slice would keep all of it
            x = torch.cat([x[:, i : i + n_frames] for i in range(0, self.context + 1, self.dilation)], dim=-1)
        return F.linear(x, self.weight) if stream is None else stream.product(self)(x)


class ELU(nn.Module):
    """ELU (arXiv:1511.07289). Without gradients each value gets the same bits wherever it stands: the loops of `F.elu`
    end in other arithmetic than they begin, and a frame alone would differ from the frame in a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return F.elu(x) if torch.is_grad_enabled() else torch.maximum(x, x.clamp(max=0).expm1_())


class Snake(nn.Module):
    """x + sin^2(a x) / a with a learned `a` for each channel (arXiv:2006.08195; DAC, arXiv:2306.06546): waves stay
    waves, and harmonics come easily."""

    def __init__(self, width: int):
        super().__init__()
        self.a = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return x + (self.a * x).sin().square() / (self.a + 1e-9)


def activation(config: AudioTokenizerConfig, width: int) -> nn.Module:
    """What stands between the convolutions of `width` channels."""
    return Snake(width) if config.activation == "snake" else ELU()


class ResidualUnit(nn.Module):
    """Dilated convolution and a 1x1 convolution round which the input is added; starts as the identity."""

    def __init__(self, config: AudioTokenizerConfig, width: int, dilation: int):
        super().__init__()
        self.act1, self.act2 = activation(config, width), activation(config, width)
        self.conv = CausalConv(width, width, config.kernel_size, dilation)
        self.out = CausalConv(width, width, zero=True)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return x + self.out(self.act2(self.conv(self.act1(x), stream)), stream)


class Down(nn.Module):
    """Fold `stride` frames into one; the shortcut averages groups of folded channels."""

    def __init__(self, config: AudioTokenizerConfig, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.stride, self.n_out = stride, n_out
        self.act = activation(config, stride * n_in)
        self.conv = CausalConv(stride * n_in, n_out, zero=True)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, stride * T, n_in) -> (B, T, n_out)."""
        x = x.reshape(x.shape[0], x.shape[1] // self.stride, self.stride * x.shape[2])
        return F.adaptive_avg_pool1d(x, self.n_out) + self.conv(self.act(x), stream)


class Up(nn.Module):
    """Unfold one frame into `stride`; the shortcut repeats channels: the mirror of Down."""

    def __init__(self, config: AudioTokenizerConfig, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.act = activation(config, n_in)
        self.conv = CausalConv(n_in, stride * n_out, zero=True)
        self.register_buffer("source", torch.arange(stride * n_out) * n_in // (stride * n_out), persistent=False)

    source: Tensor  # (stride * n_out,) channels that are repeated

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, T, n_in) -> (B, stride * T, n_out)."""
        y = x.index_select(-1, self.source) + self.conv(self.act(x), stream)
        return y.reshape(x.shape[0], x.shape[1] * self.stride, y.shape[2] // self.stride)


class Encoder(nn.Module):
    """Samples to latents; latent frame k sees samples before `(k + 1) * hop_length` only."""

    def __init__(self, config: AudioTokenizerConfig):
        super().__init__()
        self.fold = config.fold
        widths = config.widths
        layers: list[nn.Module] = [CausalConv(config.fold, widths[0], config.kernel_size)]
        for i, width in enumerate(widths):
            layers += [ResidualUnit(config, width, dilation) for dilation in config.dilations]
            if i < len(config.strides):
                layers.append(Down(config, width, widths[i + 1], config.strides[i]))
        self.layers = nn.ModuleList(layers)
        self.act = activation(config, widths[-1])
        self.out = CausalConv(widths[-1], config.codebook_dim)

    def forward(self, samples: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, F * hop_length) -> (B, F, codebook_dim)."""
        x = samples.reshape(samples.shape[0], samples.shape[1] // self.fold, self.fold)
        for layer in self.layers:
            x = layer(x, stream)
        return self.out(self.act(x), stream)


class Decoder(nn.Module):
    """Latents to samples, mirroring the encoder."""

    def __init__(self, config: AudioTokenizerConfig):
        super().__init__()
        widths, strides = config.widths[::-1], config.strides[::-1]
        layers: list[nn.Module] = [CausalConv(config.codebook_dim, widths[0], config.kernel_size)]
        for i, width in enumerate(widths):
            layers += [ResidualUnit(config, width, dilation) for dilation in config.dilations]
            if i < len(strides):
                layers.append(Up(config, width, widths[i + 1], strides[i]))
        self.layers = nn.ModuleList(layers)
        self.act = activation(config, widths[-1])
        self.out = CausalConv(widths[-1], config.fold, config.kernel_size)

    def forward(self, latents: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, F, codebook_dim) -> (B, F * hop_length)."""
        x = latents
        for layer in self.layers:
            x = layer(x, stream)
        return self.out(self.act(x), stream).flatten(1)
