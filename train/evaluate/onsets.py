"""When sounds begin in a waveform, and how well two lists of moments agree.

Spectral flux: the rise of compressed magnitudes over 10 ms, summed over frequencies. Its peaks say that something
began; the steepest rise of the short-time energy near a peak says when, to a few milliseconds.
"""
# Shapes: N samples, F analysis frames, K L moments

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from train.evaluate.report import effective

HOP = 0.0025  # seconds between analysis frames
WINDOW = 0.016
LAG = 4  # analysis frames over which a rise is taken
HISS = 8.0  # amplitudes below so many times what a frequency has all the time count little, too
FAINT = 0.003  # amplitudes below this count little: loudness is log(1 + amplitude / FAINT)
THRESHOLD = 0.16  # of the clip's greatest flux
FLOOR = 8.0  # least flux of an onset; white noise alone stays below
QUIET = 0.004  # amplitude of the loudest partial below which a clip has no onsets
APART = 0.05  # seconds: onsets closer than this are one


def _frames(samples: Tensor, length: int, hop: int) -> Tensor:
    """(F, length) cut-outs centred on multiples of hop, mirrored at both ends: neither end is a beginning."""
    padded = F.pad(samples[None, None], (length // 2, length - length // 2), mode="reflect")[0, 0]
    return padded.unfold(0, length, hop)


def flux(samples: Tensor, sample_rate: int) -> Tensor:
    """Strength (F,) of beginnings at multiples of HOP seconds, for samples (N,)."""
    hop, length = round(HOP * sample_rate), round(WINDOW * sample_rate)
    window = torch.hann_window(length)
    spectrum = torch.fft.rfft(_frames(samples.float(), length, hop) * window).abs() * (2 / window.sum())
    hiss = HISS * spectrum.quantile(0.3, dim=0)  # (bins,) what is there all the time
    loud = torch.log1p(spectrum / hiss.clamp(min=FAINT))
    before = torch.cat([loud[:1].expand(LAG, -1), loud])[: len(loud)]
    # The loudest of neighbouring bins is compared, so that a wavering partial is not taken for a new one.
    before = F.max_pool1d(before[:, None], 3, 1, 1)[:, 0]
    rise = (loud - before).clamp(min=0).sum(1)
    rise[max(0, (len(samples) - length // 2) // hop + 1) :] = 0  # windows over the end see a kink there
    return rise


@torch.no_grad()
def find_onsets(samples: Tensor, sample_rate: int) -> Tensor:
    """Seconds (K,) ascending at which a sound begins in samples (N,) in [-1, 1]."""
    if samples.ndim != 1:
        raise ValueError(f"samples have shape {tuple(samples.shape)}: expected (N,)")
    samples = samples.detach().cpu().float()
    if len(samples) < 2 * round(WINDOW * sample_rate) or samples.abs().max() < QUIET:
        return torch.zeros(0)
    rise = flux(samples, sample_rate)
    wide = 2 * round(APART / HOP / 2) + 1
    top = F.max_pool1d(rise[None], wide, 1, wide // 2)[0]
    floor = max(THRESHOLD * float(rise.max()), FLOOR)
    peaks = ((rise == top) & (rise > floor)).nonzero()[:, 0]
    return merged(torch.tensor([_steepest(samples, sample_rate, float(k) * HOP) for k in peaks]))


def _steepest(samples: Tensor, sample_rate: int, near: float) -> float:
    """The moment within about 15 ms of `near` at which the energy after most exceeds the energy before."""
    reach, part = round(0.015 * sample_rate), round(0.005 * sample_rate)
    middle = round((near - LAG * HOP / 2) * sample_rate)
    first = middle - reach - part
    piece = F.pad(samples, (max(0, -first), 0))[max(0, first) : max(0, first) + 2 * (reach + part)]
    piece = F.pad(piece, (0, 2 * (reach + part) - len(piece)))
    total = F.pad(piece.double().square().cumsum(0), (1, 0))
    at = torch.arange(part, len(piece) - part + 1)
    before, after = total[at] - total[at - part], total[at + part] - total[at]
    # Differences of roots: an energy that is already high must rise by more.
    gain = after.sqrt() - before.sqrt()
    return max(0.0, (first + part + int(gain.argmax())) / sample_rate)


def merged(times: Tensor, apart: float = APART / 2) -> Tensor:
    """Moments (K,) ascending without those that follow a kept one within `apart` seconds, as the ear hears them."""
    kept: list[float] = []
    for time in times.tolist():
        if not kept or time - kept[-1] > apart:
            kept.append(time)
    return torch.tensor(kept)


@dataclass(frozen=True)
class Match:
    """Pairs of found and true moments, each used once."""

    errors: Tensor  # (M,) seconds, found minus true, of the pairs
    n_found: int
    n_true: int

    def within(self, tolerance: float) -> int:
        """Pairs that are at most `tolerance` seconds apart."""
        return int((self.errors.abs() <= tolerance + 1e-9).sum())


def match(found: Tensor, true: Tensor, window: float = 0.125) -> Match:
    """Pair moments found (K,) with true ones (L,), nearest pairs first, none farther apart than `window` seconds."""
    apart = (found.double()[:, None] - true.double()[None]).abs()
    errors = []
    while apart.numel() and float(apart.min()) <= window + 1e-9:
        k, l = divmod(int(apart.argmin()), apart.shape[1])
        errors.append(float(found[k]) - float(true[l]))
        apart[k], apart[:, l] = torch.inf, torch.inf
    return Match(torch.tensor(errors, dtype=torch.double), len(found), len(true))


@dataclass(frozen=True)
class Agreement:
    """Many clips' matches in figures; NaN where there is nothing to divide by."""

    precision: float  # share of found onsets with a true one within one video frame
    median_error: float  # seconds: distance from each true moment to the nearest found one, which may be far
    within_40ms: float  # share of true moments that have a found one within 40 ms
    within_frame: float  # the same within one video frame
    independent: dict[str, float]  # by the name of each share: how many of its moments count, see `report.effective`
    n_true: int
    n_found: int


def agreement(found: list[Tensor], true: list[Tensor], frame: float = 0.125) -> Agreement:
    """Figures for clips' found and true moments, in seconds; a true moment without any found one counts as infinite."""
    matches = [match(f, t, frame) for f, t in zip(found, true)]
    n_found, n_true = sum(m.n_found for m in matches), sum(m.n_true for m in matches)
    hits = [m.within(frame) for m in matches]
    hits_40ms = [match(f, t, 0.04).within(0.04) for f, t in zip(found, true)]
    n_found_each, n_true_each = [m.n_found for m in matches], [m.n_true for m in matches]
    near = [
        (f.double()[None] - t.double()[:, None]).abs().amin(1) if len(f) else torch.full((len(t),), torch.inf).double()
        for f, t in zip(found, true)
        if len(t)
    ]
    nan = float("nan")
    return Agreement(
        precision=sum(hits) / n_found if n_found else nan,
        median_error=float(torch.cat(near).median()) if near else nan,
        within_40ms=sum(hits_40ms) / n_true if n_true else nan,
        within_frame=sum(hits) / n_true if n_true else nan,
        independent={
            "precision": effective(hits, n_found_each),
            "within_40ms": effective(hits_40ms, n_true_each),
            "within_frame": effective(hits, n_true_each),
        },
        n_true=n_true,
        n_found=n_found,
    )
