"""The structure of a video in the style of a prompt (VideoPoet appendix A.4): optical flow and depth, or luminance."""
# Shapes: T frames, H W height and width

from __future__ import annotations

import logging
from importlib.util import find_spec
from random import Random
from typing import TYPE_CHECKING, Any

from tasks.check import check_opencv
from tasks.task import Argument, Block, Condition, Conditioner, Example, Task

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.structure import DepthModel

log = logging.getLogger(__name__)


class _Structure(Conditioner):
    """How things move and how far away, or how bright, they are; no colours."""

    def __init__(self, source: tuple[int, int], size: tuple[int, int], fps: float, *, depth: DepthModel | None) -> None:
        super().__init__(source, size, fps)
        self.depth = depth
        if depth is None:
            log.info("stylization: no depth model given, structure is read from optical flow and luminance")

    def frames(self, frames: Tensor, first: int) -> Tensor:
        from tasks.structure import structure
        from tokenizers_av.media_frames import stretch

        if self.depth is not None and first == 0:
            self.depth.range = None  # another video, another near and far
        return structure(stretch(frames, *self.size), self.depth)


def _example(example: Example, rng: Random) -> Tensor:
    from tasks.structure import picture
    from tokenizers_av.optical_flow import dis_flow, luminance

    flow, third = example.flow, example.depth
    if flow is None:
        check_opencv()
    if flow is None or (find_spec("cv2") and rng.random() < 0.7):
        flow = dis_flow(example.otherwise)
    if third is None or rng.random() < 0.7:
        third = luminance(example.otherwise)
    return picture(flow, third)


def _depth(value: Any) -> DepthModel:
    from tasks.structure import DepthModel

    return value if isinstance(value, DepthModel) else DepthModel(value)


TASK = Task(
    "stylization",
    inputs=(Block("text"), Block("video", condition=True)),
    outputs=(Block("video"),),
    token="<task_style>",
    share=0.10,
    condition=Condition(
        _Structure,
        _example,
        (Argument("depth", "a depth model of transformers: a folder or a hub name", _depth, "MODEL", required=False),),
    ),
    summary="the structure of a video in the style of a prompt",
)
