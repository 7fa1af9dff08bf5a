"""Lookup-free quantization (MAGVIT-v2, arXiv:2310.05737): each latent channel becomes one bit of the token id.

Different from the paper: the entropy of the batch mean is taken jointly over small groups of bits. The bits of one
position are independent given its latent, so the first entropy term is an exact sum over bits; the second is not, and
balancing each bit alone leaves room for all bits to say the same. A table over all 2^bits codes is never built.
"""
# Shapes: B batch, T latent frames, H W latent height and width, C bits (channels last)

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Quantized:
    z_q: Tensor  # (B, T, H, W, C) in {-1, +1}; gradient passes straight through
    ids: Tensor  # (B, T, H, W) int64 in [0, 2^C)
    entropy_loss: Tensor  # () mean bit entropy per position minus group entropy of the batch mean, in nats per bit
    commitment_loss: Tensor  # () squared distance of the latents to their signs


class LFQ(nn.Module):
    """Signs of `bits` latent channels as ids; the entropy of their mean is taken over groups of `entropy_group` bits.

    Without parameters. The memory of the entropy grows with 2^entropy_group.
    """

    def __init__(self, bits: int, entropy_group: int = 6) -> None:
        super().__init__()
        self.bits = bits
        self.groups = [min(entropy_group, bits - i) for i in range(0, bits, entropy_group)]

    def ids(self, z: Tensor) -> Tensor:
        """Ids (...) int64 of latents z (..., C): bit i is set where z_i > 0 (Eq. 3-4)."""
        weights = torch.arange(self.bits, device=z.device)
        return ((z > 0).long() << weights).sum(-1)

    def codes(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Codes (..., C) in {-1, +1} of ids (...). Raises ValueError for ids outside [0, 2^C)."""
        top = (1 << self.bits) - 1
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) <= top):
            raise ValueError(f"video ids span [{int(ids.min())}, {int(ids.max())}], expected [0, {top}]")
        bits = ids.unsqueeze(-1) >> torch.arange(self.bits, device=ids.device) & 1
        return (2 * bits - 1).to(dtype)

    def forward(self, z: Tensor, soft: Tensor | None = None) -> Quantized:
        """Quantize latents z (B, T, H, W, C); samples where `soft` (B,) is True pass through tanh unquantized.

        Starting a training with mostly soft samples lets the decoder learn before the bits must be right.
        """
        z = z.float()
        hard = torch.where(z > 0, 1.0, -1.0)
        z_q = z + (hard - z).detach()
        if soft is not None:
            z_q = torch.where(soft.view(-1, 1, 1, 1, 1), torch.tanh(z), z_q)
        return Quantized(z_q, self.ids(z), self.entropy_loss(z), F.mse_loss(z, hard))

    def entropy_loss(self, z: Tensor) -> Tensor:
        """E[H(q)] - H[E(q)] per bit, in nats (Eq. 5); z (..., C)."""
        z = z.reshape(-1, self.bits)
        logits = 2 * z  # sigmoid(2z): softmax of <z, q> over q in {-1, +1}; sharper ones give no gradient
        p = torch.sigmoid(logits)
        per_position = (F.softplus(logits) - logits * p).sum(-1).mean()
        of_mean = z.new_zeros(())
        for group in p.split(self.groups, dim=-1):  # joint table over 2^len(group) codes
            table = z.new_ones(len(z), 1)
            for bit in group.unbind(-1):
                table = torch.cat([table * (1 - bit[:, None]), table * bit[:, None]], dim=-1)
            mean = table.mean(0)
            of_mean = of_mean - torch.special.xlogy(mean, mean).sum()
        return (per_position - of_mean) / self.bits
