"""Losses, metrics and the training job of the audio tokenizer."""

import math
from types import SimpleNamespace

import pytest
import torch

from tokenizers_av.audio import AudioTokenizer, audio_tokenizer_config
from train.audio_losses import AudioLossWeights, audio_loss
from train.audio_metrics import mel_distance, share_of_codes_used, si_sdr
from train.audio_tokenizer import AudioTokenizerJob
from train.data.source import MediaBatch

RATE = 16000


def tone(hertz: float, n: int = 8000, amplitude: float = 0.3, phase: float = 0.0) -> torch.Tensor:
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(n) / RATE + phase)[None]


class Pings:
    """Endless source of silence with one decaying tone per clip."""

    len = None

    def batch(self, indices, spec, *, video=True, audio=True):
        t = torch.arange(spec.n_samples) / spec.sample_rate
        clips = []
        for i in indices:
            start = 0.2 + 0.1 * (i * 7 % 17)
            since = (t - start).clamp(min=0)
            ring = torch.sin(2 * math.pi * (300 + 200 * (i % 3)) * since)
            clips.append(0.5 * ring * torch.exp(-since / 0.1))
        return MediaBatch(video=None, audio=torch.stack(clips))


def test_loss_of_equal_sounds_is_nearly_zero_and_grows_with_the_error():
    x = tone(440) + tone(900, amplitude=0.1)
    same = audio_loss(x, x, RATE)
    assert same.total < 1e-3
    torch.manual_seed(0)
    noise = torch.randn_like(x)
    totals = [float(audio_loss(x + level * noise, x, RATE).total) for level in (0.003, 0.01, 0.1)]
    assert same.total < totals[0] < totals[1] < totals[2]


def test_terms_measure_what_they_say():
    x = tone(440)
    assert float(audio_loss(torch.zeros_like(x), x, RATE).wave) == pytest.approx(1, abs=1e-4)
    assert float(audio_loss(torch.zeros_like(x), x, RATE).linear) == pytest.approx(1, abs=1e-3)
    shifted = audio_loss(tone(440, phase=math.pi / 2), x, RATE)  # same spectrum, other phase
    assert float(shifted.wave) == pytest.approx(math.sqrt(2), rel=0.01)
    assert shifted.complex > 1 and shifted.mel < 0.15 and shifted.linear < 0.15


def test_total_is_the_weighted_sum_and_takes_the_commitment_in():
    w = AudioLossWeights(mel=2, linear=3, complex=4, wave=5, commit=6)
    loss = audio_loss(tone(300), tone(400), RATE, commit_loss=0.5, weights=w)
    expected = 2 * loss.mel + 3 * loss.linear + 4 * loss.complex + 5 * loss.wave + 3
    assert float(loss.total) == pytest.approx(float(expected), rel=1e-5)


def test_gradients_are_finite_for_silent_output_and_silent_target():
    silence = torch.zeros(1, 8000)
    for output, target in ((silence, tone(440)), (silence, silence), (tone(440), tone(440))):
        output = output.clone().requires_grad_()
        audio_loss(output, target, RATE).total.backward()
        assert torch.isfinite(output.grad).all()


def test_loss_refuses_other_shapes():
    with pytest.raises(ValueError, match="same shape"):
        audio_loss(torch.zeros(1, 100), torch.zeros(2, 100), RATE)


def test_loss_is_float32_under_autocast():
    x, y = tone(440), tone(450)
    with torch.autocast("cpu", torch.bfloat16):
        inside = audio_loss(x, y, RATE)
    torch.testing.assert_close(inside.total, audio_loss(x, y, RATE).total)


def test_mel_distance_of_a_tenth_of_the_amplitude_is_a_decade_where_there_is_sound():
    torch.manual_seed(0)
    x = 0.3 * torch.randn(2, 8000)
    assert mel_distance(x, x, RATE).max() == 0
    torch.testing.assert_close(mel_distance(0.1 * x, x, RATE), torch.ones(2), atol=1e-3, rtol=0)


def test_si_sdr_against_known_values():
    torch.manual_seed(0)
    x = torch.randn(1, 16000, dtype=torch.float64)
    x -= x.mean()
    noise = torch.randn_like(x)
    noise -= noise.mean()
    noise -= (noise * x).sum() / (x * x).sum() * x  # orthogonal to x
    noise *= (x.norm() / noise.norm()) * 10 ** (-12 / 20)
    assert float(si_sdr(x + noise, x)) == pytest.approx(12, abs=1e-3)
    assert float(si_sdr(0.2 * (x + noise), x)) == pytest.approx(12, abs=1e-3)  # scale does not matter
    assert math.isnan(float(si_sdr(x, torch.zeros_like(x))))


def test_share_of_codes_used():
    ids = torch.tensor([[[0, 1, 1], [2, 2, 2]]])
    assert share_of_codes_used(ids, 4) == [0.5, 0.25]


@pytest.fixture
def job() -> AudioTokenizerJob:
    torch.manual_seed(0)
    return AudioTokenizerJob(AudioTokenizer(audio_tokenizer_config("debug")), Pings(), batch_size=4, seconds=0.5)


def test_batches_are_a_pure_function_of_step_and_rank(job):
    a = job.batch(3, 1, 2)
    torch.manual_seed(99)
    assert a.shape == (4, 8000) and torch.equal(job.batch(3, 1, 2), a)
    assert not torch.equal(job.batch(3, 0, 2), a) and not torch.equal(job.batch(4, 1, 2), a)


def test_most_crops_hold_sound(job):
    share = torch.cat([job.batch(step, 0, 1) for step in range(20)]).abs().amax(1).gt(0.05).float().mean()
    assert share > 0.75
    job.loud_share = 0.0
    assert torch.cat([job.batch(step, 0, 1) for step in range(20)]).abs().amax(1).gt(0.05).float().mean() < share


def test_data_without_sound_is_refused(job):
    job.source = SimpleNamespace(len=None, batch=lambda *a, **k: MediaBatch(video=None, audio=None))
    with pytest.raises(ValueError, match="no sound"):
        job.batch(0, 0, 1)


def test_loss_falls_when_fitting_one_batch_and_silence_stays_silent(job, tmp_path):
    model = job.model.train()
    (optimizer,) = job.optimizers()
    batch, losses = job.batch(0, 0, 1), []
    for step in range(30):
        optimizer.param_groups[0]["lr"] = 4e-3
        loss, log = job.loss(model, batch, step / 30)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert log["codes_0"] > 1
    metrics = job.evaluate(model, 3)
    assert metrics["n"] == 3 and metrics["silence_rms"] < 0.02 and 0 < metrics["codes_used_0"] <= 1
    assert math.isfinite(metrics["mel_distance"]) and math.isfinite(metrics["si_sdr"])
    assert model.training
    job.sample(model, tmp_path, 60)
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".wav"}
    job.save(model, tmp_path / "model")
    loaded = AudioTokenizer.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(loaded.encode(batch), model.eval().encode(batch))


def test_no_clip_is_quantized_at_first_and_all_later(job):
    model, batch = job.model.train(), job.batch(0, 0, 1)
    job.loss(model, batch, 0.0)
    assert not model.quantizer.initialized
    _, log = job.loss(model, batch, 0.5)
    assert model.quantizer.initialized and log["commit"] > 0
