"""A long video: memory over time, sound against picture, and what is seen where windows join.

    python tests/benchmarks/long_video.py --seconds 600 --speculative 16 [--kills 10]

The clip that is continued is the model's own. With --kills the same command is killed so many times at random moments,
and the file must be that of the run without. A join is where a window ends; its difference is the mean absolute change
of the picture from frame to frame there, beside that inside of windows: where one latent frame follows another, as at
every join, and within latent frames. Figures are of frames as they are made; in brackets stands the 95 % interval of a
percentile by the order of the values (as if these were independent).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

MAKE = """
import sys
from tasks import AVPoet
out, first, seconds, model, speculative, seed = sys.argv[1:]
poet = AVPoet.from_pretrained(model)
poet.extend(first, float(seconds), ["a red ball bounces on a wooden floor", "a blue cube slides to the left"],
            out=out, speculative=int(speculative), seed=int(seed))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--speculative", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the video, and of the moments of the kills")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, out = Path(folder, "first.mp4"), Path(folder, "long.mp4")
        make_first(first, args.model)
        words = [sys.executable, "-c", MAKE, out, first, args.seconds, args.model, args.speculative, args.seed]
        words = [str(word) for word in words]
        begun = time.monotonic()
        memory = watched(words)
        took = time.monotonic() - begun
        print(f"{args.seconds:g} s made in {took:.0f} s")
        report_memory(memory)
        report_file(out, args.seconds, args.model)
        if args.kills:
            report_kills(words, out, args.kills, took, random.Random(args.seed))


def make_first(path: Path, model: str) -> None:
    from tasks import AVPoet

    AVPoet.from_pretrained(model).text_to_video("a red ball bounces on a wooden floor", seed=0).save(path)


def watched(words: list[str]) -> list[tuple[float, float]]:
    """Run a command; (seconds, MiB resident) twice a second."""
    process, found, begun = subprocess.Popen(words), [], time.monotonic()

    def watch() -> None:
        while process.poll() is None:
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                return
            found.append((time.monotonic() - begun, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
            time.sleep(0.5)

    thread = threading.Thread(target=watch)
    thread.start()
    if process.wait():
        raise SystemExit(f"the run ended with exit code {process.returncode}")
    thread.join()
    return found


def report_memory(memory: list[tuple[float, float]]) -> None:
    end = memory[-1][0]
    minute = min(60.0, end / 3)
    at_minute = np.median([mib for t, mib in memory if minute - 5 <= t <= minute + 5])
    at_end = np.median([mib for t, mib in memory if t >= end - 10][:-1] or [memory[-1][1]])
    peak = max(mib for t, mib in memory if t >= minute)
    print(f"memory: {at_minute:.0f} MiB after {minute:.0f} s, {at_end:.0f} at the end ({at_end / at_minute - 1:+.1%}), "
          f"peak after that minute {peak:.0f} MiB ({peak / at_minute - 1:+.1%})")  # fmt: skip


def report_file(out: Path, seconds: float, model: str) -> None:
    from tasks.long_video import n_kept
    from tasks.model_folder import find_model, read_config
    from tokenizers_av.clip import ClipReader

    layout = read_config(find_model(model)).layout
    last, changes, n_frames, n_samples = None, [], 0, 0
    with ClipReader(out) as reader:
        rate = reader.sample_rate
        for part in reader.windows(1.0):
            frames = part.frames.numpy().astype(np.int16)
            joined = frames if last is None else np.concatenate([last, frames])
            changes += np.abs(np.diff(joined, axis=0)).mean((1, 2, 3)).tolist()
            last, n_frames = frames[-1:], n_frames + len(frames)
            n_samples += len(part.samples)
    n_new = round(seconds * layout.fps)
    n_old, hop = n_frames - n_new, layout.n_frames - n_kept(layout)
    print(f"length: picture {n_frames / layout.fps:.3f} s, sound {n_samples / rate:.3f} s")
    values, since = np.array(changes)[n_old:], np.arange(n_old, len(changes)) + 1 - n_old
    join, meet = since % hop == 0, since % layout.temporal_stride == 0
    for name, where in (
        ("at joins", join),
        ("inside, where latent frames meet", meet & ~join),
        ("inside, within latent frames", ~meet),
        ("inside, both", ~join),
    ):
        ordered, n = np.sort(values[where]), int(where.sum())
        rank = 0.95 * n + 1.96 * np.sqrt(0.95 * 0.05 * n) * np.array([-1, 1])
        low, high = [*ordered, np.inf][round(rank[0]) - 1], [*ordered, np.inf][min(round(rank[1]) - 1, n)]
        p50, p95 = np.percentile(ordered, [50, 95])
        print(f"change {name} (n {n}): median {p50:.2f}, 95th percentile {p95:.2f} ({low:.2f}-{high:.2f}) grey levels")


def report_kills(words: list[str], out: Path, kills: int, took: float, rng: random.Random) -> None:
    wanted = hashlib.sha256(out.read_bytes()).hexdigest()
    out.unlink()
    for _ in range(kills):
        process = subprocess.Popen(words)
        time.sleep(rng.uniform(0, took * 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            break
    if not out.exists():
        subprocess.run(words, check=True)
    same = hashlib.sha256(out.read_bytes()).hexdigest() == wanted
    left = sorted(p.name for p in out.parent.iterdir() if p.name not in ("first.mp4", "long.mp4"))
    print(f"killed {kills} times: the file is {'the same' if same else 'ANOTHER'}; left beside it: {left or 'nothing'}")


if __name__ == "__main__":
    main()
