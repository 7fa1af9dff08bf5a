"""The `avpoet` command: exit codes, one line for a mistake, nothing partial, examples that work."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tasks import TASKS, InputError
from tasks.cli import build_parser, main, run
from tasks.command import terminate_cleanly
from tokenizers_av.audio import AudioTokenizer, audio_tokenizer_config
from tokenizers_av.audio.metrics import mel_distance, si_sdr
from tokenizers_av.clip import Clip, read_clip
from tokenizers_av.video import VideoTokenizer, video_tokenizer_config


def parsers(parser: argparse.ArgumentParser | None = None):
    """Every parser with its sub-parsers."""
    parser = parser or build_parser()
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


@pytest.mark.parametrize("parser", list(parsers()), ids=lambda p: p.prog)
def test_help_has_an_example_that_parses(parser, capsys):
    words = parser.prog.split()[1:]
    assert main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    examples = text.split("example:\n")[1].strip().splitlines()
    assert examples
    for example in examples:
        program, *argv = shlex.split(example)
        assert program == "avpoet"
        assert build_parser().parse_args(argv).action
    assert any(e.strip().startswith(parser.prog) for e in examples)


def test_every_task_is_a_command():
    assert {f"avpoet generate {t.command}" for t in TASKS.values()} <= {p.prog for p in parsers()}


RED = "a red ball bounces"


def bad(*words: str) -> object:
    return pytest.param(words, id=" ".join(w[:24] for w in words) or "nothing")


@pytest.mark.parametrize(
    "words",
    [
        bad(),
        bad("fly"),
        bad("generate"),
        bad("generate", "text-to-smell", "x", "--out", "{tmp}/x.mp4"),
        bad("generate", "text-to-video", "--out", "{tmp}/x.mp4"),
        bad("generate", "text-to-video", RED),
        bad("generate", "text-to-video", "", "--out", "{tmp}/x.mp4"),
        bad("generate", "text-to-video", "   ", "--out", "{tmp}/x.mp4"),
        bad("generate", "text-to-video", "x" * 10_000, "--out", "{tmp}/x.mp4"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.xyz"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/none/x.mp4"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.png"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.wav", "--no-sound"),
        bad("generate", "text-to-image", RED, "--out", "{tmp}/x.wav"),
        bad("generate", "text-to-image", RED, "--out", "{tmp}/x.png", "--seconds", "2"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--seconds", "0"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--seconds", "-3"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--seconds", "nan"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--seconds", "inf"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--seconds", "90000"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--seconds", "two"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--seed", "-1"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--seed", "1.5"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--seed", str(2**64)),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--top-p", "0"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--top-p", "1.5"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--top-k", "-1"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--temperature", "-1"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--guidance-scale", "nan"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--negative-prompt", ""),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--model", "nosuch"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--model", "{tmp}"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--model", "{model}", "--device", "warp"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--model", "{model}", "--device", "meta"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--dtype", "int3"),
        bad("generate", "text-to-video", RED, "--out", "{text}/x.mp4"),
        bad("generate", "text-to-video", RED, "--out", "{tmp}/x.mp4", "--speed", "3"),
        bad("generate", "image-to-video", "{tmp}/none.png", "--out", "{tmp}/x.mp4"),
        bad("generate", "image-to-video", "{tone}", "--out", "{tmp}/x.mp4"),
        bad("generate", "image-to-video", "{photo}", "--prompt", "", "--out", "{tmp}/x.mp4"),
        bad("generate", "video-to-audio", "{text}", "--out", "{tmp}/x.mp4"),
        bad("generate", "video-to-audio", "{tmp}", "--out", "{tmp}/x.mp4"),
        bad("generate", "image-to-video", "{torn}", "--out", "{tmp}/x.mp4"),
        bad("generate", "video-to-audio", "{clip}", "--out", "{tmp}/x.png"),
        bad("generate", "video-to-audio", "{clip}", "--out", "{tmp}/x.gif"),
        bad("generate", "video-to-audio", "{clip}", "--out", "{clip}"),
        bad("extend", "{clip}", "--seconds", "1", "--out", "{clip}"),
        bad("reconstruct", "{clip}", "--out", "{clip}"),
        bad("reconstruct", "{nothing}", "--out", "{tmp}/x.wav"),
        bad("extend", "{clip}", "--out", "{tmp}/x.mp4"),
        bad("extend", "{clip}", "--seconds", "0", "--out", "{tmp}/x.mp4"),
        bad("extend", "{tone}", "--seconds", "1", "--out", "{tmp}/x.mp4"),
        bad("extend", "{clip}", "--seconds", "1", "--prompt", "", "--out", "{tmp}/x.mp4"),
        bad("extend", "{clip}", "--seconds", "1", "--prompt", "a", "--prompt", "b", "--out", "{tmp}/x.mp4"),
        bad("extend", "{clip}", "--seconds", "4", "--prompt", "1: a", "--out", "{tmp}/x.mp4"),
        bad("extend", "{clip}", "--seconds", "4", "--prompt", "0: a", "--prompt", "5: b", "--out", "{tmp}/x.mp4"),
        bad("extend", "{clip}", "--seconds", "4", "--prompt", "0: a", "--prompt", "b", "--out", "{tmp}/x.mp4"),
        bad("generate", "inpainting", "{clip}", "--out", "{tmp}/x.mp4"),
        bad("generate", "inpainting", "{clip}", "--mask", "0,0,90,12", "--out", "{tmp}/x.mp4"),
        bad("generate", "inpainting", "{clip}", "--mask", "{tmp}/none.png", "--out", "{tmp}/x.mp4"),
        bad("generate", "inpainting", "{clip}", "--mask", "0,0,32,24", "--out", "{tmp}/x.mp4"),
        bad("generate", "inpainting", "{clip}", "--mask", "0,0,9,9", "--out", "{tmp}/x.wav"),
        bad("generate", "outpainting", "{clip}", "--out", "{tmp}/x.mp4"),
        bad("generate", "outpainting", "{clip}", "--left", "-8", "--out", "{tmp}/x.mp4"),
        bad("generate", "outpainting", "{clip}", "--left", "1.5", "--out", "{tmp}/x.mp4"),
        bad("generate", "outpainting", "{clip}", "--left", "9999", "--out", "{tmp}/x.mp4"),
        bad("generate", "outpainting", "{clip}", "--left", "8", "--mask", "1,1,2,2", "--out", "{tmp}/x.mp4"),
        bad("generate", "stylization", RED, "{clip}", "--depth", "{tmp}", "--out", "{tmp}/x.mp4"),
        bad("generate", "stylization", RED, "{clip}", "--keep-known", "--out", "{tmp}/x.mp4"),
        bad("generate", "frame-interpolation", "{photo}", "--out", "{tmp}/x.mp4"),
        bad("generate", "frame-interpolation", "{photo}", "--last", "{tone}", "--out", "{tmp}/x.mp4"),
        bad("generate", "frame-interpolation", "{photo}", "--last", "{clip}", "--out", "{clip}"),
        bad("generate", "frame-interpolation", "{clip}", "--last", "{clip}", "--seconds", "4", "--out", "{tmp}/x.mp4"),
        bad("generate", "audio-to-video", "{silent}", "--out", "{tmp}/x.mp4"),
        bad("generate", "audio-video-continuation", "{silent}", "--out", "{tmp}/x.mp4"),
        bad("generate", "audio-video-continuation", "{clip}", "--no-sound", "--out", "{tmp}/x.mp4"),
        bad("generate", "text-to-audio", RED, "--out", "{tmp}/x.png"),
        bad("generate", "text-to-audio", RED, "--out", "{tmp}/x.gif"),
        bad("reconstruct", "{tmp}/none.mp4", "--out", "{tmp}/x.mp4"),
        bad("reconstruct", "{tone}", "--out", "{tmp}/x.png"),
        bad("reconstruct", "{tone}", "--out", "{tmp}/x.wav", "--side-by-side"),
        bad("reconstruct", "{photo}", "--out", "{tmp}/x.wav"),
        bad("reconstruct", "{tone}", "--out", "{tmp}/x.wav", "--size", "64"),
        bad("reconstruct", "{clip}", "--out", "{tmp}/x.mp4", "--video-tokenizer", "{tmp}"),
        bad("reconstruct", "{tone}", "--out", "{tmp}/x.wav", "--video-tokenizer", "{tmp}"),
        bad("reconstruct", "{tone}", "--out", "{tmp}/x.wav", "--audio-tokenizer", "{tmp}"),
        bad("reconstruct", "{photo}", "--out", "{tmp}/x.png", "--audio-tokenizer", "{tmp}"),
        *(bad("reconstruct", "{tone}", "--out", "{tmp}/x.wav", "--levels", k) for k in ("0", "-1", "3", "1.5", "all")),
        bad("reconstruct", "{photo}", "--out", "{tmp}/x.png", "--levels", "1"),
        bad("reconstruct", "{silent}", "--out", "{tmp}/x.mp4", "--spectrogram", "{tmp}/y.png"),
        *(
            bad("reconstruct", "{tone}", "--out", "{tmp}/x.wav", "--spectrogram", name)
            for name in ("{tmp}/y.jpg", "{tmp}/y", "{tmp}/y/", "{tmp}/y%03d.png", "{tmp}/none/y.png", "{tmp}", "")
        ),
        bad("reconstruct", "{clip}", "--out", "{tmp}/%03d.png", "--spectrogram", "{tmp}/%03d.png"),
        bad("reconstruct", "{dot}", "--out", "{tmp}/x.png", "--size", "source"),
        *(
            bad("reconstruct", "{clip}", "--out", "{tmp}/x.mp4", "--size", size)
            for size in ("", "big", "0", "-64", "8x64", "64x", "64X64", "64x64x3", "1.5", "1920x1920", "16x99999", "٣٢")
        ),
        bad("info", "nosuch"),
        bad("generate", "audio-to-video", "{tone}", "--out", "{tmp}/x.wav"),
        bad("generate", "frame-prediction", "{clip}", "--seconds", "0.5", "--out", "{tmp}/x.mp4"),
        bad("generate", "image-to-video", "{photo}", "--negative-prompt", "dull", "--out", "{tmp}/x.mp4"),
        bad("generate", "image-to-video", "{photo}", "--guidance-scale", "2", "--out", "{tmp}/x.mp4"),
        bad("extend", "{clip}", "--seconds", "1", "--negative-prompt", "dull", "--out", "{tmp}/x.mp4"),
        bad("extend", "{clip}", "--seconds", "1", "--no-sound", "--out", "{tmp}/x.wav"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words, tmp_path, debug_model, clip_file, silent_file, tone, photo, capsys, monkeypatch
):
    monkeypatch.setattr("tasks.pipeline.AVPoet.from_pretrained", lambda *a, **k: pytest.fail("loaded a model first"))
    text, torn, nothing, dot = (tmp_path / n for n in ("notes.txt", "torn.png", "nothing.wav", "dot.png"))
    text.write_text("no video at all")
    torn.write_bytes(photo.read_bytes()[:60])
    nothing.write_bytes(tone.read_bytes()[:44])
    Clip(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), 8.0).save(dot)
    there = sorted(tmp_path.iterdir())
    places = {"tmp": tmp_path, "model": debug_model, "clip": clip_file, "tone": tone, "photo": photo, "text": text,
              "torn": torn, "nothing": nothing, "dot": dot, "silent": silent_file}  # fmt: skip
    if "--model" not in words and words[:1] != ("info",):
        words = (*words, *(("--model", "{model}") if "--out" in words else ()))
    before = clip_file.read_bytes()
    assert main([w.format(**places) for w in words]) == 2
    assert clip_file.read_bytes() == before
    shown = capsys.readouterr()
    assert shown.out == ""
    line = shown.err
    assert line.startswith("avpoet: error: ") and line.count("\n") == 1 and len(line) < 600, line
    assert sorted(tmp_path.iterdir()) == there


def test_wrong_choices_are_answered_with_the_right_ones(capsys):
    main(["generate", "text-to-smell"])
    assert "video-to-audio" in capsys.readouterr().err
    main(["info", "nosuch"])
    assert "'tiny'" in capsys.readouterr().err


GOOD = {
    "unconditional": ([], "x.mp4"),
    "text-to-image": ([RED], "x.png"),
    "text-to-video": ([RED, "--seconds", "1.5", "--guidance-scale", "2"], "x.webm"),
    "image-to-video": (["{photo}", "--prompt", RED], "x.mp4"),
    "frame-prediction": (["{clip}", "--no-sound"], "x.gif"),
    "video-to-audio": (["{clip}"], "x.wav"),
    "text-to-audio": ([RED, "--seconds", "2.5"], "x.wav"),
    "audio-to-video": (["{tone}", "--seconds", "1.5"], "x.mp4"),
    "audio-video-continuation": (["{clip}"], "x.mp4"),
    "frame-interpolation": (["{photo}", "--last", "{clip}"], "x.mp4"),
    "inpainting": (["{clip}", "--mask", "4,4,16,12", "--keep-known"], "x.mp4"),
    "outpainting": (["{clip}", "--left", "8", "--bottom", "6", "--prompt", RED], "x.mp4"),
    "stylization": ([RED, "{clip}", "--seconds", "1"], "x.mp4"),
}


@pytest.mark.parametrize("task", [t.command for t in TASKS.values()])
def test_generate_writes_what_was_asked_for(task, debug_model, clip_file, photo, tone, tmp_path, capsys):
    words, name = GOOD[task]
    out = tmp_path / name
    words = [w.format(clip=clip_file, photo=photo, tone=tone) for w in words]
    assert main(["generate", task, *words, "--out", str(out), "--model", str(debug_model), "--seed", "2"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{out}\n"
    assert "seed = 2" in shown.err and "device = 'cpu'" in shown.err
    made = read_clip(out)
    seconds = {
        "text-to-image": 1 / 8, "text-to-video": 1.5, "video-to-audio": 2.2, "text-to-audio": 2.5,
        "audio-to-video": 1.5, "inpainting": 2.2, "outpainting": 2.2, "stylization": 1,
    }.get(task, 9 / 8)  # fmt: skip
    assert abs(made.seconds - seconds) < 0.07
    row = TASKS[task.replace("-", "_")]
    heard = row.output("audio") or row.argument_of_length  # a new sound, or that of the input
    silent = "--no-sound" in words or out.suffix == ".gif" or not heard
    assert (made.samples is None) == silent
    assert list(tmp_path.iterdir()) == [out]


def test_sound_that_a_file_cannot_hold_is_not_made(debug_model, photo, tmp_path, capsys):
    model = ["--model", str(debug_model), "--seconds", "0.5"]
    assert main(["generate", "text-to-video", RED, "--out", str(tmp_path / "x.gif"), *model]) == 0
    assert "sound = False" in capsys.readouterr().err
    assert main(["extend", str(photo), "--out", str(tmp_path / "y.gif"), *model]) == 0
    assert "sound = False" in capsys.readouterr().err


def test_a_video_without_sound_is_painted_without_a_sound_track(debug_model, silent_file, clip_file, tmp_path):
    words = ["generate", "inpainting", "--mask", "4,4,16,12", "--seconds", "0.5", "--model", str(debug_model)]
    for media, name, sound in ((silent_file, "x.mp4", False), (clip_file, "y.mp4", True), (clip_file, "z.gif", False)):
        assert main([*words, str(media), "--out", str(tmp_path / name)]) == 0
        assert read_clip(tmp_path / name).n_frames == 4
        assert (read_clip(tmp_path / name).samples is not None) == sound


SOUND = ["sound seconds", "sound kbit/s", "sound mel distance", "sound SI-SDR", "sound SNR",
         "sound codes used, level by level"]  # fmt: skip


def test_extend_and_reconstruct_write_their_files(debug_model, clip_file, tone, photo, tmp_path, capsys):
    model = ["--model", str(debug_model)]
    long, pair, sound, image = (tmp_path / n for n in ("long.mp4", "pair.mp4", "tone.wav", "photo.png"))
    words = ["extend", str(clip_file), "--seconds", "1", "--prompt", "0: a", "--prompt", "0:0.5: b", "--out", str(long)]
    assert main([*words, *model]) == 0
    assert read_clip(long).n_frames == 18 + 8
    assert main(["reconstruct", str(clip_file), "--out", str(pair), "--side-by-side", *model]) == 0
    _, path, *lines = capsys.readouterr().out.splitlines()
    assert path == str(pair)
    figures = dict(line.split(": ") for line in lines)
    assert list(figures) == ["frames", "picture PSNR, mean over frames", "codes used", "bits per pixel", *SOUND]
    assert figures["frames"] == "18"
    assert read_clip(pair).frames.shape == (18, 16, 32, 3)
    assert main(["reconstruct", str(tone), "--out", str(sound), *model]) == 0
    assert abs(read_clip(sound).seconds - 2.2) < 0.01
    assert main(["reconstruct", str(photo), "--out", str(image), *model]) == 0
    assert read_clip(image).frames.shape == (1, 16, 16, 3)


def test_reconstruct_takes_a_video_tokenizer_by_itself(debug_model, clip_file, tmp_path, capsys):
    torch.manual_seed(1)
    VideoTokenizer(video_tokenizer_config("debug", bits=6)).save_pretrained(tmp_path / "v")
    words = ["reconstruct", str(clip_file), "--model", str(debug_model), "--out", str(tmp_path / "x.mp4")]
    assert main([*words, "--video-tokenizer", str(tmp_path / "v")]) == 0
    assert "of 64" in capsys.readouterr().out


def reconstruct(capsys: pytest.CaptureFixture[str], model: Path, *words: object) -> dict[str, str]:
    """The figures that are printed."""
    assert main(["reconstruct", *map(str, words), "--model", str(model)]) == 0
    return dict(line.split(": ") for line in capsys.readouterr().out.splitlines() if ": " in line)


def test_sound_is_measured_with_every_number_of_levels(debug_model, tone, tmp_path, capsys):
    every = reconstruct(capsys, debug_model, tone, "--out", tmp_path / "a.wav")
    assert list(every) == [*SOUND, "sound with 1 level", "sound with 2 levels"]
    assert every["sound seconds"] == "2.200" and every["sound kbit/s"] == "0.4"  # 50 columns of 2 x 4 bits
    assert re.fullmatch(r"\d+, \d+ of 16", every["sound codes used, level by level"])
    one = reconstruct(capsys, debug_model, tone, "--out", tmp_path / "b.wav", "--levels", 1)
    assert list(one) == SOUND and one["sound kbit/s"] == "0.2"
    all_in_one = ", ".join(f"{name} {one[f'sound {name}']}" for name in ("kbit/s", "mel distance", "SI-SDR", "SNR"))
    assert every["sound with 1 level"] == all_in_one != every["sound with 2 levels"]
    a, b = (read_clip(tmp_path / name).samples for name in ("a.wav", "b.wav"))
    assert len(a) == len(b) == 35200 and (a - b).abs().max() > 1e-3


def test_figures_of_sound_are_those_of_the_files(debug_model, tone, tmp_path, capsys):
    figures = reconstruct(capsys, debug_model, tone, "--out", tmp_path / "a.wav")
    before, after = (read_clip(path).samples[None] for path in (tone, tmp_path / "a.wav"))
    assert float(figures["sound SI-SDR"].split()[0]) == pytest.approx(float(si_sdr(after, before)), abs=0.02)
    assert float(figures["sound mel distance"].split()[0]) == pytest.approx(
        float(mel_distance(after, before, 16000)), abs=0.01
    )


@pytest.mark.parametrize("rate", [8000, 24000])
def test_reconstruct_takes_an_audio_tokenizer_of_another_rate(rate, debug_model, clip_file, tone, tmp_path, capsys):
    torch.manual_seed(1)
    AudioTokenizer(audio_tokenizer_config("debug", sample_rate=rate, n_codebooks=3)).save_pretrained(tmp_path / "a")
    words = ["--audio-tokenizer", tmp_path / "a", "--levels", 3]
    of_tone = reconstruct(capsys, debug_model, tone, "--out", tmp_path / "x.wav", *words)
    assert of_tone["sound seconds"] == "2.200" and of_tone["sound kbit/s"] == f"{rate / 320 * 12 / 1000:.3g}"
    assert read_clip(tmp_path / "x.wav", sample_rate=None).sample_rate == rate
    of_clip = reconstruct(capsys, debug_model, clip_file, "--out", tmp_path / "x.mp4", *words)
    assert of_clip["sound seconds"] == "2.250" and of_clip["frames"] == "18"
    assert abs(read_clip(tmp_path / "x.mp4").seconds - 2.25) < 0.07


def encoded(path: Path, codec: str, rate: int, layout: str, level: float) -> Path:
    """1.3 s of a tone at `rate`, through a codec into a file."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        channels = len(stream.layout.channels)
        wave = level * np.sin(np.arange(round(1.3 * rate)) * 2 * np.pi * 440 / rate)
        samples = np.tile(wave.astype(np.float32)[None], (channels, 1))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, stream.layout, rate, frame_size=stream.frame_size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate", "layout", "level"),
    [
        ("x.wav", "pcm_s16le", 44100, "stereo", 0.5),
        ("x.wav", "pcm_s16le", 8000, "mono", 0.5),
        ("x.wav", "pcm_s16le", 16000, "mono", 0.0),
        ("x.mp3", "libmp3lame", 44100, "stereo", 0.5),
        ("x.ogg", "libopus", 48000, "mono", 0.5),
        ("x.flac", "flac", 44100, "stereo", 0.5),
    ],
)
def test_every_sound_can_be_reconstructed_and_drawn(name, codec, rate, layout, level, debug_model, tmp_path, capsys):
    sound, picture = encoded(tmp_path / name, codec, rate, layout, level), tmp_path / "s.png"
    figures = reconstruct(capsys, debug_model, sound, "--out", tmp_path / "y.wav", "--spectrogram", picture)
    assert float(figures["sound seconds"]) == pytest.approx(1.3, abs=0.03)
    assert ("sound SI-SDR" in figures) == (level > 0) and "sound mel distance" in figures
    with Image.open(picture) as image:
        assert 600 < image.width < 2000
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "y.wav", "s.png"])


def test_the_sound_of_a_video_is_drawn(debug_model, clip_file, tmp_path, capsys):
    reconstruct(capsys, debug_model, clip_file, "--out", tmp_path / "x.gif", "--spectrogram", tmp_path / "s.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.png", "x.gif"]


@pytest.mark.parametrize(("size", "shape"), [("source", (24, 32)), ("20", (20, 20)), ("33x26", (33, 26))])
def test_reconstruct_works_at_any_size(size, shape, debug_model, clip_file, tmp_path, capsys):
    out = f"{tmp_path}/frames/"
    assert main(["reconstruct", str(clip_file), "--out", out, "--size", size, "--model", str(debug_model)]) == 0
    assert f"size = {shape}" in capsys.readouterr().err
    assert read_clip(f"{out}00017.png").frames.shape == (1, *shape, 3)


def test_tasks_and_info_print_tables(debug_model, capsys):
    assert main(["tasks"]) == 0
    shown = capsys.readouterr().out
    assert all(t.command in shown for t in TASKS.values())
    assert main(["info", str(debug_model)]) == 0
    shown = capsys.readouterr().out
    assert "audio_1" in shown and "<task_video>" in shown and "9 frames" in shown


@pytest.mark.parametrize(
    ("file", "text"),
    [("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), ("config.json", "{}"), ("config.json", "")],
)
def test_a_damaged_model_is_told_in_a_line(file, text, debug_model, tmp_path, capsys):
    shutil.copytree(debug_model, tmp_path / "m")
    (tmp_path / "m/lm" / file).write_text(text)
    assert main(["info", str(tmp_path / "m")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("avpoet: error: model folder") and shown.err.count("\n") == 1


def test_the_command_starts_without_torch():
    code = "import sys; from tasks.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


def test_ctrl_c_leaves_no_file_and_no_traceback(debug_model, tmp_path):
    words = ["generate", "unconditional", "--seconds", "80000", "--out", str(tmp_path / "x.mp4")]
    words += ["--model", str(debug_model)]
    # what a script starts with & ignores Ctrl-C, and so would this
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = heard + "from tasks.cli import main; sys.exit(main(sys.argv[1:]))"
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True, cwd=root)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        assert list(tmp_path.iterdir()), "the command never began to write"
        os.kill(process.pid, signal.SIGINT)
        _, shown = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in shown and shown.endswith("avpoet: interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("a\nb"), 2), (OSError("disk full"), 1), (KeyboardInterrupt(), 130), (SystemExit(0), 0)],
)
def test_run_turns_errors_into_exit_codes(error, code, capsys):
    def fail(argv):
        raise error

    assert run(fail, [], "avpoet-x") == code
    assert capsys.readouterr().err.count("\n") == (0 if code == 0 else 1)


@pytest.mark.parametrize(("target", "said"), [("pipe", ""), ("/dev/full", "avpoet: error: [Errno 28] No space left")])
def test_output_that_cannot_be_written_is_told_in_a_line(target, said):
    if target == "pipe":
        reader, out = os.pipe()
        os.close(reader)
    else:
        out = os.open(target, os.O_WRONLY)
    env = os.environ | {"PYTHONUNBUFFERED": ""}  # with its buffer standard output is harder to leave
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "tasks"], stdout=out, stderr=subprocess.PIPE, text=True, env=env,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    os.close(out)
    assert done.returncode == 1 and done.stderr.startswith(said) and done.stderr.count("\n") == (said != "")


def test_names_that_are_no_text_are_printed_as_they_are():
    code = "from tasks.command import run; run(lambda argv: print(argv[0]), None, 'avpoet')"
    words = [os.fsencode(sys.executable), b"-X", b"utf8=0", b"-c", code.encode(), b"\xff.mp4"]
    env = os.environ | {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": ""}
    done = subprocess.run(words, capture_output=True, cwd=Path(__file__).parents[2], env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\xff.mp4\n", b"")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_unwinds_the_stack_unless_it_is_ignored(name):
    number = getattr(signal, name)
    before = [(n, signal.signal(n, signal.SIG_DFL)) for n in (signal.SIGTERM, signal.SIGHUP)]
    try:
        with pytest.raises(SystemExit) as stopped, terminate_cleanly():
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert stopped.value.code == 128 + number and signal.getsignal(number) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with terminate_cleanly():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        for n, handler in before:
            signal.signal(n, handler)


def test_bugs_keep_their_traceback():
    def fail(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(fail, [], "avpoet")
