"""How a command reads its arguments and ends: one readable line for a mistake, a traceback only for a bug.

Exit codes: 0 done, 1 failed, 2 wrong usage or unusable input, 130 stopped with Ctrl-C, 143 asked to terminate.
"""

from __future__ import annotations

import argparse
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
    try:
        return main(sys.argv[1:] if argv is None else argv) or 0
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # --help, --version
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        sys.stderr.close()
        return 1
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return code


@contextmanager
def terminate_cleanly() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that unfinished files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
