"""Makes shards of ids from files or from the playground: in this process, or in several that are fed one by one.

A file is coded entirely, as consecutive windows; windows of several files are coded together. Which files share a shard
follows from the list of files alone, so shards can be made in any order, and those that are there need not be again.
"""
# Shapes: B batch, T frames, N samples

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tasks.model_folder import open_audio_tokenizer, open_video_tokenizer
from tokenizers_av.clip import ClipReader, MediaError
from tokenizers_av.media_formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from train.data import MediaBatch, MediaSpec, open_source
from train.data.folder import FolderSource, find_media, to_audio, to_video
from train.tokens import Window, encode, encode_conditions, shard_path, source_windows, write_shard

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from tokenizers_av.audio import AudioTokenizer
    from tokenizers_av.video import VideoTokenizer

MAX_FILES, MAX_BYTES = 512, 1 << 30  # of media per shard
MANY_SHARDS = 64  # smaller folders are cut finer, so that all workers have something to do and little is made again
MIN_FILES, MIN_BYTES = 4, 32 << 20

Tell = Callable[[float, int, "str | None"], None]  # progress in the units of Shard.size, new rows, a message
Waiting = tuple[str, float, Tensor, "Tensor | None"]  # name, start, frames (3, T, H, W), samples (N,) of a window


class WorkerLost(Exception):
    """A worker process ended before its work was done."""


@dataclass(frozen=True)
class Shard:
    kind: str  # "clips" or "images"
    number: int
    files: tuple[tuple[str, int], ...] = ()  # (path inside the folder, bytes)
    clips: range = range(0)  # of the playground instead

    @property
    def size(self) -> int:
        """How much work it is, in bytes of files or in clips."""
        return sum(n for _, n in self.files) + len(self.clips)


@dataclass(frozen=True)
class Plan:
    """What a worker process needs to know."""

    media: Path | None  # a folder of media files, or one of them; None for the playground
    tokenizers: Path
    out: Path
    spec: MediaSpec
    n_window: int  # frames of which the conditioning clips are made
    origin: dict[str, Any]
    batch_size: int
    device: str
    threads: int = 1  # of each of several processes, on a CPU


def open_tokenizers(folder: Path) -> tuple[VideoTokenizer, AudioTokenizer]:
    """The two tokenizers of a folder, ready to encode; raises InputError where they are damaged."""
    video = open_video_tokenizer(folder / "video_tokenizer").eval()
    return video, open_audio_tokenizer(folder / "audio_tokenizer").eval()


def list_files(media: Path) -> list[tuple[str, int]]:
    """The path inside the folder and the bytes of each media file, sorted; raises MediaError where there are none."""
    root, names = find_media(media)
    return [(name, _n_bytes(root / name)) for name in names]


def _n_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nowhere: named when it is read
        return 0


def cut(files: Sequence[tuple[str, int]]) -> list[Shard]:
    """Videos, then images, in shards of consecutive files of limited number and bytes; sound files are left out."""
    shards = []
    for kind, suffixes in (("clips", VIDEO_SUFFIXES), ("images", IMAGE_SUFFIXES)):
        chosen = [(name, n) for name, n in files if Path(name).suffix.lower() in suffixes]
        max_files = min(MAX_FILES, max(MIN_FILES, len(chosen) // MANY_SHARDS))
        max_bytes = min(MAX_BYTES, max(MIN_BYTES, sum(n for _, n in chosen) // MANY_SHARDS))
        groups: list[list[tuple[str, int]]] = []
        room = 0
        for name, n in chosen:
            if not groups or len(groups[-1]) >= max_files or room <= 0:
                groups.append([])
                room = max_bytes
            groups[-1].append((name, n))
            room -= n
        shards += [Shard(kind, number, tuple(group)) for number, group in enumerate(groups)]
    return shards


class Maker:
    """Makes shards; one for each process."""

    def __init__(self, plan: Plan, process: int = 0) -> None:
        self.plan, self.device = plan, torch.device(plan.device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", process % torch.cuda.device_count())
        self.folder = FolderSource(plan.media) if plan.media else None
        self.video, self.audio = open_tokenizers(plan.tokenizers)
        self.video.to(self.device)
        self.audio.to(self.device)

    def make(self, shard: Shard, tell: Tell) -> None:
        """Write one shard. Files that cannot be read are told, noted in the shard and left out."""
        skipped: list[tuple[str, str]] = []
        if self.folder is None:
            windows = self._playground(shard, tell)
        else:
            windows = self._files(shard, self.folder, tell, skipped)
        write_shard(shard_path(self.plan.out, shard.kind, shard.number), windows, self.plan.origin, skipped)

    def _playground(self, shard: Shard, tell: Tell) -> Iterator[Window]:
        source = open_source("playground", device=self.device)
        spec, batch = self.plan.spec, self.plan.batch_size
        for window in source_windows(source, self.video, self.audio, spec, self.plan.n_window, shard.clips, batch):
            yield window
            tell(1, 1, None)

    def _files(
        self, shard: Shard, folder: FolderSource, tell: Tell, skipped: list[tuple[str, str]]
    ) -> Iterator[Window]:
        spec = self.plan.spec if shard.kind == "clips" else replace(self.plan.spec, n_frames=1)
        waiting: list[Waiting] = []
        for name, n_bytes in shard.files:
            path, n_rows, told = folder.root / name, 0, 0.0
            if n_bytes and not path.exists():  # a disk that is gone must not look like damaged files
                raise FileNotFoundError(f"{path}: was there when the files were listed, and is gone")
            try:
                for start, share, frames, samples in file_windows(path, spec):
                    waiting.append((name, start, frames, samples))
                    n_rows += 1
                    tell(share * n_bytes - told, 1, None)
                    told = share * n_bytes
                    if len(waiting) == self.plan.batch_size:
                        yield from self._encode(waiting, folder)
                        waiting.clear()
            except MediaError as error:
                reason = str(error).removeprefix(f"{path}: ")
                if n_rows:
                    reason = f"all but the first {n_rows} windows ({reason})"
                skipped.append((name, reason))
                tell(0, 0, f"skipped: {name}: {reason}")
            tell(n_bytes - told, 0, None)
        if waiting:
            yield from self._encode(waiting, folder)

    def _encode(self, waiting: Sequence[Waiting], folder: FolderSource) -> Iterator[Window]:
        """Windows of files, of which only some may have sound, coded together."""
        loud = [samples for _, _, _, samples in waiting if samples is not None]
        frames = torch.stack([frames for _, _, frames, _ in waiting])
        ids, heard = encode(frames, torch.stack(loud) if loud else None, self.video, self.audio)
        spec = replace(self.plan.spec, n_frames=min(self.plan.n_window, frames.shape[2]))
        seeds = [f"{name!a}/{start}" for name, start, _, _ in waiting]  # names need not be UTF-8
        given = encode_conditions(MediaBatch(frames, None), spec, seeds, self.video, self.audio)
        sounds = iter(heard if heard is not None else ())
        for k, (name, start, _, samples) in enumerate(waiting):
            sound = None if samples is None else next(sounds)
            yield Window(ids[k], sound, folder.caption(name), name, start, {n: c[k] for n, c in given.items()})


def file_windows(path: Path, spec: MediaSpec) -> Iterator[tuple[float, float, Tensor, Tensor | None]]:
    """A file as consecutive windows: start in seconds, share of the file read so far, frames (3, T, size, size), and
    samples (N,) or None where it has no sound.

    What is left at the end is dropped, but a file shorter than one window is held on its last frame to fill it.
    Raises MediaError for anything that cannot be decoded, and at the end of a file that is cut off.
    """
    try:
        with ClipReader(path, fps=spec.fps, size=spec.size, sample_rate=spec.sample_rate) as reader:
            if not reader.has_video:
                raise MediaError(f"{path}: has no picture")
            seconds = reader.seconds or float("inf")
            end = 0.0
            for k, clip in enumerate(reader.windows(n_frames=spec.n_frames)):
                end = k * spec.seconds + clip.n_frames / spec.fps
                if k and clip.n_frames < spec.n_frames:
                    break
                share = min(1.0, (k + 1) * spec.seconds / seconds)
                samples = None if clip.samples is None else to_audio(clip, spec)
                yield k * spec.seconds, share, to_video(clip, spec), samples
            if reader.seconds and end < reader.seconds - max(1.0, spec.seconds):
                raise MediaError(f"{path}: its picture ends after {end:.1f} of {reader.seconds:.1f} s")
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        raise MediaError(f"{path}: cannot be decoded ({type(error).__name__}: {error})") from error


def work_here(plan: Plan, shards: Sequence[Shard], tell: Tell) -> None:
    """Make the shards one after the other in this process."""
    maker = Maker(plan)
    for shard in shards:
        maker.make(shard, tell)


def work_in_processes(plan: Plan, shards: Sequence[Shard], n_workers: int, tell: Tell) -> None:
    """Make the shards in `n_workers` <= len(shards) processes, each given the next one as it gets free.

    Raises WorkerLost, and ends the others, as soon as one of them ends too early.
    """
    import multiprocessing
    from multiprocessing.connection import wait

    context = multiprocessing.get_context("spawn")
    todo = iter(shards)
    processes: dict[Any, Any] = {}
    try:
        for k in range(n_workers):
            here, there = context.Pipe()
            processes[here] = context.Process(target=_work, args=(plan, k, there), daemon=True)
            processes[here].start()
            there.close()
        idle: list[Any] = list(processes)
        while processes:
            for link in idle:
                shard = next(todo, None)
                try:
                    link.send(shard)
                except ConnectionError:
                    raise WorkerLost(_farewell(processes[link])) from None
                if shard is None:
                    processes.pop(link).join()
            idle = []
            ready: list[Any] = wait(list(processes)) if processes else []
            for link in ready:
                try:
                    news = link.recv()
                except (EOFError, ConnectionError):
                    raise WorkerLost(_farewell(processes[link])) from None
                if news is None:
                    idle.append(link)
                else:
                    tell(*news)
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


def _farewell(process: Any) -> str:
    process.join()
    code = process.exitcode
    if code < 0:
        return f"a worker process was killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return f"a worker process ended with exit code {code}"


def _work(plan: Plan, process: int, link: Connection) -> None:
    """What a worker process does: make the shards it is sent, until it is sent None or the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    torch.set_num_threads(plan.threads)
    maker = Maker(plan, process)
    try:
        while (shard := link.recv()) is not None:
            maker.make(shard, lambda *news: link.send(news))
            link.send(None)
    except (EOFError, BrokenPipeError):
        return
    except OSError as error:
        print(f"avpoet-train: error: {error}", file=sys.stderr)
        sys.exit(1)
