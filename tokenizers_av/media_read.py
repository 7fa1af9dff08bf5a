"""Decode picture and sound of one file, each from its own handle, step by step: nothing here holds a whole file."""
# Shapes: H W height and width, N samples

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tokenizers_av.media_formats import IMAGE_SUFFIXES, MediaError
from tokenizers_av.media_frames import open_image, picture_of, read_image, resize
from tokenizers_av.media_sound import RESTART_SECONDS, mono_chunks

IMAGE_FPS = 8.0  # frame rate of a clip that is made of one image
USUAL_FPS = 25.0  # where neither the headers nor the time stamps tell
RATE_PACKETS = 50  # whose time stamps tell the frame rate where the headers do not
NO_LENGTH = {"aac", "ac3", "eac3"}  # bare streams of sound: libav takes the bit rate of their beginning for that of all
SEEK_BACK = 0.5  # seconds of sound decoded before the start, for codecs that need a run-up
NOT_MEDIA = {"tty", "bin", "xbin", "adf", "idf", "hls", "dash", "concat", "concatf", "sdp", "ffmetadata", "lavfi"}


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds, from its headers alone."""

    is_image: bool
    has_video: bool
    has_audio: bool
    seconds: float | None  # None where the file does not say
    fps: float | None  # average frame rate of the picture
    sample_rate: int | None  # of the sound
    origin: float = 0.0  # time stamp of the clip's start, in seconds
    pixel_aspect: float = 1.0  # width of a pixel over its height
    sound_end: float | None = None  # where sound alone ends, if the container says it to the sample (mp4 does)


def check_input(path: str) -> None:
    """Raise MediaError unless `path` is a file with something in it that may be read."""
    file = Path(path)
    if not file.exists():
        raise MediaError(f"{path}: no such file")
    if file.is_dir():
        raise MediaError(f"{path}: is a folder; give a media file")
    if not file.is_file():
        raise MediaError(f"{path}: is not a regular file")
    if not os.access(path, os.R_OK):
        raise MediaError(f"{path}: may not be read (permission denied)")
    if file.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty (0 bytes)")


def open_container(path: str) -> Any:
    """Open a file (never an address or a playlist) with PyAV; raises MediaError."""
    import av

    try:
        container = av.open(f"file:{path}", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{path}: not a readable media file, or cut off before its index ({reason})") from None
    if NOT_MEDIA & set(container.format.name.split(",")):
        container.close()
        raise MediaError(f"{path}: not a media file ({container.format.long_name})")
    return container


def video_stream(container: Any) -> Any | None:
    """The first moving picture of a file; cover art of a song is none."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not Disposition(stream.disposition) & Disposition.attached_pic and stream.codec_context is not None:
            return stream
    return None


def audio_stream(container: Any) -> Any | None:
    return next((s for s in container.streams.audio if s.codec_context is not None), None)


def probe(path: str) -> MediaInfo:
    """Read the headers of a file; raises MediaError where it is no media file."""
    check_input(path)
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        check_image(path)
        return MediaInfo(True, True, False, 1 / IMAGE_FPS, IMAGE_FPS, None)
    with open_container(path) as container:
        video, audio = video_stream(container), audio_stream(container)
        lead = video or audio
        if lead is None:
            raise MediaError(f"{path}: holds neither picture nor sound")
        origin = float(lead.start_time * lead.time_base) if lead.start_time is not None else 0.0
        seconds, told = None, container.format.name not in NO_LENGTH
        if told and lead.duration is not None:
            seconds = float(lead.duration * lead.time_base)
        elif told and container.duration is not None:
            seconds = container.duration / 1e6
        exact = "mp4" in container.format.name.split(",")
        if video is None:  # headers are a few milliseconds off where a codec has a run-up: the first frame knows
            first = next(_packets_decoded(container, audio), None)
            origin = first.time if first is not None and first.time is not None else origin
        return MediaInfo(
            is_image=False,
            has_video=video is not None,
            has_audio=audio is not None,
            seconds=seconds,
            fps=_frame_rate(container, video) if video is not None else None,
            sample_rate=audio.rate if audio is not None else None,
            origin=origin,
            pixel_aspect=float(video.sample_aspect_ratio or 1) if video is not None else 1.0,
            sound_end=seconds if video is None and exact else None,
        )


def _frame_rate(container: Any, stream: Any) -> float:
    """Frames a second by the headers; where these give the ticks of the clock in its place, by the first packets."""
    rates = [stream.average_rate, stream.guessed_rate, stream.base_rate]
    if stream.codec_context.name == "gif":  # delays are whole hundredths: the average of 12, 13, 12… is misjudged
        rates.reverse()
    elif not stream.average_rate and stream.guessed_rate == 1 / stream.time_base:
        rates = [_packet_rate(container, stream)]
    for rate in rates:
        if rate and 0 < rate <= 1000:
            return float(rate)
    return USUAL_FPS


def _packet_rate(container: Any, stream: Any) -> float | None:
    """Frames a second by the time stamps of the first packets; None where there are not two. Reads on."""
    import av

    times: list[int] = []
    with contextlib.suppress(av.error.FFmpegError):
        times.extend(p.pts for p in islice(container.demux(stream), RATE_PACKETS) if p.pts is not None)
    ticks = max(times, default=0) - min(times, default=0)
    return float((len(times) - 1) / (ticks * stream.time_base)) if ticks else None


def _packets_decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames of a stream; damaged packets are passed over, and a file that breaks off just ends."""
    import av

    # AVI says when a packet is decoded, not when its picture is shown: pictures come in order, so count from the first
    counted = container.format.name == "avi" and stream.type == "video"
    first: int | None = None
    delay: int | None = None  # between the two, in ticks
    packets = container.demux(stream)  # ends with an empty packet, which empties the decoder
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            break
        first = packet.dts if first is None else first
        with contextlib.suppress(av.error.FFmpegError):
            for frame in packet.decode():
                if counted and first is not None and frame.dts is not None:
                    delay = frame.dts - first if delay is None else delay
                    frame.pts = frame.dts - delay
                elif counted:
                    frame.pts = None
                yield frame
    with contextlib.suppress(av.error.FFmpegError):
        for frame in stream.decode(None):
            frame.time_base = stream.time_base  # not set here by PyAV
            yield frame


def _seek(container: Any, stream: Any, seconds: float) -> bool:
    import av

    try:
        container.seek(int(seconds / stream.time_base), stream=stream, backward=True)
    except (av.error.FFmpegError, OverflowError):
        return False
    return True


def timed_frames(path: str, info: MediaInfo, start: float) -> Iterator[tuple[float, float, Any]]:
    """Yield (time from the clip's start, duration, av.VideoFrame) in order, beginning at or before `start` seconds."""
    origin, step = info.origin, 1 / (info.fps or USUAL_FPS)
    for seeking in (True, False) if start > 0 else (False,):
        with open_container(path) as container:
            stream: Any = video_stream(container)
            stream.codec_context.thread_type = "AUTO"
            if seeking and not _seek(container, stream, origin + start):
                continue
            last: float | None = None
            ahead = 0.0  # of a clock that has started again
            for frame in _packets_decoded(container, stream):
                following = 0.0 if last is None else last + step
                time = frame.time - origin + ahead if frame.time is not None else following
                if last is not None and time < last - RESTART_SECONDS:
                    ahead, time = ahead + following - time, following
                if last is None and seeking and time > start:
                    break  # the seek went too far: read from the beginning instead
                if last is not None and time <= last:
                    continue
                last = time
                length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
                yield time, length, frame
            if last is not None or not seeking:
                return


def sampled_frames(path: str, info: MediaInfo, fps: float, start: float) -> Iterator[Any]:
    """Yield, for each time start + k / fps inside the file, the frame that is nearest in time (the earlier in a tie).

    A time is inside as long as at least half of its 1 / fps lies before the end of the last frame; the first always is.
    """
    k = 0
    previous: tuple[float, float, Any] | None = None
    for entry in timed_frames(path, info, start):
        if previous is not None:
            border = (previous[0] + entry[0]) / 2 + 1e-6
            while start + k / fps <= border:
                yield previous[2]
                k += 1
        previous = entry
    if previous is None:
        return
    end = previous[0] + previous[1] + 1e-6
    while start + (k + 0.5) / fps <= end or (k == 0 and start < end):
        yield previous[2]
        k += 1


def pictures(
    path: str, info: MediaInfo, fps: float, start: float, size: tuple[int, int] | None, fit: str
) -> Iterator[Tensor]:
    """Yield the sampled pictures (H, W, 3) uint8, all of one size; equal neighbours are the same tensor."""
    last_frame: Any = None
    picture: Tensor | None = None
    for frame in sampled_frames(path, info, fps, start):
        if frame is not last_frame:
            raw = picture_of(frame)
            turned = round(frame.rotation / 90) % 2
            aspect = 1 / info.pixel_aspect if turned else info.pixel_aspect
            if size is None:  # the first frame decides for the rest
                size = (raw.shape[0], max(1, round(raw.shape[1] * aspect)))
            picture = resize(raw[None], size, fit, aspect)[0]
            last_frame = frame
        assert picture is not None
        yield picture


def image_picture(path: str, size: tuple[int, int] | None, fit: str) -> Tensor:
    """Read an image file as (H, W, 3) uint8; raises MediaError."""
    try:
        picture = read_image(path)
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise _no_image(path, error) from None
    return picture if size is None else resize(picture[None], size, fit)[0]


def check_image(path: str) -> None:
    """Raise MediaError where the header of an image file is none; its pixels are not read."""
    try:
        open_image(path).close()
    except Exception as error:
        raise _no_image(path, error) from None


def _no_image(path: str, error: Exception) -> MediaError:
    reason = str(error).splitlines()[0].replace(repr(path), "it") if str(error) else type(error).__name__
    return MediaError(f"{path}: not a readable image ({reason})")


def sound_chunks(path: str, info: MediaInfo, sample_rate: int, start: float) -> Iterator[np.ndarray]:
    """Yield the sound from `start` on as chunks (N,) float32 in [-1, 1], mono at `sample_rate`; raises MediaError."""
    import av

    with contextlib.ExitStack() as closing:
        container = closing.enter_context(open_container(path))
        if start > SEEK_BACK and not _seek(container, audio_stream(container), info.origin + start - SEEK_BACK):
            container = closing.enter_context(open_container(path))
        frames = _packets_decoded(container, audio_stream(container))
        try:
            yield from mono_chunks(frames, sample_rate, info.origin, start)
        except av.error.FFmpegError as error:
            raise MediaError(f"{path}: its sound cannot be read ({error.strerror})") from None
