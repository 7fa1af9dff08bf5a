"""Parts of a clip through the super-resolution head, as they come."""
# Shapes: T frames, H W pixels

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from tasks.check import check_result
from tasks.codec import Pushed, to_frames, to_network
from tasks.errors import InputError
from tokenizers_av.clip import Clip
from tokenizers_av.superres import SuperRes, SuperResConfig, check_sampling, check_scale

SCALE = 4  # of what the tasks make


def enlarged(
    parts: Iterable[Clip], head: SuperRes, scale: int, *, steps: int | None = None, noise: float | None = None,
    seed: int = 0,
) -> Iterator[Clip]:  # fmt: skip
    """The parts with frames `scale` times as large; sound goes by. However they are cut, the frames are the same."""
    enlarge = enlarger(head, scale, steps=steps, noise=noise, seed=seed)
    for part in parts:
        yield part if part.frames is None else replace(part, frames=enlarge(part.frames))


def enlarger(
    head: SuperRes, scale: int, *, steps: int | None = None, noise: float | None = None, seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """A function that enlarges one clip piece by piece: called with the next frames (T, H, W, 3) uint8, it gives them
    (T, scale * H, scale * W, 3) uint8."""
    stream = Pushed(functools.partial(head.upscale_stream, scale=scale, steps=steps, noise=noise, seed=seed))
    device = next(head.parameters()).device
    return lambda frames: torch.cat([to_frames(x) for x in stream(to_network(frames).to(device), len(frames))])


def check_enlarging(
    config: SuperResConfig, size: tuple[int, int], scale: int, steps: int | None, noise: float | None
) -> None:
    """Raise InputError where a head cannot be asked for this of pictures of size (H, W); None is its own setting."""
    try:
        check_scale(scale)
        check_sampling(config, config.steps if steps is None else steps, config.noise if noise is None else noise)
    except ValueError as error:
        raise InputError(str(error)) from None
    check_result((scale * size[0], scale * size[1]), "the enlarged picture")
