"""Clips made from a video, a sound or words in windows that slide on, so that they may have any length.

A window begins with the end of what was made in the one before, the known beginning of its answer; only what is new is
given out. The first window has the seed itself, so that a short clip is made as the model's clips are.
"""
# Shapes: T frames, H W pixels, N samples, h w latent height and width, Q audio levels, F audio columns

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tasks.check import MAX_SECONDS
from tasks.codec import Codec, even_size
from tasks.generation import Generator, gather
from tasks.long_video import Track, hop, n_kept
from tasks.options import Ticker, derived_seed
from tasks.request import Request
from tasks.sequence import Layout, TokenSample
from tasks.source import ONE_FRAME, Source
from tokenizers_av.clip import Clip, MediaError
from tokenizers_av.media_frames import stretch


def video_from_video(codec: Codec, generator: Generator, r: Request) -> Iterator[Clip]:
    """What is made of a video, or of one image, through the row's condition; the video's own sound comes with it."""
    layout, source, conditioner = generator.layout, r.source, r.conditioner
    assert source is not None and conditioner is not None
    size = conditioner.canvas if r.options.keep_known else even_size(conditioner.canvas, codec.size)
    seconds = min(source.seconds or MAX_SECONDS, r.seconds or MAX_SECONDS)
    n_frames = 1 if source.is_image else max(1, round(seconds * layout.fps))
    n_frames = layout.n_frames if r.row.fixed_length else n_frames
    tick = Ticker(r.options.progress, n_windows(layout, n_frames) * generator.n_ids(r.row, sound=False))
    text, answer = codec.encode_text(r.prompt), _Pictures(codec, generator, r, tick)

    read = 0  # frames: headers may promise less than there is

    def counted() -> Iterator[Tensor]:
        nonlocal read
        for chunk in _frames(source, codec, r):
            read += len(chunk)
            yield chunk

    def pictures() -> Iterator[Tensor]:
        done = 0
        for i, (frames, _) in enumerate(windows(counted(), layout.n_frames, hop(layout))):
            shown = codec.encode_video(conditioner.frames(frames, i * hop(layout)))
            new = answer(TokenSample(text, condition=shown))
            made = stretch(new[: read - done], *size)
            if r.options.keep_known:
                made = conditioner.composite(made, frames[len(frames) - len(new) :][: len(made)], done)
            done += len(made)
            yield made

    sound = _samples(source, codec, r.seconds or MAX_SECONDS, silent=True) if r.keeps_sound else None
    yield from accompanied(codec, pictures(), sound)
    tick.finish()


def video_for_sound(codec: Codec, generator: Generator, r: Request) -> Iterator[Clip]:
    """A picture for a sound, with the sound as it came."""
    layout, source = generator.layout, r.source
    assert source is not None
    seconds = min(source.sound_seconds(), r.seconds or MAX_SECONDS)
    n_frames = max(1, round(seconds * layout.fps))
    tick = Ticker(r.options.progress, n_windows(layout, n_frames) * generator.n_ids(r.row, sound=False))
    text, answer = codec.encode_text(r.prompt), _Pictures(codec, generator, r, tick)

    def pictures() -> Iterator[Tensor]:
        encode, heard = codec.audio_encoder(), _samples(source, codec, seconds)
        quiet = codec.encode_audio(torch.zeros(layout.audio_frames * codec.audio.hop_length))
        ids, done = quiet[:, :0], 0
        for _ in range(n_windows(layout, n_frames)):
            while ids.shape[1] < layout.audio_frames and (chunk := next(heard, None)) is not None:
                ids = torch.cat([ids, encode(chunk)], dim=1)
            audio = torch.cat([ids, quiet], dim=1)[:, : layout.audio_frames]
            made = answer(TokenSample(text, audio=audio))[: n_frames - done]
            ids, done = ids[:, round(hop(layout) / layout.fps * layout.audio_rate) :], done + len(made)
            yield made

    yield from accompanied(codec, pictures(), _samples(source, codec, seconds))
    tick.finish()


def sound_for_text(codec: Codec, generator: Generator, r: Request) -> Iterator[Clip]:
    """A sound for a prompt."""
    layout = generator.layout
    left = codec.n_samples(layout.n_frames) if r.seconds is None else max(1, round(r.seconds * codec.sample_rate))
    step = round((layout.n_frames - n_kept(layout)) / layout.fps * layout.audio_rate) or layout.audio_frames
    n = 1 + max(0, -(-(left // codec.audio.hop_length - layout.audio_frames) // step))
    tick = Ticker(r.options.progress, n * generator.n_ids(r.row, sound=True))
    sample, negative = TokenSample(codec.encode_text(r.prompt)), codec.encode_text(r.options.negative_prompt)
    hear, known = codec.audio_decoder(), torch.empty(layout.n_codebooks, 0, dtype=torch.int64)
    for i in range(n):
        audio = gather(generator.blocks(
            r.row, sample, r.options, seed=_seed(r, "window", i), sound=True, negative=negative,
            known=TokenSample(audio=known) if i else None, tick=tick,
        )).audio  # fmt: skip
        assert audio is not None
        samples = hear(audio[:, known.shape[1] :])[:left]
        left, known = left - len(samples), audio[:, step:]
        yield Clip(frames=None, fps=layout.fps, samples=samples, sample_rate=codec.sample_rate)
    if left:
        yield Clip(frames=None, fps=layout.fps, samples=torch.zeros(left), sample_rate=codec.sample_rate)
    tick.finish()


def sound_for_video(codec: Codec, generator: Generator, r: Request) -> Iterator[Clip]:
    """The picture as it came, and a sound for it, a frame at a time."""
    source, seconds = r.source, r.seconds
    assert source is not None
    heard, kept = _sound_parts(source, codec, generator, r), torch.zeros(0)
    n_frames = n_samples = 0
    for window in source.windows(sample_rate=codec.sample_rate, seconds=ONE_FRAME, audio=False):
        frames = window.frames
        assert frames is not None
        if seconds is not None:
            frames = frames[: max(0, max(1, round(seconds * window.fps)) - n_frames)]
        if not len(frames):
            break
        n_frames += len(frames)
        due = round(n_frames / window.fps * codec.sample_rate) - n_samples
        while len(kept) < due:
            more = next(heard, None)
            kept = torch.cat([kept, torch.zeros(due - len(kept)) if more is None else more])
        yield Clip(frames=frames, fps=window.fps, samples=kept[:due], sample_rate=codec.sample_rate)
        kept, n_samples = kept[due:], n_samples + due


def _sound_parts(source: Source, codec: Codec, generator: Generator, r: Request) -> Iterator[Tensor]:
    """Samples (N,) in order: of the first whole window, then of what each further window adds.

    A window's sound begins with what was made for the frames that it shares with the one before.
    """
    layout = generator.layout
    seconds = min(source.seconds or MAX_SECONDS, r.seconds or source.seconds or 0)
    n = n_windows(layout, max(1, round(seconds * layout.fps)))
    tick, hear = Ticker(r.options.progress, n * generator.n_ids(r.row, sound=True)), codec.audio_decoder()
    chunks = source.frames(layout.fps, codec.size, codec.sample_rate)
    known: TokenSample | None = None
    for i, (frames, n_new) in enumerate(windows(chunks, layout.n_frames, hop(layout))):
        audio = gather(generator.blocks(
            r.row, TokenSample(video=codec.encode_video(frames)), r.options, seed=_seed(r, "sound", i), sound=True,
            known=known, tick=tick,
        )).audio  # fmt: skip
        assert audio is not None
        known = TokenSample(audio=audio[:, _columns(layout, hop(layout)) :])
        yield hear(audio if i == 0 else audio[:, -_columns(layout, n_new) :])
    tick.finish()


def accompanied(codec: Codec, pictures: Iterable[Tensor], sound: Iterator[Tensor] | None) -> Iterator[Clip]:
    """Clips of the frames (T, H, W, 3), each with as much of the sound (N,) as it lasts, silence once that has ended.

    With None for the sound, they have none.
    """
    track, waiting = Track(codec), torch.zeros(0)
    for frames in pictures:
        if not len(frames):
            continue
        samples = None
        if sound is not None:
            while len(waiting) < codec.n_samples(len(frames)) + 1 and (chunk := next(sound, None)) is not None:
                waiting = torch.cat([waiting, chunk])
            samples = track.fit(waiting, len(frames), fill=True)
            waiting = waiting[len(samples) :]
        yield Clip(frames=frames, fps=codec.layout.fps, samples=samples, sample_rate=codec.sample_rate)


class _Pictures:
    """Windows of pictures; the last frames of each are encoded as the beginning of the next."""

    def __init__(self, codec: Codec, generator: Generator, r: Request, tick: Ticker) -> None:
        self.codec, self.generator, self.r, self.tick = codec, generator, r, tick
        self.negative = codec.encode_text(r.options.negative_prompt)
        self.made: Tensor | None = None
        self.n = 0

    def __call__(self, sample: TokenSample) -> Tensor:
        """The new frames (T, H, W, 3) of the next window."""
        known, n_known = None, 0
        if self.made is not None:
            n_known = n_kept(self.codec.layout)
            known = TokenSample(video=self.codec.encode_video(self.made[-n_known:]))
        answer = gather(self.generator.blocks(
            self.r.row, sample, self.r.options, seed=_seed(self.r, "window", self.n), sound=False,
            negative=self.negative, known=known, tick=self.tick,
        ))  # fmt: skip
        assert answer.video is not None
        self.made, self.n = self.codec.decode_video(answer.video), self.n + 1
        return self.made[n_known:]


def windows(chunks: Iterable[Tensor], size: int, step: int) -> Iterator[tuple[Tensor, int]]:
    """Windows (size, ...) of frames, each `step` after the last, and how many frames of each are new.

    A stream that ends inside a window is continued with its last frame.
    """
    window: Tensor | None = None
    n_new = size
    for chunk in chunks:
        window = chunk if window is None else torch.cat([window, chunk])
        while len(window) >= size:
            yield window[:size], n_new
            window, n_new = window[step:], step
    if window is not None and len(window) > size - n_new:  # size - n_new of them were part of the last window
        yield torch.cat([window, window[-1:].expand(size - len(window), *window.shape[1:])]), n_new


def n_windows(layout: Layout, n_frames: int) -> int:
    """Windows of the model's length over so many frames."""
    return 1 + -(-max(0, n_frames - layout.n_frames) // hop(layout))


def _frames(source: Source, codec: Codec, r: Request) -> Iterator[Tensor]:
    """The frames (n, H, W, 3) of a video at its own size and the model's rate, or one image for a whole window."""
    fps = codec.layout.fps
    if r.row.fixed_length:
        yield source.whole_frame().expand(codec.layout.n_frames, -1, -1, -1)
        return
    left = max(1, round((r.seconds or MAX_SECONDS) * fps))
    for clip in source.windows(sample_rate=codec.sample_rate, fps=fps, audio=False):
        assert clip.frames is not None
        yield clip.frames[:left]
        left -= len(clip.frames)
        if left <= 0:
            return


def _samples(source: Source, codec: Codec, seconds: float, *, silent: bool = False) -> Iterator[Tensor]:
    """The first `seconds` of the sound (N,) at the model's rate, about a second at a time.

    Where none can be decoded this raises MediaError, or with `silent` there is nothing.
    """
    left = round(seconds * codec.sample_rate)
    with contextlib.suppress(*([MediaError] if silent else [])):
        for window in source.windows(sample_rate=codec.sample_rate, video=False):
            assert window.samples is not None
            yield window.samples[:left].float()
            left -= len(window.samples)
            if left <= 0:
                return


def _seed(r: Request, name: str, window: int) -> int:
    return derived_seed(r.options.seed, *((name, window) if window else ()))


def _columns(layout: Layout, n_frames: int) -> int:
    """Audio columns that last as long as `n_frames`, the last one included if it is begun."""
    return min(layout.audio_frames, math.ceil(n_frames / layout.fps * layout.audio_rate - 1e-6))
