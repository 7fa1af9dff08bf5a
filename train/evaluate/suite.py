"""The playground suite: what a model reconstructs, makes in every task, and sounds, measured in a world that is known.

Every generated figure stands beside the same reading of the true clips (what the detectors can tell), of their
reconstructions by the model's own tokenizers (what the ids can hold) and of a baseline that ignores its input.
All clips are of the test split. Batches never change what is made, but for the rounding of floating-point sums.
"""
# Shapes: n B clips, T frames, H W height and width, N samples, t h w latent sizes, Q audio levels, F audio columns

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.errors import InputError
from tasks.long_video import next_row
from tasks.table import TASKS
from train.data.playground import Playground, Scene
from train.data.source import MediaSpec
from train.evaluate import generation
from train.evaluate.clips import Clips
from train.evaluate.conditioned import frame_interpolation, inpainting, outpainting, stylization
from train.evaluate.continued import audio_video_continuation, frame_prediction, image_to_video
from train.evaluate.detectors import Seen, look
from train.evaluate.drift import long_video
from train.evaluate.onsets import find_onsets
from train.evaluate.prompted import text_to_image, text_to_video, unconditional
from train.evaluate.reconstruction import reconstruction, sound_reconstruction
from train.evaluate.report import Report, Row
from train.evaluate.sound import audio_to_video, text_to_audio, video_to_audio

if TYPE_CHECKING:
    from tasks.pipeline import AVPoet


@dataclass
class Shown:
    """A generated clip to look at."""

    part: str
    caption: str
    frames: Tensor  # (T, H, W, 3) uint8
    true: Tensor | None = None


@dataclass
class Suite:
    """A model, the clips it is measured on, and how to go through them."""

    poet: AVPoet
    n: int
    seed: int = 0
    batch: int = 16
    progress: bool = True
    pictures: int = 0  # generated clips of each part to keep in `shown`
    shown: list[Shown] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch < 1 or self.seed < 0:
            raise InputError(f"n={self.n}, batch={self.batch}, seed={self.seed}: need n and batch >= 1, seed >= 0")
        height, width = self.poet.config.size
        if height != width:
            raise InputError(f"this model makes frames of {height}x{width} pixels, the playground draws square ones")
        layout = self.poet.config.layout
        self.spec = MediaSpec(layout.n_frames, height, layout.fps, self.poet.codec.sample_rate)
        self.world = Playground("test", seed=self.seed)

    @cached_property
    def clips(self) -> Clips:
        """What most tasks are measured on: one object each, plain style, still camera."""
        return Clips(self, self.world.evaluation_scenes(self.n), "true clips")

    @cached_property
    def all_kinds(self) -> Clips:
        """Clips as in training: of all styles, cameras and numbers of objects."""
        return Clips(self, [self.world.scene(i) for i in range(self.n)], "true clips of all kinds")

    @cached_property
    def striking(self) -> Clips:
        """The same with clips only in which something is hit, early enough to be heard."""
        scenes: list[Scene] = []
        block = 2 * self.n
        while len(scenes) < self.n:  # about two in three scenes have an impact
            some = self.world.evaluation_scenes(block)
            scenes = [scene for scene in some if scene.impacts(self.spec.seconds - 0.05)][: self.n]
            block *= 2
        return Clips(self, scenes, "true clips with impacts")

    @property
    def frame(self) -> float:
        """Seconds of one video frame."""
        return 1 / self.spec.fps

    def batches(self, n: int, what: str, work: int = 1) -> Iterator[tuple[slice, Callable[[int], None]]]:
        """Slices of range(n), with a way to tell of progress; `work` units are expected for each clip."""
        from tqdm import tqdm

        with tqdm(total=n * work, desc=what, file=sys.stderr, disable=not self.progress, unit_scale=True) as bar:
            for first in range(0, n, self.batch):
                part = slice(first, min(n, first + self.batch))
                yield part, bar.update
                bar.update(part.stop * work - bar.n)

    def seeds(self, part: slice, salt: int) -> list[int]:
        """A seed for each clip, the same whatever the batch."""
        return [((self.seed * 1_000_003 + salt) * 1_000_003 + i) % 2**63 for i in range(part.start, part.stop)]

    def make(
        self,
        name: str,
        salt: int,
        captions: Sequence[str | None],
        *,
        video: Tensor | None = None,
        audio: Tensor | None = None,
        condition: Tensor | None = None,
        sound: bool = True,
        n_context: int = 1,
    ) -> generation.Media:
        """Answers of a task to as many inputs as there are captions, see `generation.generate`; `salt` sets the seeds
        of one part apart from those of the others."""
        frames, samples = [], []
        work = generation.n_steps(self.poet, name, sound=sound, n_context=n_context)
        for part, tick in self.batches(len(captions), name, work):
            ids = {"video": video, "audio": audio, "condition": condition}
            made = generation.generate(
                self.poet, name, captions=captions[part], seeds=self.seeds(part, salt), sound=sound,
                n_context=n_context, tick=tick, **{key: None if x is None else x[part] for key, x in ids.items()},
            )  # fmt: skip
            frames += [] if made.video is None else [made.video]
            samples += [] if made.audio is None else [made.audio]
        return generation.Media(torch.cat(frames) if frames else None, torch.cat(samples) if samples else None)

    def encode_video(self, frames: Tensor, what: str) -> Tensor:
        """Ids (B, t, h, w) of frames (B, T, H, W, 3) uint8."""
        found = []
        for part, _ in self.batches(len(frames), f"{what}, coded"):
            ids = generation.encode(self.poet, generation.to_network(frames[part]), None)[0]
            assert ids is not None
            found.append(ids)
        return torch.cat(found)

    def read(self, frames: Tensor, what: str) -> list[Seen]:
        """What each of the clips (B, T, H, W, 3) uint8 shows; the masks, which are large, are not kept."""
        found = []
        for part, _ in self.batches(len(frames), f"{what}, read"):
            seen = [look(clip, self.spec.fps) for clip in frames[part]]
            found += [replace(one, track=replace(one.track, mask=one.track.mask[:0])) for one in seen]
        return found

    def listen(self, audio: Tensor) -> list[Tensor]:
        """Seconds (K,) of the onsets of each of the sounds (B, N)."""
        return [find_onsets(samples, self.spec.sample_rate) for samples in audio]

    def keep(self, name: str, captions: Sequence[str], made: Tensor, true: Tensor | None = None) -> None:
        """Remember the first clips (B, T, H, W, 3) of a part as pictures."""
        for i in range(min(len(made), max(0, self.pictures - sum(s.part == name for s in self.shown)))):
            self.shown.append(Shown(name, captions[i], made[i], None if true is None else true[i]))


def playground_suite(
    poet: AVPoet,
    n: int,
    seed: int = 0,
    *,
    only: Sequence[str] | None = None,
    batch: int = 16,
    progress: bool = True,
    pictures: int = 0,
) -> tuple[Report, list[Shown]]:
    """Run the parts named in `only` (None: all of PARTS) on n clips each.

    pictures: generated clips of each part to give back for looking at. Raises InputError for unknown parts or sizes,
    and for tasks that the model was not trained for.
    """
    names = list(PARTS) if only is None else list(only)
    if unknown := [name for name in names if name not in PARTS]:
        raise InputError(f"unknown part {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    _check_tasks(poet, names)
    suite = Suite(poet, n, seed, batch, progress, pictures)
    report = Report(conditions={"suite": "playground", "split": "test", "n": n, "seed": seed})
    for name in names:
        report.rows += PARTS[name](suite)
    return report, suite.shown


def _check_tasks(poet: AVPoet, names: Sequence[str]) -> None:
    rows = {**TASKS, "long_video": next_row(True)}
    known = poet.generator.vocab.special_tokens
    if untrained := [name for name in names if name in rows and rows[name].token not in known]:
        raise InputError(f"this model was not trained for {', '.join(untrained)}; say with --only what to measure")


PARTS: dict[str, Callable[[Suite], list[Row]]] = {
    "reconstruction": reconstruction,
    "sound_reconstruction": sound_reconstruction,
    "unconditional": unconditional,
    "text_to_image": text_to_image,
    "text_to_video": text_to_video,
    "text_to_audio": text_to_audio,
    "image_to_video": image_to_video,
    "frame_prediction": frame_prediction,
    "frame_interpolation": frame_interpolation,
    "inpainting": inpainting,
    "outpainting": outpainting,
    "stylization": stylization,
    "video_to_audio": video_to_audio,
    "audio_to_video": audio_to_video,
    "audio_video_continuation": audio_video_continuation,
    "long_video": long_video,
}
