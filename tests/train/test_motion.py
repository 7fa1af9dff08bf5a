"""Moving crops of still images: inside the picture, slow and smooth, sharp, and cheap in memory."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizers_av.media_frames import resize
from train.data import MediaSpec, open_source
from train.data.motion import DRIFT, LEAST, ZOOM, cut, fixed_crop, moving_crop
from train.data.stills import Cache, Still, moving_still, read_still

SPEC = MediaSpec(n_frames=9, size=32)


def ramp(height, width):
    """A picture whose red is the column and whose green is the row, in pixels."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], -1).astype(np.uint8))


@pytest.mark.parametrize("shape", [(200, 256), (256, 70), (32, 32), (20, 500), (1, 7)])
@pytest.mark.parametrize("n_frames", [1, 2, 17, 80])
def test_crops_lie_inside_and_move_slowly_and_smoothly(shape, n_frames):
    height, width = shape
    spec = MediaSpec(n_frames=n_frames, size=32)
    for k in range(40):
        boxes = np.array(moving_crop(random.Random(k), height, width, spec))  # (T, 3)
        assert boxes.shape == (n_frames, 3)
        left, top, side = boxes.T
        assert min(left.min(), top.min()) > -1e-6
        assert (left + side).max() < width + 1e-6 and (top + side).max() < height + 1e-6
        assert side.min() >= LEAST * min(shape) - 1e-6 and side.min() >= min(32, 0.75 * min(shape)) - 1e-6
        if n_frames > 1:
            assert max(side[-1] / side[0], side[0] / side[-1]) <= ZOOM**spec.seconds + 1e-6
            moved = np.abs((boxes[-1] - boxes[0])[:2] + (side[-1] - side[0]) / 2).max()
            assert moved <= max(DRIFT * spec.seconds * max(side), abs(side[-1] - side[0]) / 2) + 1e-6
            assert np.abs(np.diff(boxes, n=2, axis=0)).max(initial=0) < 1e-6 * width, "steps must be even"


def test_crops_differ_in_place_size_and_motion():
    paths = np.array([moving_crop(random.Random(k), 256, 320, SPEC) for k in range(200)])  # (200, T, 3)
    assert paths[:, 0, 2].min() < 0.55 * 256 and paths[:, 0, 2].max() > 0.95 * 256
    moved = np.abs(paths[:, -1] - paths[:, 0]) / paths[:, :1, 2]
    assert (moved.max(1) > 0.02).mean() > 0.9, "nearly all crops move"
    assert 0.2 < (paths[:, -1, 2] > paths[:, 0, 2]).mean() < 0.8, "some zoom in and some out"
    single = np.array([fixed_crop(random.Random(k), 256, 320, 32) for k in range(200)])
    assert single[:, 0].std() > 20 and single[:, 1].std() > 10 and single[:, 2].std() > 20


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [16, 40, 100])
def test_a_cut_shows_exactly_its_box(size, flip):
    boxes = [(10.0, 20.5, 100.0), (40.25, 3.5, 130.5), (0.0, 0.0, 200.0), (56.0, 0.0, 200.0)]
    frames = cut(ramp(200, 256), boxes, size, flip).astype(float)
    assert frames.shape == (4, size, size, 3)
    for frame, (left, top, side) in zip(frames, boxes):
        inside = (np.arange(size) + 0.5) * side / size - 0.5
        columns = left + (inside[::-1] if flip else inside)
        border = 2 * side / size + 1  # kernels are cut off at the border of the picture
        good = (columns > border) & (columns < 255 - border)
        assert np.abs(frame[size // 2, good, 0] - columns[good]).max() <= 1.1
        rows = top + inside
        good = (rows > border) & (rows < 199 - border)
        assert np.abs(frame[good, size // 2, 1] - rows[good]).max() <= 1.1
    assert frames[..., 2].min() == frames[..., 2].max() == 128, "no border from outside the picture"


def test_cuts_are_antialiased():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    for side in (256, 150):
        whole = resize(torch.from_numpy(noise[None, :side, :side].copy()), (32, 32))[0].numpy().astype(float)
        ours = cut(Image.fromarray(noise), [(0.0, 0.0, float(side))], 32)[0].astype(float)
        error = np.sqrt(((ours - whole) ** 2).mean())
        assert error < 0.5 * whole.std() and noise.std() > 3 * whole.std(), (side, error, whole.std())


def test_a_still_image_moves_and_stays_in_the_picture(tmp_path):
    ramp(200, 256).save(tmp_path / "ramp.png")
    video = open_source(tmp_path, augment=True).batch(range(16), SPEC, audio=False).video  # (16, 3, T, H, W)
    steps = (video[:, :2, 1:] - video[:, :2, :-1]).abs().mean((1, 3, 4)) * 127.5
    assert (steps.mean(1) > 0.2).float().mean() > 0.9 and steps.max() < 16
    assert video[:, 2].min() == video[:, 2].max(), "what is not of the picture shows"


def test_what_is_transparent_lies_on_a_plain_colour(tmp_path):
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48, 16:48] = (255, 0, 0, 255)
    rgba[:8] = (0, 255, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "sticker.png")
    still = read_still(tmp_path / "sticker.png", 64)
    on = np.asarray(still.on((10, 200, 30))).astype(int)
    assert (on[60, 60] == (10, 200, 30)).all() and (on[30, 30] == (255, 0, 0)).all()
    assert np.abs(on[2, 2] - (5, 227, 15)).max() <= 2
    plain = open_source(tmp_path).batch([0], SPEC, audio=False).video
    assert (plain[0, :, :, -1, -1] == 1).all(), "white without augment"
    corners = {tuple(moving_still(still, random.Random(k), SPEC).frames[0, -1, -1].tolist()) for k in range(8)}
    assert len(corners) > 4, "another colour each time"
    for name, mode in (("opaque.png", "RGBA"), ("grey.png", "L"), ("deep.png", "I;16")):
        Image.new(mode, (64, 64), (1, 2, 3, 255) if mode == "RGBA" else 9).save(tmp_path / name)
        assert read_still(tmp_path / name, 64).alpha is None
    Image.fromarray(rgba).convert("P").save(tmp_path / "palette.png", transparency=0)
    assert read_still(tmp_path / "palette.png", 64).alpha is not None


def test_large_images_are_kept_small(tmp_path):
    Image.new("RGB", (300, 200), (9, 9, 9)).save(tmp_path / "a.png")
    assert read_still(tmp_path / "a.png", 100).picture.size == (150, 100)
    assert read_still(tmp_path / "a.png", 400).picture.size == (300, 200), "never enlarged"
    assert read_still(tmp_path / "a.png", 100).n_bytes == 150 * 100 * 4


def test_the_cache_is_bounded_and_keeps_what_was_used_last():
    made = []
    cache = Cache(len, limit=10)

    def get(key, n=4):
        return cache.get(key, lambda: made.append(key) or key * n)

    assert [get(key) for key in "aba"] == ["aaaa", "bbbb", "aaaa"] and made == ["a", "b"]
    get("c")  # throws out b
    get("a"), get("b")
    assert made == ["a", "b", "c", "b"] and len(cache) == 2 and cache.n_bytes == 8
    assert get("d", 11) == "d" * 11 and len(cache) == 2, "what is too large is not kept"


def test_images_are_decoded_once(tmp_path, monkeypatch):
    from train.data import folder

    ramp(64, 64).save(tmp_path / "a.png")
    reads = []

    def counted(*arguments) -> Still:
        reads.append(arguments)
        return read_still(*arguments)

    monkeypatch.setattr(folder, "read_still", counted)
    source = open_source(tmp_path, augment=True)
    for k in range(5):
        source.batch([k], SPEC)
    assert len(reads) == 1
