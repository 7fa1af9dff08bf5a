"""Frames between two others lie on the way from one to the other."""

from __future__ import annotations

import pytest
import torch

from tokenizers_av.superres import frames_between, in_between, motion, steadied
from tokenizers_av.superres.head import SAME

pytest.importorskip("cv2")


def patch(x: int, y: int = 20, size: int = 96) -> torch.Tensor:
    """(1, 3, size, size) in [-1, 1]: a textured square with its corner at x, y on an uneven ground."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(2, 3, size // 4, size // 4, generator=generator)
    ground, square = torch.nn.functional.interpolate(rough, size=(size, size), mode="bicubic").clamp(0, 1)
    frame = (ground * 0.4 - 0.9)[None]
    frame[..., y : y + 32, x : x + 32] = square[:, :32, :32] * 0.9 + 0.1
    return frame


def test_what_moves_is_met_on_its_way():
    thirds = frames_between(patch(20), patch(32), 3)
    assert len(thirds) == 2
    for made, x in zip(thirds, (24, 28), strict=True):
        blend = torch.lerp(patch(20), patch(32), (x - 20) / 12)
        error, of_blend = ((f - patch(x)).square().mean() for f in (made, blend))
        assert error < 0.2 * of_blend, x
        wrong = (made - patch(52 - x)).square().mean()  # the other third
        assert error < 0.2 * wrong


def test_both_clips_of_a_batch_go_their_own_ways():
    before, after = torch.cat([patch(20), patch(40)]), torch.cat([patch(28), patch(40, y=28)])
    (both,) = frames_between(before, after, 2)
    (alone,) = frames_between(before[1:], after[1:], 2)
    assert torch.equal(both[1:], alone)


def test_large_frames_are_moved_in_strips(monkeypatch):
    frames = [torch.cat([patch(x), patch(x + 9)]) for x in (30, 26, 24)]
    whole, (first, second) = steadied(*frames, SAME), frames_between(*frames[:2], 3)
    monkeypatch.setattr(motion, "STRIP", 96 * 7)
    assert torch.equal(steadied(*frames, SAME), whole) and not torch.equal(whole, frames[0])
    again = frames_between(*frames[:2], 3)
    assert torch.equal(again[0], first) and torch.equal(again[1], second)


def test_given_frames_stay_and_one_alone_has_none_beside_it():
    video = torch.stack([patch(20), patch(26), patch(32)], dim=2)
    made = in_between(video, 3)
    assert made.shape[2] == 7 and torch.equal(made[:, :, ::3], video)
    assert in_between(video, 1) is video and torch.equal(in_between(video[:, :, :1], 2), video[:, :, :1])


def test_steady_frames_flicker_less_and_what_is_new_is_left_alone():
    torch.manual_seed(0)
    frames = [patch(20 + 6 * t) for t in range(4)]
    rough = [(f + 0.03 * torch.randn_like(f)).clamp(-1, 1) for f in frames]
    made = [rough[0]]
    for t in range(1, 4):
        made.append(steadied(rough[t], rough[t - 1], made[-1], SAME))
    inside = (..., slice(24, 48), slice(42, 66))  # of the square in the last frame
    before, after = ((f - frames[3])[inside].square().mean() for f in (rough[3], made[3]))
    assert after < 0.6 * before
    other = torch.rand(1, 3, 96, 96) * 2 - 1
    changed = steadied(other, -other.sign(), -other.sign(), SAME)
    assert (changed - other).abs().mean() < 0.02
    apart = (rough[3] - steadied(rough[3], rough[2], made[2], same) for same in (SAME, SAME / 4))
    assert next(apart).abs().mean() > 2 * next(apart).abs().mean() > 0


def test_what_stands_still_stays_as_it_is():
    assert (frames_between(patch(20), patch(20), 2)[0] - patch(20)).abs().max() < 0.02


def test_frames_too_small_for_flow_are_blended():
    before, after = torch.rand(2, 1, 3, 12, 40) * 2 - 1
    made = frames_between(before, after, 3)
    assert torch.allclose(made[0], before * 2 / 3 + after / 3, atol=1e-5)
