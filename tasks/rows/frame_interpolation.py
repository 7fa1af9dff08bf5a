"""What lies between two frames; the condition is a linear blend of both (COMMIT, arXiv:2212.05199, appendix B.1)."""
# Shapes: T frames, H W height and width

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from tasks.task import Argument, Block, Condition, Conditioner, Example, Task

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.source import Source


class _Between(Conditioner):
    """The first frame turning into the last."""

    def __init__(self, source: tuple[int, int], size: tuple[int, int], fps: float, *, last: Source) -> None:
        super().__init__(source, size, fps)
        self.last = last.whole_frame()

    def frames(self, frames: Tensor, first: int) -> Tensor:
        from tokenizers_av.media_frames import stretch

        return blend(stretch(frames[:1], *self.size)[0], stretch(self.last, *self.size)[0], len(frames))


def blend(a: Tensor, b: Tensor, n: int) -> Tensor:
    """(n, H, W, 3) uint8: from frame a (H, W, 3) to frame b, each a share of both."""
    import torch

    share = torch.linspace(0, 1, n)[:, None, None, None]
    return torch.lerp(a.float(), b.float(), share).round().to(torch.uint8)


def _example(example: Example, rng: Random) -> Tensor:
    return blend(example.frames[0], example.frames[-1], len(example.frames))


def _image(value: Any) -> Source:
    from tasks.source import Source

    return value if isinstance(value, Source) else Source(value, need="video")


TASK = Task(
    "frame_interpolation",
    inputs=(Block("text", optional=True), Block("video", condition=True, named="image")),
    outputs=(Block("video"),),
    token="<task_between>",
    share=0.06,
    condition=Condition(
        _Between, _example, (Argument("last", "the last frame: an image, or a video whose first is taken", _image),)
    ),
    summary="what lies between two images",
)
