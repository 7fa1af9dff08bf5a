"""Optical flow lies on its frame, is near the truth, and the same everywhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_av import optical_flow
from tokenizers_av.optical_flow import dis_flow, luminance
from train.data.playground import Playground, flow, masks
from train.data.source import MediaSpec

pytest.importorskip("cv2")


def texture(size: int, seed: int) -> Tensor:
    """(size, size, 3) uint8, smooth."""
    coarse = torch.rand(1, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return (255 * fine[0].permute(1, 2, 0).clamp(0, 1)).to(torch.uint8)


def moving_patch(n: int = 4, dx: int = 5, dy: int = 3) -> Tensor:
    """(n, 64, 64, 3) uint8: a pattern of 24x24, first at (8, 8), that moves by (dx, dy) a frame before a still one."""
    frames = texture(64, 0).repeat(n, 1, 1, 1)
    for t in range(n):
        y, x = 8 + dy * t, 8 + dx * t
        frames[t, y : y + 24, x : x + 24] = texture(24, 1)
    return frames


def test_luminance_is_that_of_bt709():
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 51]], dtype=torch.uint8)
    wanted = torch.tensor([0.0, 1.0, 0.2126, 0.7152, 0.0722 / 5])
    assert torch.allclose(luminance(colours.view(1, 1, 5, 3))[0, 0], wanted, atol=1e-6)


def test_flow_lies_on_its_frame_and_leads_there():
    found = dis_flow(moving_patch())
    assert found.shape == (4, 64, 64, 2) and found.dtype == torch.float32 and not found[0].any()
    for t in range(1, 4):
        y, x = 8 + 3 * t, 8 + 5 * t
        error = (found[t, y : y + 24, x : x + 24] - torch.tensor([5.0, 3.0])).norm(dim=-1)
        assert float(error.mean()) < 0.6, error.mean()  # 0.38 at most; flow that lies on the frame before: 1.1


def test_flow_of_large_frames_is_found_in_smaller_ones():
    small = moving_patch(2)
    large = small.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    found = dis_flow(large, 64 * 64)[1, 4 * 13 : 4 * 35, 4 * 15 : 4 * 37]
    assert float((found - torch.tensor([20.0, 12.0])).norm(dim=-1).mean()) < 4 * 0.6
    scales = {n: optical_flow._finest_scale(n, 64 * 64) for n in (1, 64 * 64, 64 * 65, 4 * 64 * 64, 256 * 256)}
    assert list(scales.values()) == [0, 0, 1, 1, 2]


def test_flow_is_near_the_truth_on_the_playground():
    """The mean end point error in moving objects of 24 clips is 0.60 pixels, their mean motion 3.75."""
    source, spec = Playground("test"), MediaSpec()
    scenes = source.evaluation_scenes(24)
    video = ((source.render(scenes, spec) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
    errors = []
    for scene, frames in zip(scenes, video):
        truth = flow(scene, spec)  # from each frame to the next: that of the clip played backwards, turned round
        found = -dis_flow(frames.flip(0)).flip(0)[:-1]
        moving = masks(scene, spec).any(0)[:-1] & (truth.norm(dim=-1) > 0.25)
        errors.append((found - truth).norm(dim=-1)[moving])
    error = torch.cat(errors)
    assert float(error.mean()) < 0.66, error.mean()
    assert float((error < 1).float().mean()) > 0.78, (error < 1).float().mean()


def test_flow_is_the_same_on_any_number_of_threads():
    import cv2

    frames, before = moving_patch(2), cv2.getNumThreads()
    found = []
    try:
        for n in (1, 3):
            cv2.setNumThreads(n)
            found.append(dis_flow(frames))
            assert cv2.getNumThreads() == n
    finally:
        cv2.setNumThreads(before)
    assert torch.equal(*found)


def test_frames_that_are_too_small_are_told():
    with pytest.raises(ValueError, match="12x40: flow needs at least 16x16"):
        dis_flow(torch.zeros(2, 12, 40, 3, dtype=torch.uint8))
