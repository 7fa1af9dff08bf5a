"""One way to read a clip in memory and a file of any length: in windows, at any rate and size, in constant memory."""
# Shapes: T frames, H W pixels, N samples

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from tasks.errors import InputError
from tokenizers_av.audio import check_samples, resample
from tokenizers_av.clip import Clip, ClipReader, MediaError
from tokenizers_av.media_frames import resize

Media = Clip | str | os.PathLike[str]
ONE_FRAME = 1e-6  # seconds of a window that holds a single frame


class Source:
    """Picture and sound of a Clip or a file; MediaError at once where it cannot be read or lacks what is needed."""

    def __init__(self, media: Media, need: str | None = None) -> None:
        if not isinstance(media, (Clip, str, os.PathLike)):
            raise InputError(f"a clip is a Clip or a path, got {type(media).__name__}")
        self.media = media
        if isinstance(media, Clip):
            self.has_video, self.has_audio = media.frames is not None, media.samples is not None
            self.seconds: float | None = media.seconds
            self.fps = media.fps
            self.is_image = media.n_frames == 1
            self.sample_rate = media.sample_rate if self.has_audio else None
            if media.samples is not None:
                try:
                    check_samples(media.samples[None])
                except ValueError as error:
                    raise InputError(str(error)) from None
        else:
            with ClipReader(media) as reader:
                self.has_video, self.has_audio, self.seconds = reader.has_video, reader.has_audio, reader.seconds
                self.is_image, self.sample_rate = reader.info.is_image, reader.info.sample_rate
                self.fps = reader.fps
        self.name = "the clip" if isinstance(media, Clip) else str(media)
        if isinstance(media, Clip) and media.frames is not None and not media.n_frames:
            raise MediaError(f"{self.name}: holds no frame")
        if need == "video" and not self.has_video:
            raise MediaError(f"{self.name}: has no picture; a video, gif or image is needed")
        if need == "audio" and not self.has_audio:
            raise MediaError(f"{self.name}: has no sound; a file with a sound track is needed")

    def picture_size(self) -> tuple[int, int]:
        """(H, W) of the first frame in square pixels."""
        first = next(self.windows(sample_rate=16000, seconds=ONE_FRAME, audio=False))
        return first.height, first.width

    def sound_seconds(self) -> float:
        """How long it sounds; decoded to its end where the headers do not say."""
        if self.seconds is not None:
            return self.seconds
        windows = self.windows(sample_rate=16000, video=False)
        return sum(len(w.samples) for w in windows if w.samples is not None) / 16000

    def try_out(self) -> None:
        """Decode the very beginning: MediaError where the headers promise what is not there."""
        next(self.windows(sample_rate=16000, size=(8, 8), seconds=ONE_FRAME), None)

    def windows(
        self,
        *,
        sample_rate: int,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
        fit: str = "crop",
        seconds: float = 1.0,
        video: bool = True,
        audio: bool = True,
    ) -> Iterator[Clip]:
        """Clips of `seconds` each, the last one shorter, at `fps` and `size` (H, W) (None: as they are).

        `fit` is that of `ClipReader`; `video=False` or `audio=False` leaves that part out.
        """
        video, audio = video and self.has_video, audio and self.has_audio
        if isinstance(self.media, Clip):
            yield from _clip_windows(self.media, sample_rate, fps, size, fit, seconds, video, audio)
        else:
            with ClipReader(
                self.media, fps=fps, size=size, fit=fit, sample_rate=sample_rate, video=video, audio=audio
            ) as reader:
                yield from reader.windows(seconds)

    def frames(self, fps: float, size: tuple[int, int], sample_rate: int) -> Iterator[Tensor]:
        """Frames (n, H, W, 3) uint8, the whole picture stretched to the size, a few at a time."""
        for window in self.windows(fps=fps, size=size, fit="stretch", sample_rate=sample_rate, audio=False):
            if window.frames is not None:
                yield window.frames

    def first_frame(self, size: tuple[int, int], sample_rate: int) -> Tensor:
        """(1, H, W, 3) uint8, the whole picture stretched to the size."""
        for frames in self.frames(8.0, size, sample_rate):
            return frames[:1]
        raise MediaError(f"{self.name}: holds no frame")

    def whole_frame(self) -> Tensor:
        """The first frame at its own size, (1, h, w, 3) uint8."""
        frames = next(self.windows(sample_rate=16000, seconds=ONE_FRAME, audio=False)).frames
        assert frames is not None
        return frames[:1]


def _clip_windows(
    clip: Clip,
    sample_rate: int,
    fps: float | None,
    size: tuple[int, int] | None,
    fit: str,
    seconds: float,
    video: bool,
    audio: bool,
) -> Iterator[Clip]:
    """What ClipReader does with a file: the nearest frame for each time, sound as long as the picture."""
    fps = clip.fps if fps is None else fps
    samples = clip.samples.detach().cpu().float() if audio and clip.samples is not None else None
    if samples is not None and clip.sample_rate != sample_rate:
        samples = resample(samples, clip.sample_rate, sample_rate).clamp(-1, 1)  # it overshoots
    if not video or clip.frames is None:
        if samples is not None:
            for part in samples.split(max(1, round(seconds * sample_rate))):
                yield Clip(frames=None, fps=fps, samples=part, sample_rate=sample_rate)
        return
    count = max(1, round(seconds * fps))
    n_frames = max(1, math.floor(clip.n_frames / clip.fps * fps + 0.5))
    for first in range(0, n_frames, count):
        last = min(first + count, n_frames)
        times = torch.arange(first, last, dtype=torch.float64) / fps * clip.fps
        nearest = (times - 0.5 - 1e-4).ceil().long()  # in a tie the earlier
        frames = clip.frames[nearest.clamp(0, clip.n_frames - 1)].cpu()
        part = None
        if samples is not None:
            a, b = round(first / fps * sample_rate), round(last / fps * sample_rate)
            part = samples[a:b].cpu().float()
            part = torch.cat([part, part.new_zeros(b - a - len(part))])
        yield Clip(frames if size is None else resize(frames, size, fit), fps, part, sample_rate)
