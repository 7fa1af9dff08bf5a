"""The tasks as streams of clips: frames and sound as soon as they are known. `AVPoet`'s methods join these parts."""
# Shapes: T frames, H W pixels, N samples, Q audio levels, F audio columns

from __future__ import annotations

import functools
import inspect
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tasks.check import check_prompt, check_prompts, check_seconds
from tasks.errors import InputError
from tasks.long_video import Track, continue_clip, n_columns, n_kept, n_windows_ids, sound_columns
from tasks.options import Options, Ticker, derived_seed
from tasks.sequence import TokenSample
from tasks.source import Media, Source
from tasks.table import TASKS, Task, get_task
from tokenizers_av.clip import Clip

if TYPE_CHECKING:
    from tasks.pipeline import AVPoet

EAR_SECONDS = 2.0  # of the old sound, of which the decoder of a continuation knows


class Stream:
    """The methods of `AVPoet`, each yielding Clips whose frames and samples, joined, are those of the whole.

    A part has frames, samples, or both. Arguments are checked when called, before the first part is asked for.
    """

    def __init__(self, poet: AVPoet) -> None:
        self.poet = poet

    def __getattr__(self, name: str) -> Any:
        """`stream.text_to_video(...)`: the signature of the pipeline's method, if the task has one of its own."""
        if name not in TASKS:
            raise AttributeError(f"no task {name!r}, expected one of {', '.join(TASKS)}")
        method = getattr(type(self.poet), name, None)
        if method is None:
            return functools.partial(self.generate, name)

        @functools.wraps(method)
        def streamed(*args: Any, **options: Any) -> Iterator[Clip]:
            given = inspect.signature(method).bind(self.poet, *args, **options).arguments
            return self.generate(name, **{k: v for k, v in given.items() if k != "self"})

        return streamed

    def generate(
        self,
        task: str,
        *,
        prompt: str | None = None,
        image: Media | None = None,
        video: Media | None = None,
        seconds: float | None = None,
        **options: Any,
    ) -> Iterator[Clip]:
        """Stream any row of the task table; see `AVPoet.generate`."""
        row = get_task(task)
        opts = _options(options)
        given = {"prompt": prompt, "image": image, "video": video}
        check_inputs(row, given)
        if seconds is not None:
            check_seconds(seconds)
            if row.is_image:
                raise InputError(f"{row.command} makes one image, it takes no seconds")
        media = next((m for m in (image, video) if m is not None), None)
        source = None if media is None else Source(media, need="video")
        if row.output("video") is None:
            assert source is not None
            return self._sound(row, source, seconds, opts)
        return self._picture(row, prompt, source, seconds, opts)

    def extend(
        self, clip: Media, seconds: float, prompts: Sequence[str] | str | None = None, **options: Any
    ) -> Iterator[Clip]:
        """Stream the clip itself at the model's size and rate, then `seconds` of what follows; see `AVPoet.extend`."""
        opts = _options(options)
        check_seconds(seconds)
        texts = check_prompts(prompts)
        source = Source(clip, need="video")
        return self._extended(source, max(1, round(seconds * self.poet.config.layout.fps)), texts, opts)

    def _picture(
        self, row: Task, prompt: str | None, source: Source | None, seconds: float | None, opts: Options
    ) -> Iterator[Clip]:
        """Frames as each latent frame is complete, then the sound; a window at a time after the first window."""
        codec, generator, layout = self.poet.codec, self.poet.generator, self.poet.config.layout
        window = 1 if row.is_image else layout.n_frames
        total = window if seconds is None else max(1, round(seconds * layout.fps))
        sound = opts.sound and row.output("audio") is not None
        video, n_context = self._input_ids(row, source)
        tick = Ticker(opts.progress, generator.n_ids(row, sound=sound, n_context=n_context)
                      + n_windows_ids(generator, window, max(0, total - window), sound))  # fmt: skip
        blocks = generator.blocks(
            row,
            TokenSample(codec.encode_text(prompt), video),
            opts,
            seed=opts.seed,
            sound=sound,
            n_context=n_context,
            negative=codec.encode_text(opts.negative_prompt),
            tick=tick,
        )
        track = Track(codec)
        decode, hear = codec.video_decoder(), codec.audio_decoder()
        n_decoded = shown = 0  # latent frames, frames
        tail = torch.empty(0, *codec.size, 3, dtype=torch.uint8)
        for part in blocks:
            if part.video is not None and shown < total:
                new = decode(part.video[n_decoded:])[: total - shown]
                n_decoded, shown = len(part.video), shown + len(new)
                tail = torch.cat([tail, new])[-n_kept(layout) :]
                yield Clip(frames=new, fps=layout.fps, samples=None, sample_rate=codec.sample_rate)
            if part.audio is not None:
                samples = track.fit(hear(part.audio), min(window, total), fill=total <= window)
                yield Clip(frames=None, fps=layout.fps, samples=samples, sample_rate=codec.sample_rate)
            if shown == total and not sound:
                break
        if shown < total:
            yield from continue_clip(
                generator, codec, tail=tail, hear=hear if sound else None, track=track, n_frames=total - shown,
                prompts=[prompt] if prompt is not None else [], options=opts, tick=tick,
            )  # fmt: skip
        tick.finish()

    def _input_ids(self, row: Task, source: Source | None) -> tuple[Tensor | None, int]:
        """The latent frames a row takes as input, and how many of them count as context."""
        if source is None:
            return None, 1
        codec, layout = self.poet.codec, self.poet.config.layout
        block = row.input("video")
        assert block is not None
        if block.part == "first":
            return codec.encode_video(source.first_frame(codec.size, codec.sample_rate)), 1
        tail = source.last_frames(n_kept(layout), layout.fps, codec.size, codec.sample_rate)
        tail = tail[len(tail) - 1 - (len(tail) - 1) // layout.temporal_stride * layout.temporal_stride :]
        ids = codec.encode_video(tail)
        return ids, len(ids)

    def _sound(self, row: Task, source: Source, seconds: float | None, opts: Options) -> Iterator[Clip]:
        """The picture as it came, and a sound for it, about a second at a time."""
        codec = self.poet.codec
        length = seconds if source.seconds is None else min(source.seconds, seconds or source.seconds)
        heard = self._sound_parts(row, source, length, opts)
        kept = torch.zeros(0)
        n_frames = n_samples = 0
        for window in source.windows(sample_rate=codec.sample_rate, audio=False):
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
        heard.close()

    def _sound_parts(
        self, row: Task, source: Source, seconds: float | None, opts: Options
    ) -> Generator[Tensor]:
        """Samples in order: of the first whole window, then of what each further window adds."""
        codec, generator, layout = self.poet.codec, self.poet.generator, self.poet.config.layout
        hop = layout.n_frames - n_kept(layout) or layout.n_frames
        n_frames = max(1, round((seconds or 0) * layout.fps))
        n_windows = 1 + -(-max(0, n_frames - layout.n_frames) // hop)
        tick = Ticker(opts.progress, n_windows * generator.n_ids(row, sound=True))
        hear = codec.audio_decoder()
        chunks = source.frames(layout.fps, codec.size, codec.sample_rate)
        for i, (frames, n_new) in enumerate(_sliding(chunks, layout.n_frames, hop)):
            ids = codec.encode_video(frames)
            new = sound_columns(generator, ids, opts, derived_seed(opts.seed, *(("sound", i) if i else ())), tick)
            yield hear(new if i == 0 else new[:, -n_columns(layout, n_new) :])
        tick.finish()

    def _extended(self, source: Source, n_new: int, prompts: list[str], opts: Options) -> Iterator[Clip]:
        codec, generator, layout = self.poet.codec, self.poet.generator, self.poet.config.layout
        track = Track(codec)
        tail = torch.empty(0, *codec.size, 3, dtype=torch.uint8)
        ear = torch.zeros(0)  # the last sound so far
        n_heard = round(EAR_SECONDS * codec.sample_rate)
        n_frames = 0
        windows = source.windows(sample_rate=codec.sample_rate, fps=layout.fps, size=codec.size, audio=opts.sound)
        for window in windows:
            assert window.frames is not None
            tail = torch.cat([tail, window.frames])[-n_kept(layout) :]
            n_frames += len(window.frames)
            samples = None
            if opts.sound:
                samples = torch.zeros(0) if window.samples is None else window.samples.float()
                samples = track.fit(samples, len(window.frames), fill=True)
                ear = torch.cat([ear, samples])[-n_heard:]
            yield Clip(frames=window.frames, fps=layout.fps, samples=samples, sample_rate=codec.sample_rate)
        hear = codec.audio_decoder() if opts.sound else None
        if hear is not None:
            hear(codec.encode_audio(ear))
        tick = Ticker(opts.progress, n_windows_ids(generator, n_frames, n_new, opts.sound))
        yield from continue_clip(
            generator, codec, tail=tail, hear=hear, track=track, n_frames=n_new, prompts=prompts, options=opts,
            tick=tick,
        )  # fmt: skip
        tick.finish()


def check_inputs(row: Task, given: Mapping[str, object]) -> None:
    """Each input of the row is there unless optional, and nothing else; raises InputError. Needs no model."""
    for block in row.inputs:
        value = given.get(block.argument)
        if value is None and not block.optional:
            raise InputError(f"{row.command} needs a {block.argument}")
        if block.kind == "text" and value is not None:
            check_prompt(value)
    known = {b.argument for b in row.inputs}
    for name, value in given.items():
        if value is not None and name not in known:
            takes = " and ".join(b.argument for b in row.inputs) or "nothing but a seed"
            raise InputError(f"{row.command} takes {takes}, it takes no {name}")


def join(parts: Iterable[Clip]) -> Clip:
    """One Clip of all frames and samples, in order; fps is that of the first part."""
    frames, samples = [], []
    first: Clip | None = None
    for part in parts:
        first = first or part
        if part.frames is not None:
            frames.append(part.frames)
        if part.samples is not None:
            samples.append(part.samples)
    if first is None:
        raise InputError("there is no part to join")
    return Clip(
        frames=torch.cat(frames) if frames else None,
        fps=first.fps,
        samples=torch.cat(samples) if samples else None,
        sample_rate=first.sample_rate,
    )


def _sliding(chunks: Iterator[Tensor], size: int, hop: int) -> Iterator[tuple[Tensor, int]]:
    """Windows (size, ...) of frames, each `hop` after the last, and how many frames of each are new.

    A stream that ends inside a window is continued with its last frame.
    """
    window: Tensor | None = None
    n_new = size
    for chunk in chunks:
        window = chunk if window is None else torch.cat([window, chunk])
        while len(window) >= size:
            yield window[:size], n_new
            window, n_new = window[hop:], hop
    if window is not None and len(window) > size - n_new:  # size - n_new of them were part of the last window
        yield torch.cat([window, window[-1:].expand(size - len(window), *window.shape[1:])]), n_new


def _options(options: dict[str, Any]) -> Options:
    try:
        return Options(**options)
    except TypeError as error:
        names = ", ".join(Options.__dataclass_fields__)
        raise InputError(f"{str(error).split('__init__() ')[-1]}; the options are {names}") from None
