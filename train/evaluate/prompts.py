"""Judging what a clip shows against what was asked for, and the same judgement by people who did not listen."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from train.data.playground.captions import SIZE_WORDS
from train.data.playground.scene import Scene
from train.evaluate.detectors import Seen

Verdict = dict[str, bool | None]  # None: the prompt does not ask for it

ASKED = {
    "colour": "colour right",
    "shape": "shape right",
    "direction": "direction of motion right",
    "all": "colour, shape and direction right",
    "motion": "motion right by name",
    "size": "size right, where the prompt tells it",
    "present": "object in view throughout",
}
IN_VIEW = 0.9  # share of frames


def judge(seen: Seen, scene: Scene) -> Verdict:
    """Whether a clip shows the one object of a scene as its caption tells."""
    thing = scene.objects[0]
    verdict: Verdict = {
        "colour": seen.colour == thing.colour,
        "shape": seen.shape == thing.shape,
        "direction": seen.went(thing.motion, thing.direction),
    }
    verdict["all"] = all(verdict.values())
    verdict["motion"] = seen.motion == thing.motion
    verdict["size"] = seen.size == thing.size if tells_size(scene) else None
    verdict["present"] = float(seen.track.visible.float().mean()) >= IN_VIEW
    return verdict


def tells_size(scene: Scene) -> bool:
    """Whether the caption names the object's size."""
    words = set(re.findall(r"[a-z-]+", scene.caption))
    return bool(words & set(SIZE_WORDS[scene.objects[0].size]))


def share(verdicts: Sequence[Verdict], key: str) -> tuple[float, int]:
    """Share of the verdicts on `key` that are good, NaN without any, and how many there are."""
    said = [v[key] for v in verdicts if v[key] is not None]
    return (sum(map(bool, said)) / len(said) if said else math.nan), len(said)


def shifts(n: int, most: int = 7) -> list[int]:
    """Cyclic shifts that give every one of n rows another row's prompt; none for a single row."""
    return list(range(1, min(n, most + 1)))


def shuffled(seen: Sequence[Seen], scenes: Sequence[Scene]) -> dict[str, float]:
    """Shares for clips judged against other rows' prompts: what a model reaches that ignores its prompt.

    The clips are as varied as the model makes them, so this is the chance level of each measure.
    """
    n = len(seen)
    verdicts = [judge(seen[i], scenes[(i + k) % n]) for k in shifts(n) for i in range(n)]
    return {key: share(verdicts, key)[0] for key in ASKED}


def over_shifts(n: int, measure: Callable[[list[int]], float]) -> float:
    """Mean of a measure over shifted pairings; `measure` gets, for each row, the index of the row it is paired with."""
    values = [measure([(i + k) % n for i in range(n)]) for k in shifts(n)]
    finite = [v for v in values if not math.isnan(v)]
    return sum(finite) / len(finite) if finite else math.nan
