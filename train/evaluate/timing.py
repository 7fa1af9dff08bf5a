"""Whether what is seen and what is heard happen together, as rows of the report."""
# Shapes: K moments

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from train.data.playground import Scene
from train.evaluate.onsets import Agreement, agreement, merged
from train.evaluate.prompts import over_shifts
from train.evaluate.report import Row

if TYPE_CHECKING:
    from train.evaluate.suite import Suite


def impacts(scene: Scene, suite: Suite) -> Tensor:
    """Seconds (K,) of a scene's impacts; those too close to be told apart by ear count as one."""
    return merged(torch.tensor([impact.time for impact in scene.impacts(suite.spec.seconds)]))


def agreement_rows(
    part: str,
    asked: str,
    model: Agreement,
    truth: Agreement,
    tokenizer: Agreement | None,
    other: Callable[[str], float] | None,
    found: tuple[str, str] = ("onset", "onsets"),
) -> list[Row]:
    """Rows on how well moments that were `found` fall on those `asked` for, both in words; one found, many found.

    `other` gives a baseline's figure by its name in `Agreement`.
    """
    one, many = found
    rows = []
    for key, measure, unit, better in (
        ("median_error", f"median distance from {asked} to the nearest {one}", "ms", "lower"),
        ("within_40ms", f"{asked} with an {one} within 40 ms", "%", "higher"),
        ("within_frame", f"{asked} with an {one} within one frame", "%", "higher"),
        ("precision", f"{many} within one frame of {asked}", "%", "higher"),
    ):
        n = model.n_found if key == "precision" else model.n_true
        true, again = (math.nan if a is None else float(getattr(a, key)) for a in (truth, tokenizer))
        baseline = math.nan if other is None else other(key)
        value = float(getattr(model, key))
        independent = model.independent.get(key, math.nan)
        rows.append(Row(part, measure, value, unit, n, true, again, baseline, "other clips", better,
                        independent=independent))  # fmt: skip
    return rows


def mismatched(found: list[Tensor], true: list[Tensor], frame: float) -> Callable[[str], float]:
    """Figures for clips whose moments are compared with those of other clips."""

    def figure(key: str) -> float:
        return over_shifts(
            len(found), lambda paired: float(getattr(agreement([found[k] for k in paired], true, frame), key)),
            middle=statistics.median if key == "median_error" else statistics.fmean,  # a median may be infinite
        )  # fmt: skip

    return figure
