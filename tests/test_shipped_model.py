"""The model that travels with the package: its size, its drafts, its super-resolution head."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks.cli import main
from tasks.model_folder import find_model
from tokenizers_av.superres import SuperRes, downsample, upsample
from tokenizers_av.video import VideoTokenizer
from train.data import MediaSpec, open_source
from train.degrade import to_8_bits

TINY = find_model("tiny")


@pytest.fixture(scope="module")
def head() -> SuperRes:
    return SuperRes.from_pretrained(TINY / "superres").eval()


@pytest.fixture(scope="module")
def large() -> Tensor:
    """(4, 3, 5, 256, 256), test clips of the playground."""
    spec = MediaSpec(n_frames=5, size=256)
    return open_source("playground", split="test", seed=7).batch(range(4), spec, audio=False).video


def decibels(made: Tensor, large: Tensor) -> float:
    """PSNR, in the mean over the clips."""
    return float(-10 * ((made - large).square().mean((1, 2, 3, 4)) / 4).log10().mean())


def grey_levels(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs() * 255 / 2


def test_it_fits_where_it_is_kept() -> None:
    sizes = {path: path.stat().st_size for path in Path(TINY).rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 48e6 and max(sizes.values()) <= 16e6


def test_drafts_save_half_of_the_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ball.mp4"
    words = ["generate", "text-to-video", "a red ball bounces on a wooden floor", "--speculative", "16", "--no-sound"]
    assert main([*words, "--out", str(out)]) == 0 and out.exists()
    said = re.search(r"(\d+) ids in (\d+) passes, (\d+)% of the drafts kept", capsys.readouterr().err)
    assert said is not None
    n_ids, n_passes, kept = map(int, said.groups())
    assert n_ids > 5 * 64 and n_ids / n_passes >= 1.8 and kept > 30


@pytest.mark.parametrize("scale", [2, 4])
def test_the_head_draws_what_bicubic_does_not_and_keeps_what_went_in(head: SuperRes, large: Tensor, scale: int) -> None:
    small = to_8_bits(downsample(large, scale))
    made = head.upscale(small, scale, keep=True)
    ours, plain = decibels(made, large), decibels(upsample(small, scale), large)
    assert ours > plain + 3
    assert grey_levels(downsample(made, scale), small).mean() < 1.5


def test_the_head_mends_what_the_tokenizer_left(head: SuperRes, large: Tensor) -> None:
    tokenizer = VideoTokenizer.from_pretrained(TINY / "video_tokenizer").eval()
    with torch.no_grad():
        small = to_8_bits(tokenizer.decode(tokenizer.encode(downsample(large, 4))).clamp(-1, 1))
    ours, plain = decibels(head.upscale(small), large), decibels(upsample(small, 4), large)
    assert ours > plain + 0.1


def test_windows_of_the_head_are_the_whole_without_seams(head: SuperRes, large: Tensor) -> None:
    small = downsample(large[:2, :, :2], 4)
    whole, drawn = head.upscale(small), head.upscale(small, window=64)
    assert grey_levels(whole, drawn).max() < 0.01
    for axis in (3, 4):
        steps = drawn.diff(dim=axis).abs().movedim(axis, 0).flatten(1).mean(1)  # from one row, or column, to the next
        borders = torch.tensor([63, 127, 191])
        inside = torch.ones(255, dtype=torch.bool).index_fill(0, borders, False)
        assert steps[borders].mean() <= steps[inside].quantile(0.95)
