"""Parts of a clip through the super-resolution head, as they come."""
# Shapes: T frames, H W pixels

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.check import check_prompt, check_result
from tasks.codec import Pushed, to_frames, to_network
from tasks.errors import InputError
from tokenizers_av.clip import Clip
from tokenizers_av.superres import SuperRes, SuperResConfig, check_rate, check_sampling, check_scale, window_within

if TYPE_CHECKING:
    from tasks.source import Source

SCALE = 4  # of what the tasks make


def enlarged(
    parts: Iterable[Clip], head: SuperRes, scale: int, *, rate: int = 1, steps: int | None = None,
    noise: float | None = None, seed: int = 0, keep: bool = False, text: Tensor | None = None,
    window: int | None = None, alone: bool = False,
) -> Iterator[Clip]:  # fmt: skip
    """The parts with frames `scale` times as large and `rate` times as many; sound goes by. However they are cut, the
    frames are the same. text (n,): ids of what is seen, for a head that looks at it; see `SuperRes.upscale`. alone: one
    frame is all."""
    device, shown = next(head.parameters()).device, 0
    said = text[None].to(device) if text is not None and head.config.text_size else None
    stream = Pushed(
        functools.partial(
            head.upscale_stream, scale=scale, rate=rate, steps=steps, noise=noise, seed=seed, keep=keep, text=said,
            window=window, alone=alone,
        )
    )  # fmt: skip

    def frames(chunk: Tensor | None, n: int) -> Tensor:
        return torch.cat([to_frames(x) for x in stream(chunk, n)])

    for part in parts:
        if part.frames is None:
            yield replace(part, fps=rate * part.fps)
            continue
        n = rate * part.n_frames - (0 if shown else rate - 1)  # what comes after a frame waits for the next one
        shown += n
        yield replace(part, frames=frames(to_network(part.frames).to(device), n), fps=rate * part.fps)
        last = part
    if shown and rate > 1:
        yield replace(last, frames=frames(None, rate - 1), fps=rate * last.fps, samples=None)


def window_for(
    config: SuperResConfig, source: Source, scale: int, steps: int | None, dtype: torch.dtype, n_parameters: int,
    memory_gb: float | None,
) -> int | None:  # fmt: skip
    """The window with which a model of so many parameters enlarges within `memory_gb`, None for whole frames.

    Raises InputError where none does.
    """
    if memory_gb is None:
        return None
    if isinstance(memory_gb, bool) or not isinstance(memory_gb, float | int) or not 0 < memory_gb < math.inf:
        raise InputError(f"memory_gb={memory_gb!r}: expected a number above 0")
    height, width = source.picture_size()
    steps, weights = config.steps if steps is None else steps, 4 * n_parameters  # they are loaded in float32
    steps = 0 if source.is_image else steps
    try:
        return window_within(config, (scale * height, scale * width), steps, dtype.itemsize, 1e9 * memory_gb, weights)
    except ValueError as error:
        raise InputError(f"memory_gb={memory_gb:g}: {error}") from None


def check_enlarging(
    config: SuperResConfig, source: Source, scale: int, rate: int, steps: int | None, noise: float | None,
    prompt: str | None,
) -> None:  # fmt: skip
    """Raise InputError where a head cannot be asked for this of a picture or a video; None is its own setting."""
    try:
        check_scale(scale)
        check_rate(rate)
        check_sampling(config, config.steps if steps is None else steps, config.noise if noise is None else noise)
    except ValueError as error:
        raise InputError(str(error)) from None
    if rate > 1 and source.is_image:
        raise InputError(f"rate={rate}: an image has no frames between which others could lie")
    if prompt is not None:
        check_prompt(prompt)
        if not config.text_size:
            raise InputError("this model's super-resolution head was trained without text: leave the prompt out")
    height, width = source.picture_size()
    check_result((scale * height, scale * width), "the enlarged picture")
