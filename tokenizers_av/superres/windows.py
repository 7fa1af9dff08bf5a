"""Frames that are drawn in parts: what each part must see, and where what it remembers lies in the meantime."""
# Shapes: B batch, T frames, H W height and width, C channels

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor, nn

from tokenizers_av.superres.config import SuperResConfig
from tokenizers_av.video.layers import Flow, TemporalConv

WINDOW = 1024  # smaller ones save nothing: their surroundings must be seen, too
PROGRAM = 0.6e9  # bytes of a process before it draws, ...
FRAME = 210  # ... for each pixel of the frames that a sampler and the flow between two of them hold, ...
WORK = 10  # ... numbers for each channel of the finer resolution that a layer holds at its peak, ...
SPARE = 1.45  # ... and what the allocator keeps

Box = tuple[slice, slice, slice, slice]  # of (B, T, H, W, C)


@dataclass(frozen=True)
class Window:
    """A part of the frame that is drawn at once."""

    drawn: Box  # of the frame; all windows together are the frame
    seen: Box  # that and what counts for it
    kept: Box  # `drawn`, of what is seen


def windows_of(size: Sequence[int], window: int | None, stride: int, reach: int) -> list[Window]:
    """The windows, at most `window` pixels a side (or `stride`), of a frame of `size`, multiples of `stride`."""
    axes: list[list[tuple[slice, slice, slice]]] = []
    for n in size:
        count = 1 if window is None else -(-n // max(stride, window // stride * stride))
        step = -(-n // (count * stride)) * stride
        axes.append([])
        for begin in range(0, n, step):
            end = min(begin + step, n)
            first, last = max(0, begin - reach), min(end + reach, n)
            axes[-1].append((slice(begin, end), slice(first, last), slice(begin - first, end - first)))
    every = slice(None)
    return [
        Window(*((every, every, rows, columns) for rows, columns in zip(*places, strict=True)))
        for places in itertools.product(*axes)
    ]


def window_within(
    config: SuperResConfig, size: Sequence[int], steps: int, bytes_each: int, memory: float
) -> int | None:
    """The window with which frames of `size` (H, W) are drawn in `memory` bytes, by numbers of `bytes_each`.

    None is the whole. Raises ValueError, which says how much is needed, where there is none.
    """
    for window in (None, WINDOW):
        need = memory_of(config, size, steps, bytes_each, window)
        if need <= memory:
            return window
    raise ValueError(f"at least {need / 1e9:.1f} GB")


def memory_of(config: SuperResConfig, size: Sequence[int], steps: int, bytes_each: int, window: int | None) -> float:
    """Bytes that a process holds at most while it draws frames of `size` (H, W); a fit to measured ones."""
    outer, inner = config.dims
    layers = 2 * config.n_blocks * outer / config.patch**2 + config.n_inner_blocks * inner / config.stride**2
    work = WORK * outer / config.patch**2
    seen = size
    if window is not None:
        steps, seen = 1, [min(n, window + 2 * config.reach) for n in size]
    return PROGRAM + FRAME * math.prod(size) + SPARE * bytes_each * math.prod(seen) * (2 * layers * steps + work)


class Shelf:
    """Keeps what layers remember of windows that wait: in a file without a name, which ends with the process."""

    def __init__(self, net: nn.Module) -> None:
        self.layers = [m for m in net.modules() if isinstance(m, TemporalConv)]
        self.file: BinaryIO | None = None
        self.places: dict[int, tuple[int, list[Tensor]]] = {}  # of a flow: where, and like what

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    @contextlib.contextmanager
    def lent(self, flow: Flow) -> Iterator[None]:
        """The flow's tails are in memory meanwhile."""
        assert flow.tails is not None
        if self.file is None:
            self.file = tempfile.TemporaryFile(prefix="avpoet-")  # noqa: SIM115
        begin, likes = self.places.get(id(flow), (0, []))
        self.file.seek(begin)
        for layer, like in zip(self.layers, likes, strict=False):  # the first time there are none
            tail = torch.empty_like(like, device="cpu")
            self.file.readinto(tail.view(torch.uint8).numpy().data)  # type: ignore[attr-defined]
            flow.tails[layer] = tail.to(layer.weight.device)
        yield
        tails = [flow.tails.pop(layer) for layer in self.layers]
        if not likes:
            likes = [torch.empty_like(tail, device="meta") for tail in tails]
            self.places[id(flow)] = self.file.seek(0, 2), likes
        self.file.seek(self.places[id(flow)][0])
        for tail in tails:
            self.file.write(tail.cpu().contiguous().view(torch.uint8).numpy().data)
