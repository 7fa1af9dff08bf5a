"""Drawing ids from logits: temperature, top-k, top-p (arXiv:1904.09751), one uniform number per draw.

Each sample's numbers come from its own seeded generator, drawn for the whole sequence beforehand and turned into ids by
inverting the cumulative distribution, so a seed gives the same ids alone and in any batch. The numbers are the same on
any device; logits are rounded differently, so that ids may differ.
"""

# Shapes: B samples, V ids of the legal range, L output positions

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to draw: temperature 0 takes the likeliest id; top_k 0 and top_p 1 cut nothing off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guided: bool = True  # whether classifier-free guidance acts on these ids

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]")


def uniforms(seeds: Sequence[int], n: int, device: torch.device | str = "cpu") -> Tensor:
    """(n, B) float64 in [0, 1): column b depends on seeds[b] alone."""
    columns = [torch.rand(n, generator=torch.Generator().manual_seed(int(s)), dtype=torch.float64) for s in seeds]
    return torch.stack(columns, dim=1).to(device)


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """One index in [0, V) per row: logits (B, V), uniform (B,) float64 -> (B,) int64.

    Top-p is taken of what top-k leaves, after the temperature, and keeps the id that crosses the threshold.
    """
    if sampling.temperature == 0 or sampling.top_k == 1:
        return logits.argmax(dim=-1)
    logits = logits.float()
    order = None
    if 0 < sampling.top_k < logits.shape[-1]:
        logits, order = logits.topk(sampling.top_k, dim=-1)
    elif sampling.top_p < 1:
        logits, order = logits.sort(dim=-1, descending=True)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    mass = cumulative[:, -1:]
    if sampling.top_p < 1:  # total probability of the shortest head that reaches top_p
        last = torch.searchsorted(cumulative, mass * sampling.top_p).clamp_(max=logits.shape[-1] - 1)
        mass = cumulative.gather(1, last)
    index = torch.searchsorted(cumulative, uniform[:, None] * mass, right=True).clamp_(max=logits.shape[-1] - 1)
    return (index if order is None else order.gather(1, index)).squeeze(1)


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that `draw` follows: logits (B, V) -> (B, V) float64, zero where nothing is drawn."""
    if sampling.temperature == 0 or sampling.top_k == 1:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).double()
    logits = logits.float()
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1)
        logits = torch.full_like(logits, float("-inf")).scatter_(-1, least.indices, least.values)
    p = (logits / sampling.temperature).softmax(dim=-1, dtype=torch.float64)
    if sampling.top_p < 1:
        ordered, order = p.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        p = p.masked_fill_(torch.zeros_like(before, dtype=torch.bool).scatter_(-1, order, before >= sampling.top_p), 0)
        p /= p.sum(dim=-1, keepdim=True)
    return p
