"""How many playground clips a second can be made: `python tests/benchmarks/playground_speed.py [--device cuda]`.

Prints a table and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch

from train.data import MediaSpec
from train.data.playground import Playground

BATCH, RUNS = 32, 7


def measure(device: str) -> dict:
    spec, playground = MediaSpec(), Playground(device=device)
    results = {}
    for name, parts in (("video", {"audio": False}), ("audio", {"video": False}), ("both", {})):
        rates = []
        for run in range(RUNS + 1):
            start = time.perf_counter()
            playground.batch(range(run * BATCH, (run + 1) * BATCH), spec, **parts)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            rates.append(BATCH / (time.perf_counter() - start))
        rates = sorted(rates[1:])  # the first run warms up
        results[name] = {"median": statistics.median(rates), "low": rates[0], "high": rates[-1]}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    machine = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    results = measure(device)
    print(f"playground, 17 frames of 64x64 and 2.125 s at 16 kHz, batch {BATCH}, {device} ({machine}), "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}, {RUNS} runs")  # fmt: skip
    for name, row in results.items():
        print(f"  {name:6s} {row['median']:8.0f} clips/s   ({row['low']:.0f} to {row['high']:.0f})")
    report = {"benchmark": "playground_speed", "device": device, "machine": machine, "batch": BATCH,
              "threads": torch.get_num_threads(), "torch": torch.__version__, "clips_per_second": results}  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
