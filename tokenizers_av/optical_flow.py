"""How things move from frame to frame: DIS optical flow (arXiv:1603.03590), which needs no weights."""
# Shapes: T frames, H W height and width; flow is (x, y), to the right and down

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

BT709 = (0.2126, 0.7152, 0.0722)  # what red, green and blue add to brightness
MAX_PIXELS = 1 << 20  # of frames in which it is looked for to the pixel
MIN_SIDE = 16  # of frames that flow is looked for in


def luminance(frames: Tensor) -> Tensor:
    """(..., H, W) float32 in [0, 1] of frames (..., H, W, 3) uint8: the luma of BT.709."""
    return (frames.float() * torch.tensor(BT709, device=frames.device)).sum(-1) / 255


def dis_flow(frames: Tensor, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Flow (T, H, W, 2) float32 of frames (T, H, W, 3) uint8 of at least 16x16, on the CPU.

    flow[t, y, x] is how many pixels what is seen there has moved since frame t - 1; flow[0] is 0. The same frames give
    the same flow on any number of threads. Of frames of more than max_pixels it is found in smaller copies. Raises
    ValueError for smaller frames.
    """
    import cv2

    if min(frames.shape[1:3]) < MIN_SIDE:
        raise ValueError(f"frames of {frames.shape[1]}x{frames.shape[2]}: flow needs at least {MIN_SIDE}x{MIN_SIDE}")
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(_finest_scale(frames.shape[1] * frames.shape[2], max_pixels))
    grey = [(255 * luminance(frame)).round().to(torch.uint8).numpy() for frame in frames.cpu()]
    flow = np.zeros((*frames.shape[:3], 2), dtype=np.float32)
    for t in range(1, len(grey)):  # where a pixel came from, so that flow lies on the frame it belongs to
        flow[t] = -dis.calc(grey[t], grey[t - 1], None)
    return torch.from_numpy(flow)


def _finest_scale(n_pixels: int, max_pixels: int) -> int:
    """How often frames are halved before flow is looked for: until they have max_pixels or less, at 208 bytes each.

    The preset always halves once, too much for small frames.
    """
    return max(0, math.ceil(math.log(n_pixels / max_pixels, 4)))
