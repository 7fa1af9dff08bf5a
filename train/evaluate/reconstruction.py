"""The parts of the playground suite about the tokenizers: what video ids and audio ids hold of true clips."""
# Shapes: B clips, N samples, Q levels

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from tokenizers_av.audio.metrics import mel_distance, si_sdr
from train.data.playground import Impact
from train.evaluate import generation
from train.evaluate.clips import decibels
from train.evaluate.onsets import agreement, match
from train.evaluate.pitch import find_pitch, isolated, share_in_tune, true_pitch
from train.evaluate.prompts import over_shifts
from train.evaluate.report import Row, mean
from train.evaluate.timing import agreement_rows, impacts
from train.evaluate.tokenizer_metrics import CodeUse, ssim

if TYPE_CHECKING:
    from train.evaluate.suite import Suite

NEAR = 0.01  # seconds: an onset that falls on its impact to the ear


def reconstruction(suite: Suite) -> list[Row]:
    """The video tokenizer on the playground as it is trained on: all styles, cameras and numbers of objects."""
    poet, n, name, clips = suite.poet, suite.n, "reconstruction", suite.all_kinds
    codes = CodeUse.of_size(poet.codec.video.codebook_size)
    codes.add(clips.video_ids)
    suite.keep(name, clips.captions, clips.video_again, clips.video)
    alike: list[float] = []
    if suite.spec.size >= 11:
        for one, true in zip(clips.video_again, clips.video, strict=True):
            alike += ssim(generation.to_unit(one[None]), generation.to_unit(true[None])).tolist()
    bits = math.log2(poet.codec.video.codebook_size)
    return [
        Row(name, "video PSNR", mean(decibels(clips.video_again, clips.video)), "dB", n),
        Row(name, "video SSIM", mean(alike), "", n),
        Row(name, f"video codes used, of {len(codes.counts)}", codes.share, "share", n),
        Row(name, f"video code entropy, of {bits:.0f} bits", codes.entropy, "bits", n),
    ]


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
        self.onsets += suite.listen(audio)
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
        scenes = [suite.world.scene(i) for i in range(part.start, part.stop)]
        sound = suite.world.sound(scenes, suite.spec)
        times += [impacts(scene, suite) for scene in scenes]
        asked = [isolated(s, x, suite.spec.sample_rate) for s, x in zip(scenes, sound, strict=True)]
        hertz += [true_pitch(s, hit) for s, some in zip(scenes, asked, strict=True) for hit in some]
        truth.listen(sound, asked, suite)
        _, ids = generation.encode(suite.poet, None, sound)
        assert ids is not None
        for level, used in zip(ids.unbind(1), codes, strict=True):
            used.add(level)
        for k, measured in of_levels.items():
            audio = generation.decode(suite.poet, None, ids[:, :k]).audio
            assert audio is not None
            measured.listen(audio, asked, suite)
            measured.compare(audio, sound, suite)
    whole = of_levels[len(of_levels)]
    rows = _level_rows(name, "", whole, truth, times, hertz)
    for k, used in enumerate(codes):
        rows.append(Row(name, f"audio codes used, level {k}, of {len(used.counts)}", used.share, "share", n))
    before, after = (agreement(m.onsets, times, suite.frame) for m in (truth, whole))
    rows += agreement_rows(name, "impacts", after, before, None, None)
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
