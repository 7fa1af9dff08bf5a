"""`avpoet-train doctor`: does a training of the video tokenizer work here, on this data? Known within minutes.

Every part is looked at by itself, then one clip is learned by heart through the job and the loop of a real training.
A tokenizer that cannot do that will not learn from many clips either.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

EXAMPLE = "avpoet-train doctor --data clips --minutes 4"


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    words: str  # what was found; where it is not ok, what is likely wrong and what to try

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'FAIL':<4}  {self.name}: {self.words}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="playground", help="playground, a media file, or a folder of media files")
    parser.add_argument("--preset", default="tiny", help="debug, tiny, base or large (default: tiny)")
    parser.add_argument("--minutes", type=float, default=4.0, metavar="N", help="for the clip, at most (default: 4)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: an accelerator if there is one)")
    parser.add_argument("--out", type=Path, help="keep the model and a picture in this folder")


def run(args: argparse.Namespace) -> int:
    """Print a line for each check as it is done; 0 if all have passed, else 1."""
    checks = diagnose(args.data, preset=args.preset, minutes=args.minutes, device=args.device, out=args.out,
                      report=lambda check: print(check, flush=True))  # fmt: skip
    failed = sum(not check.ok for check in checks)
    print(f"{failed} check{'s' * (failed > 1)} failed" if failed else "pass")
    return int(failed > 0)


def diagnose(
    data: str | Path = "playground", *, preset: str = "tiny", minutes: float = 4.0, steps: int | None = None,
    device: str | None = None, out: Path | None = None, seed: int = 0,
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
    from tokenizers_av.video import VideoTokenizer, video_tokenizer_config
    from train import checkup
    from train.loop import LoopConfig
    from train.perceptual import open_perceptual
    from train.presets import CHAINS
    from train.stages import check_out
    from train.video_tokenizer import VideoTokenizerJob
    from train.video_training import VideoTraining

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
    clip, about = checkup.find_clip(data, chain.spec, seed)
    torch.manual_seed(seed)
    model = VideoTokenizer(video_tokenizer_config(chain.video)).to(place)
    training = replace(checkup.OVERFIT, lr=2 * chain.video_training.lr)

    all_losses = replace(chain.video_training, image_share=0.5, soft_share=0.0, adversarial_from=0.0, r1_every=1,
                         adversarial_weight=chain.video_training.adversarial_weight or 0.1)  # fmt: skip

    def job(kind: type[VideoTokenizerJob] = VideoTokenizerJob, training: VideoTraining = training, **more: Any) -> Any:
        source = checkup.OneClip(clip)
        return kind(copy.deepcopy(model), source, source, chain.spec, batch_size=1, seed=seed, training=training,
                    **more)  # fmt: skip

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

    with tempfile.TemporaryDirectory() as folder:
        kept, moved = out or Path(folder) / "model", checkup.shaken(model)
        look("machine", lambda: checkup.check_machine(place))
        look("data", lambda: checkup.check_clip(clip, about))
        look("quantizer", lambda: checkup.check_quantizer(model))
        look("causality", lambda: checkup.check_causality(moved))
        look("streaming", lambda: checkup.check_streaming(moved))
        look("sizes", lambda: checkup.check_sizes(moved))
        look("gradient", lambda: checkup.check_gradient(job(), place))
        look("losses", lambda: checkup.check_losses(
            job(training=all_losses, perceptual=open_perceptual(all_losses.perceptual)), place))  # fmt: skip
        look("checkpoint", lambda: checkup.check_checkpoint(moved, lambda: job(checkup.Crashing), clip, Path(folder)))
        look("overfit", lambda: checkup.check_overfit(job(checkup.Overfit), kept, limit, place))
        if (kept / "config.json").is_file():
            look("codes", lambda: checkup.check_codes(kept, clip, place))
            if out is not None:
                look("picture", lambda: checkup.save_picture(out, clip, place))
        look("memory", lambda: checkup.check_memory(place))
    return checks
