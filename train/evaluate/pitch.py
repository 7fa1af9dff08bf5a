"""How high an impact sounds: the strongest partial of the quarter second after it.

Every material of the playground has its lowest partial as the strongest and the longest, so over that time the highest
peak of the spectrum is the fundamental. The detector knows neither sizes nor materials: it searches from 60 Hz to
4 kHz, more than an octave beyond all pitches there are (131 to 1,047 Hz), and can mistake another partial for it.
"""
# Shapes: N samples

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from train.data.playground import Impact, Scene
from train.data.playground.scene import MATERIALS
from train.data.playground.sound import PITCH, TIMBRES
from train.evaluate.prompts import tells_material, tells_size

WINDOW = 0.25  # seconds after an impact that are listened to, and in which nothing else is hit
BEFORE = 0.15  # seconds before an impact in which nothing else is hit
RINGING = 0.05  # seconds before an impact that must be quiet: an earlier one may still ring
CLEARER = 10 ** (12 / 20)  # how many times as loud as these an impact must be
LOUD = 0.02  # root mean square of an impact that is asked for
LOWEST, HIGHEST = 60.0, 4000.0  # hertz
QUIET = 0.001  # root mean square below which there is no pitch
IN_TUNE = 0.5  # semitones
N_FFT = 1 << 16  # bins of a quarter hertz at 16 kHz


def find_pitch(samples: Tensor, sample_rate: int, time: float) -> float:
    """Hertz of the strongest partial of samples (N,) in the quarter second from `time` on; NaN where it is quiet."""
    if samples.ndim != 1:
        raise ValueError(f"samples have shape {tuple(samples.shape)}: expected (N,)")
    piece = _cut(samples, sample_rate, time, time + WINDOW).double()
    if len(piece) < 0.1 * sample_rate or _rms(piece) < QUIET:
        return math.nan
    # The sound decays by itself; what is left at the end is faded out, since a cut would add side lobes.
    spectrum = torch.fft.rfft(piece * torch.hann_window(2 * len(piece))[len(piece) :], N_FFT).abs()
    width = sample_rate / N_FFT
    first, last = math.ceil(LOWEST / width), min(int(HIGHEST / width), len(spectrum) - 2)
    k = first + int(spectrum[first : last + 1].argmax())
    below, peak, above = spectrum[k - 1 : k + 2].tolist()
    bend = below - 2 * peak + above
    return width * (k + (0.5 * (below - above) / bend if bend < 0 else 0.0))


def semitones(hertz: float, reference: float) -> float:
    """How far above the reference; NaN where there is no pitch."""
    return 12 * math.log2(hertz / reference)


def true_pitch(scene: Scene, impact: Impact) -> float:
    """Hertz of the lowest partial of what is hit."""
    thing = scene.objects[impact.object]
    return PITCH[thing.size] * TIMBRES[thing.material].ratios[0]


def asked_pitches(scene: Scene) -> tuple[float, ...]:
    """Hertz of the lowest partials that the caption of a scene of one object allows; none where it tells no size."""
    thing = scene.objects[0]
    if not tells_size(scene):
        return ()
    materials = (thing.material,) if tells_material(scene) else MATERIALS
    return tuple(sorted({PITCH[thing.size] * TIMBRES[material].ratios[0] for material in materials}))


def isolated(scene: Scene, sound: Tensor, sample_rate: int) -> list[Impact]:
    """The impacts whose pitch can be told in the scene's own sound (N,): near no other, loud, nothing else ringing."""
    seconds = len(sound) / sample_rate
    impacts = scene.impacts(seconds)
    return [
        impact
        for i, impact in enumerate(impacts)
        if impact.time + WINDOW <= seconds
        and all(not -BEFORE < other.time - impact.time < WINDOW for j, other in enumerate(impacts) if j != i)
        and _stands_out(sound, sample_rate, impact.time)
    ]


def _stands_out(sound: Tensor, sample_rate: int, time: float) -> bool:
    before = _rms(_cut(sound, sample_rate, time - RINGING, time))
    after = _rms(_cut(sound, sample_rate, time, time + RINGING))
    return after >= max(LOUD, CLEARER * before)


def share_in_tune(found: Sequence[float], true: Sequence[float], tolerance: float = IN_TUNE) -> float:
    """Share of the pitches in hertz that are within `tolerance` semitones; one that was not found is not."""
    near = [abs(semitones(f, t)) <= tolerance for f, t in zip(found, true, strict=True)]
    return sum(near) / len(near) if near else math.nan


def _cut(samples: Tensor, sample_rate: int, start: float, stop: float) -> Tensor:
    return samples[max(0, math.ceil(start * sample_rate - 1e-9)) : max(0, math.ceil(stop * sample_rate - 1e-9))]


def _rms(samples: Tensor) -> float:
    return float(samples.double().square().mean().sqrt()) if len(samples) else 0.0
