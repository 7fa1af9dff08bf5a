"""The six outlines: signed distance for drawing, corners of the hull for contact with floor and walls.

All in units of the object's radius, x to the right, y down. Distances are exact inside and along edges; beyond
sharp corners they are bounds, which is all that anti-aliasing and glow need.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SHAPES = ("ball", "cube", "triangle", "star", "ring", "cross")

CUBE = 0.86  # half side
TRIANGLE_TOP, TRIANGLE_BASE, TRIANGLE_HALF = -1.05, 0.78, 1.08
STAR = 1.16  # distance of the points from the centre
RING_MID, RING_HALF = 0.73, 0.27
CROSS_ARM, CROSS_HALF = 1.0, 0.35

_STAR_ANGLES = [math.radians(-90 + 72 * k) for k in range(5)]
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "cube": [(x, y) for x in (-CUBE, CUBE) for y in (-CUBE, CUBE)],
    "triangle": [(0.0, TRIANGLE_TOP), (-TRIANGLE_HALF, TRIANGLE_BASE), (TRIANGLE_HALF, TRIANGLE_BASE)],
    "star": [(STAR * math.cos(a), STAR * math.sin(a)) for a in _STAR_ANGLES],
    "cross": [(s * a, t * b) for a, b in ((CROSS_ARM, CROSS_HALF), (CROSS_HALF, CROSS_ARM))
              for s in (-1, 1) for t in (-1, 1)],
}  # fmt: skip
CORNERS = {name: np.array(points) for name, points in _CORNERS.items()}


def reach(shape: str, direction: tuple[float, float], angle: float | np.ndarray = 0.0) -> np.ndarray:
    """How far the shape, turned clockwise by `angle` (radians, any array shape), reaches along a unit direction."""
    angle = np.asarray(angle, dtype=np.float64)
    if shape in ("ball", "ring"):
        return np.ones_like(angle)
    x, y = CORNERS[shape].T
    dx, dy = direction
    along = np.cos(angle)[..., None] * (x * dx + y * dy) + np.sin(angle)[..., None] * (x * dy - y * dx)
    return along.max(-1)


def widest(shape: str) -> float:
    """Distance of the farthest corner from the centre."""
    return 1.0 if shape in ("ball", "ring") else float(np.hypot(*CORNERS[shape].T).max())


def distance(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Signed distance to the outline (negative inside) at local points u, v (same shape)."""
    if shape == "ball":
        return torch.sqrt(u * u + v * v).sub_(1.0)
    if shape == "ring":
        return torch.sqrt(u * u + v * v).sub_(RING_MID).abs_().sub_(RING_HALF)
    if shape == "cube":
        return torch.maximum(u.abs(), v.abs()).sub_(CUBE)
    if shape == "cross":
        a, b = u.abs(), v.abs()
        return torch.maximum(torch.maximum(a, b).sub_(CROSS_ARM), torch.minimum(a, b).sub_(CROSS_HALF))
    if shape == "triangle":
        height = TRIANGLE_BASE - TRIANGLE_TOP
        norm = math.hypot(TRIANGLE_HALF, height)
        side = (u.abs() * height).sub_((v - TRIANGLE_TOP) * TRIANGLE_HALF).div_(norm)
        return torch.maximum(side, v - TRIANGLE_BASE)
    if shape == "star":
        # A pentagram is where at most one of its five long edges is crossed: the second largest edge distance.
        edge = STAR * math.cos(math.radians(72))
        first = second = None
        for angle in _STAR_ANGLES:  # edge normals point away from the points
            d = (u * -math.cos(angle)).sub_(v * math.sin(angle)).sub_(edge)
            if first is None:
                first = d
            elif second is None:
                first, second = torch.maximum(first, d), torch.minimum(first, d)
            else:
                second = torch.maximum(second, torch.minimum(first, d))
                first = torch.maximum(first, d)
        assert second is not None
        return second
    raise ValueError(f"unknown shape {shape!r}, expected one of {SHAPES}")
