"""The task table: the rows of `tasks/rows`, one file each, and the special ids that they need."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import tasks.rows
from tasks.errors import InputError
from tasks.task import Block, Condition, Task

__all__ = ["SPECIAL_TOKENS", "TASKS", "Block", "Condition", "Task", "get_task"]

TASKS: dict[str, Task] = {
    name: import_module(f"tasks.rows.{name}").TASK for name in sorted(m.name for m in iter_modules(tasks.rows.__path__))
}

# The order is that of the ids in trained models: what is new comes last
_FIRST = ("<task_audio>", "<task_video>", "<task_fill>", "<task_between>", "<task_style>")
SPECIAL_TOKENS: tuple[str, ...] = (
    "<pad>",
    "<bos>",
    "<eos>",
    *(f"<{side}o{block}_{way}>" for way in "io" for block in "tva" for side in "be"),
    "<source>",
    "<res>",
    *_FIRST,
    *sorted({task.token for task in TASKS.values()} - set(_FIRST)),
)


def get_task(name: str) -> Task:
    """The row named `name`, in snake or kebab case; InputError lists the names there are."""
    task = TASKS.get(name.replace("-", "_")) if isinstance(name, str) else None
    if task is None:
        raise InputError(f"unknown task {name!r}, expected one of {', '.join(t.command for t in TASKS.values())}")
    return task
