"""Laws of the video tokenizer: sizes, causality, exact quantization, and a round trip through a folder."""

from __future__ import annotations

import itertools

import pytest
import torch

from tokenizers_av.video import (
    LFQ,
    VIDEO_PRESETS,
    VideoTokenizer,
    n_decoded_frames,
    n_latent_frames,
    video_tokenizer_config,
)


@pytest.fixture(scope="module")
def model() -> VideoTokenizer:
    torch.manual_seed(0)
    model = VideoTokenizer(video_tokenizer_config("debug")).eval()
    for p in model.parameters():  # residual branches are zero at the start; let every path matter
        torch.nn.init.normal_(p, std=0.1)
    return model


def video(T: int, H: int = 16, W: int = 24, B: int = 1) -> torch.Tensor:
    return torch.rand(B, 3, T, H, W, generator=torch.Generator().manual_seed(T)) * 2 - 1


@pytest.mark.parametrize("T, H, W", [(1, 16, 16), (5, 16, 24), (6, 17, 9), (17, 8, 8)])
def test_any_size_is_padded_to_the_stride(model: VideoTokenizer, T: int, H: int, W: int) -> None:
    ids = model.encode(video(T, H, W))
    assert ids.shape == (1, n_latent_frames(T), -(-H // 8), -(-W // 8))
    assert ids.min() >= 0 and ids.max() < model.codebook_size
    assert model.decode(ids).shape == (1, 3, n_decoded_frames(ids.shape[1]), 8 * ids.shape[2], 8 * ids.shape[3])


@pytest.mark.parametrize("n", [1, 5, 9, 13])
def test_ids_of_the_first_frames_ignore_what_follows(model: VideoTokenizer, n: int) -> None:
    whole, other = video(17), torch.cat([video(17)[:, :, :n], -video(17)[:, :, n:]], dim=2)
    t = n_latent_frames(n)
    assert torch.equal(model.encode(whole)[:, :t], model.encode(whole[:, :, :n]))
    assert torch.equal(model.encode(other)[:, :t], model.encode(whole[:, :, :n]))


def test_latents_depend_on_every_frame_of_their_group_and_none_later(model: VideoTokenizer) -> None:
    x = video(9).requires_grad_()
    z = model._latents(x)[:, 1]
    (z * torch.randn_like(z)).sum().backward()
    assert x.grad is not None
    per_frame = x.grad.abs().amax((0, 1, 3, 4))
    assert (per_frame[:5] > 0).all() and (per_frame[5:] == 0).all(), per_frame


@pytest.mark.parametrize("t", [1, 2, 3])
def test_decoded_frames_ignore_later_latent_frames(model: VideoTokenizer, t: int) -> None:
    ids = torch.randint(model.codebook_size, (1, 4, 2, 2), generator=torch.Generator().manual_seed(1))
    short, long = model.decode(ids[:, :t]), model.decode(ids)
    difference = (short - long[:, :, : short.shape[2]]).abs().max()
    assert difference < 1e-5, float(difference)


def test_batch_equals_alone(model: VideoTokenizer) -> None:
    both = video(5, B=2)
    assert torch.equal(model.encode(both), torch.cat([model.encode(both[:1]), model.encode(both[1:])]))


def test_codes_and_ids_are_inverse() -> None:
    lfq = LFQ(bits=8)
    ids = torch.arange(256)
    codes = lfq.codes(ids)
    assert torch.equal(lfq.ids(codes), ids)
    assert codes.unique().tolist() == [-1, 1]
    assert lfq.codes(torch.tensor([5])).tolist() == [[1, -1, 1, -1, -1, -1, -1, -1]]  # bit 0 first


def test_gradient_passes_straight_through_the_quantizer() -> None:
    z = torch.randn(2, 1, 2, 2, 6, requires_grad=True)
    LFQ(6)(z).z_q.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def test_soft_samples_bypass_the_quantizer() -> None:
    z = torch.randn(2, 1, 2, 2, 6)
    z_q = LFQ(6)(z, torch.tensor([True, False])).z_q
    assert torch.allclose(z_q[0], torch.tanh(z[0])) and set(z_q[1].unique().tolist()) <= {-1.0, 1.0}


def test_entropy_equals_the_sum_over_all_codes() -> None:
    """The factorised form against the definition: softmax over every code of a small codebook."""
    bits, z = 4, torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=bits)))
    p = (z @ codes.T).softmax(-1)
    per_position = -(p * p.log()).sum(-1).mean()
    mean = p.mean(0)
    expected = (per_position + (mean * mean.log()).sum()) / bits
    assert LFQ(bits, entropy_group=4).entropy_loss(z) == pytest.approx(float(expected), abs=1e-5)


def test_joint_entropy_sees_bits_that_agree() -> None:
    """Every bit balanced, but all bits equal: half the codes of a group of two are never used."""
    same = torch.randn(4000, 1).sign().expand(-1, 2) * 5
    free = torch.randn(4000, 2).sign() * 5
    lfq = LFQ(2, entropy_group=2)
    assert lfq.entropy_loss(same) > lfq.entropy_loss(free) + 0.25


def test_entropy_of_a_large_codebook_needs_no_table() -> None:
    z = torch.randn(1280, 18, requires_grad=True)
    LFQ(18).entropy_loss(z).backward()
    assert z.grad is not None and torch.isfinite(z.grad).all() and z.grad.abs().sum() > 0


def test_save_and_load_give_the_same_ids(model: VideoTokenizer, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".md") == ["config.json", "model.safetensors"]
    again = VideoTokenizer.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again.encode(video(5)), model.encode(video(5)))


@pytest.mark.parametrize("preset", VIDEO_PRESETS)
def test_every_preset_builds(preset: str) -> None:
    with torch.device("meta"):
        VideoTokenizer(video_tokenizer_config(preset))


def test_bad_input_is_refused(model: VideoTokenizer) -> None:
    with pytest.raises(ValueError, match=r"expected \[-1, 1\]"):
        model.encode(torch.full((1, 3, 1, 8, 8), 255.0))
    with pytest.raises(ValueError, match="NaN"):
        model.encode(torch.full((1, 3, 1, 8, 8), float("nan")))
    with pytest.raises(ValueError, match=r"expected \(B, 3, T, H, W\)"):
        model.encode(torch.zeros(3, 1, 8, 8))
    with pytest.raises(ValueError, match=r"expected \[0, 255\]"):
        model.decode(torch.full((1, 1, 1, 1), 256))
    with pytest.raises(ValueError, match="unknown video tokenizer preset"):
        video_tokenizer_config("huge")
    with pytest.raises(ValueError, match="must be a multiple"):
        video_tokenizer_config("debug", latent_dim=20)


def test_one_clip_can_be_overfitted() -> None:
    torch.manual_seed(0)
    model = VideoTokenizer(video_tokenizer_config("debug"))
    clip = torch.zeros(1, 3, 5, 16, 16)
    for t in range(5):
        clip[:, :, t, 4:12, t : t + 8] = torch.tensor([0.9, -0.5, -0.8])[:, None, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        output = model(clip)
        loss = (output.video - clip).square().mean() + 0.1 * output.quantized.commitment_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float((output.video - clip).detach().square().mean()))
    assert losses[-1] < 0.2 * losses[0], (losses[0], losses[-1])
