"""Structure: its scale, how near its flow comes to the truth, and depth from any network, once and for all windows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks import TASKS
from tasks.errors import InputError
from tasks.structure import FLOW_RANGE, DepthModel, picture, structure
from tokenizers_av.optical_flow import luminance

needs_opencv = pytest.mark.skipif(find_spec("cv2") is None, reason="opencv-python-headless is not installed")


def noise(n: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


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
    fine = F.interpolate(noise(1, 20, 20).permute(0, 3, 1, 2).float(), (80, 80), mode="bicubic").clamp(0, 255)
    whole = fine[0].permute(1, 2, 0).to(torch.uint8)
    frames = torch.stack([whole[6 - 3 * t : 70 - 3 * t, 10 - 5 * t : 74 - 5 * t] for t in range(3)])
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


def test_without_opencv_what_it_needs_is_said(monkeypatch):
    monkeypatch.setattr("tasks.check.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install opencv-python-headless"):
        structure(noise(2))
