"""Every task on files as people have them: real ones, upright, of odd sizes, silent, of one frame and of thousands.

    python tests/benchmarks/every_task.py clip.mp4 film.mp4 photo.png other.jpg [--frames 3000] [--only inpainting ...]

The given videos, one with sound, and two pictures go through `avpoet`, each command in a process of its own; so do
files made of them: an upright part of odd height and width; its first frame; the first video small and repeated to so
many frames, with the sound of the one that has it; that sound, once and as long. A line for each run: what went in,
what was made, seconds and peak memory. Where it failed, or size, proportions, length or sound are not as they should
be, or a frame is empty, the line ends with why, and then the exit code is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks import AVPoet
from tasks.table import TASKS
from tokenizers_av.clip import Clip, MediaError, read_clip
from tokenizers_av.media_formats import IMAGE_SUFFIXES

PROMPT = "a red ball bounces, in neon style"
AUDIBLE = 1e-3  # of full scale


@dataclass
class Media:
    """What is in a file."""

    path: Path
    size: tuple[int, int] | None = None  # height and width
    n_frames: int = 0
    fps: float = 0.0
    sound: float = 0.0  # seconds
    peak: float = 0.0  # of the sound
    spread: float = 0.0  # grey levels, standard deviation of the emptiest of three frames

    @classmethod
    def of(cls, path: Path) -> Media:
        clip, media = read_clip(str(path), sample_rate=None), cls(path)
        if clip.frames is not None:
            media.n_frames, H, W = clip.frames.shape[:3]
            media.size, media.fps = (H, W), clip.fps
            media.spread = min(float(clip.frames[t].float().std()) for t in {0, media.n_frames // 2, -1})
        if clip.samples is not None:
            media.sound, media.peak = len(clip.samples) / clip.sample_rate, float(clip.samples.abs().max())
        return media

    @property
    def seconds(self) -> float:
        return self.n_frames / self.fps if self.size else self.sound

    def __str__(self) -> str:
        seen = [f"{self.size[1]}x{self.size[0]}, {self.n_frames} frames"] if self.size else []
        return ", ".join(seen + ([f"{self.sound:.3f} s of sound"] if self.sound else []))


@dataclass
class Run:
    """A command and what should come of it."""

    task: str
    source: Media | None
    words: list[str]
    seconds: float
    sound: bool
    suffix: str = "mp4"
    canvas: tuple[int, int] | None = None  # height and width whose proportions are to be kept; None: there is no such
    exactly: bool = False  # that very size, filled up to even ones, as movies are
    n_frames: int | None = None  # exactly; else as many as the seconds say
    heard: bool = False  # whether the sound is that of the source


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=3000, help="of the long video; 0: no such")
    parser.add_argument("--speculative", type=int, default=16)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--only", nargs="+", metavar="TASK")
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        runs = list(all_runs(*sources(args.media, args.frames, Path(folder)), args.model))
        assert {run.task for run in runs} == {*TASKS, "extend"}
        if args.only:
            runs = [run for run in runs if run.task.replace("_", "-") in [name.replace("_", "-") for name in args.only]]
        print("| task | from | made | seconds | peak MiB | |\n| --- | --- | --- | ---: | ---: | --- |", flush=True)
        for run in runs:
            line, why = carried_out(run, args.model, args.speculative, Path(folder))
            print(f"{line} {why} |", flush=True)
            wrong += bool(why)
    print(f"{len(runs)} runs, {wrong} not as they should be")
    return 1 if wrong or not runs else 0


def sources(media: list[Path], n_frames: int, folder: Path) -> tuple[list[Media], list[Media], list[Media]]:
    """Videos, pictures and sounds: those given and those made of them."""
    given = [Media.of(path) for path in media]
    pictures = [one for one in given if one.path.suffix.lower() in IMAGE_SUFFIXES]
    videos = [one for one in given if one.size and one not in pictures]
    sounding = next((one for one in videos if one.sound), None)
    if sounding is None or len(pictures) < 2:
        raise SystemExit("expected at least one video with sound and two pictures")
    first = read_clip(str(videos[0].path), audio=False)
    heard = read_clip(str(sounding.path), sample_rate=None, video=False)
    frames, fps, samples, rate = first.frames, first.fps, heard.samples, heard.sample_rate
    assert frames is not None and samples is not None
    H, W = frames.shape[1:3]
    width = min(H, W) // 2 - 1 | 1
    upright = frames[:, : H - 1 | 1, (W - width) // 2 :][:, :, :width].contiguous()

    def saved(name: str, clip: Clip) -> Media:
        clip.save(folder / name)
        return Media.of(folder / name)

    videos += [saved("upright.gif", Clip(upright, fps)), saved("one.mp4", Clip(upright[:1], fps))]
    sounds = [saved("sound.wav", Clip(None, fps, samples, rate)), sounding]
    if n_frames:
        small = frames[:, ::4, ::4]
        small = small.repeat(-(-n_frames // len(small)), 1, 1, 1)[:n_frames].contiguous()
        n = round(n_frames / fps * rate)
        samples = samples.repeat(-(-n // len(samples)))[:n].contiguous()
        videos.append(saved("long.mp4", Clip(small, fps, samples, rate)))
        sounds.append(saved("long.wav", Clip(None, fps, samples, rate)))
    return videos, pictures, sounds


def all_runs(videos: list[Media], pictures: list[Media], sounds: list[Media], model: str) -> Iterator[Run]:
    """Every task on every file that it takes."""
    layout = AVPoet.from_pretrained(model).config.layout
    usual = layout.n_frames / layout.fps
    yield Run("text_to_image", None, [PROMPT], 1 / layout.fps, False, "png", n_frames=1)
    yield Run("text_to_audio", None, [PROMPT], usual, True, "wav")
    yield Run("text_to_video", None, [PROMPT], usual, True)
    yield Run("unconditional", None, [], usual, True)
    for one in pictures + videos:
        yield Run("image_to_video", one, [str(one.path)], usual, True, canvas=one.size)
    for one, last in zip(pictures + videos, pictures[1:] + videos + pictures[:1], strict=True):
        yield Run("frame_interpolation", one, [str(one.path), "--last", str(last.path)], usual, False, canvas=one.size)
    for one in videos:
        assert one.size is not None
        path, (H, W), lasts, had = str(one.path), one.size, one.seconds, one.sound > 0
        mask = ["--mask", f"{W // 4},{H // 4},{W // 2},{H // 2}"]
        wide, sides = (H, W + 2 * (W // 4)), ["--left", str(W // 4), "--right", str(W // 4)]
        yield Run("frame_prediction", one, [path], usual, True, canvas=one.size)
        yield Run("inpainting", one, [path, *mask], lasts, had, canvas=one.size, heard=True)
        yield Run("inpainting", one, [path, *mask, "--keep-known"], lasts, had, "webm", one.size, True, heard=True)
        yield Run("outpainting", one, [path, *sides], lasts, had, canvas=wide, heard=True)
        yield Run("stylization", one, [PROMPT, path], lasts, had, canvas=one.size, heard=True)
        yield Run("video_to_audio", one, [path], lasts, True, "mp4", one.size, True, one.n_frames)
        if had:
            yield Run("audio_video_continuation", one, [path], usual, True, canvas=one.size)
        yield Run("extend", one, [path, "--seconds", "2", "--prompt", PROMPT], lasts + 2, True, canvas=one.size)
    for one in sounds:
        yield Run("audio_to_video", one, [str(one.path)], one.sound, True, heard=True)


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
            peak = max(peak, most_resident(process.pid))
            time.sleep(0.1)
        took = time.perf_counter() - begun
        said.seek(0)
        last = (said.read().strip().splitlines() or ["?"])[-1]
    task = " ".join([run.task, *[word for word in run.words if word.startswith("--")]])
    came = f"{run.source.path.name} ({run.source})" if run.source else ""
    if process.returncode:
        return f"| {task} | {came} | | {took:.0f} | {peak:.0f} |", f"exit code {process.returncode}: {last}"
    try:
        made = Media.of(out)
    except (MediaError, OSError) as error:
        return f"| {task} | {came} | | {took:.0f} | {peak:.0f} |", str(error)
    return f"| {task} | {came} | {made} | {took:.0f} | {peak:.0f} |", "; ".join(complaints(run, made))


def most_resident(process: int) -> float:
    """MiB, by Linux; 0 where that is not known. (What `wait4` says counts this process's own memory.)"""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def complaints(run: Run, made: Media) -> Iterator[str]:
    """What is not as it should be; a frame at the model's rate either way is none."""
    frame = 1 / made.fps if made.size else 1e-3
    if run.suffix != "wav" and made.size is None:
        yield "no picture"
    elif made.size is not None:
        h, w = made.size
        H, W = run.canvas or made.size
        if run.exactly and (h, w) != (H + H % 2, W + W % 2):
            yield f"expected {W}x{H}"
        elif abs(w - h * W / H) > 1 + W / H:  # both sides are even
            yield f"the proportions of {W}x{H} are lost"
        if made.spread < 1:
            yield "an empty frame"
    if run.n_frames is not None and made.n_frames != run.n_frames:
        yield f"expected {run.n_frames} frames"
    elif run.suffix != "png" and abs(made.seconds - run.seconds) > frame:
        yield f"expected {run.seconds:.3f} s, {made.seconds:.3f} were made"
    if run.sound != (made.sound > 0):
        yield "expected sound" if run.sound else "expected no sound"
    elif run.sound and abs(made.sound - made.seconds) > frame:
        yield f"{made.sound:.3f} s of sound in {made.seconds:.3f} s"
    if run.heard and run.source and run.source.peak > AUDIBLE and made.peak < run.source.peak / 10:
        yield "the sound of the source is lost"


if __name__ == "__main__":
    sys.exit(main())
