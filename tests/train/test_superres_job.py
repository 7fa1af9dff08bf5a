"""Training of the super-resolution head: its pairs, its loss, its command, and going on after a kill."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokenizers_av.superres import SuperRes, downsample, superres_config, upsample
from tokenizers_av.video import VideoTokenizer, video_tokenizer_config
from train.cli import main
from train.data import MediaSpec, open_source
from train.loop import LoopConfig, fit
from train.superres import FLOOR, SuperResJob
from train.superres_training import SuperResTraining

CLEAN = SuperResTraining(n_frames=5, crop=32, clean_share=1.0, camera_share=0.0, half_share=0.0)


def make_job(training: SuperResTraining = CLEAN, size: int = 64) -> SuperResJob:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(video_tokenizer_config("debug"))
    return SuperResJob(SuperRes(superres_config("debug")), tokenizer, open_source("playground"),
                       open_source("playground", "test"), MediaSpec(size=size), batch_size=4,
                       training=training)  # fmt: skip


def drawn(job: SuperResJob, step: int = 0):
    torch.manual_seed(step)
    return job.batch(step, 0, 1, 0.0)


def test_pairs_are_crops_of_the_same_place() -> None:
    pairs = drawn(make_job())
    assert pairs.base.shape == pairs.large.shape == (4, 5, 32, 32, 3) and pairs.scale == 4
    large = pairs.large.permute(0, 4, 1, 2, 3)
    inner = (..., slice(8, -8), slice(8, -8))
    again = upsample(downsample(large, 4), 4)[inner]  # edges of a crop see other neighbours
    assert (again - pairs.base.permute(0, 4, 1, 2, 3)[inner]).abs().mean() < 0.01
    other = drawn(make_job(), 1)
    assert not torch.equal(other.large, pairs.large) and torch.equal(drawn(make_job()).large, pairs.large)


def test_shares_say_how_low_sides_are_worn() -> None:
    def worn(**shares: float) -> float:
        pairs = drawn(make_job(replace(CLEAN, **shares)))
        clean = drawn(make_job())
        assert torch.equal(pairs.large, clean.large) or pairs.scale == 2
        return float((pairs.base - clean.base).abs().mean()) if pairs.scale == 4 else -1.0

    assert worn() == 0 and worn(half_share=1.0) == -1
    assert worn(clean_share=0.0, camera_share=1.0) > 1e-3 and worn(clean_share=0.0) > 1e-2


def test_the_loss_is_zero_for_the_true_detail() -> None:
    job, pairs = make_job(), drawn(make_job())

    class Knows(torch.nn.Module):
        def forward(self, x, base, time, noise, scale):
            return pairs.large - base

    loss, metrics = job.loss(Knows(), pairs, 0.0)
    assert float(loss) == pytest.approx(math.log(FLOOR)) and float(metrics["psnr"]) > 80
    torch.manual_seed(0)
    start, _ = job.loss(job.model, pairs, 0.0)
    assert float(start.detach()) > math.log(FLOOR) + 0.5


def test_regression_sees_neither_noise_nor_later_times() -> None:
    job, seen = make_job(replace(CLEAN, regression=True)), []

    class Watch(torch.nn.Module):
        def forward(self, x, base, time, noise, scale):
            seen.append(float(time.abs().max() + noise.abs().max() + (x - base).abs().max()))
            return torch.zeros_like(x)

    pairs = drawn(job)
    loss, metrics = job.loss(Watch(), pairs, 0.0)
    error = (pairs.large - pairs.base).square().mean((1, 2, 3, 4))
    assert seen == [0.0] and float(loss) == pytest.approx(float((error + FLOOR).log().mean()))
    assert float(metrics["psnr"]) == pytest.approx(float(metrics["bicubic"]))


def test_it_learns_more_than_bicubic() -> None:
    torch.manual_seed(0)
    job = make_job(replace(CLEAN, lr=5e-3))
    batch, first = drawn(job), None
    [optimizer, *more] = job.optimizers()
    for _ in range(60):
        torch.manual_seed(1)
        loss, _ = job.loss(job.model, batch, 0.0)
        loss.backward()
        for o in (optimizer, *more):
            o.step()
            o.zero_grad()
        first = first or float(loss.detach())
    assert float(loss.detach()) < first - 0.2


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = make_job()
    fit(whole, tmp_path / "whole", LoopConfig(steps=4, n_evaluate=1), device="cpu")
    job = make_job()
    batch = job.batch

    def die(step, *args):
        if step == 2:
            raise KeyboardInterrupt
        return batch(step, *args)

    job.batch = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(job, tmp_path / "parts", LoopConfig(steps=4, n_evaluate=1, save_every=0.0), device="cpu")
    again = make_job()
    fit(again, tmp_path / "parts", LoopConfig(steps=4, n_evaluate=1), resume=True, device="cpu")
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_command_leaves_a_head_that_opens(debug_model: Path, tmp_path: Path, capsys) -> None:
    words = ["superres", "--preset", "debug", "--steps", "2", "--device", "cpu", "--out"]
    assert main([*words, str(tmp_path / "superres"), "--tokenizers", str(debug_model)]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["n"] == 16 and metrics["bicubic_psnr"] > 5
    head = SuperRes.from_pretrained(tmp_path / "superres")
    assert head.config == superres_config("debug")
    assert list((tmp_path / "superres/train/samples").glob("*.png"))
    assert (
        main([*words, str(tmp_path / "more"), "--tokenizers", str(debug_model), "--init", str(tmp_path / "superres")])
        == 0
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokenizers", "/nowhere"], "no video tokenizer there"),
        (["--tokenizers", "MODEL", "--init", "/nowhere"], "no super-resolution head there"),
        (["--tokenizers", "MODEL", "--data", "/nowhere"], "no such folder"),
        ([], "--tokenizers"),
    ],
)
def test_mistakes_are_told_before_any_work(debug_model: Path, tmp_path: Path, capsys, words, message) -> None:
    words = [str(debug_model) if w == "MODEL" else w for w in words]
    out = tmp_path / "superres"
    assert main(["superres", "--preset", "debug", "--steps", "1", "--out", str(out), *words]) == 2
    assert message in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    "values",
    [{"ema": 2}, {"clean_share": 0.9, "camera_share": 0.2}, {"lr": 0.0}, {"n_frames": 4}, {"crop": 0}],
)
def test_settings_are_checked(values) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SuperResTraining(**values)


@pytest.mark.parametrize("training, size", [({"crop": 20}, 64), ({"crop": 128}, 64), ({}, 60)])
def test_crops_that_do_not_fit_are_refused(training, size) -> None:
    with pytest.raises(ValueError, match="need a multiple"):
        make_job(replace(CLEAN, **training), size)
