"""What a person asks for: the task table, sequences, the pipeline, long video, and the `avpoet` command.

Names are loaded when first used, so that the command answers `--help` without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.errors import InputError
    from tasks.model_folder import PoetConfig
    from tasks.pipeline import AVPoet, Stream
    from tasks.sequence import IGNORE, Layout, Segment, Sequence, TokenSample, build, plan, prefix, split, whole
    from tasks.table import SPECIAL_TOKENS, TASKS, Block, Task, get_task

_HOME = {
    "tasks.errors": ("InputError",),
    "tasks.model_folder": ("PoetConfig",),
    "tasks.pipeline": ("AVPoet", "Stream"),
    "tasks.sequence": ("IGNORE", "Layout", "Segment", "Sequence", "TokenSample")
    + ("build", "plan", "prefix", "split", "whole"),
    "tasks.table": ("SPECIAL_TOKENS", "TASKS", "Block", "Task", "get_task"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "IGNORE",
    "SPECIAL_TOKENS",
    "TASKS",
    "AVPoet",
    "Block",
    "InputError",
    "Layout",
    "PoetConfig",
    "Segment",
    "Sequence",
    "Stream",
    "Task",
    "TokenSample",
    "build",
    "get_task",
    "plan",
    "prefix",
    "split",
    "whole",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
