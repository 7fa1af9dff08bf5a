"""Which style a clip of one moving object is drawn in, told from simple statistics; no network involved.

Grounds tell neon, which is dark, and sketch, which is bright as paper. Where something moves, pixel art changes in
whole blocks; these can be smaller than what a small tokenizer keeps.
"""
# Shapes: T frames, H W height and width

from __future__ import annotations

import torch
from torch import Tensor

from tokenizers_av.optical_flow import luminance
from train.data.playground.render import pixel_block
from train.evaluate.tracking import MUTED, colour_plane

# Mean luminance of the ground over 40 scenes: neon up to 0.17, plain and pixel 0.47 to 0.79, sketch from 0.83 on
DARK, BRIGHT = 0.3, 0.81
BLOCKY = 0.2  # of the change across the edges of blocks is left inside them; pixel art has 0, plain clips from 0.38 on


@torch.no_grad()
def style(frames: Tensor) -> str:
    """One of STYLES for frames (T, H, W, 3) uint8, T > 1: whatever is neither neon nor sketch nor pixel is plain."""
    light = luminance(frames)
    ground = colour_plane(frames.float() / 255).norm(dim=-1) < MUTED
    brightness = float(light[ground].mean()) if ground.any() else 0.5
    if brightness < DARK:
        return "neon"
    if brightness > BRIGHT:
        return "sketch"
    return "pixel" if within_blocks(light, pixel_block(frames.shape[1])) < BLOCKY else "plain"


def within_blocks(light: Tensor, block: int) -> float:
    """Squared steps between neighbours inside a grid of blocks over those across its lines, each in the mean.

    light: (T, H, W), of which only what differs from its median over time counts. NaN where nothing moves.
    """
    moving = light - light.median(0).values
    inside = across = 0.0
    for axis in (1, 2):
        step = moving.diff(dim=axis).square()
        line = (torch.arange(step.shape[axis]) + 1) % block == 0
        across += float(step.index_select(axis, line.nonzero()[:, 0]).mean())
        inside += float(step.index_select(axis, (~line).nonzero()[:, 0]).mean())
    return inside / across if across else float("nan")
