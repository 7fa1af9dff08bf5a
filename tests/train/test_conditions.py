"""Conditioning clips to train on: drawn by the clip's seed, true to what they show, silent about what they hide."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tasks.rows import stylization
from tasks.rows.inpainting import GREY
from tasks.structure import picture
from tasks.table import TASKS
from tokenizers_av.optical_flow import luminance
from train.conditions import conditions
from train.data import MediaBatch, MediaSpec
from train.data.playground import Playground, depth, flow_since

SPEC = MediaSpec(n_frames=5, size=24)
SEEDS = [str(i) for i in range(8)]


def noise(n_frames: int = 5) -> MediaBatch:
    """Clips whose pixels all differ, as from files: what they show is not known."""
    values = torch.randint(0, 256, (len(SEEDS), 3, n_frames, 24, 24), generator=torch.Generator().manual_seed(0))
    return MediaBatch(values / 127.5 - 1, None)


@pytest.fixture(scope="module")
def clips() -> MediaBatch:
    return noise()


@pytest.fixture(scope="module")
def world() -> MediaBatch:
    return Playground().batch(range(len(SEEDS)), SPEC, audio=False)


def pixels(clip: Tensor | None) -> Tensor:
    """(B, T, H, W, 3) int64 in [0, 255] of (B, 3, T, H, W) in [-1, 1]."""
    assert clip is not None
    return ((clip + 1) * 127.5).round().long().permute(0, 2, 3, 4, 1)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_task_with_a_condition_has_a_clip_of_the_windows_length(world: MediaBatch) -> None:
    for batch in (world, noise(n_frames=9)):
        made = conditions(batch, SPEC, SEEDS)
        assert made.keys() == {name for name, task in TASKS.items() if task.condition is not None}
        for name, clip in made.items():
            assert clip.shape == (8, 3, 5, 24, 24) and clip.dtype == torch.float32, name
            assert clip.min() >= -1 and clip.max() <= 1, name


def test_only_the_window_is_seen(clips: MediaBatch) -> None:
    longer = replace(clips, video=torch.cat([clips.video, noise(n_frames=4).video], 2))
    assert same(conditions(longer, SPEC, SEEDS), conditions(clips, SPEC, SEEDS))


def test_what_is_drawn_follows_from_the_seed_of_the_clip_alone(clips: MediaBatch, world: MediaBatch) -> None:
    for batch in (clips, world):
        made = conditions(batch, SPEC, SEEDS)
        assert same(conditions(batch, SPEC, SEEDS), made)
        last = MediaBatch(batch.video[-1:], None, scenes=batch.scenes and batch.scenes[-1:])
        alone = conditions(last, SPEC, SEEDS[-1:])
        assert same(alone, {name: clip[-1:] for name, clip in made.items()})  # whatever stands beside it


@pytest.mark.parametrize("name", ["inpainting", "outpainting", "stylization"])
def test_the_same_clip_is_treated_in_many_ways(name: str, world: MediaBatch) -> None:
    assert world.scenes is not None
    copies = MediaBatch(world.video[:1].expand(8, -1, -1, -1, -1), None, scenes=world.scenes[:1] * 8)
    made = conditions(copies, SPEC, SEEDS)[name]
    assert len({clip.numpy().tobytes() for clip in made}) > 4


def test_inpainting_blanks_a_hole_and_changes_nothing_else(clips: MediaBatch) -> None:
    shown, true = pixels(conditions(clips, SPEC, SEEDS)["inpainting"]), pixels(clips.video)
    hole = (shown == GREY).all(-1)
    assert torch.equal(shown[~hole], true[~hole])
    assert all(0.02 < share < 0.98 for share in hole.float().mean((1, 2, 3)))


def test_outpainting_keeps_a_box_and_repeats_its_border(clips: MediaBatch) -> None:
    shown, true = pixels(conditions(clips, SPEC, SEEDS)["outpainting"]), pixels(clips.video)
    for made, frames in zip(shown, true, strict=True):
        known = (made == frames).all(-1).all(0)  # (H, W): in noise a repeated pixel is never the true one
        rows, columns = known.any(1).nonzero()[:, 0], known.any(0).nonzero()[:, 0]
        y, x = torch.arange(24).clamp(rows[0], rows[-1]), torch.arange(24).clamp(columns[0], columns[-1])
        assert known.sum() == len(rows) * len(columns) < 24 * 24
        assert min(len(rows), len(columns)) >= 12  # at least half of each axis
        assert torch.equal(made, frames[:, y[:, None], x])


def test_interpolation_shows_both_ends_as_they_are_and_nothing_between(clips: MediaBatch) -> None:
    assert clips.video is not None
    made, true = conditions(clips, SPEC, SEEDS)["frame_interpolation"], pixels(clips.video)
    shown = pixels(made)
    assert torch.equal(shown[:, 0], true[:, 0]) and torch.equal(shown[:, -1], true[:, -1])
    assert (shown[:, 2] - (true[:, 0] + true[:, -1]) / 2).abs().max() <= 0.5
    other = clips.video.clone()
    other[:, :, 1:-1] *= -1
    assert torch.equal(conditions(MediaBatch(other, None), SPEC, SEEDS)["frame_interpolation"], made)


def test_stylization_shows_no_colour(clips: MediaBatch, world: MediaBatch) -> None:
    luma = (255 * luminance(pixels(clips.video))).round()
    grey = replace(clips, video=(luma / 127.5 - 1)[:, None].expand(-1, 3, -1, -1, -1))
    made = conditions(clips, SPEC, SEEDS)["stylization"]
    assert torch.equal(conditions(grey, SPEC, SEEDS)["stylization"], made)
    assert torch.equal(pixels(made)[..., 2].float(), luma)
    # of a known scene not even its own brightness: it is drawn in another way
    black = replace(world, video=-torch.ones_like(world.video))
    assert torch.equal(conditions(black, SPEC, SEEDS)["stylization"], conditions(world, SPEC, SEEDS)["stylization"])


def test_stylization_learns_from_true_depth_and_flow_too(world: MediaBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.scenes is not None
    monkeypatch.setattr(stylization, "find_spec", lambda name: None)  # as without OpenCV
    shown = pixels(conditions(world, SPEC, SEEDS)["stylization"])
    n_depth = 0
    for made, scene in zip(shown, world.scenes, strict=True):
        true = picture(flow_since(scene, SPEC), depth(scene, SPEC)).long()
        assert torch.equal(made[..., :2], true[..., :2])
        n_depth += torch.equal(made[..., 2], true[..., 2])
    assert 0 < n_depth < len(SEEDS)  # the rest shows how bright things are


def test_each_clip_is_known_or_not_whatever_stands_beside_it(world: MediaBatch) -> None:
    assert world.scenes is not None
    mixed = conditions(MediaBatch(world.video, None, scenes=[None, *world.scenes[1:]]), SPEC, SEEDS)
    known, unknown = conditions(world, SPEC, SEEDS), conditions(MediaBatch(world.video, None), SPEC, SEEDS)
    for name, made in mixed.items():
        assert torch.equal(made[0], unknown[name][0]) and torch.equal(made[1:], known[name][1:])
    assert not torch.equal(known["stylization"][0], unknown["stylization"][0])
