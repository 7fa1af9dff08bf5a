"""How things move, in closed form: positions, velocities, angles and impacts at any time, without small steps.

World units: the room is the square [0, 1] x [0, 1], x to the right, y down; times in seconds. Walls reflect.
Objects of one collision share a row and are advanced from event to event, exactly.
"""
# Shapes: T times, n objects

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.data.playground.shapes import CORNERS, reach, widest

GRAVITY = 3.4  # room heights per second squared
FLOOR = 0.95
RESTITUTION = {"wood": 0.70, "metal": 0.62, "rubber": 0.86}
REST_SPEED = 0.18  # slower bounces end: the object lies still
SWAY, SWAY_RATE = 0.035, 2.4  # sideways drift of floating things: amplitude, radians per second


@dataclass(frozen=True, order=True)
class Impact:
    time: float  # seconds from the start of the scene
    object: int  # index of the object that sounds
    speed: float  # room heights per second, along the line of contact
    other: str  # "floor", "ceiling", "left wall", "right wall" or "object"


@dataclass(frozen=True)
class Path:
    """One object's motion; the meaning of the numbers depends on `kind`.

    bounce: falls from (x, y) on the floor. slide: from x at speed vx along height y. roll: the same on the floor,
    y following the outline. float: from y at speed vy, swaying about x. orbit: about (cx, cy) at `radius`, from
    `phase`, at `rate` radians per second. swing: the same, phase and rate being those of the angle's own cosine.
    collide: from x at speed vx in a row at height y, with the scene's other colliding objects.
    """

    kind: str
    x: float = 0.5
    y: float = 0.5
    vx: float = 0.0
    vy: float = 0.0
    cx: float = 0.5
    cy: float = 0.5
    radius: float = 0.0
    rate: float = 0.0
    phase: float = 0.0
    amplitude: float = 0.0


@dataclass(frozen=True)
class Body:
    """What physics needs to know of an object."""

    shape: str
    radius: float
    material: str
    path: Path


@dataclass(frozen=True)
class Track:
    position: np.ndarray  # (T, n, 2) in room units
    velocity: np.ndarray  # (T, n, 2) per second
    angle: np.ndarray  # (T, n) radians, clockwise on the screen


def _zigzag(start: float, speed: float, low: float, high: float, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Constant speed between two reflecting walls: place and velocity at times t."""
    span = high - low
    s = (start - low + speed * t) % (2 * span)
    forward = s <= span
    return low + np.where(forward, s, 2 * span - s), np.where(forward, speed, -speed)


def _zigzag_hits(start: float, speed: float, low: float, high: float, until: float) -> list[tuple[float, bool]]:
    """(time, at the high wall?) of each reflection before `until`."""
    if speed == 0:
        return []
    to_first = (high - start if speed > 0 else start - low) / abs(speed)
    step = (high - low) / abs(speed)
    n = max(0, math.ceil((until - to_first) / step))
    return [(to_first + k * step, (speed > 0) == (k % 2 == 0)) for k in range(n)]


def _bounces(body: Body) -> list[tuple[float, float, float]]:
    """(time, speed before, speed after) of every contact with the floor, until the object lies still."""
    height = FLOOR - body.radius * float(reach(body.shape, (0, 1))) - body.path.y
    speed, time, out = math.sqrt(2 * GRAVITY * height), math.sqrt(2 * height / GRAVITY), []
    while True:
        after = speed * RESTITUTION[body.material]
        after = after if after >= REST_SPEED else 0.0
        out.append((time, speed, after))
        if after == 0.0:
            return out
        speed, time = after, time + 2 * after / GRAVITY


def walls(body: Body, axis: int) -> tuple[float, float]:
    """Lowest and highest centre along an axis (0: x, 1: y) before the outline touches the room's walls.

    A rolling object is timed so that it meets a wall with its farthest corner (see `_rolling_angle`).
    """
    low, high = ((-1, 0), (1, 0)) if axis == 0 else ((0, -1), (0, 1))
    if body.path.kind == "roll":
        far = body.radius * widest(body.shape)
        return far, 1 - far
    return body.radius * float(reach(body.shape, low)), 1 - body.radius * float(reach(body.shape, high))


def _rolling_angle(body: Body, x: np.ndarray) -> np.ndarray:
    """Angle of a rolling object at x, without slip, a corner pointing at the wall when it first arrives there."""
    low, high = walls(body, 0)
    right = body.path.vx > 0
    corner = 0.0
    if body.shape not in ("ball", "ring"):
        points = CORNERS[body.shape]
        px, py = points[np.hypot(*points.T).argmax()]
        corner = (0.0 if right else math.pi) - math.atan2(py, px)
    return corner + (x - (high if right else low)) / body.radius


Segment = tuple[float, np.ndarray, np.ndarray]  # start time, places (n,), speeds (n,)


def _collide(bodies: Sequence[Body], until: float) -> tuple[list[Segment], list[Impact]]:
    """Bodies sorted from left to right in one row, elastic, masses as areas; impacts are numbered in that order."""
    x = np.array([b.path.x for b in bodies])
    v = np.array([b.path.vx for b in bodies])
    mass = np.array([b.radius**2 for b in bodies])
    left = np.array([b.radius * float(reach(b.shape, (-1, 0))) for b in bodies])
    right = np.array([b.radius * float(reach(b.shape, (1, 0))) for b in bodies])
    n, time = len(bodies), 0.0
    segments: list[Segment] = [(0.0, x.copy(), v.copy())]
    impacts: list[Impact] = []
    while True:
        events = []  # (time to go, kind, index); only approaching pairs count, so an event never repeats itself
        if v[0] < 0:
            events.append((max(0.0, (x[0] - left[0]) / -v[0]), "left wall", 0))
        if v[-1] > 0:
            events.append((max(0.0, (1 - right[-1] - x[-1]) / v[-1]), "right wall", n - 1))
        for i in range(n - 1):
            if v[i] > v[i + 1]:
                gap = x[i + 1] - left[i + 1] - x[i] - right[i]
                events.append((max(0.0, gap / (v[i] - v[i + 1])), "object", i))
        if not events:
            return segments, impacts
        wait, what, i = min(events)
        time += wait
        if time >= until:
            return segments, impacts
        x = x + v * wait
        if what == "object":
            speed = float(v[i] - v[i + 1])
            impacts += [Impact(time, i, speed, "object"), Impact(time, i + 1, speed, "object")]
            mean = (mass[i] * v[i] + mass[i + 1] * v[i + 1]) / (mass[i] + mass[i + 1])
            v = v.copy()
            v[i], v[i + 1] = 2 * mean - v[i], 2 * mean - v[i + 1]
        else:
            impacts.append(Impact(time, i, float(abs(v[i])), what))
            v = v.copy()
            v[i] = -v[i]
        segments.append((time, x.copy(), v.copy()))


def _row(bodies: Sequence[Body]) -> list[int]:
    """Indices of the colliding bodies, from left to right."""
    return sorted((i for i, b in enumerate(bodies) if b.path.kind == "collide"), key=lambda i: bodies[i].path.x)


def impacts(bodies: Sequence[Body], until: float) -> list[Impact]:
    """All impacts before `until`, in order of time."""
    out: list[Impact] = []
    for i, body in enumerate(bodies):
        path = body.path
        if path.kind == "bounce":
            out += [Impact(time, i, speed, "floor") for time, speed, _ in _bounces(body) if time < until]
        elif path.kind in ("slide", "roll"):
            hits = _zigzag_hits(path.x, path.vx, *walls(body, 0), until)
            out += [Impact(t, i, abs(path.vx), "right wall" if high else "left wall") for t, high in hits]
        elif path.kind == "float":
            low, high = walls(body, 1)
            hits = _zigzag_hits(path.y, path.vy, low, min(high, floor_centre(body)), until)
            out += [Impact(t, i, abs(path.vy), "floor" if down else "ceiling") for t, down in hits]
    row = _row(bodies)
    if row:
        out += [Impact(e.time, row[e.object], e.speed, e.other) for e in _collide([bodies[i] for i in row], until)[1]]
    return sorted(out)


def floor_centre(body: Body) -> float:
    """Height of the centre when the upright object stands on the floor."""
    return FLOOR - body.radius * float(reach(body.shape, (0, 1)))


def track(bodies: Sequence[Body], times: np.ndarray) -> Track:
    """Where everything is at the given times (T,), seconds, ascending."""
    t = np.asarray(times, dtype=np.float64)
    position = np.zeros((len(t), len(bodies), 2))
    velocity = np.zeros_like(position)
    angle = np.zeros((len(t), len(bodies)))
    for i, body in enumerate(bodies):
        path, p, v = body.path, position[:, i], velocity[:, i]
        if path.kind == "bounce":
            p[:, 0] = path.x
            p[:, 1], v[:, 1] = _falling(body, t)
        elif path.kind in ("slide", "roll"):
            p[:, 0], v[:, 0] = _zigzag(path.x, path.vx, *walls(body, 0), t)
            p[:, 1] = path.y
            if path.kind == "roll":
                angle[:, i] = _rolling_angle(body, p[:, 0])
                p[:, 1] = FLOOR - body.radius * reach(body.shape, (0, 1), angle[:, i])
                step = 1e-4  # the outline's height has no simple derivative; a central difference is enough
                ahead, behind = (reach(body.shape, (0, 1), angle[:, i] + s * step / body.radius) for s in (1, -1))
                v[:, 1] = -body.radius * (ahead - behind) / (2 * step) * v[:, 0]
        elif path.kind == "float":
            low, high = walls(body, 1)
            p[:, 1], v[:, 1] = _zigzag(path.y, path.vy, low, min(high, floor_centre(body)), t)
            p[:, 0] = path.x + SWAY * np.sin(SWAY_RATE * t + path.phase)
            v[:, 0] = SWAY * SWAY_RATE * np.cos(SWAY_RATE * t + path.phase)
        elif path.kind in ("orbit", "swing"):
            turn = path.phase + path.rate * t
            phi, rate = turn, np.full_like(t, path.rate)
            if path.kind == "swing":  # hangs below its pivot: phi is measured from the x axis, so straight down is pi/2
                phi = math.pi / 2 + path.amplitude * np.cos(turn)
                rate = -path.amplitude * path.rate * np.sin(turn)
                angle[:, i] = phi - math.pi / 2
            p[:, 0] = path.cx + path.radius * np.cos(phi)
            p[:, 1] = path.cy + path.radius * np.sin(phi)
            v[:, 0] = -path.radius * rate * np.sin(phi)
            v[:, 1] = path.radius * rate * np.cos(phi)
    row = _row(bodies)
    if row and len(t):
        segments, _ = _collide([bodies[i] for i in row], float(t[-1]) + 1e-9)
        which = np.searchsorted([s[0] for s in segments], t, side="right") - 1
        start = np.array([s[0] for s in segments])[which]
        x = np.stack([s[1] for s in segments])[which]
        vx = np.stack([s[2] for s in segments])[which]
        position[:, row, 0] = x + vx * (t - start)[:, None]
        position[:, row, 1] = [bodies[i].path.y for i in row]
        velocity[:, row, 0] = vx
    return Track(position, velocity, angle)


def _falling(body: Body, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height and vertical velocity of a bouncing body."""
    rest = floor_centre(body)
    fall = np.minimum(t, math.sqrt(2 * max(0.0, rest - body.path.y) / GRAVITY))
    y, v = body.path.y + GRAVITY / 2 * fall**2, GRAVITY * fall
    for time, _, after in _bounces(body):
        s = t - time
        up = (s >= 0) & (s < 2 * after / GRAVITY) if after else s >= 0
        y = np.where(up, rest - (after * s - GRAVITY / 2 * s**2 if after else 0.0), y)
        v = np.where(up, GRAVITY * s - after if after else 0.0, v)
    return y, v
