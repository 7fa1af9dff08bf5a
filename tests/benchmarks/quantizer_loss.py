"""Cost of quantizing with its losses, forward and backward: `python tests/benchmarks/quantizer_loss.py --bits 18`.

Seeded normal latents (tokens, dim); every quantizer in a fresh process. Memory is what one step adds at its peak to the
resident memory of the process (read from /proc, so Linux only), on CUDA to what is allocated. `--library` adds
vector_quantize_pytorch.LFQ with its entropy on a tenth of the tokens; at 18 bits that takes seconds and gigabytes.
The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor


def loss_function(name: str, group: int, args: argparse.Namespace) -> tuple[Callable[[Tensor], Tensor], int]:
    """A function from latents to the sum of codes and losses, and the number of latent channels."""
    if name == "library":
        import vector_quantize_pytorch as vq

        library = vq.LFQ(dim=args.bits, commitment_loss_weight=1.0, frac_per_sample_entropy=0.1).to(args.device)

        def with_library(z: Tensor) -> Tensor:
            z_q, _, loss = library(z[None])
            return z_q.sum() + loss

        return with_library, args.bits
    from tokenizers_av.video.quantizer import make_quantizer

    config = SimpleNamespace(quantizer=name, bits=args.bits, entropy_group=group)
    quantizer = make_quantizer(config).to(args.device)

    def ours(z: Tensor) -> Tensor:
        quantized = quantizer(z)
        return quantized.z_q.sum() + quantized.entropy_loss + quantized.commitment_loss

    return ours, quantizer.dim


def resident(key: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS now, VmHWM the highest since its last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure(name: str, group: int, args: argparse.Namespace) -> dict:
    """Median and spread of the milliseconds of one step, and its peak memory."""
    torch.manual_seed(0)
    function, dim = loss_function(name, group, args)
    cuda = torch.device(args.device).type == "cuda"

    def step(z: Tensor) -> float:
        start = time.perf_counter()
        function(z).backward()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    step(torch.randn(10, dim, device=args.device, requires_grad=True))  # start threads and libraries
    z = torch.randn(args.tokens, dim, device=args.device, requires_grad=True)
    z.grad = torch.zeros_like(z)
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(z)
        peak = torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        step(z)
        peak = resident("VmHWM") - before
    runs = 3 if name == "library" else args.runs
    times = [step(z) for _ in range(runs)]
    return {
        "quantizer": "library lfq, 0.1" if name == "library" else name,
        "entropy_group": group,
        "ms": round(1e3 * statistics.median(times), 2),
        "ms_spread": [round(1e3 * min(times), 2), round(1e3 * max(times), 2)],
        "runs": runs,
        "peak_memory_mib": round(peak / 2**20, 1),
    }


def main() -> None:
    """Parse, measure, print."""
    from video_peers import conditions  # not in the processes that measure

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=18)
    parser.add_argument("--tokens", type=int, default=1280)
    parser.add_argument("--groups", type=int, nargs="+", default=[6, 9, 18], help="entropy groups of lfq")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--library", action="store_true")
    args = parser.parse_args()
    jobs = [("lfq", g) for g in args.groups] + [("bsq", args.groups[0]), ("fsq", 0)]
    if args.library:
        jobs.append(("library", args.bits))
    rows = []
    for job in jobs:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (*job, args)))
    print(f"{'quantizer':<18}{'group':>6}{'ms':>10}{'from':>10}{'to':>10}{'peak MiB':>10}")
    for r in rows:
        low, high = r["ms_spread"]
        times = f"{r['ms']:>10}{low:>10}{high:>10}"
        print(f"{r['quantizer']:<18}{r['entropy_group'] or '-':>6}{times}{r['peak_memory_mib']:>10}")
    result = {
        **conditions(), "device": torch.cuda.get_device_name() if torch.device(args.device).type == "cuda" else "cpu",
        "bits": args.bits, "tokens": args.tokens, "dtype": "float32", "rows": rows,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
