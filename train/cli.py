"""The `avpoet-train` command: one sub-command per stage, and `all` for the whole chain."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tasks.command import Parser, run
from tasks.errors import InputError

STAGES = {
    "all": "text, video and audio tokenizer, then the transformer: a whole model folder",
    "video-tokenizer": "causal 3-D CNN with lookup-free quantization",
    "audio-tokenizer": "causal SEANet with residual vector quantization",
    "text-tokenizer": "sentencepiece on the captions of the data",
    "lm": "the transformer, on ids made with trained tokenizers",
    "superres": "the super-resolution head, on clips as a trained video tokenizer decodes them",
}


def main(argv: Sequence[str] | None = None) -> int:
    return run(_main, argv, "avpoet-train")


def parser() -> Parser:
    from train import doctor, tokenize_command
    from train.evaluate.command import EXAMPLE, add_arguments

    top = Parser("avpoet-train", description="Train and measure avpoet models.",
                 example="avpoet-train all --preset tiny --out runs/mine --max-minutes 60")  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, summary in STAGES.items():
        extra = " --tokenizers runs/mine" if name in ("lm", "superres") else ""
        limit = "" if name == "text-tokenizer" else " --max-minutes 10"
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".",
                                      example=f"avpoet-train {name} --preset tiny --data playground "
                                              f"--out runs/{name}{limit}{extra}")  # fmt: skip
        _common(command)
        if name == "lm":
            command.add_argument("--tokenizers", type=Path, required=True,
                                 help="a model, or a folder of video_tokenizer, audio_tokenizer and text_tokenizer")
            command.add_argument("--tokens", type=Path,
                                 help="folder for the ids, or one that `tokenize` made (default: beside --out)")
            command.add_argument("--init", type=Path, metavar="FOLDER", help="start from this trained transformer")
            command.add_argument("--block-size", type=int, default=1, metavar="N",
                                 help="predict N ids at a time: fewer steps, other quality (default: 1)")
            command.add_argument("--visual-factors", type=int, choices=(1, 2), metavar="N",
                                 help="write a visual id as 1 or 2 values (default: 2 above 2^14 ids)")
        if name == "superres":
            command.add_argument("--tokenizers", type=Path, required=True,
                                 help="a model, or a folder that holds video_tokenizer")  # fmt: skip
            command.add_argument("--init", type=Path, metavar="FOLDER", help="start from this trained head")
            command.add_argument("--lr", type=float, help=LR)
            command.add_argument("--captions", action="store_true",
                                 help="learn from captions, too; needs a text_tokenizer beside video_tokenizer")
        if name == "video-tokenizer":
            _video(command)
        if name == "audio-tokenizer":
            _audio(command)
    tokenize = commands.add_parser("tokenize", help="turn a folder of media into ids, in Parquet shards",
                                   description="Turn every file of a folder of media into ids, in Parquet shards.",
                                   example=tokenize_command.EXAMPLE)  # fmt: skip
    tokenize_command.add_arguments(tokenize)
    check = commands.add_parser("doctor", help="overfit one clip and check every part, in a few minutes",
                                description="Overfit one clip of the data and check every part of the training.",
                                example=doctor.EXAMPLE)  # fmt: skip
    doctor.add_arguments(check)
    export = commands.add_parser("export", help="copy a trained model without what only training needs",
                                 description="Copy a model folder in float16, without checkpoints and logs.",
                                 example="avpoet-train export runs/mine --out mine")  # fmt: skip
    export.add_argument("model", type=Path, help="a model folder")
    export.add_argument("--out", type=Path, required=True)
    evaluate = commands.add_parser("evaluate", help="measure a model on clips and prompts it never saw",
                                   description="Measure a model on clips and prompts it never saw.", example=EXAMPLE)
    add_arguments(evaluate)
    return top


def _common(command: argparse.ArgumentParser) -> None:
    presets = "debug, tiny, fast, base, base-24khz or large"
    command.add_argument("--preset", default="tiny", help=f"{presets} (default: tiny)")
    command.add_argument("--data", nargs="+", metavar="DATA",
                         help="media files, folders of them with a metadata.jsonl of captions (default: playground)")
    command.add_argument("--data-weights", nargs="+", type=float, metavar="W",
                         help="share of each DATA (default: equal)")  # fmt: skip
    command.add_argument("--out", type=Path, required=True, help="folder for the model, its checkpoints and logs")
    command.add_argument("--max-minutes", type=float, metavar="N",
                         help="train this long; the learning rate is annealed over it")  # fmt: skip
    command.add_argument("--steps", type=int, metavar="N", help="train this many steps instead")
    command.add_argument("--batch-size", type=int, metavar="N")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", help="cpu, cuda, ... (default: an accelerator if there is one)")
    words = "torch.compile: slow to start, faster after, except for a transformer on a CPU"
    command.add_argument("--compile", action="store_true", help=words)
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")


LR = "peak learning rate; less than the preset's to fine-tune"


def _video(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quantizer", choices=("lfq", "bsq", "fsq"), help="(default: lfq)")
    command.add_argument("--init", type=Path, metavar="FOLDER", help="start from this trained tokenizer")
    command.add_argument("--inflate", action="store_true", help="--init has seen images only: see every frame alike")
    command.add_argument("--decoder-only", action="store_true",
                         help="the encoder of --init stays, and with it the ids that a transformer knows")
    command.add_argument("--decoder-depth", type=int, metavar="N",
                         help="residual blocks of the decoder for each of the encoder (default: 1, or as --init "
                         "has); those that --init lacks are added, and change nothing at first")  # fmt: skip
    command.add_argument("--lr", type=float, help=LR)
    command.add_argument("--image-share", type=float, metavar="P", help="share of the steps on images; 1: only images")
    command.add_argument("--perceptual", metavar="MODEL",
                         help="perceptual loss: a transformers vision model, folder or name in the local cache")
    command.add_argument("--change-weight", type=float, metavar="W",
                         help="of the error of the change between frames: against flicker (default: 0)")  # fmt: skip
    command.add_argument("--join-weight", type=float, metavar="W",
                         help="of the same, only where one latent frame meets the next (default: 0)")  # fmt: skip
    command.add_argument("--adversarial-weight", type=float, metavar="W", help="0 trains without discriminator")


def _audio(command: argparse.ArgumentParser) -> None:
    command.add_argument("--init", type=Path, metavar="FOLDER", help="start from this trained tokenizer")
    command.add_argument("--lr", type=float, help=LR)
    command.add_argument("--seconds", type=float, metavar="S", help="length of the crops that are trained on")
    command.add_argument("--adversarial-weight", type=float, metavar="W", help="0 trains without discriminators")


def _main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    if args.command == "evaluate":
        from train.evaluate.command import run as evaluate

        return evaluate(args)
    if args.command == "tokenize":
        from train.tokenize_command import run as tokenize

        return tokenize(args)
    if args.command == "doctor":
        from train.doctor import run as doctor

        return doctor(args)
    from train import stages

    if args.command == "export":
        stages.export(args.model, args.out)
        print(args.out)
        return 0
    options = stages.Options(
        preset=args.preset, data=tuple(args.data or ["playground"]),
        data_weights=args.data_weights and tuple(args.data_weights), steps=args.steps, minutes=args.max_minutes,
        seed=args.seed, batch_size=args.batch_size, device=args.device, compile=args.compile, resume=args.resume,
    )  # fmt: skip
    stages.check_out(args.out)
    for needed in ("accelerate", "tensorboard") if args.command != "text-tokenizer" else ():
        if find_spec(needed) is None:
            raise InputError(f"training needs {needed}; pip install 'avpoet[train]'")
    if args.command == "lm":
        if args.tokens and not args.data and not any(args.tokens.rglob("*.parquet")):
            raise InputError(f"--tokens {args.tokens}: no ids there; avpoet-train tokenize makes them; or give --data")
        lm = stages.LMOptions(tokenizers=args.tokenizers, tokens=args.tokens, init=args.init,
                              block_size=args.block_size, visual_factors=args.visual_factors)  # fmt: skip
        metrics: dict = stages.train_lm(args.out, options, lm)
    elif args.command == "superres":
        superres = stages.SuperResOptions(tokenizers=args.tokenizers, init=args.init, lr=args.lr,
                                          captions=args.captions)  # fmt: skip
        metrics = stages.train_superres(args.out, options, superres)
    elif args.command == "video-tokenizer":
        video = stages.VideoOptions(
            quantizer=args.quantizer, init=args.init, inflate=args.inflate, decoder_only=args.decoder_only,
            decoder_depth=args.decoder_depth, lr=args.lr, image_share=args.image_share, perceptual=args.perceptual,
            change_weight=args.change_weight, join_weight=args.join_weight, adversarial_weight=args.adversarial_weight,
        )  # fmt: skip
        metrics = stages.train_video_tokenizer(args.out, options, video)
    elif args.command == "audio-tokenizer":
        audio = stages.AudioOptions(init=args.init, lr=args.lr, seconds=args.seconds,
                                    adversarial_weight=args.adversarial_weight)  # fmt: skip
        metrics = stages.train_audio_tokenizer(args.out, options, audio)
    else:
        metrics = getattr(stages, "train_" + args.command.replace("-", "_"))(args.out, options)
    print(json.dumps(metrics))
    return 0 if metrics else 1


if __name__ == "__main__":
    raise SystemExit(main())
