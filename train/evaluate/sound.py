"""The parts of the playground suite about sound: what the audio ids hold, and sound made for silent clips."""
# Shapes: B clips, N samples, Q levels

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenizers_av.audio.metrics import mel_distance, si_sdr
from train.data.playground import Impact, Scene
from train.evaluate import generation
from train.evaluate.onsets import Agreement, agreement, find_onsets, match, merged
from train.evaluate.pitch import find_pitch, isolated, share_in_tune, true_pitch
from train.evaluate.prompts import over_shifts
from train.evaluate.report import Row, mean
from train.evaluate.tokenizer_metrics import CodeUse

if TYPE_CHECKING:
    from train.evaluate.suite import Suite

NEAR = 0.01  # seconds: an onset that falls on its impact to the ear


def onsets(audio: Tensor, suite: Suite) -> list[Tensor]:
    return [find_onsets(samples, suite.spec.sample_rate) for samples in audio]


def impacts(scene: Scene, suite: Suite) -> Tensor:
    """Seconds of a scene's impacts; those too close to be told apart by ear count as one."""
    return merged(torch.tensor([impact.time for impact in scene.impacts(suite.spec.seconds)]))


@dataclass
class _Measured:
    """What is read of many clips' sound, true or reconstructed."""

    mel: list[float] = field(default_factory=list)
    sdr: list[float] = field(default_factory=list)  # of clips that sound
    onsets: list[Tensor] = field(default_factory=list)
    pitches: list[float] = field(default_factory=list)  # hertz, of the isolated impacts of all clips

    def listen(self, audio: Tensor, asked: list[list[Impact]], suite: Suite) -> None:
        """Read clips' samples (B, N) by themselves; `asked` are the impacts whose pitch is to be told."""
        rate = suite.spec.sample_rate
        self.onsets += onsets(audio, suite)
        self.pitches += [find_pitch(x, rate, hit.time) for x, some in zip(audio, asked, strict=True) for hit in some]

    def compare(self, audio: Tensor, original: Tensor, suite: Suite) -> None:
        """Read samples (B, N) beside the true ones (B, N'), as far as both go."""
        rate, long = suite.spec.sample_rate, min(audio.shape[1], original.shape[1])
        audio, original = audio[:, :long], original[:, :long]
        self.mel += mel_distance(audio, original, rate).tolist()
        loud = [i for i, x in enumerate(original) if x.abs().max() > 0]  # of silence there is nothing to distort
        self.sdr += si_sdr(audio[loud], original[loud]).tolist() if loud else []


def sound_reconstruction(suite: Suite) -> list[Row]:
    """The audio tokenizer on the playground as it is trained on, with all its levels and with fewer."""
    tokenizer, n, name = suite.poet.codec.audio, suite.n, "sound_reconstruction"
    codes = [CodeUse.of_size(tokenizer.codebook_size) for _ in range(tokenizer.n_codebooks)]
    truth, of_levels = _Measured(), {k: _Measured() for k in range(1, tokenizer.n_codebooks + 1)}
    times: list[Tensor] = []
    hertz: list[float] = []
    for part, _ in suite.batches(n, name):
        clips = suite.world.batch(range(part.start, part.stop), suite.spec, video=False)
        assert clips.audio is not None and clips.scenes is not None
        times += [impacts(scene, suite) for scene in clips.scenes]
        asked = [isolated(s, x, suite.spec.sample_rate) for s, x in zip(clips.scenes, clips.audio, strict=True)]
        hertz += [true_pitch(s, hit) for s, some in zip(clips.scenes, asked, strict=True) for hit in some]
        truth.listen(clips.audio, asked, suite)
        _, ids = generation.encode(suite.poet, None, clips.audio)
        assert ids is not None
        for level, used in zip(ids.unbind(1), codes, strict=True):
            used.add(level)
        for k, measured in of_levels.items():
            audio = generation.decode(suite.poet, None, ids[:, :k]).audio
            assert audio is not None
            measured.listen(audio, asked, suite)
            measured.compare(audio, clips.audio, suite)
    whole = of_levels[len(of_levels)]
    rows = _level_rows(name, "", whole, truth, times, hertz)
    for k, used in enumerate(codes):
        rows.append(Row(name, f"audio codes used, level {k}, of {len(used.counts)}", used.share, "share", n))
    before, after = (agreement(m.onsets, times, suite.frame) for m in (truth, whole))
    rows += onset_rows(name, "impacts", after, before, None, None)
    for k, measured in list(of_levels.items())[:-1]:
        rows += _level_rows(name, f", {k} level{'s' if k > 1 else ''}", measured, truth, times, hertz)
    return rows


def _level_rows(
    part: str, end: str, measured: _Measured, truth: _Measured, times: list[Tensor], hertz: list[float]
) -> list[Row]:
    """The rows there are for every number of levels; `end` of their names tells it."""
    found, true = (
        sum(match(f, t, NEAR).within(NEAR) for f, t in zip(m.onsets, times, strict=True)) for m in (measured, truth)
    )
    n = sum(map(len, times))
    others = over_shifts(len(hertz), lambda paired: share_in_tune([measured.pitches[k] for k in paired], hertz))
    return [
        Row(part, "audio mel distance, decades" + end, mean(measured.mel), "", len(measured.mel), better="lower"),
        Row(part, "audio SI-SDR, clips that sound" + end, mean(measured.sdr), "dB", len(measured.sdr)),
        Row(part, "impacts with an onset within 10 ms" + end, found / n if n else math.nan, "%", n,
            true / n if n else math.nan),
        Row(part, "isolated impacts with a pitch within half a semitone" + end,
            share_in_tune(measured.pitches, hertz), "%", len(hertz), share_in_tune(truth.pitches, hertz),
            baseline=others, baseline_is="other impacts"),
    ]  # fmt: skip


def onset_rows(
    part: str,
    what: str,
    model: Agreement,
    truth: Agreement | None,
    tokenizer: Agreement | None,
    other: Callable[[str], float] | None,
) -> list[Row]:
    """Rows on how well onsets fall on impacts; `other` gives a baseline's figure by its name in `Agreement`."""
    rows = []
    for key, measure, unit, better in (
        ("median_error", f"median distance from {what} to the nearest onset", "ms", "lower"),
        ("within_40ms", f"{what} with an onset within 40 ms", "%", "higher"),
        ("within_frame", f"{what} with an onset within one frame", "%", "higher"),
        ("precision", f"onsets within one frame of {what}", "%", "higher"),
    ):
        n = model.n_found if key == "precision" else model.n_true
        true, again = (math.nan if a is None else float(getattr(a, key)) for a in (truth, tokenizer))
        baseline = math.nan if other is None else other(key)
        value = float(getattr(model, key))
        rows.append(Row(part, measure, value, unit, n, true, again, baseline, "other clips", better))
    return rows


def video_to_audio(suite: Suite) -> list[Row]:
    """Sound for silent clips in which something is hit."""
    poet, n = suite.poet, suite.n
    scenes: list[Scene] = []
    block = 2 * n
    while len(scenes) < n:  # about two in three scenes have an impact
        scenes = [s for s in suite.world.evaluation_scenes(block) if s.impacts(suite.spec.seconds - 0.05)][:n]
        block *= 2
    heard: dict[str, list[Tensor]] = {"model": [], "truth": [], "tokenizer": []}
    work = generation.n_steps(poet, "video_to_audio")
    for part, tick in suite.batches(n, "video_to_audio", work):
        some = scenes[part]
        sound = suite.world.sound(some, suite.spec)
        ids, sounds = generation.encode(poet, suite.world.render(some, suite.spec), sound)
        made = generation.generate(
            poet, "video_to_audio", captions=[None] * len(some), video=ids, seeds=suite.seeds(part, 1), tick=tick
        )
        again = generation.decode(poet, None, sounds)
        assert made.audio is not None and again.audio is not None
        for name, audio in (("model", made.audio), ("truth", sound), ("tokenizer", again.audio)):
            heard[name] += onsets(audio, suite)
    true = [impacts(scene, suite) for scene in scenes]
    figures = {name: agreement(times, true, suite.frame) for name, times in heard.items()}
    other = mismatched(heard["model"], true, suite.frame)
    return onset_rows("video_to_audio", "impacts", figures["model"], figures["truth"], figures["tokenizer"], other)


def mismatched(found: list[Tensor], true: list[Tensor], frame: float) -> Callable[[str], float]:
    """Figures for clips whose sound is another clip's."""

    def figure(key: str) -> float:
        return over_shifts(
            len(found), lambda paired: float(getattr(agreement([found[k] for k in paired], true, frame), key))
        )

    return figure
