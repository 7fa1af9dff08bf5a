"""The audio tokenizer: shapes, causality, silence, quantizer laws, mel filters, saving, refused input."""

import json
import math

import pytest
import torch
from torch import nn

from tokenizers_av.audio import AUDIO_PRESETS, AudioTokenizer, AudioTokenizerConfig, audio_tokenizer_config
from tokenizers_av.audio.mel import hz_to_mel, mel_filters, mel_spectrogram, mel_to_hz, stft
from tokenizers_av.audio.quantizer import ResidualQuantizer
from tokenizers_av.audio.seanet import CausalConv


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
    assert (tokenizer.sample_rate, tokenizer.hop_length) == (16000, 320)
    assert (tokenizer.frame_rate, tokenizer.n_codebooks) == (50, 4)


def test_tiny_size():
    n = sum(p.numel() for p in AudioTokenizer(audio_tokenizer_config("tiny")).parameters())
    assert 2.0e6 < n < 2.6e6


def test_shapes_of_a_clip(model):
    ids = model.encode(torch.randn(2, 34000) * 0.1)
    assert ids.shape == (2, 4, 106) and ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < model.codebook_size
    for levels in range(1, 5):
        samples = model.decode(ids[:, :levels])
        assert samples.shape == (2, 33920) and samples.dtype == torch.float32
        assert samples.abs().max() <= 1


def test_tail_shorter_than_a_frame_is_dropped(model):
    x = torch.randn(1, 320 * 3 + 319)
    assert torch.equal(model.encode(x), model.encode(x[:, :960]))
    assert model.encode(x[:, :319]).shape == (1, 4, 0)
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


def test_ids_and_samples_of_a_beginning_are_the_beginning(model):
    x = torch.randn(1, 320 * 20) * 0.3
    ids = model.encode(x)
    assert torch.equal(model.encode(x[:, : 320 * 7]), ids[:, :, :7])
    torch.testing.assert_close(model.decode(ids[:, :, :7]), model.decode(ids)[:, : 320 * 7], atol=1e-5, rtol=1e-4)


def test_chunk_after_its_context_equals_the_whole(model):
    ids = torch.randint(16, (1, 4, 30))
    whole, context = model.decode(ids), model.context_frames
    assert context < 20
    chunk = model.decode(ids[:, :, 20 - context :])[:, context * 320 :]
    torch.testing.assert_close(chunk, whole[:, 20 * 320 :], atol=1e-5, rtol=1e-4)
    z = torch.randn(1, 30, model.config.codebook_dim, requires_grad=True)
    model.decoder(z)[:, 20 * 320 :].square().sum().backward()
    assert z.grad[:, : 20 - context].abs().max() == 0  # nothing older than the context matters


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
    ours = quantizer.encode(z)
    assert torch.equal(ours, ids.transpose(1, 2))
    torch.testing.assert_close(quantizer.decode(ours), z_q)
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
    ids = quantizer.encode(z)
    errors = [float((quantizer.decode(ids[:, :k]) - z).square().mean()) for k in range(1, 5)]
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
    with pytest.raises(RuntimeError, match=r"decoder\.out\.weight"):
        AudioTokenizer.from_pretrained(str(tmp_path))


def test_wrong_input_is_refused(model):
    x = torch.zeros(1, 640)
    x[0, 3] = math.nan
    for bad, match in (
        (x, "1 of 640"),
        (torch.zeros(640), "shape"),
        (torch.zeros(1, 2, 640), "shape"),
        (torch.zeros(1, 640, dtype=torch.int16), "int16"),
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
    ):
        with pytest.raises(ValueError, match=match):
            model.decode(bad)
    with pytest.raises(ValueError, match="n_levels=5"):
        model(torch.zeros(1, 640), n_levels=5)


def test_config_refuses_what_cannot_work():
    with pytest.raises(ValueError, match="one entry more"):
        AudioTokenizerConfig(widths=(8, 16))
    with pytest.raises(ValueError, match="divisible"):
        AudioTokenizerConfig(widths=(8, 15, 15))
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        audio_tokenizer_config("huge")


def test_mel_spectrogram_equals_a_slow_transform():
    torch.manual_seed(0)
    n_fft, hop, n_mels, rate = 64, 16, 8, 8000
    x = torch.randn(1, 160)
    mel = mel_spectrogram(x, rate, n_fft, hop, n_mels)
    assert mel.shape == (1, n_mels, 11)
    window = [0.5 - 0.5 * math.cos(2 * math.pi * i / n_fft) for i in range(n_fft)]
    padded = [0.0] * (n_fft // 2) + x[0].tolist() + [0.0] * (n_fft // 2)
    edges = [
        700 * (10 ** (m / 2595) - 1)
        for m in (i * 2595 * math.log10(1 + 4000 / 700) / (n_mels + 1) for i in range(n_mels + 2))
    ]
    for frame in (0, 4, 10):
        sizes = []
        for k in range(n_fft // 2 + 1):
            terms = [(window[i] * padded[frame * hop + i], 2 * math.pi * k * i / n_fft) for i in range(n_fft)]
            sizes.append(math.hypot(sum(a * math.cos(p) for a, p in terms), sum(a * math.sin(p) for a, p in terms)))
        for m in range(n_mels):
            low, mid, high = edges[m : m + 3]
            rise, fall = max(mid - low, rate / n_fft), max(high - mid, rate / n_fft)
            below = [mid - k * rate / n_fft for k in range(n_fft // 2 + 1)]
            heights = [max(0.0, min(1 - b / rise, 1 + b / fall)) for b in below]
            expected = sum(h * size for h, size in zip(heights, sizes)) * 2 / sum(window)
            assert float(mel[0, m, frame]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_sine_has_its_amplitude_at_its_bin():
    t = torch.arange(16000) / 16000
    spectrum = stft(0.3 * torch.sin(2 * math.pi * 1000 * t)[None], 1024)[0].abs()
    assert int(spectrum[:, 20].argmax()) == 64  # 1000 Hz / (16000 / 1024)
    assert float(spectrum[64, 20]) == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize(("n_fft", "n_mels"), [(64, 10), (128, 20), (1024, 80), (2048, 320)])
def test_every_mel_filter_hears_something(n_fft, n_mels):
    filters = mel_filters(16000, n_fft, n_mels)
    assert filters.shape == (n_fft // 2 + 1, n_mels)
    assert (filters.sum(0) > 0.4).all() and filters.max() <= 1


def test_mel_scale_is_inverted():
    hz = torch.tensor([0.0, 440.0, 8000.0])
    torch.testing.assert_close(mel_to_hz(hz_to_mel(hz)), hz, atol=1e-2, rtol=1e-4)
