"""What a generation is asked for: the prefixes that it starts from, and what may stand at each place that it fills."""

# Shapes: P ids of a prefix, N places of a plan

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Plan:
    """What may stand at each of N output places, and where these places lie."""

    start: Tensor  # (N,) int64
    stop: Tensor  # (N,) int64; stop - start == 1 forces the id
    positions: Tensor  # (N, 3) float: (t, h, w)

    def __post_init__(self) -> None:
        n = self.start.shape[0]
        if n < 1 or self.start.shape != (n,) or self.stop.shape != (n,) or self.positions.shape != (n, 3):
            raise ValueError(
                f"a plan needs start (N,), stop (N,) and positions (N, 3) with N >= 1, got {tuple(self.start.shape)}, "
                f"{tuple(self.stop.shape)}, {tuple(self.positions.shape)}"
            )

    def __len__(self) -> int:
        return self.start.shape[0]


@dataclass
class Prefix:
    """What the samples start from: one ragged batch of ids and their places."""

    ids: list[Tensor] = field(default_factory=list)  # (P_i,) int64 each
    positions: list[Tensor] = field(default_factory=list)  # (P_i, 3) float each

    def __post_init__(self) -> None:
        if not self.ids or len(self.ids) != len(self.positions):
            raise ValueError(f"a prefix needs as many ids as positions, got {len(self.ids)} and {len(self.positions)}")
        for i, (ids, positions) in enumerate(zip(self.ids, self.positions, strict=True)):
            if ids.ndim != 1 or not len(ids) or positions.shape != (len(ids), 3):
                raise ValueError(
                    f"prefix {i}: need ids (P,) with P >= 1 and positions (P, 3), "
                    f"got {tuple(ids.shape)} and {tuple(positions.shape)}"
                )

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: Prefix) -> Prefix:
        return Prefix([*self.ids, *other.ids], [*self.positions, *other.positions])

    def distinct(self) -> tuple[Prefix, Tensor]:
        """The prefixes without repetitions, and which of them each one is, (len(self),) int64."""
        first: dict[tuple[bytes, bytes], int] = {}
        which = []
        for ids, positions in zip(self.ids, self.positions, strict=True):
            key = ids.cpu().numpy().tobytes(), positions.cpu().float().numpy().tobytes()
            which.append(first.setdefault(key, len(first)))
        kept = [which.index(i) for i in range(len(first))]
        return Prefix([self.ids[i] for i in kept], [self.positions[i] for i in kept]), torch.tensor(which)
