"""The task table: what goes in and what comes out of each task (VideoPoet, arXiv:2312.14125, section 4.1).

A task is a row of data. The code that builds sequences, runs the model and offers commands reads the row and never its
name, so a new task is one new row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tasks.errors import InputError

Kind = Literal["text", "video", "audio"]
Part = Literal["all", "first", "rest", "context", "future"]


@dataclass(frozen=True)
class Block:
    """One run of ids in a sequence.

    `part` says which latent frames of the clip a video block holds. The video tokenizer is causal, so the leading
    latent frames of a clip are exactly the ids of its leading frames, and an input block never sees its own answer.
    An optional input may be left out by the caller, an optional output when no sound is wanted.
    """

    kind: Kind
    part: Part = "all"
    optional: bool = False

    @property
    def argument(self) -> str:
        """What a caller names this input."""
        return {"text": "prompt", "video": "image" if self.part == "first" else "video", "audio": "audio"}[self.kind]

    def frames(self, latent_frames: int, n_context: int) -> tuple[int, int]:
        """First and one-past-last latent frame of a video block, for a clip of `latent_frames`."""
        if self.part in ("context", "future") and not 1 <= n_context < latent_frames:
            raise InputError(f"n_context={n_context}: expected 1 to {latent_frames - 1} latent frames")
        return {
            "all": (0, latent_frames),
            "first": (0, 1),
            "rest": (1, latent_frames),
            "context": (0, n_context),
            "future": (n_context, latent_frames),
        }[self.part]


@dataclass(frozen=True)
class Task:
    """A row: input blocks, output blocks, and the special id that announces the kind of output.

    `closed` is False where the end tokens are left out, so that the sequence is the beginning of a longer one.
    """

    name: str
    inputs: tuple[Block, ...]
    outputs: tuple[Block, ...]
    summary: str
    token: str
    closed: bool = True

    def input(self, kind: Kind) -> Block | None:
        return next((b for b in self.inputs if b.kind == kind), None)

    def output(self, kind: Kind) -> Block | None:
        return next((b for b in self.outputs if b.kind == kind), None)

    @property
    def is_image(self) -> bool:
        """Whether the output is one image."""
        block = self.output("video")
        return block is not None and block.part == "first"

    @property
    def command(self) -> str:
        """The name on the command line."""
        return self.name.replace("_", "-")


def _video_from(text: Block | None, video: Block | None, outputs: Part = "all") -> dict:
    """A row that makes video, with sound unless it is not wanted."""
    return {
        "inputs": tuple(b for b in (text, video) if b),
        "outputs": (Block("video", outputs), Block("audio", optional=True)),
        "token": "<task_video>",
    }


# One <task_...> id per kind of output, not per combination of inputs, as in the paper.
_ROWS = (
    Task("unconditional", **_video_from(None, None), summary="video and sound from nothing but a seed"),
    Task(
        "text_to_image",
        (Block("text"),),
        (Block("video", "first"),),
        summary="one image from a prompt",
        token="<task_video>",
        closed=False,
    ),
    Task("text_to_video", **_video_from(Block("text"), None), summary="video and sound from a prompt"),
    Task(
        "image_to_video",
        **_video_from(Block("text", optional=True), Block("video", "first"), "rest"),
        summary="video and sound that begin with an image",
    ),
    Task(
        "frame_prediction",
        **_video_from(Block("text", optional=True), Block("video", "context"), "future"),
        summary="the future of a video, with sound",
    ),
    Task(
        "video_to_audio",
        (Block("video"),),
        (Block("audio"),),
        summary="sound for a silent video",
        token="<task_audio>",
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ROWS}

SPECIAL_TOKENS: tuple[str, ...] = (
    "<pad>",
    "<bos>",
    "<eos>",
    *(f"<{side}o{block}_{way}>" for way in "io" for block in "tva" for side in "be"),
    "<source>",
    "<res>",
    *sorted({task.token for task in _ROWS}),
)


def get_task(name: str) -> Task:
    """The row named `name`, in snake or kebab case; InputError lists the names there are."""
    task = TASKS.get(name.replace("-", "_")) if isinstance(name, str) else None
    if task is None:
        raise InputError(f"unknown task {name!r}, expected one of {', '.join(t.command for t in _ROWS)}")
    return task
