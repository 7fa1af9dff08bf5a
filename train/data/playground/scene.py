"""A scene: what is in the world and how it moves, drawn at random from (seed, split, index), with its whole truth."""
# Shapes: T frames, n objects

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from train.data.playground import physics
from train.data.playground.physics import FLOOR, Body, Impact, Path
from train.data.playground.shapes import SHAPES, reach, widest
from train.data.source import MediaSpec

COLOURS = {
    "red": (0.88, 0.07, 0.09),
    "orange": (1.00, 0.50, 0.00),
    "yellow": (1.00, 0.92, 0.10),
    "green": (0.10, 0.66, 0.16),
    "cyan": (0.00, 0.84, 0.90),
    "blue": (0.10, 0.20, 0.92),
    "purple": (0.54, 0.10, 0.74),
    "pink": (1.00, 0.42, 0.74),
}
SIZES = {"small": 0.14, "medium": 0.18, "large": 0.22}  # radius in room heights
MATERIALS = ("wood", "metal", "rubber")
MOTIONS = ("bounce", "slide", "roll", "orbit", "swing", "float")
DIRECTIONS = {
    "slide": ("left", "right"),
    "roll": ("left", "right"),
    "orbit": ("clockwise", "anticlockwise"),
    "float": ("up", "down"),
}
BACKGROUNDS = ("plain", "gradient", "wood", "checker", "sky")
N_TINTS = 4
CAMERAS = ("still", "pan left", "pan right", "zoom in", "zoom out")
STYLES = ("plain", "neon", "sketch", "pixel")
CLIP = 2.125  # seconds of the default clip, in which every motion shows itself

T_ = TypeVar("T_")


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str
    material: str
    motion: str  # one of MOTIONS, or "collide"
    direction: str | None
    path: Path

    @property
    def radius(self) -> float:
        return SIZES[self.size]

    @property
    def body(self) -> Body:
        return Body(self.shape, self.radius, self.material, self.path)


@dataclass(frozen=True)
class View:
    """The camera: screen = (world - centre) * zoom + 1/2, in units of the image height."""

    centre: np.ndarray  # (T, 2)
    zoom: np.ndarray  # (T,)

    def project(self, world: np.ndarray) -> np.ndarray:
        """World points (T, n, 2) to screen points (T, n, 2) in image heights."""
        return (world - self.centre[:, None]) * self.zoom[:, None, None] + 0.5


@dataclass(frozen=True)
class Truth:
    """What a clip shows, in pixels of its spec."""

    positions: np.ndarray  # (T, n, 2) centres, x then y; a pixel's centre is at its index + 0.5
    velocities: np.ndarray  # (T, n, 2) pixels per second over the ground, without the camera's own motion
    angles: np.ndarray  # (T, n) radians, clockwise
    radii: np.ndarray  # (T, n)
    impacts: tuple[Impact, ...]  # those inside the clip, in order of time


@dataclass(frozen=True)
class Scene:
    objects: tuple[Thing, ...]
    background: str
    tint: int
    camera: str
    style: str
    caption: str = ""

    @property
    def bodies(self) -> list[Body]:
        return [thing.body for thing in self.objects]

    def times(self, spec: MediaSpec) -> np.ndarray:
        """(T,) seconds of the frames."""
        return np.arange(spec.n_frames) / spec.fps

    def view(self, times: np.ndarray) -> View:
        """The camera at times (T,): it moves evenly for the length of the default clip, then rests."""
        done = np.minimum(times / CLIP, 1.0)
        centre, zoom = np.full((len(times), 2), 0.5), np.ones(len(times))
        if self.camera.startswith("pan"):
            centre[:, 0] += (1 if self.camera == "pan right" else -1) * 0.22 * (done - 0.5)
        elif self.camera.startswith("zoom"):
            zoom = 0.82 + 0.30 * (done if self.camera == "zoom in" else 1 - done)
        return View(centre, zoom)

    def impacts(self, seconds: float) -> tuple[Impact, ...]:
        return tuple(physics.impacts(self.bodies, seconds))

    def truth(self, spec: MediaSpec) -> Truth:
        times = self.times(spec)
        track, view = physics.track(self.bodies, times), self.view(times)
        scale = view.zoom[:, None] * spec.size
        radii = np.array([thing.radius for thing in self.objects]) * scale
        return Truth(
            positions=view.project(track.position) * spec.size,
            velocities=track.velocity * scale[..., None],
            angles=track.angle,
            radii=radii,
            impacts=self.impacts(spec.seconds),
        )


class Dice:
    """Random choices that only rest on `random.random`, whose stream Python promises never to change."""

    def __init__(self, *key: object):
        self._random = random.Random("/".join(map(str, key))).random

    def chance(self, p: float) -> bool:
        return self._random() < p

    def pick(self, options: Sequence[T_]) -> T_:
        return options[int(self._random() * len(options))]

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def weighted(self, options: Sequence[T_], first: float) -> T_:
        """The first option with probability `first`, the others evenly."""
        return options[0] if self.chance(first) else self.pick(options[1:])


def sample_path(dice: Dice, motion: str, direction: str | None, shape: str, radius: float, material: str) -> Path:
    """A path that shows its motion within the default clip; walls are met late in it (at 1.45 s or after), or never."""
    body = Body(shape, radius, material, Path(motion))
    up, down = (radius * float(reach(shape, d)) for d in ((0, -1), (0, 1)))
    if motion == "bounce":
        low, high = physics.walls(body, 0)
        top = max(up, FLOOR - down - dice.between(0.52, 0.72))
        return Path(motion, x=dice.between(low, high), y=top)
    late = dice.between(1.45, 2.0) if dice.chance(0.85) else dice.between(2.2, 2.5)  # seconds until the wall
    if motion in ("slide", "roll"):
        # The sign of vx decides where a rolling outline points when it meets the wall, so it is set before.
        low, high = physics.walls(body, 0)
        margin = dice.between(0.0, 0.06)
        y = FLOOR - down if motion == "roll" else dice.between(max(0.45, up), FLOOR - down)
        speed = (high - low - margin) / late
        right = direction == "right"
        return Path(motion, x=low + margin if right else high - margin, y=y, vx=speed if right else -speed)
    if motion == "float":
        low, high = physics.walls(body, 1)[0], physics.floor_centre(body)
        margin = dice.between(0.0, 0.05)
        speed = (high - low - margin) / late
        left, right_ = physics.walls(body, 0)
        x = dice.between(left + physics.SWAY, right_ - physics.SWAY)
        phase = dice.between(0, 2 * math.pi)
        if direction == "down":
            return Path(motion, x=x, y=low + margin, vy=speed, phase=phase)
        return Path(motion, x=x, y=high - margin, vy=-speed, phase=phase)
    if motion == "orbit":
        room = 0.5 - radius * widest(shape)
        size = dice.between(0.78, 1.0) * room
        rate = dice.between(0.8, 1.2) * 2 * math.pi / CLIP * (1 if direction == "clockwise" else -1)
        slack = room - size
        cx, cy = 0.5 + dice.between(-slack, slack), 0.5 + dice.between(-slack, slack)
        return Path(motion, cx=cx, cy=cy, radius=size, rate=rate, phase=dice.between(0, 2 * math.pi))
    if motion == "swing":
        rope = dice.between(0.50, 0.62) if radius < 0.2 else dice.between(0.46, 0.54)
        amplitude = dice.between(0.55, 0.70) if radius < 0.2 else dice.between(0.48, 0.6)
        rate = math.sqrt(6.0 / rope) * (1 if dice.chance(0.5) else -1)
        slack = max(0.0, 0.5 - radius * widest(shape) - rope * math.sin(amplitude))
        cx = 0.5 + dice.between(-slack, slack)
        phase = dice.pick((0.0, math.pi))
        return Path(motion, cx=cx, cy=0.04, radius=rope, rate=rate, phase=phase, amplitude=amplitude)
    raise ValueError(f"unknown motion {motion!r}, expected one of {MOTIONS}")


def _thing(dice: Dice, colours: Sequence[str], sizes: Sequence[str] = tuple(SIZES)) -> Thing:
    motion = dice.pick(MOTIONS)
    direction = dice.pick(DIRECTIONS[motion]) if motion in DIRECTIONS else None
    shape, colour, size, material = dice.pick(SHAPES), dice.pick(colours), dice.pick(sizes), dice.pick(MATERIALS)
    path = sample_path(dice, motion, direction, shape, SIZES[size], material)
    return Thing(shape, colour, size, material, motion, direction, path)


def _overlap(things: Sequence[Thing]) -> float:
    """How deep the objects reach into one another over the clip, summed."""
    times = np.linspace(0, CLIP, 9)
    places = physics.track([thing.body for thing in things], times).position
    total = 0.0
    for i in range(len(things)):
        for j in range(i):
            apart = np.hypot(*(places[:, i] - places[:, j]).T)
            total += float(np.maximum(0.0, things[i].radius + things[j].radius - apart).sum())
    return total


def _apart(dice: Dice, n: int, tries: int = 10) -> tuple[Thing, ...]:
    """Independent objects of different colours; of several draws the one with the least overlap."""
    sizes = ("small", "small", "medium", "large") if n == 2 else ("small", "small", "medium")
    best: tuple[Thing, ...] = ()
    least = math.inf
    for _ in range(tries):
        colours, things = list(COLOURS), []
        for _ in range(n):
            things.append(_thing(dice, colours, sizes))
            colours.remove(things[-1].colour)
        overlap = _overlap(things)
        if overlap < least:
            best, least = tuple(things), overlap
        if overlap == 0:
            break
    return best


def _colliding(dice: Dice, n: int) -> tuple[Thing, ...]:
    """Two objects sliding towards each other, or two towards a third that rests between them."""
    colours, things = list(COLOURS), []
    sizes = [dice.pick(tuple(SIZES)) if n == 2 else "small" for _ in range(n)]
    if sizes == ["large", "large"]:
        sizes[int(dice.chance(0.5))] = "small"
    for size in sizes:
        colour = dice.pick(colours)
        colours.remove(colour)
        shape, material = dice.pick(SHAPES), dice.pick(MATERIALS)
        things.append(Thing(shape, colour, size, material, "collide", None, Path("collide")))
    left = [t.radius * float(reach(t.shape, (-1, 0))) for t in things]
    right = [t.radius * float(reach(t.shape, (1, 0))) for t in things]
    lowest = min(FLOOR - t.radius * float(reach(t.shape, (0, 1))) for t in things)
    y = dice.between(0.45, lowest)
    gap = 1 - sum(left) - sum(right)
    if n == 2:
        closing = gap / dice.between(0.6, 1.1)
        share = dice.between(0.35, 0.65)
        places = [left[0], 1 - right[1]]
        speeds = [share * closing, (share - 1) * closing]
    else:
        share = dice.between(0.4, 0.6)
        places = [left[0], left[0] + right[0] + share * gap + left[1], 1 - right[2]]
        speeds = [share * gap / dice.between(0.45, 0.8), 0.0, (share - 1) * gap / dice.between(0.7, 1.1)]
    return tuple(replace(t, path=Path("collide", x=x, y=y, vx=v)) for t, x, v in zip(things, places, speeds))


def sample_scene(seed: int, split: str, index: int) -> Scene:
    """The scene with this index: a pure function of its arguments."""
    from train.data.playground.captions import caption

    dice = Dice(seed, split, index)
    roll = dice.between(0, 1)
    n = 1 if roll < 0.7 else 2 if roll < 0.9 else 3
    if n > 1 and dice.chance(0.4):
        things = _colliding(dice, n)
    else:
        things = (_thing(dice, tuple(COLOURS)),) if n == 1 else _apart(dice, n)
    scene = Scene(
        objects=things,
        background=dice.pick(BACKGROUNDS),
        tint=int(dice.between(0, N_TINTS)),
        camera=_camera(dice),
        style=dice.weighted(STYLES, 0.7),
    )
    return replace(scene, caption=caption(scene, dice))


def _camera(dice: Dice) -> str:
    """Still in 70 of 100 scenes, else panning (to either side), zooming in or zooming out, 10 each."""
    kind = dice.weighted(("still", "pan", "zoom in", "zoom out"), 0.7)
    return dice.pick(("pan left", "pan right")) if kind == "pan" else kind


def evaluation_scene(seed: int, index: int) -> Scene:
    """One object, plain style, still camera, from the test split."""
    from train.data.playground.captions import caption

    dice = Dice(seed, "test", "evaluation", index)
    scene = Scene(
        objects=(_thing(dice, tuple(COLOURS)),),
        background=dice.pick(BACKGROUNDS),
        tint=int(dice.between(0, N_TINTS)),
        camera="still",
        style="plain",
    )
    return replace(scene, caption=caption(scene, dice))
