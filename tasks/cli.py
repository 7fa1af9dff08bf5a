"""The `avpoet` command: what can be typed. What is then done is in `tasks.actions`, loaded when needed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tasks.command import Parser, run, terminate_cleanly
from tasks.table import TASKS, Task

__all__ = ["Parser", "build_parser", "main", "run"]

EXIT_CODES = "exit codes: 0 done, 1 failed, 2 wrong usage or unusable input, 130 interrupted"
_EXAMPLE_INPUT = {
    "prompt": '"a red ball bounces on a wooden floor"',
    "image": "photo.png",
    "video": "clip.mp4",
    "audio": "sound.wav",
    "mask": "16,16,32,32",
    "last": "end.png",
    "left": "32",
}
_INPUT_HELP = {
    "image": "an image, or a video whose first frame is taken",
    "video": "a video file of any size and length",
    "audio": "a file with sound, of any length",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    with terminate_cleanly():
        return run(_main, argv, "avpoet")


def _main(argv: Sequence[str]) -> int:
    arguments = build_parser().parse_args(argv)
    from tasks import actions

    getattr(actions, arguments.action)(arguments)
    return 0


def build_parser() -> Parser:
    parser = Parser(
        prog="avpoet",
        description="Video, images and sound from words, pictures and clips.\n" + EXIT_CODES,
        example=[
            'avpoet generate text-to-video "a red ball bounces" --out ball.mp4',
            "avpoet extend ball.mp4 --seconds 10 --out long.mp4",
            "avpoet superres ball.mp4 --out large.mp4",
            "avpoet reconstruct ball.mp4 --out recon.mp4 --side-by-side",
            "avpoet tasks",
        ],
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    _generate(commands)
    _extend(commands)
    _superres(commands)
    _reconstruct(commands)
    tasks = commands.add_parser(
        "tasks", help="list what can be generated", description="Print the task table.", example="avpoet tasks"
    )
    tasks.set_defaults(action="tasks")
    info = commands.add_parser(
        "info",
        help="sizes, parameters and vocabulary of a model",
        description="Print the sizes, the parameters and the vocabulary of a model.",
        example=["avpoet info", "avpoet info path/to/model"],
    )
    info.add_argument("model", nargs="?", default="tiny", metavar="MODEL", help=_MODEL_HELP)
    info.set_defaults(action="info")
    return parser


def _generate(commands: argparse._SubParsersAction) -> None:
    generate = commands.add_parser(
        "generate",
        help="make a video, an image or a sound",
        description="\n".join(f"{t.command:<18} {t.summary}" for t in TASKS.values()),
        example=[example(task) for task in TASKS.values()],
    )
    rows = generate.add_subparsers(dest="task", metavar="TASK", required=True, parser_class=Parser)
    for task in TASKS.values():
        _task(rows, task)


def _task(rows: argparse._SubParsersAction, task: Task) -> None:
    """A sub-command whose arguments are read off the row."""
    parser = rows.add_parser(task.command, help=task.summary, description=task.summary, example=example(task))
    parser.set_defaults(action="generate")
    for name in dict.fromkeys(b.argument for b in task.inputs):
        block = next(b for b in task.inputs if b.argument == name)
        if block.kind == "text":
            flag = "--prompt" if block.optional else "prompt"
            parser.add_argument(flag, metavar="TEXT", help="what shall be seen, at most 1,000 characters")
        else:
            parser.add_argument(name, metavar=name.upper(), help=_INPUT_HELP[name])
    for argument in task.arguments:
        parser.add_argument(
            f"--{argument.name.replace('_', '-')}", metavar=argument.metavar, required=argument.required,
            help=argument.help,
        )  # fmt: skip
    if task.condition is not None and task.condition.keeps:
        parser.add_argument("--keep-known", action="store_true", help="give the known pixels back as they were")
    seconds: str | None = "length of the result; without it that of the model's clips"
    if task.argument_of_length is not None:
        seconds = f"take only the beginning of the {task.argument_of_length}; without it all of it"
    _common(
        parser,
        seconds=None if task.fixed_length else seconds,
        prompt=task.input("text") is not None,
        guided=any(b.droppable for b in task.inputs),
        sound=any(b.kind == "audio" and b.optional for b in task.outputs),
        picture=task.output("video") is not None,
    )


def _extend(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "extend",
        help="continue a video for any length",
        description="The clip at the model's rate and number of pixels, followed by new seconds, in constant memory.",
        example=[
            "avpoet extend clip.mp4 --seconds 60 --out long.mp4",
            'avpoet extend clip.mp4 --seconds 8 --prompt "a ball falls" --prompt "a ball rolls" --out long.mp4',
        ],
    )
    parser.set_defaults(action="extend")
    parser.add_argument("video", metavar="FILE", help="a video or an image")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help='may be given several times: spread over the new seconds, or each with its time: "12: a ball falls"',
    )
    _common(parser, seconds="how much to add", prompt=True, guided=True, sound=True, picture=True, need_seconds=True)


def _superres(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "superres",
        help="enlarge any video or image with the super-resolution head",
        description="Frames twice or four times as high and wide, with --rate up to three times as many a second,\n"
        "of any length, with their own sound, in constant memory. Sound is mixed to mono, of at most 48 kHz;\n"
        "frames come out with at most 8K (7680x4320).",
        example=[
            "avpoet superres clip.mp4 --scale 4 --out large.mp4",
            "avpoet superres ball.mp4 --rate 3 --mend --out smooth.mp4",
            "avpoet superres clip.mp4 --memory-gb 3 --out large.mp4",
            "avpoet superres photo.png --scale 2 --steps 8 --noise 0.1 --out large.png",
        ],
    )
    parser.set_defaults(action="superres")
    parser.add_argument("media", metavar="FILE", help="a video or an image")
    parser.add_argument("--out", required=True, metavar="FILE", help=_OUT_HELP)
    parser.add_argument("--scale", type=int, default=4, metavar="N", help="2 or 4 (the default)")
    parser.add_argument("--rate", type=int, default=1, metavar="N", help="frames a second: 1, 2 or 3 times as many")
    parser.add_argument("--mend", action="store_true", help="a model drew the frames: mend what it got wrong")
    parser.add_argument("--prompt", metavar="TEXT", help="what is seen, for a head that was trained with text")
    parser.add_argument("--steps", type=int, metavar="N", help="1, 2, 4 or 8; without it the head's own")
    parser.add_argument(
        "--noise",
        type=float,
        metavar="S",
        help="what detail grows from; 0 makes nothing up; without it 0, or with --mend the head's own",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same result")
    parser.add_argument(
        "--memory-gb", type=float, metavar="G",
        help="hold less than G: frames that are too large are drawn in windows, to the same picture; what waits "
        "lies in the temporary folder (TMPDIR)",
    )  # fmt: skip
    _model(parser)


def _reconstruct(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "reconstruct",
        help="code a clip into ids and back, and print the difference",
        description="What the model can know of a video, an image or a sound: through the tokenizers and back, at the\n"
        "model's frame rate, as one clip of any length in constant memory. Of a sound without a picture the\n"
        "figures are given for every number of levels, unless --levels picks one.",
        example=[
            "avpoet reconstruct clip.mp4 --out recon.mp4 --side-by-side",
            "avpoet reconstruct clip.mp4 --out recon.mp4 --size 240x320",
            "avpoet reconstruct sound.wav --out recon.wav --levels 2 --spectrogram sound.png",
        ],
    )
    parser.set_defaults(action="reconstruct")
    parser.add_argument("media", metavar="FILE", help="a video, an image or a sound file")
    parser.add_argument("--out", required=True, metavar="FILE", help=_OUT_HELP)
    parser.add_argument(
        "--size", metavar="SIZE", help="HxW pixels, N for a square, or source: the clip's own; without it the model's"
    )
    parser.add_argument("--side-by-side", action="store_true", help="show the original on the left")
    parser.add_argument(
        "--video-tokenizer", metavar="FOLDER", help="use this one instead, such as avpoet-train video-tokenizer leaves"
    )
    parser.add_argument("--audio-tokenizer", metavar="FOLDER", help="the same for sound, of any sample rate")
    parser.add_argument(
        "--levels", type=int, metavar="K", help="decode sound from the first K levels of its ids; without it from all"
    )
    parser.add_argument(
        "--spectrogram", metavar="FILE.png", help="draw the sound: the original above, its reconstruction below"
    )
    _model(parser)


_MODEL_HELP = "tiny (the default), a model folder, or a hub name owner/name"
_OUT_HELP = (
    "the suffix decides: .mp4 .mov .mkv .webm .gif, .png (one image), .wav (only sound), or a folder name/; "
    "- is an mp4 to standard output, to be played while it is made"
)


_NO_SOUND_HELP = (
    "make the picture only, as for .gif and .png; a video longer than the model's clips is then another one than with "
    "sound"
)


def _common(
    parser: Parser, *, seconds: str | None, prompt: bool, guided: bool, sound: bool, picture: bool,
    need_seconds: bool = False,
) -> None:  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FILE", help=_OUT_HELP)
    if seconds:
        seconds += "; at most 86400"
        parser.add_argument("--seconds", type=float, metavar="S", required=need_seconds, help=seconds)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same result")
    if prompt:
        parser.add_argument("--negative-prompt", metavar="TEXT", help="what shall not be seen")
    if guided:
        parser.add_argument("--guidance-scale", type=float, metavar="G", help="follow the input closer; 1 is off")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest id")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest ids; 0 is off")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest ids that sum to P; 1 is off")
    parser.add_argument("--speculative", type=int, default=0, metavar="W",
                        help="draft ids and check W of them in a pass: fewer passes")  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="compile the transformer: for minutes of video")
    parser.add_argument("--int8", action="store_true", help="round the weights of the transformer to 8 bits")
    if picture:
        parser.add_argument("--superres", action="store_true", help="frames four times as high and wide")
    if sound:
        parser.add_argument("--no-sound", dest="sound", action="store_false", help=_NO_SOUND_HELP)
    _model(parser)


def _model(parser: Parser) -> None:
    parser.add_argument("--model", default="tiny", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; without it an accelerator if there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the transformer and the head")


def example(task: Task) -> str:
    """A command that runs a row, such as `avpoet generate image-to-video photo.png --prompt "..." --out out.mp4`."""
    words = ["avpoet generate", task.command]
    options = []
    for block in {b.argument: b for b in task.inputs}.values():
        value = _EXAMPLE_INPUT[block.argument]
        options += [f"--{block.argument} {value}"] if block.optional else []
        words += [] if block.optional else [value]
    options += [f"--{a.name} {_EXAMPLE_INPUT[a.name]}" for a in task.arguments if a.name in _EXAMPLE_INPUT]
    return " ".join([*words, *options, "--out", default_out(task)])


def default_out(task: Task) -> str:
    """A file name that holds what a row makes."""
    if task.is_image:
        return "out.png"
    return "out.mp4" if task.output("video") or task.input("video") else "out.wav"


class _Version(argparse.Action):
    """Prints the installed version, looked up when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        from importlib.metadata import version

        print(f"avpoet {version('avpoet')}")
        parser.exit()
