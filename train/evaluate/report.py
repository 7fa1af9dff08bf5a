"""Figures with what is needed to judge them: how many clips, what the truth scores, what a deaf model would score."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

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

    @property
    def margin(self) -> float:
        """Half of the 95 % interval of a share (Wilson); NaN for other units."""
        if self.unit != "%" or not self.n or math.isnan(self.value):
            return math.nan
        z, p, n = 1.96, min(max(self.value, 0.0), 1.0), self.n
        return z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)


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
            margin = "" if math.isnan(row.margin) else f" ± {100 * row.margin:.1f}"
            beside = [shown(getattr(row, name), row.unit) for name in COLUMNS]
            if row.baseline_is and beside[-1] != "–":
                beside[-1] += f" ({row.baseline_is})"
            measure = row.measure + ("" if row.better == "higher" else " ↓")
            lines.append((row.part, measure, shown(row.value, row.unit, margin), *beside, str(row.n)))
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        about = " · ".join(f"{key} {value}" for key, value in self.conditions.items() if key != "command")
        command = f"`{self.conditions['command']}`\n\n" if "command" in self.conditions else ""
        return f"{command}{about}\n\n{table}\n\n{LEGEND}\n"

    def to_json(self) -> str:
        """One line; figures that do not exist are null."""
        rows = [{k: _plain(v) for k, v in asdict(row).items()} for row in self.rows]
        return json.dumps({"conditions": self.conditions, "rows": rows}, ensure_ascii=False, allow_nan=False)


LEGEND = (
    "truth: the same reading of the true clips. tokenizer: of their reconstructions, the most that the tokens allow. "
    "± half the 95 % interval. ↓ less is better."
)


def shown(value: float, unit: str, margin: str = "") -> str:
    """A figure as text, – where there is none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if unit in ("%", "share"):
        return f"{100 * value:.1f}{margin} %"
    if unit == "ms":
        return f"{1000 * value:.0f} ms"
    return f"{value:.3f}" if unit == "" else f"{value:.2f} {unit}"


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mean(values: Sequence[float]) -> float:
    """Mean of those that are numbers; NaN without any."""
    numbers = [v for v in values if not math.isnan(v)]
    return sum(numbers) / len(numbers) if numbers else math.nan
