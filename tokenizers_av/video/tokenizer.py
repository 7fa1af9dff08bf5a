"""The video tokenizer: a causal 3-D CNN with lookup-free quantization (MAGVIT-v2, arXiv:2310.05737).

The first frame is coded alone, each next group of four frames gives one latent frame, so an image is a one-frame video.
Different from the paper: an optional patch stage in front, space and time in separate convolutions, shortcuts round the
resampling stages, and norms over the channels of one position (see `layers`).
"""
# Shapes: B batch, T frames, H W height and width in pixels, t h w their latent counterparts, C latent channels

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_av.hub import HubModel
from tokenizers_av.video.config import VideoTokenizerConfig
from tokenizers_av.video.layers import (
    CausalSequential,
    ChannelNorm,
    Flow,
    ResidualBlock,
    SpatialConv,
    SpatialDown,
    SpatialUp,
    TemporalDown,
    TemporalUp,
    depth_to_space,
    space_to_depth,
)
from tokenizers_av.video.quantizer import Quantized, make_quantizer


@dataclass
class VideoOutput:
    video: Tensor  # (B, 3, T, H, W) reconstruction, about [-1, 1], not clamped
    quantized: Quantized


class VideoTokenizer(nn.Module, HubModel):
    """Video <-> ids, of any size and length.

    `encode` and `decode` work one latent frame at a time with carried state: memory does not grow with the length but
    for what they return, and ids never depend on what follows or on how a clip is cut into chunks. `forward` takes
    whole clips at once, for training.
    """

    def __init__(self, config: VideoTokenizerConfig) -> None:
        super().__init__()
        self.config = c = VideoTokenizerConfig(**config) if isinstance(config, dict) else config
        self.quantizer = make_quantizer(c)
        *outer, latent = c.dims
        code_dim = self.quantizer.dim

        patch_layer = SpatialConv if c.patch_kernel == 3 else nn.Linear
        encoder: list[nn.Module] = [patch_layer(3 * c.patch**2, c.dims[0])]
        for dim, next_dim in zip(outer, c.dims[1:], strict=True):
            encoder += [*(ResidualBlock(dim) for _ in range(c.n_blocks)), SpatialDown(dim, next_dim)]
        for n in (c.n_time_blocks, c.n_time_blocks):
            encoder += [*(ResidualBlock(latent) for _ in range(n)), TemporalDown(latent)]
        encoder += [ResidualBlock(latent) for _ in range(c.n_latent_blocks)]
        self.encoder = CausalSequential([*encoder, ChannelNorm(latent), nn.Linear(latent, code_dim)])

        decoder: list[nn.Module] = [SpatialConv(code_dim, latent)]
        decoder += adaptive_blocks(latent, code_dim, c.n_latent_blocks * c.decoder_depth)
        for n in (c.n_time_blocks, c.n_time_blocks):
            decoder += [TemporalUp(latent), *adaptive_blocks(latent, code_dim, n * c.decoder_depth)]
        for dim, next_dim in zip(reversed(c.dims[1:]), reversed(outer), strict=True):
            n = c.n_blocks * c.decoder_depth
            decoder += [SpatialUp(dim, next_dim), *adaptive_blocks(next_dim, code_dim, n)]
        self.decoder = CausalSequential([*decoder, ChannelNorm(c.dims[0]), patch_layer(c.dims[0], 3 * c.patch**2)])

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
        """Reconstruct video (B, 3, 1 + 4n, H, W) in [-1, 1], H and W multiples of the stride; `soft` as in `Quantizer`.

        Raises ValueError for other sizes.
        """
        if video.dim() != 5 or video.shape[1] != 3:
            raise ValueError(f"video has shape {tuple(video.shape)}, expected (B, 3, T, H, W)")
        (T, H, W), s = video.shape[2:], self.spatial_stride
        if (T - 1) % self.temporal_stride or H % s or W % s:
            raise ValueError(f"video has {T} frames of {H}x{W} pixels, expected 1 + a multiple of "
                             f"{self.temporal_stride} frames and multiples of {s} pixels")  # fmt: skip
        quantized = self.quantizer(self._latents(video, Flow()), soft)
        return VideoOutput(self._pixels(quantized.z_q.to(self._dtype), Flow()), quantized)

    def encode(self, video: Tensor) -> Tensor:
        """Ids (B, t, h, w) int64 of video (B, 3, T, H, W), floating point in [-1, 1], any T, H and W >= 1.

        t = 1 + ceil((T - 1) / 4), h and w = ceil(H / stride), ceil(W / stride): the last frame and the right and bottom
        edges are repeated to fill. Raises ValueError for another shape or dtype, values outside [-1, 1] and NaN.
        """
        return torch.cat(list(self.encode_stream([video])), dim=1)

    def decode(self, ids: Tensor) -> Tensor:
        """Video (B, 3, 1 + 4(t - 1), stride * h, stride * w) in [-1, 1] of ids (B, t, h, w) int64.

        Raises ValueError for another shape or dtype, or ids outside [0, codebook_size).
        """
        return torch.cat(list(self.decode_stream([ids])), dim=2)

    def reconstruct(self, video: Tensor) -> Tensor:
        """Through the ids and back: as many frames of the same size as `video` (B, 3, T, H, W) has."""
        ids = self.encode(video)
        T, H, W = video.shape[2:]
        return self.decode(ids)[:, :, :T, :H, :W]

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Ids (B, 1, h, w) of each latent frame as soon as its frames are there; joined they are those of `encode`.

        The chunks (B, 3, any number of frames, H, W) follow each other in time; the last group is filled at their end.
        The weights must not change meanwhile: on a CPU a copy of them may wait in the layout that is fastest.
        """
        flow = Flow(tails={})
        waiting: Tensor | None = None  # (B, 3, n, H, W) frames of the group that is not complete
        for chunk in chunks:
            check_video(chunk)
            chunk = self._fill_space(chunk.to(self._dtype))
            if waiting is not None and chunk.shape[:2] + chunk.shape[3:] != waiting.shape[:2] + waiting.shape[3:]:
                raise ValueError(f"a chunk has shape {tuple(chunk.shape)} after {tuple(waiting.shape)}: "
                                 "only the number of frames may change")  # fmt: skip
            waiting = chunk if waiting is None else torch.cat([waiting, chunk], dim=2)
            while waiting.shape[2] >= self._group(flow):
                n = self._group(flow)
                yield self.quantizer.ids(self._latents(waiting[:, :, :n], flow))
                waiting, flow.first = waiting[:, :, n:], False
        if waiting is None:
            raise ValueError("no frames to encode, expected at least one")
        if n := waiting.shape[2]:
            filled = torch.cat([waiting, waiting[:, :, -1:].expand(-1, -1, self._group(flow) - n, -1, -1)], dim=2)
            yield self.quantizer.ids(self._latents(filled, flow))

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Video (B, 3, 1 or 4, H, W) in [-1, 1] of each latent frame; joined it is that of `decode`.

        The chunks (B, any number of latent frames, h, w) follow each other in time. The weights must not change
        meanwhile, see `encode_stream`.
        """
        flow = Flow(tails={})
        shape: torch.Size | None = None
        for chunk in chunks:
            if chunk.dim() != 4 or 0 in chunk.shape:
                raise ValueError(f"ids have shape {tuple(chunk.shape)}, expected (B, t, h, w) with no empty side")
            if shape is not None and (chunk.shape[0], *chunk.shape[2:]) != (shape[0], *shape[2:]):
                raise ValueError(f"a chunk of ids has shape {tuple(chunk.shape)} after {tuple(shape)}: "
                                 "only the number of latent frames may change")  # fmt: skip
            shape = chunk.shape
            codes = self.quantizer.codes(chunk, self._dtype)
            for code in codes.split(1, dim=1):
                yield self._pixels(code, flow).clamp(-1, 1)
                flow.first = False
        if shape is None:
            raise ValueError("no ids to decode, expected at least one latent frame")

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _group(self, flow: Flow) -> int:
        """Frames of the next latent frame."""
        return 1 if flow.first else self.temporal_stride

    def _fill_space(self, video: Tensor) -> Tensor:
        """Repeat the right and bottom edges up to multiples of the stride."""
        H, W = video.shape[3:]
        s = self.spatial_stride
        return F.pad(video, (0, -W % s, 0, -H % s, 0, 0), mode="replicate") if H % s or W % s else video

    def _latents(self, video: Tensor, flow: Flow) -> Tensor:
        """(B, 3, T, H, W) -> (B, t, h, w, C)."""
        return self.encoder(space_to_depth(video.permute(0, 2, 3, 4, 1).contiguous(), self.config.patch), flow)

    def _pixels(self, z_q: Tensor, flow: Flow) -> Tensor:
        """(B, t, h, w, C) -> (B, 3, T, H, W)."""
        flow.code = z_q
        return depth_to_space(self.decoder(z_q, flow), self.config.patch).permute(0, 4, 1, 2, 3)


def adaptive_blocks(dim: int, code_dim: int, n: int) -> list[nn.Module]:
    """`n` residual blocks of the decoder, the first with an adaptive norm (MAGVIT-v2: once at each resolution)."""
    return [ResidualBlock(dim, code_dim if i == 0 else None) for i in range(n)]


def check_video(video: Tensor) -> None:
    """Raise ValueError unless `video` is (B, 3, T, H, W) floating point in [-1, 1], without empty sides."""
    if video.dim() != 5 or video.shape[1] != 3 or 0 in video.shape:
        raise ValueError(f"video has shape {tuple(video.shape)}, expected (B, 3, T, H, W) with no empty side")
    if not video.is_floating_point():
        raise ValueError(f"video is {video.dtype}, expected floating point in [-1, 1]: frames / 127.5 - 1")
    low, high = video.aminmax()
    if not (low >= -1.001 and high <= 1.001):  # also false for NaN
        raise ValueError(f"video values span [{float(low):.4g}, {float(high):.4g}], expected [-1, 1] without NaN")
