"""Super-resolution in the pipeline: as a tool, as an option of every task that makes a picture, and not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks import TASKS, AVPoet, InputError, stream
from tasks.cli import main
from tasks.long_video import steps
from tasks.stream import join
from tokenizers_av.clip import Clip, read_clip
from tokenizers_av.superres import SuperRes, superres_config
from tokenizers_av.superres.windows import memory_of


@pytest.fixture(scope="module")
def large_model(debug_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The debug model with a head none of whose weights are zero."""
    folder = tmp_path_factory.mktemp("large") / "model"
    shutil.copytree(debug_model, folder)
    torch.manual_seed(0)
    head = SuperRes(superres_config("debug", noise=0.1))
    for p in head.parameters():
        nn.init.normal_(p, std=0.1)
    head.save_pretrained(folder / "superres")
    return folder


@pytest.fixture(scope="module")
def large(large_model: Path) -> AVPoet:
    return AVPoet.from_pretrained(large_model, dtype="float32")


@pytest.mark.parametrize("scale", [2, 4])
def test_a_clip_of_any_size_keeps_its_rate_and_sound(large, clip, scale):
    made = large.superres(clip, scale, steps=2)
    assert made.frames.shape == (22, 24 * scale, 32 * scale, 3) and made.fps == clip.fps
    assert torch.equal(made.samples, clip.samples) and made.sample_rate == clip.sample_rate


@pytest.mark.parametrize("rate", [2, 3])
def test_a_clip_may_get_more_frames_and_keeps_its_sound(large, clip, rate):
    made = large.superres(clip, 2, rate=rate, steps=1)
    video = clip.frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    wanted = large.superres_head.upscale(video, 2, rate=rate, steps=1, keep=True)
    assert torch.equal(made.frames, ((wanted[0] + 1) * 127.5).round().byte().permute(1, 2, 3, 0))
    assert (made.n_frames, made.fps) == (rate * 22, rate * clip.fps) and torch.equal(made.samples, clip.samples)


def test_the_prompt_reaches_a_head_that_looks_at_text(large, clip, monkeypatch):
    with pytest.raises(InputError, match="trained without text"):
        large.superres(clip, prompt="a red ball")
    torch.manual_seed(0)
    head = SuperRes(superres_config("debug", text_size=large.codec.text.vocab_size)).eval()
    for p in head.parameters():
        nn.init.normal_(p, std=0.1)
    plain = large.text_to_video("a red ball", superres=True)
    monkeypatch.setattr(large, "superres_head", head)
    told, untold = large.superres(clip, prompt="a red ball"), large.superres(clip)
    assert not torch.equal(told.frames, untold.frames)
    small, made = large.text_to_video("a red ball"), large.text_to_video("a red ball", superres=True)
    assert torch.equal(made.frames, large.superres(small, prompt="a red ball", mend=True).frames)
    assert torch.equal(large.text_to_video(["a red ball", "a cube"], superres=True)[0].frames, made.frames)
    assert not torch.equal(made.frames, plain.frames)
    square = Clip(clip.frames[:9, :16, :16], 8.0)
    small, made = (large.extend(square, 1.0, "a red ball", sound=False, superres=s) for s in (False, True))
    drawn = Clip(small.frames[9:], 8.0)
    told, untold = (large.superres(drawn, prompt=words, mend=True).frames for words in ("a red ball", None))
    assert torch.equal(made.frames[9:], told) and not torch.equal(told, untold)


def test_in_less_memory_it_is_the_same_picture(large, clip, monkeypatch):
    whole, seen, draw = large.superres(clip), [], large.superres_head.upscale_stream
    monkeypatch.setattr(
        large.superres_head, "upscale_stream", lambda *args, **how: seen.append(how["window"]) or draw(*args, **how)
    )
    monkeypatch.setattr("tokenizers_av.superres.windows.WINDOW", 32)
    parts = (large.lm, large.codec.video, large.codec.audio, large.superres_head)
    weights = 4 * sum(p.numel() for part in parts for p in part.parameters())
    needs = [(memory_of(large.superres_head.config, (96, 128), 4, 4, n) + weights) / 1e9 for n in (None, 32)]
    assert needs[0] > needs[1]
    for need in needs:
        away = (large.superres(clip, memory_gb=1.00001 * need).frames.int() - whole.frames.int()).abs()
        assert away.max() <= 1 and away.float().mean() < 1e-3  # grey levels
    assert seen == [None, 32]
    one = Clip(clip.frames[:1], 8.0)  # less, and the state of no step
    need = (memory_of(large.superres_head.config, (96, 128), 0, 4, None) + weights) / 1e9
    assert need < needs[0] and torch.equal(large.superres(one, memory_gb=1.00001 * need).frames, whole.frames[:1])
    assert seen[-1] is None
    with pytest.raises(InputError, match="frames of 128x96 need 0"):
        large.superres(clip, memory_gb=needs[1] * 0.99)


def test_steps_noise_and_seed_reach_the_head(large, clip):
    made = large.superres(clip)
    video = clip.frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    for values in ({}, {"steps": 1}, {"noise": 0.05}, {"seed": 3}, {"mend": True}):
        told = {**values, "keep": not values.pop("mend", False)}
        told.pop("mend", None)
        wanted = ((large.superres_head.upscale(video, 4, **told)[0] + 1) * 127.5).round().byte().permute(1, 2, 3, 0)
        assert torch.equal(large.superres(clip, **values, mend=not told["keep"]).frames, wanted)
    assert torch.equal(made.frames, join(large.stream.superres(clip)).frames)


@pytest.mark.parametrize("task", [t.name for t in TASKS.values() if t.output("video")])
def test_every_task_that_makes_a_picture_makes_it_large(large, clip, photo, tone, task):
    given = {
        "prompt": "a red ball", "image": photo, "video": clip, "audio": tone, "mask": "4,4,8,8", "last": photo,
        "left": 8,
    }  # fmt: skip
    row = TASKS[task]
    names = {b.argument for b in row.inputs} | {a.name for a in row.arguments if a.name in ("mask", "last", "left")}
    inputs = {k: v for k, v in given.items() if k in names}
    small, big = large.generate(task, **inputs, seed=1), large.generate(task, **inputs, seed=1, superres=True)
    assert big.frames.shape == (small.n_frames, 4 * small.height, 4 * small.width, 3)
    assert (big.samples is None) == (small.samples is None)
    if small.samples is not None:
        assert torch.equal(big.samples, small.samples)


def test_lists_are_as_large_and_as_alone(large):
    both = large.text_to_video(["a red ball", "a cube"], seed=[3, 4], superres=True)
    assert torch.equal(both[1].frames, large.text_to_video("a cube", seed=4, superres=True).frames)


def test_extend_streams_large_frames_into_a_file(large, clip, tmp_path):
    out = tmp_path / "x.mp4"
    large.extend(clip, 2.0, out=out, superres=True)
    shown, whole = read_clip(out), large.extend(clip, 2.0)
    assert (shown.n_frames, shown.height, shown.width) == (whole.n_frames, 4 * whole.height, 4 * whole.width)
    assert torch.equal(large.extend(clip, 2.0, superres=True).samples, whole.samples)


def test_extend_keeps_the_frames_of_the_clip_and_mends_those_that_are_drawn(large, clip):
    clip = Clip(clip.frames[:9, :16, :16], 8.0)  # of the model's size and rate
    small, made = (large.extend(clip, 1.0, sound=False, superres=s) for s in (False, True))
    assert torch.equal(small.frames[:9], clip.frames)
    assert torch.equal(made.frames[:9], large.superres(clip).frames)
    drawn = Clip(small.frames[9:], 8.0)
    assert torch.equal(made.frames[9:], large.superres(drawn, mend=True).frames)
    assert not torch.equal(made.frames[9:], large.superres(drawn).frames)


def test_large_frames_are_there_before_later_windows_are_drawn(large, clip, killed_at):
    drawn = killed_at(large, 3)
    for parts, first in ((large.stream.extend(clip, 3.0, superres=True), 0),
                         (large.stream.text_to_video("a red ball", seconds=4.0, superres=True), 1)):  # fmt: skip
        drawn.clear()
        assert next(parts).height > 3 * 16 and len(drawn) == first
        with pytest.raises(KeyboardInterrupt):
            join(parts)


def test_frames_are_enlarged_as_the_model_draws_them_and_then_take_their_proportions(large, clip, monkeypatch):
    enlarge, seen = stream.enlarged, []

    def spied(parts, *args, **options):
        parts = list(parts)
        seen.extend(p.frames.shape[1:3] for p in parts if p.frames is not None)
        return enlarge(iter(parts), *args, **options)

    monkeypatch.setattr(stream, "enlarged", spied)
    for made in (large.frame_prediction(clip, sound=False, superres=True), large.extend(clip, 1.0, superres=True)):
        assert made.frames.shape[1:3] == (56, 72)
    assert len(seen) > 2 and set(seen) == {(16, 16)}


def test_superres_takes_a_frame_at_a_time(large, clip):
    assert {p.n_frames for p in large.stream.superres(clip, 2)} == {1}


def test_a_killed_run_goes_on_with_larger_frames(large, clip, tmp_path, killed_at):
    drawn = killed_at(large, 3)
    with pytest.raises(KeyboardInterrupt):
        large.extend(clip, 2.0, out=tmp_path / "x.mp4")
    before = len(drawn)
    large.extend(clip, 2.0, out=tmp_path / "x.mp4", superres=True)
    assert len(drawn) - before == len(list(steps(large.config.layout, 2, 16))) - 2  # the first two are known


def test_a_saved_model_keeps_its_head(large, tmp_path, clip):
    large.save_pretrained(tmp_path / "again")
    again = AVPoet.from_pretrained(tmp_path / "again", dtype="float32")
    assert torch.equal(again.superres(clip).frames, large.superres(clip).frames)


def test_a_model_without_a_head_is_not_saved_over_one_with(large, tmp_path):
    parts = large.codec
    alone = AVPoet(parts.video, parts.audio, parts.text, large.lm, large.config)
    alone.save_pretrained(tmp_path / "new")
    large.save_pretrained(tmp_path / "old")
    with pytest.raises(InputError, match="is of another model"):
        alone.save_pretrained(tmp_path / "old")


def test_a_model_without_a_head_says_so(poet, clip):
    for call in (lambda: poet.superres(clip), lambda: poet.text_to_video("a ball", superres=True)):
        with pytest.raises(InputError, match="has no super-resolution head"):
            call()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": 3}, "scale=3"), ({"rate": 4}, "rate=4"), ({"steps": 3}, "steps=3"), ({"noise": 2.0}, "noise=2.0"),
        ({"prompt": 3}, "prompt is int"), ({"memory_gb": 0}, "memory_gb=0: expected a number above 0"),
        ({"memory_gb": "4"}, "memory_gb='4': expected"), ({"memory_gb": 0.01}, "memory_gb=0.01: frames .* need 0"),
    ],
)
def test_wrong_values_are_told(large, clip, values, message):
    with pytest.raises(InputError, match=message):
        large.superres(clip, **values)


@pytest.mark.parametrize(("size", "scale"), [((4320, 1930), 4), ((4320, 3850), 2), ((16, 4100), 4)])
def test_a_picture_that_no_memory_and_no_encoder_would_hold_is_refused(large, size, scale):
    with pytest.raises(InputError, match=f"{scale * size[1]:,} pixels wide and {scale * size[0]:,} high"):
        large.stream.superres(Clip(torch.zeros(1, *size, 3, dtype=torch.uint8), 8.0), scale)


def test_known_pixels_are_not_redrawn(large, clip):
    with pytest.raises(InputError, match="keep_known"):
        large.inpainting(clip, "4,4,8,8", keep_known=True, superres=True)


def test_the_commands(large_model, debug_model, clip_file, tmp_path, capsys):
    model = ["--model", str(large_model), "--dtype", "float32"]
    out = tmp_path / "big.mp4"
    assert main(["superres", str(clip_file), "--scale", "2", "--steps", "1", "--out", str(out), *model]) == 0
    made = read_clip(out)
    assert (made.height, made.width, made.n_frames, made.sample_rate) == (48, 64, 22, 16000)
    assert made.samples is not None
    assert main(["superres", str(clip_file), "--rate", "3", "--steps", "1", "--out", str(out), *model]) == 0
    faster = read_clip(out)
    assert (faster.n_frames, faster.fps) == (66, 3 * made.fps) and len(faster.samples) == len(made.samples)
    folder, how = tmp_path / "frames/", ["--mend", "--noise", "0.05", "--seed", "2", "--memory-gb", "3"]
    words = ["superres", str(clip_file), "--scale", "2", "--steps", "1", *how, "--out", f"{folder}/", *model]
    assert main(words) == 0
    wanted = AVPoet.from_pretrained(large_model, dtype="float32").superres(
        clip_file, 2, steps=1, mend=True, noise=0.05, seed=2
    )
    drawn = [read_clip(path).frames for path in sorted(folder.glob("*.png"))]
    assert torch.equal(torch.cat(drawn), wanted.frames)
    assert main(["generate", "text-to-image", "a ball", "--superres", "--out", str(tmp_path / "x.png"), *model]) == 0
    assert read_clip(tmp_path / "x.png").height == 64
    assert main(["info", str(large_model)]) == 0
    assert "superres" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["superres", "{clip}", "--out", "{tmp}/x.mp4", "--model", "{small}"],
        ["superres", "{clip}", "--out", "{tmp}/x.mp4", "--model", "{large}", "--scale", "3"],
        ["superres", "{clip}", "--out", "{tmp}/x.mp4", "--model", "{large}", "--steps", "3"],
        ["superres", "{clip}", "--out", "{tmp}/x.mp4", "--model", "{large}", "--rate", "4"],
        ["superres", "{clip}", "--out", "{tmp}/x.mp4", "--model", "{large}", "--prompt", "a ball"],
        ["superres", "{clip}", "--out", "{tmp}/x.mp4", "--model", "{large}", "--noise", "9"],
        ["superres", "{clip}", "--out", "{tmp}/x.mp4", "--model", "{large}", "--memory-gb", "0.1"],
        ["superres", "{clip}", "--out", "{clip}", "--model", "{large}"],
        ["superres", "{tone}", "--out", "{tmp}/x.mp4", "--model", "{large}"],
        ["superres", "{clip}", "--out", "{tmp}/x.wav", "--model", "{large}"],
        ["superres", "{clip}", "--out", "{tmp}/x.png", "--model", "{large}"],
        ["superres", "{large}/wide.png", "--out", "{tmp}/x.mp4", "--model", "{large}"],
        ["generate", "text-to-video", "a", "--superres", "--out", "{tmp}/x.mp4", "--model", "{small}"],
        ["generate", "video-to-audio", "{clip}", "--superres", "--out", "{tmp}/x.mp4", "--model", "{large}"],
        ["extend", "{clip}", "--seconds", "1", "--superres", "--out", "{tmp}/x.mp4", "--model", "{small}"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(words, large_model, debug_model, clip_file, tone, tmp_path, capsys):
    places = {"clip": clip_file, "tone": tone, "tmp": tmp_path, "large": large_model, "small": debug_model}
    Clip(torch.zeros(1, 1, 4100, 3, dtype=torch.uint8), 8.0).save(large_model / "wide.png")
    before = clip_file.read_bytes()
    assert main([w.format(**places) for w in words]) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and "Traceback" not in said
    assert not list(tmp_path.iterdir()) and clip_file.read_bytes() == before


def test_a_damaged_head_is_told(large_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(large_model, folder)
    config = folder / "superres/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "n_blocks": 2}))
    with pytest.raises(InputError, match="superres"):
        AVPoet.from_pretrained(folder)


def test_one_frame_is_enough(large, clip):
    assert large.superres(Clip(clip.frames[:1], 8.0)).frames.shape == (1, 96, 128, 3)


def test_a_head_for_another_text_tokenizer_is_refused(large_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(large_model, folder)
    SuperRes(superres_config("debug", text_size=20)).save_pretrained(folder / "superres")
    with pytest.raises(InputError, match="text ids that the head looks at"):
        AVPoet.from_pretrained(folder)


def test_a_rate_needs_opencv(large, clip, monkeypatch):
    monkeypatch.setattr("tasks.check.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install opencv-python-headless"):
        large.stream.superres(clip, rate=2)


def test_an_image_has_no_rate(large, photo):
    with pytest.raises(InputError, match="rate=2: an image has no frames between"):
        large.superres(photo, rate=2)
