"""What a long video is told by: prompts over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tasks.check import check_prompt
from tasks.errors import InputError

Prompts = Sequence["str | tuple[float, str]"] | str | None


class Story:
    """Prompts over the seconds of a video: each from its own time on, or spread evenly."""

    def __init__(self, prompts: Prompts, seconds: float | None = None) -> None:
        """`prompts`: text, a list of texts, or of (second, text) in order of time, the first at 0.

        Raises InputError where they do not fit into `seconds`.
        """
        given = [] if prompts is None else [prompts] if isinstance(prompts, str) else list(prompts)
        timed = [p for p in given if not isinstance(p, str)]
        if timed and len(timed) < len(given):
            raise InputError("prompts: give all of them times, or none")
        self.times: list[float] | None = None
        if timed:
            pairs = [self._pair(p) for p in given]
            self.times, self.texts = [t for t, _ in pairs], [check_prompt(p) for _, p in pairs]
            if self.times[0] != 0 or any(b <= a for a, b in zip(self.times, self.times[1:])):
                raise InputError(f"prompts at {self.times} s: the first must be at 0, each later than the one before")
        else:
            self.texts = [check_prompt(p) for p in given]
        if seconds is not None:
            if self.times and self.times[-1] >= seconds:
                raise InputError(f"a prompt at {self.times[-1]:g} s, the video ends at {seconds:g} s")
            if self.times is None and len(self.texts) > max(1, math.ceil(seconds)):
                raise InputError(f"{len(self.texts)} prompts for {seconds:g} seconds: give at most one a second")

    def prompt(self, second: float, seconds: float) -> str | None:
        """What is told at a second of `seconds` in all."""
        return self.texts[self._number(second, seconds)] if self.texts else None

    def check_told(self, windows: Sequence[float], seconds: float) -> None:
        """Raise InputError for a prompt that none of the windows, which begin at these seconds, would be told."""
        told = {self._number(second, seconds) for second in windows} if self.texts else set()
        for i, text in enumerate(self.texts):
            if i not in told:
                begin = ", ".join(f"{second:g}" for second in windows[:6]) + (", …" if len(windows) > 6 else "")
                raise InputError(f"the prompt {text!r} would never be told: windows begin at {begin} s, each is told "
                                 "one; give fewer prompts or other times")  # fmt: skip

    def _number(self, second: float, seconds: float) -> int:
        if self.times is None:
            return min(len(self.texts) - 1, int(second / seconds * len(self.texts)))
        return max(i for i, t in enumerate(self.times) if t <= second + 1e-6)

    @staticmethod
    def _pair(value: Any) -> tuple[float, str]:
        try:
            second, text = value
            return float(second), text
        except (TypeError, ValueError):
            raise InputError(f"prompt {value!r}: expected text, or (second, text)") from None


def parse_prompt(text: str) -> str | tuple[float, str]:
    """A prompt as it is typed: "12: a ball falls" or "0:12: a ball falls" has its time before it."""
    head, colon, rest = text.partition(": ")
    parts = head.split(":")
    if colon and len(parts) <= 3 and all(p.replace(".", "", 1).isdecimal() for p in parts):
        second = 0.0
        for part in parts:
            second = second * 60 + float(part)
        return second, rest.strip()
    return text
