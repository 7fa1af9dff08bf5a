"""Cost of the loss over a large visual vocabulary: `python tests/benchmarks/lm_loss.py --dims 256 1024`.

Loss and backward pass of random hidden states (positions, dim) under random visual ids, without the transformer below.
  plain       F.cross_entropy(hidden @ weight.T) over the whole vocabulary;
  ours        the loss of `LM` over the visual range, z-loss included;
  factorised  the same where the range is two factors with a chained head.
Each in a process of its own, with float32 weights; bfloat16 is autocast. Memory is what one step adds at its peak to
the resident memory of the process, gradients included, which are told apart (read from /proc, so Linux only). Beside
the time of the clock stands that of the processor: less of it says that something else ran. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from audio_peers import conditions
from quantizer_loss import resident

from lm import LM, Vocabulary, lm_config

WAYS = ("plain", "ours", "factorised")
LIMIT_MB = 400  # claimed: what ours needs beside the gradients of the weights, at 2,048 positions


def measure(way: str, dim: int, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time and peak memory of a step in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)

    def model_of(bits: int) -> LM:
        half = 2 ** (bits // 2)
        factors = (half, 2**bits // half) if way == "factorised" else ()
        vocabulary = Vocabulary.build((), 2**bits, (1024,) * 4, 512, factors)
        return LM(lm_config("debug", vocabulary, dim=dim, n_layers=1))

    def step(model: LM, positions: int) -> tuple[float, float, float]:
        visual = model.vocabulary["visual"]
        hidden = torch.randn(1, positions + 1, dim, requires_grad=True)
        labels = torch.randint(visual.start, visual.stop, (1, positions + 1))
        model.zero_grad(set_to_none=True)
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            if way == "plain":
                logits = hidden[0, :-1] @ model.head_weight.T
                total = F.cross_entropy(logits, labels[0, 1:])
            else:
                total = model.loss(hidden, labels).total
        total.backward()
        return time.perf_counter() - wall, time.process_time() - cpu, float(total.detach())

    model = model_of(args.bits)
    step(model_of(10), 300)  # starts threads and libraries, which would count as memory of the first step
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step(model, args.positions)
    peak = resident("VmHWM") - before
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    times = [step(model, args.positions) for _ in range(args.runs)]
    return {
        "way": way, "dim": dim, "dtype": dtype,
        "ms": round(1e3 * statistics.median(t[0] for t in times)),
        "ms_spread": [round(1e3 * f(t[0] for t in times)) for f in (min, max)],
        "cpu_ms": round(1e3 * statistics.median(t[1] for t in times)),
        "peak_mb": round(peak / 1e6, 1), "gradients_mb": round(gradients / 1e6, 1),
        "loss": round(times[0][2], 3),
    }  # fmt: skip


def main() -> None:
    """Parse, run each way in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=18, help="of the visual ids")
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        way, dim, dtype = args.worker
        print(json.dumps(measure(way, int(dim), dtype, args)))
        return
    rows = []
    print(f"{'dim':>5} {'dtype':<9} {'way':<11} {'ms':>7} {'from':>7} {'to':>7} {'cpu ms':>7} {'peak MB':>8} "
          f"{'of it gradients':>16} {'loss':>7}", flush=True)  # fmt: skip
    for dim in args.dims:
        for dtype in args.dtypes:
            for way in args.ways:
                again = [sys.executable, *sys.argv, "--worker", way, str(dim), dtype]
                r = json.loads(subprocess.run(again, stdout=subprocess.PIPE, check=True).stdout)
                rows.append(r)
                low, high = r["ms_spread"]
                beside = r["peak_mb"] - r["gradients_mb"]
                r["verdict"] = "" if way != "ours" else "pass" if beside <= LIMIT_MB else "FAIL"
                print(f"{dim:>5} {dtype:<9} {way:<11} {r['ms']:>7} {low:>7} {high:>7} {r['cpu_ms']:>7} "
                      f"{r['peak_mb']:>8} {r['gradients_mb']:>16} {r['loss']:>7} {r['verdict']}".rstrip(), flush=True)
    torch.set_num_threads(args.threads)
    print(json.dumps({"benchmark": "lm_loss", **conditions(), "bits": args.bits, "positions": args.positions,
                      "runs": args.runs, "rows": rows}))  # fmt: skip


if __name__ == "__main__":
    main()
