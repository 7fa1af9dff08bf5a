"""Finite scalar quantization (arXiv:2309.15505): each latent channel is rounded to one of four levels.

The levels are symmetric, -1, -1/3, 1/3 and 1 (arXiv:2411.19842, §3.2), so that a code quantizes to itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizers_av.video.quantizer import Quantizer

N_LEVELS = 4  # two bits to a channel


class FSQ(Quantizer):
    """bits / 2 channels of four levels each. Needs neither an entropy nor a commitment loss: both are zero."""

    def __init__(self, bits: int) -> None:
        if bits < 2 or bits % 2:
            raise ValueError(f"bits={bits}: fsq has two bits to a channel, so bits must be even")
        from vector_quantize_pytorch import FSQ as LibraryFSQ  # seconds to import

        super().__init__(bits // 2, 1 << bits)
        self.fsq = LibraryFSQ([N_LEVELS] * self.dim, preserve_symmetry=True, return_indices=False)

    def _ids(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            levels = self.fsq.quantize(z.double())  # ids are summed as floats: float32 ends at 2^24
            return self.fsq.codes_to_indices(levels).long()

    def _codes(self, ids: Tensor) -> Tensor:
        return self.fsq.indices_to_codes(ids.flatten()).view(*ids.shape, self.dim)

    def _bounded(self, z: Tensor) -> Tensor:
        return torch.tanh(z)
