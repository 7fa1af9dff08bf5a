"""The parts of the playground suite about sound: sounds for silent clips and for prompts, and pictures for sounds."""
# Shapes: n clips, N samples, K moments

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from train.evaluate.onsets import agreement
from train.evaluate.pitch import IN_TUNE, asked_pitches, find_pitch, semitones
from train.evaluate.prompts import BRIEFLY, prompt_rows, scored_row
from train.evaluate.report import Row
from train.evaluate.timing import agreement_rows, impacts, mismatched

if TYPE_CHECKING:
    from train.evaluate.suite import Suite


def video_to_audio(suite: Suite) -> list[Row]:
    """Sound for silent clips in which something is hit."""
    clips, name = suite.striking, "video_to_audio"
    made = suite.make(name, 1, [None] * len(clips), video=clips.video_ids).audio
    assert made is not None
    heard = {"model": suite.listen(made), **clips.heard}
    true = [impacts(scene, suite) for scene in clips.scenes]
    figures = {key: agreement(times, true, suite.frame) for key, times in heard.items()}
    other = mismatched(heard["model"], true, suite.frame)
    return agreement_rows(name, "impacts", figures["model"], figures["truth"], figures["tokenizer"], other)


def text_to_audio(suite: Suite) -> list[Row]:
    """Sound for captions, which may tell how high it is, how often something is hit, and that nothing is."""
    clips, name, rate = suite.clips, "text_to_audio", suite.spec.sample_rate
    made = suite.make(name, 3, clips.captions).audio
    assert made is not None
    sounds = {"model": made, "truth": clips.audio, "tokenizer": clips.audio_again}
    onsets = {"model": suite.listen(made), **clips.heard}
    pitches = {key: [_first_pitch(*one, rate) for one in zip(sounds[key], onsets[key], strict=True)] for key in sounds}
    n_hits = [len(impacts(scene, suite)) for scene in clips.scenes]
    asked = [asked_pitches(scene) if hits else () for scene, hits in zip(clips.scenes, n_hits, strict=True)]

    def in_tune(key: str, i: int, k: int) -> float:
        if not asked[k]:
            return math.nan
        return float(any(abs(semitones(pitches[key][i], hertz)) <= IN_TUNE for hertz in asked[k]))

    def silent(key: str, i: int, k: int) -> float:
        return float((len(onsets[key][i]) == 0) == (n_hits[k] == 0))

    def apart(key: str, i: int, k: int) -> float:
        return float(abs(len(onsets[key][i]) - n_hits[k]))

    n, other = len(clips), "other prompts"
    return [
        scored_row(name, "pitch of the first onset right, where the prompt tells the size", "%", n, in_tune, other),
        scored_row(name, "sounding or silent as asked", "%", n, silent, other),
        scored_row(name, "onsets too many or too few", "", n, apart, other, "lower"),
    ]


def _first_pitch(samples: Tensor, onsets: Tensor, sample_rate: int) -> float:
    """Hertz at the first of the onsets (K,) in samples (N,); NaN without one."""
    return find_pitch(samples, sample_rate, float(onsets[0])) if len(onsets) else math.nan


def audio_to_video(suite: Suite) -> list[Row]:
    """Pictures for captions and sounds in which something is hit."""
    clips, name = suite.striking, "audio_to_video"
    made = suite.make(name, 4, clips.captions, audio=clips.audio_ids).video
    assert made is not None
    suite.keep(name, clips.captions, made, clips.video)
    seen = {"model": suite.read(made, name), **clips.seen}
    given = clips.heard["truth"]
    hits = {key: [clip.impacts for clip in some] for key, some in seen.items()}
    figures = {key: agreement(times, given, suite.frame) for key, times in hits.items()}
    other = mismatched(hits["model"], given, suite.frame)
    return [
        *agreement_rows(
            name, "onsets given", figures["model"], figures["truth"], figures["tokenizer"], other,
            found=("impact seen", "impacts seen"),
        ),
        *prompt_rows(name, seen, clips.scenes, BRIEFLY),
    ]  # fmt: skip
