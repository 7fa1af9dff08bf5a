"""The training loop of every model: get batch, forward, backward, clip, step, log, sample, save.

A job says what is trained on what (`Job`); the loop knows nothing else about it. Batches are a pure function of the
step, so a resumed run sees the data it would have seen. With `minutes` the learning rate is annealed over the time
given, else over `steps`. Several processes average their gradients; each holds all weights, or a share (`sharding`).
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.checkpoint import (
    CheckpointError,
    ema_update,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_json,
)
from train.sharding import local, requested_sharding, shard, unsharded, whole
from train.watch import NOT_FINITE


class Job(Protocol):
    """One model, its data and its loss."""

    name: str
    ema: float  # decay of the averaged weights that are saved as the model

    @property
    def model(self) -> nn.Module: ...

    @property
    def critic(self) -> nn.Module | None:
        """What the loss needs or trains beside the model, such as a discriminator: kept in checkpoints, clipped apart,
        neither averaged nor saved with the model. It is called outside the model's forward, so the loop averages its
        gradients over processes."""

    def compile(self) -> None:
        """Hand to torch.compile what of the model it can do, with static shapes where batches have few."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a resumed training must have in common with the one that began, for JSON."""

    def optimizers(self) -> list[torch.optim.Optimizer]: ...

    def batch(self, step: int, rank: int, world: int, progress: float) -> Any:
        """The batch of a step, a pure function of its arguments; `progress` in [0, 1] of the whole training."""

    def loss(self, model: nn.Module, batch: Any, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Scalar loss and what to log beside it."""

    def notices(self, step: int, metrics: dict[str, float]) -> list[str]:
        """What seems to go wrong at a logged step, in words; see `train.watch`."""

    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        """Save pictures that show how the model is doing."""

    def evaluate(self, model: nn.Module, n: int) -> dict[str, float]:
        """Metrics on n items that are never trained on."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model as a folder that `from_pretrained` opens."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    steps: int | None = None  # one of steps and minutes must be given
    minutes: float | None = None
    warmup: float = 0.03  # share of the training
    max_norm: float = 1.0
    seed: int = 0
    log_every: int = 20
    sample_every: float = 5.0  # minutes
    save_every: float = 2.0  # minutes
    n_evaluate: int = 64
    compile: bool = False

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        if (self.steps or self.minutes or 0) <= 0:
            raise ValueError(f"steps={self.steps}, minutes={self.minutes}: need a number above 0")


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up, then a cosine down to 2 % at progress 1."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    x = min(1.0, (progress - warmup) / (1 - warmup))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * x))


class StopOnSignal:
    """Turns the first SIGINT or SIGTERM into a request to stop after the current step."""

    def __enter__(self) -> StopOnSignal:
        self.requested = False
        self.previous: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread
                self.previous[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(number, self.previous[number])  # a second one acts at once

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def has_begun(out: Path, *, resume: bool) -> bool:
    """Whether folder `out` holds a training; raises CheckpointError where it does and may not be gone on with, and
    where it holds a model without one."""
    begun = has_checkpoint(out / "train/checkpoint")
    if begun and not resume:
        raise CheckpointError(f"{out}: already holds a training; continue it with --resume or choose another folder")
    if not begun and (out / "config.json").exists():
        raise CheckpointError(f"{out}: already holds a model, whose weights are to stay; choose another folder")
    return begun


def check_settings(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise CheckpointError naming the first setting in which a training differs from the one it would go on with."""
    for name, value in now.items():
        if name in before and before[name] != json.loads(json.dumps(value)):
            raise CheckpointError(f"{out}: this training began with {name}={before[name]}, now {name}={value}; resume "
                                  "with the settings it began with, or choose another folder")  # fmt: skip


def fit(
    job: Job, out: Path, config: LoopConfig, *, resume: bool = False, device: str | None = None
) -> dict[str, float]:
    """Train `job` into folder `out` and return its test metrics; {} if a signal stopped it early.

    `out` holds the model (averaged weights), `train/checkpoint` to resume from, `train/log` for TensorBoard,
    `train/samples` and, once it is done, `train/metrics.json`. With `resume` a training goes on from its checkpoint and
    starts where there is none. `device` is "cpu", "cuda", ...; None takes an accelerator if there is one.
    Raises CheckpointError where `out` holds a training already (without `resume`) or one of another model or with other
    settings, InputError where sharding is asked for that the model cannot have, and FloatingPointError where a gradient
    or a weight is not finite.
    """
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    sharding = requested_sharding(job.model)
    state = out / "train"
    begun_before = has_begun(out, resume=resume)
    chosen = torch.device(device) if device else None
    if chosen is not None and chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    torch.manual_seed(config.seed)
    accelerator = Accelerator(mixed_precision="bf16", cpu=chosen is not None and chosen.type == "cpu")
    inner, critic, main = job.model, job.critic, accelerator.is_main_process
    if sharding is None or not dist.is_initialized():  # a single process has nothing to share
        sharding = None
        average = copy.deepcopy(inner.to(accelerator.device)).requires_grad_(False).eval()
    else:
        average = shard(inner, sharding, accelerator.device, torch.bfloat16, compile=config.compile)
    optimizers = job.optimizers()
    models = {"model": inner, "average": average}
    if critic is not None:
        models["critic"] = critic.to(accelerator.device)
    settings = {"seed": config.seed, **job.settings}
    step, elapsed = 0, 0.0
    if begun_before:
        progress = load_checkpoint(state / "checkpoint", models, optimizers)
        check_settings(out, progress["settings"], settings)
        step, elapsed = progress["step"], progress["elapsed"]
    model = inner
    if sharding is None:
        model = accelerator.prepare(inner)  # not the optimizers: their counts of steps are to stay on the CPU
        if config.compile:
            torch.compiler.reset()  # what earlier stages compiled counts towards the limit of this one
            job.compile()
    if main:
        (state / "samples").mkdir(parents=True, exist_ok=True)
        write_json(state / "config.json", {"job": job.name, "loop": asdict(config)})
    log = SummaryWriter(str(state / "log"), purge_step=step) if main else None  # no steps twice after a kill
    base_lrs = [group["lr"] for o in optimizers for group in o.param_groups]
    if step:
        base_lrs = progress["base_lrs"]

    def averaged(device: torch.device) -> nn.Module | None:
        """The averaged model, whole, for the first process; None for the others, which must take part."""
        if sharding is not None:
            return unsharded(average, device, keep=main)
        return average if main else None

    def save() -> None:
        finite = torch.stack([local(p).isfinite().all() for p in inner.parameters()]).all()
        if not accelerator.gather(finite.view(1)).all():
            raise FloatingPointError(f"{job.name}: a weight is not finite after step {step}; the last checkpoint "
                                     f"is intact; {NOT_FINITE}")  # fmt: skip
        numbers = {"step": step, "elapsed": elapsed, "base_lrs": base_lrs, "settings": settings}
        save_checkpoint(state / "checkpoint", models, optimizers, numbers, write=main)
        to_save = averaged(torch.device("cpu"))
        if to_save is not None:
            job.save(to_save, out)

    def sample() -> None:
        shown = averaged(accelerator.device)
        if shown is not None:
            job.sample(shown, state / "samples", step)

    def done() -> float:
        return step / config.steps if config.steps else elapsed / 60 / (config.minutes or 1)

    bar = tqdm(total=100.0, initial=min(100.0, 100 * done()), desc=job.name, disable=not main, file=sys.stderr,
               mininterval=1,
               bar_format="{desc} {n:.0f}% |{bar}| {elapsed}<{remaining} {postfix}")  # fmt: skip
    saved = sampled = elapsed  # all processes agree on the time in training, and so on when to save
    model.train()
    stopping = False
    with contextlib.ExitStack() as closing, StopOnSignal() as stop:
        closing.callback(bar.close)
        if log:
            closing.callback(log.close)
        while done() < 1 and not stopping:
            begun = time.monotonic()
            progress_now = done()
            torch.manual_seed(config.seed + 1_000_003 * step + accelerator.process_index)
            batch = job.batch(step, accelerator.process_index, accelerator.num_processes, progress_now)
            factor = learning_rate_factor(progress_now, config.warmup)
            for lr, group in zip(base_lrs, (g for o in optimizers for g in o.param_groups), strict=True):
                group["lr"] = lr * factor
            with accelerator.autocast():
                loss, metrics = job.loss(model, batch, progress_now)
            accelerator.backward(loss)
            grad_norm = whole(nn.utils.clip_grad_norm_(inner.parameters(), config.max_norm))
            players = [p for p in critic.parameters() if p.grad is not None] if critic is not None else []
            if players:
                for p in players:
                    p.grad = accelerator.reduce(p.grad, reduction="mean")
                critic_norm = nn.utils.clip_grad_norm_(players, config.max_norm)
                grad_norm = torch.where(critic_norm.isfinite(), grad_norm, critic_norm)
            if not torch.isfinite(grad_norm):
                raise FloatingPointError(
                    f"{job.name}: gradient norm is {float(grad_norm)} at step {step}; the update was not applied, the "
                    f"last checkpoint is intact; {NOT_FINITE}"
                )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            ema_update(average, inner, min(job.ema, step / (step + 10)))
            step += 1
            elapsed += time.monotonic() - begun
            stopping = stop.requested
            if accelerator.num_processes > 1:  # all must see the same progress, and stop at the same step
                seen = torch.tensor([elapsed, float(stopping)], device=accelerator.device, dtype=torch.float64)
                elapsed, any_stopping = accelerator.gather(seen).view(-1, 2).amax(0).tolist()
                stopping = any_stopping > 0
            bar.update(min(100.0, 100 * done()) - bar.n)
            if log and (step % config.log_every == 0 or step == 1):
                values = {k: float(v) for k, v in {"loss": loss.detach(), "grad_norm": grad_norm, **metrics}.items()}
                for words in job.notices(step, values):
                    bar.write(f"{job.name}: {words}", file=sys.stderr)
                for key, value in values.items():
                    log.add_scalar(key, value, step)
                log.add_scalar("lr", base_lrs[0] * factor, step)
                bar.set_postfix_str(f"step {step} " + " ".join(f"{k}={v:.4g}" for k, v in values.items()))
            if elapsed - sampled > 60 * config.sample_every:
                sample()
                sampled = elapsed
            if elapsed - saved > 60 * config.save_every:
                save()
                saved = elapsed
    save()
    if stopping and done() < 1:
        print(f"{job.name}: stopped at step {step}; go on with --resume", file=sys.stderr)
        return {}
    results = {"step": float(step)}  # all that processes other than the first know
    final = averaged(accelerator.device)
    if final is not None:
        job.sample(final, state / "samples", step)
        results = {k: float(v) for k, v in job.evaluate(final, config.n_evaluate).items()}
        write_json(state / "metrics.json", {"step": step, "minutes": round(elapsed / 60, 2), **results})
    accelerator.wait_for_everyone()
    return results
