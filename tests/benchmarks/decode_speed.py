"""Decoding speed of the transformer: `python tests/benchmarks/decode_speed.py --preset tiny --dtype bfloat16`.

Runs seeded random weights under a plan of visual and audio ids; prefill and steps are timed apart. The table goes to
stdout, its last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time

import torch

from lm import LM, Plan, Prefix, Sampling, Vocabulary, generate_stream, lm_config


def synchronize(device: str) -> None:
    """Wait for the device before a clock is read."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(
    model: LM, batch: int, n_ids: int, guidance: float, sampling: Sampling, dtype: torch.dtype
) -> tuple[float, list[float]]:
    """Seconds of prefill with the first id, and of each further step."""
    device = model.embed.weight.device.type
    visual, audio = model.vocabulary["visual"], model.vocabulary["audio_0"]
    n_visual = n_ids * 3 // 4
    ranges = [visual] * n_visual + [audio] * (n_ids - n_visual)
    positions = torch.stack([torch.arange(n_ids).float(), torch.zeros(n_ids), torch.zeros(n_ids)], dim=1)
    plan = Plan(torch.tensor([r.start for r in ranges]), torch.tensor([r.stop for r in ranges]), positions)
    prefix = Prefix([torch.arange(24)] * batch, [torch.zeros(24, 3)] * batch)
    bare = Prefix([torch.arange(2)] * batch, [torch.zeros(2, 3)] * batch)
    synchronize(device)
    times = [time.perf_counter()]
    how = {"visual": sampling, "audio": sampling}
    for _ in generate_stream(
        model, prefix, plan, unconditional=bare, guidance_scale=guidance, sampling=how, seeds=range(batch), dtype=dtype
    ):
        synchronize(device)
        times.append(time.perf_counter())
    return times[1] - times[0], [b - a for a, b in itertools.pairwise(times[1:])]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--ids", type=int, default=750)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    vocabulary = Vocabulary.build((), 4096 if args.preset in ("debug", "tiny") else 2**18, (1024,) * 4, 512)
    model = LM(lm_config(args.preset, vocabulary)).to(args.device, dtype)
    sampling = Sampling(top_k=args.top_k, top_p=args.top_p)
    measure(model, args.batch, 16, args.guidance, sampling, dtype)
    runs = [measure(model, args.batch, args.ids, args.guidance, sampling, dtype) for _ in range(args.runs)]
    steps = [1e3 * statistics.median(s) for _, s in runs]
    result = {
        "preset": args.preset, "parameters": model.n_parameters(), "device": args.device, "dtype": args.dtype,
        "batch": args.batch, "rows": args.batch * (1 if args.guidance == 1 else 2), "ids": args.ids,
        "top_k": args.top_k, "top_p": args.top_p, "threads": torch.get_num_threads(), "cores": os.cpu_count(),
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "prefill_ms": round(1e3 * statistics.median(p for p, _ in runs), 2),
        "step_ms": round(statistics.median(steps), 3),
        "step_ms_spread": [round(min(steps), 3), round(max(steps), 3)],
        "ids_per_second": round(args.batch * args.ids / statistics.median(p + sum(s) for p, s in runs), 1),
    }  # fmt: skip
    if args.device == "cuda":
        result["peak_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
    for key, value in result.items():
        print(f"{key:<16} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
