"""Sizes of the video tokenizer, and the arithmetic between frames and latent frames."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VideoTokenizerConfig:
    """A causal 3-D autoencoder with one bit per latent channel.

    Space is reduced by `patch` and then once by 2; time by 4, late, in two steps of 2.
    """

    bits: int = 12  # latent channels = log2 of the codebook size
    patch: int = 4  # pixels folded into channels before the first convolution
    dim: int = 96  # channels at 1/patch of the height and width
    latent_dim: int = 192  # channels at the latent height and width
    n_blocks: int = 2  # residual blocks at 1/patch, in the encoder and in the decoder
    n_latent_blocks: int = 2  # residual blocks at the latent height and width, per temporal resolution
    entropy_group: int = 6  # bits whose joint entropy is kept high together

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 30:
            raise ValueError(f"bits={self.bits}: need 1 to 30")
        for name in ("patch", "dim", "latent_dim", "entropy_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: need at least 1")
        if (4 * self.dim) % self.latent_dim:
            raise ValueError(f"latent_dim={self.latent_dim}: 4 * dim = {4 * self.dim} must be a multiple of it")

    @property
    def codebook_size(self) -> int:
        return 1 << self.bits

    @property
    def spatial_stride(self) -> int:
        return 2 * self.patch

    @property
    def temporal_stride(self) -> int:
        return 4


VIDEO_PRESETS: dict[str, dict] = {
    "debug": {"bits": 8, "dim": 16, "latent_dim": 16, "n_blocks": 1, "n_latent_blocks": 1, "entropy_group": 4},
    "tiny": {"bits": 12, "dim": 96, "latent_dim": 192},
}


def video_tokenizer_config(preset: str, **overrides: int) -> VideoTokenizerConfig:
    """The config of a named preset with some fields replaced; raises ValueError for an unknown name."""
    if preset not in VIDEO_PRESETS:
        raise ValueError(f"unknown video tokenizer preset {preset!r}, expected one of {sorted(VIDEO_PRESETS)}")
    return VideoTokenizerConfig(**{**VIDEO_PRESETS[preset], **overrides})


def n_latent_frames(n_frames: int, temporal_stride: int = 4) -> int:
    """Latent frames for a clip of `n_frames` >= 1: the first is coded alone, then one for each started group."""
    if n_frames < 1:
        raise ValueError(f"n_frames={n_frames}: need at least 1")
    return 1 + -(-(n_frames - 1) // temporal_stride)


def n_decoded_frames(n_latent: int, temporal_stride: int = 4) -> int:
    """Frames that `n_latent` >= 1 latent frames decode to: 1 + temporal_stride * (n_latent - 1)."""
    if n_latent < 1:
        raise ValueError(f"n_latent={n_latent}: need at least 1")
    return 1 + temporal_stride * (n_latent - 1)
