"""The tasks as streams of clips: frames and sound as soon as they are known. `AVPoet`'s methods join these parts."""
# Shapes: T frames, H W pixels, N samples, Q audio levels, F audio columns

from __future__ import annotations

import functools
import inspect
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tasks.check import MAX_SECONDS, check_prompt, check_seconds
from tasks.errors import InputError
from tasks.generation import gather
from tasks.long_video import Past, Track, continue_clip, n_columns, n_kept, n_windows_ids
from tasks.options import Options, Ticker, derived_seed
from tasks.sequence import Layout, TokenSample
from tasks.source import Media, Source
from tasks.story import Journal, Prompts, Story
from tasks.table import TASKS, get_task
from tasks.task import Conditioner, Task
from tokenizers_av.clip import Clip, MediaError
from tokenizers_av.media_frames import stretch

if TYPE_CHECKING:
    from tasks.pipeline import AVPoet

EAR_SECONDS = 2.0  # of the old sound, of which the decoder of a continuation knows


@dataclass(frozen=True)
class _Request:
    """What is asked for, checked."""

    row: Task
    prompt: str | None
    source: Source | None
    conditioner: Conditioner | None
    seconds: float | None
    options: Options


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
        audio: Media | None = None,
        seconds: float | None = None,
        **options: Any,
    ) -> Iterator[Clip]:
        """Stream any row of the task table; see `AVPoet.generate`."""
        given = {"prompt": prompt, "image": image, "video": video, "audio": audio}
        return self._run(self._checked(task, given, seconds, options))

    def batch(self, task: str, items: Sequence[Mapping[str, Any]]) -> list[Clip]:
        """Run a row for several sets of inputs that differ in nothing else but their seeds; see `AVPoet.generate`.

        Clips of the model's own length are made in one batch, others one after the other; the clips are the same.
        """
        requests = []
        for item in items:
            given = {name: item.get(name) for name in ("prompt", "image", "video", "audio")}
            options = {k: v for k, v in item.items() if k not in (*given, "seconds")}
            requests.append(self._checked(task, given, item.get("seconds"), options))
        row, opts = requests[0].row, requests[0].options
        alone = row.condition is not None or row.output("video") is None or row.argument_of_length is not None
        if alone or requests[0].seconds is not None or len({r.prompt is None for r in requests}) > 1:
            return [join(self._run(request)) for request in requests]
        codec, generator, layout = self.poet.codec, self.poet.generator, self.poet.config.layout
        given_ids = [self._given(row, request.source) for request in requests]
        if len({n_context for _, n_context in given_ids}) > 1:
            return [join(self._run(request)) for request in requests]
        n_context, sound = given_ids[0][1], opts.sound and row.output("audio") is not None
        samples = [
            replace(ids, text=codec.encode_text(r.prompt)) for (ids, _), r in zip(given_ids, requests, strict=True)
        ]
        tick = Ticker(opts.progress, generator.n_ids(row, sound=sound, n_context=n_context) * len(items))
        answers = generator.answers(
            row, samples, opts, seeds=[r.options.seed for r in requests], sound=sound, n_context=n_context,
            negative=codec.encode_text(opts.negative_prompt), tick=tick,
        )  # fmt: skip
        clips = []
        for sample, answer in zip(samples, answers, strict=True):
            assert answer.video is not None
            frames, heard = codec.decode_video(answer.video), None
            if answer.audio is not None:
                ids = answer.audio if sample.audio is None else torch.cat([sample.audio, answer.audio], dim=1)
                heard = Track(codec).fit(codec.decode_audio(ids), len(frames), fill=True)
            clips.append(Clip(frames, layout.fps, heard, codec.sample_rate))
        return clips

    def _checked(
        self, task: str, given: Mapping[str, Any], seconds: float | None, options: Mapping[str, Any]
    ) -> _Request:
        """Everything about a request that can be wrong, looked at before any model runs."""
        row = get_task(task)
        names = {a.name for a in row.arguments}
        opts = _options({k: v for k, v in options.items() if k not in names})
        check_inputs(row, given)
        arguments = check_arguments(row, options)
        check_length(row, seconds)
        if opts.keep_known and not (row.condition and row.condition.keeps):
            raise InputError(f"{row.command} has no known pixels to keep")
        media = next((given[n] for n in ("image", "video", "audio") if given[n] is not None), None)
        source = None if media is None else Source(media, need="audio" if given["audio"] is not None else "video")
        if source is not None and row.needs_sound and not source.has_audio:
            raise MediaError(f"{source.name}: has no sound, which {row.command} goes on from")
        conditioner = None
        if row.condition is not None and source is not None:
            config = self.poet.config
            conditioner = row.condition.open(source.picture_size(), config.size, config.layout.fps, **arguments)
        return _Request(row, given["prompt"], source, conditioner, seconds, opts)

    def _run(self, r: _Request) -> Iterator[Clip]:
        if r.conditioner is not None:
            assert r.source is not None
            return self._conditioned(r.row, r.prompt, r.source, r.conditioner, r.seconds, r.options)
        if r.row.output("video") is None:
            if r.source is None:
                return self._heard(r.row, r.prompt, r.seconds, r.options)
            return self._sound(r.row, r.source, r.seconds, r.options)
        if r.source is not None and r.row.argument_of_length is not None:
            return self._seen(r.row, r.prompt, r.source, r.seconds, r.options)
        return self._picture(r.row, r.prompt, r.source, r.seconds, r.options)

    def extend(
        self, clip: Media, seconds: float, prompts: Prompts = None, *, journal: Journal | None = None, **options: Any
    ) -> Iterator[Clip]:
        """Stream the clip itself at the model's size and rate, then `seconds` of what follows; see `AVPoet.extend`."""
        opts = _options(options)
        check_seconds(seconds)
        story = Story(prompts, seconds)
        source = Source(clip, need="video")
        n_new = max(1, round(seconds * self.poet.config.layout.fps))
        return self._extended(source, n_new, story, opts, journal)

    def _picture(
        self, row: Task, prompt: str | None, source: Source | None, seconds: float | None, opts: Options
    ) -> Iterator[Clip]:
        """Frames as each latent frame is complete, then the sound; a window at a time after the first window."""
        codec, generator, layout = self.poet.codec, self.poet.generator, self.poet.config.layout
        window = 1 if row.is_image else layout.n_frames
        total = window if seconds is None else max(1, round(seconds * layout.fps))
        sound = opts.sound and row.output("audio") is not None
        given, n_context = self._given(row, source)
        tick = Ticker(opts.progress, generator.n_ids(row, sound=sound, n_context=n_context)
                      + n_windows_ids(generator, layout.latent_frames, max(0, total - window), sound))  # fmt: skip
        text = codec.encode_text(prompt)
        blocks = generator.blocks(
            row, replace(given, text=text), opts, seed=opts.seed, sound=sound, n_context=n_context,
            negative=codec.encode_text(opts.negative_prompt), tick=tick,
        )  # fmt: skip
        past = Past.begin(codec, sound)
        if sound and given.audio is not None:
            past.add_audio(given.audio)
            assert past.hear is not None
            heard = past.hear(given.audio)
        else:
            heard = torch.zeros(0)
        n_decoded = shown = 0  # latent frames, frames
        for part in blocks:
            if part.video is not None and shown < total:
                new = past.decode(part.video[n_decoded:])[: total - shown]
                past.add_video(part.video[n_decoded:])
                n_decoded, shown = len(part.video), shown + len(new)
                yield Clip(frames=new, fps=layout.fps, samples=None, sample_rate=codec.sample_rate)
            if part.audio is not None and past.hear is not None:
                past.add_audio(part.audio)
                samples = torch.cat([heard, past.hear(part.audio)])
                samples = past.track.fit(samples, min(window, total), fill=total <= window)
                yield Clip(frames=None, fps=layout.fps, samples=samples, sample_rate=codec.sample_rate)
            if shown == total and not sound:
                break
        if shown < total:
            yield from continue_clip(
                generator, past, n_frames=total - shown, story=Story(prompt), options=opts, tick=tick
            )
        tick.finish()

    def _given(self, row: Task, source: Source | None) -> tuple[TokenSample, int]:
        """The picture and sound that a row takes as input, and how many latent frames count as context."""
        if source is None:
            return TokenSample(), 1
        codec, layout = self.poet.codec, self.poet.config.layout
        block = row.input("video")
        assert block is not None
        if block.part == "first":
            return TokenSample(video=codec.encode_video(source.first_frame(codec.size, codec.sample_rate))), 1
        frames, samples = self._last_second(source, sound=row.needs_sound)
        video, audio = codec.encode_video(frames), None
        if samples is not None:
            n = layout.columns(len(video)) * codec.audio.hop_length
            audio = codec.encode_audio(torch.cat([torch.zeros(max(0, n - len(samples))), samples])[-n:])
        return TokenSample(video=video, audio=audio), len(video)

    def _last_second(self, source: Source, *, sound: bool) -> tuple[Tensor, Tensor | None]:
        """The last frames (T, H, W, 3) that fill whole latent frames, and the sound up to their end."""
        codec, layout = self.poet.codec, self.poet.config.layout
        tail, ear = torch.empty(0, *codec.size, 3, dtype=torch.uint8), torch.zeros(0)
        windows = source.windows(sample_rate=codec.sample_rate, fps=layout.fps, size=codec.size, audio=sound)
        for window in windows:
            assert window.frames is not None
            tail = torch.cat([tail, window.frames])[-n_kept(layout) :]
            if window.samples is not None:
                ear = torch.cat([ear, window.samples])[-round(EAR_SECONDS * codec.sample_rate) :]
        if not len(tail):
            raise MediaError(f"{source.name}: holds no frame")
        return _whole_latents(tail, layout.temporal_stride), ear if sound else None

    def _conditioned(
        self, row: Task, prompt: str | None, source: Source, conditioner: Conditioner, seconds: float | None,
        opts: Options,
    ) -> Iterator[Clip]:  # fmt: skip
        """What is made of a video of any length: in windows, each of which goes on from the frames made before."""
        codec, layout = self.poet.codec, self.poet.config.layout
        text = codec.encode_text(prompt)
        still = row.fixed_length  # one window, from an image
        size = conditioner.canvas if opts.keep_known else even_size(conditioner.canvas, codec.size)

        def chunks() -> Iterator[Tensor]:
            left = None if seconds is None else max(1, round(seconds * layout.fps))
            if still:
                yield source.whole_frame().expand(layout.n_frames, -1, -1, -1)[:left]
                return
            for clip in source.windows(sample_rate=codec.sample_rate, fps=layout.fps, audio=False):
                assert clip.frames is not None
                frames = clip.frames if left is None else clip.frames[:left]
                left = None if left is None else left - len(frames)
                yield frames
                if left == 0:
                    return

        def windows() -> Iterator[tuple[TokenSample, Tensor]]:
            first, hop = 0, layout.n_frames - n_kept(layout) or layout.n_frames
            for frames, _ in _sliding(chunks(), layout.n_frames, hop):
                shown = conditioner.frames(frames, first)
                yield TokenSample(text, condition=codec.encode_video(shown)), frames
                first += hop

        n_frames = layout.n_frames if still else self._n_frames(source, seconds)
        tick = Ticker(opts.progress, _n_sliding(layout, n_frames) * generator_ids(self.poet, row))
        done = 0
        for new, frames in self._sliding_answers(row, windows(), opts, tick):
            made = stretch(new[: n_frames - done], *size)
            if opts.keep_known:
                made = conditioner.composite(made, frames[: len(made)], done)
            done += len(made)
            if len(made):
                yield Clip(frames=made, fps=layout.fps, samples=None, sample_rate=codec.sample_rate)
        tick.finish()

    def _sliding_answers(
        self, row: Task, windows: Iterator[tuple[TokenSample, Tensor]], opts: Options, tick: Ticker
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The new frames of each window, and what of the window's own frames lies there.

        A window begins with the last frames that were made, which are encoded as the known beginning of its answer.
        """
        codec, layout = self.poet.codec, self.poet.config.layout
        negative = codec.encode_text(opts.negative_prompt)
        made: Tensor | None = None
        for i, (sample, frames) in enumerate(windows):
            known, n_known = None, 0
            if made is not None:
                n_known = n_kept(layout)
                known = TokenSample(video=codec.encode_video(made[-n_known:]))
            answer = gather(self.poet.generator.blocks(
                row, sample, opts, seed=derived_seed(opts.seed, *(("window", i) if i else ())), sound=False,
                negative=negative, known=known, tick=tick,
            ))  # fmt: skip
            assert answer.video is not None
            made = codec.decode_video(answer.video)
            yield made[n_known:], frames[n_known:]

    def _seen(
        self, row: Task, prompt: str | None, source: Source, seconds: float | None, opts: Options
    ) -> Iterator[Clip]:
        """A picture for a sound, a window at a time, with the sound as it came."""
        codec, layout = self.poet.codec, self.poet.config.layout
        text = codec.encode_text(prompt)
        length = min(source.seconds or layout.seconds, seconds or MAX_SECONDS)
        n_frames = max(1, round(length * layout.fps))
        hop = layout.n_frames - n_kept(layout) or layout.n_frames
        step = round(hop / layout.fps * layout.audio_rate)  # columns

        def windows() -> Iterator[tuple[TokenSample, Tensor]]:
            encode, ids = codec.audio_encoder(), torch.empty(layout.n_codebooks, 0, dtype=torch.int64)
            quiet = codec.encode_audio(torch.zeros(layout.audio_frames * codec.audio.hop_length))
            due, heard = layout.audio_frames, self._samples(source, length)
            for _ in range(_n_sliding(layout, n_frames)):
                while ids.shape[1] < due and (chunk := next(heard, None)) is not None:
                    ids = torch.cat([ids, encode(chunk)], dim=1)
                window = torch.cat([ids, quiet], dim=1)[:, : layout.audio_frames]
                yield TokenSample(text, audio=window), torch.empty(0)
                ids = ids[:, step:]

        tick = Ticker(opts.progress, _n_sliding(layout, n_frames) * generator_ids(self.poet, row))
        sound, waiting, done = self._samples(source, length), torch.zeros(0), 0
        track = Track(codec)
        for new, _ in self._sliding_answers(row, windows(), opts, tick):
            frames = new[: n_frames - done]
            done += len(frames)
            while len(waiting) < codec.n_samples(len(frames)) + 1 and (chunk := next(sound, None)) is not None:
                waiting = torch.cat([waiting, chunk])
            samples = track.fit(waiting, len(frames), fill=True)
            waiting = waiting[len(samples) :]
            if len(frames):
                yield Clip(frames=frames, fps=layout.fps, samples=samples, sample_rate=codec.sample_rate)
        tick.finish()

    def _samples(self, source: Source, seconds: float) -> Iterator[Tensor]:
        """The first `seconds` of the sound at the model's rate, about a second at a time."""
        codec, left = self.poet.codec, round(seconds * self.poet.codec.sample_rate)
        for window in source.windows(sample_rate=codec.sample_rate, video=False):
            assert window.samples is not None
            yield window.samples[:left].float()
            left -= len(window.samples)
            if left <= 0:
                return

    def _heard(self, row: Task, prompt: str | None, seconds: float | None, opts: Options) -> Iterator[Clip]:
        """A sound for a prompt, a window at a time, each with the last second of the one before as its beginning."""
        codec, generator, layout = self.poet.codec, self.poet.generator, self.poet.config.layout
        total = codec.n_samples(layout.n_frames) if seconds is None else round(seconds * codec.sample_rate)
        hop = round((layout.n_frames - n_kept(layout)) / layout.fps * layout.audio_rate) or layout.audio_frames
        n_windows = 1 + max(0, -(-(total // codec.audio.hop_length - layout.audio_frames) // hop))
        tick = Ticker(opts.progress, n_windows * generator_ids(self.poet, row))
        sample, hear = TokenSample(codec.encode_text(prompt)), codec.audio_decoder()
        known: Tensor | None = None
        for i in range(n_windows):
            audio = gather(generator.blocks(
                row, sample, opts, seed=derived_seed(opts.seed, *(("window", i) if i else ())), sound=True,
                negative=codec.encode_text(opts.negative_prompt),
                known=None if known is None else TokenSample(audio=known), tick=tick,
            )).audio  # fmt: skip
            assert audio is not None
            new = audio if known is None else audio[:, known.shape[1] :]
            samples = hear(new)[:total]
            total, known = total - len(samples), audio[:, hop:] if hop < audio.shape[1] else None
            yield Clip(frames=None, fps=layout.fps, samples=samples, sample_rate=codec.sample_rate)
        if total:
            yield Clip(frames=None, fps=layout.fps, samples=torch.zeros(total), sample_rate=codec.sample_rate)
        tick.finish()

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
        """Samples in order: of the first whole window, then of what each further window adds.

        A window's sound begins with what was made for the frames that it shares with the one before.
        """
        codec, generator, layout = self.poet.codec, self.poet.generator, self.poet.config.layout
        hop = layout.n_frames - n_kept(layout) or layout.n_frames
        step = n_columns(layout, hop)
        known: TokenSample | None = None
        tick = Ticker(opts.progress, _n_sliding(layout, max(1, round((seconds or 0) * layout.fps)))
                      * generator.n_ids(row, sound=True))  # fmt: skip
        hear = codec.audio_decoder()
        chunks = source.frames(layout.fps, codec.size, codec.sample_rate)
        for i, (frames, n_new) in enumerate(_sliding(chunks, layout.n_frames, hop)):
            audio = gather(generator.blocks(
                row, TokenSample(video=codec.encode_video(frames)), opts,
                seed=derived_seed(opts.seed, *(("sound", i) if i else ())), sound=True, known=known, tick=tick,
            )).audio  # fmt: skip
            assert audio is not None
            known = TokenSample(audio=audio[:, step:])
            yield hear(audio if i == 0 else audio[:, -n_columns(layout, n_new) :])
        tick.finish()

    def _extended(
        self, source: Source, n_new: int, story: Story, opts: Options, journal: Journal | None
    ) -> Iterator[Clip]:
        codec, generator, layout = self.poet.codec, self.poet.generator, self.poet.config.layout
        past = Past.begin(codec, opts.sound)
        track = past.track
        tail = torch.empty(0, *codec.size, 3, dtype=torch.uint8)
        ear = torch.zeros(0)  # the last sound so far
        n_heard = round(EAR_SECONDS * codec.sample_rate)
        windows = source.windows(sample_rate=codec.sample_rate, fps=layout.fps, size=codec.size, audio=opts.sound)
        for window in windows:
            assert window.frames is not None
            tail = torch.cat([tail, window.frames])[-n_kept(layout) :]
            samples = None
            if opts.sound:
                samples = torch.zeros(0) if window.samples is None else window.samples.float()
                samples = track.fit(samples, len(window.frames), fill=True)
                ear = torch.cat([ear, samples])[-n_heard:]
            yield Clip(frames=window.frames, fps=layout.fps, samples=samples, sample_rate=codec.sample_rate)
        video = codec.encode_video(_whole_latents(tail, layout.temporal_stride))
        past.decode(video)
        past.add_video(video)
        if past.hear is not None:
            heard = codec.encode_audio(ear)
            past.hear(heard)
            past.add_audio(heard)
        tick = Ticker(opts.progress, n_windows_ids(generator, len(video), n_new, opts.sound))
        yield from continue_clip(
            generator, past, n_frames=n_new, story=story, options=opts, tick=tick, journal=journal
        )
        tick.finish()

    def _n_frames(self, source: Source, seconds: float | None) -> int:
        """Frames at the model's rate of a source, or of its first `seconds`."""
        layout = self.poet.config.layout
        if source.is_image:
            return 1
        length = min(source.seconds or MAX_SECONDS, seconds or MAX_SECONDS)
        return max(1, round(length * layout.fps))


def check_inputs(row: Task, given: Mapping[str, object]) -> None:
    """Each input of the row is there unless optional, and nothing else; raises InputError. Needs no model."""
    for block in row.inputs:
        value = given.get(block.argument)
        if value is None and not block.optional:
            raise InputError(f"{row.command} needs a{'n' * (block.argument[0] in 'aio')} {block.argument}")
        if block.kind == "text" and value is not None:
            check_prompt(value)
    known = {b.argument for b in row.inputs}
    for name, value in given.items():
        if value is not None and name not in known:
            takes = " and ".join(dict.fromkeys(b.argument for b in row.inputs)) or "nothing but a seed"
            raise InputError(f"{row.command} takes {takes}, it takes no {name}")


def check_arguments(row: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    """The further arguments of a row, parsed; raises InputError or MediaError. Needs no model."""
    values = {}
    for argument in row.arguments:
        value = given.get(argument.name)
        if value is None and argument.required:
            raise InputError(f"{row.command} needs {argument.name}: {argument.help}")
        values[argument.name] = argument.default if value is None else argument.parse(value)
    return values


def check_length(row: Task, seconds: float | None) -> None:
    """Raise InputError where a row cannot make so many seconds."""
    if seconds is None:
        return
    check_seconds(seconds)
    if row.fixed_length:
        raise InputError(f"{row.command} makes one {'image' if row.is_image else 'clip'}, it takes no seconds")


def even_size(canvas: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(H, W), even, with the proportions of `canvas` and about as many pixels as `size`."""
    scale = (size[0] * size[1] / (canvas[0] * canvas[1])) ** 0.5
    height, width = (max(2, 2 * round(n * scale / 2)) for n in canvas)
    return height, width


def generator_ids(poet: AVPoet, row: Task) -> int:
    """Ids of one answer."""
    return poet.generator.n_ids(row, sound=row.output("video") is None)


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


def _whole_latents(tail: Tensor, stride: int) -> Tensor:
    """The last of the frames that fill whole latent frames."""
    return tail[len(tail) - 1 - (len(tail) - 1) // stride * stride :]


def _n_sliding(layout: Layout, n_frames: int) -> int:
    """Windows of `_sliding` over so many frames."""
    hop = layout.n_frames - n_kept(layout) or layout.n_frames
    return 1 + -(-max(0, n_frames - layout.n_frames) // hop)


def _options(options: dict[str, Any]) -> Options:
    try:
        return Options(**options)
    except TypeError as error:
        names = ", ".join(Options.__dataclass_fields__)
        raise InputError(f"{str(error).split('__init__() ')[-1]}; the options are {names}") from None
