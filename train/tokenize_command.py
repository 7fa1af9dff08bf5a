"""`avpoet-train tokenize DATA --out tokens/`: every file of a folder turned into ids, in Parquet shards.

The last line on stdout is a summary as JSON. A run that was stopped goes on with the shards that are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers_av.audio import AudioTokenizer
    from tokenizers_av.video import VideoTokenizer
    from train.data import MediaSpec
    from train.tokenize_shards import Plan, Shard

EXAMPLE = "avpoet-train tokenize videos/ --out tokens/ --workers 4"
PLAYGROUND_CLIPS = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="a folder of media files, one media file, or playground")
    parser.add_argument("--tokenizers", default="tiny", metavar="DIR",
                        help="a model folder, or one that holds video_tokenizer and audio_tokenizer (default: tiny)")
    parser.add_argument("--preset", help="length, size and rate of clips where that folder has no transformer yet: "
                                         "tiny, base, ... (default: tiny)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards of ids")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--n", type=int, metavar="N",
                        help=f"clips of the playground (default: {PLAYGROUND_CLIPS})")  # fmt: skip
    parser.add_argument("--frames", type=int, metavar="N",
                        help="frames of a window (default: twice those of the model, less one)")  # fmt: skip
    parser.add_argument("--size", type=int, metavar="N", help="height and width (default: those of the model)")
    parser.add_argument("--fps", type=float, metavar="N", help="frames per second (default: those of the model, or 8)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="windows at once (default: 16)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: an accelerator if there is one)")


def run(args: argparse.Namespace) -> int:
    """Make the shards that are missing and print a summary; raises InputError for wrong input, before any work."""
    import torch
    from tqdm import tqdm

    from tasks.command import terminate_cleanly
    from train.tokenize_shards import WorkerLost, work_here, work_in_processes
    from train.tokens import check_origin, read_notes, shard_path

    begun = time.monotonic()
    plan, shards, unusable = make_plan(args)
    plan.out.mkdir(parents=True, exist_ok=True)
    check_origin(plan.out, plan.origin)
    missing = [s for s in shards if not shard_path(plan.out, s.kind, s.number).exists()]
    n_workers = min(args.workers, max(1, len(missing)))
    plan = replace(plan, threads=max(1, torch.get_num_threads() // n_workers))
    settings = {
        "data": args.data, "tokenizers": str(plan.tokenizers), "out": str(plan.out), **asdict(plan.spec),
        "batch_size": plan.batch_size, "device": plan.device, "workers": n_workers, "shards": len(shards),
        "missing": len(missing),
    }  # fmt: skip
    print(json.dumps(settings), file=sys.stderr, flush=True)
    for name, reason in unusable:
        print(f"skipped: {name}: {reason}", file=sys.stderr)
    rows, total, to_do = 0, sum(s.size for s in shards), sum(s.size for s in missing)
    with tqdm(total=total, initial=total - to_do, desc="tokenize", file=sys.stderr, mininterval=1,
              bar_format="{desc} {percentage:.0f}% |{bar}| {elapsed}<{remaining} {postfix}") as bar:  # fmt: skip

        def tell(done: float, new_rows: int, message: str | None) -> None:
            nonlocal rows
            rows += new_rows
            if message:
                tqdm.write(message, file=sys.stderr)
            bar.set_postfix_str(f"{rows} windows", refresh=False)
            bar.update(done)

        with terminate_cleanly():
            try:
                if n_workers > 1:
                    work_in_processes(plan, missing, n_workers, tell)
                elif missing:
                    work_here(plan, missing, tell)
            except WorkerLost as error:
                bar.close()
                print(f"avpoet-train: error: {error}; finished shards are kept, the same command goes on from them",
                      file=sys.stderr)  # fmt: skip
                return 1
    notes = [read_notes(shard_path(plan.out, s.kind, s.number)) for s in shards]
    summary = {
        "rows": sum(n for n, _, _ in notes), "files": sum(len(s.files) for s in shards) + len(unusable),
        "skipped": sum(len(skipped) for _, _, skipped in notes) + len(unusable), "shards": len(shards),
        "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip
    if not summary["rows"]:
        print(f"avpoet-train: error: {args.data}: none of its files has a readable picture", file=sys.stderr)
    print(json.dumps(summary), flush=True)
    return 0 if summary["rows"] else 1


def make_plan(args: argparse.Namespace) -> tuple[Plan, list[Shard], list[tuple[str, str]]]:
    """What to make of what, and the files that cannot be used, with reasons; raises InputError."""
    from tasks.errors import InputError
    from tasks.model_folder import find_parts
    from tasks.pipeline import pick_device
    from tokenizers_av.media_formats import AUDIO_SUFFIXES
    from train.data.folder import FolderSource
    from train.stages import check_out
    from train.tokenize_shards import Plan, Shard, cut, list_files, open_tokenizers
    from train.tokens import SHARD, digest, fingerprints, has_parquet

    if not has_parquet():
        raise InputError("tokenize needs pyarrow; pip install 'avpoet[train]'")
    for name in ("workers", "n", "frames", "size", "fps", "batch_size"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} {value}: need a number above 0")
    for name, most in (("frames", 100_001), ("size", 8192), ("fps", 1000)):
        if (getattr(args, name) or 0) > most:
            raise InputError(f"--{name} {getattr(args, name)}: need at most {most}")
    check_out(args.out)
    device = pick_device(args.device)
    folder = find_parts(args.tokenizers, ("video_tokenizer", "audio_tokenizer"))
    media = None if args.data == "playground" else Path(args.data)
    unusable: list[tuple[str, str]] = []
    source: dict[str, Any]
    if media is None:
        n = args.n or PLAYGROUND_CLIPS
        spans = [range(i, min(i + SHARD, n)) for i in range(0, n, SHARD)]
        shards = [Shard("clips", number, clips=span) for number, span in enumerate(spans)]
        source = {"source": "playground", "n_clips": n}
    else:
        if args.n is not None:
            raise InputError(f"--n {args.n}: only the playground has any number of clips; of files all are taken")
        files, caption = list_files(media), FolderSource(media).caption
        unusable = [(name, "has no picture") for name, _ in files if Path(name).suffix.lower() in AUDIO_SUFFIXES]
        shards = cut(files)
        captions = digest({name: text for name, _ in files if (text := caption(name))})
        source = {"source": "files", "files": digest(files), "captions": captions}
    video, audio = open_tokenizers(folder)
    spec, n_window = _spec(folder, args, video, audio)
    n_shards = {kind: sum(s.kind == kind for s in shards) for kind in ("clips", "images")}
    origin = {"spec": asdict(spec), "n_window": n_window, **source, "shards": n_shards, **fingerprints(video, audio)}
    return Plan(media, folder, args.out, spec, n_window, origin, args.batch_size, str(device)), shards, unusable


def _spec(
    folder: Path, args: argparse.Namespace, video: VideoTokenizer, audio: AudioTokenizer
) -> tuple[MediaSpec, int]:
    """Length, size and rate of the windows: as asked, else after the model's or those of a preset, and the frames of
    the model's clips.

    Windows are longer than those, so that a transformer can learn how clips go on. Raises InputError where they are
    impossible.
    """
    from tasks.errors import InputError
    from tasks.model_folder import CONFIG, read_config
    from train.data import MediaSpec
    from train.stages import Options

    if not (folder / CONFIG).is_file():
        preset = Options(preset=args.preset or "tiny").chain.spec
        n_window, size, fps = preset.n_frames, preset.size, preset.fps
    else:
        if args.preset is not None:
            raise InputError(f"--preset {args.preset}: {folder / CONFIG} says how long and how large clips are")
        config = read_config(folder)
        n_window, size, fps = config.layout.n_frames, config.size[0], config.layout.fps
        if args.size is None and config.size[0] != config.size[1]:
            raise InputError(f"the frames of {folder} are not square; give --size")
    n_frames = 2 * n_window - 1
    n_frames, size, fps = args.frames or n_frames, args.size or size, args.fps or fps
    stride = video.temporal_stride
    if extra := (n_frames - 1) % stride:
        raise InputError(f"--frames {n_frames}: need 1 + a multiple of {stride}, such as {n_frames + stride - extra}")
    try:
        spec = MediaSpec(n_frames, size, fps, audio.sample_rate)
    except ValueError as error:
        raise InputError(str(error)) from None
    if spec.n_samples < audio.hop_length:
        raise InputError(f"windows of {spec.seconds:.3g} s are too short for one column of audio ids; "
                         "give more --frames or a lower --fps")  # fmt: skip
    return spec, min(n_window, n_frames)
