"""Frames that are drawn in parts: what each part must see, and where what it remembers lies in the meantime."""
# Shapes: B batch, T frames, H W height and width, C channels

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor, nn

from tokenizers_av.superres.config import SuperResConfig
from tokenizers_av.video.layers import Flow, TemporalConv

WINDOW = 1024  # pixels a side; smaller ones held no less memory, as more is seen twice
# A fit to the peaks of processes (tests/benchmarks/superres_memory.py --within), with some room
PROCESS_BYTES = 0.55e9  # without weights
FRAME_BYTES = 220  # for each pixel: frames of the sampler, flow between two of them, the encoder
WORK = 10  # numbers for each channel at the finer resolution while layers work
SPARE = 1.45  # what the allocator keeps beside what is used

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
    config: SuperResConfig, size: Sequence[int], steps: int, bytes_each: int, memory: float, weights: float
) -> int | None:
    """The window with which one clip's large frames of `size` (H, W) are drawn in `memory` bytes, those of the model's
    weights included; bytes_each: of the numbers that are computed with; steps: of which something is remembered, 0 for
    a frame that is alone.

    None is the whole. Raises ValueError where nothing is enough, or the temporary folder has no room for what waits.
    """
    if memory_of(config, size, steps, bytes_each, None) + weights <= memory:
        return None
    need = memory_of(config, size, steps, bytes_each, WINDOW) + weights
    if need > memory:
        raise ValueError(f"frames of {size[1]:,}x{size[0]:,} need {math.ceil(need / 1e8) / 10:.1f} GB")
    folder = tempfile.gettempdir()
    free, waits = shutil.disk_usage(folder).free, shelf_bytes(config, size, steps, bytes_each)
    if waits > free:
        raise ValueError(f"{waits / 1e9:.1f} GB must wait in the temporary folder, {folder} has {free / 1e9:.1f} GB "
                         "free; set TMPDIR to another")  # fmt: skip
    return WINDOW


def memory_of(config: SuperResConfig, size: Sequence[int], steps: int, bytes_each: int, window: int | None) -> float:
    """Bytes that a process holds at most while it draws frames of `size` (H, W), its weights aside."""
    seen = size
    if window is not None:
        steps, seen = min(steps, 1), [min(n, window + 2 * config.reach) for n in size]
    numbers = _tails(config) * steps + WORK * config.dims[0] / config.patch**2
    return PROCESS_BYTES + FRAME_BYTES * math.prod(size) + SPARE * bytes_each * math.prod(seen) * numbers


def shelf_bytes(
    config: SuperResConfig, size: Sequence[int], steps: int, bytes_each: int, window: int = WINDOW
) -> float:
    """Bytes that wait in a file while frames of `size` (H, W) are drawn in windows."""
    filled = [-(-n // config.stride) * config.stride for n in size]
    seen = (place.seen for place in windows_of(filled, window, config.stride, config.reach))
    pixels = sum((rows.stop - rows.start) * (columns.stop - columns.start) for _, _, rows, columns in seen)
    return pixels * _tails(config) * bytes_each * steps


def _tails(config: SuperResConfig) -> float:
    """Numbers that the layers remember for each pixel: two frames each."""
    outer, inner = config.dims
    fine, coarse = 2 * config.n_blocks * outer / config.patch**2, config.n_inner_blocks * inner / config.stride**2
    return 2 * (fine + coarse)


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
        try:
            if self.file is None:
                self.file = tempfile.TemporaryFile(prefix="avpoet-")  # noqa: SIM115
            begin, likes = self.places.get(id(flow), (0, []))
            self.file.seek(begin)
            for layer, like in zip(self.layers, likes, strict=False):  # the first time there are none
                tail = torch.empty_like(like, device="cpu")
                n = self.file.readinto(tail.view(torch.uint8).numpy().data)  # type: ignore[attr-defined]
                assert n == tail.nbytes
                flow.tails[layer] = tail.to(layer.weight.device)
            yield
            tails = [flow.tails.pop(layer) for layer in self.layers]
            if not likes:
                likes = [torch.empty_like(tail, device="meta") for tail in tails]
                self.places[id(flow)] = self.file.seek(0, 2), likes
            self.file.seek(self.places[id(flow)][0])
            for tail in tails:
                self.file.write(tail.cpu().contiguous().view(torch.uint8).numpy().data)
        except OSError as error:
            said = f"{error.strerror}, set TMPDIR to another folder"
            raise OSError(error.errno, said, tempfile.gettempdir()) from None
