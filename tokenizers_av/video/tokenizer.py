"""The video tokenizer: a causal 3-D CNN with lookup-free quantization (MAGVIT-v2, arXiv:2310.05737).

The first frame is coded alone, each next group of four frames gives one latent frame, so an image is a one-frame video.
Different from the paper: a patch stage in front, shortcuts round the resampling stages (see `layers`), norms over the
channels of one position, and no adaptive norm in the decoder.
"""
# Shapes: B batch, T frames, H W height and width in pixels, t h w their latent counterparts, C bits

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from tokenizers_av.video.config import VideoTokenizerConfig, n_latent_frames
from tokenizers_av.video.layers import (
    ChannelNorm,
    ResidualBlock,
    SpatialConv,
    SpatialDown,
    SpatialUp,
    TemporalDown,
    TemporalUp,
    depth_to_space,
    space_to_depth,
)
from tokenizers_av.video.lfq import LFQ, Quantized


@dataclass
class VideoOutput:
    video: Tensor  # (B, 3, T, H, W) reconstruction, about [-1, 1], not clamped
    quantized: Quantized


def blocks(dim: int, n: int) -> list[nn.Module]:
    """`n` residual blocks of the same width."""
    return [ResidualBlock(dim) for _ in range(n)]


class VideoTokenizer(nn.Module, PyTorchModelHubMixin):
    """Video <-> ids. Input is padded to legal sizes (last frame, right and bottom edge repeated)."""

    def __init__(self, config: VideoTokenizerConfig) -> None:
        super().__init__()
        self.config = c = VideoTokenizerConfig(**config) if isinstance(config, dict) else config
        self.encoder = nn.Sequential(
            SpatialConv(3 * c.patch**2, c.dim),
            *blocks(c.dim, c.n_blocks),
            SpatialDown(c.dim, c.latent_dim),
            *blocks(c.latent_dim, 1),
            TemporalDown(c.latent_dim),
            *blocks(c.latent_dim, 1),
            TemporalDown(c.latent_dim),
            *blocks(c.latent_dim, c.n_latent_blocks),
            ChannelNorm(c.latent_dim),
            nn.Linear(c.latent_dim, c.bits),
        )
        self.quantizer = LFQ(c.bits, c.entropy_group)
        self.decoder = nn.Sequential(
            SpatialConv(c.bits, c.latent_dim),
            *blocks(c.latent_dim, c.n_latent_blocks),
            TemporalUp(c.latent_dim),
            *blocks(c.latent_dim, 1),
            TemporalUp(c.latent_dim),
            *blocks(c.latent_dim, 1),
            SpatialUp(c.latent_dim, c.dim),
            *blocks(c.dim, c.n_blocks),
            ChannelNorm(c.dim),
            SpatialConv(c.dim, 3 * c.patch**2),
        )

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def spatial_stride(self) -> int:
        return self.config.spatial_stride

    @property
    def temporal_stride(self) -> int:
        return self.config.temporal_stride

    def forward(self, video: Tensor, soft: Tensor | None = None) -> VideoOutput:
        """Reconstruct video (B, 3, 1 + 4n, H, W) in [-1, 1], H and W multiples of the stride; `soft` as in `LFQ`."""
        quantized = self.quantizer(self._latents(video), soft)
        return VideoOutput(self._pixels(quantized.z_q), quantized)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Ids (B, t, h, w) int64 of video (B, 3, T, H, W) in [-1, 1], any T >= 1, H and W >= 1.

        t = 1 + ceil((T - 1) / 4), h = ceil(H / 8), w = ceil(W / 8) for the published presets.
        Raises ValueError for other shapes, values outside [-1, 1] and NaN.
        """
        if video.dim() != 5 or video.shape[1] != 3 or 0 in video.shape:
            raise ValueError(f"video has shape {tuple(video.shape)}, expected (B, 3, T, H, W) with no empty side")
        low, high = video.aminmax()
        if not (low >= -1.001 and high <= 1.001):  # also false for NaN
            raise ValueError(f"video values span [{float(low):.4g}, {float(high):.4g}], expected [-1, 1] without NaN")
        T, H, W = video.shape[2:]
        s = self.spatial_stride
        extra = (n_latent_frames(T) - 1) * self.temporal_stride + 1 - T
        if extra or H % s or W % s:
            video = F.pad(video, (0, -W % s, 0, -H % s, 0, extra), mode="replicate")
        return self.quantizer.ids(self._latents(video.to(self._dtype)))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Video (B, 3, 1 + 4(t - 1), 8h, 8w) in [-1, 1] of ids (B, t, h, w) int64.

        Raises ValueError for another shape or ids outside [0, codebook_size).
        """
        if ids.dim() != 4 or 0 in ids.shape:
            raise ValueError(f"ids have shape {tuple(ids.shape)}, expected (B, t, h, w) with no empty side")
        return self._pixels(self.quantizer.codes(ids, self._dtype)).clamp(-1, 1)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _latents(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, t, h, w, C)."""
        return self.encoder(space_to_depth(video.permute(0, 2, 3, 4, 1).contiguous(), self.config.patch))

    def _pixels(self, z_q: Tensor) -> Tensor:
        """(B, t, h, w, C) -> (B, 3, T, H, W)."""
        return depth_to_space(self.decoder(z_q), self.config.patch).permute(0, 4, 1, 2, 3)
