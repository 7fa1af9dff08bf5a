"""How a command reads its arguments and ends: one readable line for a mistake, a traceback only for a bug.

Exit codes: 0 done, 1 failed, 2 wrong usage or unusable input; 129 hung up, 130 stopped with Ctrl-C, 143 asked to
terminate.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from tasks.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are InputErrors; `example` is shown at the end of its help."""

    def __init__(self, *args: Any, example: str | Sequence[str] = (), **options: Any) -> None:
        self.examples = (example,) if isinstance(example, str) else tuple(example)
        if self.examples:
            options["epilog"] = "example:\n" + "\n".join(f"  {e}" for e in self.examples)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options["allow_abbrev"] = False
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None, prog: str) -> int:
    """Call `main(argv)` and return its exit code; user errors become one line `PROG: error: ...` on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names need not be text
    try:
        try:
            done = main(sys.argv[1:] if argv is None else argv) or 0
        except SystemExit as stop:  # --help, --version
            done = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, as Python would complain about it at its end
        return done
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        _drop_output()
        return 1
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        _drop_output()
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return code


def _drop_output() -> None:
    """Throw away what was printed and cannot be written, so that it is not tried again at the end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def terminate_cleanly() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP unless it is ignored, unwind the stack, so that unfinished files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        numbers.append(signal.SIGHUP)
    before = [signal.signal(number, _stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _exit_code(error: Exception) -> int | None:
    """2 for wrong input, 1 for what the system refused or did not converge, None for a bug."""
    if isinstance(error, InputError):
        return 2
    if isinstance(error, (OSError, FloatingPointError)):  # disk full, permission lost; a training that diverged
        return 1
    media = sys.modules.get("tokenizers_av.media_formats")  # nobody can have raised its error without it
    if media is not None and isinstance(error, media.MediaError):
        return 2
    return None
