"""What an audio tokenizer keeps of sounds: `python tests/benchmarks/audio_tokenizer_quality.py --espeak speech/ music/`

Every sound file of each folder is encoded once and decoded with its first 1, 2, ... levels. The table gives, for each
folder and number of levels, the mean over files of mel distance (decades, 0 is equal) and SI-SDR (dB) with the standard
error, and the share of codes that the folder uses at the last of these levels. `--espeak` adds a folder of sentences
that espeak-ng, a speech synthesizer that must be installed, speaks in several voices. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from audio_peers import conditions
from tqdm import tqdm

from tasks.model_folder import open_audio_tokenizer
from tokenizers_av.audio import AudioTokenizer
from tokenizers_av.audio.metrics import mel_distance, share_of_codes_used, si_sdr
from tokenizers_av.clip import read_clip
from train.data.folder import find_media

SENTENCES = """\
The morning train was late again, so we walked along the river and counted the boats.
Please keep the receipt until the replacement part arrives from the warehouse.
She sells fresh cheese, dried figs and sharp scissors at the Saturday market.
Seven engineers measured the bridge twice and still disagreed about its length.
If the weather clears before noon, the climbers will try the northern ridge.
He pushed the heavy door, heard a faint click, and switched on his torch.
Zebras, foxes and a very shy giraffe share the eastern half of the zoo.
The committee postponed its decision because three members missed the vote.
Boil the water, add two spoons of salt, then stir in the pasta slowly.
Her grandfather fixed clocks for fifty years and never wore a watch himself.
A thin layer of ice covered the pond, yet the ducks on the far side seemed quite cheerful.
Turn left at the chapel, pass the old cinema, and park in the narrow yard behind the bakery.
Nobody expected the quiet student to win the chess final in under an hour.
Thunder rolled across the valley while the farmers rushed to cover the freshly cut hay.
The radio played a waltz, and the children jumped around the kitchen table.
We should check whether the backup finished before we shut the whole server down tonight.
Fresh paint, wet plaster and sawdust gave the house a strange, pleasant smell.
Could you describe the vehicle that drove past the school at half past eight?
Six thousand visitors queued outside the museum to view the silver mask.
The pilot announced mild turbulence and asked us to fasten our seat belts.
Judge the soup by its taste, not by the shape of the bowl it comes in.
My youngest cousin collects stamps, shells, feathers and broken compasses.
Although the path was steep, they reached the old lighthouse before the thick fog did.
Yesterday's storm tore off the roof, flooded the cellar and spared the greenhouse.
""".splitlines()
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-us+f2", "en-gb+f4",
          "en-us+m3", "en-gb+m7", "en-us+f5", "en-gb-x-gbcwmd+f3")  # fmt: skip
PITCHES = (50, 35, 65, 45, 55, 40, 60, 75, 30, 25, 70, 50)
WORDS_PER_MINUTE = (150, 165, 140, 175)


def speak(folder: Path) -> Path:
    """Let espeak-ng speak every sentence into a wav file of `folder`."""
    for i, sentence in enumerate(SENTENCES):
        how = ["-v", VOICES[i % 12], "-p", str(PITCHES[5 * i % 12]), "-s", str(WORDS_PER_MINUTE[i % 4])]
        subprocess.run(["espeak-ng", *how, "-w", str(folder / f"{i:02d}.wav"), sentence], check=True)
    return folder


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
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--espeak", action="store_true", help="a folder of synthetic speech first")
    parser.add_argument("--model", default="tasks/models/tiny/audio_tokenizer", help="folder of an audio tokenizer")
    args = parser.parse_args()
    if not args.folders and not args.espeak:
        parser.error("give folders of sound files, or --espeak")
    if args.espeak and shutil.which("espeak-ng") is None:
        parser.error("espeak-ng is not installed")
    model = open_audio_tokenizer(args.model).float()
    report = {"benchmark": "audio_tokenizer_quality", **conditions(), "model": args.model, "folders": {}}
    print(f"{'':<20} {'n':>4} {'levels':>6} {'kbps':>5} {'mel distance':>15} {'SI-SDR, dB':>16} {'codes used':>10}")
    with tempfile.TemporaryDirectory() as made:
        spoken = [("espeak-ng", speak(Path(made)))] if args.espeak else []
        for name, folder in [*spoken, *((folder.name, folder) for folder in args.folders)]:
            rows = report["folders"][name] = measure(model, folder)
            for row in rows:
                mel = f"{row['mel_distance']:.3f} ± {row['mel_error']:.3f}"
                ratio = f"{row['si_sdr']:.2f} ± {row['si_sdr_error']:.2f}"
                print(f"{name:<20} {row['n']:>4} {row['levels']:>6} {row['kbps']:>5.2f} {mel:>15} {ratio:>16} "
                      f"{row['codes_used']:>10.1%}", flush=True)  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
