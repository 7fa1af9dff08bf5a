"""The id space: an ordered list of named ranges, one per kind of token.

The order follows VideoPoet (arXiv:2312.14125, §A.5.1): 256 special ids, the visual codebook, one disjoint range per
audio codebook level, a small text vocabulary. The transformer knows ranges only by name; what an id looks or sounds
like is not its business.

A large range may be factorised (MAGVIT-v2, arXiv:2310.05737, §3.2): 2^18 ids are 512 x 512 pairs of values, and the
embedding has 512 + 512 rows for them. Rows follow the order of the ranges; where nothing is factorised, row i is id i.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

N_SPECIAL = 256  # fixed, so that new special tokens never shift the ids of a trained model


@dataclass(frozen=True)
class IdRange:
    """The ids start, start + 1, ..., start + size - 1.

    `factors` are sizes whose product is `size`, (size,) when left out; of several, each is 2 or more. They number the
    ids of the range as digits do, the first factor counting most.
    """

    name: str
    start: int
    size: int
    factors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1 or self.start < 0:
            raise ValueError(
                f"id range {self.name!r}: start={self.start}, size={self.size}; need start >= 0, size >= 1"
            )
        factors = tuple(self.factors) or (self.size,)
        if math.prod(factors) != self.size or (len(factors) > 1 and min(factors) < 2):
            raise ValueError(
                f"id range {self.name!r}: factors {factors} must be sizes of 2 or more whose product is {self.size}"
            )
        object.__setattr__(self, "factors", factors)

    @property
    def stop(self) -> int:
        """One past the last id."""
        return self.start + self.size

    @property
    def n_rows(self) -> int:
        """Number of embedding rows: one per value of each factor."""
        return sum(self.factors)

    def split(self, local: Tensor) -> list[Tensor]:
        """Ids counted from `start`, in [0, size), any shape -> one tensor of values in [0, factors[k]) per factor."""
        values = []
        for factor in reversed(self.factors[1:]):
            values.append(local % factor)
            local = local // factor
        return [local, *reversed(values)]

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Inverse of `split`."""
        local = values[0]
        for factor, value in zip(self.factors[1:], values[1:], strict=True):
            local = local * factor + value
        return local

    def __contains__(self, id: object) -> bool:
        return isinstance(id, int) and self.start <= id < self.stop


class Vocabulary:
    """Ordered, gap-free, named id ranges, the first of which holds the special tokens.

    Raises ValueError for gaps, overlaps, repeated names, and more special tokens than their range has room for.
    """

    def __init__(self, ranges: Sequence[IdRange], special: Sequence[str] = ()) -> None:
        self.ranges = tuple(ranges)
        self.special_tokens = tuple(special)
        if not self.ranges:
            raise ValueError("a vocabulary needs at least one id range")
        stop = 0
        for r in self.ranges:
            if r.start != stop:
                raise ValueError(
                    f"id range {r.name!r} starts at {r.start}, expected {stop}: ranges must follow each other"
                )
            stop = r.stop
        self._by_name = {r.name: r for r in self.ranges}
        self._rows: dict[str, tuple[tuple[int, int], ...]] = {}
        row = 0
        for r in self.ranges:
            edges = list(itertools.accumulate(r.factors, initial=row))
            self._rows[r.name] = tuple(itertools.pairwise(edges))
            row = edges[-1]
        if len(self._by_name) != len(self.ranges):
            raise ValueError(f"id range names must differ, got {[r.name for r in self.ranges]}")
        self._special = {name: i for i, name in enumerate(self.special_tokens)}
        if len(self._special) != len(self.special_tokens):
            raise ValueError("special token names must differ")
        room = self._by_name["special"].size if "special" in self._by_name else 0
        if len(self._special) > room:
            raise ValueError(f"{len(self._special)} special tokens do not fit into {room} ids")

    @classmethod
    def build(
        cls,
        special: Sequence[str],
        visual: int,
        audio: Sequence[int],
        text: int,
        visual_factors: Sequence[int] = (),
    ) -> Vocabulary:
        """Ranges "special" (256 ids), "visual", "audio_0", "audio_1", ..., "text"; a size of 0 leaves a range out.

        `visual_factors` factorises the visual range, see `IdRange`.
        """
        sizes = [
            ("special", N_SPECIAL),
            ("visual", visual),
            *((f"audio_{i}", n) for i, n in enumerate(audio)),
            ("text", text),
        ]
        ranges, start = [], 0
        for name, size in sizes:
            if size:
                ranges.append(IdRange(name, start, size, tuple(visual_factors) if name == "visual" else ()))
                start += size
        return cls(ranges, special)

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.ranges[-1].stop

    @property
    def n_rows(self) -> int:
        """Number of embedding rows; `size` when nothing is factorised."""
        return sum(r.n_rows for r in self.ranges)

    @property
    def factorised(self) -> tuple[IdRange, ...]:
        """The ranges of more than one factor."""
        return tuple(r for r in self.ranges if len(r.factors) > 1)

    def rows(self, name: str) -> tuple[tuple[int, int], ...]:
        """The embedding rows (first, one past the last) of each factor of a range; KeyError when there is no such."""
        return self._rows[self[name].name]

    def rows_of(self, ids: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The embedding rows whose sum stands for ids (...): the first row of each id (...), and what is to be added.

        The latter are pairs (rows (...), where they count (...) bool), one for each further factor of a range.
        """
        first = ids
        further: list[tuple[Tensor, Tensor]] = []
        for r in self.factorised:
            inside = (ids >= r.start) & (ids < r.stop)
            values = r.split((ids - r.start) * inside)
            rows = [start + value for (start, _), value in zip(self.rows(r.name), values, strict=True)]
            first = (first - (ids >= r.stop) * (r.size - r.n_rows)).where(~inside, rows[0])
            further += [(row, inside) for row in rows[1:]]
        return first, further

    def __getitem__(self, name: str) -> IdRange:
        if name not in self._by_name:
            raise KeyError(f"no id range {name!r}, expected one of {list(self._by_name)}")
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[IdRange]:
        return iter(self.ranges)

    def __len__(self) -> int:
        return len(self.ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.ranges, self.special_tokens))

    def __repr__(self) -> str:
        return f"Vocabulary({', '.join(f'{r.name}={r.size}' for r in self.ranges)})"

    def special(self, name: str) -> int:
        """The id of a special token; KeyError when it has none."""
        if name not in self._special:
            raise KeyError(f"no special token {name!r}, expected one of {list(self._special)}")
        return self["special"].start + self._special[name]

    def range_of(self, start: int, stop: int) -> IdRange:
        """The range that holds all ids in [start, stop); ValueError when no single range does."""
        for r in self.ranges:
            if r.start <= start < stop <= r.stop:
                return r
        raise ValueError(f"ids {start}..{stop - 1} do not lie in one id range of a vocabulary of {self.size} ids")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` undoes it."""
        ranges = [[r.name, r.size, list(r.factors)] if len(r.factors) > 1 else [r.name, r.size] for r in self.ranges]
        return {"ranges": ranges, "special": list(self.special_tokens)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Vocabulary:
        """Inverse of `to_dict`."""
        ranges, start = [], 0
        for name, size, *factors in data["ranges"]:
            ranges.append(IdRange(str(name), start, int(size), tuple(int(n) for n in factors[0]) if factors else ()))
            start += int(size)
        return cls(ranges, [str(s) for s in data["special"]])

    def table(self) -> str:
        """The map of the id space as text, one line per range and per special token."""
        lines = [f"{'range':<10} {'first':>8} {'last':>8} {'size':>8}" + "  embedding rows" * bool(self.factorised)]
        for r in self.ranges:
            rows = [f"{start}-{stop - 1} ({stop - start})" for start, stop in self.rows(r.name)]
            line = f"{r.name:<10} {r.start:>8} {r.stop - 1:>8} {r.size:>8}"
            lines.append(f"{line}  {' x '.join(rows)}" if self.factorised else line)
        lines += [f"  {self.special(name):>4} {name}" for name in self.special_tokens]
        return "\n".join(lines)
