"""The super-resolution suite: small clips made large by plain resampling and by a head, beside the true large clips.

The small clips are the true ones made small, as they are ("clean") and through the model's video tokenizer and back
("decoded"), which is what a head is for. "between" and "thirds" are the frames of two and three times the rate that lie
between the decoded ones, by `rate` and by plain interpolation. All clips are of the test split, and 8-bit frames
wherever a file would be. Clips go through one at a time: seconds are those that somebody waits for one clip.
"""
# Shapes: T frames, H W height and width of the large frames, h w of the small ones

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tasks.check import check_opencv
from tasks.errors import InputError
from tokenizers_av.superres import SCALES, STEPS, downsample, in_between, upsample
from train.data import MediaSpec, Source, open_source
from train.evaluate import generation
from train.evaluate.detail import Motion, detail, flicker, gmsd, kept
from train.evaluate.report import margin_of_mean, mean
from train.evaluate.tokenizer_metrics import psnr, ssim

if TYPE_CHECKING:
    from tasks.pipeline import AVPoet
    from tokenizers_av.superres import SuperRes

PARTS = {"clean": 1, "decoded": 1, "between": 2, "thirds": 3}  # name -> frames that are made of one
MEASURES = {  # name -> what the column is called
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "gmsd": "GMSD ↓",
    "detail": "detail (1)",
    "detail_off": "detail off, octaves ↓",
    "flicker": "flicker ↓",
    "kept": "kept ↓",
    "seconds": "seconds ↓",
}
LEGEND = (
    "Mean over clips ± half the 95 % interval; ↓ less is better. Detail: energy beyond what small frames can hold over "
    "that of the true clip, 1 is right, less is blur, more is noise; off: how many doublings from 1. Flicker: change "
    "along the true motion, the true clip's own is right. Kept: how far the large clip, made small again, is from the "
    "small one. Flicker and kept in grey levels of 255. Truth: the true large clip itself. Between, thirds: "
    "clips at two and three times the rate of which every second and third frame is given; all but flicker is of the "
    "others."
)

Enlarge = Callable[[Tensor, int, str], Tensor]  # (1, 3, T, h, w) in [-1, 1], seed, caption -> the same, large
Tell = Callable[[str], Tensor | None]  # a caption -> ids (n,)


@dataclass
class Figures:
    """What one way to enlarge scores on each clip."""

    part: str  # of PARTS
    method: str
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})

    def margin(self, name: str) -> float:
        """See `margin_of_mean`."""
        return margin_of_mean(self.values[name])


@dataclass
class UpscalingReport:
    """A row for each way to enlarge, a column for each measure, and the conditions they hold under."""

    rows: list[Figures] = field(default_factory=list)
    conditions: dict[str, str | int | float] = field(default_factory=dict)
    against: Sequence[str] = ()  # rows of further heads

    def markdown(self) -> str:
        """A table for people."""
        lines = [("small clip", "method", *MEASURES.values()), ("---", "---", *["---:"] * len(MEASURES))]
        for row in self.rows:
            lines.append((row.part, row.method, *(_cell(mean(row.values[m]), row.margin(m)) for m in MEASURES)))
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        about = " · ".join(f"{key} {value}" for key, value in self.conditions.items() if key != "command")
        command = f"`{self.conditions['command']}`\n\n" if "command" in self.conditions else ""
        return f"{command}{about}\n\n{table}\n\n{LEGEND}\n"

    def to_json(self) -> str:
        """One line; figures that do not exist are null.

        `over_bicubic` are differences from bicubic, blended where frames lie between, on the same clips, `over_Lanczos`
        from that, `over_NAME` from a further head. Their interval is narrower than that of the figures: clips differ
        more than methods do.
        """
        others = {"bicubic": ("bicubic", "bicubic, blend"), "Lanczos": ("Lanczos",), **{a: (a,) for a in self.against}}
        rows = []
        for row in self.rows:
            bases = {f"over_{name}": other for name, methods in others.items() for other in self.rows
                     if other.part == row.part and other.method in methods}  # fmt: skip
            over = {name: _difference(row, other) for name, other in bases.items()}
            rows.append({
                "part": row.part, "method": row.method, "n": len(row.values["psnr"]),
                **{m: {**_plain(row, m), **{k: _plain(d, m) for k, d in over.items()}} for m in MEASURES},
            })  # fmt: skip
        return json.dumps({"conditions": self.conditions, "rows": rows}, ensure_ascii=False, allow_nan=False)


def superres_suite(
    poet: AVPoet,
    n: int,
    seed: int = 0,
    *,
    scale: int = 4,
    data: str | Sequence[str] = "playground",
    only: Sequence[str] | None = None,
    against: Mapping[str, SuperRes] | None = None,
    progress: bool = True,
) -> UpscalingReport:
    """Measure a model's super-resolution head on n clips of its length and `scale` times its size.

    data: as `open_source` takes it; files should be as large as that, or the truth is itself blurred. only: some of
    PARTS. against: further heads by name, each run with one step and without noise, as regression networks are.
    Raises InputError for a model without a head and for other values, before any work.
    """
    head, source = _checked(poet, n, seed, scale, data, only)
    layout, side = poet.config.layout, scale * poet.config.size[0]
    spec = MediaSpec(layout.n_frames, side, layout.fps, poet.codec.sample_rate)
    others = {name: other.to(poet.device, poet.dtype).eval() for name, other in (against or {}).items()}
    parts = [p for p, rate in PARTS.items() if (p in only if only is not None else rate == 1 or _is_playground(data))]
    tell = poet.codec.encode_text if _is_playground(data) else None  # other data need not have captions
    ways = {part: _between(head, scale, PARTS[part]) if PARTS[part] > 1 else
            _rows(head, scale, others, tell, keep=part == "clean") for part in parts}  # fmt: skip
    for way in ways[parts[0]].values():  # what is prepared once is no clip's time
        way(torch.zeros(1, 3, 2, *poet.config.size, device=poet.device), seed, "")
    figures = {(part, name): Figures(part, name) for part in parts for name in ("truth", *ways[part])}
    for i in _counted(n, "clips enlarged", progress):
        for rate in sorted({PARTS[part] for part in parts}):
            n_frames = rate * (spec.n_frames - 1) + 1
            clips = source.batch([i], replace(spec, n_frames=n_frames, fps=rate * spec.fps), audio=False)
            assert clips.video is not None
            truth = generation.to_frames(clips.video)  # (1, T, H, W, 3) uint8
            motion, caption = Motion.of(truth[0]), "".join(clips.captions)
            for part in [part for part in parts if PARTS[part] == rate]:
                small = _small(poet, truth[:, ::rate], scale, decoded=part != "clean")
                _measure(figures[part, "truth"].values, truth, truth, small, motion, scale, rate, math.nan)
                for name, way in ways[part].items():
                    begun = time.perf_counter()
                    made = generation.to_frames(way(small.to(poet.device), seed + i, caption).cpu())[:, :n_frames]
                    seconds = time.perf_counter() - begun
                    _measure(figures[part, name].values, made, truth, small, motion, scale, rate, seconds)
    return UpscalingReport(list(figures.values()), {
        "suite": "superres", "split": "test", "data": data if isinstance(data, str) else " ".join(data), "n": n,
        "seed": seed, "scale": scale, "clip": f"{spec.n_frames} frames of {side}x{side} at {spec.fps:g} a second",
        "head's own setting": _named(head.config.steps, head.config.noise) + " (clean 0)",
        "threads": torch.get_num_threads(),
    }, tuple(others))  # fmt: skip


def _difference(row: Figures, other: Figures) -> Figures:
    """By how much a row is above another of the same clips."""
    pairs = {m: zip(row.values[m], other.values[m], strict=True) for m in MEASURES}
    return Figures(row.part, row.method, {m: [a - b for a, b in both] for m, both in pairs.items()})


def _is_playground(data: str | Sequence[str]) -> bool:
    return ([data] if isinstance(data, str) else list(data)) == ["playground"]


def _checked(
    poet: AVPoet, n: int, seed: int, scale: int, data: str | Sequence[str], only: Sequence[str] | None
) -> tuple[SuperRes, Source]:
    """What to measure, and on which clips; raises InputError for what cannot be asked."""
    head = poet.superres_head
    if head is None:
        raise InputError("this model has no super-resolution head; `avpoet-train superres` trains one")
    check_opencv()
    if n < 1 or seed < 0 or scale not in SCALES:
        scales = " or ".join(map(str, SCALES))
        raise InputError(f"n={n}, seed={seed}, scale={scale}: need n >= 1, seed >= 0 and a scale of {scales}")
    if only is not None and (not only or set(only) - set(PARTS)):
        raise InputError(f"unknown part in {', '.join(only)!r}, expected some of {', '.join(PARTS)}")
    for part in only or ():
        if PARTS[part] > 1 and not _is_playground(data):
            raise InputError(f"{part}: only of the playground are there frames at exactly {PARTS[part]} times the rate")
    height, width = poet.config.size
    if height != width:
        raise InputError(f"this model makes frames of {height}x{width} pixels, the suite measures square ones")
    try:
        return head, open_source(data, split="test", seed=seed)
    except ValueError as error:
        raise InputError(str(error)) from None


def _rows(
    head: SuperRes, scale: int, against: Mapping[str, SuperRes], tell: Tell | None, *, keep: bool
) -> dict[str, Enlarge]:
    """Every way to enlarge, by the name of its row."""
    own = head.config
    levels = [round(own.max_noise * share, 6) for share in (0, 1 / 3, 2 / 3, 1)]
    usual = 0.0 if keep else own.noise
    settings = [(steps, usual) for steps in STEPS] + [(own.steps, noise) for noise in levels]
    ways = {
        "bicubic": lambda small, seed, caption: upsample(small, scale),
        "Lanczos": lambda small, seed, caption: lanczos(small, scale),
        **{_named(steps, noise): _by(head, scale, steps, noise, keep) for steps, noise in settings},
        **{name: _by(other, scale, 1, 0.0, keep) for name, other in against.items()},
    }
    if own.text_size and tell is not None:
        ways[f"{_named(own.steps, usual)}, caption"] = _by(head, scale, own.steps, usual, keep, tell)
    return ways


def _between(head: SuperRes, scale: int, rate: int) -> dict[str, Enlarge]:
    """Every way to enlarge and to make `rate` frames of one, by the name of its row."""
    own = _by(head, scale, head.config.steps, head.config.noise, keep=False)
    return {
        "bicubic, blend": lambda small, seed, caption: _blended(upsample(small, scale), rate),
        "bicubic, optical flow": lambda small, seed, caption: in_between(upsample(small, scale), rate),
        "head, blend": lambda small, seed, caption: _blended(own(small, seed, caption), rate),
        f"head, rate {rate}": lambda small, seed, caption: head.upscale(small, scale, rate=rate, seed=seed),
    }


def _by(head: SuperRes, scale: int, steps: int, noise: float, keep: bool, tell: Tell | None = None) -> Enlarge:
    """A head at one setting; with `tell` it is told the caption."""

    def enlarge(small: Tensor, seed: int, caption: str) -> Tensor:
        ids = tell(caption) if tell is not None else None
        text = None if ids is None else ids[None].to(small.device)
        return head.upscale(small, scale, steps=steps, noise=noise, seed=seed, keep=keep, text=text)

    return enlarge


def _blended(video: Tensor, rate: int) -> Tensor:
    """(B, 3, T, H, W) -> (B, 3, rate * (T - 1) + 1, H, W): between two frames their weighted mean."""
    shares = [torch.lerp(video[:, :, :-1], video[:, :, 1:], k / rate) for k in range(rate)]
    return torch.cat([torch.stack(shares, dim=3).flatten(2, 3), video[:, :, -1:]], dim=2)


def _named(steps: int, noise: float) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}, noise {noise:g}"


def lanczos(video: Tensor, scale: int) -> Tensor:
    """Pillow's Lanczos, frame by frame: (B, 3, T, h, w) in [-1, 1] -> (B, 3, T, scale * h, scale * w) in [-1, 1]."""
    from PIL import Image

    h, w = video.shape[3:]
    planes = [
        np.array(Image.fromarray(plane).resize((scale * w, scale * h), Image.Resampling.LANCZOS))
        for plane in video.cpu().float().flatten(0, 2).numpy()
    ]
    return torch.from_numpy(np.stack(planes)).clamp(-1, 1).unflatten(0, video.shape[:3]).to(video.device)


def _small(poet: AVPoet, truth: Tensor, scale: int, *, decoded: bool) -> Tensor:
    """(1, 3, T, h, w) in [-1, 1], of 8-bit frames, of (1, T, H, W, 3) uint8."""
    small = generation.to_network(generation.to_frames(downsample(generation.to_network(truth), scale)))
    if not decoded:
        return small
    again = generation.decode(poet, generation.encode(poet, small, None)[0], None).video
    assert again is not None
    return generation.to_network(again)


def _measure(
    values: dict[str, list[float]],
    made: Tensor,
    truth: Tensor,
    small: Tensor,
    motion: Motion,
    scale: int,
    rate: int,
    seconds: float,
) -> None:
    """Add what a clip scores: made and truth (1, T, H, W, 3) uint8, small (1, 3, T, h, w) in [-1, 1]; where small is of
    every `rate`-th frame, the others are measured."""
    output, target = generation.to_unit(made), generation.to_unit(truth)
    steady = flicker(output[0], motion)
    if rate > 1:
        others = torch.arange(target.shape[2]) % rate > 0
        output, target = output[:, :, others], target[:, :, others]
    share = float(detail(output, target, scale))
    for name, value in {
        "psnr": float(psnr(output, target)),
        "ssim": float(ssim(output, target)),
        "gmsd": float(gmsd(output, target)),
        "detail": share,
        "detail_off": abs(math.log2(share)),
        "flicker": steady,
        "kept": math.nan if rate > 1 else float(kept(output, (small + 1) / 2)),
        "seconds": seconds,
    }.items():
        values[name].append(value)


def _counted(n: int, what: str, progress: bool) -> Iterator[int]:
    from tqdm import tqdm

    yield from tqdm(range(n), desc=what, file=sys.stderr, disable=not progress)


def _cell(value: float, margin: float) -> str:
    if math.isnan(value):
        return "–"
    places = 2 if abs(value) >= 10 else 3
    return f"{value:.{places}f}" + ("" if math.isnan(margin) else f" ± {margin:.{places}f}")


def _plain(row: Figures, name: str) -> dict[str, float | None]:
    numbers = {"mean": mean(row.values[name]), "margin": row.margin(name)}
    return {key: round(value, 6) if math.isfinite(value) else None for key, value in numbers.items()}
