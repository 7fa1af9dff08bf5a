"""Decoding speed of the transformer beside Llama of transformers, and beside the memory of the machine.

    python tests/benchmarks/lm_speed.py --preset tiny --compile --int8
    python tests/benchmarks/lm_speed.py --preset 300m --ids 64 --compile --int8
    python tests/benchmarks/lm_speed.py --preset tiny --compare-block 16

The peer is `LlamaForCausalLM.generate` of the same width, layers, heads, key/value heads, feed-forward width,
vocabulary, tied embeddings and dtype; it gets as many prompt ids, makes as many new ones and draws them alike
(temperature 1, the same top-k; one sequence, no guidance). It runs with its default cache, with its static one, and
with `--compile` also compiled; what is claimed is against the fastest of them, compiled ones only where ours is. All
take turns, round after round, so that a drift of the machine meets all alike; the first round warms up, and compiles. A
step is the mean of a run, given as the median of the rounds (lowest-highest); prefill is the time to the first id.

The share of the bandwidth is the time that reading the weights once takes, over the time of a step. Counted are the
blocks, the final norm and the head rows of the ids that may be drawn (Llama: its whole head); not the cache, and no row
of the embedding but those. Weights in 8 bits count one byte, their scales nothing. Bandwidth is that of sums over
1 GiB, eight right before a run and eight right after it: the same seconds of a shared host, and their mean, as a step
is the mean of a run. The share is the median of the rounds; beside it stands the share of the fastest of those sums,
which no mean of anything reaches. What fits into the processor's own caches can be read faster than that.

`--compare-block n` sets the next id against the next block of n ids (`block_size=n`) instead: forward passes and
seconds for the ids of one clip of 17 frames of 128x128 with sound, 1,280 + 424 of them, and the delimiters.

Weights are random. A table goes to stdout, its last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from audio_peers import conditions
from torch import Tensor
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation import BaseStreamer

from lm import LM, LM_PRESETS, Engine, LMConfig, Plan, Prefix, Sampling, Vocabulary, lm_config
from tasks import SPECIAL_TOKENS, TASKS, Layout
from tasks.sequence import plan as plan_of

TIMES_LLAMA = {"tiny": {"ours": 2.5, "ours compiled": 5.0}, "300m": {"ours": 2.0, "ours compiled": 2.0}}  # claimed
LEAST_SHARE = {"300m": 0.75}  # claimed: of the bandwidth, compiled, in bfloat16
FEWER_PASSES, LESS_TIME = 8.0, 4.0  # claimed: of next-block prediction
PROMPT = 64  # ids before the first new one
CLIP = Layout(latent_frames=5, height=16, width=16)
GIB = 2**30


def vocabulary_of(preset: str, visual_factors: tuple[int, ...] = ()) -> Vocabulary:
    """4,096 visual ids for the small presets, 2^18 for the others; 4 x 1,024 audio ids, 512 of text."""
    visual = 4096 if preset in ("debug", "tiny") else 2**18
    return Vocabulary.build(SPECIAL_TOKENS, visual, (1024,) * 4, 512, visual_factors)


def random_lm(config: LMConfig, dtype: torch.dtype, device: str) -> LM:
    """Seeded random weights, made where and as they are used."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LM(config).eval()
    finally:
        torch.set_default_dtype(default)


def visual_plan(vocabulary: Vocabulary, n: int) -> Plan:
    """`n` visual ids in reading order of latent frames of 16x16."""
    i, visual = torch.arange(n), vocabulary["visual"]
    positions = torch.stack([i // 256, i // 16 % 16, i % 16], dim=1).float()
    return Plan(torch.full((n,), visual.start), torch.full((n,), visual.stop), positions)


def prompt(vocabulary: Vocabulary) -> Prefix:
    ids = torch.randint(vocabulary.size, (PROMPT,), generator=torch.Generator().manual_seed(0))
    return Prefix([ids], [torch.stack([torch.arange(PROMPT).float(), *torch.zeros(2, PROMPT)], dim=1)])


def weight_bytes(model: LM, matrix_bytes: int, vector_bytes: int) -> int:
    """Bytes of the weights that a step reads which draws visual ids; see the top of this file."""
    read = [p for name, p in model.named_parameters() if not name.startswith(("embed.", "place.", "head."))]
    head = model.vocabulary["visual"].n_rows * model.config.dim
    return sum(p.numel() * (matrix_bytes if p.ndim > 1 else vector_bytes) for p in read) + head * matrix_bytes


def sums(device: str, n: int = 8) -> list[float]:
    """Seconds of reading 1 GiB of memory, n times."""
    x, seconds = torch.ones(GIB // 4, device=device), []
    for _ in range(n + 1):  # the first is a warm-up
        synchronize(device)
        begun = time.perf_counter()
        x.sum()
        synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


def bandwidth(device: str) -> float:
    """Bytes a second of reading memory, in the mean."""
    return GIB / statistics.mean(sums(device))


def synchronize(device: str) -> None:
    """Wait for the device before the clock is read."""
    if device != "cpu":
        torch.accelerator.synchronize()


@dataclass
class Run:
    """One generation."""

    prefill: float  # seconds to the first id, or block
    steps: list[float]  # seconds of each further one
    sums: list[float] = field(default_factory=list)  # seconds of reading 1 GiB around it


class Contestant:
    """A model that is asked for the same ids again and again."""

    name: str
    device: str
    bytes: int  # of the weights that a step reads
    compiled = False

    def run(self) -> Run:
        raise NotImplementedError


class Ours(Contestant):
    def __init__(
        self, model: LM, dtype: torch.dtype, plan: Plan, top_k: int, compile: bool = False, int8: bool = False
    ) -> None:
        self.engine = Engine(model, dtype=dtype, compile=compile, int8=int8)
        self.name = "ours" + " int8" * int8 + " compiled" * compile
        self.compiled, self.device = compile, model.device.type
        self.bytes = weight_bytes(model, 1 if int8 else dtype.itemsize, dtype.itemsize)
        self.plan, self.prefix = plan, prompt(model.vocabulary)
        self.sampling = {"visual": Sampling(top_k=top_k), "audio": Sampling(top_k=top_k)}

    def run(self) -> Run:
        times, n = [time.perf_counter()], 0
        for ids in self.engine.stream(self.prefix, self.plan, sampling=self.sampling, seeds=[0]):
            synchronize(self.device)
            times.append(time.perf_counter())
            n += ids.shape[1]
        assert n == len(self.plan)
        return Run(times[1] - times[0], [b - a for a, b in itertools.pairwise(times[1:])])


class Clock(BaseStreamer):
    """Reads the clock whenever ids arrive; `generate` first streams the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Llama(Contestant):
    """`generate` of transformers; `options` choose its cache."""

    def __init__(self, model: LlamaForCausalLM, n: int, top_k: int, name: str, **options: Any) -> None:
        self.model: Any = model
        self.device = model.device.type
        self.name, self.compiled = name, "compile_config" in options
        self.bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        if not model.config.tie_word_embeddings:
            embedding = model.get_input_embeddings().weight
            self.bytes -= embedding.numel() * embedding.element_size()
        ids = torch.randint(model.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
        self.prompt = ids.to(model.device)
        self.options = {"max_new_tokens": n, "do_sample": True, "temperature": 1.0, "top_k": top_k, "top_p": 1.0,
                        "eos_token_id": None, "pad_token_id": 0, **options}  # fmt: skip

    def run(self) -> Run:
        clock = Clock()
        begun = time.perf_counter()
        ids = self.model.generate(
            self.prompt, attention_mask=torch.ones_like(self.prompt), streamer=clock, **self.options
        )
        first, *steps = clock.times[1:]
        assert ids.shape[1] == PROMPT + self.options["max_new_tokens"] == PROMPT + 1 + len(steps)
        return Run(first - begun, [b - a for a, b in itertools.pairwise([first, *steps])])


def llamas(config: LMConfig, dtype: torch.dtype, device: str, n: int, top_k: int, compile: bool) -> Iterator[Llama]:
    """Llama of our shape, once for each way to run it."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.hidden_dim,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads, tie_word_embeddings=config.tie_embeddings,
        max_position_embeddings=PROMPT + n, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(shape).to(device, dtype).eval()
    yield Llama(model, n, top_k, "Llama")
    # with a static cache it compiles by itself on a GPU
    yield Llama(model, n, top_k, "Llama static", cache_implementation="static", disable_compile=True)
    if compile:
        how = CompileConfig(fullgraph=False, mode="default" if device == "cpu" else "reduce-overhead")
        how._compile_all_devices = True  # which on a CPU has no public name
        yield Llama(model, n, top_k, "Llama compiled", cache_implementation="static", compile_config=how)


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    return {"median": round(statistics.median(values), digits), "low": round(min(values), digits),
            "high": round(max(values), digits)}  # fmt: skip


def take_turns(
    contestants: list[Contestant], n_rounds: int, bytes_per_second: float | None = None
) -> dict[str, list[Run]]:
    """The runs of each contestant; the first is the warm-up. The bandwidth is measured if it is not given."""
    known = [GIB / bytes_per_second] if bytes_per_second else None
    runs: dict[str, list[Run]] = {c.name: [] for c in contestants}
    for n in range(n_rounds + 1):
        for contestant in contestants:
            before = known or sums(contestant.device)
            run = contestant.run()
            runs[contestant.name].append(replace(run, sums=before + (known or sums(contestant.device))))
        print(f"  round {n} of {n_rounds}", file=sys.stderr, flush=True)
    return runs


def row_of(contestant: Contestant, runs: list[Run], n_ids: int, block_size: int) -> dict[str, Any]:
    """The figures of one contestant."""
    warm_up, *runs = runs
    seconds = [sum(run.steps) / len(run.steps) for run in runs]
    wholes = [run.prefill + sum(run.steps) for run in runs]
    pairs = list(zip(runs, seconds, strict=True))
    shares, of_fastest = (
        [contestant.bytes / GIB * each(run.sums) / s for run, s in pairs] for each in (statistics.mean, min)
    )
    step = statistics.median(seconds)
    row = {
        "model": contestant.name,
        "prefill_ms": spread([1e3 * run.prefill for run in runs], 2),
        "step_ms": spread([1e3 * s for s in seconds]),
        "ids_per_second_of_steps": round(block_size / step, 1),
        "ids_per_second": round(n_ids / statistics.median(wholes), 1),
        "mib_per_step": round(contestant.bytes / 2**20, 1),
        "share_of_bandwidth": spread(shares),
        "share_of_fastest_sum": spread(of_fastest),
    }
    if contestant.compiled:
        row["compile_s"] = round(warm_up.prefill + sum(warm_up.steps) - statistics.median(wholes), 1)
    return row


def print_rows(rows: list[dict[str, Any]]) -> None:
    print(f"  {'model':<18} {'prefill ms':>10} {'step ms':>24} {'ids/s, steps':>12} {'ids/s, all':>10} "
          f"{'MiB/step':>9} {'of bandwidth':>16} {'of fastest sum':>16} {'compile s':>9}")  # fmt: skip
    for row in rows:
        step = "{median:.3f} ({low:.3f}-{high:.3f})".format(**row["step_ms"])
        share, of_fastest = (
            "{median:.0%} ({low:.0%}-{high:.0%})".format(**row[what])
            for what in ("share_of_bandwidth", "share_of_fastest_sum")
        )
        print(f"  {row['model']:<18} {row['prefill_ms']['median']:>10.2f} {step:>24} "
              f"{row['ids_per_second_of_steps']:>12,.1f} {row['ids_per_second']:>10,.1f} {row['mib_per_step']:>9,.1f} "
              f"{share:>16} {of_fastest:>16} {row.get('compile_s', ''):>9}")  # fmt: skip


def claim(what: str, found: float, wanted: float | None, unit: str = " times") -> dict[str, Any]:
    """A figure against what is claimed, printed and returned; None claims nothing."""
    verdict = "info" if wanted is None else "PASS" if found >= wanted else "FAIL"
    shown = f"{found:.0%}" if unit == "%" else f"{found:.2f}{unit}"
    target = "" if wanted is None else f", claimed {wanted:.0%}" if unit == "%" else f", claimed {wanted:g}{unit}"
    print(f"  {verdict}  {what}: {shown}{target}")
    return {"claim": what, "found": round(found, 4), "claimed": wanted, "verdict": verdict}


def claims(args: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Ours against the fastest of Llama, compiled against all of them, and against memory."""
    peers = [row for row in rows if row["model"].startswith("Llama")]
    claimed = args.dtype == "bfloat16" and args.block_size == 1
    for row in (row for row in rows if row["model"].startswith("ours")):
        name = row["model"]
        allowed = [peer for peer in peers if "compile_s" in row or "compile_s" not in peer]
        best = max(allowed, key=lambda peer: peer["ids_per_second_of_steps"])
        wanted = TIMES_LLAMA.get(args.preset, {}).get(name) if claimed else None
        for rate, words in (("ids_per_second_of_steps", "steps"), ("ids_per_second", "with prefill")):
            yield claim(f"{name} against {best['model']}, {words}", row[rate] / best[rate],
                        wanted if words == "steps" else None)  # fmt: skip
        yield claim(f"{name}, share of the bandwidth", row["share_of_bandwidth"]["median"],
                    LEAST_SHARE.get(args.preset) if claimed and name == "ours compiled" else None, "%")  # fmt: skip


def beside_llama(args: argparse.Namespace) -> dict[str, Any]:
    """Ours and Llama in turns; prints the table and the claims."""
    dtype, n = getattr(torch, args.dtype), args.ids
    vocabulary = vocabulary_of(args.preset)
    config = lm_config(args.preset, vocabulary, block_size=args.block_size)
    model = random_lm(config, dtype, args.device)
    plan = visual_plan(vocabulary, n)
    contestants: list[Contestant] = [
        Ours(model, dtype, plan, args.top_k, compile, int8) for compile, int8 in variants(args)
    ]
    peers = list(llamas(config, dtype, args.device, n, args.top_k, args.compile))
    contestants += peers
    runs = take_turns(contestants, args.rounds)
    rows = [row_of(c, runs[c.name], n, args.block_size if isinstance(c, Ours) else 1) for c in contestants]
    memory = spread([GIB / 1e9 / s for each in runs.values() for run in each[1:] for s in run.sums], 1)
    sizes = {"ours": model.n_parameters(), "Llama": peers[0].model.num_parameters()}
    print(f"{args.preset}: {n} visual ids of {vocabulary['visual'].size:,} after {PROMPT}, top_k {args.top_k}, "
          f"{args.dtype}; {memory['median']} ({memory['low']}-{memory['high']}) GB/s; parameters: "
          + ", ".join(f"{name} {count / 1e6:,.1f}M" for name, count in sizes.items()))  # fmt: skip
    print_rows(rows)
    return {"parameters": sizes, "bandwidth_gb_per_s": memory, "rows": rows,
            "claims": list(claims(args, rows))}  # fmt: skip


def beside_blocks(args: argparse.Namespace) -> dict[str, Any]:
    """The next id and the next block in turns, over a whole clip."""
    dtype, vocabulary = getattr(torch, args.dtype), vocabulary_of(args.preset)
    rows: list[dict[str, Any]] = []
    contestants: list[Ours] = []
    for block_size in (1, args.compare_block):
        plan, _ = plan_of(TASKS["text_to_video"], vocabulary, CLIP, block_size=block_size)
        model = random_lm(lm_config(args.preset, vocabulary, block_size=block_size), dtype, args.device)
        for compile, int8 in variants(args):
            ours = Ours(model, dtype, plan, args.top_k, compile, int8)
            ours.name += f", {'next id' if block_size == 1 else f'next {block_size} ids'}"
            contestants.append(ours)
    passes = {}
    runs: dict[str, list[float]] = {ours.name: [] for ours in contestants}
    for n in range(args.rounds + 1):
        for ours in contestants:
            run = ours.run()
            passes[ours.name] = ours.engine.passes
            runs[ours.name].append(run.prefill + sum(run.steps))
        print(f"  round {n} of {args.rounds}", file=sys.stderr, flush=True)
    print(f"{args.preset}: one clip, 1,280 visual and 424 audio ids after {PROMPT}, top_k {args.top_k}, {args.dtype}")
    print(f"  {'model':<28} {'parameters':>12} {'places':>7} {'passes':>7} {'seconds':>24}")
    for ours in contestants:
        row: dict[str, Any] = {
            "model": ours.name,
            "parameters": ours.engine.model.n_parameters(),
            "places": len(ours.plan),
            "passes": passes[ours.name],
            "seconds": spread(runs[ours.name][1:]),
        }
        if ours.compiled:
            row["compile_s"] = round(runs[ours.name][0] - row["seconds"]["median"], 1)
        rows.append(row)
        seconds = "{median:.3f} ({low:.3f}-{high:.3f})".format(**row["seconds"])
        print(f"  {row['model']:<28} {row['parameters']:>12,} {row['places']:>7,} {row['passes']:>7,} {seconds:>24}")
    found, half = [], len(rows) // 2
    for classic, block in zip(rows[:half], rows[half:], strict=True):
        found.append(claim(f"{block['model']}, fewer passes", classic["passes"] / block["passes"], FEWER_PASSES))
        ratio = classic["seconds"]["median"] / block["seconds"]["median"]
        found.append(claim(f"{block['model']}, less time", ratio, LESS_TIME))
    return {"compare_block": args.compare_block, "rows": rows, "claims": found}


def variants(args: argparse.Namespace) -> list[tuple[bool, bool]]:
    """(compile, int8) of each way in which ours takes part."""
    return [(compile, int8) for compile in (False, True)[: 1 + args.compile] for int8 in (False, True)[: 1 + args.int8]]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=list(LM_PRESETS))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ids", type=int, default=256, help="new ids")
    parser.add_argument("--top-k", type=int, default=0, help="0 cuts nothing off")
    parser.add_argument("--block-size", type=int, default=1, help="ids that ours predicts at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="let compiled models take part, too")
    parser.add_argument("--int8", action="store_true", help="let weights of 8 bits take part, too")
    parser.add_argument("--compare-block", type=int, metavar="N", help="next-block prediction against the next id")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {
        "benchmark": "lm_speed", **conditions(), "device": args.device, "preset": args.preset, "dtype": args.dtype,
        "batch": 1, "prompt": PROMPT, "top_k": args.top_k, "rounds": args.rounds,
    }  # fmt: skip
    if args.device != "cpu":
        report["accelerator"] = torch.cuda.get_device_name()
    print(json.dumps(report), flush=True)
    measure: Callable[[argparse.Namespace], dict[str, Any]]
    if args.compare_block:
        measure = beside_blocks
    else:
        report |= {"ids": args.ids, "block_size": args.block_size}
        measure = beside_llama
    print(json.dumps({**report, **measure(args)}))


if __name__ == "__main__":
    main()
