"""The playground: an endless, deterministic world of sounding shapes, with captions and the whole truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from train.data.playground.captions import all_captions
from train.data.playground.maps import depth, flow, flow_since, masks
from train.data.playground.physics import Impact
from train.data.playground.render import render
from train.data.playground.scene import Scene, Thing, Truth, evaluation_scene, sample_scene
from train.data.playground.sound import sound
from train.data.source import SPLITS, MediaBatch, MediaSpec

__all__ = ["Impact", "Playground", "Scene", "Thing", "Truth", "all_captions", "depth", "flow", "flow_since", "masks"]


class Playground:
    """A `Source` without end: the clip with an index is a pure function of (seed, split, index, spec)."""

    len: int | None = None

    def __init__(self, split: str = "train", seed: int = 0, device: Any = "cpu"):
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
        self.split, self.seed, self.device = split, seed, device

    def scene(self, index: int) -> Scene:
        return sample_scene(self.seed, self.split, int(index))

    def batch(self, indices: Sequence[int], spec: MediaSpec, *, video: bool = True, audio: bool = True) -> MediaBatch:
        scenes = [self.scene(index) for index in indices]
        return MediaBatch(
            video=self.render(scenes, spec) if video else None,
            audio=self.sound(scenes, spec) if audio else None,
            captions=[scene.caption for scene in scenes],
            scenes=scenes,
        )

    def render(self, scenes: Sequence[Scene], spec: MediaSpec) -> Tensor:
        """Frames (B, 3, T, H, W) float32 in [-1, 1]."""
        return render(scenes, spec, self.device)

    def sound(self, scenes: Sequence[Scene], spec: MediaSpec) -> Tensor:
        """Samples (B, N) float32 in [-1, 1]."""
        return sound(scenes, spec, self.device)

    def evaluation_scenes(self, n: int) -> list[Scene]:
        """Scenes to ask a model for: one object, plain style, still camera, whatever this source's split is."""
        return [evaluation_scene(self.seed, index) for index in range(n)]
