r"""A regression network of the head's size, trained as the head is: what flow matching is to be compared with.

    python tests/benchmarks/superres_training.py runs/regression --tokenizers tasks/models/tiny --steps 760
    python tests/benchmarks/superres_training.py runs/regression --tokenizers tasks/models/tiny --steps 600 \
        --init tasks/models/tiny/superres            # as trained as that head, and then some
    avpoet-train evaluate tiny --suite superres --only decoded --against runs/regression

The network, its data and its optimizer are those of `avpoet-train superres`; it always sees the upsampled clip without
noise at time 0, so it learns the mean of all large clips that fit, in one step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from train import stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--data", nargs="+", default=["playground"])
    parser.add_argument("--data-weights", nargs="+", type=float)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int)
    length.add_argument("--max-minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    options = stages.Options(preset=args.preset, data=tuple(args.data), steps=args.steps, minutes=args.max_minutes,
                             data_weights=args.data_weights and tuple(args.data_weights), seed=args.seed)  # fmt: skip
    superres = stages.SuperResOptions(tokenizers=args.tokenizers, init=args.init, regression=True)
    print(stages.train_superres(args.out, options, superres))


if __name__ == "__main__":
    main()
