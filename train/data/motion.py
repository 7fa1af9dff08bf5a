"""Square crops of pictures: one that stays for a video, one that drifts and zooms for a still image."""
# Shapes: T frames, H W height and width

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from train.data.source import MediaSpec

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST = 0.5  # the smallest crop, as a share of the shorter side
LEAST_OF_SMALL = 0.75  # the same where the picture has no more pixels than are asked for
ZOOM = 1.25  # a crop grows or shrinks by at most this factor in a second
DRIFT = 0.25  # its centre moves by at most this many of its sides in a second, each way
SPARE = 1.5  # pixels kept for each pixel asked for, where a picture is reduced before its crops are resized

Box = tuple[float, float, float]  # left, top, side, in pixels: always inside the picture


def fixed_crop(draw: random.Random, height: int, width: int, size: int) -> Box:
    """A crop at random: its side between half and all of the shorter side, but not below `size` pixels if it can be."""
    side = _side(draw, min(height, width), size, 0, float("inf"))
    return draw.uniform(0, width - side), draw.uniform(0, height - side), side


def moving_crop(draw: random.Random, height: int, width: int, spec: MediaSpec) -> list[Box]:
    """T crops between two that are drawn at random: as a camera that drifts and zooms steadily and slowly."""
    short, zoom = min(height, width), ZOOM**spec.seconds
    left, top, first = fixed_crop(draw, height, width, spec.size)
    last = _side(draw, short, spec.size, first / zoom, first * zoom)
    reach = DRIFT * spec.seconds * (first + last) / 2
    centres = []
    for start, extent in ((left + first / 2, width), (top + first / 2, height)):
        low, high = last / 2, extent - last / 2  # where the last centre may lie, and with it all between
        centres.append((start, draw.uniform(*(min(max(x, low), high) for x in (start - reach, start + reach)))))
    boxes = []
    for k in range(spec.n_frames):
        u = k / max(1, spec.n_frames - 1)
        x, y, side = (a + u * (b - a) for a, b in (*centres, (first, last)))
        boxes.append((x - side / 2, y - side / 2, side))
    return boxes


def _side(draw: random.Random, short: int, size: int, low: float, high: float) -> float:
    """A side between `low` and `high` pixels, as far as the picture allows; small and large ones are equally likely."""
    least = short * min(LEAST_OF_SMALL, max(LEAST, size / short))
    low, high = max(low, least), min(high, short)
    return min(high, low * (high / low) ** draw.random())


def cut(picture: Image, boxes: Sequence[Box], size: int, flip: bool = False) -> np.ndarray:
    """The crops of one picture as (T, size, size, 3) uint8, each resized with antialiasing; `flip` mirrors them."""
    from PIL.Image import Resampling

    factor = max(1, int(min(side for _, _, side in boxes) / (SPARE * size)))
    width, height = picture.width / factor, picture.height / factor
    if factor > 1:
        picture = picture.reduce(factor)
    frames = np.empty((len(boxes), size, size, 3), dtype=np.uint8)
    for frame, (left, top, side) in zip(frames, boxes):
        left, top, side = left / factor, top / factor, side / factor
        box = (max(0.0, left), max(0.0, top), min(width, left + side), min(height, top + side))  # rounding apart
        frame[:] = np.asarray(picture.resize((size, size), Resampling.BICUBIC, box=box))
    return np.ascontiguousarray(frames[:, :, ::-1]) if flip else frames
