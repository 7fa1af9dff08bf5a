"""How things move from frame to frame: DIS optical flow (arXiv:1603.03590), which needs no weights."""
# Shapes: T frames, H W height and width; flow is (x, y), to the right and down

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

BT709 = (0.2126, 0.7152, 0.0722)  # what red, green and blue add to brightness
MIN_SIDE = 16  # of frames that flow is looked for in


def luminance(frames: Tensor) -> Tensor:
    """(T, H, W) float32 in [0, 1] of frames (T, H, W, 3) uint8: the luma of BT.709."""
    return (frames.float() * torch.tensor(BT709, device=frames.device)).sum(-1) / 255


def dis_flow(frames: Tensor) -> Tensor:
    """Flow (T, H, W, 2) float32 of frames (T, H, W, 3) uint8 of at least 16x16, on the CPU.

    flow[t, y, x] is how many pixels what is seen there has moved since frame t - 1; flow[0] is 0. The same frames give
    the same flow on any number of threads. Raises ValueError for smaller frames.
    """
    import cv2

    if min(frames.shape[1:3]) < MIN_SIDE:
        raise ValueError(f"frames of {frames.shape[1]}x{frames.shape[2]}: flow needs at least {MIN_SIDE}x{MIN_SIDE}")
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)  # to the pixel: frames are small; the preset stops at half the size
    grey = (255 * luminance(frames.cpu())).round().to(torch.uint8).numpy()
    flow = np.zeros((*grey.shape, 2), dtype=np.float32)
    for t in range(1, len(grey)):  # where a pixel came from, so that flow lies on the frame it belongs to
        flow[t] = -dis.calc(grey[t], grey[t - 1], None)
    return torch.from_numpy(flow)
