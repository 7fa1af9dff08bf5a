"""Training of the audio tokenizer: its batches, both players of the adversarial game, and where it starts."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tokenizers_av.audio import AudioTokenizer, audio_tokenizer_config
from tokenizers_av.clip import Clip
from train.audio_discriminator import hinge_discriminator_loss
from train.audio_tokenizer import AudioTokenizerJob
from train.audio_training import AudioTraining
from train.checkpoint import load_weights
from train.cli import main
from train.data.source import MediaBatch
from train.loop import LoopConfig, fit
from train.stages import AudioOptions, Options, train_audio_tokenizer

RATE = 16000
GAME = {"adversarial_weight": 1.0, "adversarial_from": 0.0, "head_start": 0.0, "stft_width": 2, "wave_width": 2}


def tone(hertz: float, n: int) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * hertz * torch.arange(n) / RATE)[None]


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


@pytest.fixture
def job() -> AudioTokenizerJob:
    return make_job()


def make_job(**training) -> AudioTokenizerJob:
    torch.manual_seed(0)
    model = AudioTokenizer(audio_tokenizer_config("debug"))
    return AudioTokenizerJob(model, Pings(), batch_size=4, training=AudioTraining(**{"seconds": 0.5, **training}))


def test_batches_are_a_pure_function_of_step_and_rank(job):
    a = job.batch(3, 1, 2)
    torch.manual_seed(99)
    assert a.shape == (4, 8000) and torch.equal(job.batch(3, 1, 2), a)
    assert not torch.equal(job.batch(3, 0, 2), a) and not torch.equal(job.batch(4, 1, 2), a)


def test_most_crops_hold_sound():
    job, any_crops = make_job(), make_job(loud_share=0.0)
    share = torch.cat([job.batch(step, 0, 1) for step in range(20)]).abs().amax(1).gt(0.05).float().mean()
    assert share > 0.75
    assert torch.cat([any_crops.batch(step, 0, 1) for step in range(20)]).abs().amax(1).gt(0.05).float().mean() < share


def test_data_without_sound_is_refused(job):
    job.source = SimpleNamespace(len=None, batch=lambda *a, **k: MediaBatch(video=None, audio=None))
    with pytest.raises(ValueError, match="no sound"):
        job.batch(0, 0, 1)


def test_loss_falls_when_fitting_one_batch_and_silence_stays_silent(job, tmp_path):
    model = job.model.train()
    (optimizer,) = job.optimizers()
    batch, losses = job.batch(0, 0, 1), []
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 2e-2
        loss, log = job.loss(model, batch, step / 60)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(log["loss"]))
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
    assert model.quantizer.initialized and log["commitment"] > 0


def test_neither_player_sends_a_gradient_into_the_other():
    job = make_job(**GAME)
    assert job.critic is not None
    judge = job.critic.discriminator
    for p in judge.parameters():
        torch.nn.init.normal_(p, std=0.2)  # the last layers start at zero
    batch = job.batch(0)
    samples = (0.5 * batch + 0.01).requires_grad_()
    reconstruction = (samples - batch).square().mean()
    loss, metrics = job._adversarial(job.critic, reconstruction, samples, batch, judged=True)
    loss.backward()
    assert {"g_adversarial", "features", "d_real", "d_fake"} <= metrics.keys()
    # 1 : 1 : 3 parts of a gradient of norm one for each clip, in whatever directions
    norm = float((samples.grad * len(batch)).norm(dim=1).mean())
    assert 0.1 < norm <= 1.001
    ours = [p.grad.clone() for p in judge.parameters()]
    judge.zero_grad()
    hinge_discriminator_loss(judge(batch), judge(samples.detach())).backward()
    for mine, p in zip(ours, judge.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-3, atol=1e-6)
    assert all(p.requires_grad for p in judge.parameters())


def test_discriminators_join_when_they_are_told_to():
    job = make_job(**{**GAME, "adversarial_from": 0.5, "head_start": 0.1})
    batch = job.batch(0)
    assert "d_real" not in job.loss(job.model, batch, 0.4)[1]
    alone = job.loss(job.model, batch, 0.5)[1]
    assert "d_real" in alone and "features" not in alone
    loss, metrics = job.loss(job.model, batch, 0.6)
    assert {"d_real", "features"} <= metrics.keys()
    loss.backward()
    for player in (job.model, job.critic.discriminator):
        assert all(p.grad is None or p.grad.isfinite().all() for p in player.parameters())


def test_a_stopped_game_goes_on_as_if_nothing_had_happened(tmp_path):
    def run(job, folder, **more):
        fit(job, tmp_path / folder, LoopConfig(steps=4, n_evaluate=1, save_every=0.0), device="cpu", **more)

    training = {**GAME, "soft_from": 0.0, "soft_to": 0.3, "seconds": 0.25}
    whole = make_job(**training)
    run(whole, "whole")
    stopped = make_job(**training)
    batch = stopped.batch

    def stop_after_three(step, *rest):
        if step == 3:
            raise KeyboardInterrupt
        return batch(step, *rest)

    stopped.batch = stop_after_three
    with pytest.raises(KeyboardInterrupt):
        run(stopped, "parts")
    resumed = make_job(**training)
    run(resumed, "parts", resume=True)
    assert whole.model.quantizer.initialized
    for name, value in whole.model.state_dict().items():  # codebooks and their averages, too
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    kept = load_weights(tmp_path / "parts/train/checkpoint", "critic")
    assert {"balancer.norm_reconstruction", "balancer.norm_features"} <= kept.keys()
    for name, value in whole.critic.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_collapsed_codes_are_noticed_by_level():
    job = make_job()
    job._ids = torch.randint(16, (4, 4, 50))
    job._ids[:, 2] = 5
    said = [words for step in range(0, 400, 20) for words in job.notices(step, {"loss": 1.0 - step / 1e4, "soft": 0.0})]
    assert len(said) == 1 and said[0].startswith("level 2: only 1 of 16 codes") and "learning rate" in said[0]


def test_an_output_that_is_almost_silent_is_noticed():
    job, metrics = make_job(), {"loss": 1.0, "level": -30.0}
    said = [words for step in range(0, 280, 20) for words in job.notices(step, metrics)]
    assert len(said) == 1 and "30 dB quieter" in said[0]


def test_two_processes_learn_one_codebook(tmp_path):
    words = ["-m", "train", "audio-tokenizer", "--preset", "debug", "--steps", "4", "--device", "cpu", "--out",
             str(tmp_path / "a")]  # fmt: skip
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr
    weights = load_weights(tmp_path / "a/train/checkpoint", "model")
    assert weights is not None
    used = weights["quantizer.rvq.layers.0._codebook.cluster_size"].sum()
    n_vectors = 2 * 2 * 25  # two processes, two clips, half a second
    assert used > 0.75 * n_vectors, float(used)  # of one process it would be half as many


def test_fine_tuning_may_stand_still(tmp_path):
    job = make_job()
    flat = lambda: [words for step in range(20, 1000, 20) for words in job.notices(step, {"loss": 0.5, "soft": 0.0})]
    assert "the loss has not fallen" in flat()[0]
    job.go_on_from(tmp_path)
    assert flat() == []


def test_discriminators_that_the_codec_never_hears_are_refused():
    with pytest.raises(ValueError, match="never hears"):
        AudioTraining(adversarial_weight=1.0, adversarial_from=0.95, head_start=0.1)


def test_values_beyond_one_are_refused_before_they_are_learned(job):
    clips = MediaBatch(video=None, audio=torch.full((4, 34000), 3.0))
    job.source = SimpleNamespace(len=None, batch=lambda *a, **k: clips)
    with pytest.raises(ValueError, match=r"span \[3, 3\], expected \[-1, 1\]"):
        job.batch(0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("audio") / "a"
    words = ["audio-tokenizer", "--preset", "debug", "--steps", "3", "--adversarial-weight", "1", "--device", "cpu"]
    assert main([*words, "--out", str(out)]) == 0
    return out


def test_the_command_leaves_figures_for_every_number_of_levels(trained):
    metrics = json.loads((trained / "train/metrics.json").read_text())
    assert {"mel_distance_1", "mel_distance_3", "mel_distance", "si_sdr_2", "si_sdr", "codes_used_3"} <= metrics.keys()
    assert (trained / "train/samples/audio_000003.png").is_file()


def test_a_training_starts_from_another(trained, tmp_path, capsys):
    options = Options(preset="debug", steps=1, device="cpu")
    train_audio_tokenizer(tmp_path / "more", options, AudioOptions(init=trained, adversarial_weight=1.0, lr=1e-4))
    for name, near in (("average", "encoder.out.weight"), ("critic", "discriminator.discriminators.0.hidden.0.weight")):
        before, after = (load_weights(folder / "train/checkpoint", name) for folder in (trained, tmp_path / "more"))
        assert 0 < (before[near] - after[near]).abs().max() < 1e-2, name
    told = json.loads(capsys.readouterr().err.splitlines()[0])["training"]
    assert told["soft_to"] == 0 and told["adversarial_from"] == 0 and told["head_start"] == 0 and told["lr"] == 1e-4


def test_it_learns_from_sound_files_and_sound_tracks(tmp_path, capsys):
    folder = tmp_path / "media"
    folder.mkdir()
    Clip(None, 8.0, tone(440, 80000)[0], 44100).save(folder / "tone.wav")
    frames = torch.zeros(17, 32, 32, 3, dtype=torch.uint8)
    Clip(frames, 8.0, tone(880, 34000)[0], 16000).save(folder / "sounding.mp4")
    Clip(frames, 8.0).save(folder / "silent.mp4")
    (folder / "broken.wav").write_bytes(b"RIFFxxxx")
    words = ["audio-tokenizer", "--preset", "debug", "--steps", "4", "--batch-size", "8", "--device", "cpu"]
    assert main([*words, "--data", str(folder), "--out", str(tmp_path / "a")]) == 0
    out, err = capsys.readouterr()
    assert math.isfinite(json.loads(out)["si_sdr"])
    assert "skipped 1 files that could not be read: broken.wav" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--init", "/nowhere"], "no audio tokenizer there"),
        (["--init", "TRAINED", "--preset", "tiny"], "has widths=(8, 16, 16), the preset (96, 192, 192)"),
        (["--seconds", "0.001"], "seconds=0.001"),
        (["--seconds", "0.05", "--adversarial-weight", "1"], "the discriminators need 0.128 s"),
        (["--adversarial-weight", "-1"], "adversarial_weight=-1.0: need a number, 0 or more"),
        (["--lr", "nan"], "lr=nan: need a number above 0"),
        (["--data", "/nowhere"], "no such folder or file"),
    ],
)
def test_wrong_settings_are_one_line_before_any_work(words, message, trained, tmp_path, capsys):
    words = [str(trained) if word == "TRAINED" else word for word in words]
    given = words if "--preset" in words else ["--preset", "debug", *words]
    assert main(["audio-tokenizer", "--out", str(tmp_path / "x"), "--steps", "1", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "x").exists()
