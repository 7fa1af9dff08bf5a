"""The training loop: resuming, stopping, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from train.checkpoint import CheckpointError, flatten, load_checkpoint, save_checkpoint, unflatten
from train.loop import LoopConfig, fit, learning_rate_factor


class LineJob:
    """Fits y = 3x; remembers its losses."""

    name = "line"
    ema = 0.9
    critic: nn.Module | None = None

    def __init__(self, stop_at: int | None = None, nan_at: int | None = None) -> None:
        torch.manual_seed(7)
        self.model = nn.Linear(4, 4)
        self.losses: list[float] = []
        self.stop_at, self.nan_at = stop_at, nan_at

        self.settings = {"slope": 3, "dims": (4, 4)}

    def compile(self) -> None:
        self.model.compile(backend="eager")

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Muon([self.model.weight], lr=0.02, weight_decay=0.0),
            torch.optim.AdamW([self.model.bias], lr=0.02),
        ]

    def batch(self, step, rank, world, progress):
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))

    def loss(self, model, batch, progress):
        loss = (model(batch) - 3 * batch + 0.01 * torch.randn(8, 4)).square().mean()  # the noise follows the seed
        if len(self.losses) == self.nan_at:
            loss = loss * float("nan")
        self.losses.append(float(loss.detach()))
        return loss, {"error": loss.detach()}

    def notices(self, step, metrics):
        return [f"step {step} was logged"]

    def sample(self, model, folder: Path, step: int) -> None:
        (folder / f"{step}.txt").write_text("picture")

    def evaluate(self, model, n: int) -> dict[str, float]:
        return {"weight": float(model.weight.detach().diagonal().mean()), "n": n}

    def save(self, model, folder: Path) -> None:
        (folder / "model.json").write_text(json.dumps(model.weight.detach().tolist()))


def test_stopping_and_resuming_gives_the_same_losses(tmp_path: Path) -> None:
    whole = LineJob()
    result = fit(whole, tmp_path / "whole", LoopConfig(steps=20), device="cpu")
    assert whole.losses[-1] < whole.losses[0] and result["n"] == 64

    first = LineJob(stop_at=8)
    assert fit(first, tmp_path / "parts", LoopConfig(steps=20), device="cpu") == {}  # the signal ended it
    assert len(first.losses) == 9  # the step under way is finished
    second = LineJob()
    resumed = fit(second, tmp_path / "parts", LoopConfig(steps=20), resume=True, device="cpu")
    assert first.losses + second.losses == whole.losses
    assert resumed == result
    for name in ("model.json", "train/metrics.json", "train/samples/20.txt", "train/checkpoint/state.safetensors"):
        assert (tmp_path / "parts" / name).is_file(), name


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    fit(LineJob(), tmp_path, LoopConfig(steps=2), device="cpu")
    with pytest.raises(CheckpointError, match="--resume"):
        fit(LineJob(), tmp_path, LoopConfig(steps=2), device="cpu")


def test_resuming_where_nothing_was_saved_starts(tmp_path: Path) -> None:
    (tmp_path / "train/checkpoint.new").mkdir(parents=True)  # killed before the first checkpoint was whole
    for resume in (True, False):
        out = tmp_path if resume else tmp_path / "other"
        (out / "train/log").mkdir(parents=True, exist_ok=True)
        job = LineJob()
        assert fit(job, out, LoopConfig(steps=2), resume=resume, device="cpu")["n"] == 64
        assert len(job.losses) == 2


def test_resuming_for_longer_goes_on_with_the_longer_schedule(tmp_path: Path) -> None:
    job, again = LineJob(), LineJob()
    fit(job, tmp_path, LoopConfig(steps=4), device="cpu")
    rates: list[float] = []
    optimizers = again.optimizers()
    again.optimizers = lambda: optimizers  # type: ignore[method-assign]
    step = optimizers[1].step
    optimizers[1].step = lambda *a, **k: (rates.append(optimizers[1].param_groups[0]["lr"]), step(*a, **k))[1]  # type: ignore
    fit(again, tmp_path, LoopConfig(steps=8), resume=True, device="cpu")
    expected = [0.02 * learning_rate_factor(i / 8, LoopConfig(steps=8).warmup) for i in range(4, 8)]
    assert rates == pytest.approx(expected)


def test_nan_stops_with_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="at step 3"):
        fit(LineJob(nan_at=3), tmp_path, LoopConfig(steps=9, save_every=0), device="cpu")
    assert json.loads((tmp_path / "train/checkpoint/state.json").read_text())["progress"]["step"] == 3


def test_a_training_goes_on_only_with_the_settings_it_began_with(tmp_path: Path) -> None:
    fit(LineJob(), tmp_path, LoopConfig(steps=2), device="cpu")
    other = LineJob()
    other.settings["slope"] = 4
    with pytest.raises(CheckpointError, match="began with slope=3, now slope=4"):
        fit(other, tmp_path, LoopConfig(steps=4), resume=True, device="cpu")
    with pytest.raises(CheckpointError, match="began with seed=0, now seed=1"):
        fit(LineJob(), tmp_path, LoopConfig(steps=4, seed=1), resume=True, device="cpu")


def test_weights_that_are_not_finite_never_reach_a_checkpoint(tmp_path: Path) -> None:
    job = LineJob()
    optimizers = job.optimizers()
    job.optimizers = lambda: optimizers  # type: ignore[method-assign]
    step = optimizers[0].step

    def step_into_infinity(*args, **kwargs):
        step(*args, **kwargs)
        if len(job.losses) == 3:
            job.model.weight.data[0, 0] = float("inf")

    optimizers[0].step = step_into_infinity  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="not finite after step 3"):
        fit(job, tmp_path, LoopConfig(steps=9, save_every=0), device="cpu")
    assert json.loads((tmp_path / "train/checkpoint/state.json").read_text())["progress"]["step"] == 2


def test_a_loud_critic_does_not_hold_the_model_back(tmp_path: Path) -> None:
    def trained(loudness: float) -> nn.Module:
        job = LineJob()
        job.critic = critic = nn.Linear(4, 1)
        plain_optimizers, plain_loss = job.optimizers, job.loss
        job.optimizers = lambda: [*plain_optimizers(), torch.optim.SGD(critic.parameters(), lr=0.1)]  # type: ignore

        def loss(model, batch, progress):
            total, metrics = plain_loss(model, batch, progress)
            return total + loudness * critic(batch).mean(), metrics

        job.loss = loss  # type: ignore[method-assign]
        fit(job, tmp_path / str(loudness), LoopConfig(steps=3), device="cpu")
        assert loudness == 0 or critic.weight.grad is None  # stepped and cleared
        return job.model

    quiet, loud = trained(0.0), trained(1000.0)
    assert torch.equal(quiet.weight, loud.weight)


def test_minutes_end_the_training(tmp_path: Path) -> None:
    job = LineJob()
    assert fit(job, tmp_path, LoopConfig(minutes=0.005), device="cpu")["n"] == 64
    assert json.loads((tmp_path / "train/metrics.json").read_text())["minutes"] < 0.1


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", {"model": nn.Linear(2, 2)}, [], {"step": 1})
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(tmp_path / "c", {"model": nn.Linear(3, 3)}, [])
    (tmp_path / "c" / "state.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "c", {"model": nn.Linear(2, 2)}, [])
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none", {}, [])


def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", {}, [], {"step": 1})
    (tmp_path / "c").rename(tmp_path / "c.old")
    assert load_checkpoint(tmp_path / "c", {}, []) == {"step": 1}


def test_a_checkpoint_is_on_the_disk_before_the_old_one_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, gone = list[int](), list[Path]()
    sync, remove = os.fsync, shutil.rmtree
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), sync(file)))

    def check(folder: Path, **how: bool) -> None:
        if folder.name == "c.old" and folder.exists():
            written = (tmp_path / "c/state.json", tmp_path / "c/state.safetensors", tmp_path / "c", tmp_path)
            assert [path.name for path in written if path.stat().st_ino not in synced] == []
            gone.append(folder)
        remove(folder, **how)

    monkeypatch.setattr(shutil, "rmtree", check)
    for step in (1, 2):
        synced.clear()
        save_checkpoint(tmp_path / "c", {"model": nn.Linear(2, 2)}, [], {"step": step})
    assert len(gone) == 1


def test_states_survive_json_and_safetensors() -> None:
    state = {"a": [1, 2.5, None, "x"], 3: {"t": torch.arange(3)}, "list": [torch.ones(2)]}
    tensors: dict[str, torch.Tensor] = {}
    again = unflatten(json.loads(json.dumps(flatten(state, tensors))), tensors)
    assert again["a"] == state["a"] and torch.equal(again[3]["t"], state[3]["t"])
    assert torch.equal(again["list"][0], torch.ones(2))


def test_learning_rate_warms_up_and_anneals() -> None:
    factors = [learning_rate_factor(x / 100, 0.1) for x in range(101)]
    assert factors[0] < 0.02 and max(factors) == factors[10] == 1.0 and factors[100] == pytest.approx(0.02)


@pytest.mark.parametrize("limits", [{}, {"steps": 1, "minutes": 1.0}, {"steps": -1}, {"minutes": 0.0}])
def test_limits_must_make_sense(limits: dict) -> None:
    with pytest.raises(ValueError):
        LoopConfig(**limits)


@pytest.mark.parametrize("compile", [False, True])
def test_the_model_is_compiled_if_asked(tmp_path, compile):
    job = LineJob()
    fit(job, tmp_path, LoopConfig(steps=2, compile=compile), device="cpu")
    assert (job.model._compiled_call_impl is not None) == compile
