"""What the parts of the suite read and compare: styles, holes, pitches that a prompt allows, scores of other inputs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from train.data.playground import Playground, masks
from train.data.playground.scene import STYLES
from train.data.source import MediaSpec
from train.evaluate import generation
from train.evaluate.conditioned import COVERED, hole_over, nearest_known
from train.evaluate.drift import _rows, sharpness
from train.evaluate.pitch import asked_pitches, true_pitch
from train.evaluate.prompts import scored_row, tells_material, tells_size
from train.evaluate.styles import style, within_blocks
from train.evaluate.tokenizer_metrics import psnr

SPEC = MediaSpec()


@pytest.mark.parametrize("name", STYLES)
def test_styles_are_told(name: str) -> None:
    world = Playground("test", seed=3)
    scenes = [replace(scene, style=name) for scene in world.evaluation_scenes(24)]
    found = [style(clip) for clip in generation.to_frames(world.render(scenes, SPEC))]
    assert found.count(name) >= 23, found


def test_blocks_are_told_by_what_moves() -> None:
    small = torch.rand(5, 8, 8, generator=torch.manual_seed(0))
    blocks = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert within_blocks(blocks, 2) == 0 and within_blocks(blocks.roll(1, 2), 2) > 0.4
    smooth = torch.rand(5, 16, 16, generator=torch.manual_seed(0))
    assert within_blocks(smooth, 2) == pytest.approx(1, abs=0.3)
    assert within_blocks(smooth + 10 * blocks[:1], 2) == pytest.approx(within_blocks(smooth, 2), rel=1e-3)
    assert math.isnan(within_blocks(smooth[:1].repeat(5, 1, 1), 2))


def test_only_the_pixels_asked_for_count() -> None:
    target = torch.zeros(2, 3, 3, 4, 4)
    output, where = torch.full_like(target, 0.5), torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    where[0, 0, :2], where[0, 1, 3, 3] = True, True  # of the third frame none, of the second clip none
    output[0, :, 0, :2], output[0, :, 1, 3, 3] = 0.1, 0.01  # 20 and 40 dB
    found = psnr(output, target, where)
    assert float(found[0]) == pytest.approx(30.0, abs=1e-3) and found[1].isnan()
    everywhere = psnr(output, target, torch.ones_like(where))
    assert torch.allclose(everywhere, psnr(output, target))


def test_holes_hide_most_of_the_object() -> None:
    scenes = Playground("test").evaluation_scenes(30)
    things = [masks(scene, SPEC)[0] for scene in scenes]
    holes = [hole_over(scene, SPEC, f"0/{i}") for i, scene in enumerate(scenes)]
    hidden = [float((hole & thing).sum() / thing.sum()) for hole, thing in zip(holes, things)]
    assert sum(share >= COVERED for share in hidden) >= 28, hidden
    assert all(0.1 < hole.float().mean() < 0.8 for hole in holes)
    assert torch.equal(hole_over(scenes[3], SPEC, "0/3"), holes[3])
    assert not torch.equal(hole_over(scenes[3], SPEC, "1/3"), holes[3])


def test_the_nearest_known_pixel_is_that_of_a_slow_search() -> None:
    g = torch.manual_seed(0)
    hole = torch.rand(3, 6, 9, generator=g) < 0.8
    hole[:, 2, 3] = False
    frames = torch.randint(256, (3, 6, 9, 3), generator=g, dtype=torch.uint8)
    found = nearest_known(frames, hole)
    assert torch.equal(found[~hole], frames[~hole])
    for t, y, x in hole.nonzero().tolist():
        known = (~hole[t]).nonzero()
        apart = (known - torch.tensor([y, x])).square().sum(1)
        nearest = known[apart == apart.min()]
        assert any(torch.equal(found[t, y, x], frames[t, i, j]) for i, j in nearest.tolist()), (t, y, x)


def test_prompts_allow_the_pitches_of_what_they_tell() -> None:
    scene = Playground("test").evaluation_scenes(1)[0]
    thing = replace(scene.objects[0], shape="cube", size="small", material="rubber")
    for text, told in (
        ("a small red rubber cube slides left", (523.25,)),
        ("a small red block slides left", (523.25, 1046.5)),
        ("a red rubber cube slides left", ()),
    ):
        assert asked_pitches(replace(scene, objects=(thing,), caption=text)) == told
    wooden = replace(
        scene, objects=(replace(thing, material="wood"),), caption="a tiny red box slides on a wooden floor"
    )
    assert not tells_material(wooden) and tells_size(wooden)
    for scene in Playground("test").evaluation_scenes(40):
        for impact in scene.impacts(SPEC.seconds)[:1]:
            assert not asked_pitches(scene) or true_pitch(scene, impact) in asked_pitches(scene)


def test_a_score_stands_beside_that_of_other_inputs() -> None:
    values = {"model": [1, 2, 0], "truth": [1, 2, 3], "tokenizer": [1, 0, 0]}
    asked = [1, 2, math.nan]

    def score(key: str, i: int, k: int) -> float:
        return math.nan if math.isnan(asked[k]) else float(values[key][i] == asked[k])

    row = scored_row("part", "it fits", "%", 3, score, "other prompts")
    assert (row.value, row.truth, row.tokenizer, row.n) == (1.0, 1.0, 0.5, 2)
    # By one place: clip 1 for input 0, clip 2 for input 1; by two: clip 2 for input 0, clip 0 for input 1
    assert row.baseline == 0.0
    values["model"] = [2, 2, 1]
    row = scored_row("part", "it fits", "%", 3, score, "other prompts")
    assert (row.value, row.baseline) == (0.5, pytest.approx((0 + 1) / 2))


def test_blur_costs_sharpness() -> None:
    frames = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    frames[:, 4:12, 4:12] = 200
    blurred = F.avg_pool2d(frames.permute(0, 3, 1, 2).float(), 3, 1, 1).permute(0, 2, 3, 1).byte()
    assert 0 < sharpness(blurred) < 0.5 * sharpness(frames)
    assert sharpness(torch.full_like(frames, 90)) == 0


def test_change_is_from_frame_to_frame() -> None:
    still = torch.randint(0, 200, (1, 1, 16, 16, 3), dtype=torch.uint8).expand(1, 4, -1, -1, -1)
    blinking = still + torch.tensor([0, 10, 0, 10], dtype=torch.uint8).view(1, 4, 1, 1, 1)
    row = _rows("long_video", "window 1", {"model": still, "truth": blinking}, slice(1, 4), 4, ["red"])[-1]
    assert (row.measure, row.value, row.truth) == ("window 1: change", 0, 10)
