"""Laws of the video tokenizer: sizes, causality, chunks, images within videos, and a round trip through a folder."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenizers_av.packed import Packed
from tokenizers_av.video import (
    VIDEO_PRESETS,
    VideoTokenizer,
    VideoTokenizerConfig,
    deepen,
    inflate,
    n_decoded_frames,
    n_latent_frames,
    nearest_n_frames,
    video_tokenizer_config,
)
from tokenizers_av.video.layers import (
    FEW_POSITIONS,
    Conv,
    Flow,
    ResidualBlock,
    SpatialConv,
    TemporalConv,
    channel_norm,
    match_channels,
)
from train.data import MediaSpec, open_source


def lively(preset: str, **overrides: object) -> VideoTokenizer:
    """Residual branches are zero at the start; here every path matters."""
    torch.manual_seed(0)
    model = VideoTokenizer(video_tokenizer_config(preset, **overrides)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1 if p.dim() == 1 else 0.7 * p.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def model() -> VideoTokenizer:
    return lively("debug")


def video(T: int, H: int = 16, W: int = 24, B: int = 1) -> torch.Tensor:
    return torch.rand(B, 3, T, H, W, generator=torch.Generator().manual_seed(T)) * 2 - 1


def clip(kind: str, T: int = 17) -> torch.Tensor:
    if kind == "random":
        return video(T)
    found = open_source("playground").batch([0], MediaSpec(n_frames=T, size=24), audio=False).video
    assert found is not None
    return found


@pytest.mark.parametrize("T, H, W", [(1, 16, 16), (5, 16, 24), (6, 17, 9), (17, 8, 8), (2, 1, 1)])
def test_any_size_is_padded_to_the_stride_and_comes_back(model: VideoTokenizer, T: int, H: int, W: int) -> None:
    ids = model.encode(video(T, H, W))
    assert ids.shape == (1, n_latent_frames(T), -(-H // 8), -(-W // 8)) and ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < model.codebook_size
    decoded = model.decode(ids)
    assert decoded.shape == (1, 3, n_decoded_frames(ids.shape[1]), 8 * ids.shape[2], 8 * ids.shape[3])
    again = model.reconstruct(video(T, H, W))
    assert again.shape == (1, 3, T, H, W) and torch.equal(again, decoded[:, :, :T, :H, :W])


def test_the_arithmetic_of_frames() -> None:
    assert [n_latent_frames(n) for n in (1, 2, 5, 6, 17)] == [1, 2, 2, 3, 5]
    assert [n_decoded_frames(n) for n in (1, 2, 5)] == [1, 5, 17]
    assert [nearest_n_frames(n) for n in (1, 2, 3, 4, 5, 7, 16, 17)] == [1, 1, 5, 5, 5, 9, 17, 17]
    for n in range(1, 40):
        assert n_decoded_frames(n_latent_frames(n)) >= n > n_decoded_frames(n_latent_frames(n)) - 4
    for law in (n_latent_frames, n_decoded_frames, nearest_n_frames):
        with pytest.raises(ValueError, match="need at least 1"):
            law(0)


PRESETS = ["debug", "tiny", "fast", *(pytest.param(name, marks=pytest.mark.slow) for name in ("base", "large"))]


@pytest.mark.parametrize("kind", ["random", "playground"])
@pytest.mark.parametrize("preset", PRESETS)
def test_prefix_law_ids_of_the_first_frames_ignore_what_follows(preset: str, kind: str) -> None:
    model, whole = lively(preset), clip(kind, 13)
    ids = model.encode(whole)
    for k in range(3):
        n = 1 + 4 * k
        other = torch.cat([whole[:, :, :n], -whole[:, :, n:]], dim=2)
        for follow in (other, whole[:, :, :n], torch.cat([whole[:, :, :n], whole], dim=2)):
            assert torch.equal(model.encode(follow)[:, : 1 + k], ids[:, : 1 + k])


@pytest.mark.parametrize("kind", ["random", "playground"])
@pytest.mark.parametrize("preset", PRESETS)
def test_chunk_law_any_chunking_equals_the_whole(preset: str, kind: str) -> None:
    model, whole = lively(preset), clip(kind)
    ids = model.encode(whole)
    decoded = model.decode(ids)
    for sizes in ([17], [1] * 17, [2, 7, 8], [5, 4, 4, 4], [16, 1]):
        assert torch.equal(torch.cat(list(model.encode_stream(whole.split(sizes, dim=2))), 1), ids), sizes
    for sizes in ([1] * 5, [2, 3], [4, 1]):
        parts = list(model.decode_stream(ids.split(sizes, dim=1)))
        assert [p.shape[2] for p in parts] == [1, 4, 4, 4, 4]
        assert (torch.cat(parts, 2) - decoded).abs().max() <= 1e-4, sizes


@pytest.mark.parametrize("kind", ["random", "playground"])
@pytest.mark.parametrize("preset", PRESETS)
def test_whole_clips_in_training_equal_streams(preset: str, kind: str) -> None:
    model, whole = lively(preset), clip(kind)
    flow = Flow(tails={})
    with torch.no_grad():
        latents = torch.cat([model._latents(whole[:, :, :1], flow)], 1)
        flow.first = False
        latents = torch.cat([latents, *(model._latents(g, flow) for g in whole[:, :, 1:].split(4, 2))], 1)
        output = model(whole)
        difference = (model._latents(whole, Flow()) - latents).abs().max() / latents.abs().max()
    assert difference < 1e-5, float(difference)
    difference = (model.decode(output.quantized.ids) - output.video.clamp(-1, 1)).abs().max()
    assert difference <= 1e-4, float(difference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [SpatialConv, TemporalConv])
def test_a_kernel_laid_out_once_for_a_stream_gives_what_the_convolution_gives(kind, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv, other = kind(24, 40).to(dtype), kind(24, 40).to(dtype)
    if not Packed.can(conv.weight):
        pytest.skip("this CPU has no such layout")
    torch.nn.init.normal_(conv.bias)

    def differs(conv: Conv, flow: Flow, shape: tuple[int, ...]) -> float:
        x = torch.randn(*shape, 24, dtype=dtype)
        if flow.tails is not None:
            flow.tails[conv] = torch.zeros(shape[0], 2, *shape[2:], 24, dtype=dtype)  # as whole clips begin
        return float((conv(x, flow).float() - other(x, Flow()).float()).abs().max().detach())

    other.load_state_dict(conv.state_dict())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    stream = Flow(tails={})
    with torch.no_grad():
        assert differs(conv, stream, (1, 1, 8, 8)) < tolerance and not stream.kernels  # an image has no use for it
        stream.first = False
        assert differs(conv, stream, (2, 4, 8, 8)) < tolerance
        kernel = stream.kernels[conv]
        assert differs(conv, stream, (1, 1, 9, 5)) < tolerance and stream.kernels[conv] is kernel
        torch.nn.init.normal_(conv.weight)
        other.load_state_dict(conv.state_dict())
        assert differs(conv, Flow(tails={}, first=False), (1, 1, 8, 8)) < 20 * tolerance  # as the weights are now
        many = Flow(tails={}, first=False)
        assert differs(conv, many, (1, 1, FEW_POSITIONS, 2)) < 20 * tolerance
        with torch.autocast("cpu", torch.bfloat16):
            differs(conv, many, (1, 1, 8, 8))
    differs(conv, many, (1, 1, 8, 8))
    assert not many.kernels  # many positions, autocast, gradients


def test_the_chunk_law_holds_where_only_some_kernels_are_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenizers_av.video.layers.FEW_POSITIONS", 48)
    test_chunk_law_any_chunking_equals_the_whole("debug", "random")


def test_a_stream_gives_each_latent_frame_as_soon_as_its_frames_are_there(model: VideoTokenizer) -> None:
    read = []

    def frames():
        for frame in video(10).split(1, dim=2):
            read.append(1)
            yield frame

    stream = model.encode_stream(frames())
    assert [(next(stream).shape[1], len(read)) for _ in range(3)] == [(1, 1), (1, 5), (1, 9)]
    assert len(list(stream)) == 1 and len(read) == 10  # the last group is filled


def test_latents_depend_on_every_frame_of_their_group_and_none_later(model: VideoTokenizer) -> None:
    x = video(9).requires_grad_()
    z = model._latents(x, Flow())[:, 1]
    (z * torch.randn_like(z)).sum().backward()
    assert x.grad is not None
    per_frame = x.grad.abs().amax((0, 1, 3, 4))
    assert (per_frame[:5] > 0).all() and (per_frame[5:] == 0).all(), per_frame


def test_batch_equals_alone(model: VideoTokenizer) -> None:
    both = video(5, B=2)
    assert torch.equal(model.encode(both), torch.cat([model.encode(both[:1]), model.encode(both[1:])]))


@torch.no_grad()
def test_the_decoder_is_modulated_by_the_latent_of_the_place(model: VideoTokenizer) -> None:
    """The adaptive norm of one position sees the code that covers it and no other."""
    norm = model.decoder[-3].norm
    x, code = torch.randn(1, 5, 8, 8, 16), torch.randn(1, 2, 4, 4, model.quantizer.dim)
    before = norm(x, Flow(code))
    code[0, 1, 2, 3] += 1
    changed = (norm(x, Flow(code)) != before).any(-1)[0]
    expected = torch.zeros(5, 8, 8, dtype=torch.bool)
    expected[1:, 4:6, 6:8] = True
    assert torch.equal(changed, expected)
    fresh = VideoTokenizer(model.config).decoder[-3].norm
    assert torch.allclose(fresh(x, Flow(code)), torch.nn.functional.rms_norm(x, (16,), eps=1e-6), atol=1e-6)


@pytest.mark.parametrize(
    "dtype, off", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.015), (torch.float16, 0.002)]
)
def test_norms_are_root_mean_square_norms_in_every_precision(dtype: torch.dtype, off: float) -> None:
    x, weight = torch.randn(50, 64, dtype=torch.float64).to(dtype), torch.rand(64) + 0.5
    for scale in (1e-2, 1.0, 1e2):
        given = (x * scale).requires_grad_()
        true = given.detach().double().requires_grad_()
        expected = torch.nn.functional.rms_norm(true, (64,), weight.double(), eps=1e-6)
        made = channel_norm(given, weight)
        assert made.dtype == dtype and (made.double() / expected - 1).abs().max() < off
        made.double().square().sum().backward()
        expected.square().sum().backward()
        assert torch.allclose(given.grad.double(), true.grad, atol=4 * off * float(true.grad.abs().max()))
    zero = torch.zeros(2, 64, dtype=dtype, requires_grad=True)
    channel_norm(zero, weight).sum().backward()
    assert torch.allclose(zero.grad.double(), (1e3 * weight.double()).expand(2, 64), rtol=0.01)


def test_channels_are_averaged_in_groups_or_repeated() -> None:
    x = torch.randn(2, 3, 12)
    for n in (12, 6, 3, 1):
        assert torch.allclose(match_channels(x, n), x.unflatten(-1, (n, 12 // n)).mean(-1))
    assert torch.equal(match_channels(x, 24), x.repeat_interleave(2, -1))


def test_inflation_codes_images_as_before_and_still_videos_like_the_image() -> None:
    model = lively("debug")
    image = video(1, 16, 16)
    with torch.no_grad():
        latents, picture = model._latents(image, Flow()), model.reconstruct(image)
        still = image.expand(-1, -1, 9, -1, -1)
        assert (model.reconstruct(still)[:, :, 5:] - picture).abs().max() > 0.1  # before: chance
        inflate(model)
        assert torch.allclose(model._latents(image, Flow()), latents, atol=1e-5)
        assert torch.allclose(model._latents(still, Flow()), latents.expand(-1, 3, -1, -1, -1), atol=1e-5)
        assert torch.allclose(model.reconstruct(still), picture.expand(-1, -1, 9, -1, -1), atol=1e-4)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"dims": (16, 16, 16), "n_blocks": 2, "n_time_blocks": 2},
        {"dims": (16,)},
        {"dims": (16,), "n_time_blocks": 0},
    ],
)
def test_a_deeper_decoder_decodes_the_same_at_first(sizes: dict[str, object]) -> None:
    model = lively("debug", **sizes)
    deep = deepen(deepen(model, 2), 3)
    more = len(deep.decoder) - len(model.decoder)
    blocks = model.config.n_latent_blocks + 2 * model.config.n_time_blocks
    assert more == 2 * (blocks + model.config.n_blocks * (len(model.config.dims) - 1)) > 0
    clip = video(9, 32, 32)
    ids = model.encode(clip)
    assert torch.equal(deep.encode(clip), ids)
    assert torch.allclose(deep.eval().decode(ids), model.decode(ids), atol=1e-5)
    for layer in deep.decoder:
        if isinstance(layer, ResidualBlock):
            torch.nn.init.normal_(layer.temporal.weight, std=0.1)
    assert not torch.allclose(deep.decode(ids), model.decode(ids), atol=1e-2)  # what is new is used
    with pytest.raises(ValueError, match="decoder_depth=1: need 3, which it has, or more"):
        deepen(deep, 1)


def test_save_and_load_give_the_same_ids(model: VideoTokenizer, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".md") == ["config.json", "model.safetensors"]
    assert "from tokenizers_av.video import VideoTokenizer" in (tmp_path / "README.md").read_text()
    again = VideoTokenizer.from_pretrained(tmp_path)
    assert again.config == model.config and isinstance(again.config.dims, tuple)
    assert torch.equal(again.encode(video(5)), model.encode(video(5)))


def test_a_checkpoint_of_another_config_is_refused(model: VideoTokenizer, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_latent_blocks": 2}))
    with pytest.raises(ValueError, match="weights do not fit"):
        VideoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "dims": [16, 32]}))
    with pytest.raises(ValueError, match="weights do not fit"):
        VideoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "decoder.0.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="weights do not fit"):
        VideoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "preset, millions", [("debug", 0.049), ("tiny", 4.6), ("fast", 3.1), ("base", 158), ("large", 373)]
)
def test_every_preset_builds_at_its_size(preset: str, millions: float) -> None:
    assert set(VIDEO_PRESETS) == {"debug", "tiny", "fast", "base", "large"}
    with torch.device("meta"):
        model = VideoTokenizer(video_tokenizer_config(preset))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)
    assert model.spatial_stride == 8 and model.temporal_stride == 4


@pytest.mark.parametrize(
    "overrides", [{"quantizer": "fsq"}, {"quantizer": "bsq"}, {"patch": 1}, {"patch_kernel": 1}, {"dims": (8, 16, 32)}]
)
def test_other_configs_reconstruct(overrides: dict) -> None:
    model = lively("debug", **overrides)
    assert model.reconstruct(video(6)).shape == (1, 3, 6, 16, 24)
    assert model(video(5, 16, 32)).video.shape == (1, 3, 5, 16, 32)


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.full((1, 3, 1, 8, 8), 255.0), r"span \[255, 255\], expected \[-1, 1\]"),
        (torch.full((1, 3, 1, 8, 8), float("nan")), "NaN"),
        (torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8), "torch.uint8, expected floating point"),
        (torch.zeros(3, 1, 8, 8), r"expected \(B, 3, T, H, W\)"),
        (torch.zeros(1, 4, 1, 8, 8), r"expected \(B, 3, T, H, W\)"),
        (torch.zeros(1, 3, 0, 8, 8), "no empty side"),
    ],
)
def test_bad_video_is_refused(model: VideoTokenizer, bad: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.encode(bad)


def test_bad_ids_and_streams_are_refused(model: VideoTokenizer) -> None:
    with pytest.raises(ValueError, match=r"expected \[0, 255\]"):
        model.decode(torch.full((1, 1, 1, 1), 256))
    with pytest.raises(ValueError, match="expected an integer type"):
        model.decode(torch.zeros(1, 1, 1, 1))
    with pytest.raises(ValueError, match="no empty side"):
        model.decode(torch.zeros(1, 0, 1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="only the number of frames may change"):
        list(model.encode_stream([video(5), video(5, 16, 16)]))
    with pytest.raises(ValueError, match="only the number of latent frames may change"):
        list(model.decode_stream([torch.zeros(1, 1, 2, 2).long(), torch.zeros(1, 1, 2, 3).long()]))
    with pytest.raises(ValueError, match="expected 1 \\+ a multiple of 4 frames"):
        model(video(6))
    with pytest.raises(ValueError, match="no frames to encode"):
        list(model.encode_stream([]))
    with pytest.raises(ValueError, match="no ids to decode"):
        list(model.decode_stream([]))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"dims": (16, 20)}, "must be a multiple of 20"),
        ({"dims": ()}, "at least one width"),
        ({"bits": 31}, "need 1 to 30"),
        ({"patch": 0}, "patch=0"),
        ({"patch_kernel": 2}, "patch_kernel=2: expected 1 or 3"),
        ({"n_time_blocks": -1}, "n_time_blocks=-1: need at least 0"),
        ({"quantizer": "vq"}, "expected one of lfq, bsq, fsq"),
    ],
)
def test_bad_configs_are_refused(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoTokenizerConfig(**overrides)
    with pytest.raises(ValueError, match="unknown video tokenizer preset"):
        video_tokenizer_config("huge")


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
