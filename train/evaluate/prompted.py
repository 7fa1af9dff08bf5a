"""The parts of the playground suite about what is made from a prompt, or from nothing: clips and images."""
# Shapes: n clips, T frames, H W height and width

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from train.data.playground.scene import COLOURS
from train.evaluate.detectors import Seen
from train.evaluate.onsets import agreement
from train.evaluate.prompts import prompt_rows, stays
from train.evaluate.report import Row, mean
from train.evaluate.timing import agreement_rows, mismatched

if TYPE_CHECKING:
    from train.evaluate.suite import Suite


def unconditional(suite: Suite) -> list[Row]:
    """Clips from nothing; the true ones are of all kinds, as in training."""
    n, name = suite.n, "unconditional"
    made = suite.make(name, 5, [None] * n, sound=False).video
    assert made is not None
    suite.keep(name, [""] * n, made)
    seen = {"model": suite.read(made, name), **suite.all_kinds.seen}
    rows = []
    for measure, good in (
        ("an object in view throughout", stays),
        ("an object moves", lambda one: one.motion is not None),
    ):
        value, truth, tokenizer = (mean([good(one) for one in seen[key]]) for key in ("model", "truth", "tokenizer"))
        rows.append(Row(name, measure, value, "%", n, truth, tokenizer))
    value, truth, tokenizer = (_entropy(seen[key]) for key in ("model", "truth", "tokenizer"))
    most = f"{math.log2(len(COLOURS)):.0f} bits"
    return [*rows, Row(name, f"entropy of the objects' colours, of {most}", value, "bits", n, truth, tokenizer)]


def _entropy(seen: list[Seen]) -> float:
    """Bits per clip of the histogram of colours: 0 where all clips show the same."""
    counts = Counter(one.colour for one in seen if one.colour is not None)
    return -sum(c / counts.total() * math.log2(c / counts.total()) for c in counts.values()) if counts else math.nan


def text_to_image(suite: Suite) -> list[Row]:
    """One image from a caption; the true ones are first frames."""
    clips, name = suite.clips, "text_to_image"
    made = suite.make(name, 6, clips.captions).video
    assert made is not None
    suite.keep(name, clips.captions, made, clips.video[:, :1])
    images = {"model": made, "truth": clips.video[:, :1], "tokenizer": clips.video_again[:, :1]}
    seen = {key: suite.read(frames, name) for key, frames in images.items()}
    return prompt_rows(name, seen, clips.scenes, ("colour", "shape", "size", "present"))


def text_to_video(suite: Suite) -> list[Row]:
    """Clips from held-out captions of one object, plain style and a still camera; with sound."""
    clips, name = suite.clips, "text_to_video"
    made = suite.make(name, 0, clips.captions)
    assert made.video is not None and made.audio is not None
    suite.keep(name, clips.captions, made.video, clips.video)
    seen = {"model": suite.read(made.video, name), **clips.seen}
    heard = {"model": suite.listen(made.audio), **clips.heard}
    visible = {key: [clip.impacts for clip in some] for key, some in seen.items()}
    figures = {key: agreement(heard[key], visible[key], suite.frame) for key in seen}
    other = mismatched(heard["model"], visible["model"], suite.frame)
    return [
        *prompt_rows(name, seen, clips.scenes),
        *agreement_rows(name, "impacts seen", figures["model"], figures["truth"], figures["tokenizer"], other),
    ]
