"""Chained heads of a factorised id range: p(id) = p(value 0) p(value 1 | value 0) ..., each a small softmax.

The hidden state for a later factor is modulated by the values before it (FiLM, arXiv:1709.07871). The product is what
matters: with an added term alone, which value follows which could not depend on the context, and the head stays far
behind one over all ids.
"""

from __future__ import annotations

from torch import Tensor, nn

from lm.config import LMConfig
from lm.norm import RMSNorm


class FactorLink(nn.Module):
    """norm(hidden * (1 + scale) + shift), scale and shift linear in what is known of the id."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.modulation = nn.Linear(config.dim, 2 * config.dim, bias=False)
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, hidden: Tensor, known: Tensor) -> Tensor:
        """hidden (..., dim), known (..., dim) the embedding of the values so far -> (..., dim) for the next factor."""
        scale, shift = self.modulation(known).chunk(2, dim=-1)
        return self.norm(hidden * (1 + scale) + shift)
