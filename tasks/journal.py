"""The ids of a long video kept on disk as they are drawn, so that a run that was killed goes on from them."""
# Shapes: t h w latent sizes, Q audio levels, F audio columns

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from tasks.errors import InputError
from tasks.sequence import TokenSample


class Journal:
    """The windows of a long video as they were drawn: a hidden file beside the result, one line of JSON for each.

    The same request, made again, reads them in place of drawing them; the decoders then give the same frames. A line
    that was cut off is dropped, a journal of another request is begun anew. `part` is the unfinished file that this run
    writes: that of a run which was killed is removed. Nothing is touched before `begin`, or the first window that is
    asked for; then InputError says so if another run is at work on the same result.
    """

    def __init__(self, out: str | os.PathLike[str], request: dict[str, Any], part: Path | None = None) -> None:
        target = Path(os.fspath(out)).absolute()
        self.path, self.part = target.with_name(f".{target.name}.windows"), part
        self.key = hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()
        self.n_known = self.n_new = 0
        self._file: IO[bytes] | None = None  # all lines; read from the position `_at`, written at the end
        self._at = 0

    def read(self, window: int) -> Iterator[TokenSample] | None:
        """The blocks of the next window (from 1, in order), video (t, h, w) and audio (Q, F), or None where it was not
        drawn yet."""
        file = self.begin()
        if window > self.n_known:
            return None
        file.seek(self._at)
        line: dict[str, Any] = {}
        while "video" not in line:
            line = json.loads(file.readline())
        self._at = file.tell()
        parts = [TokenSample(video=torch.tensor(line["video"]))]
        if line["audio"] is not None:
            parts.append(TokenSample(audio=torch.tensor(line["audio"])))
        return iter(parts)

    def write(self, window: int, made: TokenSample) -> None:
        """Keep a window that was drawn; one that is known already is not written again."""
        if window <= self.n_known:
            return
        assert made.video is not None
        self.n_new += 1
        self._append({"video": made.video.tolist(), "audio": None if made.audio is None else made.audio.tolist()})

    def close(self, done: bool) -> None:
        """Put it away; what is done, or has not begun, needs no journal."""
        if self._file is None:
            return
        if done or not self.n_known + self.n_new:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def begin(self) -> IO[bytes]:
        """All lines, for this run alone, with `part` noted among them; what a killed run left half written is gone."""
        if self._file is not None:
            return self._file
        self._file = open(self.path, "a+b")  # noqa: SIM115  closed by `close`
        if not _locked(self._file):
            self._file.close()
            self._file = None
            raise InputError(f"{self.path}: another run is making this video; wait for it, or choose another name")
        self._file.seek(0)
        end, old_part, ours = 0, None, True
        with contextlib.suppress(ValueError, AttributeError):  # whatever is not ours is begun anew
            for text in self._file:
                line = json.loads(text)
                old_part = line.get("part", old_part)
                ours = ours and text.endswith(b"\n") and (end > 0 or line.get("request") == self.key)
                if ours:
                    self.n_known += "video" in line
                    end += len(text)
        self._file.truncate(end)
        _remove_part(self.path, old_part)
        if end == 0:
            self._append({"request": self.key, "part": self.part and self.part.name})
        else:
            self._append({"part": self.part and self.part.name})
        return self._file

    def _append(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _locked(file: IO[bytes]) -> bool:
    """Take the file for this process, where the system has locks that end with it; whether it was free."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _remove_part(journal: Path, name: object) -> None:
    """Remove what a killed run left half written beside its journal."""
    if isinstance(name, str) and name == Path(name).name and name.startswith(".avpoet-") and name.endswith(".part"):
        part = journal.with_name(name)
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
