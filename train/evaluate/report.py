"""Figures with what is needed to judge them: how many clips, what the truth scores, what a deaf model would score."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache

COLUMNS = ("truth", "tokenizer", "baseline")


@dataclass(frozen=True)
class Row:
    """One figure. `truth` and `tokenizer` are the same measure on the true clips and on their reconstructions."""

    part: str  # the task, or "reconstruction"
    measure: str
    value: float  # the model's
    unit: str  # "%" or "share" (of clips or of other things, in [0, 1]), "dB", "ms" (of values in seconds), "bits", ""
    n: int  # what was counted, clips unless the measure says otherwise
    truth: float = math.nan
    tokenizer: float = math.nan
    baseline: float = math.nan
    baseline_is: str = ""  # e.g. "other prompts"
    better: str = "higher"
    over_baseline: float = math.nan  # margin of the difference from the baseline, which is taken clip by clip
    independent: float = math.nan  # how many of the n tell something of their own, see `effective`; NaN: all

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of a share (Wilson); None for other units."""
        if self.unit != "%" or not self.n or math.isnan(self.value):
            return None
        z, p, n = 1.96, min(max(self.value, 0.0), 1.0), self.n if math.isnan(self.independent) else self.independent
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass
class Report:
    """The rows of a run and the conditions they hold under."""

    rows: list[Row] = field(default_factory=list)
    conditions: dict[str, str | int | float] = field(default_factory=dict)

    def markdown(self) -> str:
        """A table for people."""
        head = ("task", "measure", "model", *COLUMNS, "n")
        lines = [head, tuple("---" if i < 2 else "---:" for i in range(len(head)))]
        for row in self.rows:
            beside = [shown(getattr(row, name), row.unit) for name in COLUMNS]
            if row.baseline_is and beside[-1] != "–":
                beside[-1] += f" ({row.baseline_is})"
            if not math.isnan(row.over_baseline):
                beside[-1] += f": {row.value - row.baseline:+.2f} ± {row.over_baseline:.2f}"
            measure = row.measure + ("" if row.better == "higher" else " ↓")
            value = shown(row.value, row.unit)
            if row.interval is not None:
                value += " ({:.1f}–{:.1f})".format(*(100 * end for end in row.interval))
            lines.append((row.part, measure, value, *beside, str(row.n)))
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        about = " · ".join(f"{key} {value}" for key, value in self.conditions.items() if key != "command")
        command = f"`{self.conditions['command']}`\n\n" if "command" in self.conditions else ""
        return f"{command}{about}\n\n{table}\n\n{LEGEND}\n"

    def to_json(self) -> str:
        """One line; figures that do not exist are null."""
        rows = [{k: _plain(v) for k, v in asdict(row).items()} for row in self.rows]
        return json.dumps({"conditions": self.conditions, "rows": rows}, ensure_ascii=False, allow_nan=False)


def compared(
    part: str, measure: str, values: Sequence[float], baseline: Sequence[float], baseline_is: str, tokenizer: float
) -> Row:
    """The row of what each clip scores in dB, beside what a guess scores on it."""
    over = margin_of_mean([a - b for a, b in zip(values, baseline, strict=True)])
    return Row(part, measure, mean(values), "dB", len(values), tokenizer=tokenizer, baseline=mean(baseline),
               baseline_is=baseline_is, over_baseline=over)  # fmt: skip


LEGEND = (
    "truth: the same reading of the true clips. tokenizer: of their reconstructions, the most that the tokens allow. "
    "In brackets the 95 % interval of a share; where n counts moments, those of one clip count as one as far as they "
    "go together. ± after a baseline: half the 95 % interval of what the model is above it, clip by clip. ↓ less is "
    "better."
)


def shown(value: float, unit: str) -> str:
    """A figure as text, – where there is none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if unit in ("%", "share"):
        return f"{100 * value:.1f} %"
    if unit == "ms":
        return f"{1000 * value:.0f} ms"
    return f"{value:.3f}" if unit == "" else f"{value:.2f} {unit}"


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mean(values: Sequence[float]) -> float:
    """Mean of those that are numbers; NaN without any."""
    numbers = [v for v in values if not math.isnan(v)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def effective(hits: Sequence[int], counts: Sequence[int]) -> float:
    """How many independent trials tell as much of a share as clips with so many `hits` in so many `counts` each, whose
    trials go together: by the variance of a ratio over clusters (Cochran, Sampling Techniques, 1977, 6.4). Where all
    or none are hits, as many as there are clips with any; NaN for less than two.
    """
    pairs = [(h, n) for h, n in zip(hits, counts, strict=True) if n]
    k, total = len(pairs), sum(n for _, n in pairs)
    if k < 2:
        return math.nan
    p = sum(h for h, _ in pairs) / total
    variance = k / (k - 1) * sum((h - p * n) ** 2 for h, n in pairs) / total**2
    return float(k) if variance == 0 else min(float(total), max(1.0, p * (1 - p) / variance))


def margin_of_mean(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean, by Student's t, of those that are numbers; NaN for less than two."""
    numbers = [v for v in values if not math.isnan(v)]
    if len(numbers) < 2:
        return math.nan
    return t_quantile(len(numbers) - 1) * statistics.stdev(numbers) / math.sqrt(len(numbers))


@cache
def t_quantile(df: int) -> float:
    """The t that 95 % of Student's distribution with df >= 1 degrees of freedom lie within, on both sides of 0.

    The share within is a finite sum in the angle whose tangent is t / sqrt(df) (Abramowitz and Stegun, Handbook of
    Mathematical Functions, 1964, 26.7.3 and 26.7.4); the angle is found by bisection.
    """
    low, high, odd = 0.0, math.pi / 2, df % 2
    for _ in range(52):  # bits of a float
        angle = (low + high) / 2
        share, term = 0.0, math.sin(angle) * math.cos(angle) ** odd
        for k in range(df // 2):
            share += term
            term *= math.cos(angle) ** 2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
        if odd:
            share = (share + angle) * 2 / math.pi
        low, high = (angle, high) if share < 0.95 else (low, angle)
    return math.tan(low) * math.sqrt(df)
