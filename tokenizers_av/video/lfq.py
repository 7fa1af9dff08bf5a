"""Lookup-free quantization (MAGVIT-v2, arXiv:2310.05737): each latent channel becomes one bit of the token id.

Different from the paper: the entropy of the batch mean is taken jointly over small groups of bits. The bits of one
position are independent given its latent, so the first entropy term is an exact sum over bits; the second is not, and
balancing each bit alone leaves room for all bits to say the same. One group of all bits is the paper's own term. A
table of positions by codes is never built.
"""
# Shapes: N positions, C bits (channels last), K = 2^(bits of a group)

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_av.video.quantizer import Quantizer


def signs(ids: Tensor, n: int) -> Tensor:
    """The lowest n bits of ids (...) int64 as (..., n) float32 in {-1, +1}, bit 0 first."""
    bits = ids.unsqueeze(-1) >> torch.arange(n, device=ids.device) & 1
    return (2 * bits - 1).float()


def mean_code_probabilities(logits: Tensor) -> Tensor:
    """Mean over positions of the probabilities of all K codes: logits (N, n) of n independent bits -> (K,).

    A code's probability is the product over its two halves, so the mean is one matrix product of (N, sqrt(K)) tables.
    """
    tables = []
    for half in logits.tensor_split(2, dim=-1):
        n = half.shape[-1]
        codes = signs(torch.arange(1 << n, device=logits.device), n)
        tables.append((half @ codes.T / 2).softmax(-1))
    return (tables[0].T @ tables[1]).flatten() / len(logits)


def bit_entropies(logits: Tensor, groups: list[int]) -> tuple[Tensor, Tensor]:
    """Entropies in nats of independent bits with logits (N, C) float32: E[H(q)] and, summed over groups, H[E(q)]."""
    per_position = (F.softplus(logits) - logits * torch.sigmoid(logits)).sum(-1).mean()
    of_mean = logits.new_zeros(())
    with torch.autocast(logits.device.type, enabled=False):
        for group in logits.split(groups, dim=-1):
            p = mean_code_probabilities(group).clamp_min(torch.finfo(logits.dtype).tiny)  # log has a gradient there
            of_mean = of_mean + torch.special.entr(p).sum()
    return per_position, of_mean


class LFQ(Quantizer):
    """Signs of `bits` latent channels as ids; the entropy of their mean is taken over groups of `entropy_group` bits.

    The memory of the entropy grows with 2^(entropy_group / 2) for each position.
    """

    scale = 1.0  # codes are +-scale

    def __init__(self, bits: int, entropy_group: int = 6) -> None:
        if bits < 1 or entropy_group < 1:
            raise ValueError(f"bits={bits}, entropy_group={entropy_group}: need at least 1")
        super().__init__(bits, 1 << bits)
        self.groups = [min(entropy_group, bits - i) for i in range(0, bits, entropy_group)]

    def _ids(self, z: Tensor) -> Tensor:
        """Bit i is set where z_i > 0 (Eq. 3-4)."""
        return ((z > 0).long() << torch.arange(self.dim, device=z.device)).sum(-1)

    def _codes(self, ids: Tensor) -> Tensor:
        return signs(ids, self.dim) * self.scale

    def _bounded(self, z: Tensor) -> Tensor:
        return torch.tanh(z)

    def _carrier(self, z: Tensor) -> Tensor:
        return z

    def _losses(self, carrier: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        return self._entropy_loss(carrier), F.mse_loss(carrier, codes) / self.scale**2

    def _entropy_loss(self, carrier: Tensor) -> Tensor:
        """E[H(q)] - H[E(q)] per bit, in nats (Eq. 5); carrier (..., C)."""
        # 2 at a code: for LFQ the softmax of <z, q> over q in {-1, +1}; sharper ones give no gradient
        logits = (2 / self.scale * carrier).reshape(-1, self.dim)
        per_position, of_mean = bit_entropies(logits, self.groups)
        return (per_position - of_mean) / self.dim
