"""What a task is: a row of data that says what goes in and what comes out (VideoPoet, arXiv:2312.14125, section 4.1).

The code that builds sequences, trains, runs the model and offers commands reads the row and never its name, so a new
task is one new row.
"""
# Shapes: T frames, H W height and width of the model's frames

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from tasks.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["text", "video", "audio"]
Part = Literal["all", "first", "rest", "context", "future"]

CONTINUED = ("rest", "future")  # parts that follow what an input block holds


@dataclass(frozen=True)
class Block:
    """One run of ids in a sequence.

    `part` says which part of the clip a block holds, counted in latent frames; sound is cut where they end. The video
    tokenizer is causal, so the leading latent frames of a clip are exactly the ids of its leading frames, and an input
    block never sees its own answer. A `condition` block holds the ids of the task's conditioning clip instead, which
    is made from the clip and encoded on its own. An optional input may be left out by the caller, an optional output
    when no sound is wanted. `named` is what a caller calls an input, where its kind does not say it.
    """

    kind: Kind
    part: Part = "all"
    optional: bool = False
    condition: bool = False
    named: str = ""

    @property
    def argument(self) -> str:
        """What a caller names this input."""
        if self.named:
            return self.named
        return {"text": "prompt", "video": "image" if self.part == "first" else "video", "audio": "audio"}[self.kind]

    @property
    def droppable(self) -> bool:
        """Whether a sequence may lack this input, which is what guidance pushes away from: a prompt, and a whole clip
        where there is no prompt."""
        return self.kind == "text" or (self.part == "all" and not self.condition)

    def frames(self, latent_frames: int, n_context: int) -> tuple[int, int]:
        """First and one-past-last latent frame of the block, for a clip of `latent_frames`."""
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
class Argument:
    """A further argument of a task, an option on the command line.

    `parse` turns what was given, from Python or as a word, into a value, or raises InputError; such a value it gives
    back as it is.
    """

    name: str
    help: str
    parse: Callable[[Any], Any]
    metavar: str = "FILE"
    required: bool = True
    default: Any = None  # of one that is not required


class Conditioner(ABC):
    """Makes the conditioning clip of one video, window by window, in order; windows may overlap.

    `canvas` (H, W) is the whole picture that the task makes, in pixels of the video, of which `source` is the size;
    `size` is that of the model's frames, and the video is read at `fps`.
    """

    def __init__(self, source: tuple[int, int], size: tuple[int, int], fps: float) -> None:
        self.canvas, self.size = source, size

    @abstractmethod
    def frames(self, frames: Tensor, first: int) -> Tensor:
        """The conditioning clip (T, *size, 3) of frames (T, h, w, 3) uint8, which begin with frame `first`."""

    def composite(self, made: Tensor, frames: Tensor, first: int) -> Tensor:
        """What was made (T, *canvas, 3), with the pixels that the video gives as they are."""
        return made


@dataclass(frozen=True)
class Example:
    """A clip to train a conditioned task on."""

    frames: Tensor  # (T, H, W, 3) uint8
    otherwise: Tensor  # the same things drawn in another way where that is known, else `frames`
    depth: Tensor | None = None  # (T, H, W) in (0, 1], 1 for the ground, where it is known
    flow: Tensor | None = None  # (T, H, W, 2) pixels since the frame before, where it is known


@dataclass(frozen=True)
class Condition:
    """How a clip becomes a conditioning clip, which is encoded as a whole, with its padding (COMMIT, arXiv:2212.05199).

    Never the ids of the answer with some left out: what is known of it would tell of what is not.
    """

    open: Callable[..., Conditioner]  # a Conditioner, with the row's arguments by name
    example: Callable[[Example, Random], Tensor]  # a conditioning clip (T, H, W, 3) to train on, drawn at random
    arguments: tuple[Argument, ...] = ()
    keeps: bool = False  # whether there are pixels that are known, and `composite` keeps them


@dataclass(frozen=True)
class Task:
    """A row: input blocks, output blocks, and the special id that announces the kind of work.

    `share` weighs the task in the training mixture. `closed` is False where the end tokens are left out, so that the
    sequence is the beginning of a longer one.
    """

    name: str
    inputs: tuple[Block, ...]
    outputs: tuple[Block, ...]
    summary: str
    token: str
    share: float = 0.0
    closed: bool = True
    condition: Condition | None = None

    def input(self, kind: Kind) -> Block | None:
        return next((b for b in self.inputs if b.kind == kind), None)

    def output(self, kind: Kind) -> Block | None:
        return next((b for b in self.outputs if b.kind == kind), None)

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """What it takes besides its input blocks."""
        return () if self.condition is None else self.condition.arguments

    @property
    def needs_sound(self) -> bool:
        """Whether the video that it takes must have sound."""
        return any(b.kind == "audio" and b.argument == "video" for b in self.inputs)

    @property
    def argument_of_length(self) -> str | None:
        """The input that the result is as long as; None where the result has a length of its own."""
        if self.output("video") is None:
            block = self.input("video")
        else:
            block = next((b for b in self.inputs if b.condition or (b.kind == "audio" and b.part == "all")), None)
        return None if block is None or block.argument == "image" else block.argument

    @property
    def fixed_length(self) -> bool:
        """Whether the result is one image, or one clip of the model's length."""
        return self.is_image or any(b.condition and b.argument == "image" for b in self.inputs)

    @property
    def is_image(self) -> bool:
        """Whether the output is one image."""
        block = self.output("video")
        return block is not None and block.part == "first"

    @property
    def starts_anywhere(self) -> bool:
        """Whether its clip may be cut out of the middle of a longer one: no output is the coded-alone first frame."""
        shown, made = self.input("video"), self.output("video")
        if shown is None or shown.condition or shown.part == "first":
            return False
        return made is None or made.part in CONTINUED

    @property
    def command(self) -> str:
        """The name on the command line."""
        return self.name.replace("_", "-")
