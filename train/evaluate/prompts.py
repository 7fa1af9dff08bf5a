"""Judging what a clip shows against what was asked for, and the same judgement by people who did not listen."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence

from train.data.playground.captions import MATERIAL_WORDS, SHAPE_WORDS, SIZE_WORDS
from train.data.playground.scene import Scene
from train.evaluate.detectors import Seen
from train.evaluate.report import Row, mean

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
BRIEFLY = ("colour", "shape", "direction", "present")  # what a clip that is made from more than a prompt is asked
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
    verdict["present"] = stays(seen)
    return verdict


def stays(seen: Seen) -> bool:
    """Whether an object is in view in nearly all frames."""
    return float(seen.track.visible.float().mean()) >= IN_VIEW


def tells_size(scene: Scene) -> bool:
    """Whether the caption names the object's size."""
    words = set(re.findall(r"[a-z-]+", scene.caption))
    return bool(words & set(SIZE_WORDS[scene.objects[0].size]))


def tells_material(scene: Scene) -> bool:
    """Whether the caption names the object's material; a floor may be wooden too."""
    thing = scene.objects[0]
    nouns = (f"{word} {shape}" for word in MATERIAL_WORDS[thing.material] for shape in SHAPE_WORDS[thing.shape])
    return any(noun in scene.caption for noun in nouns)


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


def over_shifts(
    n: int, measure: Callable[[list[int]], float], middle: Callable[[list[float]], float] = statistics.fmean
) -> float:
    """Mean, or another `middle`, of a measure over shifted pairings; `measure` gets, for each row, the index of the row
    it is paired with."""
    values = [measure([(i + k) % n for i in range(n)]) for k in shifts(n)]
    numbers = [v for v in values if not math.isnan(v)]
    return middle(numbers) if numbers else math.nan


def prompt_rows(
    part: str, seen: Mapping[str, Sequence[Seen]], scenes: Sequence[Scene], asked: Sequence[str] = tuple(ASKED)
) -> list[Row]:
    """Rows on `asked`, for the readings of as many clips as scenes by "model", "truth" and "tokenizer"."""
    verdicts = {key: [judge(clip, scene) for clip, scene in zip(clips, scenes)] for key, clips in seen.items()}
    chance = shuffled(seen["model"], scenes)
    rows = []
    for key in asked:
        value, n = share(verdicts["model"], key)
        truth, tokenizer = share(verdicts["truth"], key)[0], share(verdicts["tokenizer"], key)[0]
        baseline = math.nan if key == "present" else chance[key]
        rows.append(Row(part, ASKED[key], value, "%", n, truth, tokenizer, baseline, "other prompts"))
    return rows


def scored_row(
    part: str,
    measure: str,
    unit: str,
    n: int,
    score: Callable[[str, int, int], float],
    baseline_is: str,
    better: str = "higher",
) -> Row:
    """Mean of a score of n clips, beside that of clips that answer another input.

    score(key, i, k) judges clip i of "model", "truth" or "tokenizer" by the input of clip k; NaN if that asks nothing.
    """

    def over(key: str, clips: Sequence[int]) -> float:
        return mean([score(key, i, k) for k, i in enumerate(clips)])

    asked = sum(not math.isnan(score("model", k, k)) for k in range(n))
    value, truth, tokenizer = (over(key, range(n)) for key in ("model", "truth", "tokenizer"))
    others = over_shifts(n, lambda clips: over("model", clips))
    return Row(part, measure, value, unit, asked, truth, tokenizer, others, baseline_is, better)
