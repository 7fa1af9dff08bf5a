"""What every quantizer of the video tokenizer does: latents of one position to one id, and the id back to its code."""
# Shapes: ... any leading sides, the first of them the batch B; C latent channels (last)

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass
class Quantized:
    z_q: Tensor  # (..., C) float32: the codes, with the gradient of the latents; soft samples are not rounded
    ids: Tensor  # (...) int64 in [0, codebook_size)
    entropy_loss: Tensor  # () mean entropy of one position minus the entropy of the mean, in nats per bit
    commitment_loss: Tensor  # () squared distance of the latents to their codes


class Quantizer(nn.Module):
    """Latents (..., dim) <-> ids (...). Without parameters or state; computes in float32 or better."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        self.dim = dim  # latent channels
        self.codebook_size = codebook_size

    def ids(self, z: Tensor) -> Tensor:
        """Ids (...) int64 of latents z (..., dim). Raises ValueError for another number of channels."""
        return self._ids(self._checked(z))

    def codes(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Codes (..., dim) of ids (...). Raises ValueError for ids outside [0, codebook_size) or not integer."""
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"video ids are {ids.dtype}, expected an integer type")
        if ids.numel():
            low, high = (int(i) for i in ids.aminmax())
            if low < 0 or high >= self.codebook_size:
                raise ValueError(f"video ids span [{low}, {high}], expected [0, {self.codebook_size - 1}]")
        return self._codes(ids.long()).to(dtype)

    def forward(self, z: Tensor, soft: Tensor | None = None) -> Quantized:
        """Quantize latents z (B, ..., dim); samples where `soft` (B,) is True pass bounded, but not rounded.

        Starting a training with mostly soft samples lets the decoder learn before the codes must be right.
        """
        z = self._checked(z)
        ids, carrier = self._ids(z), self._carrier(z)
        codes = self._codes(ids)
        z_q = codes + (carrier - carrier.detach())  # exactly the code: the difference is zero
        if soft is not None:
            z_q = torch.where(soft.view(-1, *[1] * (z.dim() - 1)), self._bounded(z), z_q)
        return Quantized(z_q, ids, *self._losses(carrier, codes))

    def _checked(self, z: Tensor) -> Tensor:
        """z (..., dim) in float32."""
        if z.dim() == 0 or z.shape[-1] != self.dim:
            raise ValueError(f"latents have shape {tuple(z.shape)}, expected (..., {self.dim})")
        return z.float()

    def _ids(self, z: Tensor) -> Tensor:
        """(..., dim) float32 -> (...) int64."""
        raise NotImplementedError

    def _codes(self, ids: Tensor) -> Tensor:
        """(...) int64 in range -> (..., dim) float32."""
        raise NotImplementedError

    def _bounded(self, z: Tensor) -> Tensor:
        """(..., dim) -> the same in the range of the codes, not rounded."""
        raise NotImplementedError

    def _carrier(self, z: Tensor) -> Tensor:
        """(..., dim) -> what the codes take their gradient from."""
        return self._bounded(z)

    def _losses(self, carrier: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy and commitment loss () of carrier and codes (..., dim): zero where the quantizer needs none."""
        return carrier.new_zeros(()), carrier.new_zeros(())


class QuantizerConfig(Protocol):
    @property
    def quantizer(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def entropy_group(self) -> int: ...


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer a config names: "lfq", "bsq" or "fsq", with 2^bits codes. Raises ValueError for another name."""
    if config.quantizer == "lfq":
        from tokenizers_av.video.lfq import LFQ

        return LFQ(config.bits, config.entropy_group)
    if config.quantizer == "bsq":
        from tokenizers_av.video.bsq import BSQ

        return BSQ(config.bits, config.entropy_group)
    if config.quantizer == "fsq":
        from tokenizers_av.video.fsq import FSQ

        return FSQ(config.bits)
    raise ValueError(f"unknown quantizer {config.quantizer!r}, expected one of ['bsq', 'fsq', 'lfq']")
