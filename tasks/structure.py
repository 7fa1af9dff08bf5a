"""What stylization keeps of a video: how it moves and how far away it is, as a picture for the same video tokenizer.

VideoPoet (arXiv:2312.14125, appendix A.4) puts optical flow (2 channels) and depth (1 channel) in the place of red,
green and blue, by RAFT and MiDaS. Here flow is DIS optical flow (arXiv:1603.03590), which needs no weights, and depth
comes from any network of `transformers`, or luminance stands in for it.
"""
# Shapes: T frames, H W height and width; flow is (x, y), to the right and down

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from tasks.check import check_opencv
from tasks.errors import InputError
from tokenizers_av.optical_flow import dis_flow, luminance

FLOW_RANGE = 0.16  # share of the width that a pixel moves in a frame at either end of the scale
DEPTH_BATCH = 8  # frames at a time


def picture(flow: Tensor, third: Tensor) -> Tensor:
    """Structure (T, H, W, 3) uint8 of flow (T, H, W, 2) in pixels a frame and third (T, H, W) in [0, 1].

    Flow belongs to the pixels of its own frame and leads there from the frame before, so the first frame has none: 0.
    No motion is 128; FLOW_RANGE of the width to the right or down, or more, is 255, to the left or up 1.
    """
    moved = 128 + 127 * (flow / (FLOW_RANGE * flow.shape[2])).clamp(-1, 1)
    return torch.cat([moved, 255 * third[..., None].clamp(0, 1)], -1).round().to(torch.uint8)


def structure(frames: Tensor, depth: DepthModel | None = None) -> Tensor:
    """(T, H, W, 3) uint8 of frames (T, H, W, 3) uint8: flow and depth, or flow and luminance without a model."""
    check_opencv()
    frames = frames.cpu()
    return picture(dis_flow(frames), luminance(frames) if depth is None else depth(frames))


class DepthModel:
    """A depth estimator of `transformers` for one video, from a folder or a hub name.

    `range` holds what counts as farthest and as nearest, as one over distance. The first frames that are seen decide
    it, so that windows of a long video agree; set it to None before another video.
    """

    def __init__(self, path: str | os.PathLike[str], device: Any = "cpu") -> None:
        """Raises InputError where there is no such model."""
        name = os.fspath(path)
        if name.startswith((".", "/")) and not os.path.isdir(name):
            raise InputError(f"depth model {name}: no such folder")
        try:
            from transformers import AutoImageProcessor, AutoModelForDepthEstimation

            self.processor: Any = AutoImageProcessor.from_pretrained(name)
            model: Any = AutoModelForDepthEstimation.from_pretrained(name, dtype=torch.float32)
            self.model = model.eval().to(device)
            # MiDaS (dpt) and Depth Anything tell one over distance up to scale and shift, others distance in metres
            kind = getattr(model.config, "depth_estimation_type", None)
            self.inverse = kind == "relative" or model.config.model_type == "dpt"
            self._nearness(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
        except Exception as error:  # of many kinds: no folder, no network, another model, a package that it lacks
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"depth model {name}: cannot be used ({reason})") from None
        self.range: tuple[float, float] | None = None

    def __call__(self, frames: Tensor) -> Tensor:
        """Depth (T, H, W) float32 in [0, 1] of frames (T, H, W, 3) uint8, on the CPU: 1 is far, less is nearer."""
        near = torch.cat([self._nearness(part) for part in frames.cpu().split(DEPTH_BATCH)])
        low, high = self.range or (float(near.min()), float(near.max()))
        if low == high:  # a flat scene is far, and decides nothing
            return torch.ones_like(near)
        self.range = low, high
        return 1 - ((near - low) / (high - low)).clamp(0, 1)

    @torch.no_grad()
    def _nearness(self, frames: Tensor) -> Tensor:
        """One over distance, (T, H, W) float32, of whatever scale and shift the model has."""
        inputs = self.processor(images=list(frames.numpy()), return_tensors="pt").to(self.model.device)
        sizes = [tuple(frames.shape[1:3])] * len(frames)
        # by position: most processors call this the target's sizes, ZoeDepth's the source's
        found = self.processor.post_process_depth_estimation(self.model(**inputs), sizes)
        depth = torch.stack([one["predicted_depth"] for one in found]).float().cpu()
        return depth if self.inverse else 1 / depth.clamp(min=1e-3)
