"""The pitch of impacts: told to a few cents, told when it is wrong, and not there in silence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from train.data.playground import Impact, Playground
from train.data.playground.sound import PITCH, TIMBRES, Timbre
from train.data.source import MediaSpec
from train.evaluate.pitch import find_pitch, isolated, semitones, share_in_tune, true_pitch

RATE = 16000


def struck(hertz: float, timbre: Timbre, at: float = 0.3, seconds: float = 1.0, level: float = 0.3) -> Tensor:
    t = torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE - at
    since = t.clamp(min=0)
    partials = [
        a * torch.sin(2 * math.pi * hertz * ratio * since) * torch.exp(-since / decay)
        for ratio, a, decay in zip(timbre.ratios, timbre.levels, timbre.decays)
    ]
    return (level * sum(partials, torch.zeros(()))).float()


PURE = Timbre((1.0,), (1.0,), (0.08,))


@pytest.mark.parametrize("hertz", [130.8, 261.63, 440.0, 1046.5, 2100.0])
def test_a_decaying_tone_is_exact(hertz: float) -> None:
    assert abs(semitones(find_pitch(struck(hertz, PURE), RATE, 0.3), hertz)) < 0.05


@pytest.mark.parametrize("material", TIMBRES)
@pytest.mark.parametrize("size", PITCH)
def test_the_lowest_partial_is_told_from_the_others(material: str, size: str) -> None:
    timbre = TIMBRES[material]
    lowest = PITCH[size] * timbre.ratios[0]
    noise = 0.005 * torch.randn(RATE, generator=torch.manual_seed(0))
    assert abs(semitones(find_pitch(struck(PITCH[size], timbre) + noise, RATE, 0.3), lowest)) < 0.1


@pytest.mark.parametrize("away", [-12.0, -0.7, 0.7, 12.0])
def test_a_detuned_impact_is_told(away: float) -> None:
    made = [find_pitch(struck(523.25 * 2 ** (off / 12), TIMBRES["wood"]), RATE, 0.3) for off in (0.0, away)]
    assert semitones(made[1], 523.25) == pytest.approx(away, abs=0.05)
    assert share_in_tune(made, [523.25, 523.25]) == 0.5


def test_a_louder_overtone_is_a_wrong_pitch() -> None:
    found = find_pitch(struck(500, Timbre((1.0, 2.57), (0.2, 1.0), (0.08, 0.08))), RATE, 0.3)
    assert share_in_tune([found], [500]) == 0 and found == pytest.approx(1285, rel=0.01)


def test_silence_has_no_pitch_and_is_not_in_tune() -> None:
    for samples in (torch.zeros(RATE), struck(500, PURE, level=1e-4), struck(500, PURE)[: round(0.35 * RATE)]):
        assert math.isnan(find_pitch(samples, RATE, 0.3))
    assert share_in_tune([math.nan, 500.0], [500.0, 500.0]) == 0.5
    assert math.isnan(share_in_tune([], []))
    with pytest.raises(ValueError, match="expected"):
        find_pitch(torch.zeros(1, RATE), RATE, 0.3)


class Hits:
    """A scene with given impacts of one object."""

    def __init__(self, *times: float) -> None:
        self.times = times

    def impacts(self, seconds: float) -> tuple[Impact, ...]:
        return tuple(Impact(t, 0, 1.0, "floor") for t in self.times if t < seconds)


def kept(*times: float, level: float = 0.3, timbre: Timbre = PURE) -> list[float]:
    sound = sum((struck(500, timbre, t, 2.0, level) for t in times), torch.zeros(2 * RATE))
    return [impact.time for impact in isolated(Hits(*times), sound, RATE)]  # type: ignore[arg-type]


def test_only_impacts_that_stand_alone_are_asked_for() -> None:
    assert kept(0.5, 1.2) == [0.5, 1.2]
    assert kept(0.5, 0.6) == []  # the first is followed, the second preceded
    assert kept(0.5, 0.7) == [0.7]
    assert kept(0.5, 0.5) == []
    assert kept(1.8) == []  # the end cuts it off
    assert kept(0.5, level=0.01) == []
    assert kept(0.5, 0.8, timbre=Timbre((1.0,), (1.0,), (0.5,))) == [0.5]  # the first still rings


def test_playground_pitches_are_heard_as_they_are() -> None:
    world, spec = Playground("test"), MediaSpec()
    scenes = [world.scene(i) for i in range(60)]
    found, true = [], []
    for scene, sound in zip(scenes, world.sound(scenes, spec)):
        for impact in isolated(scene, sound, RATE):
            found.append(find_pitch(sound, RATE, impact.time))
            true.append(true_pitch(scene, impact))
    assert len(found) > 20 and share_in_tune(found, true) >= 0.95, (len(found), share_in_tune(found, true))
    assert share_in_tune(found, true[1:] + true[:1]) < 0.6
