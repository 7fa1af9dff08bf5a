"""Binary spherical quantization (arXiv:2406.07548): the nearest of the 2^C corners +-1/sqrt(C) to a unit vector.

The entropies are those of LFQ, over groups of bits as there. A latent at its code has bit logits of +-2: the paper's
softmax with inverse temperature C. The commitment loss is the squared distance on the sphere, below 2 by itself.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tokenizers_av.video.lfq import LFQ


class BSQ(LFQ):
    """Signs of `bits` channels on the unit sphere as ids. Soft samples pass as unit vectors."""

    def __init__(self, bits: int, entropy_group: int = 6) -> None:
        super().__init__(bits, entropy_group)
        self.scale = bits**-0.5

    def _bounded(self, z: Tensor) -> Tensor:
        return F.rms_norm(z, (self.dim,), eps=1e-8) * self.scale

    def _carrier(self, z: Tensor) -> Tensor:
        return self._bounded(z)
