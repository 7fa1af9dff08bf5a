"""The parts of the playground suite about what follows: the rest of a clip from its beginning."""
# Shapes: n clips, T frames, H W height and width

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from tasks.errors import InputError
from tasks.long_video import n_carried
from train.evaluate.clips import decibels
from train.evaluate.detectors import Seen
from train.evaluate.onsets import agreement
from train.evaluate.prompts import BRIEFLY, prompt_rows, scored_row
from train.evaluate.report import Row, compared, mean
from train.evaluate.timing import agreement_rows, mismatched

if TYPE_CHECKING:
    from train.evaluate.suite import Suite

N_CONTEXT = 2  # latent frames given to frame_prediction


def image_to_video(suite: Suite) -> list[Row]:
    """The rest of a clip from its first frame and its caption."""
    clips, name = suite.clips, "image_to_video"
    made = suite.make(name, 2, clips.captions, video=clips.video_ids, sound=False).video
    assert made is not None
    first = {"model": made[:, :1], "truth": clips.video[:, :1], "tokenizer": clips.video_again[:, :1]}

    def kept(key: str, i: int, k: int) -> float:
        return math.nan if key == "truth" else decibels(first[key][i : i + 1], first["truth"][k : k + 1])[0]

    seen = {"model": suite.read(made, name), **clips.seen}
    return [
        scored_row(name, "PSNR of the first frame, the image given", "dB", len(clips), kept, "other clips"),
        *_rows(suite, name, made, seen, 1),
    ]


def frame_prediction(suite: Suite) -> list[Row]:
    """The rest of a clip from its first frames and its caption."""
    clips, name = suite.clips, "frame_prediction"
    _check(suite, name, N_CONTEXT)
    made = suite.make(name, 8, clips.captions, video=clips.video_ids, sound=False, n_context=N_CONTEXT).video
    assert made is not None
    return _rows(suite, name, made, {"model": suite.read(made, name), **clips.seen}, N_CONTEXT)


def audio_video_continuation(suite: Suite) -> list[Row]:
    """The rest of a clip and of its sound from the first second of both and its caption."""
    clips, name = suite.clips, "audio_video_continuation"
    n_context = n_carried(suite.poet.config.layout)
    _check(suite, name, n_context)
    made = suite.make(name, 7, clips.captions, video=clips.video_ids, audio=clips.audio_ids, n_context=n_context)
    assert made.video is not None and made.audio is not None
    seen = {"model": suite.read(made.video, name), **clips.seen}
    heard = {"model": suite.listen(made.audio), **clips.heard}
    begin = n_given(suite, n_context) * suite.frame  # seconds
    new = {key: [times[times >= begin] for times in some] for key, some in heard.items()}
    hits = {key: [one.impacts[one.impacts >= begin] for one in some] for key, some in seen.items()}
    figures = {key: agreement(new[key], hits[key], suite.frame) for key in seen}
    other = mismatched(new["model"], hits["model"], suite.frame)
    return [
        *_rows(suite, name, made.video, seen, n_context),
        *agreement_rows(name, "new impacts seen", figures["model"], figures["truth"], figures["tokenizer"], other),
    ]


def n_given(suite: Suite, n_context: int) -> int:
    """Frames that so many latent frames hold at the beginning of a clip."""
    return 1 + suite.poet.config.layout.temporal_stride * (n_context - 1)


def _check(suite: Suite, name: str, n_context: int) -> None:
    long = suite.poet.config.layout.latent_frames
    if n_context >= long:
        raise InputError(f"{name} gives {n_context} latent frames; this model's clips have only {long}")


def _rows(suite: Suite, name: str, made: Tensor, seen: dict[str, list[Seen]], n_context: int) -> list[Row]:
    """How like the true clips those are that were made (n, T, H, W, 3), and what is `seen` of them."""
    clips, given = suite.clips, n_given(suite, n_context)
    suite.keep(name, clips.captions, made, clips.video)
    true = clips.video[:, given:]
    still = clips.video[:, given - 1 : given].expand_as(true)
    values, again, repeated = (decibels(x, true) for x in (made[:, given:], clips.video_again[:, given:], still))
    what = f"PSNR of {true.shape[1]} predicted frames, {given} given"
    return [
        compared(name, what, values, repeated, "last frame repeated", mean(again)),
        *prompt_rows(name, seen, clips.scenes, BRIEFLY),
    ]
