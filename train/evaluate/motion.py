"""Reading a motion from a trajectory: its name, whether it went the way it was asked to, and when things were hit."""
# Shapes: T frames

from __future__ import annotations

import math

import torch
from torch import Tensor

from train.data.playground.physics import GRAVITY
from train.data.playground.scene import COLOURS
from train.evaluate.outlines import patches
from train.evaluate.tracking import Track, colour_plane

MIN_TRAVEL = 0.12  # image heights; less is standing still
FIRST_WALL = 1.35  # seconds: sliding, rolling and floating things meet no wall before
MIN_TURN = math.radians(120)  # of an orbit
MIN_ORBIT = math.radians(200)  # of an orbit that is to be told from all other motions


def filled(centre: Tensor) -> Tensor:
    """Trajectory (T, 2) with frames that are NaN taken from their neighbours, evenly; all NaN stays so."""
    known = ~centre[:, 0].isnan()
    if known.all() or not known.any():
        return centre
    at = known.nonzero()[:, 0].double()
    t = torch.arange(len(centre), dtype=torch.double)
    right = torch.searchsorted(at, t).clamp(max=len(at) - 1)
    left = (right - 1).clamp(min=0)
    left = torch.where(at[right] <= t, right, left)
    span = (at[right] - at[left]).clamp(min=1e-9)
    share = ((t - at[left]) / span).clamp(0, 1)[:, None].float()
    points = centre[known]
    return points[left] * (1 - share) + points[right] * share


def turned(path: Tensor) -> float:
    """Net angle in radians, clockwise on the screen, of a trajectory (T, 2) about the circle that fits it best."""
    x, y = path.double().unbind(1)
    a = torch.stack([x, y, torch.ones_like(x)], 1)
    a[:, :2] -= path.double().mean(0)
    fit = torch.linalg.lstsq(a.T @ a + 1e-9 * torch.eye(3, dtype=a.dtype), a.T @ (a[:, :2] ** 2).sum(1)).solution
    centre = path.double().mean(0) + fit[:2] / 2
    angle = torch.atan2(y - centre[1], x - centre[0])
    step = (angle.diff() + math.pi) % (2 * math.pi) - math.pi
    return float(step.sum())


def extent(path: Tensor) -> tuple[float, float]:
    """Width and height of a trajectory."""
    return tuple((path.amax(0) - path.amin(0)).tolist())


def _until(seconds: float, fps: float, n: int) -> int:
    return min(n, math.floor(seconds * fps) + 1)


def went(path: Tensor, fps: float, motion: str, direction: str | None) -> bool:
    """Whether a trajectory (T, 2) goes the way that a motion and its direction ask for.

    slide, roll, float: the travel before a wall can be met has the asked sign, and is more along its axis than across.
    orbit: at least a third of a turn in the asked sense. bounce: falls, then rises again or rests where it fell to.
    swing: mostly sideways, and there and back before a wall could have sent it back.
    """
    if path.isnan().any() or len(path) < 3:
        return False
    wide, high = extent(path)
    if motion in ("slide", "roll", "float"):
        axis = 1 if motion == "float" else 0
        early = path[: _until(FIRST_WALL, fps, len(path)), axis]
        travel = float(early[-2:].mean() - early[:2].mean())
        along, across = (high, wide) if axis else (wide, high)
        sign = 1 if direction in ("right", "down") else -1
        return travel * sign > MIN_TRAVEL and along > across
    if motion == "orbit":
        sign = 1 if direction == "clockwise" else -1
        return turned(path) * sign > MIN_TURN and min(wide, high) > MIN_TRAVEL
    if motion == "bounce":
        return high > wide and _falls(path, fps)
    if motion == "swing":
        return wide > MIN_TRAVEL and high < 0.7 * wide and _there_and_back(path[: _until(1.6, fps, len(path)), 0])
    raise ValueError(f"unknown motion {motion!r}")


def _falls(path: Tensor, fps: float) -> bool:
    """Falls at once and early, and then rises again or lies still."""
    y = path[:, 1]
    early = _until(1.0, fps, len(y))
    low = int(y[:early].argmax())
    fell = float(y[low] - y[: max(1, low)].min()) if low else 0.0
    if fell < MIN_TRAVEL or y[0] > y[low] - 0.5 * fell:
        return False
    after = y[low:]
    rose = float(y[low] - after.min()) > 0.05
    rests = len(after) >= 3 and float(after.max() - after.min()) < 0.03
    return (rose and float(after.max() - y[low]) < 0.08) or rests


def _there_and_back(x: Tensor) -> bool:
    """Turns round on its way, with at least a third of the way on either side."""
    wide = float(x.max() - x.min())
    turns = [(x[k] - x[0], x[k:] - x[k]) for k in range(1, len(x) - 1)]
    return any(
        (float(out) > 0.33 * wide and float(back.min()) < -0.33 * wide)
        or (float(out) < -0.33 * wide and float(back.max()) > 0.33 * wide)
        for out, back in turns
    )


def motion_name(track: Track, fps: float, radius: float, lit: Tensor) -> tuple[str | None, str | None]:
    """Motion and direction of a tracked object; (None, None) if nothing moves.

    lit: (T, H, W) from `paint`, in which a rolling object's turning pattern is looked for.
    radius: of the object, in image heights.
    """
    path = filled(track.centre)
    if path.isnan().any() or len(path) < 3:
        return None, None
    wide, high = extent(path)
    if max(wide, high) < MIN_TRAVEL:
        return None, None
    turn = turned(path)
    if abs(turn) > MIN_ORBIT and min(wide, high) > 0.2:
        return "orbit", "clockwise" if turn > 0 else "anticlockwise"
    if wide > high:
        if went(path, fps, "swing", None):
            return "swing", None
        early = path[: _until(FIRST_WALL, fps, len(path)), 0]
        side = "right" if early[-1] > early[0] else "left"
        return ("roll" if rolls(track, path, radius, lit) else "slide"), side
    if _falls(path, fps):
        return "bounce", None
    early = path[: _until(FIRST_WALL, fps, len(path)), 1]
    return "float", "down" if early[-1] > early[0] else "up"


def paint(frames: Tensor, colour: str) -> Tensor:
    """How brightly lit an object of a known colour is at each pixel, highlights taken away: (T, H, W) about [0, 1].

    A pixel is a * colour + g with a highlight g of white; the colour plane shows a alone. The object's own pattern
    (grain, quarters) darkens by lit = a / (1 - g), while a highlight stays where it is when the object turns.
    """
    rgb = frames.float() / 255
    tone = torch.tensor(COLOURS[colour])
    hue = colour_plane(tone)
    amount = (colour_plane(rgb) @ hue / hue.square().sum()).clamp(0, 1.2)
    white = (rgb.amin(-1) - amount * tone.min()).clamp(0, 0.8)
    return (amount / (1 - white)).clamp(0, 1.2)


def rolls(track: Track, path: Tensor, radius: float, lit: Tensor) -> bool:
    """Whether the object looks more alike over time when turned back by x / radius than when left as it is."""
    use = track.visible
    if use.sum() < 3 or not radius > 0:
        return False
    centre = path[use]
    look = track.mask[use] * lit[use]
    spread = [
        float(patches(look, centre, turn).var(0).sum()) for turn in (None, (centre[:, 0] - centre[0, 0]) / radius)
    ]
    return spread[1] < spread[0]


def seen_impacts(path: Tensor, fps: float, motion: str | None) -> Tensor:
    """Seconds (K,) at which a trajectory (T, 2) is thrown back by floor, ceiling or wall.

    The moment between two frames is where the path before, carried on, meets the path after, carried back: straight
    lines, or parabolas under the playground's gravity for a bounce. Orbits and swings hit nothing.
    """
    if motion not in ("bounce", "slide", "roll", "float") or path.isnan().any() or len(path) < 4:
        return torch.zeros(0)
    s = path[:, 0 if motion in ("slide", "roll") else 1].double()
    g = GRAVITY if motion == "bounce" else 0.0
    step, v = 1 / fps, s.diff() * fps  # v[i]: mean velocity from frame i to i + 1
    out = []
    for i in range(1, len(s) - 2):
        before, after = v[i - 1] + g * step / 2, v[i + 1] - g * step / 2  # at frame i and at frame i + 1
        if before * after >= 0 or (motion == "bounce" and before < 0) or min(abs(before), abs(after)) < 0.1:
            continue
        # s_i + before * tau = s_{i+1} + after * (tau - step), the parabolas' squares being equal but for the shift
        slope = before - after + g * step
        tau = float((s[i + 1] - s[i] - after * step + g * step**2 / 2) / slope)
        if -0.25 * step <= tau <= 1.25 * step:
            out.append((i * step + tau, float(abs(before - after))))
    # One impact can show in two neighbouring pairs of frames; the harder throw is the true one.
    kept: list[tuple[float, float]] = []
    for time, force in out:
        if kept and time - kept[-1][0] < 1.2 * step:
            if force > kept[-1][1]:
                kept[-1] = (time, force)
        else:
            kept.append((time, force))
    return torch.tensor([time for time, _ in kept])
