"""Speed of the video tokenizer beside public ones: `python tests/benchmarks/video_tokenizer_speed.py`.

One clip of 17 frames of 128x128 to ids of 18 bits (4x8x8 compression) and back, at equal parameters (+-10 %) and equal
dtype, on the CPU. Each model runs in the fastest of its modes (memory layout, bfloat16 weights or autocast), found
first and said. Then all take turns, round after round, so that a drift of the machine meets all alike. Weights are
random: the arithmetic is the same. A table goes to stdout, its last line is one JSON object. `video_peers` says which
peers there are and how they are built.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor
from video_peers import MODES, Contestant, Mode, Ours, build_peers, conditions, describe, ours_of_size

BITS, FRAMES, SIZE = 18, 17, 128
PEERS = ("magvit2-pytorch", "magvit2-pytorch-paper", "vidtok", "cosmos")
PARTS = ("encode", "decode", "both")
DTYPES = ("fp32", "bf16")


def measure(contestant: Contestant, mode: Mode, video: Tensor) -> dict[str, float]:
    """Seconds of encoding and decoding one clip (1, 3, T, H, W), ids between them."""
    video = mode.video(video)
    with torch.no_grad(), mode.context():
        begun = time.perf_counter()
        ids = contestant.encode(video)
        encoded = time.perf_counter()
        again = contestant.decode(ids)
        decoded = time.perf_counter()
    assert again.shape == video.shape and ids.shape[-3:] == (5, SIZE // 8, SIZE // 8)
    return {"encode": encoded - begun, "decode": decoded - encoded, "both": decoded - begun}


def fastest_modes(contestant: Contestant, video: Tensor, n_trials: int) -> dict[str, tuple[Mode, Contestant]]:
    """For each dtype the mode in which the contestant encodes and decodes fastest, and the contestant in it."""
    best: dict[str, tuple[float, Mode, Contestant]] = {}
    for mode in MODES:
        made = mode.apply(contestant)
        made.model.eval()
        try:
            measure(made, mode, video)  # warm-up
        except NotImplementedError as error:  # an operation without a kernel for the type
            print(f"  {contestant.name:<22} {mode.name:<24} {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            continue
        seconds = min(measure(made, mode, video)["both"] for _ in range(n_trials))
        print(f"  {contestant.name:<22} {mode.name:<24} {seconds:7.3f} s", file=sys.stderr, flush=True)
        if mode.dtype not in best or seconds < best[mode.dtype][0]:
            best[mode.dtype] = (seconds, mode, made)
    return {dtype: (mode, made) for dtype, (_, mode, made) in best.items()}


def summary(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, fastest and slowest of each part, in seconds."""
    return {
        part: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for part in PARTS
        for values in [[run[part] for run in runs]]
    }


def benchmark(size: str, n_rounds: int, n_trials: int) -> dict[str, Any]:
    """All models of one size; prints their table and returns its figures."""
    ours = Ours(ours_of_size(size, bits=BITS))
    contestants = [ours, *build_peers(ours.n_parameters, bits=BITS, size=SIZE, only=PEERS)]
    print(f"\n{size}\n{describe(contestants)}")
    video = torch.rand(1, 3, FRAMES, SIZE, SIZE) * 2 - 1
    entries = {
        (contestant.name, dtype): entry
        for contestant in contestants
        for dtype, entry in fastest_modes(contestant, video, n_trials).items()
    }
    runs: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in entries}
    for n in range(n_rounds + 1):
        for key, (mode, made) in entries.items():
            run = measure(made, mode, video)
            if n:  # the first round warms up
                runs[key].append(run)
        print(f"  round {n} of {n_rounds}", file=sys.stderr, flush=True)
    rows = [
        {"model": name, "dtype": dtype, "mode": entries[name, dtype][0].name, **summary(runs[name, dtype])}
        for dtype in DTYPES
        for name, there in entries
        if there == dtype
    ]
    print(f"  {'model':<22} {'dtype':<5} {'its fastest mode':<22} {'encode s':>20} {'decode s':>20} {'both s':>20}")
    for row in rows:
        cells = "".join(f" {row[p]['median']:7.3f} ({row[p]['low']:.2f}-{row[p]['high']:.2f})".rjust(21) for p in PARTS)
        print(f"  {row['model']:<22} {row['dtype']:<5} {row['mode']:<22}{cells}")
    parameters = {c.name: c.n_parameters for c in contestants}
    continuous = {c.name for c in contestants if not c.discrete}
    return {"params": size, "parameters": parameters, "rows": rows, "claims": claims(rows, continuous)}


def claims(rows: list[dict[str, Any]], continuous: set[str]) -> list[dict[str, Any]]:
    """What is claimed, against these rows; printed, and returned with the ratios. Peers that give no ids (`continuous`)
    do the arithmetic of a tokenizer without being one: they are compared with, and no claim is made."""
    found = []

    def check(claim: str, part: str, other: dict[str, Any], ours: dict[str, Any], least: float | None) -> None:
        ratio = other[part]["median"] / ours[part]["median"]
        verdict = "info" if least is None else "pass" if ratio >= least else "FAIL"
        against = f"{other['model']} ({other['mode']})"
        print(f"  {verdict}  {claim}, {part}: {ratio:.2f} times as fast as {against}")
        found.append({"claim": claim, "part": part, "against": against, "ratio": round(ratio, 3), "verdict": verdict})

    def fastest(part: str, among: list[dict[str, Any]]) -> dict[str, Any]:
        return min(among, key=lambda row: row[part]["median"])

    for dtype in DTYPES:
        ours, *peers = [row for row in rows if row["dtype"] == dtype]
        for claim, least, among in (
            (f"at least 2x the fastest peer, {dtype}", 2.0, [r for r in peers if r["model"] not in continuous]),
            (f"beside a continuous autoencoder, {dtype}", None, [r for r in peers if r["model"] in continuous]),
        ):
            for part in PARTS if among else ():
                check(claim, part, fastest(part, among), ours, least)
    for name in dict.fromkeys(row["model"] for row in rows if row["model"].startswith("magvit2-pytorch")):
        for part in PARTS:
            theirs, mine = (fastest(part, [r for r in rows if r["model"] == n]) for n in (name, "ours"))
            check("at least 6x magvit2-pytorch, each in its fastest mode", part, theirs, mine, 6.0)
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", nargs="+", default=["tiny", "fast", "35M"], help="presets, or parameters: 35M")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trials", type=int, default=5, help="runs of every mode to find the fastest")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    report = {"benchmark": "video_tokenizer_speed", **conditions(), "frames": FRAMES, "size": SIZE, "bits": BITS,
              "compression": "4x8x8", "batch": 1, "rounds": args.rounds}  # fmt: skip
    print(json.dumps(report))
    report["sizes"] = [benchmark(size, args.rounds, args.trials) for size in args.params]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
