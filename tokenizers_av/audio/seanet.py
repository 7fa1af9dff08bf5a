"""Causal convolutional encoder and decoder of the codec, after SoundStream (arXiv:2107.03312, III-A and III-B).

Choices that differ from the paper:
- The first `fold` samples are laid side by side as channels instead of being convolved one by one: causal, lossless,
  and the network never works at single-sample rate with few channels, where most of the time would go.
- Parameter-free shortcuts run round every down and up stage, and every learned branch starts at zero (DC-AE,
  arXiv:2410.10733), so that the untrained network already passes the signal through.
- Up-sampling unfolds channels into time instead of a transposed convolution, so block k of the output depends on
  latent frames 0..k and on nothing later.
- No biases: with ELU(0) = 0 silence is zero everywhere, and zero latents decode to exact silence.
"""
# Shapes: B batch, T frames at the rate of the stage, C channels; channels come last throughout

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_av.audio.config import AudioTokenizerConfig


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

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, n_in) -> (B, T, n_out)."""
        if self.kernel_size > 1:
            n_frames = x.shape[1]
            x = F.pad(x, (0, 0, self.context, 0))
            taps = range(0, self.context + 1, self.dilation)
            x = torch.cat([x[:, i : i + n_frames] for i in taps], dim=-1)
        return F.linear(x, self.weight)


class ResidualUnit(nn.Module):
    """Dilated convolution and a 1x1 convolution round which the input is added; starts as the identity."""

    def __init__(self, width: int, kernel_size: int, dilation: int):
        super().__init__()
        self.conv = CausalConv(width, width, kernel_size, dilation)
        self.out = CausalConv(width, width, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return x + self.out(F.elu(self.conv(F.elu(x))))


class Down(nn.Module):
    """Fold `stride` frames into one; the shortcut averages groups of folded channels."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.stride, self.group = stride, stride * n_in // n_out
        self.conv = CausalConv(stride * n_in, n_out, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, stride * T, n_in) -> (B, T, n_out)."""
        x = x.reshape(x.shape[0], x.shape[1] // self.stride, self.stride * x.shape[2])
        return x.unflatten(-1, (-1, self.group)).mean(-1) + self.conv(F.elu(x))


class Up(nn.Module):
    """Unfold one frame into `stride`; the shortcut repeats channels: the mirror of Down."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.stride, self.repeats = stride, stride * n_out // n_in
        self.conv = CausalConv(n_in, stride * n_out, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, n_in) -> (B, stride * T, n_out)."""
        y = x.repeat_interleave(self.repeats, dim=-1) + self.conv(F.elu(x))
        return y.reshape(x.shape[0], x.shape[1] * self.stride, y.shape[2] // self.stride)


class Encoder(nn.Module):
    """Samples to latents; latent frame k sees samples before `(k + 1) * hop_length` only."""

    def __init__(self, config: AudioTokenizerConfig):
        super().__init__()
        self.fold = config.fold
        widths = config.widths
        layers: list[nn.Module] = [CausalConv(config.fold, widths[0], config.kernel_size)]
        for i, width in enumerate(widths):
            layers += [ResidualUnit(width, config.kernel_size, dilation) for dilation in config.dilations]
            if i < len(config.strides):
                layers.append(Down(width, widths[i + 1], config.strides[i]))
        self.layers = nn.Sequential(*layers)
        self.out = CausalConv(widths[-1], config.codebook_dim)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, F * hop_length) -> (B, F, codebook_dim)."""
        return self.out(F.elu(self.layers(samples.reshape(samples.shape[0], samples.shape[1] // self.fold, self.fold))))


class Decoder(nn.Module):
    """Latents to samples, mirroring the encoder."""

    def __init__(self, config: AudioTokenizerConfig):
        super().__init__()
        widths, strides = config.widths[::-1], config.strides[::-1]
        layers: list[nn.Module] = [CausalConv(config.codebook_dim, widths[0], config.kernel_size)]
        for i, width in enumerate(widths):
            layers += [ResidualUnit(width, config.kernel_size, dilation) for dilation in config.dilations]
            if i < len(strides):
                layers.append(Up(width, widths[i + 1], strides[i]))
        self.layers = nn.Sequential(*layers)
        self.out = CausalConv(widths[-1], config.fold, config.kernel_size)

    @property
    def context_frames(self) -> int:
        """Past latent frames that can influence a block of samples; a chunk decoded after that many is exact."""
        context, step = 0.0, 1.0  # in latent frames
        for layer in [*self.layers, self.out]:
            if isinstance(layer, Up):
                step /= layer.stride
            elif isinstance(layer, ResidualUnit):
                context += layer.conv.context * step
            elif isinstance(layer, CausalConv):
                context += layer.context * step
        return int(context) + 1

    def forward(self, latents: Tensor) -> Tensor:
        """(B, F, codebook_dim) -> (B, F * hop_length)."""
        return self.out(F.elu(self.layers(latents))).flatten(1)
