"""The parts of the playground suite about tasks with a conditioning clip: painting, joining and drawing anew.

The conditioning clips are those that a user's video would become: the row of the task makes them.
"""
# Shapes: n clips, T frames, H W height and width, h w of the source

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tasks.masks import random_hole
from tasks.request import check_arguments
from tasks.table import get_task
from tokenizers_av.clip import Clip
from train.data.playground import Scene, masks
from train.data.playground.captions import caption
from train.data.playground.scene import STYLES, Dice
from train.data.source import MediaSpec
from train.evaluate.clips import Clips, decibels
from train.evaluate.prompts import BRIEFLY, prompt_rows, scored_row
from train.evaluate.report import Row, compared, mean
from train.evaluate.styles import style

if TYPE_CHECKING:
    from train.evaluate.suite import Suite

COVERED = 0.5  # share of the object's pixels that a hole should hide
TRIES = 50
HIDDEN = 3 / 8  # of the height and of the width, in outpainting
NEAR = 0.1  # image heights; the radius of the smallest object is 0.14


def conditions(suite: Suite, name: str, sources: Sequence[Tensor], arguments: Sequence[Mapping[str, Any]]) -> Tensor:
    """The conditioning clips (n, T, H, W, 3) uint8 of a task for clips (T, h, w, 3) uint8 and its further arguments."""
    row, spec = get_task(name), suite.spec
    assert row.condition is not None
    made = []
    for source, given in zip(sources, arguments, strict=True):
        size = (source.shape[1], source.shape[2])
        conditioner = row.condition.open(size, (spec.size, spec.size), spec.fps, **check_arguments(row, given))
        made.append(conditioner.frames(source, 0))
    return torch.stack(made)


def frame_interpolation(suite: Suite) -> list[Row]:
    """What lies between the first and the last frame of a clip, with its caption."""
    clips, name, spec = suite.clips, "frame_interpolation", suite.spec
    lasts = [{"last": Clip(one[-1:], spec.fps)} for one in clips.video]
    blends = conditions(suite, name, list(clips.video), lasts)
    made = _made(suite, name, 8, clips, blends)
    between = torch.zeros(clips.video.shape[:-1], dtype=torch.bool)
    between[:, 1:-1] = True
    nearest = clips.video.clone()
    half = len(nearest[0]) // 2
    nearest[:, : half + 1], nearest[:, half + 1 :] = nearest[:, :1], nearest[:, -1:]
    what = f"PSNR of the {spec.n_frames - 2} frames between"
    seen = {"model": suite.read(made, name), **clips.seen}
    return [
        _psnr_row(name, what, clips, made, between, blends, "linear blend"),
        _psnr_row(name, f"{what}, beside the nearest given", clips, made, between, nearest, "nearest frame"),
        *prompt_rows(name, seen, clips.scenes, BRIEFLY),
    ]


def inpainting(suite: Suite) -> list[Row]:
    """A hole over most of the object painted anew, with the clip's caption."""
    clips, name = suite.clips, "inpainting"
    holes = torch.stack([hole_over(scene, suite.spec, f"{suite.seed}/{i}") for i, scene in enumerate(clips.scenes)])
    known = conditions(suite, name, list(clips.video), [{"mask": hole} for hole in holes])
    made = _made(suite, name, 9, clips, known)
    filled = torch.stack([nearest_known(*one) for one in zip(clips.video, holes, strict=True)])
    seen = {"model": suite.read(made, name), **clips.seen}
    return [
        _psnr_row(name, "PSNR in the hole", clips, made, holes, filled, "nearest pixel"),
        *prompt_rows(name, seen, clips.scenes, BRIEFLY),
    ]


def hole_over(scene: Scene, spec: MediaSpec, seed: str) -> Tensor:
    """(T, H, W) bool: of holes as in training the first that hides half of the object, or the one that hides most."""
    rng, thing = Random(f"inpainting/{seed}"), masks(scene, spec)[0]
    best, most = None, -1
    for _ in range(TRIES):
        hole = random_hole(spec.n_frames, spec.size, spec.size, rng)
        hidden = int((hole & thing).sum())
        if hidden > most:
            best, most = hole, hidden
        if hidden >= COVERED * int(thing.sum()):
            break
    assert best is not None
    return best


def nearest_known(frames: Tensor, hole: Tensor) -> Tensor:
    """Frames (T, H, W, 3) whose pixels in a hole (T, H, W) bool repeat the nearest pixel of the frame that is known."""
    T, H, W = hole.shape
    down, across = ((torch.arange(n)[:, None] - torch.arange(n)).square() for n in (H, W))
    # Of each column the nearest known row, then of all columns the nearest
    apart = down[None, :, :, None] + torch.where(hole, 2 * (H * H + W * W), 0)[:, None]  # (T, H, H known, W)
    square, row = apart.min(2)
    column = (square[:, :, None, :] + across).argmin(3)  # (T, H, W)
    t = torch.arange(T)[:, None, None]
    return frames[t, row.gather(2, column), column]


def outpainting(suite: Suite) -> list[Row]:
    """What lies around a part of a clip, with the clip's caption."""
    clips, name, size = suite.clips, "outpainting", suite.spec.size
    hidden, parts, arguments = round(HIDDEN * size), [], []
    border = torch.ones(clips.video.shape[:-1], dtype=torch.bool)
    for i, clip in enumerate(clips.video):
        rng = Random(f"outpainting/{suite.seed}/{i}")
        top, left = (rng.choice((0, hidden // 2, hidden)) for _ in range(2))
        bottom, right = hidden - top, hidden - left
        parts.append(clip[:, top : size - bottom, left : size - right])
        arguments.append({"left": left, "top": top, "right": right, "bottom": bottom})
        border[i, :, top : size - bottom, left : size - right] = False
    around = conditions(suite, name, parts, arguments)
    made = _made(suite, name, 10, clips, around)
    seen = {"model": suite.read(made, name), **clips.seen}
    return [
        _psnr_row(name, "PSNR around the part given", clips, made, border, around, "nearest pixel"),
        *prompt_rows(name, seen, clips.scenes, BRIEFLY),
    ]


def stylization(suite: Suite) -> list[Row]:
    """The structure of plain clips, optical flow and luminance, drawn in the other styles as captions ask for."""
    plain, name = suite.clips, "stylization"
    clips = Clips(suite, [restyled(one, suite.seed, i) for i, one in enumerate(plain.scenes)], "true clips in styles")
    made = _made(suite, name, 11, clips, conditions(suite, name, list(plain.video), [{}] * len(plain)))
    frames = {"model": made, "truth": clips.video, "tokenizer": clips.video_again}
    drawn = {key: [style(one) for one in some] for key, some in frames.items()}
    seen = {"model": suite.read(made, name), **clips.seen}

    def in_style(asked: str) -> Callable[[str, int, int], float]:
        return lambda key, i, k: float(drawn[key][i] == asked) if clips.scenes[k].style == asked else math.nan

    def in_place(key: str, i: int, k: int) -> float:
        apart = (seen[key][i].path - plain.seen["truth"][k].path).norm(dim=1)
        return float((apart <= NEAR).float().mean())

    n = len(clips)
    return [
        *(
            scored_row(name, f"style right, {asked} asked", "%", n, in_style(asked), "other prompts")
            for asked in STYLES
            if asked != "plain"
        ),
        scored_row(name, "frames with the object where the structure has it", "share", n, in_place, "other structures"),
        *prompt_rows(name, seen, clips.scenes, ("colour", "shape")),
    ]


def restyled(scene: Scene, seed: int, index: int) -> Scene:
    """A plain scene in one of the other styles, by turns, with a caption that tells it."""
    others = [one for one in STYLES if one != scene.style]
    scene = replace(scene, style=others[index % len(others)])
    return replace(scene, caption=caption(scene, Dice(seed, "test", "stylization", index)))


def _made(suite: Suite, name: str, salt: int, clips: Clips, given: Tensor) -> Tensor:
    """What the model makes (n, T, H, W, 3) of conditioning clips (n, T, H, W, 3) and the captions of the true ones."""
    made = suite.make(name, salt, clips.captions, condition=suite.encode_video(given, name)).video
    assert made is not None
    suite.keep(name, clips.captions, made, clips.video)
    return made


def _psnr_row(name: str, measure: str, clips: Clips, made: Tensor, where: Tensor, guess: Tensor, guess_is: str) -> Row:
    """How like the true clips those made are, at the pixels `where`, beside a guess; all are (n, T, H, W, ...)."""
    values, tokenizer, guessed = (decibels(x, clips.video, where) for x in (made, clips.video_again, guess))
    return compared(name, measure, values, guessed, guess_is, mean(tokenizer))
