"""Paint a part of a video anew. The condition is the video with the hole in grey, the zero of the network's input."""
# Shapes: T frames, H W height and width

from __future__ import annotations

from collections import deque
from random import Random
from typing import TYPE_CHECKING, Any

from tasks.task import Argument, Block, Condition, Conditioner, Example, Task

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.masks import Mask

GREY = 128


class _Hole(Conditioner):
    """Frames with the pixels of a mask blanked."""

    def __init__(self, source: tuple[int, int], size: tuple[int, int], fps: float, *, mask: Mask) -> None:
        mask.check(*source)
        super().__init__(source, size, fps)
        self.coming = mask.frames(fps, *source)
        self.holes: deque[Tensor] = deque()  # of the frames from `begin` on
        self.begin = 0

    def frames(self, frames: Tensor, first: int) -> Tensor:
        import torch

        from tasks.masks import cover
        from tokenizers_av.media_frames import stretch

        hole = torch.stack([cover(h, *self.size) for h in self._holes(first, len(frames))])
        return stretch(frames, *self.size).masked_fill(hole[..., None], GREY)

    def composite(self, made: Tensor, frames: Tensor, first: int) -> Tensor:
        import torch

        return torch.where(torch.stack(self._holes(first, len(frames)))[..., None], made, frames)

    def _holes(self, first: int, count: int) -> list[Tensor]:
        """Those of `count` frames from `first` on, which may not lie before that of the last call but one window."""
        while self.begin + len(self.holes) < first + count:
            self.holes.append(next(self.coming))
        while len(self.holes) > 2 * count and self.begin < first - count:
            self.holes.popleft()
            self.begin += 1
        return [self.holes[i - self.begin] for i in range(first, first + count)]


def _example(example: Example, rng: Random) -> Tensor:
    from tasks.masks import random_hole

    n_frames, height, width = example.frames.shape[:3]
    hole = random_hole(n_frames, height, width, rng)
    return example.frames.masked_fill(hole[..., None], GREY)


def _mask(value: Any) -> Mask:
    from tasks.masks import Mask

    return Mask.parse(value)


TASK = Task(
    "inpainting",
    inputs=(Block("text", optional=True), Block("video", condition=True)),
    outputs=(Block("video"),),
    token="<task_fill>",
    share=0.08,
    condition=Condition(
        _Hole,
        _example,
        (Argument("mask", "what to paint: X,Y,W,H in pixels, an image or a video (white)", _mask, "MASK"),),
        keeps=True,
    ),
    summary="a part of a video painted anew",
)
