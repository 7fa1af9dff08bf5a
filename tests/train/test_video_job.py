"""Training of the video tokenizer: what it is told, both players of the adversarial game, and where it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tokenizers_av.video import VideoTokenizer, video_tokenizer_config
from train.checkpoint import load_weights
from train.cli import main
from train.data import MediaSpec, open_source
from train.loop import LoopConfig, fit
from train.stages import Options, VideoOptions, other_tokenizers, train_video_tokenizer
from train.video_tokenizer import VideoTokenizerJob
from train.video_training import VideoTraining

GAME = VideoTraining(adversarial_weight=0.5, adversarial_from=0.0, r1_every=1, discriminator_dims=(8, 8))


def make_job(training: VideoTraining = GAME, seed: int = 0) -> VideoTokenizerJob:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(video_tokenizer_config("debug"))
    return VideoTokenizerJob(tokenizer, open_source("playground"), open_source("playground", "test"),
                             MediaSpec(n_frames=5, size=16), batch_size=2, seed=seed, training=training)  # fmt: skip


def test_neither_player_sends_a_gradient_into_the_other() -> None:
    job = make_job()
    assert job.critic is not None
    critic = job.critic.discriminator
    for p in critic.parameters():
        torch.nn.init.normal_(p, std=0.2)  # it starts at zero
    batch = job.batch(0, 0, 1, 0.5)
    video = batch.clone().requires_grad_()
    torch.manual_seed(0)
    loss, metrics = job._adversarial(job.critic, video, batch)
    loss.backward()
    assert {"g_adversarial", "d_real", "d_fake"} <= metrics.keys()
    assert video.grad is not None and video.grad.abs().max() > 0
    ours = [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    assert len(ours) == len(list(critic.parameters()))
    critic.zero_grad()
    from train.adversarial import discriminator_loss, r1_penalty

    alone = discriminator_loss(critic(batch), critic(video.detach()))
    (alone + GAME.r1_weight * r1_penalty(critic, batch)).backward()
    for mine, p in zip(ours, critic.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-3, atol=1e-5)
    assert all(p.requires_grad for p in critic.parameters())


def test_a_stopped_game_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = make_job()
    fit(whole, tmp_path / "whole", LoopConfig(steps=4, n_evaluate=1), device="cpu")
    for steps_so_far in (2, 4):
        job = make_job()
        if steps_so_far == 2:
            batch, seen = job.batch, []

            def stop_after_two(step, rank, world, progress, batch=batch, seen=seen):
                if step == 2:
                    raise KeyboardInterrupt
                return batch(step, rank, world, progress)

            job.batch = stop_after_two  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                fit(job, tmp_path / "parts", LoopConfig(steps=4, n_evaluate=1, save_every=0.0), device="cpu")
        else:
            fit(job, tmp_path / "parts", LoopConfig(steps=4, n_evaluate=1), resume=True, device="cpu")
    for (name, a), b in zip(whole.model.state_dict().items(), job.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    critic = load_weights(tmp_path / "parts/train/checkpoint", "critic")
    assert critic is not None and any(k.startswith("discriminator.") for k in critic)
    assert whole.critic is not None
    for name, value in whole.critic.state_dict().items():
        assert torch.equal(value, critic[name]), name


def test_image_and_video_batches_are_mixed_by_share() -> None:
    job = make_job(VideoTraining(image_share=0.5, images_per_clip=3))
    shapes = [tuple(job.batch(step, 0, 1, 0.0).shape) for step in range(40)]
    assert set(shapes) == {(2, 3, 5, 16, 16), (6, 3, 1, 16, 16)}
    assert 10 < sum(s[2] == 1 for s in shapes) < 30
    assert torch.equal(job.batch(7, 0, 1, 0.0), make_job(job.training).batch(7, 0, 1, 0.0))


def test_the_entropy_weight_falls_to_its_value() -> None:
    plain, boosted = (make_job(VideoTraining(entropy_boost=b, soft_share=0.5)) for b in (1.0, 3.0))
    batch = plain.batch(0, 0, 1, 0.0)
    for progress, factor in ((0.0, 2.0), (0.25, 1.0), (0.5, 0.0)):  # what is added to the weight, of the weight
        losses = []
        for job in (plain, boosted):
            torch.manual_seed(1)
            losses.append(job.loss(job.model, batch, progress))
        entropy = losses[0][1]["entropy"]
        assert float((losses[1][0] - losses[0][0]).detach()) == pytest.approx(factor * 0.3 * float(entropy), abs=1e-5)


@pytest.mark.parametrize(("weight", "every"), [("change_weight", 1), ("join_weight", 4)])
def test_change_and_join_weights_are_of_how_errors_change_between_frames(weight, every) -> None:
    losses = []
    for value in (0.0, 1.0):
        job = make_job(VideoTraining(**{weight: value}, soft_share=0.0))
        torch.manual_seed(1)
        batch = job.batch(0, 0, 1, 0.0)
        losses.append(float(job.loss(job.model, batch, 0.0)[0].detach()))
    torch.manual_seed(1)
    error = (job.model(batch).video - batch).detach()
    # latent frames are frame 0, 1 to 4, 5 to 8, ...: one meets the next between 0 and 1, 4 and 5, ...
    change = torch.stack([(error[:, :, t + 1] - error[:, :, t]).abs() for t in range(0, error.shape[2] - 1, every)])
    assert losses[1] - losses[0] == pytest.approx(float(change.mean()), rel=1e-3)
    images = job.batch(0, 0, 1, 0.0)[:, :, :1]
    assert torch.isfinite(job.loss(job.model, images, 0.0)[0])


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images") / "v"
    words = ["video-tokenizer", "--preset", "debug", "--steps", "2", "--image-share", "1", "--device", "cpu"]
    assert main([*words, "--adversarial-weight", "0.1", "--out", str(out)]) == 0
    return out


def test_a_training_starts_from_another_inflated_or_not(image_model: Path, tmp_path: Path) -> None:
    options = Options(preset="debug", steps=1, device="cpu")
    first = VideoTokenizer.from_pretrained(image_model)
    for inflate in (False, True):
        out = tmp_path / str(inflate)
        train_video_tokenizer(out, options, VideoOptions(init=image_model, inflate=inflate, adversarial_weight=0.1))
        begun, critic, old_critic = (
            load_weights(folder / "train/checkpoint", name)
            for folder, name in ((out, "average"), (out, "critic"), (image_model, "critic"))
        )  # after one step at the lowest learning rate
        assert begun and critic and old_critic
        key = "encoder.1.temporal.weight"
        past = begun[key][:, :32]
        near = (past - first.state_dict()[key][:, :32]).abs().max() < 1e-2
        assert near if not inflate else past.abs().max() < 1e-2
        key = "discriminator.stem.weight"
        assert (critic[key] - old_critic[key]).abs().max() < 1e-2


def test_a_decoder_is_trained_alone_and_ids_stay(image_model: Path, tmp_path: Path) -> None:
    words = ["--preset", "debug", "--steps", "2", "--device", "cpu", "--decoder-only", "--init", str(image_model)]
    assert main(["video-tokenizer", *words, "--out", str(tmp_path / "d")]) == 0
    before, after = VideoTokenizer.from_pretrained(image_model), VideoTokenizer.from_pretrained(tmp_path / "d")
    video = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    ids = before.encode(video)
    assert torch.equal(after.encode(video), ids)
    assert not torch.equal(after.decode(ids), before.decode(ids))
    same = {name: torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items()}
    assert all(same[name] for name in same if not name.startswith("decoder."))
    assert not any(same[name] for name in same if name.startswith("decoder.") and name.endswith("weight"))


def test_a_decoder_becomes_deeper_and_stays_so(
    image_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["video-tokenizer", "--preset", "debug", "--steps", "1", "--device", "cpu", "--decoder-only"]
    deep, on = tmp_path / "deep/video_tokenizer", tmp_path / "on/video_tokenizer"
    assert main([*words, "--init", str(image_model), "--decoder-depth", "2", "--out", str(deep)]) == 0
    assert main([*words, "--init", str(deep), "--out", str(on)]) == 0
    assert VideoTokenizer.from_pretrained(on).config.decoder_depth == 2
    assert other_tokenizers(deep.parent, on.parent) == []  # ids are the same
    capsys.readouterr()
    assert main([*words, "--init", str(deep), "--decoder-depth", "1", "--out", str(tmp_path / "x")]) == 2
    assert "decoder_depth=1: need 2, which it has, or more" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--decoder-depth", "0"], "decoder_depth=0: need at least 1"),
        (["--init", "IMAGES", "--decoder-depth", "0"], "decoder_depth=0: need"),
        (["--change-weight", "-1"], "change_weight=-1.0: need a number, 0 or more"),
        (["--join-weight", "-1"], "join_weight=-1.0: need a number, 0 or more"),
        (["--inflate"], "--inflate needs --init"),
        (["--decoder-only"], "--decoder-only needs --init"),
        (["--decoder-only", "--inflate", "--init", "IMAGES"], "without --inflate"),
        (["--init", "/nowhere"], "no video tokenizer there"),
        (["--init", "IMAGES", "--quantizer", "bsq"], "has quantizer=lfq, the preset bsq"),
        (["--init", "IMAGES", "--preset", "tiny"], "the preset (96, 192)"),
        (["--image-share", "2"], "image_share=2.0: need 0 to 1"),
        (["--lr", "nan"], "lr=nan: need a number above 0"),
        (["--adversarial-weight", "-1"], "adversarial_weight=-1.0: need a number, 0 or more"),
        (["--seed", "18446744073709551616"], "seed=18446744073709551616: need 0 to"),
        (["--init", "DAMAGED"], "DAMAGED: "),
        (["--data", "playground", "--data-weights", "1", "2"], "weights"),
        (["--perceptual", "/nowhere/net"], "/nowhere/net"),
        (["--perceptual", "nobody/net"], "--perceptual nobody/net: not to be had"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    words: list[str], message: str, image_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "DAMAGED"
    damaged.mkdir()
    (damaged / "config.json").write_text((image_model / "config.json").read_text())
    (damaged / "model.safetensors").write_bytes((image_model / "model.safetensors").read_bytes()[:1000])
    words = [{"IMAGES": str(image_model), "DAMAGED": str(damaged)}.get(w, w) for w in words]
    assert main(["video-tokenizer", "--preset", "debug", "--out", str(tmp_path / "x"), *words]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "x").exists()


def test_the_resolved_config_is_printed_first(image_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--preset", "debug", "--steps", "1", "--quantizer", "fsq", "--device", "cpu", "--out", str(tmp_path / "f")]
    assert main(["video-tokenizer", *words]) == 0
    config = json.loads(capsys.readouterr().err.splitlines()[0])
    assert config["model"]["quantizer"] == "fsq" and config["training"]["lr"] == 2.5e-3
    assert VideoTokenizer.from_pretrained(tmp_path / "f").config.quantizer == "fsq"


def test_a_model_of_images_is_judged_on_images(image_model: Path) -> None:
    metrics = json.loads((image_model / "train/metrics.json").read_text())
    job = make_job(VideoTraining(image_share=1.0))
    found = job.evaluate(VideoTokenizer.from_pretrained(image_model).eval(), 64)
    assert found["psnr"] == pytest.approx(metrics["psnr"], abs=0.1)
    images = open_source("playground", "test").batch(range(64), MediaSpec(n_frames=1, size=16), audio=False).video
    again = VideoTokenizer.from_pretrained(image_model).eval().reconstruct(images)
    mse = ((again - images) / 2).square().mean((1, 3, 4))
    assert found["psnr"] == pytest.approx(float(-10 * mse.log10().mean()), abs=1e-3)


def test_a_perceptual_network_takes_part(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    from train.perceptual import open_perceptual

    torch.manual_seed(0)
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path / "net")
    job = make_job(VideoTraining(soft_share=0.0))
    batch = job.batch(0, 0, 1, 0.0)
    plain = job.loss(job.model, batch, 0.0)[0]
    job.perceptual = open_perceptual(tmp_path / "net", n_frames=None)
    total, metrics = job.loss(job.model, batch, 0.0)
    added = float((total - plain).detach())
    assert added == pytest.approx(job.training.perceptual_weight * float(metrics["perceptual"]), rel=1e-3) and added > 0


def test_test_files_that_cannot_be_read_are_found_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for i in range(3):
        (tmp_path / "data" / f"{i}.png").write_bytes(b"no picture")
    words = ["--preset", "debug", "--steps", "1", "--device", "cpu", "--data", str(tmp_path / "data")]
    assert main(["video-tokenizer", *words, "--out", str(tmp_path / "x")]) == 2
    assert "has a readable picture" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_two_processes_play_the_game_together(tmp_path: Path) -> None:
    words = ["-m", "train", "video-tokenizer", "--preset", "debug", "--steps", "4", "--adversarial-weight", "0.1",
             "--device", "cpu", "--out", str(tmp_path / "v")]  # fmt: skip
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr
    critic = load_weights(tmp_path / "v/train/checkpoint", "critic")
    assert critic is not None and critic["lecam.n_calls"] == 2  # from half of the training on
    assert (tmp_path / "v/train/metrics.json").is_file()
