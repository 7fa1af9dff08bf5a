"""What a preset of the transformer gets out of a GPU: of its arithmetic in training, of its memory in decoding.

    python tests/benchmarks/lm_gpu.py train --preset 1b --batch 8 --compile
    python tests/benchmarks/lm_gpu.py train --preset 1b --batch 32 --compile --gradient-checkpointing --factorised
    python tests/benchmarks/lm_gpu.py decode --presets 1b 8b --compile --int8

`train` times whole steps (forward and backward pass in bfloat16 autocast, clipping, Muon and AdamW on float32 weights)
on sequences of 2,048 ids, 64 of prompt, 1,536 of video and 448 of sound, and tells the model flops utilisation: 6 N + 6
layers * dim * 2,048 flops for each id, over the peak of the GPU. N are the weights that an id is multiplied with: the
matrices of the blocks, the embedding of its place, and the head rows of its range, whose mean over the sequence is
taken. Attention counts as causal, half of all pairs. Neither what gradient checkpointing does a second time is counted,
nor the optimizer.

`decode` times the steps of one sequence (see `lm_speed`), each of which reads all weights, and tells ids a second and
the share of the memory bandwidth: --bandwidth, or that of sums over 1 GiB. Compiled steps ask for
CUDA graphs; torch says so where it does not make them, as it may for a cache that is written in place.

Both run anywhere: --device cpu --preset debug shows that they do. Weights and ids are random. A table goes to stdout,
its last line is one JSON object.
"""
# Shapes: B batch, L sequence

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from typing import Any

import torch
from audio_peers import conditions
from lm_speed import (
    PROMPT,
    Contestant,
    Ours,
    bandwidth,
    print_rows,
    random_lm,
    row_of,
    spread,
    synchronize,
    take_turns,
    visual_plan,
    vocabulary_of,
)
from torch import Tensor

from lm import IGNORE_INDEX, LM, LM_PRESETS, Vocabulary, lm_config
from train.optimizers import matrix_optimizers

# bfloat16 with float32 sums, dense, from the makers' data sheets; the first name that the GPU's own contains
PEAK_TFLOPS = {
    "B200": 2250.0, "H200": 989.4, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.4, "A100": 312.0, "L40S": 362.0,
    "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 3090": 71.0, "MI300X": 1307.4,
}  # fmt: skip
LENGTH, N_VISUAL, N_AUDIO = 2048, 1536, 448
WARM_UP = 3


def vocabulary(preset: str, factorised: bool) -> Vocabulary:
    plain = vocabulary_of(preset)
    side = math.isqrt(plain["visual"].size)
    return vocabulary_of(preset, (side, side)) if factorised else plain


def sequences(vocabulary: Vocabulary, batch: int, device: str) -> dict[str, Tensor]:
    """A batch as `LM.forward` wants it."""
    generator = torch.Generator().manual_seed(0)
    levels = [r for r in vocabulary if r.name.startswith("audio")]
    parts = [(vocabulary["text"], PROMPT), (vocabulary["visual"], N_VISUAL)] + [
        (r, N_AUDIO // len(levels)) for r in levels
    ]
    ids = torch.cat([torch.randint(r.start, r.stop, (batch, n), generator=generator) for r, n in parts], dim=1)
    i = torch.arange(LENGTH + 1)
    positions = torch.stack([i // 256, i // 16 % 16, i % 16], dim=1).float().expand(batch, -1, -1)
    labels = ids.clone()
    labels[:, :PROMPT] = IGNORE_INDEX
    made = {"ids": ids, "positions": positions[:, :-1], "next_positions": positions[:, 1:],
            "prefix_len": torch.full((batch,), PROMPT), "labels": labels}  # fmt: skip
    return {name: tensor.to(device) for name, tensor in made.items()}


def flops_per_id(model: LM) -> float:
    """Of the forward and backward pass; see the top of this file."""
    c, links = model.config, sum(p.numel() for p in model.links.parameters())
    n = float(sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2) + model.place.weight.numel())
    n += N_VISUAL / LENGTH * (model.vocabulary["visual"].n_rows * c.dim + links)
    n += N_AUDIO / LENGTH * model.vocabulary["audio_0"].n_rows * c.dim
    return 6 * n + 6 * c.n_layers * c.dim * LENGTH


def peak_flops(device: str) -> float | None:
    """What the GPU could do in a second; None where that is not known."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((1e12 * tflops for known, tflops in PEAK_TFLOPS.items() if known in name), None)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Time training steps."""
    model = random_lm(lm_config(args.preset, vocabulary(args.preset, args.factorised)), torch.float32, args.device)
    model.train()
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.compile:
        for block in model.blocks:  # as in training
            block.compile(dynamic=True)
    optimizers = matrix_optimizers(model.named_parameters(), lr=1e-3, plain=("embed", "head", "place"))
    batch = sequences(model.vocabulary, args.batch, args.device)
    seconds = []
    for _ in range(WARM_UP + args.steps):
        synchronize(args.device)
        begun = time.perf_counter()
        with torch.autocast(args.device, torch.bfloat16):
            loss = model(**batch).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        synchronize(args.device)
        seconds.append(time.perf_counter() - begun)
    assert math.isfinite(loss.item())
    ids_per_second = args.batch * LENGTH / statistics.median(seconds[WARM_UP:])
    flops = flops_per_id(model) * ids_per_second
    peak = 1e12 * args.peak_tflops if args.peak_tflops else peak_flops(args.device)
    found: dict[str, Any] = {
        "preset": args.preset, "visual_factors": list(model.vocabulary["visual"].factors),
        "parameters": model.n_parameters(), "batch": args.batch, "length": LENGTH, "compile": args.compile,
        "gradient_checkpointing": args.gradient_checkpointing, "steps": args.steps,
        "step_s": spread(seconds[WARM_UP:], 4), "ids_per_second": round(ids_per_second, 1),
        "tflops": round(flops / 1e12, 4), "peak_tflops": None if peak is None else round(peak / 1e12, 1),
        "mfu": None if peak is None else round(flops / peak, 4),
    }  # fmt: skip
    if args.compile:
        found["compile_s"] = round(seconds[0] - statistics.median(seconds[WARM_UP:]), 1)
    if args.device == "cuda":
        found["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    for name, value in found.items():
        print(f"  {name:<24} {value}")
    return found


def decode(args: argparse.Namespace) -> dict[str, Any]:
    """Time decoding steps."""
    per_second = 1e9 * args.bandwidth if args.bandwidth else bandwidth(args.device)
    print(f"  {per_second / 1e9:,.0f} GB/s")
    found: dict[str, Any] = {"bandwidth_gb_per_s": round(per_second / 1e9, 1), "ids": args.ids, "presets": []}
    for preset in args.presets:
        vocab = vocabulary(preset, args.factorised)
        model = random_lm(lm_config(preset, vocab), torch.bfloat16, args.device)
        plan = visual_plan(vocab, args.ids)
        contestants: list[Contestant] = [
            Ours(model, torch.bfloat16, plan, args.top_k, compile, int8)
            for compile in ((False, True) if args.compile else (False,))
            for int8 in ((False, True) if args.int8 else (False,))
        ]
        runs = take_turns(contestants, args.rounds, per_second)
        rows = [row_of(c, runs[c.name], args.ids, 1) for c in contestants]
        print(
            f"{preset}: {model.n_parameters() / 1e6:,.0f}M parameters, visual ids {vocab['visual'].factors}, bfloat16"
        )
        print_rows(rows)
        found["presets"].append({"preset": preset, "visual_factors": list(vocab["visual"].factors), "rows": rows})
        del model, contestants, runs  # before the next one is made
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="model flops utilisation of training steps")
    training.add_argument("--preset", default="1b", choices=list(LM_PRESETS))
    training.add_argument("--batch", type=int, default=8, help="sequences of 2,048 ids")
    training.add_argument("--steps", type=int, default=10, help=f"steps timed, after {WARM_UP}")
    training.add_argument("--gradient-checkpointing", action="store_true")
    training.add_argument("--peak-tflops", type=float, help=f"default: known for {', '.join(PEAK_TFLOPS)}")
    training.set_defaults(run=train)
    decoding = commands.add_parser("decode", help="ids a second against the memory bandwidth")
    decoding.add_argument("--presets", nargs="+", default=["1b", "8b"], choices=list(LM_PRESETS))
    decoding.add_argument("--ids", type=int, default=512, help="new ids")
    decoding.add_argument("--top-k", type=int, default=0, help="0 cuts nothing off")
    decoding.add_argument("--rounds", type=int, default=5)
    decoding.add_argument("--int8", action="store_true", help="weights of 8 bits, too")
    decoding.add_argument("--bandwidth", type=float, help="GB/s; default: measured")
    decoding.set_defaults(run=decode)
    for command in (training, decoding):
        command.add_argument("--factorised", action="store_true", help="two factors for each visual id")
        command.add_argument("--compile", action="store_true", help="hand the model to torch.compile")
        command.add_argument("--device", default="cuda")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": f"lm_gpu {args.command}", **conditions(), "device": args.device,
        "accelerator": torch.cuda.get_device_name() if args.device == "cuda" else None,
    }  # fmt: skip
    print(json.dumps(report), flush=True)
    print(json.dumps({**report, **args.run(args)}))


if __name__ == "__main__":
    main()
