"""Residual vector quantization (SoundStream III-C): each level codes what the levels before it left over.

Training goes through `vector_quantize_pytorch.ResidualVQ`: k-means initialisation on the first batch, moving-average
codebooks, replacement of dead codes. Encoding and decoding are plain look-ups in `Codebooks`, so that an untrained
quantizer in eval mode is deterministic and never initialises itself from what it is asked to encode.
"""
# Shapes: B batch, F latent frames, D = codebook_dim, Q = n_codebooks

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_av.audio.config import AudioTokenizerConfig
from tokenizers_av.packed import frozen_linear

GROWTH_WEIGHT = 0.1  # of the squared logarithm of a power above one


@dataclass
class Quantized:
    z_q: Tensor  # (B, F, D) sum of the kept levels' codes; the gradient passes straight through
    ids: Tensor  # (B, Q, F) int64, all levels
    commit_loss: Tensor  # () mean over levels, relative to the power of the latents; more where that is above one


class Codebooks:
    """Look-ups in codes (Q, K, D), in float32 whatever the precision round them."""

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes.float()

    @cached_property
    def _distances(self) -> list[Callable[[Tensor], Tensor]]:
        """Of each level |r - c|^2 without the |r|^2 that all codes share: (B, F, D) -> (B, F, K)."""
        return [frozen_linear(-2 * codes, codes.square().sum(-1)) for codes in self.codes]

    def encode(self, z: Tensor) -> Tensor:
        """Nearest codes, level after level: (B, F, D) -> (B, Q, F) int64."""
        with torch.autocast(z.device.type, enabled=False):
            residual, ids = z.detach().float(), []
            for codes, distances in zip(self.codes, self._distances, strict=True):
                ids.append(distances(residual).argmin(-1))
                residual = residual - F.embedding(ids[-1], codes)
        return torch.stack(ids, dim=1)

    def decode(self, ids: Tensor) -> Tensor:
        """Sum of the codes of the levels given: (B, n_levels, F) -> (B, F, D)."""
        levels = torch.arange(ids.shape[1], device=ids.device)[None, :, None]
        return self.codes[levels, ids].sum(1)


class ResidualQuantizer(nn.Module):
    """Q codebooks of `codebook_size` codes each, in float32 whatever the precision round it."""

    def __init__(self, config: AudioTokenizerConfig):
        from vector_quantize_pytorch import ResidualVQ

        super().__init__()
        self.dropout = config.quantizer_dropout
        self.rvq = ResidualVQ(
            dim=config.codebook_dim,
            num_quantizers=config.n_codebooks,
            codebook_size=config.codebook_size,
            kmeans_init=True,
            decay=config.codebook_decay,
            threshold_ema_dead_code=config.dead_code_threshold,
            # straight through: the rotation trick scales gradients by |code| / |latent|, unbounded for silence
            rotation_trick=False,
        )
        for level, layer in enumerate(self.rvq.layers):
            layer._codebook.embed.normal_(std=0.5 ** (level + 1))  # zeros otherwise; k-means replaces them in training
            # a fresh code gets time to win vectors before it can be called dead again
            layer._codebook.reset_cluster_size = 5 * config.dead_code_threshold

    @property
    def initialized(self) -> bool:
        """Whether k-means has run, or trained codebooks have been loaded."""
        return all(bool(layer._codebook.initted) for layer in self.rvq.layers)

    @property
    def codebooks(self) -> Tensor:
        """(Q, codebook_size, D) a copy of the codes."""
        return self.rvq.codebooks.detach()

    def frozen(self) -> Codebooks:
        """The codebooks as they are now, ready to encode and decode."""
        return Codebooks(self.codebooks)

    def forward(self, z: Tensor, bypass: Tensor | None = None) -> Quantized:
        """Quantize for training and move the codebooks: z (B, F, D); clips where `bypass` (B,) is True pass unchanged.

        While all clips bypass it, the quantizer is left alone and gives ids of zero. Codes follow the latents with a
        lag, from which larger latents suffer less: without a price on their power they would grow without end.
        """
        z = z.float()
        power = z.square().mean().clamp(min=1e-8)
        growth = GROWTH_WEIGHT * power.log().clamp(min=0).square()
        if bypass is not None and bool(bypass.all()):
            ids = torch.zeros(len(z), len(self.rvq.layers), z.shape[1], dtype=torch.long, device=z.device)
            return Quantized(z, ids, growth)
        with torch.autocast(z.device.type, enabled=False):
            books = self.codebooks if self.initialized else None  # those that are chosen from: the call moves them
            _, ids, losses = self.rvq(z)  # (B, F, Q), (Q,)
            books = self.codebooks if books is None else books
            codes = books[torch.arange(len(books), device=z.device), ids]  # (B, F, Q, D)
            kept = torch.arange(ids.shape[-1], device=z.device) < self._n_kept(len(z), z.device)[:, None]  # (B, Q)
            z_q = (codes * kept[:, None, :, None]).sum(2)
            if bypass is not None:
                z_q = torch.where(bypass[:, None, None], z, z_q)
            return Quantized(z + (z_q - z).detach(), ids.transpose(1, 2), losses.mean() / power.detach() + growth)

    def _n_kept(self, n: int, device: torch.device) -> Tensor:
        """(n,) levels that each clip keeps: all, or for a share `dropout` of the clips 1..Q evenly."""
        n_levels = len(self.rvq.layers)
        drawn = torch.randint(1, n_levels + 1, (n,), device=device)
        return torch.where(torch.rand(n, device=device) < self.dropout, drawn, n_levels)
