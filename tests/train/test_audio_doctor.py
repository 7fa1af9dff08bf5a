"""The doctor of the audio tokenizer: a sound training passes, and each part that is broken is named."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenizers_av.audio import AudioTokenizer, audio_tokenizer_config
from tokenizers_av.audio.quantizer import Codebooks, ResidualQuantizer
from tokenizers_av.audio.seanet import CausalConv
from tokenizers_av.clip import Clip
from train import audio_checkup, checkup, loop
from train.audio_discriminator import WaveDiscriminator
from train.audio_tokenizer import AudioTokenizerJob
from train.audio_training import AudioTraining
from train.checkup import Failed, OneClip
from train.doctor import diagnose
from train.loop import LoopConfig

CPU = torch.device("cpu")


def tones(seconds: float = 1.5, rate: int = 16000) -> Tensor:
    """(N,) harmonics of 200 Hz that swell, a little noise over them."""
    t = torch.arange(int(seconds * rate)) / rate
    sound = sum((0.2 / k * torch.sin(2 * torch.pi * 200 * k * t) for k in range(1, 8)), torch.zeros_like(t))
    noise = torch.randn(t.shape, generator=torch.Generator().manual_seed(0))
    return sound * (0.6 + 0.4 * torch.sin(9 * t)) + 0.02 * noise


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Silence, tones, a picture and a sound that is none."""
    folder = tmp_path_factory.mktemp("sounds")
    Clip(None, 8.0, torch.zeros(16000)).save(folder / "a_silent.wav")
    Clip(None, 8.0, tones()).save(folder / "b_tones.wav")
    Clip(torch.zeros(1, 16, 16, 3, dtype=torch.uint8), 8.0).save(folder / "c.png")
    (folder / "d_bad.wav").write_text("no sound")
    return folder


@pytest.fixture
def codec() -> AudioTokenizer:
    torch.manual_seed(0)
    return AudioTokenizer(audio_tokenizer_config("debug"))


def audio_job(codec: AudioTokenizer, batch_size: int = 1, **training) -> AudioTokenizerJob:
    torch.manual_seed(0)
    source = OneClip(audio=tones()[None])
    options = {"soft_from": 0.0, "soft_to": 0.0, "seconds": audio_checkup.shortest_crop(codec), **training}
    return AudioTokenizerJob(copy.deepcopy(codec), source, source, batch_size=batch_size,
                             training=AudioTraining(**options))  # fmt: skip


def test_a_sound_training_of_the_audio_tokenizer_passes(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdr, mel = audio_checkup.GOAL
    easy = (replace(sdr, need=-20.0), replace(mel, need=0.5))  # more takes longer
    monkeypatch.setattr(audio_checkup, "GOAL", easy)
    checks = diagnose(sounds, tokenizer="audio-tokenizer", preset="debug", steps=40, device="cpu", out=tmp_path / "out")
    assert [check.name for check in checks] == [
        "machine", "data", "quantizer", "causality", "streaming", "sizes", "levels", "gradient", "losses", "checkpoint",
        "overfit", "codes", "picture", "memory",
    ]  # fmt: skip
    assert all(check.ok for check in checks), [str(check) for check in checks]
    found = {check.name: check.words for check in checks}
    assert found["data"].startswith("4 files, 2 skipped: c.png (picture), d_bad.wav (")
    assert "; b_tones.wav, 1.50 s at 16000 Hz, rms -1" in found["data"] and "peak -" in found["data"]
    assert found["overfit"].endswith("(40 steps), needs SI-SDR -20 dB and mel distance 0.5")
    assert "of crops of 2,240 samples" in found["losses"] and "features" in found["losses"]
    assert "of 16 per level on the 75 frames" in found["codes"]
    assert AudioTokenizer.from_pretrained(tmp_path / "out").config.codebook_size == 16
    assert (tmp_path / "out/reconstruction.png").is_file()


def test_a_silent_sound_is_not_trained_on(sounds: Path) -> None:
    checks = diagnose(sounds / "a_silent.wav", tokenizer="audio-tokenizer", preset="debug", steps=2, device="cpu")
    failed = {check.name: check.words for check in checks if not check.ok}
    assert "rms -200.0 dB, peak -200.0 dB: silent, nothing can be learned from it; take another" in failed["data"]
    assert failed.keys() == {"data", "overfit"} and "the clip is silent" in failed["overfit"]


def test_a_layer_of_the_audio_tokenizer_that_looks_ahead_is_named(
    sounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    causal = CausalConv.forward
    monkeypatch.setattr(
        CausalConv, "forward", lambda self, x, tails=None: causal(self, x + x.mean(1, keepdim=True), tails)
    )
    checks = diagnose(sounds / "b_tones.wav", tokenizer="audio-tokenizer", preset="debug", steps=2, device="cpu")
    failed = {check.name: check.words for check in checks if not check.ok}
    assert "the latents of the first 7 frames depend on sample 2,241: a layer looks ahead" in failed["causality"]
    assert "give other ids than the whole" in failed["streaming"]
    assert "needs SI-SDR 25 dB" in failed["overfit"] and {"machine", "data", "gradient"}.isdisjoint(failed)


def test_an_audio_decoder_that_looks_ahead_is_found(codec: AudioTokenizer) -> None:
    moved = checkup.shaken(codec)
    assert "do not depend on later" in audio_checkup.check_causality(moved)
    right = moved.decoder.forward
    moved.decoder.forward = lambda z, tails=None: right(z + z.mean(1, keepdim=True), tails)
    with pytest.raises(Failed, match="the decoded samples of the first 7 frames depend on latent frame 8"):
        audio_checkup.check_causality(moved)


@pytest.mark.parametrize("lr", [10.0, 0.5])
def test_a_learning_rate_that_is_far_too_high_is_said(codec: AudioTokenizer, tmp_path: Path, lr: float) -> None:
    job = audio_job(codec, seconds=1.5, lr=lr)
    with audio_checkup.few_latents(), pytest.raises(Failed, match="learning rate"):
        audio_checkup.check_overfit(job, tones()[None], tmp_path, LoopConfig(steps=60), CPU)


def test_too_few_steps_are_said(codec: AudioTokenizer, tmp_path: Path) -> None:
    job = audio_job(codec, seconds=1.5, lr=1e-3)
    with audio_checkup.few_latents(), pytest.raises(Failed, match=r"so there were too few; try --minutes \d"):
        audio_checkup.check_overfit(job, tones()[None], tmp_path, LoopConfig(steps=10), CPU)


def test_few_codes_are_a_collapse_where_nothing_was_learned(codec: AudioTokenizer, tmp_path: Path) -> None:
    clip = tones()[None]
    with torch.no_grad():
        codec.encoder.out.weight.zero_()
    codec.save_pretrained(tmp_path)
    assert audio_checkup.check_codes(tmp_path, clip, True, CPU).startswith("1, 1, 1, 1 of 16 per level")
    with pytest.raises(Failed, match=r"0\.0 bits of at most 4\.0: the codes of level 0, 1, 2, 3 have collapsed"):
        audio_checkup.check_codes(tmp_path, clip, False, CPU)


def test_wrong_ids_and_dead_gradients_of_residual_levels_are_found(
    codec: AudioTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with audio_checkup.few_latents():
        assert "4 levels take the nearest of 16 codes" in audio_checkup.check_quantizer(codec)
        with monkeypatch.context() as broken:
            right = Codebooks.encode
            broken.setattr(Codebooks, "encode", lambda self, z: right(self, z) // 2 * 2)
            with pytest.raises(Failed, match=r"in encoding .* ids of level 0 do not name the nearest code"):
                audio_checkup.check_quantizer(codec)
        forward = ResidualQuantizer.forward
        for keeps, message in ((0.0, "no gradient passes"), (2.0, "does not pass straight through")):

            def changed(self, z: Tensor, bypass=None, keeps=keeps):
                return forward(self, z.detach() + keeps * (z - z.detach()), bypass)

            with monkeypatch.context() as broken:
                broken.setattr(ResidualQuantizer, "forward", changed)
                with pytest.raises(Failed, match=message):
                    audio_checkup.check_quantizer(codec)


def test_an_audio_discriminator_that_learns_nothing_is_found(
    codec: AudioTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = audio_job(codec, batch_size=2, adversarial_weight=3.0, adversarial_from=0.0)
    right = WaveDiscriminator.forward
    monkeypatch.setattr(WaveDiscriminator, "forward", lambda self, x: right(self, x).__class__(x * 0, [x * 0 + 1]))
    with audio_checkup.few_latents(), pytest.raises(Failed, match=r"does not reach discriminator\..*hidden"):
        audio_checkup.check_losses(job, CPU)


def test_a_checkpoint_that_forgets_the_discriminators_is_found(
    codec: AudioTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets(folder: Path, models: dict, optimizers: list, right=loop.load_checkpoint) -> dict:
        return right(folder, {**models, "critic": copy.deepcopy(models["critic"])}, optimizers)

    monkeypatch.setattr(loop, "load_checkpoint", forgets)
    make_job = lambda: audio_job(codec, batch_size=2, adversarial_weight=3.0, adversarial_from=0.0)
    with audio_checkup.few_latents(), pytest.raises(Failed, match="resumed at step 2"):
        checkup.check_checkpoint(codec.eval(), make_job, tones()[None], tmp_path)


def test_the_loudest_seconds_of_a_sound_are_taken(tmp_path: Path) -> None:
    quiet_first = torch.cat([0.01 * tones(4.0), tones(3.0), 0.01 * tones(2.0)])
    Clip(None, 8.0, quiet_first).save(tmp_path / "long.wav")
    clip, about = audio_checkup.find_clip(tmp_path / "long.wav", 16000, 0)
    assert clip.shape == (1, 48000) and about == "1 file; long.wav"
    assert abs(audio_checkup.decibels(clip) - audio_checkup.decibels(tones(3.0))) < 0.1
    clip, about = audio_checkup.find_clip("playground", 16000, 0)
    assert clip.shape == (1, 48000) and "playground" in about and audio_checkup.check_clip(clip, about, 16000)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ((4 * tones()).clamp(-1, 1)[None], r"clipped, \d+% of the samples stand at full scale; record it with less"),
        (torch.zeros(1, 16000), "silent, nothing can be learned"),
        (100 * tones()[None], r"span .*expected \[-1, 1\]"),
    ],
)
def test_sounds_that_teach_nothing_are_refused(clip: Tensor, message: str) -> None:
    with pytest.raises(Failed, match=message):
        audio_checkup.check_clip(clip, "sound", 16000)
