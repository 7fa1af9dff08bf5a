"""`avpoet-train evaluate MODEL --suite playground|superres`: figures as a table on stdout, the last line as JSON."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.pipeline import AVPoet
    from train.evaluate.report import Report
    from train.evaluate.upscaling import UpscalingReport

EXAMPLE = (
    "avpoet-train evaluate tiny --suite playground --n 50 --only text_to_video --grid grid.png",
    "avpoet-train evaluate tiny --suite superres --n 20 --data clips/ --only decoded",
)
SUITES = ("playground", "superres")
BATCH = 16  # clips of the playground made at once
OF_ONE = {"playground": ("batch_size", "grid"), "superres": ("data", "scale", "against")}  # options of one suite only


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help='"tiny", a model folder, or a hub name owner/name')
    parser.add_argument(
        "--suite", default="playground", choices=SUITES, help="what to measure on (default: playground)"
    )
    parser.add_argument("--n", type=int, default=100, help="clips for each part (default: 100)")
    parser.add_argument("--only", metavar="PART,...", help="reconstruction, sound_reconstruction, long_video, or tasks "
                        "such as text_to_video; superres: clean, decoded, between, thirds (default: all)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the clips and of the drawing of ids (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: an accelerator if there is one)")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the table here, and the JSON beside it")
    parser.add_argument("--batch-size", type=int, help=f"playground: clips made at once (default: {BATCH})")
    parser.add_argument("--grid", type=Path, metavar="FILE.png", help="playground: draw the first clips of each part")
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="DATA",
        help="superres: playground, folders of large videos, video files (default: playground)",
    )
    parser.add_argument("--scale", type=int, choices=(2, 4), help="superres: how much larger (default: 4)")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FOLDER",
        help="superres: a head trained as regression, run in one step without noise",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print, write; raises InputError for what cannot be asked, before any work."""
    from tasks import AVPoet, InputError
    from train.evaluate import suite, upscaling
    from train.evaluate.grid import save_grid

    for name in set(OF_ONE) - {args.suite}:
        if given := [option for option in OF_ONE[name] if getattr(args, option) is not None]:
            raise InputError(f"--{given[0].replace('_', '-')} is an option of --suite {name}")
    parts = list(suite.PARTS if args.suite == "playground" else upscaling.PARTS)
    only = None if args.only is None else [p.strip().replace("-", "_") for p in args.only.split(",") if p.strip()]
    if only is not None and (not only or set(only) - set(parts)):
        raise InputError(f"--only {args.only}: expected some of {', '.join(parts)}, with commas between")
    batch = BATCH if args.batch_size is None else args.batch_size
    if args.n < 1 or batch < 1 or args.seed < 0:
        raise InputError(f"--n {args.n} --batch-size {batch} --seed {args.seed}: "
                         "--n and --batch-size must be at least 1, --seed not negative")  # fmt: skip
    _check_file(args.out, (".md",))
    _check_file(args.grid, (".png",))
    poet = AVPoet.from_pretrained(args.model, device=args.device)
    begun = time.monotonic()
    report: Report | UpscalingReport
    if args.suite == "playground":
        report, shown = suite.playground_suite(
            poet, args.n, args.seed, only=only, batch=batch, progress=True, pictures=12 if args.grid else 0
        )
        report.conditions["batch size"] = batch
    else:
        report, shown = _superres(poet, args, only), []
    report.conditions |= {
        "model": str(args.model),
        "device": str(poet.device),
        "dtype": str(poet.dtype).removeprefix("torch."),
        "seconds": round(time.monotonic() - begun),
        "command": command_line(args),
    }
    table, line = report.markdown(), report.to_json()
    print(table)
    print(line, flush=True)
    if args.out is not None:
        args.out.write_text(table, encoding="utf-8")
        args.out.with_suffix(".json").write_text(line + "\n", encoding="utf-8")
    if args.grid is not None and shown:
        save_grid(shown, args.grid)
    if args.grid is not None and not shown:
        print("no pictures were made, so there is no grid", file=sys.stderr)
    return 0


def _superres(poet: AVPoet, args: argparse.Namespace, only: list[str] | None) -> UpscalingReport:
    from tasks.model_folder import open_superres
    from train.evaluate.upscaling import superres_suite

    against = {} if args.against is None else {"regression": open_superres(args.against)}
    data, scale = args.data or ["playground"], args.scale or 4
    return superres_suite(poet, args.n, args.seed, scale=scale, data=data, only=only, against=against)


def command_line(args: argparse.Namespace) -> str:
    """The command that makes these figures again."""
    words: Sequence[object] = [
        "avpoet-train", "evaluate", args.model, "--suite", args.suite, "--n", args.n, "--seed", args.seed,
        *(["--only", args.only] if args.only else []),
        *(["--data", *args.data] if args.data else []), *(["--scale", args.scale] if args.scale else []),
        *(["--against", args.against] if args.against else []),
        *(["--batch-size", args.batch_size] if args.batch_size else []),
        *(["--device", args.device] if args.device else []),
    ]  # fmt: skip
    return shlex.join(map(str, words))


def _check_file(path: Path | None, suffixes: Sequence[str]) -> None:
    from tasks import InputError

    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{str(path)!r}: expected a name that ends in {' or '.join(suffixes)}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{str(path)!r} cannot be written: its folder does not exist or is not writable")
