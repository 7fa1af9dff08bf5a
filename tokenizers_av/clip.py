"""Media in memory and on disk: a Clip of frames and sound, read from and written to the files people have."""
# Shapes: T frames, H W height and width, N samples (mono)

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tokenizers_av.media_formats import MediaError, MediaPath, check_output, output_kind
from tokenizers_av.media_frames import Size, check_size
from tokenizers_av.media_read import IMAGE_FPS, image_picture, pictures, probe, sound_chunks
from tokenizers_av.media_write import ClipWriter

__all__ = ["Clip", "ClipReader", "ClipWriter", "MediaError", "check_output", "read_clip"]


@dataclass(frozen=True, eq=False)
class Clip:
    """A piece of picture, sound, or both; where both are there, they last equally long up to a sample."""

    frames: Tensor | None  # (T, H, W, 3) uint8
    fps: float
    samples: Tensor | None = None  # (N,) float32 in [-1, 1]
    sample_rate: int = 16000

    def __post_init__(self) -> None:
        if self.frames is None and self.samples is None:
            raise MediaError("a clip needs frames or samples; both are None")
        if self.frames is not None and (
            self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != torch.uint8
        ):
            raise MediaError(f"frames are {tuple(self.frames.shape)} {self.frames.dtype}; need (T, H, W, 3) uint8")
        if self.samples is not None and (self.samples.ndim != 1 or not self.samples.is_floating_point()):
            raise MediaError(f"samples are {tuple(self.samples.shape)} {self.samples.dtype}; need (N,) float32")
        if not (self.fps > 0 and self.sample_rate > 0):
            raise MediaError(f"fps={self.fps}, sample_rate={self.sample_rate}: both must be above 0")

    @property
    def n_frames(self) -> int:
        return 0 if self.frames is None else self.frames.shape[0]

    @property
    def height(self) -> int:
        return 0 if self.frames is None else self.frames.shape[1]

    @property
    def width(self) -> int:
        return 0 if self.frames is None else self.frames.shape[2]

    @property
    def seconds(self) -> float:
        """How long the picture lasts; without a picture, the sound."""
        if self.frames is not None:
            return self.n_frames / self.fps
        assert self.samples is not None
        return len(self.samples) / self.sample_rate

    def save(self, path: MediaPath) -> None:
        """Write the clip to a file, as ClipWriter does by the suffix; raises MediaError and leaves nothing partial."""
        check_output(path)
        sound = self.samples is not None and output_kind(path) != "image"
        size = None if self.frames is None else (self.height, self.width)
        with ClipWriter(path, fps=self.fps, size=size, sample_rate=self.sample_rate if sound else None) as writer:
            writer.write(self.frames, self.samples if sound else None)


class ClipReader:
    """A media file, read window by window in constant memory.

    Picture: for each time start + k / fps the nearest frame of the file, also where its frame rate varies; `fps=None`
    keeps the file's average rate. `size` is a number (square) or (H, W); "crop" fills it and cuts the rest, "pad" puts
    the whole picture on black. Sound: mixed to mono at `sample_rate` (None: the file's own), cut or padded with
    silence to the length of the picture. `seconds` or `n_frames` bounds the length; a shorter file gives what it has.
    An image is one frame. Zero of the clock is the first frame, or the first sample where there is no picture.
    `video=False` or `audio=False` leaves that part undecoded. Raises MediaError for anything that cannot be read.
    """

    def __init__(
        self,
        path: MediaPath,
        *,
        fps: float | None = None,
        size: Size | None = None,
        fit: str = "crop",
        start: float = 0.0,
        seconds: float | None = None,
        n_frames: int | None = None,
        sample_rate: int | None = 16000,
        need: Literal["video", "audio"] | None = None,
        video: bool = True,
        audio: bool = True,
    ) -> None:
        self.path = os.fspath(path)
        for name, value in (("fps", fps), ("seconds", seconds), ("n_frames", n_frames), ("sample_rate", sample_rate)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise MediaError(f"{self.path}: {name}={value}: must be above 0")
        if seconds is not None and n_frames is not None:
            raise MediaError(f"{self.path}: give seconds or n_frames, not both")
        if not (start >= 0 and math.isfinite(start)):
            raise MediaError(f"{self.path}: start={start}: must be at least 0 seconds")
        if need not in (None, "video", "audio"):
            raise ValueError(f"need={need!r}: expected 'video', 'audio' or None")
        self.size, self.fit = check_size(size, fit), fit
        self.info = probe(self.path)
        self.need = need
        if need == "video" and not self.info.has_video:
            raise MediaError(f"{self.path}: has no picture; a video, gif or image is needed")
        if need == "audio" and not self.info.has_audio:
            raise MediaError(f"{self.path}: has no sound; a file with a sound track is needed")
        self.has_video = self.info.has_video and video
        self.has_audio = self.info.has_audio and audio
        if not (self.has_video or self.has_audio):
            raise MediaError(f"{self.path}: has no {'sound' if audio else 'picture'}")
        self.start = float(start)
        self.fps = float(fps or self.info.fps or IMAGE_FPS)
        self.sample_rate = int(sample_rate or self.info.sample_rate or 16000)
        self.length: float | None = seconds  # bound on what is read, in seconds
        self.max_frames: int | None = n_frames
        if seconds is not None:
            self.max_frames = max(1, round(seconds * self.fps))
        elif n_frames is not None:
            self.length = n_frames / self.fps
        if self.info.seconds and self.start >= (1 / self.fps if self.info.is_image else self.info.seconds):
            raise self._beyond_the_end()
        self._open: list[Iterator[object]] = []

    @property
    def seconds(self) -> float | None:
        """How long all windows last together, by the file's headers; None where the file does not say."""
        if self.info.is_image:
            return 1 / self.fps
        if self.info.seconds is None:
            return None
        rest = max(0.0, self.info.seconds - self.start)
        return rest if self.length is None else min(rest, self.length)

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Clip]:
        return self.windows()

    def close(self) -> None:
        """Close the file, also under windows that were not read to the end."""
        for generator in self._open:
            generator.close()  # type: ignore[attr-defined]
        self._open.clear()

    def windows(self, seconds: float = 1.0, *, n_frames: int | None = None) -> Iterator[Clip]:
        """Yield the file as consecutive clips of `seconds` (or `n_frames`); joined, they are exactly the whole.

        Windows hold whole frames (at least one); sound is cut at round(frames so far / fps * sample_rate).
        The last window may be shorter. Each call starts again at the beginning.
        """
        if not seconds > 0 or (n_frames is not None and n_frames < 1):
            raise MediaError(f"{self.path}: windows of {n_frames or seconds}: must be above 0")
        if self.has_video:
            count = n_frames or (None if math.isinf(seconds) else max(1, round(seconds * self.fps)))
            clips = self._picture_windows(count)
        else:
            clips = self._sound_windows(n_frames / self.fps if n_frames else seconds)
        self._open.append(clips)
        return clips

    def _pictures(self) -> Iterator[Tensor]:
        if self.info.is_image:
            return iter([image_picture(self.path, self.size, self.fit)])
        return pictures(self.path, self.info, self.fps, self.start, self.size, self.fit)

    def _picture_windows(self, n_frames: int | None) -> Iterator[Clip]:
        source = islice(self._pictures(), self.max_frames)
        sound = _SampleQueue(self._sound()) if self.has_audio else None
        done, n_done = 0, 0
        while frames := list(islice(source, n_frames)):
            done += len(frames)
            samples = None
            if sound is not None:
                end = round(done / self.fps * self.sample_rate)
                samples = sound.take(end - n_done, pad=True)
                n_done = end
                if self.need == "audio" and not sound.seen:
                    raise MediaError(f"{self.path}: no sound could be decoded")
            yield Clip(torch.stack(frames), self.fps, samples, self.sample_rate)
        if not done:
            raise MediaError(f"{self.path}: no picture could be decoded") if self.start == 0 else self._beyond_the_end()

    def _sound_windows(self, seconds: float) -> Iterator[Clip]:
        limit = math.inf if self.length is None else round(self.length * self.sample_rate)
        if self.info.sound_end is not None:  # what follows fills the codec's last block
            limit = min(limit, round((self.info.sound_end - self.start) * self.sample_rate))
        sound = _SampleQueue(self._sound())
        done, k = 0, 0
        while True:
            k += 1
            end = min(limit, math.inf if math.isinf(seconds) else max(k, round(k * seconds * self.sample_rate)))
            samples = sound.take(end - done, pad=False)
            if not len(samples):
                break
            done += len(samples)
            yield Clip(None, self.fps, samples, self.sample_rate)
        if not done:
            raise MediaError(f"{self.path}: no sound could be decoded") if self.start == 0 else self._beyond_the_end()

    def _sound(self) -> Iterator[np.ndarray]:
        return sound_chunks(self.path, self.info, self.sample_rate, self.start)

    def _beyond_the_end(self) -> MediaError:
        known = f" ({self.info.seconds:.3f} s)" if self.info.seconds and not self.info.is_image else ""
        return MediaError(f"{self.path}: start={self.start:g} s is beyond the end{known}")


class _SampleQueue:
    """Takes exact numbers of samples from chunks of any length."""

    def __init__(self, chunks: Iterator[np.ndarray]) -> None:
        self.chunks = chunks
        self.rest = np.zeros(0, dtype=np.float32)
        self.seen = False  # whether there was any sound at all

    def take(self, n: float, *, pad: bool) -> Tensor:
        """The next n samples (N,) float32; fewer at the end, or silence with `pad`."""
        parts, have = [self.rest], len(self.rest)
        while have < n and (chunk := next(self.chunks, None)) is not None:
            parts.append(chunk)
            have += len(chunk)
            self.seen = True
        joined = np.concatenate(parts).astype(np.float32, copy=False)
        n = int(min(n, max(have, n) if pad else have))
        self.rest = joined[n:].copy()
        taken = joined[:n]
        if len(taken) < n:
            taken = np.pad(taken, (0, n - len(taken)))
        return torch.from_numpy(taken.copy())


def read_clip(
    path: MediaPath,
    *,
    fps: float | None = None,
    size: Size | None = None,
    fit: str = "crop",
    start: float = 0.0,
    seconds: float | None = None,
    n_frames: int | None = None,
    sample_rate: int | None = 16000,
    need: Literal["video", "audio"] | None = None,
    video: bool = True,
    audio: bool = True,
) -> Clip:
    """Read a media file, or the part of it that is asked for, into memory; ClipReader says what the options mean."""
    with ClipReader(
        path, fps=fps, size=size, fit=fit, start=start, seconds=seconds, n_frames=n_frames, sample_rate=sample_rate,
        need=need, video=video, audio=audio,
    ) as reader:  # fmt: skip
        return next(reader.windows(math.inf))
