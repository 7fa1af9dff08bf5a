"""A debug transformer and random input for it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lm import LM, Vocabulary, lm_config


@dataclass
class Example:
    ids: Tensor  # (B, L)
    positions: Tensor  # (B, L, 3)
    following: Tensor  # (B, L, 3)

    def rows(self, b: slice | Tensor, columns: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        return self.ids[b, columns], self.positions[b, columns], self.following[b, columns]


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.build(["<bos>", "<eos>"], 32, (16, 16), 24)


@pytest.fixture
def model(vocabulary: Vocabulary) -> LM:
    """Weights larger than at initialisation, so that attention and norms are far from uniform and from one."""
    torch.manual_seed(0)
    model = LM(lm_config("debug", vocabulary, n_heads=4, n_kv_heads=2)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4) if p.ndim > 1 else p.add_(0.3 * torch.randn_like(p))
        model.embed.weight.mul_(0.5)
    return model


@pytest.fixture
def example(vocabulary: Vocabulary) -> Example:
    generator = torch.Generator().manual_seed(1)
    positions = torch.rand(3, 13, 3, generator=generator) * 20
    return Example(torch.randint(0, vocabulary.size, (3, 12), generator=generator), positions[:, :-1], positions[:, 1:])
