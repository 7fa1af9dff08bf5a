"""Sound of impacts: each is a handful of decaying sine partials that start, sample-accurately, when things touch.

Pitch tells the size, partials and decay tell the material, loudness tells the speed. Nothing else sounds. Every sample
is rounded to 16 bits, as in an audio file, so that a clip's samples do not depend on what else is in the batch.
"""
# Shapes: B clips, N samples, I impacts of one material, K partials, L samples of one impact

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from train.data.playground.scene import Scene
from train.data.source import MediaSpec

PITCH = {"small": 1046.5, "medium": 523.25, "large": 261.63}  # hertz of the lowest partial: three octaves of C
PEAK, KNEE = 0.9, 0.7
FULL_SPEED = 2.2  # room heights per second at which an impact is loudest


@dataclass(frozen=True)
class Timbre:
    ratios: tuple[float, ...]  # frequency of each partial over the lowest
    levels: tuple[float, ...]
    decays: tuple[float, ...]  # seconds until 1/e
    loudness: float = 1.0

    @property
    def seconds(self) -> float:
        return 7 * max(self.decays)  # e^-7: 60 dB down


TIMBRES = {
    # a struck bar: stretched partials, short and dry
    "wood": Timbre((1.0, 2.57, 4.93), (1.0, 0.55, 0.35), (0.055, 0.030, 0.012)),
    # a struck plate: many inharmonic partials that ring on
    "metal": Timbre((1.0, 1.51, 2.76, 4.07, 5.40), (0.7, 0.4, 0.6, 0.35, 0.3), (0.22, 0.18, 0.14, 0.10, 0.06), 0.85),
    # a soft thud: nearly one partial an octave lower, with a little click to mark its start
    "rubber": Timbre((0.5, 1.0, 4.4), (1.0, 0.3, 0.25), (0.080, 0.030, 0.005)),
}


def loudness(speed: float) -> float:
    """Peak amplitude of an impact, in (0, 0.7]; grows with the speed, slowly at the top."""
    return 0.7 * min(1.0, max(0.02, speed) / FULL_SPEED) ** 0.6


def sound(scenes: Sequence[Scene], spec: MediaSpec, device: Any = "cpu") -> Tensor:
    """Samples (B, N) float32 in [-0.9, 0.9], rounded to 16 bits."""
    rate, n = spec.sample_rate, spec.n_samples
    struck: dict[str, list[tuple[int, float, float, float]]] = defaultdict(list)  # clip, time, hertz, amplitude
    for b, scene in enumerate(scenes):
        for impact in scene.impacts(n / rate):
            thing = scene.objects[impact.object]
            struck[thing.material].append((b, impact.time, PITCH[thing.size], loudness(impact.speed)))
    out = torch.zeros(len(scenes), n, dtype=torch.float64)
    for material in sorted(struck):  # a fixed order: sums of floats depend on it
        _strike(out, struck[material], TIMBRES[material], rate)
    # A knee keeps piled-up impacts below the peak and leaves single ones as they are.
    room = PEAK - KNEE
    out = out.clamp(-KNEE, KNEE) + out.sign() * room * torch.tanh((out.abs() - KNEE).clamp_(min=0) / room)
    return out.mul_(32767).round_().div_(32767).to(device=device, dtype=torch.float32)


def _strike(out: Tensor, struck: list[tuple[int, float, float, float]], timbre: Timbre, rate: int) -> None:
    """Add impacts of one material to out (B, N)."""
    n = out.shape[1]
    length = math.ceil(timbre.seconds * rate)
    for clip, time, pitch, amplitude in struck:
        first = math.ceil(time * rate - 1e-9)
        stop = min(n, first + length)
        if stop <= first:
            continue
        since = torch.arange(first, stop, dtype=torch.float64).div_(rate).sub_(time)  # (L,)
        total = sum(timbre.levels)
        for ratio, level, decay in zip(timbre.ratios, timbre.levels, timbre.decays):
            if pitch * ratio >= 0.45 * rate:
                continue  # would fold back below half the sample rate
            here = since[: math.ceil(7 * decay * rate)]
            ring = torch.sin(here * (2 * math.pi * pitch * ratio)).mul_(torch.exp(here / -decay))
            out[clip, first : first + len(here)] += ring.mul_(amplitude * timbre.loudness * level / total)
