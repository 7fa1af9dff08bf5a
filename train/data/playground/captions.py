"""Captions: a small English grammar with synonyms that always tells the truth about a scene."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.data.playground.scene import Dice, Scene, Thing

# The first word of each list is the common one: it is taken as often as all the others together.
SHAPE_WORDS = {
    "ball": ("ball", "sphere", "disc"),
    "cube": ("cube", "square", "block", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "ring": ("ring", "donut", "hoop"),
    "cross": ("cross", "plus sign"),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized", "medium"),
    "large": ("large", "big", "huge"),
}
MATERIAL_WORDS = {"wood": ("wooden",), "metal": ("metal", "metallic"), "rubber": ("rubber",)}
MOTION_WORDS = {
    ("bounce", None): ("bounces", "falls and bounces", "drops and bounces", "bounces up and down", "is bouncing"),
    ("slide", "left"): ("slides to the left", "slides left", "glides to the left", "is sliding to the left"),
    ("slide", "right"): ("slides to the right", "slides right", "glides to the right", "is sliding to the right"),
    ("roll", "left"): ("rolls to the left", "rolls left", "is rolling to the left"),
    ("roll", "right"): ("rolls to the right", "rolls right", "is rolling to the right"),
    ("orbit", "clockwise"): ("orbits clockwise", "circles clockwise", "moves clockwise in a circle"),
    ("orbit", "anticlockwise"): (
        "orbits anticlockwise", "circles anticlockwise", "orbits counterclockwise", "moves anticlockwise in a circle",
    ),
    ("swing", None): ("swings", "swings from side to side", "swings on a string", "swings like a pendulum"),
    ("float", "up"): ("floats up", "floats upwards", "rises", "drifts upwards"),
    ("float", "down"): ("floats down", "floats downwards", "sinks", "drifts downwards"),
}  # fmt: skip
BACKGROUND_WORDS = {
    "plain": ("on a plain background", "in front of a plain wall"),
    "gradient": ("on a gradient background", "in front of a soft gradient"),
    "wood": ("on a wooden floor", "over wooden planks"),
    "checker": ("over a checkered wall", "in front of a checkered wall"),
    "sky": ("on the grass", "over grass under the sky"),
}
CAMERA_WORDS = {
    "pan left": ("the camera pans left", "the camera pans to the left", "panning left"),
    "pan right": ("the camera pans right", "the camera pans to the right", "panning right"),
    "zoom in": ("the camera zooms in", "zooming in"),
    "zoom out": ("the camera zooms out", "zooming out"),
}
STYLE_WORDS = {
    "neon": ("in neon style", "in glowing neon", "neon style"),
    "sketch": ("as a sketch", "in sketch style", "as a pencil drawing"),
    "pixel": ("in pixel art style", "as pixel art", "pixel art"),
}
COLLIDE_WORDS = ("collide", "slide towards each other and collide", "bump into each other", "crash into each other")
SIZE_SHARE, MATERIAL_SHARE, BACKGROUND_SHARE, CAMERA_SHARE = 0.6, 0.4, 0.6, 0.8


def _word(dice: Dice, words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else dice.weighted(words, 0.5)


def _noun(thing: Thing, dice: Dice) -> str:
    words = []
    if dice.chance(SIZE_SHARE):
        words.append(_word(dice, SIZE_WORDS[thing.size]))
    words.append(thing.colour)
    if dice.chance(MATERIAL_SHARE):
        words.append(_word(dice, MATERIAL_WORDS[thing.material]))
    words.append(_word(dice, SHAPE_WORDS[thing.shape]))
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def caption(scene: Scene, dice: Dice) -> str:
    """One sentence, lower case, no full stop; colour, shape and direction of motion of each object are always told."""
    nouns = [_noun(thing, dice) for thing in scene.objects]
    if scene.objects[0].motion == "collide":
        if len(nouns) == 2 and dice.chance(0.25):
            text = f"{nouns[0]} collides with {nouns[1]}"
        else:
            text = f"{_listed(nouns)} {_word(dice, COLLIDE_WORDS)}"
    else:
        verbs = [_word(dice, MOTION_WORDS[thing.motion, thing.direction]) for thing in scene.objects]
        text = _listed([f"{noun} {verb}" for noun, verb in zip(nouns, verbs)])
    if dice.chance(BACKGROUND_SHARE):
        text += " " + _word(dice, BACKGROUND_WORDS[scene.background])
    if scene.camera != "still" and dice.chance(CAMERA_SHARE):
        text += ", " + _word(dice, CAMERA_WORDS[scene.camera])
    if scene.style != "plain":
        style = _word(dice, STYLE_WORDS[scene.style])
        text = f"{style}: {text}" if dice.chance(0.2) else f"{text}, {style}"
    return text


def all_captions(n: int, seed: int = 0, split: str = "train") -> Iterator[str]:
    """The captions of the first n scenes, for training a text tokenizer."""
    from train.data.playground.scene import sample_scene

    for index in range(n):
        yield sample_scene(seed, split, index).caption
