"""Public audio codecs beside ours, at equal parameters, frame rate and bits: `EncodecModel` and `DacModel` of
transformers, built from their configs with random weights. Nothing is installed: `pip install transformers`.

Every codec here takes mono samples (B, N) and gives ids (B, Q, N / 320) of as many codebooks as ours has. What is
published stays: EnCodec is causal, with its LSTM, ELU and reflecting pads, strides 2 4 5 8; DAC has Snake, its dilated
units of kernel 7 and the strides of its 16 kHz model, 2 4 5 8; it looks ahead, and so has no streaming counterpart.
Weight norm is folded into the weights, as one does for inference. Widths are searched within +-10 % of the parameters
asked for (codebooks that are buffers are not counted, neither ours nor theirs), for the CPU's kernels in multiples of 8
but for the first width, which may be one of 4: the narrowest that fits, since at full rate it costs the most.
"""
# Shapes: B batch, N samples, Q codebooks, F = N / hop_length latent frames, C channels, T frames inside a network

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import video_peers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from video_peers import MODES, Contestant, Mode, fitting

from tokenizers_av.audio import AudioTokenizer, AudioTokenizerConfig

STRIDES = (2, 4, 5, 8)  # EnCodec's, and those of DAC for 16 kHz
HOP = 320


class Codec(Contestant):
    """An audio codec and how it is called."""

    modes = MODES

    def encode(self, samples: Tensor) -> Tensor:
        """(B, N) -> ids (B, Q, F)."""
        raise NotImplementedError

    def decode(self, ids: Tensor) -> Tensor:
        """Ids (B, Q, F) -> about (B, N)."""
        raise NotImplementedError

    def in_mode(self, mode: Mode) -> Codec:
        """A copy of the codec in this mode."""
        made = copy.copy(self)
        made.model = copy.deepcopy(self.model).eval()
        if mode.channels_last:
            _lay_flat(made.model)
        return mode.apply(made)


class Ours(Codec):
    """Channels come last in it by construction, and it computes in the dtype of its weights: no modes for either."""

    modes = tuple(mode for mode in MODES if not mode.channels_last and not mode.autocast)

    def __init__(self, config: AudioTokenizerConfig, name: str = "ours") -> None:
        super().__init__(AudioTokenizer(config))
        self.name = name
        self.about = f"AudioTokenizer: fold {config.fold}, strides {config.strides}, widths {config.widths}, causal"

    def encode(self, samples: Tensor) -> Tensor:
        return self.model.encode(samples)

    def decode(self, ids: Tensor) -> Tensor:
        return self.model.decode(ids)


class Encodec(Codec):
    """EncodecModel of transformers, its defaults (those of the 24 kHz model) but for widths, rate and codebooks.

    Published latents are four times as wide as the first convolution; this width alone may differ, as little as it
    must and at most 10 times, so that the others can be round: it occurs at the frame rate only."""

    def __init__(self, n_parameters: int, config: AudioTokenizerConfig) -> None:
        from transformers import EncodecConfig, EncodecModel

        bits = (config.codebook_size - 1).bit_length()
        self.bandwidth = config.n_codebooks * bits * config.sample_rate / HOP / 1000  # kbit/s; at 2.0 four codebooks

        def build(widths: tuple[int, int]) -> nn.Module:
            filters, latent = widths
            model = EncodecModel(
                EncodecConfig(
                    num_filters=filters,
                    hidden_size=latent,
                    upsampling_ratios=STRIDES[::-1],
                    sampling_rate=config.sample_rate,
                    target_bandwidths=(self.bandwidth,),
                    codebook_size=config.codebook_size,
                )
            )
            return without_weight_norm(model)

        latents = {n: sorted(range(16, 10 * n + 1, 16), key=lambda w: abs(w - 4 * n)) for n in range(4, 129, 4)}
        groups = ([(n, w)] for n in latents for w in latents[n])
        filters, latent = widths = fitting(n_parameters, groups, build)
        super().__init__(build(widths))
        for layer in self.model.quantizer.layers:
            layer.codebook.embed.normal_()  # zeros otherwise, and all ids the same
        self.name = "encodec"
        self.about = (f"transformers EncodecModel: widths {tuple(filters * 2**i for i in range(5))}, latents {latent}, "
                      f"{self.model.config.num_lstm_layers} LSTM layers, causal, weight norm folded")  # fmt: skip

    def encode(self, samples: Tensor) -> Tensor:
        return self.model.encode(samples[:, None], bandwidth=self.bandwidth, return_dict=False)[0][0]

    def decode(self, ids: Tensor) -> Tensor:
        return self.model.decode(ids[None], [None], return_dict=False)[0][:, 0]


class Dac(Codec):
    """DacModel of transformers, its defaults but for widths, strides and codebooks.

    As published its decoder begins 24 times as wide as its encoder; here 20 to 28 times, so that its last width, one
    sixteenth of the first, is round. It decodes a few samples less than it was given."""

    def __init__(self, n_parameters: int, config: AudioTokenizerConfig) -> None:
        from transformers import DacConfig, DacModel

        def build(widths: tuple[int, int]) -> nn.Module:
            first, widest = widths
            return without_weight_norm(  # it has none so far; releases may differ
                DacModel(
                    DacConfig(
                        encoder_hidden_size=first,
                        decoder_hidden_size=widest,
                        downsampling_ratios=STRIDES,
                        sampling_rate=config.sample_rate,
                        n_codebooks=config.n_codebooks,
                        codebook_size=config.codebook_size,
                    )
                )
            )

        steps = ((n, 128 if n % 8 == 0 else 64) for n in range(4, 129, 4))
        groups = ([(n, w) for w in range(step, 28 * n + 1, step) if w >= 20 * n] for n, step in steps)
        first, widest = widths = fitting(n_parameters, filter(None, groups), build)
        super().__init__(build(widths))
        self.name = "dac"
        self.about = (f"transformers DacModel: widths {tuple(first * 2**i for i in range(5))} down, "
                      f"{tuple(widest // 2**i for i in range(5))} up, Snake, looks ahead")  # fmt: skip

    def encode(self, samples: Tensor) -> Tensor:
        return self.model.encode(samples[:, None], return_dict=False)[2]

    def decode(self, ids: Tensor) -> Tensor:
        return self.model.decode(audio_codes=ids, return_dict=False)[0]


def without_weight_norm(model: nn.Module) -> nn.Module:
    """The same model, its parametrized weights computed once and for all."""
    for module in list(model.modules()):
        if nn.utils.parametrize.is_parametrized(module, "weight"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    return model


class FlatConv(nn.Module):
    """A convolution over time as one over an image of height 1: images have a channels-last layout, sequences none."""

    def __init__(self, conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
        super().__init__()
        assert conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
        self.transposed = conv.transposed
        self.weight = nn.Parameter(conv.weight.detach()[:, :, None])
        self.bias = conv.bias
        self.kernel_size, self.stride = conv.kernel_size, conv.stride  # some read them
        self.options: dict[str, Any] = {"stride": (1, *conv.stride), "padding": (0, *conv.padding),
                                        "dilation": (1, *conv.dilation), "groups": conv.groups}  # fmt: skip
        if conv.transposed:
            self.options["output_padding"] = (0, *conv.output_padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T) -> (B, C_out, T'), channels adjacent in memory."""
        convolve = F.conv_transpose2d if self.transposed else F.conv2d
        x = x[:, :, None].contiguous(memory_format=torch.channels_last)
        return convolve(x, self.weight, self.bias, **self.options)[:, :, 0]


def _lay_flat(model: nn.Module) -> None:
    """Replace all convolutions over time; `Mode.apply` then lays their weights out."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv1d | nn.ConvTranspose1d):
                setattr(module, name, FlatConv(child))


class _Multiplications(TorchDispatchMode):
    """Counts the floating-point operations of products and convolutions by the type they are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            n = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            self.counts[out.dtype] = self.counts.get(out.dtype, 0) + n
        elif str(packet) == "mkldnn._linear_pointwise":
            n = 2 * args[0].shape[-1] * out.numel()
            self.counts[out.dtype] = self.counts.get(out.dtype, 0) + n
        elif packet is torch.ops.aten.mkldnn_rnn_layer:  # an LSTM layer: x (T, B, C), weights of x and of the state
            x, w_x, w_state = args[:3]
            n = 2 * x.shape[0] * x.shape[1] * (w_x.numel() + w_state.numel())
            self.counts[out[0].dtype] = self.counts.get(out[0].dtype, 0) + n
        return out


@contextlib.contextmanager
def bf16_share() -> Iterator[Callable[[], float]]:
    """Yields a function that says which share of the multiplications within was in bfloat16."""
    with _Multiplications() as seen:
        yield lambda: seen.counts.get(torch.bfloat16, 0) / max(1, sum(seen.counts.values()))


def build_peers(n_parameters: int, config: AudioTokenizerConfig, only: Iterable[str]) -> list[Codec]:
    """The peers named in `only` with about `n_parameters` each, as many codebooks and the same rates as `config`.

    Raises ValueError for an unknown name and for another hop than 320 samples. What is missing is said on stderr.
    """
    if config.hop_length != HOP:
        raise ValueError(f"hop_length={config.hop_length}: the peers are built for {HOP}")
    makers: dict[str, Callable[[int, AudioTokenizerConfig], Codec]] = {"encodec": Encodec, "dac": Dac}
    peers = []
    for name in only:
        if name not in makers:
            raise ValueError(f"unknown peer {name!r}, expected one of {', '.join(makers)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                peers.append(makers[name](n_parameters, config))
            except ImportError as error:
                print(f"peer {name}: left out ({error})", file=sys.stderr)
    return peers


def conditions() -> dict[str, Any]:
    """Hardware, versions and commit that a figure depends on."""
    found = video_peers.conditions()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["versions"]["transformers"] = importlib.metadata.version("transformers")
    return found
