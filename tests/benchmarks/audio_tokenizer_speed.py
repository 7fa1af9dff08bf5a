"""Speed of the audio tokenizer beside public codecs: `python tests/benchmarks/audio_tokenizer_speed.py --preset base`.

Some seconds of sound, one clip, to ids and back at equal parameters (+-10 %) and equal dtype, on the CPU. Each model
runs in the fastest of its modes (memory layout, bfloat16 weights or autocast), found first and said; a mode counts as
bf16 if at least 90 % of its multiplications are. Then all take turns, round after round, so that a drift of the machine
meets all alike. Last, ours alone hop by hop, as in a conversation: one hop through `encode_stream`, its ids through
`decode_stream`. Weights are random: the arithmetic is the same. A table goes to stdout, its last line is one JSON
object. `audio_peers` says how the others are built.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from audio_peers import Codec, Ours, bf16_share, build_peers, conditions
from torch import Tensor
from video_peers import Mode, describe
from video_tokenizer_memory import Clocked
from video_tokenizer_speed import DTYPES, PARTS, summary

from tokenizers_av.audio import AUDIO_PRESETS, audio_tokenizer_config

PEERS = ("encodec", "dac")
TIMES_AS_FAST = 1.5  # claimed: than each peer, encoding and decoding
HOP_MS = {"base": 5.0}  # claimed: less for one hop, encoding and decoding
LEAST_BF16 = 0.9  # share of the multiplications
WARM_UP_HOPS = 25


def measure(codec: Codec, mode: Mode, samples: Tensor) -> dict[str, float]:
    """Seconds of encoding and decoding samples (B, N), ids between them."""
    samples = samples.to(mode.weights)
    with torch.inference_mode(), mode.context():
        begun = time.perf_counter()
        ids = codec.encode(samples)
        encoded = time.perf_counter()
        again = codec.decode(ids)
        decoded = time.perf_counter()
    hop = samples.shape[1] // ids.shape[2]
    assert samples.shape[1] - hop < again.shape[1] <= samples.shape[1] and not ids.is_floating_point()
    return {"encode": encoded - begun, "decode": decoded - encoded, "both": decoded - begun}


def bf16_of(codec: Codec, mode: Mode, samples: Tensor) -> float:
    """Share of the multiplications that are in bfloat16; warms up, too."""
    # not in inference mode, where layers reach the counter before they are taken apart into what it knows
    with torch.no_grad(), mode.context(), bf16_share() as share:
        codec.decode(codec.encode(samples.to(mode.weights)))
    return share()


def fastest_modes(codec: Codec, samples: Tensor, n_trials: int) -> dict[str, tuple[Mode, Codec, float]]:
    """For each dtype the mode in which the codec encodes and decodes fastest, the codec in it, its share of bf16."""
    best: dict[str, tuple[float, Mode, Codec, float]] = {}
    for mode in codec.modes:
        made = codec.in_mode(mode)
        try:
            share = bf16_of(made, mode, samples)
            seconds = min(measure(made, mode, samples)["both"] for _ in range(n_trials))
        except RuntimeError as error:  # an operation without a kernel for the type
            print(f"  {codec.name:<10} {mode.name:<24} {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            continue
        note = f"{seconds:7.3f} s, {share:.0%} of the multiplications in bf16"
        print(f"  {codec.name:<10} {mode.name:<24} {note}", file=sys.stderr, flush=True)
        if mode.dtype == "bf16" and share < LEAST_BF16:
            continue
        if mode.dtype not in best or seconds < best[mode.dtype][0]:
            best[mode.dtype] = (seconds, mode, made, share)
    missing = [dtype for dtype in DTYPES if dtype not in best]
    if missing:
        raise RuntimeError(f"{codec.name} runs in no mode of {', '.join(missing)}")
    return {dtype: (mode, made, share) for dtype, (_, mode, made, share) in best.items()}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median, 95th percentile and slowest, in milliseconds."""
    ms = sorted(1000 * s for s in seconds)
    return {"median": statistics.median(ms), "p95": ms[-(-95 * len(ms) // 100) - 1], "high": ms[-1]}


def hop_by_hop(codec: Codec, mode: Mode, n_hops: int) -> dict[str, Any]:
    """Milliseconds that one hop takes through `encode_stream`, `decode_stream` and both.

    Every hop gives its samples before the next is fed: the algorithmic latency is one hop, and asserted here."""
    config = codec.model.config
    hops = (torch.rand(WARM_UP_HOPS + n_hops, 1, config.hop_length) * 2 - 1).to(mode.weights)
    n_fed = 0

    def feed() -> Iterator[Tensor]:
        nonlocal n_fed
        for hop in hops:
            n_fed += 1
            yield hop

    times: dict[str, list[float]] = {part: [] for part in PARTS}
    with torch.inference_mode(), mode.context():
        encoded = Clocked(codec.model.encode_stream(feed()))
        decoded = codec.model.decode_stream(encoded)
        for n in range(len(hops)):
            before = encoded.seconds
            begun = time.perf_counter()
            samples = next(decoded)
            both = time.perf_counter() - begun
            assert n_fed == n + 1 and samples.shape == (1, config.hop_length)
            for part, seconds in (("encode", encoded.seconds - before), ("both", both)):
                times[part].append(seconds)
            times["decode"].append(both - times["encode"][-1])
    hop_ms = 1000 * config.hop_length / config.sample_rate
    found: dict[str, Any] = {part: percentiles(values[WARM_UP_HOPS:]) for part, values in times.items()}
    return {**found, "latency_ms": hop_ms, "real_time_factor": hop_ms / found["both"]["median"]}


def benchmark(preset: str, seconds: float, n_rounds: int, n_trials: int, n_hops: int) -> dict[str, Any]:
    """All codecs at one size; prints their tables and returns their figures."""
    config = audio_tokenizer_config(preset)
    ours = Ours(config)
    contestants: list[Codec] = [ours, *build_peers(ours.n_parameters, config, PEERS)]
    n_frames = max(1, round(seconds * config.frame_rate))
    samples = torch.rand(1, n_frames * config.hop_length) * 2 - 1
    seconds = samples.shape[1] / config.sample_rate
    codes = f"{config.n_codebooks} x {config.codebook_size} codes"
    print(f"\n{preset}: {seconds:g} s at {config.sample_rate} Hz, hop {config.hop_length}, {codes}")
    print(describe(contestants), flush=True)
    entries = {
        (codec.name, dtype): entry
        for codec in contestants
        for dtype, entry in fastest_modes(codec, samples, n_trials).items()
    }
    runs: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in entries}
    for n in range(n_rounds + 1):
        for key, (mode, made, _) in entries.items():
            run = measure(made, mode, samples)
            if n:  # the first round warms up
                runs[key].append(run)
        print(f"  round {n} of {n_rounds}", file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = []
    print(f"  {'model':<8} {'dtype':<5} {'its fastest mode':<23} {'bf16':>4} {'encode s':>20} {'decode s':>20} "
          f"{'both s':>20} {'real time':>10}")  # fmt: skip
    for dtype in DTYPES:
        for (name, there), (mode, _, share) in entries.items():
            if there != dtype:
                continue
            found = summary(runs[name, dtype])
            factor = seconds / found["both"]["median"]
            rows.append({"model": name, "dtype": dtype, "mode": mode.name, "bf16_share": round(share, 4), **found,
                         "real_time_factor": round(factor, 2)})  # fmt: skip
            cells = "".join(f" {found[p]['median']:6.3f} ({found[p]['low']:.3f}-{found[p]['high']:.3f})".rjust(21)
                            for p in PARTS)  # fmt: skip
            print(f"  {name:<8} {dtype:<5} {mode.name:<23} {share:>4.0%}{cells} {factor:>8.1f} x")
    streams = [
        {"dtype": mode.dtype, "mode": mode.name, **hop_by_hop(ours.in_mode(mode), mode, n_hops)}
        for mode in ours.modes
    ]
    print(f"  {'hop by hop':<14} {'encode ms':>14} {'decode ms':>14} {'both ms':>14} {'slowest':>8} {'real time':>10}"
          f"   median / 95th percentile of {n_hops} hops, latency {streams[0]['latency_ms']:g} ms")  # fmt: skip
    for row in streams:
        cells = "".join(f" {row[p]['median']:6.2f} /{row[p]['p95']:6.2f}" for p in PARTS)
        print(f"  ours {row['dtype']:<9}{cells} {row['both']['high']:>8.2f} {row['real_time_factor']:>8.1f} x")
    return {
        "preset": preset,
        "seconds": seconds,
        "parameters": {c.name: c.n_parameters for c in contestants},
        "rows": rows,
        "streams": streams,
        "claims": [*claims(rows), *stream_claims(preset, streams)],
    }


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours against each peer at equal dtype; printed, and returned with the ratios. Encoding and decoding are claimed
    together; each alone is told."""
    found = []
    for dtype in DTYPES:
        ours, *peers = [row for row in rows if row["dtype"] == dtype]
        for peer in peers:
            for part in reversed(PARTS):
                ratio = peer[part]["median"] / ours[part]["median"]
                verdict = "info" if part != "both" else "pass" if ratio >= TIMES_AS_FAST else "FAIL"
                claim = f"at least {TIMES_AS_FAST}x {peer['model']}, {dtype}"
                print(f"  {verdict}  {claim}, {part}: {ratio:.2f} times as fast as {peer['mode']}")
                found.append({"claim": claim, "part": part, "ratio": round(ratio, 3), "verdict": verdict})
    return found


def stream_claims(preset: str, streams: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds a hop against what is claimed for the preset; printed and returned."""
    found = []
    limit = HOP_MS.get(preset)
    for row in streams:
        for which, name in (("median", "median"), ("p95", "95th percentile")):
            ms = row["both"][which]
            verdict = "info" if limit is None else "pass" if ms < limit else "FAIL"
            claim = f"one hop, both ways{'' if limit is None else f', in less than {limit:g} ms'}, {row['dtype']}"
            print(f"  {verdict}  {claim}, {name}: {ms:.2f} ms")
            found.append({"claim": claim, "part": which, "ms": round(ms, 3), "verdict": verdict})
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=["base", "tiny"], choices=sorted(AUDIO_PRESETS))
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clip")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trials", type=int, default=2, help="runs of every mode to find the fastest")
    parser.add_argument("--hops", type=int, default=500, help="hops streamed one by one")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    report = {"benchmark": "audio_tokenizer_speed", **conditions(), "batch": 1, "rounds": args.rounds}
    report["hops"] = args.hops
    print(json.dumps(report))
    report["presets"] = [benchmark(p, args.seconds, args.rounds, args.trials, args.hops) for p in args.preset]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
