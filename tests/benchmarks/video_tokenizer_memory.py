"""Memory of the video tokenizer on long videos: `python tests/benchmarks/video_tokenizer_memory.py --preset tiny`.

Encodes and decodes 600 and 6,000 frames of 128x128 through `encode_stream` and `decode_stream`, fed by a generator,
each length in a process of its own, and compares the peaks of resident memory. Weights are random. A table goes to
stdout, its last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from video_peers import conditions

from tokenizers_av.video import VideoTokenizer, video_tokenizer_config

LIMIT = 0.05  # claimed: the longer video needs at most this share more


def peak_mib() -> float:
    """The most resident memory this process has had."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def frames(n: int, size: int, chunk: int) -> Iterator[Tensor]:
    """A wave that travels: (1, 3, up to `chunk`, size, size) in [-1, 1] at a time."""
    at = torch.arange(size) / size
    for first in range(0, n, chunk):
        t = torch.arange(first, min(first + chunk, n)).view(-1, 1, 1) / 16
        plane = torch.stack([torch.sin(6.28 * (k * at + at[:, None] + t)) for k in (1, 2, 3)])
        yield plane[None]


class Clocked:
    """An iterator that knows how many seconds its items took."""

    def __init__(self, items: Iterator[Tensor]) -> None:
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        begun = time.perf_counter()
        try:
            return next(self.items)
        finally:
            self.seconds += time.perf_counter() - begun


def stream(preset: str, dtype: str, n_frames: int, size: int, chunk: int, threads: int) -> dict[str, float]:
    """Encode and decode `n_frames` in this process, keeping nothing."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = VideoTokenizer(video_tokenizer_config(preset)).to(getattr(torch, dtype)).eval()
    before = peak_mib()
    source = Clocked(frames(n_frames, size, chunk))
    encoded = Clocked(model.encode_stream(source))
    decoded = Clocked(model.decode_stream(encoded))
    n_decoded = sum(video.shape[2] for video in decoded)
    assert n_decoded >= n_frames
    return {
        "frames": n_frames,
        "peak_mib": round(peak_mib(), 1),
        "before_mib": round(before, 1),  # libraries and weights
        "encode_fps": round(n_frames / (encoded.seconds - source.seconds), 2),
        "decode_fps": round(n_frames / (decoded.seconds - encoded.seconds), 2),
    }


def main() -> None:
    """Parse, run each length in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--frames", type=int, nargs=2, default=[600, 6000], metavar=("SHORT", "LONG"))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=16, help="frames the generator gives at a time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(stream(args.preset, args.dtype, args.worker, args.size, args.chunk, args.threads)))
        return
    torch.set_num_threads(args.threads)
    settings = {"preset": args.preset, "dtype": args.dtype, "size": args.size, "chunk": args.chunk}
    print(json.dumps({**settings, **conditions()}), flush=True)
    rows = []
    print(f"  {'frames':>7} {'peak MiB':>9} {'before MiB':>11} {'encode fps':>11} {'decode fps':>11}")
    for n in args.frames:
        again = [sys.executable, *sys.argv, "--worker", str(n)]
        row = json.loads(subprocess.run(again, stdout=subprocess.PIPE, check=True).stdout)
        rows.append(row)
        print(f"  {n:>7} {row['peak_mib']:>9} {row['before_mib']:>11} {row['encode_fps']:>11} {row['decode_fps']:>11}",
              flush=True)  # fmt: skip
    short, long = (row["peak_mib"] for row in rows)
    more = long / short - 1
    verdict = "pass" if more < LIMIT else "FAIL"
    longer = args.frames[1] / args.frames[0]
    print(f"  {verdict}  {100 * more:+.2f} % at {longer:g} times the length (claimed: < {LIMIT:.0%})")
    print(json.dumps({"benchmark": "video_tokenizer_memory", **conditions(), **settings, "rows": rows,
                      "difference": round(more, 5), "verdict": verdict}))  # fmt: skip


if __name__ == "__main__":
    main()
