"""Still images as training data: read once, kept small in memory, and seen by a moving camera."""
# Shapes: T frames

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch

from tokenizers_av.clip import Clip, read_clip
from train.data.motion import cut, moving_crop
from train.data.source import MediaSpec

if TYPE_CHECKING:
    from PIL.Image import Image

KEPT = 4  # pixels kept of the shorter side for each pixel asked for: half of it still has two
CACHE_BYTES = 256 * 2**20

T = TypeVar("T")


class Cache(Generic[T]):
    """The values used last, by key, as many as fit into `limit` bytes; for several threads."""

    def __init__(self, measure: Callable[[T], int], limit: int = CACHE_BYTES) -> None:
        self.measure, self.limit, self.n_bytes = measure, limit, 0
        self._values: OrderedDict[object, T] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: object, make: Callable[[], T]) -> T:
        """The value under `key`; where there is none, the one that `make` returns."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()  # without the lock: two threads may both make it, which does no harm
        n_bytes = self.measure(value)
        with self._lock:
            if key not in self._values and n_bytes <= self.limit:
                self._values[key] = value
                self.n_bytes += n_bytes
                while self.n_bytes > self.limit:
                    self.n_bytes -= self.measure(self._values.popitem(last=False)[1])
        return value


@dataclass(frozen=True)
class Still:
    """An image in memory."""

    picture: Image  # RGB, what is transparent on white
    alpha: Image | None  # L; None where nothing is transparent

    @property
    def n_bytes(self) -> int:
        return self.picture.width * self.picture.height * (4 if self.alpha is None else 5)  # Pillow keeps RGB in 4

    def on(self, colour: tuple[int, int, int]) -> Image:
        """The picture (RGB) with `colour` where it is transparent."""
        if self.alpha is None:
            return self.picture
        from PIL import Image

        clear = 255 - np.asarray(self.alpha, dtype=np.int32)[..., None]
        darker = (255 - np.array(colour, dtype=np.int32)) * clear // 255  # than on white
        return Image.fromarray((np.asarray(self.picture) - darker).clip(0, 255).astype(np.uint8))


def read_still(path: Path, shorter: int) -> Still:
    """Read an image and shrink it until its shorter side has `shorter` pixels; raises MediaError."""
    from PIL import Image

    frames = read_clip(path).frames
    assert frames is not None
    picture, alpha = Image.fromarray(frames[0].numpy()), _alpha(path)
    if (scale := shorter / min(picture.size)) < 1:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        alpha = alpha and alpha.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    return Still(picture, alpha)


def _alpha(path: Path) -> Image | None:
    """How opaque each pixel of a readable image is; None where all are."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if not image.has_transparency_data or image.mode.startswith(("I", "F")):
            return None
        alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def moving_still(still: Still, draw: random.Random, spec: MediaSpec) -> Clip:
    """A clip of a slowly moving crop of an image, mirrored or not, on a plain colour where it is transparent."""
    flip = draw.random() < 0.5
    picture = still.on((draw.randrange(256), draw.randrange(256), draw.randrange(256)))
    boxes = moving_crop(draw, picture.height, picture.width, spec)
    return Clip(torch.from_numpy(cut(picture, boxes, spec.size, flip)), spec.fps)
