"""Every task on files as people have them: real ones, upright, of odd sizes, silent, of one frame and of thousands.

    python tests/benchmarks/every_task.py clip.mp4 film.mp4 photo.png other.jpg [--frames 3000] [--only inpainting ...]

The given videos, one with sound, and two pictures go through `avpoet`, each command in a process of its own; so do
files made of them: an upright part of odd height and width; its first frame; the first video small and repeated to so
many frames, with the sound of the one that has it; that sound, once and as long. A line for each run: what went in,
what was made, seconds and peak memory. Where it failed, or size, proportions, length, or the length of the sound are
not as they should be, the line ends with why, and then the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tasks.table import TASKS
from tokenizers_av.clip import Clip, read_clip
from tokenizers_av.media_formats import IMAGE_SUFFIXES

FPS = 8.0  # of the shipped model
PROMPT = "a red ball bounces, in neon style"
PROMPTED = {"text_to_audio": "wav", "text_to_image": "png", "text_to_video": "mp4", "unconditional": "mp4"}  # no file


@dataclass
class Source:
    """A file and what is in it."""

    path: Path
    clip: Clip
    name: str

    @classmethod
    def of(cls, path: Path, name: str = "") -> Source:
        return cls(path, read_clip(str(path), sample_rate=None), name or path.name)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width; (0, 0) without a picture."""
        return (0, 0) if self.clip.frames is None else (self.clip.frames.shape[1], self.clip.frames.shape[2])

    @property
    def seconds(self) -> float:
        return self.clip.n_frames / self.clip.fps if self.clip.frames is not None else self.sound_seconds

    @property
    def sound_seconds(self) -> float:
        return 0.0 if self.clip.samples is None else len(self.clip.samples) / self.clip.sample_rate

    def __str__(self) -> str:
        said = [] if self.clip.frames is None else [f"{self.size[1]}x{self.size[0]}, {self.clip.n_frames} frames"]
        return ", ".join(said + ([f"{self.sound_seconds:.3f} s of sound"] if self.sound_seconds else []))


@dataclass
class Run:
    """A command and what should come of it; None is whatever the model makes."""

    task: str
    source: Source | None
    words: list[str]
    suffix: str = "mp4"
    canvas: tuple[int, int] | None = None  # height and width whose proportions are to be kept
    exactly: bool = False  # that very size
    seconds: float | None = None
    sound: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=3000, help="of the long video; 0: no such")
    parser.add_argument("--speculative", type=int, default=16)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--only", nargs="+", metavar="TASK")
    args = parser.parse_args()
    wrong, n = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        print("| task | from | made | seconds | peak MiB | |\n| --- | --- | --- | ---: | ---: | --- |", flush=True)
        for run in runs(*sources(args.media, args.frames, Path(folder))):
            if args.only and run.task not in [name.replace("-", "_") for name in args.only]:
                continue
            line, why = carried_out(run, args.model, args.speculative, Path(folder))
            print(f"{line} {why} |", flush=True)
            wrong, n = wrong + bool(why), n + 1
    print(f"{n} runs, {wrong} not as they should be")
    return 1 if wrong or not n else 0


def sources(media: list[Path], n_frames: int, folder: Path) -> tuple[list[Source], list[Source], list[Source]]:
    """Videos, pictures and sounds: those given and those made of them."""
    given = [Source.of(path) for path in media]
    pictures = [one for one in given if one.path.suffix.lower() in IMAGE_SUFFIXES]
    videos = [one for one in given if one not in pictures]
    sounding = next((one for one in videos if one.sound_seconds), None)
    if sounding is None or len(pictures) < 2:
        raise SystemExit("expected at least one video with sound and two pictures")
    frames, fps = videos[0].clip.frames, videos[0].clip.fps
    samples, rate = sounding.clip.samples, sounding.clip.sample_rate
    assert frames is not None and samples is not None
    H, W = frames.shape[1:3]
    odd = frames[:, : H - (H + 1) % 2, W // 3 : W // 3 + (H // 2 | 1)].contiguous()

    def saved(name: str, clip: Clip) -> Source:
        clip.save(folder / name)
        return Source.of(folder / name, name)

    videos += [saved("upright.gif", Clip(odd, fps)), saved("one.mp4", Clip(odd[:1], fps))]
    sounds = [saved("sound.wav", Clip(None, FPS, samples, rate)), sounding]
    if n_frames:
        small = frames[:, ::4, ::4]
        small = small.repeat(-(-n_frames // len(small)), 1, 1, 1)[:n_frames].contiguous()
        n = round(n_frames / fps * rate)
        said = samples.repeat(-(-n // len(samples)))[:n].contiguous()
        videos.append(saved("long.mp4", Clip(small, fps, said, rate)))
        sounds.append(saved("long.wav", Clip(None, FPS, said, rate)))
    return videos, pictures, sounds


def runs(videos: list[Source], pictures: list[Source], sounds: list[Source]) -> Iterator[Run]:
    """Every task on every file that it takes."""
    for task, suffix in PROMPTED.items():
        words = [] if task == "unconditional" else [PROMPT]
        yield Run(task, None, words, suffix, sound=suffix != "png")
    for one in pictures + videos:
        yield Run("image_to_video", one, [str(one.path)], canvas=one.size, sound=True)
    for one, last in zip(pictures + videos, pictures[1:] + videos + pictures[:1], strict=True):
        yield Run("frame_interpolation", one, [str(one.path), "--last", str(last.path)], canvas=one.size)
    for one in videos:
        path, (H, W), long = str(one.path), one.size, one.seconds
        box = ",".join(map(str, (W // 4, H // 4, max(1, W // 2), max(1, H // 2))))
        wide = (H, W + 2 * (W // 4))
        sides = ["--left", str(W // 4), "--right", str(W // 4)]
        had = bool(one.sound_seconds)
        yield Run("frame_prediction", one, [path], canvas=one.size, sound=True)
        yield Run("inpainting", one, [path, "--mask", box], canvas=one.size, seconds=long, sound=had)
        yield Run("inpainting", one, [path, "--mask", box, "--keep-known"], "webm", one.size, True, long, had)
        yield Run("outpainting", one, [path, *sides], canvas=wide, seconds=long, sound=had)
        yield Run("stylization", one, [PROMPT, path], canvas=one.size, seconds=long)
        yield Run("video_to_audio", one, [path], canvas=one.size, exactly=True, seconds=long, sound=True)
        if had:
            yield Run("audio_video_continuation", one, [path], canvas=one.size, sound=True)
        yield Run("extend", one, [path, "--seconds", "2", "--prompt", PROMPT], canvas=one.size, seconds=long + 2)
    for one in sounds:
        yield Run("audio_to_video", one, [str(one.path)], seconds=one.sound_seconds, sound=True)
    assert {row.replace("-", "_") for row in TASKS} <= {*PROMPTED, "image_to_video", "frame_interpolation",
        "frame_prediction", "inpainting", "outpainting", "stylization", "video_to_audio", "audio_video_continuation",
        "audio_to_video"}  # fmt: skip


def carried_out(run: Run, model: str, speculative: int, folder: Path) -> tuple[str, str]:
    """A line of the table, and what is wrong."""
    out = folder / f"made.{run.suffix}"
    out.unlink(missing_ok=True)
    command = ["extend"] if run.task == "extend" else ["generate", run.task.replace("_", "-")]
    words = [*command, *run.words, "--model", model, "--speculative", str(speculative), "--out", str(out)]
    with (folder / "said").open("w+") as said:
        begun, peak = time.perf_counter(), 0.0
        process = subprocess.Popen([sys.executable, "-m", "tasks", *words], stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.1)
        took = time.perf_counter() - begun
        said.seek(0)
        last = (said.read().strip().splitlines() or ["?"])[-1]
    task = " ".join([run.task, *[word for word in run.words if word.startswith("--")]])
    came = "" if run.source is None else f"{run.source.name} ({run.source})"
    if process.returncode:
        return f"| {task} | {came} | | {took:.0f} | {peak:.0f} |", f"exit code {process.returncode}: {last}"
    made = Source.of(out)
    line = f"| {task} | {came} | {made} | {took:.0f} | {peak:.0f} |"
    return line, "; ".join(complaints(run, made))


def resident(process: int) -> float:
    """MiB, by Linux; 0 where that is not known. (What `wait4` says counts this process's own memory.)"""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def complaints(run: Run, made: Source) -> Iterator[str]:
    """What is not as it should be."""
    (h, w), frame = made.size, 1 / FPS
    if run.suffix != "wav" and made.clip.frames is None:
        yield "no picture"
        return
    if run.canvas is not None:
        H, W = run.canvas
        if run.exactly and (h, w) != run.canvas:
            yield f"expected {W}x{H}"
        elif abs(w - h * W / H) > 1 + W / H:  # both sides are even
            yield f"the proportions of {W}x{H} are lost"
    if run.seconds is not None and abs(made.seconds - run.seconds) > frame:
        yield f"expected {run.seconds:.3f} s, {made.seconds:.3f} were made"
    if run.sound and abs(made.sound_seconds - made.seconds) > frame:
        yield f"{made.sound_seconds:.3f} s of sound in {made.seconds:.3f} s"
    if made.clip.frames is not None and made.clip.frames.float().std() < 1:
        yield "the picture is empty"
    if made.clip.samples is not None and not torch.isfinite(made.clip.samples).all():
        yield "the sound is not finite"


if __name__ == "__main__":
    sys.exit(main())
