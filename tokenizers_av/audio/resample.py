"""Sample rate conversion: a Kaiser-windowed sinc, applied as one short filter for each phase of the output.

In units of the lower of the two Nyquist frequencies: flat within 0.01 dB up to 0.9, -6 dB at 1, at least 70 dB down
from 1.1 on (measured: 0.003 dB, 73 dB). What lies between 1 and 1.1 folds back into the top tenth of the band.
"""
# Shapes: N samples in, up / down = the ratio of the rates in lowest terms, G phases that share a window of K samples
# Size law: N samples in, ceil(N * up / down) samples out

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

ZERO_CROSSINGS = 24  # of the sinc on each side; with BETA they set how steep the band edge is and how deep it falls
BETA = 7.2  # of the Kaiser window: side lobes about 75 dB down
MAX_PHASES = 256  # that one filter bank holds
WORK = 1 << 20  # numbers that one step may hold, so that memory does not grow with the length


def resample(samples: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """(..., N) floating point -> (..., ceil(N * to_rate / from_rate)), same dtype and device; equal rates: the input.

    Sample 0 lies on sample 0; outside there is silence. Half precision is computed in float32. A NaN or an infinity
    spoils the samples around it. What is loud and steep overshoots: clamp it where values beyond one are refused.
    """
    if from_rate < 1 or to_rate < 1:
        raise ValueError(f"from_rate={from_rate}, to_rate={to_rate}: both must be at least 1")
    if not samples.is_floating_point():
        raise ValueError(f"samples are {samples.dtype}; need floating point, as from samples / 32768 for int16")
    if samples.ndim < 1:
        raise ValueError("samples have no dimension; need (..., N)")
    if from_rate == to_rate:
        return samples
    common = math.gcd(from_rate, to_rate)
    up, down = to_rate // common, from_rate // common
    length = -(-samples.shape[-1] * up // down)
    rows = samples.reshape(math.prod(samples.shape[:-1]), samples.shape[-1])
    out = rows.new_empty(len(rows), length)
    half = math.ceil(ZERO_CROSSINGS * max(1.0, down / up))
    n_blocks = -(-length // up) if out.numel() else 0  # a block is `up` samples out, made from `down` samples in
    step = max(1, WORK // (max(1, len(rows)) * (max(up, down) + 4 * half)))  # blocks at a time
    for a in range(0, n_blocks, step):
        b = min(a + step, n_blocks)
        left, right = a * down - half, b * down + half  # what is heard here; may reach outside
        heard = rows[:, max(left, 0) : right]
        missing = max(-left, 0)
        heard = F.pad(heard, (missing, right - left - missing - heard.shape[1]))
        heard = heard.to(torch.promote_types(heard.dtype, torch.float32))
        n_left = length - a * up
        out[:, a * up : b * up] = _blocks(heard, b - a, half, up, down, min(up, n_left)).flatten(1)[:, :n_left]
    return out.view(*samples.shape[:-1], length)


def _blocks(heard: Tensor, n_blocks: int, half: int, up: int, down: int, n_phases: int) -> Tensor:
    """(B, n_blocks, n_phases or a few more) from the samples heard there, with `half` more at both ends."""
    phases = []
    for first in range(0, n_phases, _n_phases(up, down)):
        filters, begin = _filters(up, down, first, heard.dtype, heard.device)  # (K, G)
        width = len(filters)
        start = half + begin
        windows = heard[:, start : start + (n_blocks - 1) * down + width].unfold(1, width, down)  # (B, n_blocks, K)
        with torch.autocast(heard.device.type, enabled=False):
            # a product, not conv1d: on a GPU that rounds to TensorFloat-32 by default, which costs the stop band
            phases.append(windows @ filters)
    return torch.cat(phases, dim=-1)


def _n_phases(up: int, down: int) -> int:
    """How many phases share a window: as many as at most double it."""
    half = ZERO_CROSSINGS * max(1.0, down / up)
    return max(1, min(up, MAX_PHASES, int(2 * half * up / down)))


@lru_cache(maxsize=64)
def _filters(up: int, down: int, first: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, int]:
    """Filters (K, G) of the phases from `first` on, and where their window begins, in samples from the block's start.

    Output j of a block lies at j * down / up samples; each filter sums to one, so that a constant stays exactly so.
    """
    last = min(first + _n_phases(up, down), up)
    cutoff = min(1.0, up / down)  # in units of the Nyquist frequency of the input
    half = ZERO_CROSSINGS / cutoff
    begin, end = math.ceil(first * down / up - half), math.floor((last - 1) * down / up + half) + 1
    with torch.inference_mode(False):  # kept beyond this call, perhaps into one that needs gradients
        i = torch.arange(begin, end, device="cpu")
        j = torch.arange(first, last, device="cpu")
        away = (i[:, None] * up - j * down).double() / up  # exact until the division
        inside = (1 - (away / half).square()).clamp(min=0)
        filters = torch.sinc(cutoff * away) * torch.special.i0(BETA * inside.sqrt()) * (away.abs() <= half)
        return (filters / filters.sum(0)).to(device, dtype), begin
