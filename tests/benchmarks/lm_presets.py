"""Parameters, memory and speed of each preset of the transformer, by arithmetic; a Markdown table.

    python tests/benchmarks/lm_presets.py --bandwidth 3350
    python tests/benchmarks/lm_presets.py --presets tiny 300m --measure tiny 300m

Models are built on the meta device: nothing is allocated, so any preset can be asked for anywhere. Each has 2^18 visual
ids, as one softmax and factorised into 2 x 2^9. N are the weights, E those of the embedding, each also the head.

Inference: all weights in bfloat16, or the matrices in 8 bits with a bfloat16 scale per output (the embedding then is
there twice: to look ids up, in bfloat16, and as the head); and keys and values in bfloat16 of 2,048 places for two
rows, the sample and its guidance. The model that was loaded comes on top for as long as it is kept.

Training, in bfloat16 autocast on a GPU:
  - states, float32: weights 4N, gradients 4N, averaged weights 4N, Muon's momentum 4 bytes for each weight it updates
    and AdamW's two moments 8 for each of the others;
  - activations of L = 2,048 ids, an estimate. What each layer keeps for its backward pass is, in bytes per id, 22 dim +
    10 kv + 8 hidden_dim, kv = n_kv_heads * head_dim: the residual stream before attention and before the feed-forward
    network in float32 (8 dim), both normed (4 dim), the product for queries, keys and values (2 dim + 4 kv), queries
    and keys again in float32 before their norm (4 dim + 4 kv) and rotated (2 dim + 2 kv), what attention gives (2 dim),
    gate and value (4 hidden_dim), the gate's SiLU and the product (4 hidden_dim). To this come 12 dim bytes per id
    after the last layer, 2 bytes per weight of the blocks (autocast's copies), and 4E for the second gradient of the
    embedding, that of the head, before both are added;
  - recomputed (gradient checkpointing): a layer keeps 4 dim bytes per id, and one of them at a time the whole; the
    copies are gone before the gradients come.

Ids a second are bounded by reading the weights of a step once (see `lm_speed`), one id a step, caches not counted.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from audio_peers import conditions
from lm_speed import Ours, bandwidth, random_lm, visual_plan, weight_bytes

from lm import LM, LM_PRESETS, Vocabulary, lm_config
from train.optimizers import matrix_optimizers

PLACES, ROWS = 2048, 2
GIB = 2**30
VISUAL = {"2^18": (), "2 x 2^9": (512, 512)}


def n_embedding(model: LM) -> int:
    return model.embed.weight.numel()


def inference_bytes(model: LM, int8: bool) -> int:
    """Weights and cache; see the top of this file."""
    c = model.config
    cache = 2 * 2 * c.n_layers * ROWS * PLACES * c.n_kv_heads * c.head_dim  # keys and values, of two bytes each
    weights = 2 * model.n_parameters()
    if int8:
        matrices = [
            p for name, p in model.named_parameters() if p.ndim > 1 and not name.startswith(("embed.", "place."))
        ]
        weights += sum(2 * len(p) - p.numel() for p in matrices)
        weights += n_embedding(model) + 2 * len(model.embed.weight)  # the head, apart from the embedding
    return weights + cache


def state_bytes(model: LM) -> int:
    """Weights, gradients, averaged weights and the states of the optimizers that training uses."""
    total = 12 * model.n_parameters()
    for optimizer in matrix_optimizers(model.named_parameters(), lr=1e-3, plain=("embed", "head", "place")):
        n = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        total += n * (4 if isinstance(optimizer, torch.optim.Muon) else 8)
    return total


def activation_bytes(model: LM, recompute: bool) -> int:
    """What one sequence keeps between forward and backward pass; see the top of this file."""
    c = model.config
    layer = 22 * c.dim + 10 * c.n_kv_heads * c.head_dim + 8 * c.hidden_dim
    layers = layer + c.n_layers * 4 * c.dim if recompute else c.n_layers * layer
    copies = 0 if recompute else 2 * sum(p.numel() for p in model.blocks.parameters())
    return PLACES * (layers + 12 * c.dim) + copies + 4 * n_embedding(model)


def measured(preset: str, factors: tuple[int, ...], n_ids: int) -> float:
    """Ids a second of the steps on this machine, eager, bfloat16: median of three runs."""
    model = random_lm(lm_config(preset, vocabulary_of(factors)), torch.bfloat16, "cpu")
    ours = Ours(model, torch.bfloat16, visual_plan(model.vocabulary, n_ids), top_k=0)
    ours.run()
    runs = [ours.run().steps for _ in range(3)]
    return statistics.median(len(steps) / sum(steps) for steps in runs)


def vocabulary_of(factors: tuple[int, ...]) -> Vocabulary:
    return Vocabulary.build((), 2**18, (1024,) * 4, 512, factors)


def row_of(preset: str, visual: str, bytes_per_second: float) -> dict[str, Any]:
    with torch.device("meta"):
        model = LM(lm_config(preset, vocabulary_of(VISUAL[visual])))
    return {
        "preset": preset,
        "visual ids": visual,
        "blocks, M": round(sum(p.numel() for p in model.blocks.parameters()) / 1e6, 1),
        "all parameters, M": round(model.n_parameters() / 1e6, 1),
        "inference bf16, GiB": round(inference_bytes(model, int8=False) / GIB, 2),
        "int8, GiB": round(inference_bytes(model, int8=True) / GIB, 2),
        "training: states, GiB": round(state_bytes(model) / GIB, 2),
        "+ activations, GiB": round(activation_bytes(model, recompute=False) / GIB, 2),
        "recomputed, GiB": round(activation_bytes(model, recompute=True) / GIB, 2),
        "bound bf16, ids/s": round(bytes_per_second / weight_bytes(model, 2, 2), 1),
        "int8, ids/s": round(bytes_per_second / weight_bytes(model, 1, 2), 1),
    }


def main() -> None:
    """Parse, compute, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "300m", "1b", "8b"], choices=list(LM_PRESETS))
    parser.add_argument("--bandwidth", type=float, help="GB/s; by default that of this machine, measured")
    parser.add_argument("--measure", nargs="+", default=[], choices=list(LM_PRESETS), help="presets to run here, too")
    parser.add_argument("--ids", type=int, default=64, help="ids of a run that is measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bytes_per_second = 1e9 * args.bandwidth if args.bandwidth else bandwidth("cpu")
    rows = []
    for preset in args.presets:
        for visual, factors in VISUAL.items():
            row = row_of(preset, visual, bytes_per_second)
            if args.measure:
                here = measured(preset, factors, args.ids) if preset in args.measure else None
                row["measured bf16, ids/s"] = None if here is None else round(here, 1)
            rows.append(row)
    print("| " + " | ".join(rows[0]) + " |")
    print("| --- | --- |" + " ---: |" * (len(rows[0]) - 2))
    for row in rows:
        cells = (f"{v:,}" if isinstance(v, (int, float)) else "–" if v is None else v for v in row.values())
        print("| " + " | ".join(cells) + " |")
    print(json.dumps({"benchmark": "lm_presets", **conditions(), "places": PLACES, "rows_of_cache": ROWS,
                      "bandwidth_gb_per_s": round(bytes_per_second / 1e9, 2), "rows": rows}))  # fmt: skip


if __name__ == "__main__":
    main()
