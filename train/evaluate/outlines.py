"""Naming the outline of a masked object and measuring it, by comparison with drawn templates in all turns and sizes."""
# Shapes: T frames, H W height and width, K templates, S side of a patch

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from train.data.playground.scene import SIZES
from train.data.playground.shapes import SHAPES, distance, widest
from train.evaluate.tracking import RAMP, Track

SIDE = 40  # template and patch pixels a side
REACH = 0.32  # half a patch's side in image heights: the farthest corner of the largest shape is at 0.3
SYMMETRY = {"ball": 1, "ring": 1, "cube": 4, "cross": 4, "triangle": 3, "star": 5}  # turns that look the same
RADII = tuple(0.095 * 1.075**k for k in range(14))  # in image heights, up to 0.243
TURN = math.radians(6)
BLURS = (0.0, 1.5)  # pixels


@dataclass(frozen=True)
class Templates:
    masks: Tensor  # (K, S * S) in [0, 1], centred on their centroids
    energy: Tensor  # (K,) sum of squares
    cell: Tensor  # (K,) index of the shape times the number of radii plus index of the radius


@lru_cache(maxsize=4)
def templates(pixel: float = 1.0 / 64) -> Templates:
    """All outlines, sharp and blurred, masked as `tracking.track` masks them; `pixel` is one of the image's heights."""
    place = ((torch.arange(SIDE) + 0.5) / SIDE * 2 - 1) * REACH
    drawn, cells = [], []
    for s, shape in enumerate(SHAPES):
        n = 1 if SYMMETRY[shape] == 1 else round(2 * math.pi / SYMMETRY[shape] / TURN)
        for k in range(n):
            drawn.append(_drawn(shape, 2 * math.pi / SYMMETRY[shape] * k / n, place, pixel))
            cells += [s * len(RADII) + r for r in range(len(RADII))]
    sharp = torch.cat(drawn)
    masks = torch.cat([_ramped(_blurred(sharp, blur * pixel * SIDE / (2 * REACH))).flatten(1) for blur in BLURS])
    return Templates(masks, masks.square().sum(1), torch.tensor(cells * len(BLURS)))


def _blurred(masks: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (K, S, S), sigma in pixels."""
    if sigma == 0:
        return masks
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    rows = F.conv2d(masks[:, None], kernel.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1), padding=(reach, 0))[:, 0]


def _ramped(share: Tensor) -> Tensor:
    """Soft masks (K, S, S) of how much of the object's colour each pixel has, as `tracking.track` makes them."""
    strong = torch.where(share > 0.15, share, torch.nan).flatten(1)
    full = strong.nanquantile(0.8, dim=1)[:, None, None]
    return ((share / full - RAMP[0]) / (RAMP[1] - RAMP[0])).clamp(0, 1)


def _drawn(shape: str, angle: float, place: Tensor, softness: float) -> Tensor:
    """Masks (R, S, S) of a shape in all RADII, its centroid in the middle, edges `softness` image heights wide."""
    cx, cy = _centroid(shape)
    cos, sin = math.cos(angle), math.sin(angle)
    radius = torch.tensor(RADII)[:, None, None]
    x = place[None, None, :] / radius + (cx * cos - cy * sin)
    y = place[None, :, None] / radius + (cx * sin + cy * cos)
    u, v = x * cos + y * sin, y * cos - x * sin
    return (0.5 - distance(shape, u, v) * radius / softness).clamp(0, 1)


@lru_cache(maxsize=16)
def _centroid(shape: str) -> tuple[float, float]:
    """Centroid of the shape's area from its centre, in radii, x then y."""
    side = 2 * widest(shape) * ((torch.arange(200) + 0.5) / 200 - 0.5)
    u, v = side.expand(200, 200), side[:, None].expand(200, 200)
    inside = (distance(shape, u, v) < 0).double()
    return float((inside * u).sum() / inside.sum()), float((inside * v).sum() / inside.sum())


def patches(images: Tensor, centre: Tensor, turn: Tensor | None = None) -> Tensor:
    """Square cut-outs (T, S, S) around centres (T, 2), in image heights, of images (T, H, W).

    `turn` (T,) radians turns what is seen anticlockwise, so that an object turned clockwise by it stands upright.
    """
    T, H, W = images.shape
    side = ((torch.arange(SIDE) + 0.5) / SIDE * 2 - 1) * REACH
    x, y = side.expand(SIDE, SIDE), side[:, None].expand(SIDE, SIDE)
    turn = torch.zeros(T) if turn is None else turn
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    px = centre[:, 0, None, None] + x * cos - y * sin
    py = centre[:, 1, None, None] + x * sin + y * cos
    grid = torch.stack([px * H / W * 2 - 1, py * 2 - 1], -1)
    return F.grid_sample(images[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]


@dataclass
class Outline:
    shape: str | None  # one of SHAPES
    size: str | None  # one of SIZES
    radius: float  # image heights
    scores: dict[str, float]  # likeness of each shape in [0, 1]


def outline(track: Track) -> Outline:
    """Shape and size of a tracked object, from the frames in which it is wholly inside the image."""
    height = track.mask.shape[1]
    use = track.visible & (_edge_share(track.mask) < 0.5)
    if not use.any():
        use = track.visible
    if not use.any():
        return Outline(None, None, math.nan, dict.fromkeys(SHAPES, 0.0))
    bank = templates(1.0 / height)
    cut = patches(track.mask[use], track.centre[use]).flatten(1)  # (T', S*S)
    both = cut @ bank.masks.T
    like = both / (cut.square().sum(1, keepdim=True) + bank.energy - both)  # Tanimoto: 1 for equal masks
    n_shapes, n_radii = len(SHAPES), len(RADII)
    cell = bank.cell.expand(len(like), -1)
    best = torch.zeros(len(like), n_shapes * n_radii).scatter_reduce_(1, cell, like, "amax")
    # The size does not change within a clip; bad frames must not decide, so the better three quarters count.
    good = best.sort(0, descending=True).values[: max(1, math.ceil(0.75 * len(best)))].mean(0)
    table = good.view(n_shapes, n_radii)
    scores = table.amax(1)
    shape = int(scores.argmax())
    radius = _peak(table[shape])
    size = min(SIZES, key=lambda name: abs(math.log(SIZES[name] / radius)))
    return Outline(SHAPES[shape], size, radius, dict(zip(SHAPES, scores.tolist())))


def _edge_share(mask: Tensor) -> Tensor:
    """How much of the image's border the mask covers, in pixels over a tenth of the height: (T, H, W) -> (T,)."""
    border = mask[:, 0].sum(1) + mask[:, -1].sum(1) + mask[:, :, 0].sum(1) + mask[:, :, -1].sum(1)
    return border / (0.1 * mask.shape[1])


def _peak(row: Tensor) -> float:
    """Radius at the top of the parabola through the best score and its neighbours."""
    k = int(row.argmax())
    step = 0.0
    if 0 < k < len(row) - 1:
        a, b, c = row[k - 1 : k + 2].tolist()
        bend = a - 2 * b + c
        step = 0.5 * (a - c) / bend if bend < 0 else 0.0
    return RADII[0] * (RADII[1] / RADII[0]) ** (k + step)
