"""The part of the playground suite about long videos: what is left of a clip that is continued over and over."""
# Shapes: n B clips, T frames, H W height and width, t h w latent sizes, Q audio levels, F audio columns

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.errors import InputError
from tasks.long_video import n_carried, n_kept, next_row
from train.evaluate import generation
from train.evaluate.prompts import IN_VIEW, scored_row
from train.evaluate.report import Row
from train.evaluate.tracking import track

if TYPE_CHECKING:
    from train.evaluate.suite import Suite

N_WINDOWS = 8
SHARE = 4  # every clip takes as long as four others, so that only one in so many is continued
SALT = 100  # of the first window; the others count on from it


def long_video(suite: Suite) -> list[Row]:
    """The first second of clips and of their sound continued window by window, with their captions, as `extend` does.

    Sharpness is the energy of a window's gradients over that of the first second, change the mean difference of a
    window's frames from the ones before them, in grey levels of 255.
    """
    clips, name, layout = suite.clips, "long_video", suite.poet.config.layout
    n = -(-len(clips) // SHARE)
    if layout.latent_frames < 2:
        raise InputError("this model makes single images, it cannot continue a video")
    given = n_kept(layout)
    hop = layout.n_frames - given  # frames that a window adds
    spec = replace(suite.spec, n_frames=given + N_WINDOWS * hop)
    work = N_WINDOWS * generation.n_steps(suite.poet, next_row(True).name, n_context=n_carried(layout))
    made = torch.cat([_continued(suite, part, tick) for part, tick in suite.batches(n, name, work)])
    true = torch.cat([
        generation.to_frames(suite.world.render(clips.scenes[part], spec))
        for part, _ in suite.batches(n, f"{name}, true clips")
    ])  # fmt: skip
    suite.keep(name, clips.captions, made, true)
    colours = [scene.objects[0].colour for scene in clips.scenes[:n]]
    rows = []
    for w in range(N_WINDOWS):
        window = slice(given + w * hop, given + (w + 1) * hop)
        rows += _rows(name, f"window {w + 1}", {"model": made, "truth": true}, window, given, colours)
    return rows


def _rows(part: str, when: str, frames: dict[str, Tensor], window: slice, given: int, colours: list[str]) -> list[Row]:
    """What long clips (n, T, H, W, 3), of which the first frames were given, show of their objects in a window."""
    found = {key: [track(one[window]) for one in some] for key, some in frames.items()}
    energy = {key: [sharpness(one[window]) / sharpness(one[:given]) for one in some] for key, some in frames.items()}

    def colour(key: str, i: int, k: int) -> float:
        return float(found[key][i].colour == colours[k]) if key in found else math.nan

    n = len(colours)
    present = {
        key: sum(float(one.visible.float().mean()) >= IN_VIEW for one in some) / n for key, some in found.items()
    }
    sharp = {key: sum(some) / n for key, some in energy.items()}
    since = slice(window.start - 1, window.stop)
    change = {key: float(some[:, since].float().diff(dim=1).abs().mean()) for key, some in frames.items()}
    return [
        scored_row(part, f"{when}: colour right", "%", n, colour, "other prompts"),
        Row(part, f"{when}: object in view", present["model"], "%", n, present["truth"]),
        Row(part, f"{when}: sharpness", sharp["model"], "", n, sharp["truth"]),
        Row(part, f"{when}: change", change["model"], "", n, change["truth"]),
    ]


def sharpness(frames: Tensor) -> float:
    """Mean square of the steps between neighbours in frames (T, H, W, 3) uint8, scaled to [0, 1]."""
    x = frames.float() / 255
    return float(x.diff(dim=1).square().mean() + x.diff(dim=2).square().mean())


@torch.inference_mode()
def _continued(suite: Suite, part: slice, tick: Callable[[int], None]) -> Tensor:
    """Frames (B, T, H, W, 3) uint8 of a part of the clips: their first second, then what every window adds."""
    clips, layout, codec = suite.clips, suite.poet.config.layout, suite.poet.codec
    n, n_columns = n_carried(layout), layout.columns(n_carried(layout))
    video, audio = clips.video_ids[part, :n], clips.audio_ids[part, :, :n_columns]
    whole = video
    for w in range(N_WINDOWS):
        made, heard = generation.draw(
            suite.poet, next_row(True).name, captions=clips.captions[part], video=video, audio=audio,
            seeds=suite.seeds(part, SALT + w), n_context=n, tick=tick,
        )  # fmt: skip
        assert made is not None and heard is not None
        whole = torch.cat([whole, made[:, n:]], dim=1)
        video, audio = made[:, -n:], heard[..., heard.shape[2] - n_columns :]
    return torch.stack([codec.decode_video(ids) for ids in whole])  # one by one: long clips are hungry
