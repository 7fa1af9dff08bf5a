"""What a clip of one object shows: colour, shape, size, motion and the impacts that can be seen. No network involved.

Made for the plain style under a still camera; blur as from a small tokenizer is tolerated.
"""
# Shapes: T frames, H W height and width

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from train.evaluate.motion import filled, motion_name, paint, seen_impacts, went
from train.evaluate.outlines import Outline, outline
from train.evaluate.tracking import Track, track


@dataclass
class Seen:
    """The reading of one clip; None where there is nothing to read."""

    colour: str | None
    shape: str | None
    size: str | None
    motion: str | None
    direction: str | None
    impacts: Tensor  # (K,) seconds at which the object is seen to be thrown back
    path: Tensor  # (T, 2) centres in image heights, x then y
    track: Track
    outline: Outline
    fps: float

    def went(self, motion: str, direction: str | None) -> bool:
        """Whether the object moved the way that was asked for, see `motion.went`."""
        return went(self.path, self.fps, motion, direction)


@torch.no_grad()
def look(frames: Tensor, fps: float) -> Seen:
    """Read a clip: frames (T, H, W, 3) uint8."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
        raise ValueError(f"frames are {frames.dtype} {tuple(frames.shape)}: expected uint8 of shape (T, H, W, 3)")
    frames = frames.cpu()
    found = track(frames)
    shape = outline(found)
    lit = paint(frames, found.colour) if found.colour else found.mask
    motion, direction = motion_name(found, fps, shape.radius, lit)
    path = filled(found.centre)
    if found.visible.float().mean() < 0.5:  # too little to speak of a path
        motion, direction, path = None, None, torch.full_like(path, torch.nan)
    return Seen(
        colour=found.colour,
        shape=shape.shape,
        size=shape.size,
        motion=motion,
        direction=direction,
        impacts=seen_impacts(path, fps, motion),
        path=path,
        track=found,
        outline=shape,
        fps=fps,
    )
