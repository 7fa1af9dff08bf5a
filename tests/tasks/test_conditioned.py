"""Tasks with a conditioning clip: known pixels stay, windows go on from each other, masks and sizes stay registered."""

from __future__ import annotations

import pytest
import torch

from tasks import TASKS, InputError
from tasks.options import Options
from tasks.sequence import TokenSample
from tasks.source import Source
from tasks.stream import even_size, join
from tokenizers_av.clip import Clip


def noise(n: int, height: int = 24, width: int = 40) -> Clip:
    g = torch.Generator().manual_seed(n)
    return Clip(torch.randint(0, 256, (n, height, width, 3), generator=g, dtype=torch.uint8), 8.0)


@pytest.mark.parametrize("n", [1, 9, 30])
def test_inpainting_keeps_what_is_known(poet, n):
    clip = noise(n)
    made = poet.inpainting(clip, mask=(4, 6, 20, 10), keep_known=True)
    hole = torch.zeros(24, 40, dtype=torch.bool)
    hole[6:16, 4:24] = True
    assert made.frames.shape == clip.frames.shape and made.fps == 8
    assert torch.equal(made.frames[:, ~hole], clip.frames[:, ~hole])
    assert (made.frames[:, hole] != clip.frames[:, hole]).any()
    plain = poet.inpainting(clip, mask=(4, 6, 20, 10))
    assert plain.frames.shape == (n, *even_size((24, 40), (16, 16)), 3)


def test_a_moving_mask_moves_with_the_video(poet):
    clip, n = noise(30), 30
    mask = torch.zeros(n, 24, 40, dtype=torch.uint8)
    for i in range(n):
        mask[i, 2:12, i : i + 8] = 255
    made = poet.inpainting(clip, mask=Clip(mask[..., None].expand(-1, -1, -1, 3).contiguous(), 8.0), keep_known=True)
    assert torch.equal(made.frames[mask == 0], clip.frames[mask == 0])
    for i in (0, 13, 29):
        assert not torch.equal(made.frames[i][mask[i] > 0], clip.frames[i][mask[i] > 0])


@pytest.mark.parametrize("n", [1, 9, 30])
def test_outpainting_keeps_the_video_in_its_place(poet, n):
    clip = noise(n)
    made = poet.outpainting(clip, left=10, bottom=7, keep_known=True)
    assert made.frames.shape == (n, 31, 50, 3)
    assert torch.equal(made.frames[:, :24, 10:], clip.frames)
    assert made.frames[:, 24:].any() and made.frames[:, :, :10].any()


def test_what_the_model_is_shown_does_not_tell_of_the_hole(poet):
    """Two videos that differ in the hole alone have the same condition."""
    a, seen = noise(9), []
    b = Clip(a.frames.clone(), 8.0)
    b.frames[:, 6:16, 4:24] = 255 - b.frames[:, 6:16, 4:24]
    for clip in (a, b):
        source = Source(clip)
        conditioner = TASKS["inpainting"].condition.open(
            source.picture_size(), (24, 40), 8.0, mask=TASKS["inpainting"].arguments[0].parse((4, 6, 20, 10))
        )
        seen.append(conditioner.frames(clip.frames, 0))
    assert torch.equal(*seen) and bool((seen[0][:, 6:16, 4:24] == 128).all())
    assert torch.equal(seen[0][:, 16:], a.frames[:, 16:])


def test_windows_go_on_from_each_other(poet, monkeypatch):
    """The beginning of each window is what was made before, and only what is new is shown."""
    known, answers = [], []
    blocks = type(poet.generator).blocks

    def watched(self, task, sample, *args, **options):
        known.append(options["known"])
        parts = list(blocks(self, task, sample, *args, **options))
        answers.append(parts[-1].video)
        return iter(parts)

    monkeypatch.setattr(type(poet.generator), "blocks", watched)
    made = poet.stylization(noise(20), "a red ball")
    assert known[0] is None and len(known) == 4
    frames = poet.codec.decode_video(answers[0])
    shown = [frames]
    for k, answer in zip(known[1:], answers[1:]):
        assert torch.equal(k.video, poet.codec.encode_video(frames[-5:]))
        assert torch.equal(answer[:2], k.video)
        frames = poet.codec.decode_video(answer)
        shown.append(frames[5:])
    wanted = join(Clip(f, 8.0) for f in shown)
    assert made.n_frames == 20 and wanted.n_frames >= 20


def test_what_is_known_of_an_answer_is_given_back(poet):
    layout = poet.config.layout
    video = torch.arange(2 * layout.height * layout.width).view(2, layout.height, layout.width) % 16
    audio = torch.arange(layout.n_codebooks * 3).view(layout.n_codebooks, 3) % 16
    row = TASKS["unconditional"]
    made = list(poet.generator.blocks(row, TokenSample(), Options(), seed=0, sound=True,
                                      known=TokenSample(video=video, audio=audio)))  # fmt: skip
    assert torch.equal(made[-2].video[:2], video) and torch.equal(made[-1].audio[:, :3], audio)
    assert len(made[-2].video) == layout.latent_frames


def test_interpolation_begins_and_ends_as_shown(poet):
    first, last = noise(3), noise(1)
    made = poet.frame_interpolation(first, last)
    assert made.n_frames == poet.config.layout.n_frames
    other = poet.frame_interpolation(first, Clip(255 - last.frames, 8.0))
    assert not torch.equal(made.frames, other.frames)


def test_seconds_cut_the_video(poet):
    clip = noise(30)
    rows = {"inpainting": {"mask": (0, 0, 9, 9)}, "outpainting": {"top": 6}, "stylization": {"prompt": "a ball"}}
    for task, given in rows.items():
        assert poet.generate(task, video=clip, seconds=1.5, **given).n_frames == 12


@pytest.mark.parametrize(
    ("task", "given", "says"),
    [
        ("inpainting", {}, "needs mask"),
        ("inpainting", {"mask": (30, 0, 20, 9)}, "40 wide"),
        ("outpainting", {}, "at least one side"),
        ("outpainting", {"left": True}, "whole number of pixels"),
        ("outpainting", {"left": 4, "mask": (0, 0, 9, 9)}, "mask"),
        ("stylization", {"prompt": "a ball", "keep_known": True}, "no known pixels"),
        ("stylization", {}, "needs a prompt"),
        ("frame_interpolation", {"image": noise(1), "last": noise(1), "video": None, "seconds": 3}, "one clip"),
    ],
)
def test_wrong_combinations_are_said_before_anything_runs(poet, monkeypatch, task, given, says):
    monkeypatch.setattr(type(poet.generator), "blocks", lambda *a, **k: pytest.fail("ran the model"))
    with pytest.raises(InputError, match=says):
        poet.generate(task, **{"video": noise(9), **given})
