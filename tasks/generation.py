"""Running one sequence of one task: prompt and media ids in, ids of the answer out, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from lm import Engine, Plan, Prefix, Vocabulary
from tasks.errors import InputError
from tasks.model_folder import SamplingDefaults
from tasks.options import Options
from tasks.sequence import Layout, Segment, TokenSample, plan, prefix, split
from tasks.task import CONTINUED, Task


@dataclass
class Tally:
    """What generating has taken so far."""

    ids: int = 0
    passes: int = 0  # of the transformer, prefixes apart
    tested: int = 0  # drafted ids that were judged
    accepted: int = 0  # those of them that were kept


@dataclass(frozen=True)
class Generator:
    """The transformer with what it needs to answer tasks."""

    engine: Engine
    vocab: Vocabulary
    layout: Layout
    defaults: SamplingDefaults
    tally: Tally = field(default_factory=Tally)

    def n_ids(self, task: Task, *, sound: bool, n_context: int = 1) -> int:
        """How many ids `blocks` will draw, forced ones included."""
        return len(self._plan(task, sound, n_context)[0])

    def blocks(
        self,
        task: Task,
        sample: TokenSample,
        options: Options,
        *,
        seed: int,
        sound: bool,
        n_context: int = 1,
        negative: torch.Tensor | None = None,
        known: TokenSample | None = None,
        tick: Callable[[int], None] = lambda n: None,
    ) -> Iterator[TokenSample]:
        """Yield the video so far (k, h, w), input frames included, after each new latent frame; then the audio (Q, F).

        `negative` are the text ids that guidance pushes away from, instead of no text. `known` holds the beginning of
        the answer, which is then not drawn but given back. Each item holds one medium.
        """
        self._check(task, options)
        places, segments = self._plan(task, sound, n_context, known)
        steps = self._steps(task, [sample], places, options, [seed], n_context, negative)
        before = self._frames_before(task, sample, n_context)
        row = self.layout.height * self.layout.width  # ids of a latent frame
        drawn = torch.empty(0, dtype=torch.int64)
        try:
            for step in steps:
                n_before, drawn = len(drawn), torch.cat([drawn, step[0].cpu()])
                tick(step.shape[1])
                for s in segments:
                    old, new = (min(n, s.stop) - s.start for n in (n_before, len(drawn)))
                    if s.name == "video" and new > 0 and new // row > max(old, 0) // row:
                        part = replace(s, stop=s.start + new // row * row, shape=(new // row, *s.shape[1:]))
                        video = split(drawn, (part,), self.vocab)["video"]
                        yield TokenSample(video=video if before is None else torch.cat([before, video]))
                    elif s.name == "audio" and old < new == s.stop - s.start:
                        yield TokenSample(audio=split(drawn, (s,), self.vocab)["audio"])
        finally:  # who has all frames asks for no more
            self._count(len(drawn))

    def answers(
        self, task: Task, samples: Sequence[TokenSample], options: Options, *, seeds: Sequence[int], sound: bool,
        n_context: int = 1, negative: torch.Tensor | None = None, tick: Callable[[int], None] = lambda n: None,
    ) -> list[TokenSample]:  # fmt: skip
        """The whole answers to several samples of a task in one batch: each is what `blocks` gives for it alone."""
        self._check(task, options)
        places, segments = self._plan(task, sound, n_context)
        drawn = []
        for ids in self._steps(task, samples, places, options, seeds, n_context, negative):
            drawn.append(ids.cpu())
            tick(ids.numel())
        self._count(len(places) * len(samples))
        answers = []
        for sample, ids in zip(samples, torch.cat(drawn, dim=1), strict=True):
            made, before = split(ids, segments, self.vocab), self._frames_before(task, sample, n_context)
            video = made.get("video")
            if video is not None and before is not None:
                video = torch.cat([before, video])
            answers.append(TokenSample(video=video, audio=made.get("audio")))
        return answers

    def _steps(
        self, task: Task, samples: Sequence[TokenSample], places: Plan, options: Options, seeds: Sequence[int],
        n_context: int, negative: torch.Tensor | None,
    ) -> Iterator[torch.Tensor]:  # fmt: skip
        """The engine's stream for samples of which all have a prompt, or none."""
        defaults = self.defaults.of(task.name)
        scale = defaults.guidance_scale if options.guidance_scale is None else options.guidance_scale
        sampling = defaults.resolve(options.temperature, options.top_k, options.top_p)
        drawn = [sampling["visual" if b.kind == "video" else b.kind] for b in task.outputs]
        other: Prefix | None = None
        if scale != 1 and any(s.guided for s in drawn):
            unguided = [u for s in samples if (u := _unguided(task, s, negative)) is not None]
            other = self._prefix(task, unguided, n_context) if unguided else None
        return self.engine.stream(
            self._prefix(task, samples, n_context),
            places,
            unconditional=other,
            guidance_scale=scale if other is not None else 1.0,
            sampling=sampling,
            seeds=list(seeds),
            window=options.speculative,
        )

    def _prefix(self, task: Task, samples: Sequence[TokenSample], n_context: int) -> Prefix:
        pairs = [prefix(task, sample, self.vocab, self.layout, n_context) for sample in samples]
        return Prefix([ids for ids, _ in pairs], [positions for _, positions in pairs])

    def _count(self, n_ids: int) -> None:
        self.tally.ids, self.tally.passes = self.tally.ids + n_ids, self.tally.passes + self.engine.passes
        if self.engine.counts is not None:
            self.tally.tested += int(self.engine.counts.tested.sum())
            self.tally.accepted += int(self.engine.counts.accepted.sum())

    def _plan(
        self, task: Task, sound: bool, n_context: int, known: TokenSample | None = None
    ) -> tuple[Plan, tuple[Segment, ...]]:
        block_size = self.engine.block_size
        return plan(task, self.vocab, self.layout, sound=sound, n_context=n_context, block_size=block_size, known=known)

    def _frames_before(self, task: Task, sample: TokenSample, n_context: int) -> torch.Tensor | None:
        """The input latent frames that the output continues."""
        block = task.output("video")
        if block is None or sample.video is None or block.part not in CONTINUED:
            return None
        first = block.frames(self.layout.latent_frames, n_context)[0]
        return sample.video[:first] if first else None

    def _check(self, task: Task, options: Options) -> None:
        if options.speculative and self.engine.block_size > 1:
            raise InputError(f"this model draws {self.engine.block_size} ids at a time: leave out speculative")
        if options.speculative and self.engine.compiled:
            raise InputError("a compiled step draws one id at a time, speculative drafts many: choose one of them")
        if task.token not in self.vocab.special_tokens:
            raise InputError(f"this model was not trained for {task.command}: its vocabulary has no {task.token}")


def _unguided(task: Task, sample: TokenSample, negative: torch.Tensor | None) -> TokenSample | None:
    """What guidance pushes away from: the same with the negative prompt, or with none; where there was no prompt,
    without the clip it is made for; None where there is nothing to leave out."""
    if sample.text is not None:
        return replace(sample, text=negative)
    whole = {b.kind: None for b in task.inputs if b.droppable and b.kind != "text"}
    return replace(sample, **whole) if whole else None


def gather(blocks: Iterator[TokenSample]) -> TokenSample:
    """Run `Generator.blocks` to its end: the whole video and the audio."""
    video = audio = None
    for part in blocks:
        video = video if part.video is None else part.video
        audio = audio if part.audio is None else part.audio
    return TokenSample(video=video, audio=audio)
