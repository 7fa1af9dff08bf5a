"""SoundStream-like audio tokenizer (arXiv:2107.03312): causal codec whose ids are a few residual levels per frame."""
# Shapes: B batch, N samples, F = N // hop_length latent frames, Q = n_codebooks

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_av.audio.config import AudioTokenizerConfig
from tokenizers_av.audio.quantizer import ResidualQuantizer
from tokenizers_av.audio.seanet import Decoder, Encoder, Stream
from tokenizers_av.hub import HubModel

PIECE = 256  # frames that are computed at once; more would take memory and no less time


@dataclass
class AudioOutput:
    samples: Tensor  # (B, F * hop_length) reconstruction, not clipped
    ids: Tensor  # (B, levels, F) int64 in [0, codebook_size)
    commit_loss: Tensor  # () zero in eval mode


class AudioTokenizer(nn.Module, HubModel):
    """Samples to ids and back; encoding and decoding are exactly causal: frame k needs samples and ids up to k only."""

    def __init__(self, config: AudioTokenizerConfig):
        super().__init__()
        self.config = config = AudioTokenizerConfig(**config) if isinstance(config, dict) else config
        self.encoder = Encoder(config)
        self.quantizer = ResidualQuantizer(config)
        self.decoder = Decoder(config)

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        return self.config.hop_length

    @property
    def n_codebooks(self) -> int:
        return self.config.n_codebooks

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def frame_rate(self) -> float:
        return self.config.frame_rate

    @property
    def latency(self) -> float:
        """Seconds from the first sample of a frame to its ids: the length of one frame, nothing is looked ahead."""
        return self.hop_length / self.sample_rate

    def encode(self, samples: Tensor, sample_rate: int | None = None) -> Tensor:
        """(B, N) floating point in [-1, 1] -> ids (B, Q, N // hop_length) int64; a tail shorter than a hop is dropped.

        Raises ValueError for other shapes, less than one hop, integer samples, values outside [-1, 1], NaN, and where
        `sample_rate` is given and not that of the tokenizer.
        """
        if sample_rate not in (None, self.sample_rate):
            raise ValueError(
                f"samples at {sample_rate} Hz, this tokenizer codes {self.sample_rate} Hz: "
                f"resample(samples, {sample_rate}, {self.sample_rate}).clamp(-1, 1)"
            )
        if samples.ndim == 2 and samples.shape[1] < self.hop_length:
            raise ValueError(f"{samples.shape[1]} samples, expected at least one frame of {self.hop_length}")
        return torch.cat(list(self.encode_stream([samples])), dim=-1)

    def decode(self, ids: Tensor) -> Tensor:
        """ids (B, k, F) of the first k <= Q levels -> samples (B, F * hop_length) float32 in [-1, 1].

        Raises ValueError for other shapes and for ids outside [0, codebook_size).
        """
        return torch.cat(list(self.decode_stream([ids])), dim=-1)

    def reconstruct(self, samples: Tensor, n_levels: int | None = None) -> Tensor:
        """Through the ids of the first `n_levels` levels (None: all) and back: as long as `samples` (B, N)."""
        if n_levels is not None and not 1 <= n_levels <= self.n_codebooks:
            raise ValueError(f"n_levels={n_levels}: expected 1 to {self.n_codebooks}")
        ids = self.encode(F.pad(samples, (0, -samples.shape[-1] % self.hop_length)))
        return self.decode(ids[:, :n_levels])[:, : samples.shape[-1]]

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """For each chunk (B, n), any n >= 0, the ids (B, Q, m) of the frames it completes; joined, those of `encode`.

        Nothing waits for later samples: a hop of samples gives one frame. On x86 CPUs with AVX2 or better all
        chunkings give equal ids; other devices may round a product of few rows otherwise. The weights must not change
        meanwhile.
        """
        hop, stream, codebooks = self.hop_length, Stream(), self.quantizer.frozen()
        waiting: Tensor | None = None  # (B, n) samples of the frame that is not complete
        for chunk in chunks:
            check_samples(chunk)
            if waiting is not None and len(chunk) != len(waiting):
                raise ValueError(f"a chunk of {len(chunk)} sounds after {len(waiting)}: only the length may change")
            waiting = chunk if waiting is None else torch.cat([waiting, chunk], dim=1)
            n = waiting.shape[1] // hop * hop
            ids = [torch.zeros(len(chunk), self.n_codebooks, 0, dtype=torch.int64, device=chunk.device)]
            for start in range(0, n, PIECE * hop):
                piece = waiting[:, start : min(start + PIECE * hop, n)]
                ids.append(codebooks.encode(self.encoder(piece.to(self._dtype), stream)))
            waiting = waiting[:, n:].clone()  # the chunk may be filled anew
            yield torch.cat(ids, dim=-1)

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """For each chunk of ids (B, k, m), any m >= 0, its samples (B, m * hop_length); joined, those of `decode`, as
        exactly as `encode_stream` is. The weights must not change meanwhile."""
        stream, codebooks = Stream(), self.quantizer.frozen()
        shape: torch.Size | None = None
        for chunk in chunks:
            self._check_ids(chunk)
            if shape is not None and chunk.shape[:2] != shape[:2]:
                raise ValueError(
                    f"a chunk of ids has shape {tuple(chunk.shape)} after {tuple(shape)}: only the last may change"
                )
            shape = chunk.shape
            samples = []
            for piece in chunk.split(PIECE, dim=2):
                latents = codebooks.decode(piece.long()).to(self._dtype)
                samples.append(self.decoder(latents, stream).float().clamp(-1, 1))
            yield torch.cat(samples, dim=1)

    def forward(self, samples: Tensor, bypass: Tensor | None = None) -> AudioOutput:
        """Reconstruct samples (B, N) at once, with gradients. In training mode codebooks move, levels are dropped at
        random, and the latents of clips where `bypass` (B,) is True are not quantized; in eval mode nothing changes."""
        if samples.ndim != 2:
            raise ValueError(f"audio of shape {tuple(samples.shape)}: expected mono samples (batch, samples)")
        z = self.encoder(samples[:, : samples.shape[1] // self.hop_length * self.hop_length])
        if self.training:
            q = self.quantizer(z, bypass)
            return AudioOutput(self.decoder(q.z_q).float(), q.ids, q.commit_loss)
        codebooks = self.quantizer.frozen()
        ids = codebooks.encode(z)
        return AudioOutput(self.decoder(codebooks.decode(ids).to(self._dtype)).float(), ids, z.new_zeros(()))

    @property
    def _dtype(self) -> torch.dtype:
        return self.decoder.out.weight.dtype

    def _check_ids(self, ids: Tensor) -> None:
        """Raise ValueError unless ids are (B, k, F) integers of the first k levels, each in [0, codebook_size)."""
        if ids.ndim != 3 or not 1 <= ids.shape[1] <= self.n_codebooks:
            raise ValueError(
                f"audio ids of shape {tuple(ids.shape)}: expected (batch, 1 to {self.n_codebooks} levels, frames)"
            )
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"audio ids are {ids.dtype}: expected integers")
        if not ids.numel():
            return
        low, high = (int(v) for v in ids.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"audio ids range from {low} to {high}: expected 0 to {self.codebook_size - 1}, each level its own"
            )


def check_samples(samples: Tensor) -> None:
    """Raise ValueError unless samples are (B, N) floating point in [-1, 1]."""
    if samples.ndim != 2:
        raise ValueError(f"audio of shape {tuple(samples.shape)}: expected mono samples (batch, samples)")
    if not samples.is_floating_point():
        raise ValueError(f"audio samples are {samples.dtype}: expected floats in [-1, 1]")
    if not samples.numel():
        return
    low, high = (float(v) for v in samples.aminmax())
    if low >= -1.001 and high <= 1.001:
        return
    if n_bad := int((~samples.isfinite()).sum()):
        raise ValueError(f"{n_bad} of {samples.numel()} audio samples are NaN or infinite: expected [-1, 1]")
    cure = "divide by 32768" if max(-low, high) > 100 else "clamp or scale them"
    raise ValueError(f"audio samples span [{low:.4g}, {high:.4g}], expected [-1, 1]: {cure}")
