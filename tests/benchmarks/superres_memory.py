"""Memory of the super-resolution head on long videos: `python tests/benchmarks/superres_memory.py --preset tiny`.

Enlarges 60 and 600 frames of 64x64 to 256x256 through `upscale_stream`, fed by a generator, each length in a process of
its own, and compares the peaks of resident memory. Weights are random. A table goes to stdout, its last line is one
JSON object.

    python tests/benchmarks/superres_memory.py --within 1.6 4 --size 270x480 --frames 3 [--rate 2 ...]
    python tests/benchmarks/superres_memory.py --within 2 --size 64x64 --frames 60 600

enlarge clips of so many frames of that size with the shipped head by `avpoet superres --memory-gb`, to which further
options are handed, and compare the peaks with that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from video_peers import conditions
from video_tokenizer_memory import frames, peak_mib

from tokenizers_av.superres import STEPS, SUPERRES_PRESETS, SuperRes, superres_config

SIZE, SCALE, CHUNK = 64, 4, 4  # frames of a chunk are those of a latent frame, as decoders give them
LIMIT = 0.10  # claimed: the longer video needs at most this share more


def stream(preset: str, steps: int, n_frames: int, threads: int) -> dict[str, float]:
    """Enlarge `n_frames` in this process, keeping nothing."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    head = SuperRes(superres_config(preset)).eval()
    before, begun, n_made = peak_mib(), time.perf_counter(), 0
    for piece in head.upscale_stream(frames(n_frames, SIZE, CHUNK), SCALE, steps=steps):
        n_made += piece.shape[2]
        assert piece.shape[3:] == (SCALE * SIZE, SCALE * SIZE)
    assert n_made == n_frames
    return {
        "frames": n_frames,
        "peak_mib": round(peak_mib(), 1),
        "before_mib": round(before, 1),  # libraries and weights
        "fps": round(n_frames / (time.perf_counter() - begun), 2),
    }


def within(gigabytes: list[float], size: str, lengths: list[int], more: list[str]) -> None:
    """Enlarge clips by 4 in processes that may hold so much, and say what they held."""
    from tokenizers_av.clip import Clip

    height, width = map(int, size.split("x"))
    print(json.dumps({"size": size, "scale": SCALE, "frames": lengths, "options": more, **conditions()}), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        small = str(Path(folder, "small.mp4"))
        print(f"  {'frames':>7} {'asked GB':>9} {'held GB':>8} {'window':>7} {'seconds':>8}")
        for n_frames, asked in itertools.product(lengths, gigabytes):
            pixels = [piece[0, :, :, :height, :width] for piece in frames(n_frames, max(height, width), CHUNK)]
            video = ((torch.cat(pixels, dim=1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0)
            Clip(frames=video.contiguous(), fps=24).save(small)
            words = ["superres", small, "--memory-gb", str(asked), "--out", str(Path(folder, "large.mp4")), *more]
            begun = time.perf_counter()
            words = [sys.executable, "-m", "tasks", *words]
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            assert process.stderr is not None
            with process.stderr:
                said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                print(f"  {n_frames:>7} {asked:>9} {said.strip().splitlines()[-1]}", flush=True)
                continue
            held = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
            window = (re.findall(r"window = ([0-9]+)", said) or ["none"])[0]
            took, verdict = time.perf_counter() - begun, "pass" if held <= asked else "FAIL"
            rows.append({"frames": n_frames, "asked": asked, "held": round(held, 3), "window": window,
                         "seconds": round(took, 1)})  # fmt: skip
            print(f"  {n_frames:>7} {asked:>9} {held:>8.3f} {window:>7} {took:>8.1f}  {verdict}", flush=True)
    print(json.dumps({"benchmark": "superres_memory", "size": size, "options": more, "rows": rows}))


def main() -> None:
    """Parse, run each length in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=sorted(SUPERRES_PRESETS))
    parser.add_argument("--steps", type=int, default=4, choices=STEPS)
    parser.add_argument("--frames", type=int, nargs="+", default=[60, 600], metavar="N", help="a short and a long one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--within", type=float, nargs="+", metavar="GB", help="what `--memory-gb` is asked for")
    parser.add_argument("--size", default="270x480", metavar="HxW", help="of the frames that --within enlarges")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args, more = parser.parse_known_args()
    if more and not args.within:
        parser.error(f"unknown {' '.join(more)}")
    if args.worker:
        print(json.dumps(stream(args.preset, args.steps, args.worker, args.threads)))
        return
    if args.within:
        within(args.within, args.size, args.frames, ["--steps", str(args.steps), *more])
        return
    if len(args.frames) != 2:
        parser.error("--frames: need two lengths to compare")
    torch.set_num_threads(args.threads)
    settings = {"preset": args.preset, "dtype": "float32", "steps": args.steps, "size": SIZE, "scale": SCALE,
                "chunk": CHUNK}  # fmt: skip
    print(json.dumps({**settings, **conditions()}), flush=True)
    rows = []
    print(f"  {'frames':>7} {'peak MiB':>9} {'before MiB':>11} {'fps':>7}")
    for n in args.frames:
        again = [sys.executable, *sys.argv, "--worker", str(n)]
        row = json.loads(subprocess.run(again, stdout=subprocess.PIPE, check=True).stdout)
        rows.append(row)
        print(f"  {n:>7} {row['peak_mib']:>9} {row['before_mib']:>11} {row['fps']:>7}", flush=True)
    short, long = (row["peak_mib"] for row in rows)
    more = long / short - 1
    verdict = "pass" if more <= LIMIT else "FAIL"
    longer = args.frames[1] / args.frames[0]
    print(f"  {verdict}  {100 * more:+.2f} % at {longer:g} times the length (claimed: at most {LIMIT:.0%})")
    print(json.dumps({"benchmark": "superres_memory", **conditions(), **settings, "rows": rows,
                      "difference": round(more, 5), "verdict": verdict}))  # fmt: skip


if __name__ == "__main__":
    main()
