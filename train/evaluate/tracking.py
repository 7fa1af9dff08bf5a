"""Finding the one coloured object of a clip: its hue, a soft mask of it, and where it is in each frame.

The grounds of the playground are muted, its objects are not. Everything happens in the plane of hue and colourfulness
(opponent coordinates), in which shading, highlights and blur shorten an object's vector but hardly turn it.
"""
# Shapes: T frames, H W height and width

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from train.data.playground.scene import COLOURS

MUTED = 0.26  # colourfulness up to which a pixel may be ground
MIN_CHROMA = 0.14  # an object's pixels stand at least so far from the ground in the colour plane
MIN_AREA = 0.008  # of the squared image height; the smallest object covers about 0.023
RAMP = (0.22, 0.50)  # share of the object's colour at which the soft mask leaves 0 and reaches 1
NEIGHBOURHOOD = 0.30  # pixels farther from the object's centre than this, in image heights, are not its own


@dataclass
class Track:
    """The object of a clip."""

    mask: Tensor  # (T, H, W) float in [0, 1]
    centre: Tensor  # (T, 2) centroid of the mask, x then y, in image heights; NaN where not visible
    visible: Tensor  # (T,) bool
    colour: str | None  # one of COLOURS, None if the clip shows nothing coloured


def colour_plane(rgb: Tensor) -> Tensor:
    """RGB (..., 3) to opponent coordinates (..., 2), whose angle is the hue and whose length the colourfulness."""
    r, g, b = rgb.unbind(-1)
    return torch.stack([r - (g + b) / 2, (g - b) * (math.sqrt(3) / 2)], -1)


def _ground(plane: Tensor) -> Tensor:
    """The colour of the ground without the object, (H, W, 2), from (T, H, W, 2).

    Temporal median of the muted values of a pixel. One that is never muted takes the median of its row; the grounds
    change mostly from top to bottom.
    """
    muted = (plane.norm(dim=-1, keepdim=True) < MUTED).expand_as(plane)
    seen = torch.where(muted, plane, torch.nan)
    still = seen.nanmedian(0).values
    row = still.nanmedian(1, keepdim=True).values
    return torch.where(still.isnan(), row, still).nan_to_num(0.0)


def _dominant_hue(away: Tensor, n_bins: int = 72) -> Tensor | None:
    """Unit vector (2,) of the hue with most mass among vectors away (T, H, W, 2) from the ground; None for no mass."""
    length = away.norm(dim=-1)
    weight = (length - MIN_CHROMA).clamp(min=0)
    if weight.sum() / (weight.shape[0] * weight.shape[1] ** 2) < 0.2 * MIN_AREA * MIN_CHROMA:
        return None
    angle = torch.atan2(away[..., 1], away[..., 0])
    place = ((angle / (2 * math.pi) + 0.5) * n_bins).long().clamp(0, n_bins - 1)
    mass = torch.zeros(n_bins).scatter_add_(0, place.flatten(), weight.flatten())
    smooth = mass + 0.7 * (mass.roll(1) + mass.roll(-1)) + 0.3 * (mass.roll(2) + mass.roll(-2))
    best = (int(smooth.argmax()) + 0.5) / n_bins * 2 * math.pi - math.pi
    near = torch.cos(angle - best) > math.cos(math.radians(18))
    total = (away * (weight * near)[..., None]).sum((0, 1, 2))
    return total / total.norm()


_NAMES = tuple(COLOURS)
_HUES = F.normalize(colour_plane(torch.tensor([COLOURS[name] for name in _NAMES])), dim=-1)  # (8, 2)


def colour_name(hue: Tensor) -> str:
    """The named colour whose hue is nearest to a vector (2,) of the colour plane."""
    return _NAMES[int((_HUES @ hue).argmax())]


def _centroid(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted centre (T, 2) in pixels, x then y, a pixel's centre at its index + 0.5, and the area (T,)."""
    H, W = mask.shape[1:]
    area = mask.sum((1, 2))
    x = (mask.sum(1) * (torch.arange(W) + 0.5)).sum(1) / area.clamp(min=1e-6)
    y = (mask.sum(2) * (torch.arange(H) + 0.5)).sum(1) / area.clamp(min=1e-6)
    return torch.stack([x, y], -1), area


def _keep_object(mask: Tensor) -> Tensor:
    """Drop what lies far from the biggest blob: (T, H, W) -> the same."""
    H, W = mask.shape[1:]
    side = max(3, round(0.28 * H) | 1)
    crowd = F.avg_pool2d(mask[:, None], (side, 1), 1, (side // 2, 0), count_include_pad=True)
    crowd = F.avg_pool2d(crowd, (1, side), 1, (0, side // 2), count_include_pad=True)[:, 0]
    best = crowd.flatten(1).argmax(1)
    centre = torch.stack([best % W, best // W], -1) + 0.5
    xs, ys = torch.arange(W) + 0.5, torch.arange(H) + 0.5
    for _ in range(2):
        near = ((xs - centre[:, :1]) ** 2)[:, None, :] + ((ys - centre[:, 1:]) ** 2)[:, :, None]
        kept = mask * (near < (NEIGHBOURHOOD * H) ** 2)
        centre = _centroid(kept)[0]
    return kept


def track(frames: Tensor) -> Track:
    """Follow the object of a clip: frames (T, H, W, 3) uint8."""
    T, H, W, _ = frames.shape
    plane = colour_plane(frames.float() / 255)
    away = plane - _ground(plane)
    hue = _dominant_hue(away)
    if hue is None:
        nowhere = torch.full((T, 2), torch.nan)
        return Track(torch.zeros(T, H, W), nowhere, torch.zeros(T, dtype=torch.bool), None)
    along = away @ hue  # (T, H, W)
    strong = along > MIN_CHROMA
    full = along[strong].quantile(0.8) if strong.any() else along.new_tensor(1.0)
    # A hue off by more than 40 degrees is another thing's.
    own = along > away.norm(dim=-1) * math.cos(math.radians(40))
    low, high = RAMP
    mask = ((along / full - low) / (high - low)).clamp(0, 1) * own * (along > 0.5 * MIN_CHROMA)
    mask = _keep_object(mask)
    centre, area = _centroid(mask)
    visible = area > MIN_AREA * H * H
    centre = torch.where(visible[:, None], centre / H, torch.nan)
    core = mask > 0.9
    colour = colour_name(F.normalize((plane * core[..., None]).sum((0, 1, 2)), dim=0)) if visible.any() else None
    return Track(mask, centre, visible, colour)
