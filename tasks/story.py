"""What a long video is told by and kept in: prompts with their times, and a journal from which it can go on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.check import check_prompt
from tasks.errors import InputError
from tasks.sequence import TokenSample

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
        if not self.texts:
            return None
        if self.times is None:
            return self.texts[min(len(self.texts) - 1, int(second / seconds * len(self.texts)))]
        return self.texts[max(i for i, t in enumerate(self.times) if t <= second + 1e-6)]

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
    if colon and len(parts) <= 3 and all(p.replace(".", "", 1).isdigit() for p in parts):
        second = 0.0
        for part in parts:
            second = second * 60 + float(part)
        return second, rest.strip()
    return text


class Journal:
    """The windows of a long video as they were drawn: a hidden file beside the result, one line of JSON for each.

    A run that was killed is made again from it, without drawing anything twice; the decoders give the same frames. A
    line that was cut off is dropped. A journal of another request is begun anew. `part` is the unfinished file that
    this run writes: that of a run which was killed is removed.
    """

    def __init__(self, out: str | os.PathLike[str], request: dict[str, Any], part: Path | None = None) -> None:
        target = Path(os.fspath(out)).absolute()
        self.path = target.with_name(f".{target.name}.windows")
        self.key = hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()
        self.n_known = self.n_new = 0
        self._remove_old_part()
        fresh = self.path.with_name(self.path.name + ".new")
        with open(fresh, "w", encoding="utf-8") as file:
            file.write(json.dumps({"request": self.key, "part": part and part.name}) + "\n")
            for line in self._lines():
                file.write(line)
                self.n_known += 1
        fresh.replace(self.path)
        self._old = open(self.path, encoding="utf-8")  # noqa: SIM115  both are closed by `close`
        self._old.readline()
        self._new = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def _remove_old_part(self) -> None:
        try:
            with open(self.path, encoding="utf-8") as file:
                name = json.loads(file.readline()).get("part")
        except (OSError, ValueError, AttributeError):
            return
        if isinstance(name, str) and name == Path(name).name and name.startswith("."):
            part = self.path.with_name(name)
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)

    def _lines(self) -> Iterator[str]:
        """The whole lines of windows of this request that are there, if any."""
        try:
            with open(self.path, encoding="utf-8") as file:
                if json.loads(file.readline()).get("request") != self.key:
                    return
                for text in file:
                    if not text.endswith("\n"):
                        return
                    yield text
        except (OSError, ValueError, AttributeError):
            return

    def read(self, window: int) -> Iterator[TokenSample] | None:
        """The blocks of the next window (from 1, in order), or None where it was not drawn yet."""
        if window > self.n_known:
            return None
        line = json.loads(self._old.readline())
        parts = [TokenSample(video=torch.tensor(line["video"]))]
        if line["audio"] is not None:
            parts.append(TokenSample(audio=torch.tensor(line["audio"])))
        return iter(parts)

    def write(self, window: int, made: TokenSample) -> None:
        """Keep a window that was drawn."""
        if window <= self.n_known:
            return
        assert made.video is not None
        line = {"video": made.video.tolist(), "audio": None if made.audio is None else made.audio.tolist()}
        self.n_new += 1
        self._new.write(json.dumps(line) + "\n")
        self._new.flush()
        os.fsync(self._new.fileno())

    def close(self, done: bool) -> None:
        """Put it away; what is done, or has not begun, needs no journal."""
        self._old.close()
        self._new.close()
        if done or not self.n_known + self.n_new:
            self.path.unlink(missing_ok=True)
