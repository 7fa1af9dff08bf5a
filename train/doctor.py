"""`avpoet-train doctor`: does a training of a tokenizer work here, on this data? Known within minutes.

Every part is looked at by itself, then one clip is learned by heart through the job and the loop of a real training.
A tokenizer that cannot do that will not learn from many clips either.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from train.loop import LoopConfig
    from train.presets import ChainPreset

EXAMPLE = "avpoet-train doctor video-tokenizer --data clips --minutes 4"
TOKENIZERS = ("video-tokenizer", "audio-tokenizer")


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    words: str  # what was found; where it is not ok, what is likely wrong and what to try

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'FAIL':<4}  {self.name}: {self.words}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tokenizer", nargs="?", choices=TOKENIZERS, default=TOKENIZERS[0],
                        help=f"(default: {TOKENIZERS[0]})")  # fmt: skip
    parser.add_argument("--data", default="playground", help="playground, a media file, or a folder of media files")
    parser.add_argument("--preset", default="tiny", help="debug, tiny, fast, base, base-24khz or large (default: tiny)")
    parser.add_argument("--minutes", type=float, default=4.0, metavar="N", help="for the clip, at most (default: 4)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: an accelerator if there is one)")
    parser.add_argument("--out", type=Path, help="keep the model and a picture in this folder")


def run(args: argparse.Namespace) -> int:
    """Print a line for each check as it is done; 0 if all have passed, else 1."""
    checks = diagnose(args.data, tokenizer=args.tokenizer, preset=args.preset, minutes=args.minutes,
                      device=args.device, out=args.out, report=lambda check: print(check, flush=True))  # fmt: skip
    failed = sum(not check.ok for check in checks)
    print(f"{failed} check{'s' * (failed > 1)} failed" if failed else "pass")
    return int(failed > 0)


def diagnose(
    data: str | Path = "playground", *, tokenizer: str = "video-tokenizer", preset: str = "tiny", minutes: float = 4.0,
    steps: int | None = None, device: str | None = None, out: Path | None = None, seed: int = 0,
    report: Callable[[Check], None] = lambda check: None,
) -> list[Check]:  # fmt: skip
    """Run all checks on one clip of `data` and return them; each is given to `report` as soon as it is done.

    The clip is trained on for `steps`, or where they are not given for `minutes`, at most.
    With `out` the model that has learned the clip stays there, and a picture of what it makes of it. Raises InputError
    or MediaError for what cannot be used at all, before any work.
    """
    import torch

    from tasks.errors import InputError
    from tasks.pipeline import pick_device
    from train import audio_checkup, checkup, video_checkup
    from train.loop import LoopConfig
    from train.presets import CHAINS
    from train.stages import check_out

    if tokenizer not in TOKENIZERS:
        raise InputError(f"unknown tokenizer {tokenizer!r}, expected one of {', '.join(TOKENIZERS)}")
    if preset not in CHAINS:
        raise InputError(f"unknown preset {preset!r}, expected one of {', '.join(sorted(CHAINS))}")
    if not 0 < minutes < math.inf:
        raise InputError(f"minutes={minutes}: need a number above 0")
    limit = LoopConfig(steps=steps, minutes=None if steps else minutes, seed=seed)
    if out is not None:
        check_out(out)
        if out.exists() and any(out.iterdir()):
            raise InputError(f"{out}: is not empty; choose another folder")
    chain, place = CHAINS[preset], pick_device(device)
    checks: list[Check] = []

    def look(name: str, check: Callable[[], str]) -> None:
        try:
            checks.append(Check(name, True, check()))
        except checkup.Failed as error:
            checks.append(Check(name, False, str(error)))
        except Exception as error:  # a part that breaks is what this is for: say where, and look at the others
            frame = traceback.extract_tb(error.__traceback__)[-1]
            first = (str(error).splitlines() or [""])[0]
            where = f"{Path(frame.filename).name}, line {frame.lineno}"
            checks.append(Check(name, False, f"{type(error).__name__} in {where}: {first}"))
        report(checks[-1])

    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        case = _Case(chain, place, seed, limit, Path(folder), out or Path(folder) / "model")
        if tokenizer == "audio-tokenizer":
            clip, about = audio_checkup.find_clip(data, chain.spec.sample_rate, seed)
            parts = _audio(case, clip, about)
        else:
            clip, about = video_checkup.find_clip(data, chain.spec, seed)
            parts = _video(case, clip, about)
        look("machine", lambda: checkup.check_machine(place))
        with audio_checkup.few_latents():
            for name, check in parts:
                if name == "codes" and not (case.kept / "config.json").is_file():
                    break  # nothing was learned, so there is no model to look at
                if name != "picture" or out is not None:
                    look(name, check)
        look("memory", lambda: checkup.check_memory(place))
    return checks


@dataclass(frozen=True)
class _Case:
    """What all checks of a tokenizer are told."""

    chain: ChainPreset
    place: torch.device
    seed: int
    limit: LoopConfig
    folder: Path  # for what is thrown away
    kept: Path  # folder of the model that has learned the clip


def _video(case: _Case, clip: Tensor, about: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """Names and checks of the parts of the video tokenizer, in order; "codes" and what follows need a trained model."""
    from tokenizers_av.video import VideoTokenizer, video_tokenizer_config
    from train import checkup, video_checkup
    from train.perceptual import open_perceptual
    from train.video_tokenizer import VideoTokenizerJob
    from train.watch import Watch

    chain, place, seed = case.chain, case.place, case.seed
    model = VideoTokenizer(video_tokenizer_config(chain.video)).to(place)
    overfit = replace(video_checkup.OVERFIT, lr=2 * chain.video_training.lr)
    all_losses = replace(chain.video_training, image_share=0.5, soft_share=0.0, adversarial_from=0.0, r1_every=1,
                         adversarial_weight=chain.video_training.adversarial_weight or 0.1)  # fmt: skip

    def job(training: Any = overfit, **more: Any) -> VideoTokenizerJob:
        source = checkup.OneClip(clip)
        made = VideoTokenizerJob(copy.deepcopy(model), source, source, chain.spec, batch_size=1, seed=seed,
                                 training=training, **more)  # fmt: skip
        made.watch = Watch()  # one clip needs few codes: `check_codes` judges them
        return made

    moved = checkup.shaken(model)
    yield "data", lambda: video_checkup.check_clip(clip, about)
    yield "quantizer", lambda: video_checkup.check_quantizer(model)
    yield "causality", lambda: video_checkup.check_causality(moved)
    yield "streaming", lambda: video_checkup.check_streaming(moved)
    yield "sizes", lambda: video_checkup.check_sizes(moved)
    yield "gradient", lambda: checkup.check_gradient(job(), place)
    yield "losses", lambda: video_checkup.check_losses(
        job(all_losses, perceptual=open_perceptual(all_losses.perceptual)), place)  # fmt: skip
    yield "checkpoint", lambda: checkup.check_checkpoint(moved, job, clip, case.folder)
    yield "overfit", lambda: checkup.check_overfit(job(), video_checkup.GOAL, case.kept, case.limit, place)
    yield "codes", lambda: video_checkup.check_codes(case.kept, clip, place)
    yield "picture", lambda: video_checkup.save_picture(case.kept, clip, place)


def _audio(case: _Case, clip: Tensor, about: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """Names and checks of the parts of the audio tokenizer, in order; "codes" and what follows need a trained model."""
    import torch

    from tokenizers_av.audio import AudioTokenizer, audio_tokenizer_config
    from train import audio_checkup, checkup
    from train.audio_tokenizer import AudioTokenizerJob

    chain, place, seed = case.chain, case.place, case.seed
    config = audio_tokenizer_config(chain.audio)
    model = AudioTokenizer(config).to(place)
    silent = audio_checkup.decibels(clip) < audio_checkup.SILENT_DB
    heard = audio_checkup.noise(model, clip.shape[1]) if silent else clip  # silence would hide what is wrong with parts
    by_heart = AudioTokenizer(replace(config, quantizer_dropout=0.0)).to(place)  # all levels, all the time
    overfit = replace(audio_checkup.OVERFIT, lr=chain.audio_training.lr,
                      seconds=audio_checkup.seconds_of(clip.shape[1], config.sample_rate))  # fmt: skip
    all_losses = replace(chain.audio_training, soft_from=0.0, soft_to=0.0, adversarial_from=0.0, head_start=0.0,
                         seconds=audio_checkup.shortest_crop(model),
                         adversarial_weight=chain.audio_training.adversarial_weight or 3.0)  # fmt: skip

    def job(tokenizer: AudioTokenizer, training: Any, batch_size: int = 1) -> AudioTokenizerJob:
        source = checkup.OneClip(audio=heard)
        torch.manual_seed(seed)  # every job begins with the same discriminators
        return AudioTokenizerJob(copy.deepcopy(tokenizer), source, source, batch_size=batch_size, seed=seed,
                                 training=training)  # fmt: skip

    quantized = replace(overfit, soft_from=0.0, soft_to=0.0)
    moved, learned = checkup.shaken(model), False

    def check_overfit() -> str:
        nonlocal learned
        words = audio_checkup.check_overfit(job(by_heart, overfit), clip, case.kept, case.limit, place)
        learned = True
        return words

    yield "data", lambda: audio_checkup.check_clip(clip, about, config.sample_rate)
    yield "quantizer", lambda: audio_checkup.check_quantizer(model)
    yield "causality", lambda: audio_checkup.check_causality(moved)
    yield "streaming", lambda: audio_checkup.check_streaming(moved)
    yield "sizes", lambda: audio_checkup.check_sizes(moved)
    yield "levels", lambda: audio_checkup.check_levels(moved)
    yield "gradient", lambda: checkup.check_gradient(job(model, quantized), place)
    yield "losses", lambda: audio_checkup.check_losses(job(model, all_losses, batch_size=4), place)
    yield "checkpoint", lambda: checkup.check_checkpoint(
        moved, lambda: job(model, all_losses, batch_size=2), clip, case.folder)  # fmt: skip
    yield "overfit", check_overfit
    yield "codes", lambda: audio_checkup.check_codes(case.kept, clip, learned, place)
    yield "picture", lambda: audio_checkup.save_picture(case.kept, clip, place)
