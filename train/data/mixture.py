"""Several sources as one: each sample comes from one of them, drawn by weight."""
# Shapes: B batch, T frames, H W height and width, N samples

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenizers_av.clip import MediaError
from train.data.source import SPLITS, MediaBatch, MediaSpec, Source

log = logging.getLogger(__name__)


class Mixture:
    """Sample i is sample i of source k, where k is drawn with probability weights[k] / sum(weights) (default: equal).

    Which source that is, is a pure function of (seed, split, i). A source that has no picture (or, where only sound is
    wanted, no sound) at all is reported once and left out, as a folder leaves out such files.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float] | None = None,
        split: str = "train",
        seed: int = 0,
        device: Any = "cpu",
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
        self.sources, self.split, self.seed, self.device = list(sources), split, seed, device
        self.weights = check_weights(weights, len(self.sources))
        self._empty: set[tuple[int, bool]] = set()  # (source, whether a picture was wanted)

    def __repr__(self) -> str:
        parts = ", ".join(f"{weight:.3g} x {source!r}" for weight, source in zip(self.weights, self.sources))
        return f"Mixture({parts})"

    @property
    def skipped(self) -> dict[str, str]:
        """Path -> reason, of all files that could not be read so far."""
        from train.data.folder import FolderSource

        folders = [source for source in self.sources if isinstance(source, FolderSource)]
        return {str(folder.root / name): reason for folder in folders for name, reason in folder.skipped.items()}

    def batch(self, indices: Sequence[int], spec: MediaSpec, *, video: bool = True, audio: bool = True) -> MediaBatch:
        """Clips for the given indices, in their order, on the mixture's device."""
        if not len(indices):
            raise ValueError("indices is empty; need at least one")
        waiting, parts = list(range(len(indices))), []  # positions without a sample; (positions, their samples)
        while waiting:
            shares: dict[int, list[int]] = {}
            for position in waiting:
                shares.setdefault(self.choose(int(indices[position]), video), []).append(position)
            waiting = []
            for k, places in shares.items():
                try:
                    found = self.sources[k].batch([int(indices[p]) for p in places], spec, video=video, audio=audio)
                except MediaError as error:
                    self._leave_out(k, video, error)
                    waiting += places
                else:
                    parts.append((places, found.to(self.device)))
        order = [place for places, _ in parts for place in places]
        back = sorted(range(len(order)), key=order.__getitem__)  # where in the joined parts each sample lies
        captions = [caption for _, part in parts for caption in part.captions]
        scenes = [scene for places, part in parts for scene in part.scenes or [None] * len(places)]
        return MediaBatch(
            video=_joined([part.video for _, part in parts], back),
            audio=_joined([part.audio for _, part in parts], back),
            captions=[captions[place] for place in back],
            scenes=[scenes[place] for place in back],
        )

    def choose(self, index: int, video: bool = True) -> int:
        """The source that sample `index` is drawn from, among those not known to lack what is wanted."""
        draw = random.Random(f"{self.seed}/{self.split}/{index}/source")
        # a race: the first of exponential times with rates w is k with probability w[k] / sum(w), whoever else runs
        times = [draw.expovariate(1) / weight if weight else math.inf for weight in self.weights]
        return min((k for k in range(len(times)) if (k, video) not in self._empty), key=times.__getitem__)

    def _leave_out(self, k: int, video: bool, error: MediaError) -> None:
        self._empty.add((k, video))
        if not any(weight for j, weight in enumerate(self.weights) if (j, video) not in self._empty):
            raise error
        log.warning("left out of the mixture: %s", error)


def check_weights(weights: Sequence[float] | None, n: int) -> list[float]:
    """The share of each of n sources, summing to 1; raises ValueError."""
    if n < 1:
        raise ValueError("a mixture of no sources; name at least one")
    if weights is None:
        return [1 / n] * n
    if len(weights) != n:
        raise ValueError(f"weights={list(weights)}: {len(weights)} for {n} sources; give one for each")
    total = sum(weights)
    if not all(weight >= 0 for weight in weights) or not (total > 0 and math.isfinite(total)):
        raise ValueError(f"weights={list(weights)}: each must be at least 0, and one of them above 0")
    return [weight / total for weight in weights]


def _joined(parts: list[Tensor | None], back: list[int]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors)[back] if tensors else None
