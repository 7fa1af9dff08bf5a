"""The playground suite: what a model reconstructs, makes from prompts, and sounds, measured in a world that is known.

Every generated figure stands beside the same reading of the true clips (what the detectors can tell), of their
reconstructions by the model's own tokenizers (what the ids can hold) and of a baseline that ignores its input.
All clips are of the test split. Batches never change what is made, but for the rounding of floating-point sums.
"""
# Shapes: B clips, T frames, H W height and width, N samples

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from tasks.errors import InputError
from train.data.playground import Playground, Scene
from train.data.source import MediaSpec
from train.evaluate import generation
from train.evaluate.detectors import Seen, look
from train.evaluate.onsets import agreement
from train.evaluate.prompts import ASKED, judge, share, shuffled
from train.evaluate.report import Report, Row, mean
from train.evaluate.sound import mismatched, onset_rows, onsets, sound_reconstruction, video_to_audio
from train.evaluate.tokenizer_metrics import CodeUse, psnr, ssim

if TYPE_CHECKING:
    from tasks.pipeline import AVPoet

N_CONTEXT = 2  # latent frames given to frame_prediction


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
        return [(self.seed * 1_000_003 + salt) * 1_000_003 + i for i in range(part.start, part.stop)]

    def keep(self, name: str, scenes: Sequence[Scene], made: Tensor, true: Tensor) -> None:
        """Remember the first clips of a part as pictures."""
        free = self.pictures - sum(s.part == name for s in self.shown)
        for scene, frames, original in list(zip(scenes, made, true))[: max(0, free)]:
            self.shown.append(Shown(name, scene.caption, frames, original))


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

    pictures: generated clips of each part to give back for looking at. Raises InputError for unknown parts or sizes.
    """
    names = list(PARTS) if only is None else list(only)
    if unknown := [name for name in names if name not in PARTS]:
        raise InputError(f"unknown part {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    suite = Suite(poet, n, seed, batch, progress, pictures)
    report = Report(conditions={"suite": "playground", "split": "test", "n": n, "seed": seed})
    for name in names:
        report.rows += PARTS[name](suite)
    return report, suite.shown


# --- tokenizers ----------------------------------------------------------------------------------------------------


def reconstruction(suite: Suite) -> list[Row]:
    """The video tokenizer on the playground as it is trained on: all styles, cameras and numbers of objects."""
    poet, n, name = suite.poet, suite.n, "reconstruction"
    codes = CodeUse.of_size(poet.codec.video.codebook_size)
    values: dict[str, list[float]] = {key: [] for key in ("psnr", "ssim")}
    for part, _ in suite.batches(n, name):
        clips = suite.world.batch(range(part.start, part.stop), suite.spec, audio=False)
        assert clips.video is not None and clips.scenes is not None
        ids, _ = generation.encode(poet, clips.video, None)
        assert ids is not None
        codes.add(ids)
        out = generation.decode(poet, ids, None)
        assert out.video is not None
        frames = generation.to_frames(clips.video)
        suite.keep(name, clips.scenes, out.video[:, : suite.spec.n_frames], frames)
        a, b = generation.to_unit(out.video[:, : suite.spec.n_frames]), generation.to_unit(frames)
        values["psnr"] += psnr(a, b).tolist()
        if suite.spec.size >= 11:
            values["ssim"] += ssim(a, b).tolist()
    bits = math.log2(poet.codec.video.codebook_size)
    return [
        Row(name, "video PSNR", mean(values["psnr"]), "dB", n),
        Row(name, "video SSIM", mean(values["ssim"]), "", n),
        Row(name, f"video codes used, of {len(codes.counts)}", codes.share, "share", n),
        Row(name, f"video code entropy, of {bits:.0f} bits", codes.entropy, "bits", n),
    ]


# --- pictures ------------------------------------------------------------------------------------------------------


def text_to_video(suite: Suite) -> list[Row]:
    """Clips from held-out captions of one object, plain style and a still camera; with sound."""
    poet, n, name = suite.poet, suite.n, "text_to_video"
    scenes = suite.world.evaluation_scenes(n)
    seen: dict[str, list[Seen]] = {"model": [], "truth": [], "tokenizer": []}
    heard: dict[str, list[Tensor]] = {key: [] for key in seen}
    for part, tick in suite.batches(n, name, generation.n_steps(poet, name)):
        some = scenes[part]
        video, sound = suite.world.render(some, suite.spec), suite.world.sound(some, suite.spec)
        made = generation.generate(
            poet, name, captions=[s.caption for s in some], seeds=suite.seeds(part, 0), tick=tick
        )
        true = generation.to_frames(video)
        again = generation.decode(poet, *generation.encode(poet, video, sound))
        assert made.video is not None
        suite.keep(name, some, made.video, true)
        for key, frames, audio in (
            ("model", made.video, made.audio),
            ("truth", true, sound),
            ("tokenizer", again.video, again.audio),
        ):
            assert frames is not None and audio is not None
            seen[key] += [look(clip, suite.spec.fps) for clip in frames]
            heard[key] += onsets(audio, suite)
    rows = _prompt_rows(name, seen, scenes)
    visible = {key: [clip.impacts for clip in clips] for key, clips in seen.items()}
    figures = {key: agreement(heard[key], visible[key], suite.frame) for key in seen}
    other = mismatched(heard["model"], visible["model"], suite.frame)
    return rows + onset_rows(name, "impacts seen", figures["model"], figures["truth"], figures["tokenizer"], other)


def _prompt_rows(
    part: str, seen: dict[str, list[Seen]], scenes: Sequence[Scene], asked: Sequence[str] = tuple(ASKED)
) -> list[Row]:
    verdicts = {key: [judge(clip, scene) for clip, scene in zip(clips, scenes)] for key, clips in seen.items()}
    chance = shuffled(seen["model"], scenes)
    rows = []
    for key in asked:
        value, n = share(verdicts["model"], key)
        truth, tokenizer = share(verdicts["truth"], key)[0], share(verdicts["tokenizer"], key)[0]
        baseline = math.nan if key == "present" else chance[key]
        rows.append(Row(part, ASKED[key], value, "%", n, truth, tokenizer, baseline, "other prompts"))
    return rows


def image_to_video(suite: Suite) -> list[Row]:
    """The rest of a clip from its first frame and its caption."""
    return _continued(suite, "image_to_video", 1)


def frame_prediction(suite: Suite) -> list[Row]:
    """The rest of a clip from its first frames and its caption."""
    return _continued(suite, "frame_prediction", N_CONTEXT)


def _continued(suite: Suite, name: str, n_context: int) -> list[Row]:
    poet, n = suite.poet, suite.n
    layout = poet.config.layout
    if n_context >= layout.latent_frames:
        raise InputError(f"{name} gives {n_context} latent frames; this model's clips have only {layout.latent_frames}")
    given = 1 + layout.temporal_stride * (n_context - 1)  # frames the model is shown
    scenes = suite.world.evaluation_scenes(n)
    values: dict[str, list[float]] = {"model": [], "tokenizer": [], "repeat": []}
    seen: dict[str, list[Seen]] = {"model": [], "truth": [], "tokenizer": []}
    steps = generation.n_steps(poet, name, sound=False, n_context=n_context)
    for part, tick in suite.batches(n, name, steps):
        some = scenes[part]
        video = suite.world.render(some, suite.spec)
        ids, _ = generation.encode(poet, video, None)
        made = generation.generate(
            poet, name, captions=[s.caption for s in some], video=ids, seeds=suite.seeds(part, 2), sound=False,
            n_context=n_context, tick=tick,
        )  # fmt: skip
        true, again = generation.to_frames(video), generation.decode(poet, ids, None).video
        assert made.video is not None and again is not None
        suite.keep(name, some, made.video, true)
        target = generation.to_unit(true[:, given:])
        still = generation.to_unit(true[:, given - 1 : given]).expand_as(target)
        values["model"] += psnr(generation.to_unit(made.video[:, given:]), target).tolist()
        values["tokenizer"] += psnr(generation.to_unit(again[:, given:]), target).tolist()
        values["repeat"] += psnr(still, target).tolist()
        for key, frames in (("model", made.video), ("truth", true), ("tokenizer", again)):
            seen[key] += [look(clip, suite.spec.fps) for clip in frames]
    predicted = Row(
        name, f"PSNR of {suite.spec.n_frames - given} predicted frames, {given} given", mean(values["model"]), "dB", n,
        tokenizer=mean(values["tokenizer"]), baseline=mean(values["repeat"]), baseline_is="last frame repeated",
    )  # fmt: skip
    return [predicted, *_prompt_rows(name, seen, scenes, ("colour", "shape", "direction", "present"))]


PARTS: dict[str, Callable[[Suite], list[Row]]] = {
    "reconstruction": reconstruction,
    "sound_reconstruction": sound_reconstruction,
    "text_to_video": text_to_video,
    "video_to_audio": video_to_audio,
    "image_to_video": image_to_video,
    "frame_prediction": frame_prediction,
}
