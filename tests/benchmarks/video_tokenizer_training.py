"""Training of the video tokenizer beside public ones, from scratch: equal minutes, parameters (+-10 %), clips and bits.

    python tests/benchmarks/video_tokenizer_training.py overfit --clip clip.mp4 --minutes 5
    python tests/benchmarks/video_tokenizer_training.py equal --data playground --minutes 15 --n 64

`overfit` learns one clip of 17 frames of 64x64 by heart; `equal` learns from the training split and is judged on `n`
clips of the test split. PSNR is that of ids decoded again (mean over frames, then clips), in float32. All give 5x8x8
ids of 12 bits and run on the same threads; the clock stands still while a model is looked at.

Ours is the `tiny` preset (`ours-fast`: `fast`, a third smaller) through its job and the training loop, with the
settings of `avpoet-train` (overfit: of `avpoet-train doctor`). A peer has its own loss without a discriminator and VGG,
so that all its time goes into the reconstruction, and AdamW as its trainer sets it; its trainer's learning rate of 1e-5
would not move in so few steps. Instead it gets, free of charge, the fastest of its modes (bfloat16 autocast, memory
layout), the better of two learning rates and two weights of its auxiliary loss, each tried for a tenth of the time, our
schedule, averaged weights beside its last ones, and of both those that reconstruct better. A table and one JSON line go
to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from video_peers import MODES, Contestant, Mode, Ours, build_peers, conditions, describe

from tasks.model_folder import quietly
from tokenizers_av import read_clip
from tokenizers_av.video import VideoTokenizer, video_tokenizer_config
from train.checkpoint import ema_update
from train.checkup import OneClip
from train.data import MediaSpec, Source, open_source
from train.evaluate.tokenizer_metrics import CodeUse, psnr
from train.loop import LoopConfig, fit, learning_rate_factor
from train.video_checkup import OVERFIT
from train.video_tokenizer import VideoTokenizerJob
from train.video_training import VideoTraining

BITS = 12
SPEC = MediaSpec(n_frames=17, size=64, fps=8.0)
LEARNING_RATES, AUXILIARY_WEIGHTS = (3e-4, 1e-3), (1.0, 0.1)  # what a peer may choose from; its default weight is 1
TRY_SHARE = 0.1  # of the minutes, for each of them
VALIDATION = 1_000_000  # first index of the training clips by which they are judged
PEERS = ("magvit2-pytorch", "magvit2-pytorch-paper", "magvit2-pytorch-fsq", "vidtok")
OURS = {  # preset and quantizer
    "ours-lfq": ("tiny", "lfq"), "ours-bsq": ("tiny", "bsq"), "ours-fsq": ("tiny", "fsq"), "ours-fast": ("fast", "lfq"),
}  # fmt: skip
MODELS = (*OURS, *PEERS)


@dataclass(frozen=True)
class Setting:
    """What every model is trained on, and for how long."""

    minutes: float
    batch_size: int
    train: Source
    test: Source
    n_test: int
    training: VideoTraining  # of ours
    seed: int

    def job(self, tokenizer: VideoTokenizer) -> VideoTokenizerJob:
        return VideoTokenizerJob(tokenizer, self.train, self.test, SPEC, batch_size=self.batch_size, seed=self.seed,
                                 training=self.training)  # fmt: skip

    def clips(self, source: Source, first: int, n: int) -> Iterator[Tensor]:
        """Clips from index `first` in batches (B, 3, T, H, W)."""
        for start in range(first, first + n, 8):
            video = source.batch(range(start, min(start + 8, first + n)), SPEC, audio=False).video
            assert video is not None
            yield video


def evaluate(contestant: Contestant, clips: Iterator[Tensor]) -> dict[str, float]:
    """PSNR in dB through the ids, the codes used, and the bits per id of their histogram."""
    contestant.model.eval()
    scores, use = [], CodeUse.of_size(2**BITS)
    for video in clips:
        ids = contestant.encode(video)
        again = contestant.decode(ids).float().clamp(-1, 1)
        scores.append(psnr((again + 1) / 2, (video + 1) / 2))
        use.add(ids.long())
    return {"psnr": round(float(torch.cat(scores).mean()), 3), "codes_used": int((use.counts > 0).sum()),
            "bits_per_id": round(use.entropy, 2)}  # fmt: skip


def train_ours(contestant: Contestant, setting: Setting) -> dict[str, Any]:
    """Train ours as `avpoet-train` does, and judge what it has saved."""
    assert isinstance(contestant.model, VideoTokenizer)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        loop = LoopConfig(minutes=setting.minutes, seed=setting.seed, sample_every=1e9, save_every=1e9, n_evaluate=1)
        if not fit(setting.job(contestant.model), out, loop, device="cpu"):
            raise SystemExit("stopped")
        done = json.loads((out / "train/metrics.json").read_text())
        with quietly():
            contestant.model = VideoTokenizer.from_pretrained(out)
    found = evaluate(contestant, setting.clips(setting.test, 0, setting.n_test))
    return {**found, "steps": done["step"], "minutes": done["minutes"], "how": "as avpoet-train"}


@dataclass(frozen=True)
class Choice:
    mode: Mode
    lr: float
    auxiliary: float | None  # weight of the quantizer's loss; None where there is none

    def __str__(self) -> str:
        weight = "" if self.auxiliary is None else f", auxiliary weight {self.auxiliary:g}"
        return f"{self.mode.name}, lr {self.lr:g}{weight}"


def train_peer(contestant: Contestant, setting: Setting) -> dict[str, Any]:
    """Find a peer's best settings, train it with them from the same start, and judge it."""
    job = setting.job(VideoTokenizer(video_tokenizer_config("debug")))  # for its batches
    mode = fastest_mode(contestant, job.batch(0, 0, 1, 0.0))
    has_auxiliary = hasattr(contestant.model, "quantizer_aux_loss_weight") and not contestant.model.use_fsq
    choices = [
        Choice(mode, lr, auxiliary)
        for lr, auxiliary in itertools.product(LEARNING_RATES, AUXILIARY_WEIGHTS if has_auxiliary else (None,))
    ]
    tried = {}
    for choice in choices:
        made, _ = run(contestant, choice, job, TRY_SHARE * setting.minutes)
        tried[choice] = better(made, setting, setting.train, VALIDATION, min(16, setting.n_test))["psnr"]
        print(f"{contestant.name}: {choice}: {tried[choice]:.2f} dB", file=sys.stderr, flush=True)
    choice = max(tried, key=tried.__getitem__)
    made, done = run(contestant, choice, job, setting.minutes)
    return {**better(made, setting, setting.test, 0, setting.n_test), **done, "how": str(choice),
            "tried": {str(c): dB for c, dB in tried.items()}}  # fmt: skip


def fastest_mode(contestant: Contestant, video: Tensor) -> Mode:
    """The mode with float32 weights in which a forward and backward pass takes the least time."""
    seconds = {}
    for mode in (mode for mode in MODES if mode.weights == torch.float32):
        made = mode.apply(contestant)
        made.model.train()
        times = []
        for _ in range(3):  # the first warms up
            begun = time.perf_counter()
            with mode.context():
                loss = made.train_loss(mode.video(video))
            loss.backward()
            times.append(time.perf_counter() - begun)
        seconds[mode] = min(times[1:])
        print(f"{contestant.name}: {mode.name}: {seconds[mode]:.2f} s a step", file=sys.stderr, flush=True)
    return min(seconds, key=seconds.__getitem__)


def run(
    contestant: Contestant, choice: Choice, job: VideoTokenizerJob, minutes: float
) -> tuple[list[Contestant], dict[str, Any]]:
    """Train a copy; returns it and its average, and what was done."""
    mode = choice.mode
    torch.manual_seed(0)
    made = mode.apply(contestant)
    if choice.auxiliary is not None:
        made.model.quantizer_aux_loss_weight = choice.auxiliary
    average = copy.deepcopy(made)
    weights = list(made.model.parameters())
    # as magvit2-pytorch's trainer has it: AdamW, no decay of vectors
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": 1e-2},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=choice.lr, betas=(0.9, 0.99))
    made.model.train()
    step, elapsed, said = 0, 0.0, 0.0
    while elapsed < 60 * minutes:
        begun = time.monotonic()
        progress = elapsed / 60 / minutes
        video = mode.video(job.batch(step, 0, 1, progress))
        for group in optimizer.param_groups:
            group["lr"] = choice.lr * learning_rate_factor(progress, LoopConfig.warmup)
        with mode.context():
            loss = made.train_loss(video)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, LoopConfig.max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema_update(average.model, made.model, min(job.ema, step / (step + 10)))
        step += 1
        elapsed += time.monotonic() - begun
        if elapsed - said > 20:
            said = elapsed
            print(f"{contestant.name}: {elapsed / 60:.1f} of {minutes:g} min, step {step}, loss {loss.item():.4f}",
                  file=sys.stderr, flush=True)  # fmt: skip
    return [made, average], {"steps": step, "minutes": round(elapsed / 60, 2)}


def better(made: list[Contestant], setting: Setting, source: Source, first: int, n: int) -> dict[str, Any]:
    """The metrics of those weights that reconstruct better."""
    found = [evaluate(each, setting.clips(source, first, n)) for each in made]
    return max(found, key=lambda metrics: metrics["psnr"])


def compare(names: list[str], setting: Setting) -> list[dict[str, Any]]:
    """Train each model by name and print the table."""
    n_parameters = Ours(video_tokenizer_config("tiny", bits=BITS)).n_parameters
    contestants = []
    for name in names:
        torch.manual_seed(setting.seed)
        if name in OURS:
            preset, quantizer = OURS[name]
            config = video_tokenizer_config(preset, bits=BITS, quantizer=quantizer)
            contestants.append(Ours(config, name))
        else:
            contestants += build_peers(n_parameters, bits=BITS, size=SPEC.size, only=[name])
    print(describe(contestants), flush=True)
    rows = []
    for contestant in contestants:
        row = {"model": contestant.name, "parameters": contestant.n_parameters}
        rows.append(row | (train_ours if isinstance(contestant, Ours) else train_peer)(contestant, setting))
    print(f"\n  {'model':<22} {'PSNR dB':>8} {'codes':>6} {'bits/id':>8} {'steps':>6} {'minutes':>8}  how")
    for row in rows:
        print(f"  {row['model']:<22} {row['psnr']:>8.2f} {row['codes_used']:>6} {row['bits_per_id']:>8.2f} "
              f"{row['steps']:>6} {row['minutes']:>8.2f}  {row['how']}")  # fmt: skip
    return rows


def model_names(text: str) -> list[str]:
    """A comma-separated list of MODELS."""
    names = text.split(",")
    if unknown := set(names) - set(MODELS):
        raise argparse.ArgumentTypeError(f"unknown {', '.join(sorted(unknown))}; expected some of {', '.join(MODELS)}")
    return names


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    overfit = commands.add_parser("overfit", help="one clip, learned by heart")
    overfit.add_argument("--clip", type=Path, required=True)
    equal = commands.add_parser("equal", help="the same training clips, judged on test clips")
    equal.add_argument("--data", default="playground")
    equal.add_argument("--n", type=int, default=64, help="test clips")
    equal.add_argument("--batch-size", type=int, default=8)
    learned = "ours-lfq,ours-fsq,ours-fast,magvit2-pytorch"
    for command, names in ((overfit, "ours-lfq,magvit2-pytorch"), (equal, learned)):
        command.add_argument("--minutes", type=float, default=5.0, help="of training for each model")
        command.add_argument("--models", type=model_names, default=model_names(names), help=", ".join(MODELS))
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "overfit":
        clip = read_clip(args.clip, fps=SPEC.fps, size=SPEC.size, n_frames=SPEC.n_frames, audio=False)
        if clip.frames is None or clip.n_frames < SPEC.n_frames:
            raise SystemExit(f"{args.clip}: has {clip.n_frames} frames at {SPEC.fps:g} a second; need {SPEC.n_frames}")
        source = OneClip(clip.frames.permute(3, 0, 1, 2)[None] / 127.5 - 1)
        training = replace(OVERFIT, lr=2 * VideoTraining().lr)
        setting = Setting(args.minutes, 1, source, source, 1, training, args.seed)
        about = {"clip": args.clip.name}
    else:
        train, test = (open_source(args.data, split, seed=args.seed) for split in ("train", "test"))
        setting = Setting(args.minutes, args.batch_size, train, test, args.n, VideoTraining(), args.seed)
        about = {"data": args.data, "split": "test", "n": args.n}
    report = {
        "benchmark": f"video_tokenizer_training {args.command}", **conditions(), **about, "frames": SPEC.n_frames,
        "size": SPEC.size, "bits": BITS, "batch": setting.batch_size, "minutes": args.minutes, "seed": args.seed,
    }  # fmt: skip
    print(json.dumps(report), flush=True)
    print(json.dumps({**report, "rows": compare(args.models, setting)}))


if __name__ == "__main__":
    main()
