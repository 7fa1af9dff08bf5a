"""The audio tokenizer: shapes, causality, silence, quantizer laws, saving, refused input."""

import json
import math

import pytest
import torch
from torch import nn

from tokenizers_av.audio import AUDIO_PRESETS, AudioTokenizer, AudioTokenizerConfig, audio_tokenizer_config
from tokenizers_av.audio.quantizer import Codebooks, ResidualQuantizer
from tokenizers_av.audio.seanet import CausalConv
from tokenizers_av.packed import Packed


def perturbed(model: nn.Module) -> nn.Module:
    """Residual branches start at zero; random weights let every path take part in a test."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5 * parameter.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def model() -> AudioTokenizer:
    torch.manual_seed(0)
    return perturbed(AudioTokenizer(audio_tokenizer_config("debug"))).eval()


@pytest.mark.parametrize("preset", AUDIO_PRESETS)
def test_presets_have_the_rates_of_the_design(preset):
    tokenizer = AudioTokenizer(audio_tokenizer_config(preset))
    rates = (tokenizer.sample_rate, tokenizer.hop_length, tokenizer.frame_rate, tokenizer.n_codebooks)
    assert rates == ((24000, 320, 75, 8) if preset == "base-24khz" else (16000, 320, 50, 4))
    assert tokenizer.latency == 1 / tokenizer.frame_rate


@pytest.mark.parametrize(("preset", "low", "high"), [("tiny", 2.0e6, 2.6e6), ("base", 9e6, 11e6)])
def test_sizes(preset, low, high):
    assert low < sum(p.numel() for p in AudioTokenizer(audio_tokenizer_config(preset)).parameters()) < high


def test_shapes_of_a_clip(model):
    ids = model.encode(torch.randn(2, 34000) * 0.1)
    assert ids.shape == (2, 4, 106) and ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < model.codebook_size
    for levels in range(1, 5):
        samples = model.decode(ids[:, :levels])
        assert samples.shape == (2, 33920) and samples.dtype == torch.float32
        assert samples.abs().max() <= 1


def test_tail_shorter_than_a_frame_is_dropped(model):
    x = torch.rand(1, 320 * 3 + 319) * 2 - 1
    assert torch.equal(model.encode(x), model.encode(x[:, :960]))
    assert model.reconstruct(x).shape == x.shape
    torch.testing.assert_close(model.reconstruct(x)[:, :960], model.reconstruct(x[:, :960]))
    assert model.decode(torch.zeros(1, 4, 0, dtype=torch.long)).shape == (1, 0)


def test_latents_ignore_later_samples(model):
    x = torch.randn(1, 320 * 8, requires_grad=True)
    z = model.encoder(x)
    (z[:, 4] * torch.randn(z.shape[-1])).sum().backward()
    assert x.grad[:, 5 * 320 :].abs().max() == 0
    assert x.grad[:, 4 * 320 : 5 * 320].abs().min() > 0


def test_samples_ignore_later_latents(model):
    z = torch.randn(1, 8, model.config.codebook_dim, requires_grad=True)
    x = model.decoder(z)
    (x[:, 4 * 320 : 5 * 320] * torch.randn(320)).sum().backward()
    assert z.grad[:, 5:].abs().max() == 0
    assert (z.grad[:, 4].abs() > 0).all()


@pytest.mark.parametrize("name", ["debug", "snake", "tiny", "base"])
@pytest.mark.parametrize("sound", ["noise", "tones"])
def test_any_chunking_and_any_beginning_give_the_ids_and_samples_of_the_whole(name, sound):
    torch.manual_seed(1)
    config = audio_tokenizer_config("debug", activation="snake") if name == "snake" else audio_tokenizer_config(name)
    model = perturbed(AudioTokenizer(config)).eval()
    hop, n = 320, (300 if name in ("debug", "snake") else 23) * 320 + 100  # the small ones in more than one piece
    t = torch.arange(n) / 16000
    tones = 0.4 * torch.stack([torch.sin(2760 * t) + torch.sin(9000 * t), torch.sin(300 * t * (1 + t))])
    x = torch.rand(2, n) * 2 - 1 if sound == "noise" else tones
    ids = model.encode(x)
    whole = model.decode(ids)
    assert ids.unique().numel() > 8
    for cut in (160, hop, hop + 1, 3 * hop, 4 * hop, 11 * hop):
        parts = list(model.encode_stream(x.split(cut, dim=1)))
        assert len(parts) == -(-n // cut)
        assert parts[0].shape[-1] == cut // hop  # nothing waits
        assert torch.equal(torch.cat(parts, dim=-1), ids), cut
        samples = torch.cat(list(model.decode_stream(ids.split(max(1, cut // hop), dim=2))), dim=1)
        assert (samples - whole).abs().max() < 1e-5, cut
    for n_frames in (1, 3, 7, 13):
        assert torch.equal(model.encode(x[:, : n_frames * hop]), ids[:, :, :n_frames]), n_frames
        assert (model.decode(ids[:, :, :n_frames]) - whole[:, : n_frames * hop]).abs().max() < 1e-5, n_frames
    for levels in (1, 2):
        samples = torch.cat(list(model.decode_stream(ids[:, :levels].split(5, dim=2))), dim=1)
        assert (samples - model.decode(ids[:, :levels])).abs().max() < 1e-5, levels


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)  # which cut tensors in the middle of what the processor takes at once
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["odd", "odd snake", "tiny", "base", "bfloat16"])
def test_latents_and_samples_of_all_chunkings_are_equal_to_the_bit(name, monkeypatch, three_threads):
    torch.manual_seed(0)
    odd = {"widths": (9, 14, 21), "activation": "snake" if "snake" in name else "elu"}
    preset, changes = ("debug", odd) if "odd" in name else ("tiny" if name == "bfloat16" else name, {})
    config = audio_tokenizer_config(preset, **changes, n_codebooks=4, codebook_dim=4)
    model = perturbed(AudioTokenizer(config)).eval()
    if name == "bfloat16":
        model = model.bfloat16()
        if not Packed.can(model.encoder.out.weight):
            pytest.skip("no oneDNN products in bfloat16 on this machine")
    x = torch.rand(1, 320 * 41) * 2 - 1
    with monkeypatch.context() as patch:
        patch.setattr(Codebooks, "encode", lambda codebooks, z: z.transpose(1, 2))  # latents where ids are meant
        whole = model.encode(x)
        for cut in (320, 960, 4000):
            assert torch.equal(torch.cat(list(model.encode_stream(x.split(cut, dim=1))), dim=-1), whole), cut
        assert torch.equal(model.encode(torch.cat([x, -x])), torch.cat([whole, model.encode(-x)]))
    ids = model.encode(x)
    for cut in (1, 3, 12):
        assert torch.equal(torch.cat(list(model.decode_stream(ids.split(cut, dim=2))), dim=1), model.decode(ids)), cut


def test_training_sees_the_ids_of_encoding(model):
    x = torch.rand(2, 320 * 40) * 2 - 1
    assert (model(x).ids != model.encode(x)).float().mean() < 0.01  # sums in another order may turn one


def test_streams_take_empty_chunks_and_refuse_others(model):
    x = torch.rand(2, 960)
    ids = [part.shape for part in model.encode_stream([x[:, :0], x, x[:, :0], x[:, :100]])]
    assert ids == [(2, 4, 0), (2, 4, 3), (2, 4, 0), (2, 4, 0)]
    made = [part.shape for part in model.decode_stream([model.encode(x)[..., :n] for n in (0, 2, 0)])]
    assert made == [(2, 0), (2, 640), (2, 0)]
    with pytest.raises(ValueError, match="1 sounds after 2"):
        list(model.encode_stream([x, x[:1]]))
    with pytest.raises(ValueError, match=r"\(2, 3, 3\) after \(2, 4, 3\)"):
        list(model.decode_stream([model.encode(x), model.encode(x)[:, :3]]))


def test_zeros_are_a_fixed_point_of_both_networks(model):
    assert model.encoder(torch.zeros(1, 3200)).abs().max() == 0
    assert model.decoder(torch.zeros(1, 10, model.config.codebook_dim)).abs().max() == 0


def test_causal_convolution_equals_conv1d():
    conv = CausalConv(3, 5, kernel_size=3, dilation=4)
    x = torch.randn(2, 11, 3)
    weight = conv.weight.view(5, 3, 3).permute(0, 2, 1)  # (out, in, taps)
    padded = nn.functional.pad(x.transpose(1, 2), (8, 0))
    expected = nn.functional.conv1d(padded, weight, dilation=4).transpose(1, 2)
    torch.testing.assert_close(conv(x), expected)


def test_untrained_encoding_is_deterministic_and_changes_nothing(model):
    x = torch.randn(1, 3200) * 0.1
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ids = model.encode(x)
    model(x)
    assert torch.equal(model.encode(x), ids)
    assert ids.unique().numel() > 1
    assert not model.quantizer.initialized
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_quantizer_agrees_with_the_library_and_a_slow_loop():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(AudioTokenizerConfig(codebook_size=16, codebook_dim=4))
    z = torch.randn(3, 40, 4)
    quantizer.train()(z)  # k-means
    quantizer.eval()
    z_q, ids, _ = quantizer.rvq(z)
    codebooks = quantizer.frozen()
    ours = codebooks.encode(z)
    assert torch.equal(ours, ids.transpose(1, 2))
    torch.testing.assert_close(codebooks.decode(ours), z_q)
    books = quantizer.codebooks
    for b, f in ((0, 0), (2, 39)):
        rest = z[b, f]
        for level in range(4):
            nearest = min(range(16), key=lambda i: float((rest - books[level, i]).norm()))
            assert nearest == ours[b, level, f]
            rest = rest - books[level, nearest]


def test_more_levels_come_nearer():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(AudioTokenizerConfig(codebook_size=32, codebook_dim=4))
    z = torch.randn(4, 100, 4)
    quantizer.train()(z)
    codebooks = quantizer.frozen()
    ids = codebooks.encode(z)
    errors = [float((codebooks.decode(ids[:, :k]) - z).square().mean()) for k in range(1, 5)]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.2 * errors[0]


def test_training_passes_gradients_straight_through_and_drops_levels():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(AudioTokenizerConfig(codebook_size=16, codebook_dim=4, quantizer_dropout=1.0)).train()
    z = torch.randn(64, 10, 4, requires_grad=True)
    quantizer(z)
    books = quantizer.codebooks
    out = quantizer(z)
    weights = torch.randn_like(z)
    (out.z_q * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)
    depths = set()
    for b in range(64):  # each clip's output is the sum of its first 1..4 levels
        sums = [books[torch.arange(k)[:, None], out.ids[b, :k]].sum(0) for k in range(1, 5)]
        errors = [float((s - out.z_q[b].detach()).abs().max()) for s in sums]
        assert min(errors) < 1e-5
        depths.add(errors.index(min(errors)) + 1)
    assert depths == {1, 2, 3, 4}


def test_save_and_load_keeps_ids_and_codebooks(tmp_path):
    torch.manual_seed(0)
    model = AudioTokenizer(audio_tokenizer_config("debug")).train()
    x = torch.randn(2, 16000) * 0.1
    for _ in range(2):
        model(x)  # k-means and a moving-average step
    model.eval().save_pretrained(tmp_path / "audio")
    assert json.loads((tmp_path / "audio" / "config.json").read_text())["widths"] == [8, 16, 16]
    loaded = AudioTokenizer.from_pretrained(str(tmp_path / "audio"))
    assert loaded.config == model.config and not loaded.training and loaded.quantizer.initialized
    assert torch.equal(loaded.encode(x), model.encode(x))
    for (key, a), b in zip(model.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(a, b), key


def test_loading_refuses_a_file_without_all_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    AudioTokenizer(audio_tokenizer_config("debug")).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("decoder.out.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"decoder\.out\.weight"):
        AudioTokenizer.from_pretrained(str(tmp_path))


def test_wrong_input_is_refused(model):
    x = torch.zeros(1, 640)
    x[0, 3] = math.nan
    for bad, match in (
        (x, "1 of 640"),
        (torch.zeros(640), "shape"),
        (torch.zeros(1, 2, 640), "shape"),
        (torch.zeros(1, 640, dtype=torch.int16), "int16"),
        (torch.full((1, 640), 1.5), r"span \[1.5, 1.5\], expected \[-1, 1\]: clamp"),
        (torch.full((1, 640), -20000.0), "divide by 32768"),
        (torch.zeros(1, 0), "0 samples, expected at least one frame of 320"),
        (torch.zeros(1, 319), "319 samples"),
    ):
        with pytest.raises(ValueError, match=match):
            model.encode(bad)
    ids = torch.zeros(1, 4, 3, dtype=torch.long)
    for bad, match in (
        (ids + 16, "from 16 to 16"),
        (ids - 1, "from -1 to -1"),
        (ids[0], "shape"),
        (ids.float(), "float32"),
        (torch.zeros(1, 5, 3, dtype=torch.long), "1 to 4 levels"),
        (torch.tensor([[[3], [16 + 3]]]), "each level its own"),  # as if levels had ranges of their own
    ):
        with pytest.raises(ValueError, match=match):
            model.decode(bad)
    with pytest.raises(ValueError, match=r"codes 16000 Hz: resample\(samples, 44100, 16000\)\.clamp"):
        model.encode(torch.zeros(1, 640), sample_rate=44100)
    assert model.encode(torch.zeros(1, 640), sample_rate=16000).shape == (1, 4, 2)
    for n_levels in (0, 5):
        with pytest.raises(ValueError, match=f"n_levels={n_levels}: expected 1 to 4"):
            model.reconstruct(torch.zeros(1, 640), n_levels=n_levels)


def test_config_refuses_what_cannot_work():
    with pytest.raises(ValueError, match="one entry more"):
        AudioTokenizerConfig(widths=(8, 16))
    with pytest.raises(ValueError, match="activation='relu', expected one of elu, snake"):
        AudioTokenizerConfig(activation="relu")
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        audio_tokenizer_config("huge")
