"""Speed of the super-resolution head: `python tests/benchmarks/superres_speed.py tiny`.

One clip of 17 frames of 64x64 to 256x256, in 1, 2, 4 and 8 steps of the sampler, by a trained head in a folder or by a
preset with random weights: the arithmetic is the same. The settings take turns, round after round, so that a drift of
the machine meets all alike. A table goes to stdout, its last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import torch
from video_peers import conditions

from tokenizers_av.superres import STEPS, SUPERRES_PRESETS, SuperRes, superres_config

FRAMES, SIZE, SCALE = 17, 64, 4
CLAIMED, LIMIT = 4, 15.0  # so many steps take at most so many seconds, on two cores in float32


def measure(head: SuperRes, n_rounds: int) -> dict[int, list[float]]:
    """Seconds of enlarging one clip in each round, by the number of steps."""
    dtype = next(head.parameters()).dtype
    video = torch.rand(1, 3, FRAMES, SIZE, SIZE, dtype=dtype) * 2 - 1
    seconds: dict[int, list[float]] = {steps: [] for steps in STEPS}
    for n in range(n_rounds + 1):
        for steps, taken in seconds.items():
            begun = time.perf_counter()
            made = head.upscale(video, SCALE, steps=steps)
            if n:  # the first round warms up
                taken.append(time.perf_counter() - begun)
            assert made.shape == (1, 3, FRAMES, SCALE * SIZE, SCALE * SIZE)
        print(f"  round {n} of {n_rounds}", file=sys.stderr, flush=True)
    return seconds


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "head", nargs="?", default="tiny", help=f"folder or {', '.join(SUPERRES_PRESETS)} (default: tiny)"
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    trained = args.head not in SUPERRES_PRESETS
    head = SuperRes.from_pretrained(args.head) if trained else SuperRes(superres_config(args.head))
    head = head.to(getattr(torch, args.dtype)).eval()
    n_parameters = sum(p.numel() for p in head.parameters())
    settings = {"head": args.head, "parameters": n_parameters, "dtype": args.dtype, "frames": FRAMES, "size": SIZE,
                "scale": SCALE, "batch": 1, "rounds": args.rounds}  # fmt: skip
    print(json.dumps({**settings, **conditions()}), flush=True)
    rows: list[dict[str, Any]] = [
        {"steps": steps, "best": min(taken), "median": statistics.median(taken), "slowest": max(taken)}
        for steps, taken in measure(head, args.rounds).items()
    ]
    print(f"  {'steps':>5} {'best s':>8} {'median s':>9} {'slowest s':>10} {'median fps':>11}")
    for row in rows:
        print(f"  {row['steps']:>5} {row['best']:>8.2f} {row['median']:>9.2f} {row['slowest']:>10.2f} "
              f"{FRAMES / row['median']:>11.2f}")  # fmt: skip
    (taken,) = (row["median"] for row in rows if row["steps"] == CLAIMED)
    verdict = "pass" if taken <= LIMIT else "FAIL"
    print(f"  {verdict}  {taken:.2f} s in {CLAIMED} steps (claimed: at most {LIMIT:g} s on 2 cores)")
    print(json.dumps({"benchmark": "superres_speed", **conditions(), **settings, "rows": rows, "verdict": verdict}))


if __name__ == "__main__":
    main()
