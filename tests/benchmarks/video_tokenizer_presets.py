"""Parameters, memory and time of each preset of the video tokenizer: one clip of 17 frames of 128x128 pixels.

    python tests/benchmarks/video_tokenizer_presets.py --presets tiny base

Random weights; encode + decode, and one training step (forward, backward; no optimizer). Each preset runs in a process
of its own, so that its peak memory is its own; that of torch itself is in it. A table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from video_peers import conditions

from tokenizers_av.video import VIDEO_PRESETS, VideoTokenizer, video_tokenizer_config


def measure(preset: str, dtype: torch.dtype, threads: int, runs: int) -> dict[str, float | str]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = VideoTokenizer(video_tokenizer_config(preset)).to(dtype)
    video = (torch.rand(1, 3, 17, 128, 128) * 2 - 1).to(dtype)

    def median(run) -> float:
        times = []
        for i in range(runs + 1):  # the first is a warm-up
            begun = time.perf_counter()
            run()
            times += [time.perf_counter() - begun] if i else []
        return statistics.median(times)

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def step() -> None:
        output = model(video)
        (output.video - video).square().mean().backward()

    result: dict[str, float | str] = {
        "preset": preset,
        "million parameters": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
        "codes": model.codebook_size,
        "encode + decode, s": round(median(lambda: model.reconstruct(video)), 3),
    }
    result["peak, GiB"] = round(peak(), 2)
    result["forward + backward, s"] = round(median(step), 3)
    result["peak in training, GiB"] = round(peak(), 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "fast", "base", "large"], choices=tuple(VIDEO_PRESETS))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        print(json.dumps(measure(args.presets[0], getattr(torch, args.dtype), args.threads, args.runs)))
        return
    rows = []
    for preset in args.presets:
        command = [sys.executable, __file__, "--presets", preset, "--dtype", args.dtype,
                   "--threads", str(args.threads), "--runs", str(args.runs), "--in-process"]  # fmt: skip
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(found.stdout.splitlines()[-1]))
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + " --- |" * len(rows[0]))
    for row in rows:
        cells = (f"{value:,}" if isinstance(value, int) else str(value) for value in row.values())
        print("| " + " | ".join(cells) + " |")
    torch.set_num_threads(args.threads)
    print(json.dumps({"rows": rows, **conditions(), "dtype": args.dtype, "runs": args.runs}))


if __name__ == "__main__":
    main()
