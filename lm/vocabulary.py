"""The id space: an ordered list of named ranges, one per kind of token.

The order follows VideoPoet (arXiv:2312.14125, §A.5.1): 256 special ids, the visual codebook, one disjoint range per
audio codebook level, a small text vocabulary. The transformer knows ranges only by name; what an id looks or sounds
like is not its business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

N_SPECIAL = 256  # fixed, so that new special tokens never shift the ids of a trained model


@dataclass(frozen=True)
class IdRange:
    """The ids start, start + 1, ..., start + size - 1."""

    name: str
    start: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.start < 0:
            raise ValueError(
                f"id range {self.name!r}: start={self.start}, size={self.size}; need start >= 0, size >= 1"
            )

    @property
    def stop(self) -> int:
        """One past the last id."""
        return self.start + self.size

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
        if len(self._by_name) != len(self.ranges):
            raise ValueError(f"id range names must differ, got {[r.name for r in self.ranges]}")
        self._special = {name: i for i, name in enumerate(self.special_tokens)}
        if len(self._special) != len(self.special_tokens):
            raise ValueError("special token names must differ")
        room = self._by_name["special"].size if "special" in self._by_name else 0
        if len(self._special) > room:
            raise ValueError(f"{len(self._special)} special tokens do not fit into {room} ids")

    @classmethod
    def build(cls, special: Sequence[str], visual: int, audio: Sequence[int], text: int) -> Vocabulary:
        """Ranges "special" (256 ids), "visual", "audio_0", "audio_1", ..., "text"; a size of 0 leaves a range out."""
        sizes = [
            ("special", N_SPECIAL),
            ("visual", visual),
            *((f"audio_{i}", n) for i, n in enumerate(audio)),
            ("text", text),
        ]
        ranges, start = [], 0
        for name, size in sizes:
            if size:
                ranges.append(IdRange(name, start, size))
                start += size
        return cls(ranges, special)

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.ranges[-1].stop

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
        return {"ranges": [[r.name, r.size] for r in self.ranges], "special": list(self.special_tokens)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Vocabulary:
        """Inverse of `to_dict`."""
        ranges, start = [], 0
        for name, size in data["ranges"]:
            ranges.append(IdRange(str(name), start, int(size)))
            start += int(size)
        return cls(ranges, [str(s) for s in data["special"]])

    def table(self) -> str:
        """The map of the id space as text, one line per range and per special token."""
        lines = [f"{'range':<10} {'first':>8} {'last':>8} {'size':>8}"]
        lines += [f"{r.name:<10} {r.start:>8} {r.stop - 1:>8} {r.size:>8}" for r in self.ranges]
        lines += [f"  {self.special(name):>4} {name}" for name in self.special_tokens]
        return "\n".join(lines)
