"""Paint what lies around a video. The condition repeats the nearest pixel of the border (COMMIT, appendix B.1)."""
# Shapes: T frames, H W height and width

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from tasks.errors import InputError
from tasks.task import Argument, Block, Condition, Conditioner, Example, Task

if TYPE_CHECKING:
    from torch import Tensor

SIDES = ("left", "top", "right", "bottom")
MAX_SIDE = 10_000  # pixels


class _Around(Conditioner):
    """Frames in the middle of a larger picture."""

    def __init__(
        self, source: tuple[int, int], size: tuple[int, int], fps: float, *, left: int, top: int, right: int,
        bottom: int,
    ) -> None:  # fmt: skip
        if left + top + right + bottom == 0:
            raise InputError("outpainting needs an amount of pixels on at least one side, such as left=32")
        super().__init__(source, size, fps)
        (h, w), (height, width) = source, size
        self.canvas, self.corner = (h + top + bottom, w + left + right), (top, left)
        down, across = height / self.canvas[0], width / self.canvas[1]
        self.box = (round(top * down), round((top + h) * down), round(left * across), round((left + w) * across))
        if self.box[0] == self.box[1] or self.box[2] == self.box[3]:
            raise InputError(f"outpainting by {left}, {top}, {right}, {bottom} pixels leaves nothing to see of a video "
                             f"of {w}x{h}; ask for less")  # fmt: skip

    def frames(self, frames: Tensor, first: int) -> Tensor:
        from tokenizers_av.media_frames import stretch

        y0, y1, x0, x1 = self.box
        return surround(stretch(frames, y1 - y0, x1 - x0), self.box, self.size)

    def composite(self, made: Tensor, frames: Tensor, first: int) -> Tensor:
        (top, left), (h, w) = self.corner, frames.shape[1:3]
        made = made.clone()
        made[:, top : top + h, left : left + w] = frames
        return made


def surround(frames: Tensor, box: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """Frames (T, h, w, 3) at y0, y1, x0, x1 of a canvas of `size`, whose other pixels repeat the nearest one."""
    import torch

    y0, y1, x0, x1 = box
    rows = torch.arange(size[0]).clamp(y0, y1 - 1) - y0
    columns = torch.arange(size[1]).clamp(x0, x1 - 1) - x0
    return frames[:, rows[:, None], columns]


def _example(example: Example, rng: Random) -> Tensor:
    """Up to half of each axis is hidden, on one side or on several."""
    height, width = example.frames.shape[1:3]
    box = []
    for n in (height, width):
        hidden = rng.randint(n // 8, n // 2) if rng.random() < 0.75 else 0
        before = rng.choice((0, hidden, hidden // 2))
        box += [before, n - hidden + before]
    if box == [0, height, 0, width]:
        box[rng.choice((0, 2))] = height // 4
    y0, y1, x0, x1 = box
    return surround(example.frames[:, y0:y1, x0:x1], tuple(box), (height, width))


def _pixels(value: Any) -> int:
    try:
        n = int(value)
    except (TypeError, ValueError):
        n = -1
    if not 0 <= n <= MAX_SIDE or isinstance(value, bool) or n != float(value):
        raise InputError(f"{value!r}: expected a whole number of pixels from 0 to {MAX_SIDE:,}")
    return n


TASK = Task(
    "outpainting",
    inputs=(Block("text", optional=True), Block("video", condition=True)),
    outputs=(Block("video"),),
    token="<task_fill>",
    share=0.08,
    condition=Condition(
        _Around,
        _example,
        tuple(
            Argument(side, f"pixels to add on the {side}", _pixels, "N", required=False, default=0) for side in SIDES
        ),
        keeps=True,
    ),
    summary="what lies around a video",
)
