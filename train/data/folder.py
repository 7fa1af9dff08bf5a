"""Anybody's folder of media files as training data: random windows of videos, images and sounds, with captions."""
# Shapes: B batch, T frames, H W height and width, N samples

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_av.clip import Clip, ClipReader, MediaError, read_clip
from tokenizers_av.media_formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES, INPUT_SUFFIXES
from train.data.motion import cut, fixed_crop
from train.data.source import SPLITS, MediaBatch, MediaSpec
from train.data.stills import KEPT, Cache, Still, moving_still, read_still

log = logging.getLogger(__name__)

TEST_SHARE = 0.05
MIN_FILES_TO_SPLIT = 20
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")
MAX_TRIES = 100  # files drawn at random for one sample before all are tried


class FolderSource:
    """Random windows of the media files under a folder, however deep, or of the files that are named.

    Captions come from `metadata.jsonl` or `metadata.csv` (a `file_name` column relative to it, and `text` or `caption`:
    the convention of the `datasets` library), else from a .txt file of the same name beside the media file, else they
    are empty.

    Split: 5 % of the files, chosen by a hash of their path inside the folder, are the test split, so it stays the same
    when files are added. With fewer than 20 files (sound files count apart) both splits hold all, and only the windows
    drawn differ.

    Sample i is a pure function of (seed, split, i) and the files. A short file is stretched by its last frame and by
    silence, an image stands still, a video without sound is silent. Files that lack what is asked for are not drawn:
    sound files where `video=True`, silent ones where only sound is wanted. A file that cannot be read is reported once
    and kept in `skipped` (name -> reason), and another takes its place.

    `augment` is for learning pictures, not what captions say of them (a mirrored ball rolls the other way): a video is
    cropped at random to between half and all of its shorter side, an image becomes a clip of a crop that drifts and
    zooms, both are mirrored half of the time, and transparent images lie on a plain colour at random instead of white.

    Raises MediaError where the folder is missing or has no usable media.
    """

    def __init__(
        self, path: str | Path | Sequence[str | Path], split: str = "train", seed: int = 0, augment: bool = False
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
        self.split, self.seed, self.augment = split, seed, augment
        given = Path(path) if isinstance(path, str | Path) else [Path(file) for file in path]
        self.root, found = find_media(given)
        inside = None if isinstance(given, Path) and given.is_dir() else {Path(name).parent for name in found}
        self._captions = read_captions(self.root, inside)
        self.files = split_files(found, split)
        self.skipped: dict[str, str] = {}  # files that could not be read so far -> why
        self._unusable: set[tuple[str, bool]] = set()  # (file, whether a picture was wanted)
        self._lock = threading.Lock()  # of the two above
        self._moving: Cache[Still] = Cache(lambda still: still.n_bytes)
        self._standing: Cache[Clip] = Cache(lambda clip: 3 * clip.n_frames * clip.height * clip.width)

    def __repr__(self) -> str:
        return f"FolderSource({str(self.root)!r}, split={self.split!r}, seed={self.seed}): {len(self.files)} files"

    def batch(self, indices: Sequence[int], spec: MediaSpec, *, video: bool = True, audio: bool = True) -> MediaBatch:
        """Clips for the given indices: video (B, 3, T, size, size), audio (B, N), both in [-1, 1], and B captions."""
        if not (video or audio):
            raise ValueError("video=False and audio=False: nothing to read")
        if not len(indices):
            raise ValueError("indices is empty; need at least one")
        workers = min(len(indices), os.cpu_count() or 1, 8)
        with ThreadPoolExecutor(workers) as pool:  # decoding leaves the interpreter lock
            samples = list(pool.map(lambda index: self._sample(int(index), spec, video, audio), indices))
        return MediaBatch(
            video=torch.stack([to_video(clip, spec) for clip, _ in samples]) if video else None,
            audio=torch.stack([to_audio(clip, spec) for clip, _ in samples]) if audio else None,
            captions=[caption for _, caption in samples],
        )

    def all_captions(self) -> list[str]:
        """The captions of the files of this split, in the order of their names; files without one are left out."""
        return [caption for name in self.files if (caption := self.caption(name))]

    def caption(self, name: str) -> str:
        """The caption of a file, by its path inside the folder; "" where there is none."""
        if name in self._captions:
            return self._captions[name]
        beside = (self.root / name).with_suffix(".txt")
        if not beside.is_file():
            return ""
        try:
            return " ".join(beside.read_text(encoding="utf-8", errors="replace").split())
        except OSError as error:
            log.warning("%s: the caption cannot be read (%s)", beside, error.strerror)
            return ""

    def _sample(self, index: int, spec: MediaSpec, video: bool, audio: bool) -> tuple[Clip, str]:
        draw = random.Random(f"{self.seed}/{self.split}/{index}")
        n, number = len(self.files), 0
        for k in range(MAX_TRIES + n):  # at random, in the end one after the other
            number = draw.randrange(n) if k < MAX_TRIES else (number + 1) % n
            name, place = self.files[number], draw.random()
            if (name, video) in self._unusable:
                continue
            look = random.Random(f"{self.seed}/{self.split}/{index}/look")  # apart: tries must not depend on it
            try:
                return self._window(name, place, look, spec, video, audio), self.caption(name)
            except _Lacking:
                self._pass_over(name, video)
            except MediaError as error:
                self._pass_over(name, video, error)
        what = "picture" if video else "sound"
        raise MediaError(f"{self.root}: none of its {len(self.files)} {self.split} files has a readable {what}")

    def _pass_over(self, name: str, video: bool, error: MediaError | None = None) -> None:
        """Draw a file no more, and say why where it is damaged."""
        n = len(self.files)
        with self._lock:
            if (name, video) in self._unusable:
                return
            self._unusable.add((name, video))
            if error is not None and name not in self.skipped:
                self.skipped[name] = str(error).removeprefix(f"{self.root / name}: ")
                log.warning("skipped %d of %d files, now %s", len(self.skipped), n, error)
            n_unusable = sum(wanted == video for _, wanted in self._unusable)
            if n_unusable == n // 2 + 1 and n_unusable < n:
                what = "picture" if video else "sound"
                log.warning("%s: over half of its %d %s files have no readable %s; going on with the rest",
                            self.root, n, self.split, what)  # fmt: skip

    def _window(self, name: str, place: float, look: random.Random, spec: MediaSpec, video: bool, audio: bool) -> Clip:
        path = self.root / name
        if video and path.suffix.lower() in AUDIO_SUFFIXES:
            raise _Lacking(name)
        if video and path.suffix.lower() in IMAGE_SUFFIXES:
            return self._image(path, look, spec)
        with ClipReader(path) as reader:
            if not (reader.has_video if video else reader.has_audio):
                raise _Lacking(name)
            room = max(0.0, (reader.seconds or 0.0) - spec.seconds)
            audio = audio and reader.has_audio
        start = place * room
        while True:
            try:
                if video and self.augment:
                    return cropped_clip(path, look, spec, start, audio)
                return read_clip(
                    path,
                    fps=spec.fps,
                    size=spec.size if video else None,
                    start=start,
                    seconds=None if video else spec.seconds,
                    n_frames=spec.n_frames if video else None,
                    sample_rate=spec.sample_rate,
                    video=video,
                    audio=audio,
                )
            except MediaError:
                if start == 0:
                    raise
                start = 0.0  # the file is shorter than it says: whether it is usable must not depend on the draw

    def _image(self, path: Path, look: random.Random, spec: MediaSpec) -> Clip:
        """A clip of one frame, or with `augment` of a moving crop."""
        if self.augment:
            still = self._moving.get((path, spec.size), lambda: read_still(path, KEPT * spec.size))
            return moving_still(still, look, spec)
        return self._standing.get((path, spec.size), lambda: read_clip(path, fps=spec.fps, size=spec.size))


def cropped_clip(path: Path, look: random.Random, spec: MediaSpec, start: float, audio: bool) -> Clip:
    """A window of a video, cropped at random to the size asked for and mirrored or not; raises MediaError."""
    from PIL import Image

    frames, samples, crop, flip = [], [], None, look.random() < 0.5
    with ClipReader(
        path, fps=spec.fps, start=start, n_frames=spec.n_frames, sample_rate=spec.sample_rate, audio=audio
    ) as reader:
        for part in reader.windows(n_frames=1):  # at their full size, one at a time
            assert part.frames is not None
            crop = crop or fixed_crop(look, part.height, part.width, spec.size)
            frames.append(cut(Image.fromarray(part.frames[0].numpy()), [crop], spec.size, flip)[0])
            if part.samples is not None:
                samples.append(part.samples)
    sound = torch.cat(samples) if samples else None
    return Clip(torch.from_numpy(np.stack(frames)), spec.fps, sound, spec.sample_rate)


class _Lacking(Exception):
    """A good file that does not hold what is asked for."""


def find_media(path: Path | Sequence[Path]) -> tuple[Path, list[str]]:
    """A folder and the sorted paths of the media files inside it, however deep; of files, the folder that all are in
    and their paths inside it.

    Linked folders count. Raises MediaError where there are none.
    """
    if not isinstance(path, Path) or path.is_file():
        files = [path] if isinstance(path, Path) else path
        for file in files:
            if file.suffix.lower() not in INPUT_SUFFIXES:
                raise MediaError(f"{file}: not a media file by its name; known are {' '.join(INPUT_SUFFIXES)}")
        root = files[0].parent if len(files) == 1 else Path(os.path.commonpath([f.parent.absolute() for f in files]))
        return root, sorted({file.absolute().relative_to(root.absolute()).as_posix() for file in files})
    if not path.is_dir():
        raise MediaError(f"{path}: no such folder; give a folder of media files")
    found = sorted(_media_files(path))
    if not found:
        raise MediaError(f"{path}: no media files in it; known are {' '.join(INPUT_SUFFIXES)}")
    return path, found


def _media_files(root: Path) -> Iterator[str]:
    def complain(error: OSError) -> None:
        raise MediaError(f"{error.filename}: the folder cannot be read ({error.strerror})")

    seen = set()
    for folder, folders, names in os.walk(root, onerror=complain, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in INPUT_SUFFIXES:
                yield (Path(folder) / name).relative_to(root).as_posix()


def split_files(names: list[str], split: str) -> list[str]:
    """The files of a split: those whose hash lies in the lowest 5 % are the test files (at least one of each split).

    Files with and without pictures are split apart, those of a kind of which there are fewer than 20 are in both.
    """
    sounds = {name for name in names if Path(name).suffix.lower() in AUDIO_SUFFIXES}
    here: set[str] = set()
    for kind in ([n for n in names if n not in sounds], [n for n in names if n in sounds]):
        rank = {name: int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") / 2**64 for name in kind}
        test = {name for name in kind if rank[name] < TEST_SHARE} or set(sorted(kind, key=rank.__getitem__)[:1])
        chosen = test if split == "test" else set(kind) - test
        here |= chosen if len(kind) >= MIN_FILES_TO_SPLIT and chosen else set(kind)
    return [name for name in names if name in here]


def read_captions(root: Path, inside: Iterable[Path] | None = None) -> dict[str, str]:
    """Captions by path inside the folder, from the metadata.jsonl and metadata.csv in it and in all folders of it, or
    only in the folders `inside` it.

    Raises MediaError.
    """
    captions = {}
    names = ("metadata.csv", "metadata.jsonl")
    if inside is None:
        files = [file for name in names for file in root.glob(f"**/{name}")]
    else:
        files = [file for folder in inside for name in names if (file := root / folder / name).exists()]
    for file in sorted(files):
        for number, row in _rows(file):
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                raise MediaError(f"{file}, line {number}: needs a file_name")
            text = next((row[column] for column in CAPTION_COLUMNS if row.get(column)), "")
            text = text[0] if isinstance(text, list) else text
            full = os.path.normpath(file.parent.relative_to(root) / name)
            captions[Path(full).as_posix()] = _sound_text(str(text).strip())
    return captions


def _sound_text(text: str) -> str:
    """`text` without what UTF-8 cannot hold, such as half of an emoji that was cut."""
    return text.encode("utf-8", "replace").decode()


def _rows(file: Path) -> Iterator[tuple[int, dict]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".csv":
                yield from enumerate(csv.DictReader(lines), start=2)
                return
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise MediaError(f"{file}, line {number}: needs a JSON object with file_name and text")
                    yield number, row
    except json.JSONDecodeError as error:
        raise MediaError(f"{file}, line {number}: not valid JSON ({error.msg})") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MediaError(f"{file}: not readable ({error})") from None


def to_video(clip: Clip, spec: MediaSpec) -> Tensor:
    """Frames of a clip as (3, T, H, W) float32 in [-1, 1]; a short clip is held on its last frame."""
    assert clip.frames is not None
    frames = clip.frames[: spec.n_frames]
    if missing := spec.n_frames - len(frames):
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    return frames.permute(3, 0, 1, 2).float().div_(127.5).sub_(1)


def to_audio(clip: Clip, spec: MediaSpec) -> Tensor:
    """Samples of a clip as (N,) float32, with silence where there are none."""
    if clip.samples is None:
        return torch.zeros(spec.n_samples)
    samples = clip.samples[: spec.n_samples]
    return F.pad(samples, (0, spec.n_samples - len(samples)))
