"""What an audio tokenizer keeps of real sounds: `python tests/benchmarks/audio_tokenizer_quality.py speech/ music/`.

Every sound file of each folder is encoded once and decoded with its first 1, 2, ... levels. The table gives, for each
folder and number of levels, the mean over files of mel distance (decades, 0 is equal) and SI-SDR (dB) with the standard
error, and the share of codes that the folder uses at the last of these levels. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

import torch
from audio_peers import conditions
from tqdm import tqdm

from tasks.model_folder import open_audio_tokenizer
from tokenizers_av.audio import AudioTokenizer
from tokenizers_av.audio.metrics import mel_distance, share_of_codes_used, si_sdr
from tokenizers_av.clip import read_clip
from train.data.folder import find_media


def measure(model: AudioTokenizer, folder: Path) -> list[dict[str, float]]:
    """One row for each number of levels."""
    root, names = find_media(folder)
    distances: list[list[float]] = [[] for _ in range(model.n_codebooks)]
    ratios: list[list[float]] = [[] for _ in range(model.n_codebooks)]
    ids, seconds = [], 0.0
    for name in tqdm(names, desc=str(folder), file=sys.stderr):
        samples = read_clip(root / name, sample_rate=model.sample_rate, video=False).samples
        assert samples is not None
        samples = samples[None, : len(samples) // model.hop_length * model.hop_length]
        seconds += samples.shape[1] / model.sample_rate
        ids.append(model.encode(samples))
        for k in range(model.n_codebooks):
            again = model.decode(ids[-1][:, : k + 1])
            distances[k].append(float(mel_distance(again, samples, model.sample_rate)))
            ratios[k].append(float(si_sdr(again, samples)))
    used = share_of_codes_used(torch.cat(ids, dim=-1), model.codebook_size)
    rate = model.frame_rate * math.log2(model.codebook_size) / 1000
    return [
        {"levels": k + 1, "kbps": rate * (k + 1), "mel_distance": statistics.mean(distances[k]),
         "mel_error": error(distances[k]), "si_sdr": statistics.mean(ratios[k]), "si_sdr_error": error(ratios[k]),
         "codes_used": used[k], "n": len(names), "seconds": round(seconds, 1)}
        for k in range(model.n_codebooks)
    ]  # fmt: skip


def error(values: list[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="tasks/models/tiny/audio_tokenizer", help="folder of an audio tokenizer")
    args = parser.parse_args()
    model = open_audio_tokenizer(args.model).float()
    report = {"benchmark": "audio_tokenizer_quality", **conditions(), "model": args.model, "folders": {}}
    print(f"{'':<28} {'n':>4} {'levels':>6} {'kbps':>5} {'mel distance':>15} {'SI-SDR, dB':>16} {'codes used':>10}")
    for folder in args.folders:
        rows = report["folders"][str(folder)] = measure(model, folder)
        for row in rows:
            mel = f"{row['mel_distance']:.3f} ± {row['mel_error']:.3f}"
            ratio = f"{row['si_sdr']:.2f} ± {row['si_sdr_error']:.2f}"
            print(f"{folder.name:<28} {row['n']:>4} {row['levels']:>6} {row['kbps']:>5.2f} {mel:>15} {ratio:>16} "
                  f"{row['codes_used']:>10.1%}", flush=True)  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
