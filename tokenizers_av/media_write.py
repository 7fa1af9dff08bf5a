"""Write picture and sound step by step: to a file that appears under its name when it is whole, or into a pipe."""
# Shapes: T frames, H W height and width, N samples (mono)

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
from torch import Tensor

from tokenizers_av.media_formats import (
    MOVIE_FORMATS,
    MediaError,
    MediaPath,
    WriteFailed,
    check_output,
    hidden_sibling,
    output_kind,
    sequence_folder,
)
from tokenizers_av.media_frames import to_yuv420

MAX_GIF_RATE = 100  # its delays are hundredths of a second
# The same frames shall give the same bytes. One thread: their number changes the bits. No macroblock tree: in small
# frames x264's depends on what the memory held before. No B-frames: every time stamp is simply k / fps.
# crf 13 and crf 18 are close to lossless to the eye; the frames are small, so this costs little.
VIDEO_OPTIONS = {
    "libx264": {"crf": "13", "preset": "medium", "profile": "main", "bf": "0", "mbtree": "0", "threads": "1"},
    "libvpx-vp9": {"crf": "18", "b": "0", "cpu-used": "4", "row-mt": "0", "threads": "1"},
    "gif": {},
}
# A pipe gets fragments of a frame or two, at once. The index in front waits for the first sound, as only then it can
# say how much of that is the codec's run-up (an edit list); after it the picture does not wait for the sound.
PIPE_OPTIONS = {
    "movflags": "+delay_moov+default_base_moof",
    "frag_duration": "1",  # microseconds; frag_every_frame would spoil time stamps where two streams alternate
    "max_interleave_delta": "1",
}
# x264 would look 40 frames ahead; where it may not, crf 16 looks like crf 13.
LIVE_OPTIONS = {"tune": "zerolatency", "crf": "16"}
AUDIO_RATES = {
    "aac": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "libopus": (8000, 12000, 16000, 24000, 48000),
}


def exact_rate(fps: float) -> Fraction:
    """The fraction behind a frame rate: 29.97002997 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


class _Sink(Protocol):
    def frames(self, frames: np.ndarray) -> None: ...
    def samples(self, samples: np.ndarray) -> None: ...
    def finish(self) -> None: ...
    def abandon(self) -> None: ...


class ClipWriter:
    """Streams frames and sound into a file: `with ClipWriter("a.mp4", fps=8, sample_rate=16000) as w: w.write(f, s)`.

    The suffix decides: .mp4 .m4v .mov .mkv (H.264 + AAC), .webm (VP9 + Opus), .gif and .png (picture only), .wav (sound
    only, 16 bit); a folder name ending in "/", or a numbered name such as out/%05d.png, makes a folder of pngs, with
    sound.wav in it where there is sound. Movies have even sizes: an odd one is padded by repeating its last row or
    column. `size` (H, W) declares a picture, `sample_rate` a sound track; without `size` the first frames decide. Sound
    is cut or padded with silence to the length of the picture. The same input gives the same bytes. All goes to a
    hidden file beside the target, which is renamed on a clean exit and removed after an error. Raises MediaError;
    WriteFailed, which is an OSError too, where the system or an encoder gives up.

    "-" (standard output) or an open binary file takes a fragmented mp4 instead, to be played while it is made: each
    `write` sends all but the last frame (two, ahead of their sound), nothing seeks, an error ends the stream where it
    is, and the file stays open. Where a sound track is declared, the stream begins with the first sound.
    """

    def __init__(
        self,
        path: MediaPath | BinaryIO,
        *,
        fps: float = 8.0,
        size: tuple[int, int] | None = None,
        sample_rate: int | None = None,
    ) -> None:
        self.path = os.fspath(path) if isinstance(path, (str, os.PathLike)) else "-"
        if not (math.isfinite(fps) and exact_rate(float(fps)) > 0):
            raise MediaError(f"{self.path}: fps={fps}: must be at least 0.001")
        if sample_rate is not None and sample_rate < 1:
            raise MediaError(f"{self.path}: sample_rate={sample_rate}: must be above 0")
        self.stream: BinaryIO | None = None  # in place of the files
        if isinstance(path, (str, os.PathLike)):
            check_output(path)
            if self.path == "-":  # without its buffer, whose rest would be flushed into a broken pipe at exit
                self.stream = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
        else:
            self.stream = path
        self.kind = output_kind(self.path)
        self.fps, self.size, self.sample_rate = float(fps), size, sample_rate
        folder = sequence_folder(self.path)[0] if self.kind == "sequence" else Path(self.path)
        self.target = folder.absolute()
        self.temporary = hidden_sibling(self.target)
        self.n_frames = 0
        self.n_samples = 0
        self._waiting = np.zeros(0, dtype=np.float32)  # sound beyond the picture that is known so far
        self._sink: _Sink | None = None
        self._finished = False
        suffix = Path(self.path).suffix.lower()
        if suffix == ".gif" and fps > MAX_GIF_RATE:
            raise MediaError(f"{self.path}: a gif shows at most {MAX_GIF_RATE} frames a second, not {fps:g}; use .mp4")
        self._keeps_picture = self.kind != "sound"
        self._keeps_sound = sample_rate is not None and self.kind != "image" and suffix != ".gif"

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()

    def write(self, frames: Tensor | None = None, samples: Tensor | None = None) -> None:
        """Append frames (T, H, W, 3) uint8 and samples (N,) float in [-1, 1] (louder is clipped); None is nothing."""
        if self._finished:
            raise MediaError(f"{self.path}: the writer is closed")
        with self._whole_or_nothing():
            pixels = self._checked_frames(frames)
            sound = self._checked_samples(samples)
            if self._sink is None and (len(pixels) or len(sound)):
                if self.size is None and len(pixels):
                    self.size = (pixels.shape[1], pixels.shape[2])
                self._sink = self._start()
            if self._sink is not None:
                self._waiting = np.concatenate([self._waiting, sound])
                for k in range(len(pixels)):  # each frame with its sound: what is in a pipe cannot be sorted any more
                    self._sink.frames(pixels[k : k + 1])
                    self.n_frames += 1
                    self._pass_sound()
                self._pass_sound()

    def close(self) -> None:
        """Finish the file and give it its name; an empty one is an error and leaves nothing. A stream stays open."""
        if self._finished:
            return
        with self._whole_or_nothing():
            if self._sink is None or not (self.n_frames or self.n_samples):
                what = "picture or sound" if self.kind != "sound" else "sound"
                raise MediaError(f"{self.path}: nothing to write, there was no {what}")
            if self._keeps_sound and self.n_frames:
                missing = max(0, self._sound_limit() - self.n_samples - len(self._waiting))
                self._waiting = np.pad(self._waiting, (0, missing))
                self._pass_sound()
            self._sink.finish()
            if self.stream is None:
                os.replace(self.temporary, self.target)
            self._finished = True

    def abandon(self) -> None:
        """Stop and remove everything that was written; a stream just ends where it is."""
        self._finished = True
        if self._sink is not None:
            with contextlib.suppress(Exception):  # it is thrown away, whatever state it is in
                self._sink.abandon()
            self._sink = None
        if self.temporary.is_dir():
            shutil.rmtree(self.temporary, ignore_errors=True)
        else:
            self.temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _whole_or_nothing(self) -> Iterator[None]:
        """Removes what was written after an error; those of the system and of the encoders become WriteFailed."""
        import av

        try:
            yield
        except (OSError, av.error.FFmpegError) as error:
            self.abandon()
            raise WriteFailed(f"{self.path}: writing failed ({error.strerror or error})") from None
        except BaseException:
            self.abandon()
            raise

    def _checked_frames(self, frames: Tensor | None) -> np.ndarray:
        if frames is None or not self._keeps_picture or len(frames) == 0:
            return np.zeros((0, 1, 1, 3), dtype=np.uint8)
        pixels = frames.detach().cpu().numpy()
        if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
            raise MediaError(f"{self.path}: frames are {pixels.shape} {pixels.dtype}; need (T, H, W, 3) uint8")
        if self.size is not None and pixels.shape[1:3] != tuple(self.size):
            raise MediaError(f"{self.path}: frames of {pixels.shape[1:3]} in a file of size {tuple(self.size)}")
        if self._sink is not None and self.size is None:
            raise MediaError(f"{self.path}: frames after sound alone; give size=(H, W) when opening")
        if self.kind == "image" and self.n_frames + len(pixels) > 1:
            raise MediaError(
                f"{self.path}: a .png holds one frame, not {self.n_frames + len(pixels)}; "
                'use a movie suffix, or a folder name ending in "/"'
            )
        return np.ascontiguousarray(pixels)

    def _checked_samples(self, samples: Tensor | None) -> np.ndarray:
        if samples is None or not len(samples):
            return np.zeros(0, dtype=np.float32)
        if self.sample_rate is None:
            raise MediaError(f"{self.path}: samples without a rate; give sample_rate= when opening")
        sound = samples.detach().cpu().float().numpy()
        if sound.ndim != 1:
            raise MediaError(f"{self.path}: samples are {sound.shape}; need (N,), mono")
        if not np.isfinite(sound).all():
            raise MediaError(f"{self.path}: samples hold nan or infinity")
        return sound.clip(-1, 1) if self._keeps_sound else np.zeros(0, dtype=np.float32)

    def _sound_limit(self) -> int:
        return round(self.n_frames / self.fps * (self.sample_rate or 0))

    def _pass_sound(self) -> None:
        """Hand on the waiting sound, as far as there is picture to go with it."""
        assert self._sink is not None
        alone = self.size is None or self.kind == "sound"
        n = len(self._waiting) if alone else max(0, self._sound_limit() - self.n_samples)
        sound, self._waiting = self._waiting[:n], self._waiting[n:]
        if len(sound):
            self._sink.samples(sound)
        self.n_samples += len(sound)

    def _start(self) -> _Sink:
        if self.kind == "sound":
            return _WaveSink(self.temporary, self.sample_rate or 0)
        if self.kind == "movie":
            rate = self.sample_rate if self._keeps_sound else None
            if self.stream is not None:
                return _PipeSink(self.stream, exact_rate(self.fps), self.size, rate)
            container, video, audio = MOVIE_FORMATS[Path(self.path).suffix.lower()]
            return _MovieSink(self.temporary, container, video, audio, exact_rate(self.fps), self.size, rate)
        if self.size is None:
            raise MediaError(f"{self.path}: needs frames, there is only sound")
        if self.kind == "image":
            return _ImageSink(self.temporary, None, None)
        return _ImageSink(self.temporary, sequence_folder(self.path)[1], self.sample_rate)


class _WaveSink:
    """16-bit mono wave file."""

    def __init__(self, path: Path, sample_rate: int) -> None:
        self.file = wave.open(str(path), "wb")  # noqa: SIM115
        self.file.setparams((1, 2, sample_rate, 0, "NONE", "not compressed"))

    def frames(self, frames: np.ndarray) -> None:
        raise AssertionError("a wave file takes no frames")

    def samples(self, samples: np.ndarray) -> None:
        self.file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())

    def finish(self) -> None:
        self.file.close()

    abandon = finish


class _ImageSink:
    """One png (`pattern` is None: `path` is the file), or a folder `path` of numbered ones, beginning at 0."""

    def __init__(self, path: Path, pattern: str | None, sample_rate: int | None) -> None:
        self.path, self.pattern, self.sample_rate, self.count = path, pattern, sample_rate, 0
        self.sound: _WaveSink | None = None
        if pattern is not None:
            path.mkdir()

    def frames(self, frames: np.ndarray) -> None:
        from PIL import Image

        for frame in frames:
            file = self.path if self.pattern is None else self.path / (self.pattern % self.count)
            Image.fromarray(frame).save(file, format="PNG")
            self.count += 1

    def samples(self, samples: np.ndarray) -> None:
        if self.sound is None:
            self.sound = _WaveSink(self.path / "sound.wav", self.sample_rate or 0)
        self.sound.samples(samples)

    def finish(self) -> None:
        if self.sound is not None:
            self.sound.finish()

    abandon = finish


class _MovieSink:
    """A container with a picture (where `size` is known) and sound (where `sample_rate` is), through PyAV."""

    def __init__(
        self,
        target: Path | _Outbox,
        container: str,
        video: str,
        audio: str | None,
        rate: Fraction,
        size: tuple[int, int] | None,
        sample_rate: int | None,
    ) -> None:
        import av

        piped = isinstance(target, _Outbox)
        options = PIPE_OPTIONS if piped else {"movflags": "+faststart"} if container in ("mp4", "mov") else {}
        file: Any = av.open(target if piped else str(target), "w", format=container, options=options)
        self.file = file
        self.file.flags |= av.container.Flags.bitexact.value  # no random ids, no version strings
        self.video: Any = None
        self.audio: Any = None
        self.rate, self.sample_rate, self.size = rate, sample_rate, size
        self.n_frames = self.n_samples = 0
        if size is not None:
            live = LIVE_OPTIONS if piped else {}
            self.video = self.file.add_stream(video, rate=rate, options=VIDEO_OPTIONS[video] | live)
            self.even = video != "gif"
            self.video.height, self.video.width = (n + n % 2 if self.even else n for n in size)
            self.video.pix_fmt = "yuv420p" if self.even else "pal8"
            self.video.codec_context.time_base = 1 / rate
            self.video.codec_context.thread_count = 1
            if self.even:
                self.video.codec_context.gop_size = max(1, round(2 * rate))
                self.video.codec_context.colorspace = 5  # BT.601, limited range, as to_yuv420 makes it
                self.video.codec_context.color_range = 1
        if sample_rate is not None and audio is not None:
            coded_rate = min((r for r in AUDIO_RATES[audio] if r >= sample_rate), default=48000)
            self.audio = self.file.add_stream(audio, rate=coded_rate, layout="mono")
            self.audio.bit_rate = min(128_000, 5 * coded_rate)
            self.resampler = av.AudioResampler(format=self.audio.format.name, layout="mono", rate=coded_rate)

    def frames(self, frames: np.ndarray) -> None:
        import av

        for pixels in frames:
            if self.even:
                odd = [(0, n % 2) for n in pixels.shape[:2]]
                planes = to_yuv420(np.pad(pixels, [*odd, (0, 0)], mode="edge"))
                frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            else:
                frame = _palette_frame(pixels)
            frame.pts, frame.time_base = self.n_frames, 1 / self.rate
            self.n_frames += 1
            self.file.mux(self.video.encode(frame))

    def samples(self, samples: np.ndarray) -> None:
        import av

        frame: Any = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        frame.sample_rate = self.sample_rate
        frame.pts, frame.time_base = self.n_samples, Fraction(1, self.sample_rate or 1)
        self.n_samples += len(samples)
        self._encode(self.resampler.resample(frame))

    def _encode(self, frames: list[Any]) -> None:
        for frame in frames:
            self.file.mux(self.audio.encode(frame))

    def finish(self) -> None:
        if self.video is not None:
            self.file.mux(self.video.encode(None))
        if self.audio is not None:
            self._encode(self.resampler.resample(None))
            self.file.mux(self.audio.encode(None))
        self.file.close()

    def abandon(self) -> None:
        self.file.close()


class _Outbox:
    """What libav has made and nobody has sent yet; without a way to seek, libav never goes back."""

    def __init__(self) -> None:
        self.made = bytearray()

    def write(self, data: bytes) -> int:
        self.made += data
        return len(data)


class _PipeSink(_MovieSink):
    """A fragmented mp4 that is sent on after each step.

    Sent from here, not from within libav, where an interrupt during a blocked write would be lost.
    """

    def __init__(self, stream: BinaryIO, rate: Fraction, size: tuple[int, int] | None, sample_rate: int | None) -> None:
        self.stream, self.outbox = stream, _Outbox()
        super().__init__(self.outbox, *MOVIE_FORMATS[".mp4"], rate, size, sample_rate)

    def frames(self, frames: np.ndarray) -> None:
        super().frames(frames)
        self._send()

    def samples(self, samples: np.ndarray) -> None:
        super().samples(samples)
        self._send()

    def finish(self) -> None:
        super().finish()
        self._send()

    def _send(self) -> None:
        rest = memoryview(bytes(self.outbox.made))
        self.outbox.made.clear()
        while len(rest):
            rest = rest[self.stream.write(rest) :]  # an unbuffered file may take only a part
        self.stream.flush()


def _palette_frame(pixels: np.ndarray) -> Any:
    """A frame of 256 colours chosen for this very picture (H, W, 3) uint8."""
    import av
    from PIL import Image

    image = Image.fromarray(pixels).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    colours = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 4), dtype=np.uint8)
    palette[:, 0] = 255
    palette[: len(colours), 1:] = colours
    indexed: Any = (np.asarray(image), palette)
    return av.VideoFrame.from_ndarray(indexed, format="pal8")
