"""Structure: its scale, how near its flow comes to the truth, and depth from any network, once and for all windows."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks import TASKS
from tasks.errors import InputError
from tasks.structure import FLOW_RANGE, DepthModel, dis_flow, luminance, picture, structure
from train.data.playground import Playground, flow, masks
from train.data.source import MediaSpec

needs_opencv = pytest.mark.skipif(find_spec("cv2") is None, reason="opencv-python-headless is not installed")


def noise(n: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


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


def test_scale_of_the_picture():
    top = FLOW_RANGE * 50
    moved = torch.tensor([0.0, top, -top, top / 2, 9 * top, -9 * top])
    out = picture(
        torch.stack([moved, -moved], -1).view(1, 1, 6, 2).repeat(1, 1, 9, 1)[:, :, :50], torch.zeros(1, 1, 50)
    )
    assert out.dtype == torch.uint8 and out.shape == (1, 1, 50, 3)
    assert out[0, 0, :6, 0].tolist() == [128, 255, 1, 192, 255, 1]
    assert out[0, 0, :6, 1].tolist() == [128, 1, 255, 64, 1, 255]
    third = torch.tensor([0.0, 0.2, 1.0, -1.0, 2.0]).view(1, 1, 5)
    assert picture(torch.zeros(1, 1, 5, 2), third)[0, 0, :, 2].tolist() == [0, 51, 255, 0, 255]


def test_luminance_is_that_of_bt709():
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 51]], dtype=torch.uint8)
    wanted = torch.tensor([0.0, 1.0, 0.2126, 0.7152, 0.0722 / 5])
    assert torch.allclose(luminance(colours.view(1, 1, 5, 3))[0, 0], wanted, atol=1e-6)


@needs_opencv
def test_flow_lies_on_its_frame_and_leads_there():
    found = dis_flow(moving_patch())
    assert found.shape == (4, 64, 64, 2) and found.dtype == torch.float32 and not found[0].any()
    for t in range(1, 4):
        y, x = 8 + 3 * t, 8 + 5 * t
        error = (found[t, y : y + 24, x : x + 24] - torch.tensor([5.0, 3.0])).norm(dim=-1)
        assert float(error.mean()) < 0.6, error.mean()  # 0.38 at most; flow that lies on the frame before: 1.1


@needs_opencv
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


@needs_opencv
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


@needs_opencv
def test_what_flow_needs_is_said(monkeypatch):
    with pytest.raises(InputError, match="12x40: flow needs at least 16x16"):
        dis_flow(noise(2, 12, 40))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match="pip install opencv-python-headless"):
        dis_flow(noise(2))


@pytest.fixture(scope="module")
def depth_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of untrained networks: one that tells one over distance, one that tells distance."""
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTConfig,
        DPTForDepthEstimation,
        DPTImageProcessor,
    )

    blocks = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    sizes = {"neck_hidden_sizes": [8, 8], "fusion_hidden_size": 8, "reassemble_factors": [2, 1]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inverse = DPTForDepthEstimation(DPTConfig(**blocks, intermediate_size=32, backbone_out_indices=[0, 1], **sizes))
        backbone = Dinov2Config(**blocks, mlp_ratio=2, out_indices=[1, 2], reshape_hidden_states=False)
        metric = DepthAnythingForDepthEstimation(
            DepthAnythingConfig(
                backbone_config=backbone, patch_size=8, reassemble_hidden_size=16, head_hidden_size=8,
                depth_estimation_type="metric", max_depth=10, **sizes,
            )
        )  # fmt: skip
        folders = {}
        for name, model in (("inverse", inverse), ("metric", metric)):
            with torch.no_grad():
                for p in model.parameters():
                    if p.ndim > 1:
                        p.mul_(4)  # so large that what comes out depends on what goes in
                list(model.head.parameters())[-1].fill_(1)  # away from the end of the scale
            folders[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(folders[name])
            DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("kind", ["inverse", "metric"])
def test_depth_is_one_where_it_is_far(depth_models, kind):
    depth, frames = DepthModel(depth_models[kind]), noise(3)
    found = depth(frames)
    assert found.shape == (3, 32, 32) and found.dtype == torch.float32
    assert float(found.min()) == 0 and float(found.max()) == 1
    with torch.no_grad():
        raw = depth.model(**depth.processor(images=list(frames.numpy()), return_tensors="pt")).predicted_depth
    order = found.flatten()[raw.flatten().argsort(descending=kind == "inverse")]
    assert float(order.diff().min()) > -1e-4, "nearer by the network, but not in the result"


@needs_opencv
def test_each_video_has_its_own_range_of_depth_though_all_conditioners_are_made_first(depth_models):
    depth = DepthModel(depth_models["inverse"])
    videos = [noise(4), noise(4) // 4]
    conditioners = [TASKS["stylization"].condition.open((32, 32), (32, 32), 8.0, depth=depth) for _ in videos]
    for conditioner, frames in zip(conditioners, videos):
        alone = structure(frames, DepthModel(depth_models["inverse"]))
        assert torch.equal(conditioner.frames(frames, 0), alone)
        scale = depth.range
        conditioner.frames(frames[2:], 2)
        assert depth.range == scale


def test_windows_of_a_long_video_have_one_range_of_depth(depth_models):
    frames = noise(11, 24, 40)
    depth = DepthModel(depth_models["inverse"])
    first = depth(frames[:4])
    scale = depth.range
    rest = depth(frames[4:])
    assert depth.range == scale and float(rest.min()) >= 0 and float(rest.max()) <= 1
    again = DepthModel(depth_models["inverse"])
    again.range = scale
    assert torch.allclose(again(frames), torch.cat([first, rest]), atol=1e-5)
    alone = DepthModel(depth_models["inverse"])(frames[4:])
    assert float((alone - rest).abs().max()) > 1e-3
    depth.range = None
    assert torch.allclose(depth(frames[4:]), alone, atol=1e-5)


def test_a_flat_scene_is_far_and_decides_nothing(depth_models):
    depth = DepthModel(depth_models["inverse"])
    depth.model.head.requires_grad_(False)
    for p in depth.model.head.parameters():
        p.zero_()
    assert bool((depth(noise(2)) == 1).all()) and depth.range is None


def test_what_is_no_depth_model_is_said_in_one_line(tmp_path, debug_model):
    for path, message in (
        (tmp_path / "none", "no such folder"),
        (tmp_path, "cannot be used"),
        (debug_model, "cannot be used"),
        ("somebody/some-model", "cannot be used"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            DepthModel(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@needs_opencv
def test_structure_is_flow_and_depth_or_luminance(depth_models):
    frames = moving_patch(3)
    found = structure(frames)
    assert found.shape == frames.shape and found.dtype == torch.uint8
    assert bool((found[0, ..., :2] == 128).all())
    middle = found[1, 15:31, 17:33].float().mean((0, 1))  # 5 and 3 pixels of at most 10.24
    assert 186 < middle[0] < 194 and 161 < middle[1] < 169, middle
    assert torch.equal(found[..., 2], (255 * luminance(frames)).round().to(torch.uint8))
    depth = DepthModel(depth_models["metric"])
    deep = structure(frames, depth)
    assert torch.equal(deep[..., :2], found[..., :2])
    assert torch.equal(deep[..., 2], (255 * depth(frames)).round().to(torch.uint8))
