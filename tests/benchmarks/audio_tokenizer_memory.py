"""Memory of the audio tokenizer on long sounds: `python tests/benchmarks/audio_tokenizer_memory.py --preset tiny`.

Encodes and decodes 6 minutes and one hour through `encode_stream` and `decode_stream`, fed by a generator one second at
a time, each length in a process of its own, and compares the peaks of resident memory. Weights are random. A table goes
to stdout (x: seconds of sound per second of computing), its last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator

import torch
from audio_peers import conditions
from torch import Tensor
from video_tokenizer_memory import Clocked, peak_mib

from tokenizers_av.audio import AUDIO_PRESETS, AudioTokenizer, audio_tokenizer_config

LIMIT = 0.05  # claimed: the longer sound needs less than this share more


def sound(n: int, sample_rate: int, chunk: int) -> Iterator[Tensor]:
    """A tone that wanders, `n` samples in all: (1, up to `chunk`) in [-1, 1] at a time."""
    for first in range(0, n, chunk):
        t = torch.arange(first, min(first + chunk, n), dtype=torch.float64) / sample_rate
        yield (0.5 * torch.sin(6.2832 * 220 * t + 40 * torch.sin(0.7 * t))).float()[None]


def stream(preset: str, dtype: str, seconds: float, chunk_seconds: float, threads: int) -> dict[str, float]:
    """Encode and decode so many seconds in this process, keeping nothing."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = AudioTokenizer(audio_tokenizer_config(preset)).to(getattr(torch, dtype)).eval()
    rate, hop = model.sample_rate, model.hop_length
    n_samples = round(seconds * rate)
    before = peak_mib()
    source = Clocked(chunk.to(getattr(torch, dtype)) for chunk in sound(n_samples, rate, round(chunk_seconds * rate)))
    with torch.inference_mode():
        encoded = Clocked(model.encode_stream(source))
        decoded = Clocked(model.decode_stream(encoded))
        n_decoded = sum(samples.shape[1] for samples in decoded)
    assert n_decoded == n_samples // hop * hop
    return {
        "seconds": seconds,
        "peak_mib": round(peak_mib(), 1),
        "before_mib": round(before, 1),  # libraries and weights
        "encode_real_time": round(seconds / (encoded.seconds - source.seconds), 1),
        "decode_real_time": round(seconds / (decoded.seconds - encoded.seconds), 1),
        "both_real_time": round(seconds / (decoded.seconds - source.seconds), 1),
    }


def main() -> None:
    """Parse, run each length in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=sorted(AUDIO_PRESETS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, nargs=2, default=[360.0, 3600.0], metavar=("SHORT", "LONG"))
    parser.add_argument("--chunk", type=float, default=1.0, help="seconds the generator gives at a time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(stream(args.preset, args.dtype, args.worker, args.chunk, args.threads)))
        return
    torch.set_num_threads(args.threads)
    settings = {"preset": args.preset, "dtype": args.dtype, "chunk_seconds": args.chunk}
    print(json.dumps({**settings, **conditions()}), flush=True)
    rows = []
    print(f"  {'seconds':>7} {'peak MiB':>9} {'before MiB':>11} {'encode x':>9} {'decode x':>9} {'both x':>9}")
    for seconds in args.seconds:
        again = [sys.executable, *sys.argv, "--worker", str(seconds)]
        row = json.loads(subprocess.run(again, stdout=subprocess.PIPE, check=True).stdout)
        rows.append(row)
        print(f"  {seconds:>7g} {row['peak_mib']:>9} {row['before_mib']:>11} {row['encode_real_time']:>9} "
              f"{row['decode_real_time']:>9} {row['both_real_time']:>9}", flush=True)  # fmt: skip
    short, long = (row["peak_mib"] for row in rows)
    more = long / short - 1
    verdict = "pass" if more < LIMIT else "FAIL"
    longer = args.seconds[1] / args.seconds[0]
    print(f"  {verdict}  {100 * more:+.2f} % at {longer:g} times the length (claimed: < {LIMIT:.0%})")
    print(json.dumps({"benchmark": "audio_tokenizer_memory", **conditions(), **settings, "rows": rows,
                      "difference": round(more, 5), "verdict": verdict}))  # fmt: skip


if __name__ == "__main__":
    main()
