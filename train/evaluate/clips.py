"""True clips as the parts of the suite share them: drawn, coded and read once, when a part first asks for them."""
# Shapes: n B clips, T frames, H W height and width, N samples, t h w latent sizes, Q audio levels, F audio columns

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from train.data.playground import Scene
from train.evaluate import generation
from train.evaluate.detectors import Seen
from train.evaluate.tokenizer_metrics import psnr

if TYPE_CHECKING:
    from train.evaluate.suite import Suite


class Clips:
    """Scenes as clips of the model's size and length, as their ids, and as the tokenizers give them back."""

    def __init__(self, suite: Suite, scenes: Sequence[Scene], name: str) -> None:
        self.suite, self.scenes, self.name = suite, list(scenes), name

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def captions(self) -> list[str]:
        return [scene.caption for scene in self.scenes]

    @cached_property
    def video(self) -> Tensor:
        """(n, T, H, W, 3) uint8."""
        world, spec = self.suite.world, self.suite.spec
        return self._gather("drawn", lambda part: generation.to_frames(world.render(self.scenes[part], spec)))

    @cached_property
    def audio(self) -> Tensor:
        """(n, N) in [-1, 1]."""
        return self.suite.world.sound(self.scenes, self.suite.spec)

    @cached_property
    def video_ids(self) -> Tensor:
        """(n, t, h, w)."""
        return self.suite.encode_video(self.video, self.name)

    @cached_property
    def audio_ids(self) -> Tensor:
        """(n, Q, F)."""

        def encode(part: slice) -> Tensor:
            ids = generation.encode(self.suite.poet, None, self.audio[part])[1]
            assert ids is not None
            return ids

        return self._gather("sound coded", encode)

    @cached_property
    def video_again(self) -> Tensor:
        """(n, T, H, W, 3) uint8: what the ids show."""

        def decode(part: slice) -> Tensor:
            frames = generation.decode(self.suite.poet, self.video_ids[part], None).video
            assert frames is not None
            return frames

        return self._gather("decoded", decode)

    @cached_property
    def audio_again(self) -> Tensor:
        """(n, N'): what the ids sound like."""

        def decode(part: slice) -> Tensor:
            samples = generation.decode(self.suite.poet, None, self.audio_ids[part]).audio
            assert samples is not None
            return samples

        return self._gather("sound decoded", decode)

    @cached_property
    def seen(self) -> dict[str, list[Seen]]:
        """The reading of every clip ("truth") and of what the tokenizer keeps of it ("tokenizer")."""
        read = self.suite.read
        return {"truth": read(self.video, self.name), "tokenizer": read(self.video_again, f"{self.name}, decoded")}

    @cached_property
    def heard(self) -> dict[str, list[Tensor]]:
        """Seconds (K,) of the onsets of every clip and of what the tokenizer keeps of it."""
        return {"truth": self.suite.listen(self.audio), "tokenizer": self.suite.listen(self.audio_again)}

    def _gather(self, what: str, make: Callable[[slice], Tensor]) -> Tensor:
        return torch.cat([make(part) for part, _ in self.suite.batches(len(self), f"{self.name}, {what}")])


def decibels(made: Tensor, true: Tensor, where: Tensor | None = None) -> list[float]:
    """PSNR of each clip (B, T, H, W, 3) uint8, over all pixels or those of `where` (B, T, H, W) bool."""
    values = []
    for i in range(len(made)):  # one at a time: float64 is hungry
        one = slice(i, i + 1)
        inside = None if where is None else where[one]
        values += psnr(generation.to_unit(made[one]), generation.to_unit(true[one]), inside).tolist()
    return values
