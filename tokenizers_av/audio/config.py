"""Configuration and named sizes of the audio tokenizer."""

from dataclasses import dataclass
from math import prod
from typing import Any

ACTIVATIONS = ("elu", "snake")


@dataclass(frozen=True, kw_only=True)
class AudioTokenizerConfig:
    """Sizes of a SoundStream-like codec; `hop_length = fold * prod(strides)` samples make one column of ids.

    `widths[0]` channels work at `sample_rate / fold`, `widths[i + 1]` after `strides[i]`.
    """

    sample_rate: int = 16000
    fold: int = 20  # samples laid side by side as channels before the first convolution
    strides: tuple[int, ...] = (4, 4)
    widths: tuple[int, ...] = (96, 192, 192)
    dilations: tuple[int, ...] = (1, 3, 9)
    kernel_size: int = 3
    activation: str = "elu"  # as in SoundStream, or "snake" as in DAC
    n_codebooks: int = 4
    codebook_size: int = 1024
    codebook_dim: int = 32  # few dimensions: nearest neighbours mean more there, and more codes are used
    codebook_decay: float = 0.95  # SoundStream III-C has 0.99, for trainings a hundred times as long
    dead_code_threshold: float = 0.1  # a code used less often than this per batch (moving average) is replaced
    quantizer_dropout: float = 0.25  # share of training clips that keep only their first 1..n levels

    def __post_init__(self) -> None:
        for name in ("strides", "widths", "dilations"):  # JSON turns tuples into lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        counts = ("sample_rate", "fold", "kernel_size", "n_codebooks", "codebook_size", "codebook_dim")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if min((*self.strides, *self.widths, *self.dilations), default=1) < 1:
            raise ValueError(
                f"strides={self.strides}, widths={self.widths}, dilations={self.dilations}: "
                "every number must be at least 1"
            )
        if len(self.widths) != len(self.strides) + 1:
            raise ValueError(f"widths={self.widths} needs one entry more than strides={self.strides}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        if not 0 <= self.quantizer_dropout <= 1:
            raise ValueError(f"quantizer_dropout={self.quantizer_dropout} must lie in [0, 1]")
        if not 0 <= self.codebook_decay < 1:
            raise ValueError(f"codebook_decay={self.codebook_decay} must lie in [0, 1)")

    @property
    def hop_length(self) -> int:
        return self.fold * prod(self.strides)

    @property
    def frame_rate(self) -> float:
        """Columns of ids per second."""
        return self.sample_rate / self.hop_length


# the widths of the paper's width 32 at the rates that are left: 128 = 4 x 32, each later stage twice as wide
_BASE = {"widths": (128, 256, 512), "codebook_dim": 64}
AUDIO_PRESETS: dict[str, dict[str, Any]] = {
    "debug": {"widths": (8, 16, 16), "dilations": (1,), "codebook_size": 16, "codebook_dim": 4},
    "tiny": {},
    "base": _BASE,
    "base-24khz": {**_BASE, "sample_rate": 24000, "n_codebooks": 8},  # the paper's 75 columns a second, 6 kbps
}


def audio_tokenizer_config(preset: str, **overrides: Any) -> AudioTokenizerConfig:
    """The config of a named preset, some fields replaced."""
    if preset not in AUDIO_PRESETS:
        raise ValueError(f"unknown preset {preset!r}, expected one of {sorted(AUDIO_PRESETS)}")
    return AudioTokenizerConfig(**{**AUDIO_PRESETS[preset], **overrides})
