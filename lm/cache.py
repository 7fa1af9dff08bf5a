"""A key/value cache of fixed size: allocated once, filled from the front, read as a slice."""

# Shapes: R rows (batch, twice with guidance), K key/value heads, S capacity, D head_dim

from __future__ import annotations

import torch
from torch import Tensor

from lm.config import LMConfig


class KVCache:
    """Keys and values of all layers, (n_layers, R, 2K, S, D): the K key heads first, then the K value heads.

    `length` positions are filled. `real` (R, S) is False where a row holds padding; None when no row does.
    """

    def __init__(
        self, config: LMConfig, n_rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.n_kv_heads = config.n_kv_heads
        shape = (config.n_layers, n_rows, 2 * config.n_kv_heads, capacity, config.head_dim)
        self.data = torch.zeros(shape, dtype=dtype, device=device)
        self.real: Tensor | None = None
        self.length = 0

    @property
    def capacity(self) -> int:
        """Most positions it can hold."""
        return self.data.shape[3]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (R, L, K, D) behind the filled part; returns all keys and values so far, (R, length + L, K, D).

        `length` does not move, because every layer appends at the same place: `advance` it after the last layer.
        """
        K, stop = self.n_kv_heads, self.length + k.shape[1]
        assert stop <= self.capacity, f"cache holds {self.capacity} positions, {stop} needed"
        data = self.data[layer]
        data[:, :K, self.length : stop] = k.transpose(1, 2)
        data[:, K:, self.length : stop] = v.transpose(1, 2)
        if not self.length:
            return k, v
        return data[:, :K, :stop].transpose(1, 2).to(k.dtype), data[:, K:, :stop].transpose(1, 2).to(v.dtype)

    def advance(self, n: int, real: Tensor | None) -> None:
        """Count n new positions as filled; real (R, n) marks padding among them."""
        if real is not None and self.real is None:
            self.real = torch.ones(self.data.shape[1], self.capacity, dtype=torch.bool, device=self.data.device)
        if self.real is not None and real is not None:
            self.real[:, self.length : self.length + n] = real
        self.length += n
