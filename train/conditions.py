"""Conditioning clips to train on: each task that has a condition is shown one, drawn at random, of every clip."""
# Shapes: B clips, T frames, H W height and width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.table import TASKS
from tasks.task import Example
from train.data import MediaBatch, MediaSpec

if TYPE_CHECKING:
    from train.data.playground import Scene


def conditions(clips: MediaBatch, spec: MediaSpec, seeds: Sequence[str]) -> dict[str, Tensor]:
    """By the name of the task, the conditioning clips (B, 3, T, H, W) in [-1, 1] of the first spec.n_frames of clips.

    What is drawn follows from the clip's own seed. Where the scene of a clip is known, its example holds the true depth
    and flow, and another rendering of it.
    """
    assert clips.video is not None
    frames = _to_frames(clips.video[:, :, : spec.n_frames])
    examples = [Example(f, f) for f in frames]
    known = {i: scene for i, scene in enumerate(clips.scenes or ()) if scene is not None}
    if known:
        which = list(known)
        told = _known(frames[which], list(known.values()), spec, [seeds[i] for i in which])
        for i, example in zip(which, told, strict=True):
            examples[i] = example
    made = {}
    for name, task in TASKS.items():
        if task.condition is not None:
            make = task.condition.example
            made[name] = torch.stack([make(e, Random(f"{name}/{s}")) for e, s in zip(examples, seeds, strict=True)])
    return {name: clip.permute(0, 4, 1, 2, 3).float() / 127.5 - 1 for name, clip in made.items()}


def _to_frames(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [-1, 1] -> (B, T, H, W, 3) uint8 on the CPU."""
    return ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().cpu()


def _known(frames: Tensor, scenes: Sequence[Scene], spec: MediaSpec, seeds: Sequence[str]) -> list[Example]:
    from train.data.playground import depth, flow_since
    from train.data.playground.render import render
    from train.data.playground.scene import STYLES

    other = [
        replace(scene, style=Random(f"style/{seed}").choice([s for s in STYLES if s != scene.style]))
        for scene, seed in zip(scenes, seeds, strict=True)
    ]
    drawn = _to_frames(render(other, spec))
    examples = []
    for mine, otherwise, scene in zip(frames, drawn, scenes, strict=True):
        examples.append(Example(mine, otherwise, depth(scene, spec), flow_since(scene, spec)))
    return examples
