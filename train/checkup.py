"""What `avpoet-train doctor` does for every tokenizer: find a clip, look at gradient, losses and checkpoints, and have
the clip learned by heart. What differs is in `video_checkup` and `audio_checkup`.

Each check returns what it found in words, or raises `Failed` with what is likely wrong and what to try.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import InputError
from tasks.model_folder import quietly
from tokenizers_av.clip import MediaError
from train.data import MediaBatch, MediaSpec, Source, open_source
from train.data.folder import FolderSource
from train.loop import LoopConfig, fit

CHECK_EVERY = 10.0  # seconds between two looks at how well the clip is known
LOG_EVERY = 5  # steps: a short training is watched more closely than a long one
FEW_STEPS = 150
MAX_FILES = 50  # files that are read


class Failed(Exception):
    """A check did not pass; the message says why."""


class OneClip:
    """A `Source` of one clip, video (1, 3, T, H, W) or audio (1, N) or both."""

    def __init__(self, video: Tensor | None = None, audio: Tensor | None = None) -> None:
        self.video, self.audio = video, audio

    def batch(self, indices: Sequence[int], spec: MediaSpec, *, video: bool = True, audio: bool = True) -> MediaBatch:
        """The clip, as often as it is asked for, and all of its sound however long."""
        n = len(indices)
        return MediaBatch(
            None if self.video is None else self.video[:, :, : spec.n_frames].expand(n, -1, -1, -1, -1),
            None if self.audio is None else self.audio.expand(n, -1),
            [""] * n,
        )


def find_clip(
    data: str | Path, seed: int, what: str,
    *, draw: Callable[[Source], Tensor], read: Callable[[Path], Tensor], good: Callable[[Tensor], bool],
) -> tuple[Tensor, str]:  # fmt: skip
    """The first clip of `data` that can be read and is `good`, else the first; and what was found, in words.

    `read` a file, or raise MediaError; `draw` a clip where there are no files. Raises InputError where no file has one.
    """
    try:
        source = open_source(data, seed=seed)
        if not isinstance(source, FolderSource):
            return draw(source), f"{data}, its first clip with {what}"
        names = sorted({*source.files, *open_source(data, "test", seed=seed).files})  # type: ignore[attr-defined]
    except ValueError as error:
        raise InputError(str(error)) from None
    skipped, chosen, chosen_name = [], None, ""
    for name in names[:MAX_FILES]:
        try:
            clip = read(source.root / name)
        except MediaError as error:
            skipped.append(f"{name} ({str(error).removeprefix(f'{source.root / name}: ')})")
            continue
        if chosen is None or (not good(chosen) and good(clip)):
            chosen, chosen_name = clip, name
    n = len(names)
    looked = f"{n} file{'s' * (n > 1)}" if n <= MAX_FILES else f"the first {MAX_FILES} of {n:,} files"
    bad = f", {len(skipped)} skipped: {', '.join(skipped[:3])}{', ...' * (len(skipped) > 3)}" if skipped else ""
    if chosen is None:
        raise InputError(f"{data}: no {what} can be read in {looked}{bad}")
    return chosen, f"{looked}{bad}; {chosen_name}"


def check_machine(device: torch.device) -> str:
    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(1024, 1024, device=device, dtype=dtype)
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            float((a @ a)[0, 0])  # waits for the device
            times.append(time.perf_counter() - begun)
        return min(times)

    faster = seconds(torch.float32) / seconds(torch.bfloat16)
    hint = "" if faster > 0.8 else ", which trainings use: they will be slow here"
    where = f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    return f"torch {torch.__version__}, {where}; bf16 is {faster:.1f} times as fast as fp32{hint}"


def shaken(model: Any) -> Any:
    """A copy with every weight moved: branches that start at zero would hide what is wrong with them."""
    model, draw = copy.deepcopy(model).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_((0.3 * torch.randn(p.shape, generator=draw) / p.shape[-1] ** 0.5).to(p))
    return model


def check_gradient(job: Any, device: torch.device) -> str:
    """After one step, which ends the zeros that branches start with, every parameter gets a gradient."""
    optimizers = job.optimizers()
    job.model.train()
    if job.critic is not None:
        job.critic.to(device)
    for step in range(2):
        for optimizer in optimizers:
            if step:
                optimizer.step()
            optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss, _ = job.loss(job.model, job.batch(step, 0, 1, 1.0), 1.0)
        loss.backward()
    parameters = dict(job.model.named_parameters())
    broken = [name for name, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
    missed = [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]
    for what, names in (("is not finite in", broken), ("does not reach", missed)):
        if names:
            more = f" and {len(names) - 5} more" * (len(names) > 5)
            raise Failed(f"the gradient {what} {', '.join(names[:5])}{more}, of {len(parameters)} parameters")
    n = sum(p.numel() for p in parameters.values())
    return f"reaches all {len(parameters)} parameters ({n / 1e6:.1f}M numbers)"


def check_losses(job: Any, batches: Iterable[Tensor], device: torch.device) -> list[str]:
    """The names of the losses of these batches; all are finite, and so are the gradients of both players."""
    job.model.train()
    job.critic.to(device)
    for name, p in job.critic.named_parameters():
        if name.endswith("head.weight"):  # at zero nothing would reach the other layers
            torch.nn.init.normal_(p, std=0.02)
    found = set()
    for batch in batches:
        job.model.zero_grad()
        job.critic.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss, metrics = job.loss(job.model, batch, 1.0)
        loss.backward()
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            raise Failed(f"{', '.join(bad)} of an untrained model: not a finite number")
        found |= {name for name in metrics if not name.startswith(("codes", "level", "loss", "psnr", "soft"))}
        for who, player in (("tokenizer", job.model), ("discriminator", job.critic)):
            for name, p in player.named_parameters():
                if p.grad is not None and not p.grad.isfinite().all():
                    raise Failed(f"the gradient of the {who} is not finite in {name}")
        missed = [name for name, p in job.critic.named_parameters() if p.grad is None or not p.grad.any()]
        missed = [name for name in missed if not name.endswith("head.bias")]  # real and fake may cancel there exactly
        if missed:
            raise Failed(f"the gradient does not reach {', '.join(missed[:5])} of the discriminator")
        if not any(p.grad is not None and p.grad.any() for p in job.model.parameters()):
            raise Failed("with discriminators no gradient reaches the tokenizer")
    return sorted(found)


class _Around:
    """A job that behaves as the one inside, but for what a subclass changes."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def __getattr__(self, name: str) -> Any:
        return getattr(self.job, name)


class _Crash(Exception):
    """What a kill would do."""


class _Crashing(_Around):
    """Remembers its losses, and ends in a crash before a step if told so."""

    def __init__(self, job: Any, crash_at: int | None = None) -> None:
        super().__init__(job)
        self.crash_at = crash_at
        self.losses: list[float] = []

    def batch(self, step: int, rank: int, world: int, progress: float) -> Tensor:
        if step == self.crash_at:
            raise _Crash
        return self.job.batch(step, rank, world, progress)

    def loss(self, model: nn.Module, batch: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        total, metrics = self.job.loss(model, batch, progress)
        self.losses.append(float(metrics.get("loss", total.detach())))
        return total, metrics

    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        pass


def load(kind: Any, folder: Path, device: torch.device) -> Any:
    """The model of class `kind` in `folder`, ready to encode."""
    with quietly():
        return kind.from_pretrained(folder).to(device).eval()


def check_checkpoint(model: Any, make_job: Callable[[], Any], clip: Tensor, folder: Path) -> str:
    """A saved model gives the same ids, and a training that crashed and went on ends as one that did not: in its
    losses, in its weights and in whatever else its model and critic keep."""
    device = next(model.parameters()).device
    clip = clip.to(device)
    model.save_pretrained(folder / "saved")
    again = load(type(model), folder / "saved", device)
    if wrong := int((again.encode(clip) != model.encode(clip)).sum()):
        raise Failed(f"{wrong} ids differ after the model was saved and loaded")
    config = LoopConfig(steps=4, save_every=0.0, n_evaluate=1)
    whole, crashed, resumed = (_Crashing(make_job(), crash_at) for crash_at in (None, 2, None))
    runs: list[tuple[Any, str]] = [(whole, "whole"), (crashed, "crashed"), (resumed, "crashed")]
    for job, name in runs:
        with contextlib.suppress(_Crash), contextlib.redirect_stderr(io.StringIO()):  # no progress bars
            if not fit(job, folder / name, config, resume=job is resumed, device=str(device)):  # a signal
                raise KeyboardInterrupt
    losses = crashed.losses + resumed.losses
    if len(losses) != len(whole.losses):
        raise Failed(f"a training of {len(whole.losses)} steps that was resumed has made {len(losses)}")
    tolerance = 1e-5 if device.type == "cpu" else 1e-2
    for step, (a, b) in enumerate(zip(whole.losses, losses, strict=True)):
        if not abs(a - b) <= tolerance:
            raise Failed(f"a training that was resumed at step 2 has loss {b:.5f} at step {step} instead of {a:.5f}")
    if device.type == "cpu":  # elsewhere sums may differ from run to run, and another code be the nearest
        states = (_state(job.job) for job in (whole, resumed))
        if differ := [name for (name, a), (_, b) in zip(*states, strict=True) if not torch.allclose(a, b, 1e-4, 1e-5)]:
            raise Failed(f"a training that was resumed at step 2 ends with another {', '.join(differ[:5])}")
    return "a loaded model gives the same ids, a resumed training the same losses, weights and averages"


def _state(job: Any) -> list[tuple[str, Tensor]]:
    """All that model and critic keep, by name."""
    critic = {} if job.critic is None else job.critic.state_dict()
    return [*job.model.state_dict().items(), *critic.items()]


@dataclass(frozen=True, kw_only=True)
class Target:
    """How well the clip is to be known by one measure of `evaluate`."""

    metric: str
    need: float  # to pass
    enough: float  # to stop early
    useless: float  # as bad as if nothing were learned
    words: str = "{} dB"
    digits: int = 1
    falls: bool = False  # less is better

    def met(self, value: float, level: float) -> bool:
        return value <= level if self.falls else value >= level


class _Enough(Exception):
    """The clip is known well enough."""


class _Overfit(_Around):
    """Looks now and then at how well the averaged model knows the clip."""

    name = "overfit"

    def __init__(self, job: Any, goal: Sequence[Target], out: Path) -> None:
        super().__init__(job)
        self.goal, self.out, self.begun, self.n_steps = goal, out, time.monotonic(), 0
        self.said: list[str] = []
        self.losses: list[float] = []  # of the logged steps
        self.history: list[tuple[float, dict[str, float]]] = []  # minutes, metrics

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.begun) / 60

    def batch(self, step: int, rank: int, world: int, progress: float) -> Tensor:
        self.n_steps = step + 1
        return self.job.batch(step, rank, world, progress)

    def notices(self, step: int, metrics: dict[str, float]) -> list[str]:
        found = self.job.notices(step, {name: value for name, value in metrics.items() if name != "entropy"})
        self.said += found
        self.losses.append(metrics["loss"])
        return found

    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        metrics = self.evaluate(model, 1)
        self.history.append((self.minutes, metrics))
        if all(target.met(metrics[target.metric], target.enough) for target in self.goal):
            self.save(model, self.out)
            raise _Enough


def check_overfit(job: Any, goal: Sequence[Target], out: Path, limit: LoopConfig, device: torch.device) -> str:
    """How well the saved model knows the clip it was trained on, through the ids."""
    config = replace(limit, sample_every=CHECK_EVERY / 60, save_every=60.0, n_evaluate=1, log_every=LOG_EVERY)
    watched: Any = _Overfit(job, goal, out)
    try:
        if not fit(watched, out, config, device=str(device)):
            raise KeyboardInterrupt
    except _Enough:
        pass
    except FloatingPointError as error:
        raise Failed(str(error)) from None
    took = watched.minutes
    metrics = job.evaluate(load(type(job.model), out, device), 1)
    value = [t.words.format(f"{metrics[t.metric]:.{t.digits}f}") for t in goal]
    need = [t.words.format(f"{t.need:g}") for t in goal]
    found = (f"{' and '.join(value)} after {took:.1f} min ({watched.n_steps:,} steps), "
             f"needs {' and '.join(need)}")  # fmt: skip
    if not all(t.met(metrics[t.metric], t.need) for t in goal):
        raise Failed(f"{found}: {advice(watched, metrics)}")
    return found


def advice(job: _Overfit, metrics: dict[str, float]) -> str:
    """What is likely wrong with a clip that was not learned, and what to try."""
    if job.said:
        return "; ".join(job.said)
    if len(job.losses) > 1 and not (now := median(job.losses[-5:])) < job.losses[0]:
        return f"the loss has risen from {job.losses[0]:.3g} to {now:.3g}: the learning rate is far too high"
    seconds, main = 60 * job.minutes / max(1, job.n_steps), job.goal[0]
    if job.n_steps < FEW_STEPS:
        return f"a step takes {seconds:.1f} s, so there were too few; try --minutes {math.ceil(300 * seconds / 60)}"
    middle = [found for at, found in job.history if at < job.minutes / 2]
    if middle and metrics[main.metric] > middle[-1][main.metric] + 1:
        return f"it still rises; try --minutes {math.ceil(2 * job.minutes)}"
    if main.met(main.useless, metrics[main.metric]):
        return "almost nothing is learned; look at what failed above, and at the learning rate"
    return "it rises no more: the clip may hold more detail than this preset can; try another clip or a larger preset"


def check_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB on {device} at the highest"
    try:
        import resource
    except ImportError:  # not on this system
        return "cannot be read on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB at the highest"
