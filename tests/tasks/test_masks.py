"""Holes: what may say where they are, and that they stay on the frames they belong to."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tasks.errors import InputError
from tasks.masks import KNOWN_FRAMES, Mask, cover, random_hole
from tokenizers_av.clip import Clip, MediaError, read_clip
from tokenizers_av.media_frames import stretch

SIZES = [((48, 48), (16, 16)), ((40, 70), (16, 16)), ((70, 40), (16, 24)), ((9, 13), (16, 16)), ((33, 47), (33, 47))]


def take(holes, n: int) -> torch.Tensor:
    return torch.stack(list(islice(holes, n)))


def white(hole: torch.Tensor) -> torch.Tensor:
    """Frames (T, H, W, 3) uint8 that are white on the hole (T, H, W)."""
    return (255 * hole.to(torch.uint8))[..., None].expand(*hole.shape, 3).contiguous()


def moving_hole(n: int) -> torch.Tensor:
    """(n, 24, 32) bool: a block of 8x8 that goes down and to the right, by 4 pixels a frame."""
    hole = torch.zeros(n, 24, 32, dtype=torch.bool)
    for t in range(n):
        hole[t, 2 * t : 2 * t + 8, 4 * t : 4 * t + 8] = True
    return hole


def test_all_ways_to_name_a_still_hole_are_the_same(tmp_path: Path):
    hole = torch.zeros(24, 32, dtype=torch.bool)
    hole[6:16, 4:25] = True
    Clip(white(hole[None]), 8.0).save(tmp_path / "hole.png")
    boxes = ["4,6,21,10", " 4, 6, 21, 10 ", (4, 6, 21, 10)]
    tensors = [hole, hole[None], hole.to(torch.uint8), 255 * hole.to(torch.uint8), Mask.parse(hole)]
    files = [tmp_path / "hole.png", str(tmp_path / "hole.png")]
    for value in boxes + tensors + files:
        mask = Mask.parse(value)
        mask.check(24, 32)
        found = take(mask.frames(8.0, 24, 32), 3)
        assert found.dtype == torch.bool and torch.equal(found, hole.expand(3, -1, -1)), value


def test_hole_is_white_from_128_on_and_transparent(tmp_path: Path):
    from PIL import Image

    grey = torch.tensor([[0, 127, 128, 255]], dtype=torch.uint8)
    wanted = torch.tensor([[False, False, True, True]])
    Clip(grey[None, ..., None].expand(1, 1, 4, 3).contiguous(), 8.0).save(tmp_path / "grey.png")
    clear = torch.zeros(1, 4, 4, dtype=torch.uint8)
    clear[0, :, 3] = torch.tensor([255, 255, 0, 0])
    Image.fromarray(clear.numpy()).save(tmp_path / "clear.png")
    for value in (grey, tmp_path / "grey.png", tmp_path / "clear.png"):
        assert torch.equal(next(Mask.parse(value).frames(8.0, 1, 4)), wanted), value


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_hole_stays_on_its_frames(source, size):
    rng = random.Random(0)
    for _ in range(20):
        hole = random_hole(1, *source, rng)
        found = cover(next(Mask.parse(hole).frames(8.0, *source)), *size)
        frames = stretch(white(hole), *size)[0, ..., 0]
        assert not bool((frames[~found] > 140).any()), "more than half of a known pixel comes from the hole"
        around = F.max_pool2d(frames[None].float(), 3, stride=1, padding=1)[0]
        assert bool((around[found] > 0).all()), "a pixel far from the hole is hole"
        assert source != size or torch.equal(found, hole[0])


def test_model_pixel_is_hole_if_any_pixel_under_it_is():
    for y, x in ((0, 0), (3, 5), (4, 6), (37, 50), (63, 95)):  # 4 x 6 pixels to one
        found = cover(next(Mask.parse((x, y, 1, 1)).frames(8.0, 64, 96)), 16, 16)
        assert found.nonzero().tolist() == [[y // 4, x // 6]]


def test_picture_of_another_size_is_stretched_to_the_frames():
    hole = random_hole(1, 12, 8, random.Random(2))
    large = hole.repeat_interleave(4, 1).repeat_interleave(12, 2)
    assert torch.equal(next(Mask.parse(hole).frames(8.0, 48, 96)), large[0])


@pytest.mark.parametrize("kind", ["file", "clip"])
def test_moving_picture_is_read_by_time_and_its_last_frame_stays(kind, tmp_path: Path):
    hole = moving_hole(6)
    clip = Clip(white(hole), 8.0)
    clip.save(tmp_path / "hole.mp4")
    mask = Mask.parse(clip if kind == "clip" else tmp_path / "hole.mp4")
    mask.check(24, 32)
    same = take(mask.frames(8.0, 24, 32), 9)
    wrong = [float((a ^ b).float().mean()) for a, b in zip(same, hole[[0, 1, 2, 3, 4, 5, 5, 5, 5]])]
    assert max(wrong) < 0.02, wrong
    if kind == "clip":
        assert max(wrong) == 0
    half = take(mask.frames(4.0, 24, 32), 4)
    assert torch.equal(half[:3], same[0:6:2]) and torch.equal(half[3], half[2])


def test_windows_are_the_whole():
    mask = Mask.parse(moving_hole(6))
    whole = take(mask.frames(8.0, 48, 64), 10)
    holes = mask.frames(8.0, 48, 64)
    assert torch.equal(torch.cat([take(holes, n) for n in (1, 4, 2, 3)]), whole)
    assert torch.equal(whole[5:], whole[5:6].expand(5, -1, -1)) and not torch.equal(whole[4], whole[5])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "expected X,Y,W,H"),
        ("1,2,3", "expected X,Y,W,H"),
        ("1,2,3,x", "expected X,Y,W,H"),
        ("1,2,3,4,5", "expected X,Y,W,H"),
        ("1.5,2,3,4", "expected X,Y,W,H"),
        ("1,2,0,4", "no size"),
        ("1,2,3,-4", "no size"),
        ("-1,2,3,4", "outside the video"),
        ((1, 2, 3), "four whole numbers"),
        ((1, 2, 3, 4.0), "four whole numbers"),
        ((1, -2, 3, 4), "outside the video"),
        (7, "hole is int"),
        (None, "hole is NoneType"),
        (torch.zeros(8, 8), "torch.float32"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.bool), "expected \\(H, W\\) or \\(T, H, W\\)"),
        (torch.zeros(0, 8, 8, dtype=torch.bool), "expected \\(H, W\\) or \\(T, H, W\\)"),
    ],
)
def test_what_is_no_hole_is_said_in_one_line(value, message):
    with pytest.raises(InputError, match=message) as caught:
        Mask.parse(value, "hole")
    assert str(caught.value).startswith("hole") and "\n" not in str(caught.value)


def test_unreadable_files_are_found_when_parsed(tmp_path: Path, tone: Path):
    broken = tmp_path / "broken.png"
    Clip(white(moving_hole(1)), 8.0).save(broken)
    broken.write_bytes(broken.read_bytes()[:70])  # the header is whole
    (tmp_path / "text.mp4").write_text("not a video")
    for path in (tmp_path / "none.png", tmp_path, broken, tmp_path / "text.mp4", tone):
        with pytest.raises(MediaError, match=path.name) as caught:
            Mask.parse(path)
        assert "\n" not in str(caught.value)


def test_box_must_fit_in():
    Mask.parse("24,24,40,40").check(64, 64)
    with pytest.raises(InputError, match="hole 50,10,40,40 ends at 90, the video is 64 wide"):
        Mask.parse("50,10,40,40", "hole").check(96, 64)
    with pytest.raises(InputError, match="ends at 90, the video is 64 high"):
        Mask.parse("10,50,40,40").check(64, 96)


def test_hole_is_neither_nothing_nor_everything(tmp_path: Path):
    one = torch.ones(24, 32, dtype=torch.bool)
    Clip(white(one[None]), 8.0).save(tmp_path / "white.png")
    Clip(white(~one[None]), 8.0).save(tmp_path / "black.png")
    for value in (~one, tmp_path / "black.png", Clip(white(torch.stack([~one] * 3)), 8.0)):
        with pytest.raises(InputError, match="nothing of the video is hole"):
            Mask.parse(value).check(24, 32)
    for value in (one, tmp_path / "white.png", "0,0,32,24", Clip(white(torch.stack([one] * 3)), 8.0)):
        with pytest.raises(InputError, match="all of the video is hole"):
            Mask.parse(value).check(24, 32)
    Mask.parse(torch.stack([one, ~one])).check(24, 32)


def test_random_holes_are_some_but_never_all_of_it():
    rng = random.Random(0)
    n, late, still, half, moving = 2000, 0, 0, 0, 0
    for _ in range(n):
        size = rng.choice([(8, 8), (16, 24), (64, 64)])
        hole = random_hole(17, *size, rng)
        assert hole.shape == (17, *size) and hole.dtype == torch.bool
        filled = hole.flatten(1).sum(1)
        begin = 0 if filled[0] else KNOWN_FRAMES
        late += begin > 0
        assert not filled[:begin].any() and filled[begin:].all() and int(filled.max()) < size[0] * size[1]
        shown = hole[begin:]
        same = bool((shown == shown[0]).all())
        still, moving = still + same, moving + (not same)
        half += bool((filled[begin:] == size[0] * size[1] // 4).all())
    assert 0.12 < late / n < 0.18 and 0.2 < moving / n < 0.27, (late, moving)
    assert 0.33 < half / n < 0.45, half


def test_random_boxes_move_straight_on():
    rng, seen = random.Random(1), 0
    for _ in range(60):
        hole = random_hole(9, 64, 64, rng)
        if bool((hole == hole[0]).all()):
            continue
        y = torch.stack([h.any(1).nonzero()[0, 0] for h in hole]).float()
        x = torch.stack([h.any(0).nonzero()[0, 0] for h in hole]).float()
        for place in (x, y):
            assert float((place - torch.linspace(float(place[0]), float(place[-1]), 9)).abs().max()) <= 0.5
        assert hole.flatten(1).sum(1).unique().numel() == 1
        seen += 1
    assert seen > 5


def test_short_and_seeded_random_holes():
    assert all(random_hole(KNOWN_FRAMES, 16, 16, random.Random(i)).flatten(1).any(1).all() for i in range(200))
    for seed in range(20):
        a, b = (random_hole(17, 32, 32, random.Random(seed)) for _ in range(2))
        assert torch.equal(a, b), seed


def test_hole_lies_where_a_reader_shows_it(tmp_path: Path):
    """A file that is white on its hole, read at a model's rate and size, is white on the hole and nowhere else."""
    hole = torch.zeros(4, 48, 96, dtype=torch.bool)
    hole[:, 12:36, 36:60] = True
    Clip(white(hole), 16.0).save(tmp_path / "video.mp4")
    frames = read_clip(tmp_path / "video.mp4", fps=8.0, size=(16, 16), fit="stretch").frames
    found = torch.stack([cover(h, 16, 16) for h in take(Mask.parse("36,12,24,24").frames(8.0, 48, 96), len(frames))])
    assert torch.equal(frames.float().mean(-1) >= 128, found)
