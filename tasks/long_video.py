"""Any length in constant memory: from the last second on, generate what comes next, repeat (VideoPoet, section 5.5).

A window is a clip of the model's length of which the first latent frames, and the sound that goes with them, are known.
What is carried from window to window are their ids: nothing is encoded twice, and both decoders, which are causal, go
on from where they were: windows join without a seam. What the first one joins is the clip itself, sharper than what
comes of ids.
"""
# Shapes: T frames, t h w latent sizes, N samples, Q audio levels, F audio columns

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tasks.codec import Codec
from tasks.errors import InputError
from tasks.generation import Generator
from tasks.journal import Journal
from tasks.options import Options, Ticker, derived_seed
from tasks.sequence import Layout, TokenSample
from tasks.source import Source
from tasks.story import Story
from tasks.table import get_task
from tasks.task import Task
from tokenizers_av.clip import Clip, MediaError

EAR_SECONDS = 2.0  # of the old sound, of which the decoder of a continuation knows


def next_row(sound: bool) -> Task:
    """The row of the task table that a longer video is made with."""
    return get_task("audio_video_continuation" if sound else "frame_prediction")


@dataclass(frozen=True)
class Step:
    """One window: how many latent frames are given, and how many new frames it shall add."""

    n_context: int
    n_new: int  # as many as the window holds, or fewer where the end is reached


def steps(layout: Layout, n_latent: int, n_frames: int) -> Iterator[Step]:
    """The windows that add `n_frames` to a clip of which the last `n_latent` >= 1 latent frames are at hand."""
    if layout.latent_frames < 2:
        raise InputError("this model makes single images, it cannot continue a video")
    while n_frames > 0:
        n_context = min(n_carried(layout), n_latent)
        n_new = min(n_frames, layout.temporal_stride * (layout.latent_frames - n_context))
        yield Step(n_context, n_new)
        n_latent, n_frames = layout.latent_frames, n_frames - n_new


def n_carried(layout: Layout) -> int:
    """Latent frames to go on from: half of a clip."""
    return (layout.latent_frames + 1) // 2


def n_kept(layout: Layout) -> int:
    """Frames that `n_carried` latent frames hold at the beginning of a clip."""
    return 1 + layout.temporal_stride * (n_carried(layout) - 1)


def hop(layout: Layout) -> int:
    """Frames that each further window adds; a model of single images has nothing to go on from."""
    return layout.n_frames - n_kept(layout) or layout.n_frames


def n_windows_ids(generator: Generator, n_latent: int, n_frames: int, sound: bool) -> int:
    """Ids that `continue_clip` draws."""
    windows = Counter(s.n_context for s in steps(generator.layout, n_latent, n_frames))
    return sum(
        n * generator.n_ids(next_row(sound), sound=sound, n_context=n_context) for n_context, n in windows.items()
    )


class Track:
    """Keeps the sound as long as the picture: cuts what is too much, fills what is missing with silence."""

    def __init__(self, codec: Codec, n_frames: int = 0) -> None:
        self.codec, self.n_frames = codec, n_frames
        self.n_samples = codec.n_samples(n_frames)

    def fit(self, samples: Tensor, n_frames: int, *, fill: bool) -> Tensor:
        """samples (N,) that come with `n_frames` further frames; `fill` where nothing follows that could fill a gap."""
        self.n_frames += n_frames
        due = self.codec.n_samples(self.n_frames) - self.n_samples
        samples = samples[: max(0, due)]
        if fill and len(samples) < due:
            samples = torch.cat([samples, samples.new_zeros(due - len(samples))])
        self.n_samples += len(samples)
        return samples


class Ending:
    """The end of a clip: the last frames (T, H, W, 3) that fill whole latent frames, the sound (N,) up to their end.

    Frames are of the model's size, the whole picture stretched to it.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.frames, self.samples = torch.empty(0, *codec.size, 3, dtype=torch.uint8), torch.zeros(0)

    def read(self, source: Source, track: Track | None) -> Iterator[Clip]:
        """Yield the clip at the model's size and rate, with a track also its sound, or silence; keep how it ends."""
        codec, layout, n_heard = self.codec, self.codec.layout, round(EAR_SECONDS * self.codec.sample_rate)
        windows = source.windows(
            sample_rate=codec.sample_rate, fps=layout.fps, size=codec.size, fit="stretch", audio=track is not None
        )
        for window in windows:
            assert window.frames is not None
            self.frames, samples = torch.cat([self.frames, window.frames])[-n_kept(layout) :], None
            if track is not None:
                samples = torch.zeros(0) if window.samples is None else window.samples.float()
                samples = track.fit(samples, len(window.frames), fill=True)
                self.samples = torch.cat([self.samples, samples])[-n_heard:]
            yield Clip(frames=window.frames, fps=layout.fps, samples=samples, sample_rate=codec.sample_rate)
        if not len(self.frames):
            raise MediaError(f"{source.name}: holds no frame")
        self.frames = self.frames[(len(self.frames) - 1) % layout.temporal_stride :]


@dataclass
class Past:
    """What is carried: the ids of the last second, and decoders that know all that came before."""

    codec: Codec
    decode: Callable[[Tensor], Tensor]
    hear: Callable[[Tensor], Tensor] | None  # None for no sound
    track: Track
    video: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0, dtype=torch.int64))  # (t, h, w)
    audio: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))  # (Q, F)

    @classmethod
    def begin(cls, codec: Codec, sound: bool) -> Past:
        return cls(codec, codec.video_decoder(), codec.audio_decoder() if sound else None, Track(codec))

    def add_video(self, ids: Tensor) -> None:
        self.video = ids if not len(self.video) else torch.cat([self.video, ids])
        self.video = self.video[-n_carried(self.codec.layout) :]

    def add_audio(self, ids: Tensor) -> None:
        layout = self.codec.layout
        audio = ids if not self.audio.shape[1] else torch.cat([self.audio, ids], dim=1)
        self.audio = audio[:, max(0, audio.shape[1] - layout.columns(n_carried(layout))) :]

    def context(self, n_context: int) -> TokenSample:
        """The last `n_context` latent frames, and the sound that a window wants with them."""
        n = self.codec.layout.columns(n_context)
        if self.hear is None:
            return TokenSample(video=self.video[-n_context:])
        audio = self.audio[:, self.audio.shape[1] - n :] if n <= self.audio.shape[1] else self._silence(n)
        return TokenSample(video=self.video[-n_context:], audio=audio)

    def _silence(self, n: int) -> Tensor:
        """The sound at hand, with silence before it to make `n` columns."""
        missing = n - self.audio.shape[1]
        quiet = self.codec.encode_audio(torch.zeros(missing * self.codec.audio.hop_length))
        return torch.cat([quiet, self.audio], dim=1) if self.audio.shape[1] else quiet


def continue_clip(
    generator: Generator, past: Past, *, n_frames: int, story: Story, options: Options, tick: Ticker,
    journal: Journal | None = None,
) -> Iterator[Clip]:  # fmt: skip
    """Yield `n_frames` new frames with their sound, each latent frame as soon as it is known, a window at a time.

    Windows that the journal holds are taken from there, new ones are written into it.
    """
    layout, codec, sound = generator.layout, past.codec, past.hear is not None
    row = next_row(sound)
    negative = codec.encode_text(options.negative_prompt)
    windows = list(steps(layout, len(past.video), n_frames))
    starts = itertools.accumulate((step.n_new for step in windows), initial=0)
    story.check_told([n / layout.fps for n in starts][:-1], n_frames / layout.fps)
    done = 0
    for i, step in enumerate(windows, start=1):
        given = past.context(step.n_context)
        text = codec.encode_text(story.prompt(done / layout.fps, n_frames / layout.fps))
        sample = TokenSample(text, given.video, given.audio)
        blocks = None if journal is None else journal.read(i)
        if blocks is None:
            blocks = generator.blocks(
                row, sample, options, seed=derived_seed(options.seed, "window", i), sound=sound,
                n_context=step.n_context, negative=negative, tick=tick,
            )  # fmt: skip
        else:
            tick(generator.n_ids(row, sound=sound, n_context=step.n_context))
        n_known, left = step.n_context, step.n_new
        video = audio = None
        for part in blocks:
            audio = part.audio if part.audio is not None else audio
            if part.video is None:
                continue
            video = part.video
            while n_known < len(video) and left:  # one by one however they come: other chunks are rounded otherwise
                frames = past.decode(video[n_known : n_known + 1])[:left]
                n_known, left = n_known + 1, left - len(frames)
                yield Clip(frames=frames, fps=layout.fps, samples=None, sample_rate=codec.sample_rate)
        assert video is not None
        if journal is not None:
            journal.write(i, TokenSample(video=video, audio=audio))
        done += step.n_new
        past.add_video(video[step.n_context :])
        if past.hear is not None and audio is not None:
            past.add_audio(audio)
            samples = past.track.fit(past.hear(audio), step.n_new, fill=done == n_frames)
            yield Clip(frames=None, fps=layout.fps, samples=samples, sample_rate=codec.sample_rate)
