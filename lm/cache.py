"""A key/value cache of fixed size: allocated once, filled from the front, read as a slice."""

# Shapes: R rows (samples, twice with guidance), K key/value heads, S capacity, D head_dim, n new positions

from __future__ import annotations

import torch
from torch import Tensor

from lm.config import LMConfig


class KVCache:
    """Keys and values: `layers` holds (R, 2K, S, D) for each layer, the K key heads first, then the K value heads."""

    def __init__(
        self, config: LMConfig, n_rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (n_rows, 2 * config.n_kv_heads, capacity, config.head_dim)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.n_rows, self.capacity = n_rows, capacity

    def spread(self, length: int, rows: Tensor) -> None:
        """Copy the first `length` positions of the rows that are filled, the first ones: row r becomes rows[r] (R,)."""
        if not torch.equal(rows, torch.arange(len(rows))):
            for data in self.layers:
                data[:, :, :length] = data[rows.to(data.device), :, :length]
