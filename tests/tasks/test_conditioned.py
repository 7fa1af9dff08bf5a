"""Tasks with a conditioning clip: known pixels stay, windows go on from each other, masks and sizes stay registered."""

from __future__ import annotations

from dataclasses import replace

import av
import pytest
import torch
import torch.nn.functional as F

from tasks import TASKS, InputError
from tasks.codec import even_size
from tasks.model_folder import SamplingDefaults
from tasks.options import Options
from tasks.request import Request
from tasks.sequence import TokenSample
from tasks.source import Source
from tasks.stream import join
from tasks.task import Conditioner
from tokenizers_av.clip import Clip, read_clip
from tokenizers_av.optical_flow import luminance


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


@pytest.mark.parametrize("promised", [0.1, 17 / 8, 100.0])
def test_a_video_is_as_long_as_its_frames_whatever_its_header_says(poet, promised):
    given = noise(20)
    request = Request.of(poet.config, "inpainting", given={"video": given}, seconds=None,
                         options={"mask": (2, 2, 8, 8), "keep_known": True})  # fmt: skip
    request.source.seconds = promised
    made = join(poet.stream.answer(request))
    assert made.n_frames == 20
    assert torch.equal(made.frames[:, 12:], given.frames[:, 12:])


@pytest.mark.parametrize(
    ("name", "value", "message"), [("compiled", True, "compiled"), ("block_size", 2, "2 ids at a")]
)
def test_drafts_that_cannot_be_are_refused(poet, monkeypatch, name, value, message):
    monkeypatch.setattr(poet.generator.engine, name, value)
    with pytest.raises(InputError, match=message):
        poet.unconditional(speculative=4)


def test_guidance_that_would_not_act_is_refused(poet):
    row = TASKS["text_to_audio"]
    quiet = SamplingDefaults(3.0, {"audio": {"guided": False}})
    assert not quiet.guides(row) and quiet.guides(TASKS["text_to_video"]) and SamplingDefaults().guides(row)
    config = replace(poet.config, sampling=quiet)
    for options in ({"guidance_scale": 9.0}, {"negative_prompt": "wooden"}):
        with pytest.raises(InputError, match="drawn without guidance"):
            Request.of(config, row.name, given={"prompt": "a ball"}, seconds=None, options=options)
    Request.of(config, row.name, given={"prompt": "a ball"}, seconds=None, options={"guidance_scale": 1.0})


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_what_is_known_is_given_back_by_speculative_decoding_too(poet, temperature):
    layout, row = poet.config.layout, TASKS["unconditional"]
    video = torch.arange(2 * layout.height * layout.width).view(2, layout.height, layout.width) % 16
    audio = torch.arange(layout.n_codebooks * 3).view(layout.n_codebooks, 3) % 16
    known = TokenSample(video=video, audio=audio)
    plain, drafted = (
        list(poet.generator.blocks(row, TokenSample(), Options(temperature=temperature, speculative=n), seed=0,
                                   sound=True, known=known))
        for n in (0, 2)
    )  # fmt: skip
    assert torch.equal(drafted[-2].video[:2], video) and torch.equal(drafted[-1].audio[:, :3], audio)
    assert drafted[-2].video.shape == (layout.latent_frames, layout.height, layout.width)
    assert drafted[-1].audio.shape == (layout.n_codebooks, layout.audio_frames)
    if temperature == 0:
        assert torch.equal(drafted[-2].video, plain[-2].video) and torch.equal(drafted[-1].audio, plain[-1].audio)


def with_sound(n: int, rate: int = 16000) -> Clip:
    samples = 0.5 * torch.rand(n * rate // 8, generator=torch.Generator().manual_seed(n)) - 0.25
    return Clip(noise(n).frames, 8.0, samples, rate)


OF_VIDEOS = {
    "inpainting": {"mask": (4, 6, 20, 10), "keep_known": True}, "outpainting": {"top": 6},
    "stylization": {"prompt": "a ball"},
}  # fmt: skip


@pytest.mark.parametrize("task", OF_VIDEOS)
def test_what_is_made_of_a_video_keeps_its_sound(poet, task):
    clip, given = with_sound(30), OF_VIDEOS[task]
    parts = list(poet.stream.generate(task, video=clip, **given))
    assert len(parts) > 3 and all(len(p.samples) == p.n_frames * 2000 for p in parts)  # as it goes
    made = join(parts)
    assert made.sample_rate == 16000 and torch.equal(made.samples, clip.samples)
    assert torch.equal(made.frames, poet.generate(task, video=noise(30), **given).frames)
    cut = poet.generate(task, video=clip, seconds=1.5, **given)
    assert torch.equal(cut.samples, clip.samples[:24000])
    other = poet.generate(task, video=with_sound(30, 8000), **given)
    assert other.sample_rate == 16000 and len(other.samples) == 60000 and other.samples.abs().max() > 0.1
    short = Clip(clip.frames, 8.0, clip.samples[:9000], 16000)
    assert torch.equal(poet.generate(task, video=short, **given).samples, F.pad(short.samples, (0, 51000)))


def test_without_a_sound_of_its_own_a_video_gets_none(poet):
    for task, given in OF_VIDEOS.items():
        assert poet.generate(task, video=noise(9), **given).samples is None
        assert poet.generate(task, video=with_sound(1), **given).samples is None  # a still image
        assert poet.generate(task, video=with_sound(9), sound=False, **given).samples is None
    assert poet.frame_interpolation(with_sound(9), with_sound(9)).samples is None


def test_the_sound_of_a_file_comes_with_its_picture(poet, clip_file):
    made = poet.stylization(clip_file, "a red ball", seconds=1.5)
    wanted = read_clip(clip_file, seconds=1.5).samples
    assert torch.equal(made.samples, wanted) and wanted.abs().max() > 0.1


def test_a_track_that_holds_no_sound_is_silence(poet, tmp_path):
    path = tmp_path / "empty.mkv"
    with av.open(str(path), "w") as file:
        picture = file.add_stream("libx264", rate=8)
        picture.width = picture.height = 32
        file.add_stream("aac", rate=16000)
        for _ in range(9):
            file.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
        file.mux(picture.encode(None))
    assert Source(path).has_audio
    made = poet.stylization(path, "a red ball")
    assert len(made.samples) == made.n_frames * 2000 and not made.samples.any()


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


WIDE = {"video": noise(1, 400, 400), "left": 6000, "top": 5500}


def test_what_a_list_of_videos_shares_is_opened_once(poet, monkeypatch):
    class Depth:
        range = None

        def __init__(self, path):
            opened.append(path)

        def __call__(self, frames):
            return luminance(frames)

    opened = []
    monkeypatch.setattr("tasks.structure.DepthModel", Depth)
    made = poet.stylization([noise(9), noise(8)], "a ball", depth="a-folder")
    assert opened == ["a-folder"] and [m.n_frames for m in made] == [9, 8]


@pytest.mark.parametrize(
    ("task", "given", "says"),
    [
        ("inpainting", {}, "needs mask"),
        ("inpainting", {"mask": (30, 0, 20, 9)}, "40 wide"),
        ("outpainting", {}, "at least one side"),
        ("outpainting", {"left": True}, "whole number of pixels"),
        ("outpainting", {**WIDE, "keep_known": True}, "6,400 pixels wide and 5,900 high"),
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


def test_a_conditioner_without_frames_cannot_be_made():
    class Forgetful(Conditioner):
        def composite(self, made, frames, first):
            return frames

    with pytest.raises(TypeError, match="frames"):
        Forgetful((24, 40), (16, 16), 8.0)
