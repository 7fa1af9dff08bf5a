"""Two processes train as one does, plainly and sharded, and go on from what any number of processes has written."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lm import LM, Vocabulary, lm_config
from tasks import SPECIAL_TOKENS, Layout
from tasks.errors import InputError
from tasks.model_folder import quietly
from tokenizers_av.text import TextTokenizer
from train import loop
from train.checkpoint import load_weights
from train.lm import LMJob
from train.loop import LoopConfig, fit
from train.optimizers import matrix_optimizers
from train.sharding import local, requested_sharding, whole
from train.tokens import TokenSet

ROOT = Path(__file__).parents[2]
CAPTIONS = ["a red ball", "a blue cube slides to the left", "two green discs collide", "a red cube"]
STEPS, STOP = 20, 10
SHAPES = [(64, 32), (32, 64), (33, 32), (3, 8), (1, 8)]  # tall, wide, uneven shards, a process without rows
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
TOLERANCE = 2e-3  # of about 5 nats; seen: 1.1e-3, for sums of bfloat16 over halves are rounded otherwise than over all


class SplitJob(LMJob):
    """An LM job whose four sequences a step are dealt out to the processes; it remembers what it saw.

    Each process draws weights of its own: those of the first must win.
    """

    def __init__(self, stop_at: int | None = None, nan_at: int | None = None, spoil: bool = False) -> None:
        text = TextTokenizer.train(CAPTIONS, vocab_size=300)
        vocabulary = Vocabulary.build(SPECIAL_TOKENS, 256, [16, 16], text.vocab_size, visual_factors=(16, 16))
        torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)
        model = LM(lm_config("debug", vocabulary))
        torch.manual_seed(0)
        video, audio = torch.randint(0, 256, (8, 3, 2, 2)), torch.randint(0, 16, (8, 2, 6))
        clips, images = TokenSet(video, audio, CAPTIONS * 2), TokenSet(video[:, :1], None, CAPTIONS * 2)
        layout = Layout(latent_frames=3, height=2, width=2, audio_frames=6, n_codebooks=2, audio_rate=6.0)
        super().__init__(model, text, layout, clips, images, clips, batch_size=4, drop_text=0.0)
        self.stop_at, self.nan_at, self.spoil = stop_at, nan_at, spoil
        self.losses: list[float] = []
        self.kinds: list[str] = []
        self.grad_norms: list[float] = []
        self.in_use: list[torch.optim.Optimizer] = []

    def optimizers(self) -> list[torch.optim.Optimizer]:
        self.in_use = super().optimizers()
        if self.spoil:
            last = local(self.model.norm.weight)
            self.in_use[-1].register_step_post_hook(lambda *_: last.fill_(float("inf")))
        return self.in_use

    def batch(self, step: int, rank: int, world: int, progress: float) -> Any:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        batch = super().batch(step, 0, 1, progress)
        tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)}
        return replace(batch, **{name: tensor[rank::world] for name, tensor in tensors.items()})

    def loss(self, model: nn.Module, batch: Any, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        loss, metrics = super().loss(model, batch, progress)
        if torch.is_grad_enabled():
            self.losses.append(float(loss.detach()))
            self.kinds.append(batch.task)
            if len(self.losses) - 1 == self.nan_at:
                loss = loss * float("nan")
        return loss, metrics

    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        """Nothing, to save time: `evaluate` runs the same model."""

    def notices(self, step: int, metrics: dict[str, float]) -> list[str]:
        self.grad_norms.append(metrics["grad_norm"])
        return []


def train(out: Path, *, resume: bool = False, compile: bool = False, **how: Any) -> SplitJob:
    job = SplitJob(**how)
    fit(job, out, LoopConfig(steps=STEPS, log_every=1, n_evaluate=1, compile=compile), resume=resume, device="cpu")
    return job


def failure(out: Path, **how: Any) -> str:
    with pytest.raises(FloatingPointError) as error:
        train(out, **how)
    return str(error.value)


def numel(tensors: Any) -> int:
    return sum(local(t).numel() for t in tensors)


def muon_difference(shape: tuple[int, int]) -> float:
    """The largest difference between torch's Muon and that of two processes, after three steps."""
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = torch.randn(4, *shape, generator=generator)
    mesh = init_device_mesh("cpu", (2,))
    divide = lambda tensor: distribute_tensor(tensor.clone(), mesh, [Shard(0)])
    one, two = nn.Parameter(weight.clone()), nn.Parameter(divide(weight))
    (plain,), (sharded,) = (matrix_optimizers([("w", p)], 0.1) for p in (one, two))
    for gradient in gradients:
        one.grad, two.grad = gradient.clone(), divide(gradient)
        plain.step()
        sharded.step()
    assert (one - weight).abs().max() > 0.01
    return float((whole(two) - one.detach()).abs().max())


def two_processes(folder: Path) -> None:
    """What each of the two processes does; leaves `folder`/RANK.json."""
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))  # one that waits in vain gives up before the test
    found: dict[str, Any] = {"ddp": train(folder / "ddp").losses}
    os.environ |= FSDP
    averages: list[nn.Module] = []
    plain_shard = loop.shard

    def watched_shard(*args: Any, **kwargs: Any) -> nn.Module:
        averages.append(plain_shard(*args, **kwargs))
        return averages[-1]

    loop.shard = watched_shard
    job = train(folder / "fsdp")
    found |= {"fsdp": job.losses, "grad_norms": job.grad_norms}
    states = [t for o in job.in_use for state in o.state.values() for t in state.values() if t.ndim]
    found["held"] = [numel(job.model.parameters()), numel(averages[0].parameters()), numel(states)]
    found["stopped"] = train(folder / "half", stop_at=STOP - 1).losses
    if dist.get_rank() == 0:
        shutil.copytree(folder / "half", folder / "two to one")
    dist.barrier()
    found["two to two"] = train(folder / "half", resume=True).losses
    found["one to two"] = train(folder / "one to two", resume=True).losses
    second = dist.get_rank() == 1
    found["nan"] = failure(folder / "nan", nan_at=3 if second else None)
    found["spoilt"] = failure(folder / "spoilt", stop_at=0, spoil=second)
    found["muon"] = [muon_difference(shape) for shape in SHAPES]
    counter = CompileCounterWithBackend("aot_eager")  # no kernels are made, which takes long and is torch's part
    torch.compile = functools.partial(torch.compile, backend=counter)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else it would go on uncompiled
    found["fsdp compiled"] = train(folder / "fsdp compiled", compile=True).losses
    found["graphs"] = counter.frame_count
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SplitJob, list[dict[str, Any]]]:
    """The folder of all runs, the job of a single process, and what each of two processes found."""
    folder = tmp_path_factory.mktemp("runs")
    one = train(folder / "one")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FSDP.items():
            patch.setenv(name, value)  # which changes nothing for a single process
        train(folder / "one to two", stop_at=STOP - 1)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.train.test_sharding"]
    done = subprocess.run([sys.executable, *words, str(folder)], capture_output=True, text=True, timeout=240, cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, one, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def mean(found: list[dict[str, Any]], name: str) -> list[float]:
    """Losses of the whole batch: all sequences have equally many targets."""
    return [sum(both) / 2 for both in zip(*(f[name] for f in found), strict=True)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp compiled"])
def test_two_processes_have_the_losses_of_one(runs, kind: str) -> None:
    _, one, found = runs
    alike = [loss for loss, task in zip(one.losses, one.kinds, strict=True) if task == one.kinds[0]]
    assert len(one.losses) == STEPS and alike[-1] < alike[0] - 0.1
    assert found[0][kind] != found[1][kind]  # each has its own sequences
    assert mean(found, kind) == pytest.approx(one.losses, abs=TOLERANCE)
    assert kind != "fsdp compiled" or min(process["graphs"] for process in found) > 0


def test_gradients_are_clipped_by_the_norm_of_the_whole(runs) -> None:
    _, one, found = runs
    assert found[0]["grad_norms"] == pytest.approx(one.grad_norms, rel=5e-3)


def test_each_process_holds_half(runs) -> None:
    _, one, found = runs
    whole = numel(one.model.parameters())
    n_states = numel(t for o in one.in_use for state in o.state.values() for t in state.values() if t.ndim)
    for process in found:
        assert process["held"] == [pytest.approx(n / 2, rel=0.01) for n in (whole, whole, n_states)]


def test_a_sharded_update_of_muon_is_that_of_the_whole_matrix(runs) -> None:
    assert [found["muon"] for found in runs[2]] == [[0.0] * len(SHAPES)] * 2


def test_a_sharded_training_leaves_ordinary_files(runs) -> None:
    folder, *_ = runs
    one, two = (json.loads((folder / kind / "train/checkpoint/state.json").read_text()) for kind in ("one", "fsdp"))
    for name in ("models", "optimizers"):
        assert one[name] == two[name]
    for name in ("model", "average"):
        one, two = (load_weights(folder / kind / "train/checkpoint", name) for kind in ("one", "fsdp"))
        assert all(one[key].shape == two[key].shape for key in one) and one.keys() == two.keys()
    with quietly():
        saved = LM.from_pretrained(folder / "fsdp").state_dict()
    assert saved.keys() == two.keys() and all(torch.equal(saved[key], two[key]) for key in two)
    files = {p.relative_to(folder / "one") for p in (folder / "one").rglob("*") if "log" not in p.parts}
    assert files == {p.relative_to(folder / "fsdp") for p in (folder / "fsdp").rglob("*") if "log" not in p.parts}


def test_any_number_of_processes_goes_on(runs) -> None:
    folder, one, found = runs
    for process in found:
        assert process["stopped"] + process["two to two"] == process["fsdp"]
    assert mean(found, "one to two") == pytest.approx(one.losses[STOP:], abs=TOLERANCE)
    assert train(folder / "two to one", resume=True).losses == pytest.approx(one.losses[STOP:], abs=TOLERANCE)


def test_what_is_not_finite_on_one_process_stops_all(runs) -> None:
    folder, _, found = runs
    for process in found:
        assert "gradient norm is nan at step 3" in process["nan"]
        assert "a weight is not finite after step 1" in process["spoilt"]
    assert not (folder / "nan/train/checkpoint").exists() and not (folder / "spoilt/train/checkpoint").exists()


def test_what_cannot_be_sharded_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = SplitJob()
    assert requested_sharding(job.model) is None
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    assert requested_sharding(job.model) is not None
    with pytest.raises(InputError, match="Linear cannot be trained with FSDP"):
        requested_sharding(nn.Linear(2, 2))
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(InputError, match="--fsdp_offload_params false"):
        requested_sharding(job.model)
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(InputError, match="--fsdp_version 2"):
        fit(job, tmp_path / "x", LoopConfig(steps=1), device="cpu")
    assert not (tmp_path / "x").exists() and job.losses == []


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
