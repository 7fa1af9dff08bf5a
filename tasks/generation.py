"""Running one sequence of one task: prompt and media ids in, ids of the answer out, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from lm import LM, Prefix, Vocabulary, generate_stream
from tasks.errors import InputError
from tasks.model_folder import SamplingDefaults
from tasks.options import Options
from tasks.sequence import Layout, TokenSample, plan, prefix, split
from tasks.table import Task


@dataclass(frozen=True)
class Generator:
    """The transformer with what it needs to answer tasks."""

    lm: LM
    vocab: Vocabulary
    layout: Layout
    defaults: SamplingDefaults

    def n_ids(self, task: Task, *, sound: bool, n_context: int = 1) -> int:
        """How many ids `blocks` will draw, forced ones included."""
        return len(plan(task, self.vocab, self.layout, sound=sound, n_context=n_context)[0])

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
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[TokenSample]:
        """Yield the video so far (k, h, w), input frames included, after each new latent frame; then the audio (Q, F).

        `negative` are the text ids that guidance pushes away from, instead of no text. Each item holds one medium.
        """
        self._check(task)
        places, segments = plan(task, self.vocab, self.layout, sound=sound, n_context=n_context)
        ids, positions = prefix(task, sample, self.vocab, self.layout, n_context)
        scale = self.defaults.guidance_scale if options.guidance_scale is None else options.guidance_scale
        other: Prefix | None = None
        if sample.text is not None and scale != 1:
            unprompted = replace(sample, text=negative)
            other_ids, other_positions = prefix(task, unprompted, self.vocab, self.layout, n_context)
            other = Prefix([other_ids], [other_positions])
        steps = generate_stream(
            self.lm,
            Prefix([ids], [positions]),
            places,
            unconditional=other,
            guidance_scale=scale if other is not None else 1.0,
            sampling=self.defaults.resolve(options.temperature, options.top_k, options.top_p),
            seeds=[seed],
        )
        before = self._frames_before(task, sample, n_context)
        row = self.layout.height * self.layout.width  # ids of a latent frame
        drawn: list[torch.Tensor] = []
        for step in steps:
            drawn.append(step[0])
            tick()
            for s in segments:
                n = len(drawn) - s.start
                if s.name == "video" and 0 < n <= s.stop - s.start and n % row == 0:
                    part = replace(s, start=0, stop=n, shape=(n // row, *s.shape[1:]))
                    video = split(torch.stack(drawn[s.start :]).cpu(), (part,), self.vocab)["video"]
                    yield TokenSample(video=video if before is None else torch.cat([before, video]))
                elif s.name == "audio" and len(drawn) == s.stop:
                    audio = replace(s, start=0, stop=s.stop - s.start)
                    yield TokenSample(audio=split(torch.stack(drawn[s.start :]).cpu(), (audio,), self.vocab)["audio"])

    def _frames_before(self, task: Task, sample: TokenSample, n_context: int) -> torch.Tensor | None:
        """The input latent frames that the output continues."""
        block = task.output("video")
        if block is None or sample.video is None:
            return None
        first = block.frames(self.layout.latent_frames, n_context)[0]
        return sample.video[:first] if first else None

    def _check(self, task: Task) -> None:
        if task.token not in self.vocab.special_tokens:
            raise InputError(f"this model was not trained for {task.command}: its vocabulary has no {task.token}")


def gather(blocks: Iterator[TokenSample]) -> TokenSample:
    """Run `Generator.blocks` to its end: the whole video and the audio."""
    video = audio = None
    for part in blocks:
        video = video if part.video is None else part.video
        audio = audio if part.audio is None else part.audio
    return TokenSample(video=video, audio=audio)
