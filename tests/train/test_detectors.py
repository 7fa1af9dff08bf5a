"""The detectors read what rendered clips show, notice when it is something else, and hear when sounds begin."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from train.data.playground import Playground, Scene
from train.data.playground.scene import COLOURS, SIZES
from train.data.playground.shapes import SHAPES
from train.data.source import MediaSpec
from train.evaluate.detectors import Seen, look
from train.evaluate.motion import filled, seen_impacts, turned, went
from train.evaluate.onsets import agreement, find_onsets, match, merged
from train.evaluate.tracking import colour_name, colour_plane

SPEC = MediaSpec()
N = 24
RATE = 16000


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return Playground("test").evaluation_scenes(N)


@pytest.fixture(scope="module")
def clips(scenes: list[Scene]) -> Tensor:
    """(N, T, H, W, 3) uint8."""
    return as_frames(Playground("test").render(scenes, SPEC))


@pytest.fixture(scope="module")
def readings(clips: Tensor) -> list[Seen]:
    return [look(clip, SPEC.fps) for clip in clips]


def as_frames(video: Tensor) -> Tensor:
    return ((video + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).contiguous()


def blurred(frames: Tensor, sigma: float) -> Tensor:
    """(T, H, W, 3) uint8 through a Gaussian."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).outer(kernel / kernel.sum())[None, None]
    T, H, W, _ = frames.shape
    x = frames.permute(0, 3, 1, 2).reshape(-1, 1, H, W).float()
    x = F.conv2d(F.pad(x, (reach,) * 4, mode="replicate"), kernel)
    return x.view(T, 3, H, W).permute(0, 2, 3, 1).round().byte()


def shares(readings: list[Seen], scenes: list[Scene]) -> dict[str, float]:
    right: dict[str, list[bool]] = {key: [] for key in ("colour", "shape", "size", "motion", "went")}
    for seen, scene in zip(readings, scenes):
        thing = scene.objects[0]
        for key in ("colour", "shape", "size", "motion"):
            right[key].append(getattr(seen, key) == getattr(thing, key))
        right["went"].append(seen.went(thing.motion, thing.direction))
    return {key: sum(values) / len(values) for key, values in right.items()}


def test_rendered_clips_are_read_rightly(readings: list[Seen], scenes: list[Scene]) -> None:
    found = shares(readings, scenes)
    assert min(found.values()) >= 0.95, found


def test_blurred_clips_are_still_read_rightly(clips: Tensor, scenes: list[Scene]) -> None:
    found = shares([look(blurred(clip, 1.0), SPEC.fps) for clip in clips[:12]], scenes[:12])
    assert min(found.values()) >= 0.9, found


def test_detectors_can_fail(readings: list[Seen], scenes: list[Scene]) -> None:
    found = shares(readings, scenes[1:] + scenes[:1])
    assert max(found.values()) < 0.6, found


def test_another_colour_is_noticed(clips: Tensor, readings: list[Seen]) -> None:
    for clip, before in list(zip(clips, readings))[:6]:
        after = look(clip.roll(1, dims=-1), SPEC.fps)  # the colour of red is now that of green
        assert after.colour != before.colour
        assert after.shape == before.shape


@pytest.mark.parametrize("name", COLOURS)
def test_a_colour_keeps_its_name_in_shade_and_under_a_highlight(name: str) -> None:
    tone = torch.tensor(COLOURS[name])
    for changed in (0.5 * tone, tone + (1 - tone) * 0.4, 0.6 * tone + 0.4 * 0.6):
        assert colour_name(F.normalize(colour_plane(changed), dim=0)) == name


def test_a_mirror_turns_directions_round(clips: Tensor, scenes: list[Scene]) -> None:
    other = {"left": "right", "right": "left", "clockwise": "anticlockwise", "anticlockwise": "clockwise"}
    checked = 0
    for clip, scene in zip(clips, scenes):
        thing = scene.objects[0]
        if thing.direction in other and checked < 6:
            seen = look(clip.flip(2), SPEC.fps)
            assert not seen.went(thing.motion, thing.direction)
            assert seen.went(thing.motion, other[thing.direction])
            checked += 1
    assert checked == 6


def test_a_still_object_goes_nowhere(clips: Tensor) -> None:
    seen = look(clips[0, :1].expand(17, -1, -1, -1).contiguous(), SPEC.fps)
    assert (seen.motion, seen.direction, len(seen.impacts)) == (None, None, 0)
    for motion, direction in (("slide", "left"), ("bounce", None), ("swing", None), ("orbit", "clockwise")):
        assert not seen.went(motion, direction)


def test_an_empty_clip_shows_nothing() -> None:
    seen = look(torch.full((17, 64, 64, 3), 150, dtype=torch.uint8), SPEC.fps)
    assert (seen.colour, seen.shape, seen.size, seen.motion) == (None, None, None, None)
    assert not seen.went("slide", "left")


def test_an_object_that_vanishes_has_no_path(clips: Tensor) -> None:
    clip = clips[0].clone()
    clip[6:] = 150
    seen = look(clip, SPEC.fps)
    assert seen.motion is None and float(seen.track.visible.float().mean()) < 0.5


def test_frames_must_be_bytes() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        look(torch.zeros(3, 8, 8, 3), 8.0)


def test_scores_cover_all_shapes_and_sizes(readings: list[Seen]) -> None:
    assert set(readings[0].outline.scores) == set(SHAPES)
    assert readings[0].size in SIZES and 0.08 < readings[0].outline.radius < 0.26


def test_gaps_in_a_path_are_filled_evenly() -> None:
    nan = math.nan
    path = torch.tensor([[nan, nan], [1.0, 0.0], [nan, nan], [3.0, 4.0], [nan, nan]])
    assert filled(path).tolist() == [[1, 0], [1, 0], [2, 2], [3, 4], [3, 4]]


def test_turns_are_counted_in_the_sense_of_the_screen() -> None:
    t = torch.linspace(0, 1, 17) * math.radians(300)
    clockwise = torch.stack([0.5 + 0.3 * t.cos(), 0.4 + 0.3 * t.sin()], 1)  # y points down
    assert turned(clockwise) == pytest.approx(math.radians(300), abs=0.01)
    assert turned(clockwise.flip(0)) == pytest.approx(-math.radians(300), abs=0.01)
    assert went(clockwise, 8.0, "orbit", "clockwise") and not went(clockwise, 8.0, "orbit", "anticlockwise")


def test_a_fall_without_return_is_no_bounce() -> None:
    t = torch.arange(17) / 8
    x = torch.full_like(t, 0.5)
    sinking = torch.stack([x, 0.2 + 0.3 * t], 1)
    dropped = torch.stack([x, (0.2 + 1.7 * t**2).clamp(max=0.8)], 1)  # falls and lies still
    assert not went(sinking, 8.0, "bounce", None) and went(sinking, 8.0, "float", "down")
    assert went(dropped, 8.0, "bounce", None)
    assert not went(dropped.flip(0), 8.0, "bounce", None)


def test_seen_impacts_fall_between_frames(readings: list[Seen], scenes: list[Scene]) -> None:
    errors = []
    for seen, scene in zip(readings, scenes):
        true = torch.tensor([i.time for i in scene.impacts(SPEC.seconds) if i.time < SPEC.seconds - 0.3])
        errors += match(seen.impacts, true).errors.abs().tolist()
        assert len(match(seen.impacts, true).errors) == len(true), scene.caption
    assert len(errors) > 10 and sorted(errors)[len(errors) // 2] < 0.02
    assert len(seen_impacts(readings[0].path, 8.0, "orbit")) == 0


def click(at: float, seconds: float = 1.5) -> Tensor:
    t = torch.arange(round(seconds * RATE)) / RATE - at
    return torch.where(t >= 0, 0.5 * torch.sin(2 * math.pi * 500 * t) * torch.exp(-t / 0.05), 0.0)


def test_onsets_are_heard_to_a_few_milliseconds() -> None:
    true = [0.2, 0.55, 1.1234]
    found = find_onsets(sum(click(t) for t in true), RATE)
    assert found.tolist() == pytest.approx(true, abs=0.005)
    noisy = sum(click(t) for t in true) + 0.005 * torch.randn(24000, generator=torch.manual_seed(0))
    assert find_onsets(noisy, RATE).tolist() == pytest.approx(true, abs=0.005)


def test_silence_hiss_and_a_steady_tone_have_no_onset() -> None:
    t = torch.arange(24000) / RATE
    hiss = 0.02 * torch.randn(24000, generator=torch.manual_seed(0))
    for samples in (torch.zeros(24000), hiss, 0.3 * torch.sin(2 * math.pi * 440 * t), torch.zeros(10)):
        assert len(find_onsets(samples, RATE)) == 0
    with pytest.raises(ValueError, match="expected"):
        find_onsets(torch.zeros(2, 100), RATE)


def test_playground_impacts_are_heard(scenes: list[Scene]) -> None:
    sound = Playground("test").sound(scenes, SPEC)
    true = [merged(torch.tensor([i.time for i in scene.impacts(SPEC.seconds)])) for scene in scenes]
    found = agreement([find_onsets(x, RATE) for x in sound], true)
    assert found.n_true > 15
    assert found.within_frame >= 0.95 and found.precision >= 0.95 and found.median_error < 0.005, found


def test_matching_pairs_each_moment_once() -> None:
    m = match(torch.tensor([0.10, 0.13, 0.9]), torch.tensor([0.12, 0.5]), window=0.125)
    assert m.errors.tolist() == pytest.approx([0.01], abs=1e-6)  # 0.13 is nearer than 0.10; 0.9 is too far from 0.5
    assert (m.n_found, m.n_true, m.within(0.04), m.within(0.005)) == (3, 2, 1, 0)
    assert len(match(torch.zeros(0), torch.tensor([1.0])).errors) == 0


def test_agreement_counts_by_hand() -> None:
    found = [torch.tensor([0.10, 0.70]), torch.zeros(0), torch.tensor([0.5])]
    true = [torch.tensor([0.11, 0.60]), torch.tensor([1.0]), torch.zeros(0)]
    a = agreement(found, true, frame=0.125)
    assert (a.n_true, a.n_found) == (3, 3)
    assert a.within_frame == pytest.approx(2 / 3) and a.precision == pytest.approx(2 / 3)
    assert a.within_40ms == pytest.approx(1 / 3)
    assert a.median_error == pytest.approx(0.1, abs=1e-6)  # of 0.01, 0.1 and never
    empty = agreement([torch.zeros(0)], [torch.zeros(0)])
    assert math.isnan(empty.within_frame) and math.isnan(empty.precision) and math.isnan(empty.median_error)


def test_near_moments_count_as_one() -> None:
    assert merged(torch.tensor([0.1, 0.11, 0.2])).tolist() == pytest.approx([0.1, 0.2])
