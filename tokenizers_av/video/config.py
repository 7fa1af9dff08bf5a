"""Sizes of the video tokenizer, and the arithmetic between frames and latent frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

QUANTIZERS = ("lfq", "bsq", "fsq")


@dataclass(frozen=True, kw_only=True)
class VideoTokenizerConfig:
    """A causal 3-D autoencoder. Space is reduced by `patch` and then by 2 from each of `dims` to the next; time by 4,
    late (MAGVIT-v2 §3.2): in two steps of 2 at the latent height and width."""

    quantizer: str = "lfq"  # one of QUANTIZERS
    bits: int = 12  # log2 of the codebook size; for LFQ and BSQ the number of latent channels
    patch: int = 4  # pixels folded into channels before the first convolution; 1 folds none
    patch_kernel: int = 3  # of the encoder's first and the decoder's last convolution: 3, or 1 for each patch by itself
    dims: tuple[int, ...] = (96, 192)  # channels at 1/patch of the height and width, at half of that, ...
    n_blocks: int = 2  # residual blocks at each height and width above the latent one
    n_time_blocks: int = 1  # residual blocks at the latent height and width, at full and at half frame rate; may be 0
    n_latent_blocks: int = 2  # residual blocks at the latent height, width and frame rate
    decoder_depth: int = 1  # residual blocks of the decoder for each of the encoder
    entropy_group: int = 6  # bits whose joint entropy is kept high together (LFQ, BSQ)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))  # a list where it comes from JSON
        if self.quantizer not in QUANTIZERS:
            raise ValueError(f"quantizer={self.quantizer!r}: expected one of {', '.join(QUANTIZERS)}")
        if not 1 <= self.bits <= 30:
            raise ValueError(f"bits={self.bits}: need 1 to 30")
        if not self.dims or min(self.dims) < 1:
            raise ValueError(f"dims={self.dims}: need at least one width, each at least 1")
        for name in ("patch", "n_blocks", "n_latent_blocks", "decoder_depth", "entropy_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: need at least 1")
        if self.n_time_blocks < 0:
            raise ValueError(f"n_time_blocks={self.n_time_blocks}: need at least 0")
        if self.patch_kernel not in (1, 3):
            raise ValueError(f"patch_kernel={self.patch_kernel}: expected 1 or 3")
        for wide, narrow in zip(self.dims[1:], self.dims, strict=False):
            if (4 * narrow) % wide:
                raise ValueError(f"dims={self.dims}: 4 * {narrow} must be a multiple of {wide}")

    @property
    def codebook_size(self) -> int:
        return 1 << self.bits

    @property
    def spatial_stride(self) -> int:
        return self.patch << (len(self.dims) - 1)

    @property
    def temporal_stride(self) -> int:
        return 4


VIDEO_PRESETS: dict[str, dict[str, Any]] = {
    "debug": {"bits": 8, "dims": (16, 16), "n_blocks": 1, "n_latent_blocks": 1, "entropy_group": 4},
    "tiny": {},
    # nearly all parameters at the latent size, where each is multiplied with the fewest positions
    "fast": {"patch": 8, "patch_kernel": 1, "dims": (192,), "n_time_blocks": 0, "n_latent_blocks": 3},
    # the paper's codebook, compression and two published sizes (158M and 370M parameters; 2310.05737)
    "base": {"bits": 18, "patch": 2, "dims": (192, 384, 768), "n_blocks": 2, "n_time_blocks": 2, "n_latent_blocks": 6},
    "large": {"bits": 18, "patch": 2, "dims": (256, 512, 1024), "n_blocks": 4, "n_time_blocks": 3,
              "n_latent_blocks": 7},
}  # fmt: skip


def video_tokenizer_config(preset: str, **overrides: Any) -> VideoTokenizerConfig:
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


def nearest_n_frames(n_frames: int, temporal_stride: int = 4) -> int:
    """The length nearest to `n_frames` >= 1 that fills its groups, 1 + a multiple of the stride; of two, the longer."""
    if n_frames < 1:
        raise ValueError(f"n_frames={n_frames}: need at least 1")
    return 1 + (n_frames - 1 + temporal_stride // 2) // temporal_stride * temporal_stride
