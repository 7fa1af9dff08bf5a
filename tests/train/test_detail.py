"""Each metric against known cases: equal clips, hand counts, and the fault it is there to find."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from train.evaluate.detail import ROUNDING, STABILITY, Motion, detail, flicker, gmsd, kept, luma


def random_clip(seed: int, n_frames: int = 3, side: int = 32, n: int = 1) -> Tensor:
    """(n, 3, T, side, side) in [0, 1]."""
    return torch.rand(n, 3, n_frames, side, side, generator=torch.Generator().manual_seed(seed))


def blurred(video: Tensor) -> Tensor:
    return F.avg_pool3d(F.pad(video, (1, 1, 1, 1, 0, 0), "replicate"), (1, 3, 3), 1)


def noisy(video: Tensor, level: float, *, steady: bool = False) -> Tensor:
    shape = (*video.shape[:2], 1 if steady else video.shape[2], *video.shape[3:])
    return (video + level * torch.randn(shape, generator=torch.Generator().manual_seed(9))).clamp(0, 1)


def slow_gmsd(a: Tensor, b: Tensor) -> float:
    """Place by place, for one frame of luma (H, W) twice."""

    def gradient(x: Tensor, i: int, j: int) -> float:
        half = [[float(x[2 * (i + p) : 2 * (i + p) + 2, 2 * (j + q) : 2 * (j + q) + 2].mean()) for q in range(3)]
                for p in range(3)]  # fmt: skip
        across = sum(half[p][0] - half[p][2] for p in range(3)) / 3
        down = sum(half[0][q] - half[2][q] for q in range(3)) / 3
        return math.hypot(across, down)

    values = []
    for i in range(a.shape[0] // 2 - 2):
        for j in range(a.shape[1] // 2 - 2):
            p, q = gradient(a, i, j), gradient(b, i, j)
            values.append((2 * p * q + STABILITY) / (p * p + q * q + STABILITY))
    middle = sum(values) / len(values)
    return math.sqrt(sum((v - middle) ** 2 for v in values) / len(values))


def test_gmsd_agrees_with_a_slow_loop() -> None:
    a, b = random_clip(0, side=12), random_clip(1, side=12)
    slow = [slow_gmsd(luma(a)[0, t], luma(b)[0, t]) for t in range(3)]
    assert float(gmsd(a, b)) == pytest.approx(sum(slow) / 3, abs=1e-5)
    assert float(gmsd(a, a)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="6x6"):
        gmsd(a[..., :4], b[..., :4])


def test_gmsd_finds_blur_and_passes_over_brightness() -> None:
    clips = random_clip(2, n=2)
    first, second = gmsd(torch.stack([blurred(clips)[0], 0.9 * clips[1] + 0.1]), clips).tolist()
    assert first > 0.05 and second < 0.02


def wave(bins: float, side: int = 32, amplitude: float = 0.25) -> Tensor:
    """A grey clip of one horizontal wave with so many periods."""
    row = 0.5 + amplitude * torch.sin(2 * math.pi * bins * torch.arange(side) / side)
    return row.expand(1, 3, 2, side, side)


def test_detail_is_the_energy_that_small_frames_cannot_hold() -> None:
    fine, finer = wave(14), wave(14, amplitude=0.5)
    assert float(detail(fine, fine, 4)) == 1
    assert float(detail(finer, fine, 4)) == pytest.approx(4, rel=1e-3)
    coarse = fine + wave(3) - 0.5  # a small frame of 8x8 holds up to 4 periods
    assert float(detail(coarse, fine, 4)) == pytest.approx(1, rel=1e-3)
    assert float(detail(coarse, fine, 2)) == pytest.approx(1, rel=1e-3)
    above = fine + wave(6) - 0.5  # beyond 8x8, not beyond 16x16
    assert float(detail(above, fine, 4)) > 1.5
    assert float(detail(above, fine, 2)) == pytest.approx(1, rel=1e-3)
    assert float(detail(above.transpose(3, 4), fine.transpose(3, 4), 4)) == pytest.approx(float(detail(above, fine, 4)))


def test_blur_has_less_detail_and_noise_has_more() -> None:
    clips = random_clip(3, n=2)
    less, more = detail(torch.stack([blurred(clips)[0], noisy(clips, 0.2)[1]]), clips, 4).tolist()
    assert less < 0.3 and more > 1.2


def test_detail_below_the_rounding_of_8_bits_does_not_count() -> None:
    flat = torch.full((1, 3, 4, 32, 32), 0.5)
    tremor = flat + 0.02 / 255 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    assert float(detail(tremor, flat, 4)) == pytest.approx(1, abs=0.01)
    grain = torch.randn(1, 1, 4, 32, 32, generator=torch.Generator().manual_seed(0)) / 255  # one grey level
    assert float(detail(flat + grain, flat, 4)) == pytest.approx(1 + 1 / ROUNDING, rel=0.1)


def test_kept_is_the_distance_from_the_small_clip() -> None:
    small = random_clip(4, side=8)
    large = small.repeat_interleave(4, 3).repeat_interleave(4, 4)
    flat = torch.full_like(large, 0.5)
    assert float(kept(flat, torch.full_like(small, 0.5))) == pytest.approx(0, abs=1e-4)
    assert float(kept(flat, torch.full_like(small, 0.5) + 2 / 255)) == pytest.approx(2, abs=1e-3)
    assert float(kept(large, small)) < 20 < float(kept(1 - large, small))
    with pytest.raises(ValueError, match="not an enlargement"):
        kept(large[..., :-1], small)


def sliding(n_frames: int = 5, side: int = 48, step: int = 3) -> Tensor:
    """(1, 3, T, side, side) in [0, 1]: a soft texture that moves `step` pixels to the right each frame."""
    wide = F.interpolate(random_clip(5, 1, 24)[:, :, 0], size=(side + step * n_frames,) * 2, mode="bicubic")
    return torch.stack([wide[..., :side, step * k :][..., :side] for k in range(n_frames, 0, -1)], 2).clamp(0, 1)


def bytes_of(video: Tensor) -> Tensor:
    return (255 * video[0]).round().to(torch.uint8).permute(1, 2, 3, 0)


def test_motion_leads_to_where_a_pixel_is_next() -> None:
    motion = Motion.of(bytes_of(sliding()))
    x = torch.arange(48) * 2 / 47 - 1
    moved = (motion.places[..., 0] - x)[:, 8:-8, 8:-8] * 47 / 2
    assert motion.places.shape == (4, 48, 48, 2) and motion.seen.shape == (4, 48, 48)
    assert moved.mean() == pytest.approx(3, abs=0.1)
    assert motion.seen[:, 8:-8, 8:-8].float().mean() > 0.95
    assert not motion.seen[:, 8:-8, -2:].any()  # leaves the frame
    with pytest.raises(ValueError, match="at least two"):
        Motion.of(bytes_of(sliding(n_frames=1)))


def test_flicker_is_what_does_not_move_along() -> None:
    video = sliding()
    motion = Motion.of(bytes_of(video))
    own = flicker(video[0], motion)
    assert own < 2
    assert flicker(noisy(video, 0.1)[0], motion) > own + 10
    assert flicker(noisy(video, 0.1, steady=True)[0], motion) > own + 10  # grain that sticks to the screen
    unsteady = video * torch.tensor([0.8, 1.0, 0.8, 1.0, 0.8]).view(1, 1, 5, 1, 1)
    assert flicker(unsteady[0], motion) > own + 10
    still = video[:, :, :1].expand(-1, -1, 5, -1, -1)
    assert flicker(still[0], Motion.of(bytes_of(still))) == pytest.approx(0, abs=1e-3)


def test_flicker_passes_over_what_cannot_be_seen() -> None:
    background = sliding(n_frames=2, step=0)
    video = background.clone()
    video[:, :, 0, 16:32, 8:24] = 0.95
    video[:, :, 1, 16:32, 14:30] = 0.95  # covers six columns, uncovers six others
    motion = Motion.of(bytes_of(video))
    assert motion.seen[0, 18:30, 25:29].float().mean() < 0.2
    assert motion.seen[0, 36:44, 8:40].all()
    assert flicker(video[0], motion) < 3


def test_metrics_tell_of_different_shapes() -> None:
    a, b = random_clip(0), random_clip(0, n_frames=2)
    with pytest.raises(ValueError, match="twice"):
        gmsd(a, b)
    with pytest.raises(ValueError, match="twice"):
        detail(a, b, 4)
