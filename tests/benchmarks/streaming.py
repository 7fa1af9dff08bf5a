"""How long one waits for the first frame of a stream, beside the whole clip.

    python tests/benchmarks/streaming.py [--model tiny] [--rounds 3] [--speculative 16]

Seconds from the call to the first new frames and to the end, the median of the rounds, of a loaded model. The streamed
frames must be those of the call that returns the whole clip.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tasks import AVPoet
from tokenizers_av.clip import Clip

PROMPT = "a red ball bounces on a wooden floor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speculative", type=int, default=0)
    args = parser.parse_args()
    poet = AVPoet.from_pretrained(args.model)
    drafts = {"speculative": args.speculative}
    clip = poet.text_to_video(PROMPT, seed=0, **drafts)
    ways: dict[str, tuple[Callable[..., Iterator[Clip]], Callable[..., Clip], tuple[Any, ...], int]] = {
        "text_to_video": (poet.stream.text_to_video, poet.text_to_video, (PROMPT,), 0),
        "image_to_video": (poet.stream.image_to_video, poet.image_to_video, (clip, PROMPT), 0),
        "extend by 8 s": (poet.stream.extend, poet.extend, (clip, 8.0, PROMPT), clip.n_frames),
    }
    for name, (stream, whole, given, n_old) in ways.items():
        first, end = [], []
        for seed in range(args.rounds):
            begun, parts, n = time.perf_counter(), [], 0
            for part in stream(*given, seed=seed, **drafts):
                if n <= n_old < n + part.n_frames:
                    first.append(time.perf_counter() - begun)
                parts.append(part)
                n += part.n_frames
            end.append(time.perf_counter() - begun)
            frames = torch.cat([part.frames for part in parts if part.frames is not None])
            same = torch.equal(frames, whole(*given, seed=seed, **drafts).frames)
            assert same, f"{name}, seed {seed}: the stream has other frames"
        a, b = statistics.median(first), statistics.median(end)
        print(f"{name}: first frames after {a:.2f} s, all after {b:.2f} s ({a / b:.0%}); frames equal the whole's")


if __name__ == "__main__":
    main()
