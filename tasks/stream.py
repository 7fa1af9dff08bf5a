"""The tasks as streams of clips: frames and sound as soon as they are known. `AVPoet`'s methods join these parts."""
# Shapes: T frames, H W pixels, N samples, Q audio levels, F audio columns

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from tasks.check import check_opencv, check_seed
from tasks.codec import even_size
from tasks.enlarge import SCALE, check_enlarging, enlarged, window_for
from tasks.errors import InputError
from tasks.journal import Journal
from tasks.long_video import Ending, Past, Track, continue_clip, n_windows_ids
from tasks.model_folder import NO_HEAD
from tasks.options import Options, Ticker
from tasks.request import MEDIA, Request, extension_of
from tasks.sequence import TokenSample
from tasks.sliding import sound_for_text, sound_for_video, video_for_sound, video_from_video
from tasks.source import ONE_FRAME, Media, Source
from tasks.story import Prompts, Story
from tasks.table import TASKS
from tasks.task import CONTINUED, Task
from tokenizers_av.clip import Clip
from tokenizers_av.media_frames import stretch

if TYPE_CHECKING:
    from tasks.pipeline import AVPoet
    from tokenizers_av.superres import SuperRes


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
        request = Request.of(self.poet.config, task, given=given, seconds=seconds, options=options)
        return self.answer(request)

    def batch(self, task: str, items: Sequence[Mapping[str, Any]]) -> list[Clip]:
        """Run a row for several sets of inputs that differ in nothing else but their seeds; see `AVPoet.generate`.

        Clips of the model's own length are made in one batch, others one after the other; the clips are the same.
        """
        requests = []
        for item in items:
            given = {name: item.get(name) for name in ("prompt", *MEDIA)}
            options = {k: v for k, v in item.items() if k not in (*given, "seconds")}
            requests.append(
                Request.of(self.poet.config, task, given=given, seconds=item.get("seconds"), options=options)
            )
        row, opts = requests[0].row, requests[0].options
        if opts.superres:
            self._head()  # raises before any work where there is none
        alone = row.condition is not None or row.output("video") is None or row.argument_of_length is not None
        if alone or requests[0].seconds is not None or len({r.prompt is None for r in requests}) > 1:
            return [join(self.answer(r)) for r in requests]
        codec, generator, layout = self.poet.codec, self.poet.generator, self.poet.config.layout
        given_ids = [self._given(row, request.source) for request in requests]
        if len({n_context for _, n_context in given_ids}) > 1:
            return [join(self.answer(r)) for r in requests]
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
        for request, sample, answer in zip(requests, samples, answers, strict=True):
            assert answer.video is not None
            frames, heard = codec.decode_video(answer.video), None
            if answer.audio is not None:
                ids = answer.audio if sample.audio is None else torch.cat([sample.audio, answer.audio], dim=1)
                heard = Track(codec).fit(codec.decode_audio(ids), len(frames), fill=True)
            clip = Clip(frames, layout.fps, heard, codec.sample_rate)
            clips.append(join(self._finished(iter([clip]), request.options, request.source, request.prompt)))
        return clips

    def answer(self, r: Request) -> Iterator[Clip]:
        """Stream what a request for the same model asks for, once."""
        block = r.row.output("video")
        source = r.source if block and block.part in CONTINUED else None
        return self._finished(self._run(r), r.options, source, r.prompt)

    def _run(self, r: Request) -> Iterator[Clip]:
        codec, generator = self.poet.codec, self.poet.generator
        if r.conditioner is not None:
            return video_from_video(codec, generator, r)
        if r.row.output("video") is None:
            return (sound_for_text if r.source is None else sound_for_video)(codec, generator, r)
        if r.source is not None and r.row.argument_of_length is not None:
            return video_for_sound(codec, generator, r)
        return self._picture(r)

    def extend(
        self, clip: Media, seconds: float, prompts: Prompts = None, *, journal: Journal | None = None, **options: Any
    ) -> Iterator[Clip]:
        """Stream the clip itself at the model's rate, then `seconds` of what follows; see `AVPoet.extend`."""
        story, opts = extension_of(seconds, prompts, options)
        source = Source(clip, need="video")
        if opts.superres:
            self._head()  # raises before any work where there is none
        n_new = max(1, round(seconds * self.poet.config.layout.fps))
        return self._extended(source, n_new, story, opts, journal)

    def superres(
        self, clip: Media, scale: int = 4, *, rate: int = 1, steps: int | None = None, noise: float | None = None,
        seed: int = 0, mend: bool = False, prompt: str | None = None, memory_gb: float | None = None,
    ) -> Iterator[Clip]:  # fmt: skip
        """Stream a clip enlarged; see `AVPoet.superres`."""
        head, source, codec = self._head(), Source(clip, need="video"), self.poet.codec
        check_enlarging(head.config, source, scale, rate, steps, noise, prompt)
        parts = (codec.video, codec.audio, self.poet.lm, head)
        n_parameters = sum(p.numel() for part in parts for p in part.parameters())
        window = window_for(head.config, source, scale, steps, self.poet.dtype, n_parameters, memory_gb)
        frames = source.windows(sample_rate=source.sample_rate or codec.sample_rate, seconds=ONE_FRAME)
        return enlarged(frames, head, scale, rate=rate, steps=steps, noise=noise, seed=check_seed(seed),
                        keep=not mend, text=codec.encode_text(prompt), window=window, alone=source.is_image)

    def _finished(
        self, parts: Iterator[Clip], opts: Options, source: Source | None, prompt: str | None = None, *,
        drawn: bool = True,
    ) -> Iterator[Clip]:  # fmt: skip
        """The parts, through the head if asked, then in the proportions of what they go on from, if anything; what is
        not `drawn` by the model is kept as it is."""
        if opts.superres:
            text = self.poet.codec.encode_text(prompt)
            parts = enlarged(parts, self._head(), SCALE, seed=opts.seed, keep=not drawn, text=text)
        if source is None:
            return parts
        scale = SCALE if opts.superres else 1
        height, width = even_size(source.picture_size(), self.poet.config.size)
        return _stretched(parts, (scale * height, scale * width))

    def _head(self) -> SuperRes:
        if self.poet.superres_head is None:
            raise InputError(f"this model {NO_HEAD}")
        check_opencv()
        return self.poet.superres_head

    def _picture(self, r: Request) -> Iterator[Clip]:
        """Frames as each latent frame is complete, then the sound; a window at a time after the first window."""
        codec, generator, layout = self.poet.codec, self.poet.generator, self.poet.config.layout
        row, opts = r.row, r.options
        window = 1 if row.is_image else layout.n_frames
        total = window if r.seconds is None else max(1, round(r.seconds * layout.fps))
        sound = opts.sound and row.output("audio") is not None
        given, n_context = self._given(row, r.source)
        tick = Ticker(opts.progress, generator.n_ids(row, sound=sound, n_context=n_context)
                      + n_windows_ids(generator, layout.latent_frames, max(0, total - window), sound))  # fmt: skip
        text = codec.encode_text(r.prompt)
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
                generator, past, n_frames=total - shown, story=Story(r.prompt), options=opts, tick=tick
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
        end, audio = Ending(codec), None
        deque(end.read(source, Track(codec) if row.needs_sound else None), maxlen=0)
        video = codec.encode_video(end.frames)
        if row.needs_sound:
            n = layout.columns(len(video)) * codec.audio.hop_length
            audio = codec.encode_audio(torch.cat([torch.zeros(max(0, n - len(end.samples))), end.samples])[-n:])
        return TokenSample(video=video, audio=audio), len(video)

    def _extended(
        self, source: Source, n_new: int, story: Story, opts: Options, journal: Journal | None
    ) -> Iterator[Clip]:
        codec, generator = self.poet.codec, self.poet.generator
        past = Past.begin(codec, opts.sound)
        end = Ending(codec)
        given = end.read(source, past.track if opts.sound else None)
        yield from self._finished(given, opts, source, drawn=False)
        video = codec.encode_video(end.frames)
        past.decode(video)
        past.add_video(video)
        if past.hear is not None:
            heard = codec.encode_audio(end.samples)
            past.hear(heard)
            past.add_audio(heard)
        tick = Ticker(opts.progress, n_windows_ids(generator, len(video), n_new, opts.sound))
        new = continue_clip(generator, past, n_frames=n_new, story=story, options=opts, tick=tick, journal=journal)
        yield from self._finished(new, opts, source, story.prompt(0.0, n_new / codec.layout.fps))
        tick.finish()


def _stretched(parts: Iterable[Clip], size: tuple[int, int]) -> Iterator[Clip]:
    """The parts with their frames at another size."""
    for part in parts:
        yield part if part.frames is None else replace(part, frames=stretch(part.frames, *size))


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
