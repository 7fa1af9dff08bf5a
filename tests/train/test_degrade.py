"""Low sides of training pairs: each way of wearing a clip does what its name says, and only that."""

from __future__ import annotations

import pytest
import torch

from tokenizers_av.video import VideoTokenizer, video_tokenizer_config
from train import degrade
from train.degrade import coded, filmed, flipped, to_8_bits


def test_flips_turn_one_bit_of_some_ids_of_half_of_the_clips() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 256, (400, 2, 8, 8))
    wrong = flipped(ids, 256, 0.2) ^ ids
    bits = torch.stack([(wrong >> b) & 1 for b in range(8)]).sum(0)
    assert set(bits.unique().tolist()) == {0, 1} and set(wrong.unique().tolist()) == {0, *(1 << b for b in range(8))}
    share = (wrong != 0).float().mean((1, 2, 3))
    assert 0.4 < (share > 0).float().mean() < 0.55
    assert share.max() < 0.3 and share[share > 0].mean() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(flipped(ids, 256, 0.0), ids)


def test_8_bits_are_what_files_hold() -> None:
    levels = torch.arange(256) / 127.5 - 1
    video = torch.linspace(-1, 1, 10_001)
    assert torch.equal(to_8_bits(video).unique(), levels)
    assert (to_8_bits(video) - video).abs().max() < 1 / 254


def test_coded_is_the_tokenizers_own_picture() -> None:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(video_tokenizer_config("debug")).eval()
    video = torch.rand(2, 3, 5, 16, 16) * 2 - 1
    made = coded(video, tokenizer, 0.0)
    assert made.shape == video.shape and made.dtype == torch.float32 and made.abs().max() <= 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made, tokenizer.reconstruct(video).float())
    assert not torch.equal(coded(video, tokenizer, 1.0), made)


def test_filmed_is_blurred_noisy_and_compressed_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stripes = torch.zeros(3, 2, 16, 16)
    stripes[:, 0, :, ::2] = stripes[:, 1, :, 1::2] = 0.8

    def draw(*values: float) -> torch.Tensor:
        monkeypatch.setattr(degrade.torch, "rand", lambda n: torch.tensor(values))
        return filmed(stripes)

    assert torch.equal(draw(0.9, 0.9, 0.9), stripes)
    blurred, noisy, pressed = draw(0.4, 0.9, 0.9), draw(0.9, 0.4, 0.9), draw(0.9, 0.9, 0.0)
    assert blurred[..., 4:-4].std() < 0.3 * stripes.std() and blurred.mean() == pytest.approx(0.4, abs=0.02)
    assert (noisy - stripes).std() == pytest.approx(0.8 * degrade.MAX_GRAIN, rel=0.1)
    assert (noisy - stripes).diff(dim=1).std() > degrade.MAX_GRAIN  # new in every frame
    error = (pressed - stripes).abs().mean()
    assert 0.002 < error < 0.2 and pressed.shape == stripes.shape
    assert (draw(0.9, 0.9, 0.49) - stripes).abs().mean() < error  # of better quality
