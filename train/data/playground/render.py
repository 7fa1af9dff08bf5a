"""Drawing scenes: batched over clips, frames and pixels, on any device; objects are drawn in small windows.

Every pixel is rounded to 8 bits, as in a video file, so that a clip's bytes do not depend on what else is in the batch.
"""
# Shapes: B clips, P objects drawn together, T frames, S side of an object's window, H W height and width

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.data.playground.scene import COLOURS, Scene, Thing, Truth
from train.data.playground.shapes import distance, widest
from train.data.source import MediaSpec

# Muted colours of the grounds: one pair per tint (lighter part, darker part).
GROUNDS: dict[str, tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...]] = {
    "plain": (
        ((0.80, 0.79, 0.76), (0.80, 0.79, 0.76)), ((0.62, 0.66, 0.70), (0.62, 0.66, 0.70)),
        ((0.46, 0.47, 0.52), (0.46, 0.47, 0.52)), ((0.66, 0.70, 0.63), (0.66, 0.70, 0.63)),
    ),
    "gradient": (
        ((0.86, 0.85, 0.83), (0.52, 0.54, 0.58)), ((0.78, 0.74, 0.70), (0.48, 0.44, 0.46)),
        ((0.46, 0.50, 0.56), (0.76, 0.78, 0.80)), ((0.74, 0.78, 0.74), (0.44, 0.50, 0.50)),
    ),
    "wood": (
        ((0.84, 0.82, 0.78), (0.62, 0.53, 0.44)), ((0.70, 0.73, 0.75), (0.55, 0.47, 0.40)),
        ((0.78, 0.78, 0.80), (0.70, 0.61, 0.51)), ((0.66, 0.64, 0.60), (0.47, 0.40, 0.35)),
    ),
    "checker": (
        ((0.80, 0.79, 0.77), (0.70, 0.69, 0.68)), ((0.64, 0.67, 0.71), (0.55, 0.58, 0.62)),
        ((0.72, 0.69, 0.72), (0.62, 0.60, 0.63)), ((0.54, 0.57, 0.53), (0.46, 0.49, 0.46)),
    ),
    "sky": (
        ((0.72, 0.80, 0.86), (0.50, 0.58, 0.44)), ((0.84, 0.86, 0.86), (0.58, 0.62, 0.48)),
        ((0.62, 0.70, 0.80), (0.44, 0.52, 0.40)), ((0.84, 0.80, 0.76), (0.54, 0.55, 0.44)),
    ),
}  # fmt: skip
HORIZON = 0.62
N_CELLS = 4  # checker cells along the room
N_PLANKS = 4
OUTSIDE = 0.62  # brightness of what lies beyond the room's walls
PAPER = (0.95, 0.94, 0.90)
NIGHT = (0.04, 0.04, 0.09)
ROPE = 0.012  # width in room heights


@dataclass(frozen=True)
class _Frame:
    """Where a canvas lies: `side` pixels a side, each `scale` of which make one image height."""

    side: int
    scale: float
    block: int = 1  # screen pixels per canvas pixel


def pixel_block(size: int) -> int:
    """Side of the blocks of the pixel style."""
    return max(2, size // 32)


def render(scenes: Sequence[Scene], spec: MediaSpec, device: Any = "cpu") -> Tensor:
    """Frames (B, 3, T, H, W) float32 in [-1, 1], rounded to 8 bits."""
    video = torch.empty(len(scenes), 3, spec.n_frames, spec.size, spec.size, device=device)
    fine = [i for i, scene in enumerate(scenes) if scene.style != "pixel"]
    blocky = [i for i, scene in enumerate(scenes) if scene.style == "pixel"]
    if fine:
        drawn = _draw([scenes[i] for i in fine], spec, _Frame(spec.size, float(spec.size)), device)
        video = drawn if not blocky else video.index_copy_(0, torch.tensor(fine, device=device), drawn)
    if blocky:
        block = pixel_block(spec.size)
        frame = _Frame(-(-spec.size // block), spec.size / block, block)
        drawn = _draw([scenes[i] for i in blocky], spec, frame, device)
        drawn = drawn.repeat_interleave(block, -1).repeat_interleave(block, -2)[..., : spec.size, : spec.size]
        video = drawn if not fine else video.index_copy_(0, torch.tensor(blocky, device=device), drawn)
    return video.mul_(255).round_().div_(127.5).sub_(1).contiguous()


def _draw(scenes: list[Scene], spec: MediaSpec, frame: _Frame, device: Any) -> Tensor:
    """Frames (B, 3, T, side, side) in [0, 1]."""
    truths = [scene.truth(spec) for scene in scenes]
    canvas = _grounds(scenes, spec, frame, device)
    for layer in range(max(len(scene.objects) for scene in scenes)):
        groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for b, scene in enumerate(scenes):
            if layer < len(scene.objects):
                thing = scene.objects[layer]
                groups[thing.shape, thing.size, scene.style].append(b)
                if thing.motion == "swing":
                    _rope(canvas[b], scene, truths[b], layer, spec, frame)
        for (shape, _, style), members in groups.items():
            things = [scenes[b].objects[layer] for b in members]
            _objects(canvas, members, things, [truths[b] for b in members], layer, shape, style, spec, frame)
    return canvas.clamp_(0, 1)


def _tensor(values: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32).to(like.device)


# --- grounds -------------------------------------------------------------------------------------------------------


def _grounds(scenes: list[Scene], spec: MediaSpec, frame: _Frame, device: Any) -> Tensor:
    """The empty world under each camera, (B, 3, T, side, side); a still camera's is drawn once for all its frames."""
    canvas = torch.empty(len(scenes), 3, spec.n_frames, frame.side, frame.side, device=device)
    groups: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for b, scene in enumerate(scenes):
        groups[scene.background, scene.camera == "still"].append(b)
    for (kind, still), members in groups.items():
        times = scenes[members[0]].times(spec)[: 1 if still else None]
        views = [scenes[b].view(times) for b in members]
        zoom = _tensor([v.zoom for v in views], canvas)[:, :, None]  # (P, T', 1)
        centre = _tensor([v.centre for v in views], canvas)[:, :, None]  # (P, T', 1, 2)
        screen = (torch.arange(frame.side, device=device, dtype=torch.float32) + 0.5) / frame.scale - 0.5
        x, y = screen / zoom + centre[..., 0], screen / zoom + centre[..., 1]  # (P, T', side) world places
        soft = 1 / (frame.scale * zoom)  # (P, T', 1) one canvas pixel in world units
        tints = _tensor([GROUNDS[kind][scenes[b].tint] for b in members], canvas)  # (P, 2, 3)
        drawn = _ground(kind, tints, x, y, soft)
        # Sketches keep a breath of the ground, neon a glimmer of it.
        amount = {"sketch": 0.22, "neon": 0.13}
        base = {"sketch": PAPER, "neon": NIGHT}
        style = [scenes[b].style for b in members]
        if any(s in amount for s in style):
            share = _tensor([amount.get(s, 1.0) for s in style], canvas)
            under = _tensor([base.get(s, PAPER) for s in style], canvas)
            drawn = under[:, :, None, None, None] + (drawn - under[:, :, None, None, None]) * share.view(-1, 1, 1, 1, 1)
        canvas[torch.tensor(members, device=device)] = drawn.expand(-1, -1, spec.n_frames, -1, -1)
    return canvas


def _step(x: Tensor, soft: Tensor) -> Tensor:
    """0 where x < 0, 1 where x > 0, a ramp one pixel wide between."""
    return (x / soft + 0.5).clamp(0, 1)


def _ground(kind: str, tints: Tensor, x: Tensor, y: Tensor, soft: Tensor) -> Tensor:
    """(P, 3, T', side, side) from tints (P, 2, 3) and world places x, y (P, T', side)."""
    across, down, pixel = x[:, :, None, :], y[:, :, :, None], soft[..., None]
    if kind == "gradient":
        mix = down.clamp(0, 1)
    elif kind == "checker":
        wave = [((place * (N_CELLS / 2) % 1.0 - 0.5).abs() - 0.25) * (2 / N_CELLS) for place in (across, down)]
        a, b = (_step(w, pixel) for w in wave)
        mix = a + b - 2 * a * b
    elif kind in ("wood", "sky"):
        blur = pixel if kind == "wood" else pixel + 0.06
        mix = _step(down - HORIZON, blur)
    else:
        mix = torch.zeros_like(down)
    bright = 1 - (1 - OUTSIDE) * torch.maximum(
        _step((across - 0.5).abs() - 0.5, pixel), _step((down - 0.5).abs() - 0.5, pixel)
    )
    if kind == "wood":  # planks run towards the viewer, meeting at a point above the horizon
        depth = (down - HORIZON).clamp(min=0) + 0.55
        lane = (across - 0.5) / depth * N_PLANKS
        seam = (0.5 - (lane % 1.0 - 0.5).abs()) * depth / N_PLANKS
        bright = bright * (1 - 0.13 * mix * (1 - _step(seam - 0.011, pixel)))
    light, dark = (tints[:, k, :, None, None, None] for k in (0, 1))
    return (light + (dark - light) * mix[:, None]) * bright[:, None]


# --- objects -------------------------------------------------------------------------------------------------------


def _rope(canvas: Tensor, scene: Scene, truth: Truth, layer: int, spec: MediaSpec, frame: _Frame) -> None:
    """Draw the string of a swinging object into one clip (3, T, side, side)."""
    path, view = scene.objects[layer].path, scene.view(scene.times(spec))
    top = view.project(np.tile(np.array([[path.cx, path.cy]]), (spec.n_frames, 1, 1)))[:, 0] * frame.scale
    end = truth.positions[:, layer] / frame.block
    ax, ay, bx, by = (_tensor(p, canvas)[:, None, None] for p in (*top.T, *end.T))
    place = torch.arange(frame.side, device=canvas.device, dtype=torch.float32) + 0.5
    x, y = place[None, None, :] - ax, place[None, :, None] - ay
    dx, dy = bx - ax, by - ay
    along = ((x * dx + y * dy) / (dx * dx + dy * dy)).clamp_(0, 1)
    away = torch.sqrt((x - along * dx).square_() + (y - along * dy).square_())
    alpha = (0.5 + max(0.5, ROPE / 2 * frame.scale) - away).clamp_(0, 1)
    colour = {"neon": (0.55, 0.55, 0.62), "sketch": (0.40, 0.39, 0.38)}.get(scene.style, (0.20, 0.19, 0.20))
    canvas.add_((_tensor(colour, canvas)[:, None, None, None] - canvas) * alpha)


def _objects(
    canvas: Tensor,
    members: list[int],
    things: list[Thing],
    truths: list[Truth],
    layer: int,
    shape: str,
    style: str,
    spec: MediaSpec,
    frame: _Frame,
) -> None:
    """Draw P objects of one shape and style, one in each of the clips `members`, into canvas (B, 3, T, side, side)."""
    # In steps of 1/1024 pixel every sum below is exact in float32, so the window's place cannot change a pixel.
    place = np.round(np.stack([t.positions[:, layer] for t in truths]) / frame.block * 1024) / 1024  # (P, T, 2)
    radius = np.stack([t.radii[:, layer] for t in truths]) / frame.block  # (P, T)
    angle = np.stack([t.angles[:, layer] for t in truths])
    glow = 1.0 if style == "neon" else 0.0
    side = frame.side
    window = min(side, math.ceil(2 * (float(radius.max()) * (widest(shape) + glow) + 2)))
    corner = np.clip(np.floor(place - window / 2 + 0.5), 0, side - window).astype(np.int64)  # (P, T, 2)

    r = _tensor(radius, canvas)[..., None, None]  # (P, T, 1, 1)
    cells = torch.arange(window, device=canvas.device)
    offset = _tensor(corner - place + 0.5, canvas)  # (P, T, 2) from the centre to the window's first pixel
    dx = (offset[..., 0, None, None] + cells) / r  # (P, T, 1, S)
    dy = (offset[..., 1, None, None] + cells[:, None]) / r  # (P, T, S, 1)
    cos, sin = (_tensor(f(angle), canvas)[..., None, None] for f in (np.cos, np.sin))
    u, v = dx * cos + dy * sin, dy * cos - dx * sin  # (P, T, S, S)
    away = distance(shape, u, v) * r  # signed, in pixels

    n_frames, area = spec.n_frames, side * side
    first = torch.tensor(members)[:, None] * 3 * n_frames + torch.arange(n_frames)
    first = first * area + torch.from_numpy(corner[..., 1] * side + corner[..., 0])
    index = first.to(canvas.device)[..., None, None] + (cells[:, None] * side + cells)  # (P, T, S, S)
    flat = canvas.view(-1)

    colours = torch.tensor([COLOURS[t.colour] for t in things], device=canvas.device)
    lit, gloss = _shading(things, shape, u, v, dx, dy, away, r, style)
    cover = (0.5 - away).clamp(0, 1)
    if style == "sketch":
        line = max(0.7, 0.016 * frame.scale)
        edge = (line + 0.5 - away.abs()).clamp_(0, 1)
        inside = cover * 0.38
    if style == "neon":
        # Beyond sharp corners `away` is too small: the distance to the circle round the shape ends the glow there.
        around = (torch.sqrt(dx * dx + dy * dy) - widest(shape)) * r
        halo = (1 - torch.maximum(away, around).clamp_(min=0) / (r * 0.95)).clamp_(0, 1)
        halo = halo * halo * halo * 0.55
        core = (1 + away / (r * 0.16)).clamp_(0, 1) * cover * 0.45  # a bright rim just inside the outline
    for c in range(3):
        at = index + c * n_frames * area
        under = flat[at]
        tone = colours[:, c, None, None, None]
        if style == "sketch":
            under = under + (tone * lit - under) * inside
            new = under + (tone * 0.72 - under) * edge
        elif style == "neon":
            under = under + tone * halo
            new = under + (tone * lit * (1 - core) + core - under) * cover
        else:
            shade = tone * lit
            if gloss is not None:
                shade = shade + (1 - shade) * gloss
            new = under + (shade - under) * cover
        flat[at] = new


def _shading(
    things: list[Thing], shape: str, u: Tensor, v: Tensor, dx: Tensor, dy: Tensor, away: Tensor, r: Tensor, style: str
) -> tuple[Tensor, Tensor | None]:
    """Brightness (P, T, S, S) and share of white highlight, or None, that tell materials and turns of round things."""
    turning = None
    if shape in ("ball", "ring"):  # two darker quarters, so that rolling shows
        turning = (u * v * (r * 1.2)).clamp_(-0.5, 0.5).add_(0.5)
    if style in ("neon", "sketch"):
        return torch.ones(1, device=u.device) if turning is None else 1 - 0.30 * turning, None
    wood, metal, rubber = (
        torch.tensor([float(t.material == m) for t in things], device=u.device).view(-1, 1, 1, 1)
        for m in ("wood", "metal", "rubber")
    )
    lit = torch.ones_like(u)
    if wood.any():  # grain: three dark lines along the object's own axis
        grain = ((v * 1.6 + 0.08) % 1.0 - 0.5).abs_().mul_(5).clamp_(max=1)  # 0 on a line
        lit = lit - wood * 0.12 * (1 - grain)
    if rubber.any():  # a dark matt rim
        lit = lit - rubber * 0.20 * (away / r * 5 + 1).clamp_(0, 1)
    if turning is not None:
        lit = lit - 0.24 * turning
    gloss = None
    if metal.any():  # a light band across the upper left, fixed to the light and not to the object
        band = 1 - (dx + 2 * dy + 0.75).abs() * 1.9
        gloss = metal * 0.40 * band.clamp_(0, 1)
    return lit, gloss
