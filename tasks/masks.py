"""The hole of inpainting: which pixels of a video are to be painted anew, at any size, rate and length.

A hole is stretched with the frames of its video. Where one pixel covers several it is hole as soon as one of them is,
so that nothing of the hole shows through.
"""
# Shapes: T frames, H W pixels of a frame; a hole is bool, True where a pixel is to be painted

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.errors import InputError
from tasks.source import Media, Source
from tokenizers_av.clip import Clip

WHITE = 128  # the darkest grey that counts as hole
KNOWN_FRAMES = 9  # that a late hole of training leaves alone: three latent frames
LATE = 0.15  # share of the holes of training that are late

Box = tuple[int, int, int, int]  # left, top, width, height in pixels
MaskLike: TypeAlias = "Mask | Media | Tensor | Box"


class Mask:
    """The hole of a video of any size: a box, or the white of a picture, of a moving picture or of a tensor."""

    def __init__(self, what: Box | Tensor | Source, name: str = "mask") -> None:
        """Use `parse`, which checks; a tensor is (T, H, W) bool."""
        self.what, self.name = what, name

    @classmethod
    def parse(cls, value: MaskLike, name: str = "mask") -> Mask:
        """A Mask from whatever says where the hole is; `name` is what errors call it.

        "X,Y,W,H" or four ints: a box W wide and H high whose top left pixel is X,Y, in pixels of the video.
        A path or Clip: hole where it is white (grey of 128 or more) or transparent, stretched to the frames of the
        video. One picture counts for all frames; of a moving one the frame of each time, in the end its last frame.
        A tensor (H, W) or (T, H, W): bool, or uint8 in grey or in 0 and 1; one for all frames, or one after another at
        whatever rate is asked for (a Clip has a rate of its own).
        Raises InputError, and MediaError where a file cannot be read; an image is read whole, a video begun.
        """
        if isinstance(value, Mask):
            return value
        if isinstance(value, Tensor):
            return cls(_tensor_hole(value, name), name)
        if isinstance(value, (tuple, list)):
            if len(value) != 4 or any(isinstance(n, bool) or not isinstance(n, int) for n in value):
                raise InputError(f"{name} {value}: expected four whole numbers X, Y, W, H")
            return cls(_box(value, name), name)
        if not isinstance(value, (str, os.PathLike, Clip)):
            raise InputError(f"{name} is {type(value).__name__}, expected (X, Y, W, H), a path, a tensor or a Clip; "
                             "a list is one of these for each of several videos")  # fmt: skip
        if isinstance(value, str) and not os.path.exists(value):
            numbers = re.fullmatch(r"\s*,\s*".join(["(-?[0-9]{1,9})"] * 4), value.strip())
            if numbers is not None:
                return cls(_box([int(n) for n in numbers.groups()], name), name)
            if "," in value or not value.strip():
                raise InputError(f"{name} {value!r}: expected X,Y,W,H in pixels or a picture or video that exists")
        source = Source(value, need="video")
        mask = cls(source, name)
        next(mask._raw(1.0))
        return mask

    def check(self, height: int, width: int) -> None:
        """InputError where the hole cannot be that of a video of height x width.

        That is a box that does not fit in, and a hole of nothing or of everything. Of a moving picture only a Clip is
        looked through, a file is not.
        """
        if isinstance(self.what, tuple):
            x, y, w, h = self.what
            for end, side, adjective in ((x + w, width, "wide"), (y + h, height, "high")):
                if end > side:
                    raise InputError(f"{self.name} {x},{y},{w},{h} ends at {end}, the video is {side} {adjective}")
        if isinstance(self.what, Source) and not self.what.is_image and not isinstance(self.what.media, Clip):
            return
        rate = self.what.media.fps if isinstance(self.what, Source) and isinstance(self.what.media, Clip) else 1.0
        some, every = False, True
        for hole in self._raw(rate, (height, width)):
            some, every = some or bool(hole.any()), every and bool(hole.all())
        if not some:
            raise InputError(f"{self.name}: nothing of the video is hole, there would be nothing to paint")
        if every:
            raise InputError(f"{self.name}: all of the video is hole, there would be nothing to go by")

    def frames(self, fps: float, height: int, width: int) -> Iterator[Tensor]:
        """Holes (height, width) bool without end, one for each frame of a video of that size at that rate."""
        hole = None
        for raw in self._raw(fps, (height, width)):
            hole = cover(raw, height, width)
            yield hole
        assert hole is not None
        while True:
            yield hole

    def _raw(self, fps: float, source_size: tuple[int, int] = (1, 1)) -> Iterator[Tensor]:
        """Holes (H, W) bool as they are given, each once: one, or as many as move."""
        if isinstance(self.what, Tensor):
            yield from self.what
        elif isinstance(self.what, Source):
            for window in self.what.windows(sample_rate=16000, fps=fps, seconds=1 / fps, audio=False):
                assert window.frames is not None
                yield from window.frames.float().mean(-1) >= WHITE - 0.5
        else:
            x, y, w, h = self.what
            hole = torch.zeros(source_size, dtype=torch.bool)
            hole[y : y + h, x : x + w] = True
            yield hole


def _box(values: Sequence[int], name: str) -> Box:
    x, y, w, h = values
    if x < 0 or y < 0:
        raise InputError(f"{name} {x},{y},{w},{h} begins outside the video, expected X and Y of at least 0")
    if w < 1 or h < 1:
        raise InputError(f"{name} {x},{y},{w},{h} is a box of no size, expected W and H of at least 1")
    return x, y, w, h


def _tensor_hole(values: Tensor, name: str) -> Tensor:
    """(T, H, W) bool from (H, W) or (T, H, W) bool or uint8."""
    if values.dtype not in (torch.bool, torch.uint8) or values.ndim not in (2, 3) or not values.numel():
        found = f"{tuple(values.shape)} {values.dtype}"
        raise InputError(f"{name} is a tensor of {found}, expected (H, W) or (T, H, W), bool or uint8")
    values = values.detach().cpu()
    if values.dtype == torch.uint8:
        values = values >= (WHITE if values.max() > 1 else 1)
    return values if values.ndim == 3 else values[None]


def cover(hole: Tensor, height: int, width: int) -> Tensor:
    """(height, width) bool: whether any part of a pixel lies on the hole (H, W)."""
    if hole.shape == (height, width):
        return hole
    return F.adaptive_max_pool2d(hole[None].float(), (height, width))[0] > 0


def random_hole(n_frames: int, height: int, width: int, rng: random.Random) -> Tensor:
    """(T, H, W) bool, a hole to train on; height and width are at least 8. Never empty and never everything.

    Half are boxes that stay, a quarter boxes that move straight on, a quarter one to three ellipses. A box has half the
    height and width of the frame in half of the cases (MAGVIT, arXiv:2212.05199), else 0.25 to 0.75 of each. Some of
    all of these begin after KNOWN_FRAMES frames that are known.
    """
    kind = rng.choice(("box", "box", "moving box", "ellipses"))
    if kind == "ellipses":
        hole = torch.zeros(height, width, dtype=torch.bool)
        for _ in range(rng.randint(1, 3)):  # no ellipse reaches two corners: three leave one corner free
            y, x = ((torch.arange(n) + 0.5) / n - rng.random() for n in (height, width))
            hole |= (y / rng.uniform(0.1, 0.4)).square()[:, None] + (x / rng.uniform(0.1, 0.4)).square() < 1
        holes = hole.repeat(n_frames, 1, 1)
    else:
        shares = (0.5, 0.5) if rng.random() < 0.5 else (rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75))
        inside = []
        for n, share in zip((height, width), shares):
            length = round(n * share)
            first, last = rng.randint(0, n - length), rng.randint(0, n - length)
            ends = torch.linspace(first, last if kind == "moving box" else first, n_frames).round()[:, None]
            inside.append((torch.arange(n) >= ends) & (torch.arange(n) < ends + length))
        holes = inside[0][:, :, None] & inside[1][:, None, :]
    if n_frames > KNOWN_FRAMES and rng.random() < LATE:
        holes[:KNOWN_FRAMES] = False
    return holes
