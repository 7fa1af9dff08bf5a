"""What the commands do. All input is checked before a model is loaded; unfinished files never appear."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from tasks.check import check_levels, check_opencv, check_seed, check_size, parse_size
from tasks.errors import InputError
from tasks.table import TASKS, Task, get_task

if TYPE_CHECKING:
    from tasks.options import Progress
    from tasks.pipeline import AVPoet
    from tasks.source import Source
    from tokenizers_av.clip import Clip
    from tokenizers_av.superres import SuperResConfig

OPTIONS = ("seed", "speculative", "negative_prompt", "guidance_scale", "temperature", "top_k", "top_p")


def generate(args: Namespace) -> None:
    """Run a row of the task table and write its result."""
    from tasks.model_folder import find_model, read_config
    from tasks.request import Request
    from tokenizers_av.clip import check_output

    check_output(args.out)
    row, values = get_task(args.task), vars(args)
    inputs = _options(values, *(b.argument for b in row.inputs))
    arguments = _options(values, *(a.name for a in row.arguments))
    options = _options(values, *OPTIONS) | {name: True for name in ("keep_known", "superres") if values.get(name)}
    if "sound" in values:
        options["sound"] = args.sound and _holds_sound(args.out)
    for name, value in {**inputs, **arguments}.items():
        if name != "prompt":
            _check_not_input(args.out, value)
    config = read_config(find_model(args.model))
    asked = {**arguments, **options}
    request = Request.of(config, row.name, given=inputs, seconds=values.get("seconds"), options=asked)
    heard = row.output("audio") is not None and request.options.sound
    picture = row.output("video") is not None or row.input("video") is not None
    source = request.source
    one_image = row.is_image or (source is not None and source.is_image and row.argument_of_length == "video")
    _check_target(args.out, picture=picture, sound=heard, one_image=one_image)
    if row.output("video") is None and not _holds_sound(args.out):
        raise InputError(f"{args.out}: holds no sound, and {row.command} makes nothing else; use .mp4, .webm or .wav")
    if source is not None:
        source.try_out()
    if request.options.superres:
        _head_config(args.model)
    shown = {**inputs, **arguments, **_options(values, "seconds"), **options}
    poet = _load(args, f"generate {row.command}", shown)
    sound = (heard or row.input("audio") is not None or request.keeps_sound) and _holds_sound(args.out)
    with _bar(row) as progress:
        request = replace(request, options=replace(request.options, progress=progress))
        _write(args.out, poet.stream.answer(request), poet, sound)
    _tell_drafts(poet)
    _reporter(args.out)(args.out)


def extend(args: Namespace) -> None:
    """Write the clip and its continuation, a window at a time."""
    from tasks.request import extension_of
    from tasks.source import Source
    from tasks.story import parse_prompt

    prompts = [parse_prompt(p) for p in args.prompt or ()]
    options = {**_options(vars(args), *OPTIONS), "sound": args.sound and _holds_sound(args.out)}
    if args.superres:
        options["superres"] = True
    extension_of(args.seconds, prompts, options)
    _check_target(args.out, picture=True, sound=args.sound, one_image=False)
    _check_not_input(args.out, args.video)
    Source(args.video, need="video").try_out()
    if args.superres:
        _head_config(args.model)
    poet = _load(args, "extend", {"video": args.video, "seconds": args.seconds, "prompts": prompts, **options})
    with _bar() as progress:
        poet.extend(args.video, args.seconds, prompts, out=args.out, **options, progress=progress)
    _tell_drafts(poet)
    _reporter(args.out)(args.out)


def superres(args: Namespace) -> None:
    """Write the clip enlarged."""
    from tasks.enlarge import check_enlarging, window_for
    from tasks.model_folder import find_model, n_parameters
    from tasks.pipeline import pick_device, pick_dtype
    from tasks.source import Source
    from tokenizers_av.media_write import MAX_GIF_RATE, MediaError

    check_seed(args.seed)
    source = Source(args.media, need="video")
    _check_not_input(args.out, args.media)
    _check_target(args.out, picture=True, sound=False, one_image=source.is_image)
    if args.out.lower().endswith(".gif") and source.fps * args.rate > MAX_GIF_RATE:
        rate = source.fps * args.rate
        raise MediaError(f"{args.out}: a gif shows at most {MAX_GIF_RATE} frames a second, not {rate:g}; use .mp4")
    config = _head_config(args.model)
    check_enlarging(config, source, args.scale, args.rate, args.steps, args.noise, args.prompt)
    steps = config.steps if args.steps is None else args.steps
    dtype = pick_dtype(args.dtype, pick_device(args.device))
    n = sum(n_parameters(find_model(args.model)).values())
    window = window_for(config, source, args.scale, steps, dtype, n, args.memory_gb)
    noise = (config.noise if args.mend else 0.0) if args.noise is None else args.noise
    asked = {"scale": args.scale, "rate": args.rate, "steps": steps, "noise": noise, "seed": args.seed}
    asked |= _options(vars(args), "prompt", "memory_gb") | ({"mend": True} if args.mend else {})
    poet = _load(args, "superres", {"media": args.media, **asked, **_options({"window": window}, "window")})
    sound = source.has_audio and _holds_sound(args.out)
    parts = poet.stream.superres(args.media, **asked)
    _write(args.out, _counted(parts, source), poet, sound, source.sample_rate)
    _reporter(args.out)(args.out)


def reconstruct(args: Namespace) -> None:
    """Write the clip as the model knows it, and print how far it is from the original."""
    from tasks.source import Source

    source = Source(args.media)
    _check_not_input(args.out, args.media)
    one_image = source.has_video and source.is_image
    _check_target(args.out, picture=source.has_video, sound=source.has_audio, one_image=one_image)
    _check_parts(args, source)
    source.try_out()
    size = None if args.size is None else _picture_size(args.size, source)
    from tasks.model_folder import find_model, open_audio_tokenizer, open_video_tokenizer, read_config

    video = open_video_tokenizer(args.video_tokenizer) if args.video_tokenizer else None
    audio = open_audio_tokenizer(args.audio_tokenizer) if args.audio_tokenizer else None
    if args.levels is not None:
        n = audio.n_codebooks if audio else read_config(find_model(args.model)).layout.n_codebooks
        check_levels(args.levels, n, "--levels")
    values = {**vars(args), "size": size}
    shown = _options(values, "media", "size", "video_tokenizer", "audio_tokenizer", "levels", "spectrogram")
    poet = _load(args, "reconstruct", shown)
    if video is not None:
        poet.codec.video = video.to(poet.codec.device).eval()
    if audio is not None:
        poet.codec.audio = audio.to(poet.codec.device).eval()
    from tasks.reconstruct import Distance, reconstructed, side_by_side
    from tokenizers_av.audio.spectrogram import Spectrogram
    from tokenizers_av.clip import Clip

    distance = Distance(poet.codec.video.codebook_size, poet.codec.audio)
    drawn = Spectrogram(poet.codec.sample_rate) if args.spectrogram else None
    compare = not source.has_video and args.levels is None

    def parts() -> Iterator[Clip]:
        for r in reconstructed(poet.codec, source, size, args.levels, compare_levels=compare):
            distance.add(r)
            if drawn is not None and r.original.samples is not None and r.decoded.samples is not None:
                drawn.add(r.original.samples, r.decoded.samples)
            frames = side_by_side(r) if args.side_by_side and r.decoded.frames is not None else r.decoded.frames
            yield Clip(frames, r.decoded.fps, r.decoded.samples, r.decoded.sample_rate)

    _write(args.out, parts(), poet, source.has_audio)
    report = _reporter(args.out)
    report(args.out)
    for name, value in distance.figures().items():
        report(f"{name}: {value}")
    if drawn is not None:
        drawn.save(args.spectrogram)
        report(args.spectrogram)


def _check_parts(args: Namespace, source: Source) -> None:
    """Raise where an option is about a picture or a sound that is not there, or the spectrogram has no place."""
    for part, there, options in (
        ("picture", source.has_video, ("side_by_side", "size", "video_tokenizer")),
        ("sound", source.has_audio, ("audio_tokenizer", "levels", "spectrogram")),
    ):
        for name in options:
            if not there and getattr(args, name) not in (None, False):
                raise InputError(f"--{name.replace('_', '-')} needs a {part}, {args.media} has none")
    if args.spectrogram is None:
        return
    from tokenizers_av.audio.spectrogram import check_png

    check_png(args.spectrogram)
    _check_not_input(args.spectrogram, args.media)


def tasks(args: Namespace) -> None:
    """Print the task table."""
    print(f"{'task':<18} {'from':<26} {'to':<18} what")
    for row in TASKS.values():
        names = [f"[{b.argument}]" if b.optional else b.argument for b in row.inputs]
        names += [a.name if a.required else f"[{a.name}]" for a in row.arguments]
        inputs = ", ".join(dict.fromkeys(names)) or "nothing"
        outputs = ", ".join("image" if row.is_image else f"[{b.kind}]" if b.optional else b.kind for b in row.outputs)
        print(f"{row.command:<18} {inputs:<26} {outputs:<18} {row.summary}")
    print("\nWhat stands in [ ] may be left out; avpoet generate TASK --help tells how.")


def info(args: Namespace) -> None:
    """Print the sizes, the parameters and the vocabulary of a model, without loading its weights."""
    import json

    from lm import Vocabulary
    from tasks.model_folder import find_model, n_parameters, read_config

    folder = find_model(args.model)
    config = read_config(folder)
    layout = config.layout
    counts = n_parameters(folder)
    try:
        vocabulary = json.loads((folder / "lm" / "config.json").read_text(encoding="utf-8"))["vocabulary"]
        table = Vocabulary.from_dict(vocabulary).table()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"model folder {str(folder)!r} cannot be read ({type(error).__name__}: {error})") from None
    print(f"model       {folder}")
    print(f"picture     {config.size[0]}x{config.size[1]} pixels, {layout.n_frames} frames at {layout.fps:g} a second")
    print(f"video ids   {layout.latent_frames} x {layout.height} x {layout.width}")
    print(f"audio ids   {layout.n_codebooks} x {layout.audio_frames} at {layout.audio_rate:g} a second")
    how = [f"{kind} {json.dumps(dict(values))}" for kind, values in config.sampling.ranges.items()]
    print("sampling   ", ", ".join([f"guidance_scale {config.sampling.guidance_scale:g}", *how]))
    for task, own in config.sampling.tasks.items():
        print(f"  {task}: {json.dumps(dict(own))}")
    for part, count in counts.items():
        print(f"parameters  {count:>14,}  {part}")
    print(f"parameters  {sum(counts.values()):>14,}  together")
    print(table)


def _head_config(model: str) -> SuperResConfig:
    """The config of a model's super-resolution head; raises InputError where it has none. Needs no weights."""
    import json

    from tasks.model_folder import CONFIG, NO_HEAD, SUPERRES, find_model
    from tokenizers_av.superres import SuperResConfig

    check_opencv()
    path = find_model(model) / SUPERRES / CONFIG
    if not path.is_file():
        raise InputError(f"model {model!r} {NO_HEAD}")
    try:
        return SuperResConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not a readable config ({error})") from None


def _reporter(out: str) -> Callable[[object], None]:
    """Prints results to stdout, or to stderr where the movie itself goes to stdout."""
    return lambda line: print(line, file=sys.stderr if out == "-" else sys.stdout)


def _check_target(out: str, *, picture: bool, sound: bool, one_image: bool) -> None:
    """Raise where nothing could be written to `out`, or the result does not fit its suffix."""
    from tokenizers_av.media_formats import check_output, output_kind

    check_output(out)
    kind = output_kind(out)
    if kind == "sound" and not sound:
        raise InputError(f"{out}: holds only sound, and none is made here; use .png or a movie such as .mp4")
    if not picture and (kind in ("image", "sequence") or out.lower().endswith(".gif")):
        raise InputError(f"{out}: holds only a picture, and there is none here; use .wav or .mp4")
    if kind == "image" and not one_image:
        raise InputError(f"{out}: holds one image, the result is a video; use .mp4, or a folder name ending in /")


def _holds_sound(out: str) -> bool:
    """Whether there is room for sound in what is written to `out`; what nobody would hear is not made."""
    from tokenizers_av.media_formats import output_kind

    return output_kind(out) != "image" and not out.lower().endswith(".gif")


def _picture_size(text: str, source: Source) -> tuple[int, int]:
    """(H, W) of what `--size` says."""
    if text == "source":
        return check_size(source.picture_size(), f"--size source, {source.name} is")
    return parse_size(text, "--size")


def _check_not_input(out: str, file: str) -> None:
    """Raise where the result would take the place of what it was made from."""
    if os.path.exists(out) and os.path.exists(file) and os.path.samefile(out, file):
        raise InputError(f"{out}: is the input itself; choose another name for the output")


def _options(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names if values.get(name) is not None}


def _load(args: Namespace, command: str, values: dict[str, Any]) -> AVPoet:
    """Print what will be done, with everything resolved, then load the model."""
    from tasks.model_folder import find_model, read_config

    folder = find_model(args.model)
    config = read_config(folder)
    from tasks.pipeline import AVPoet, pick_device, pick_dtype

    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    shown: dict[str, Any] = {"model": str(folder), **values}
    if command == "reconstruct":
        shown.setdefault("size", config.size)
    elif command != "superres":
        from tasks.long_video import next_row

        row = next_row(values["sound"]) if command == "extend" else get_task(args.task)
        sampling = config.sampling.of(row.name)
        prompted = values.get("prompt") is not None or bool(values.get("prompts"))
        whole = any(b.droppable and b.kind != "text" for b in row.inputs)
        if (prompted or whole) and config.sampling.guides(row):
            shown.setdefault("guidance_scale", sampling.guidance_scale)
        for kind, how in sampling.ranges.items():
            shown[kind] = {**how, **{k: v for k, v in values.items() if k in ("temperature", "top_k", "top_p")}}
    shown.update(out=args.out, device=str(device), dtype=str(dtype).removeprefix("torch."))
    engine = {name: getattr(args, name, False) for name in ("compile", "int8")}
    shown.update({name: True for name, on in engine.items() if on})
    print(f"avpoet {command}", *(f"  {k} = {v!r}" for k, v in shown.items()), sep="\n", file=sys.stderr)
    return AVPoet.from_pretrained(folder, device=device, dtype=dtype, **engine)


def _tell_drafts(poet: AVPoet) -> None:
    """Say how speculative decoding went, if it was asked for."""
    t = poet.generator.tally
    if t.tested:
        print(f"{t.ids} ids in {t.passes} passes, {t.accepted / t.tested:.0%} of the drafts kept", file=sys.stderr)


def _write(out: str, parts: Iterable[Clip], poet: AVPoet, sound: bool, sample_rate: int | None = None) -> None:
    """Stream the parts into a file, which appears when it is whole; sound is of the model's rate unless told."""
    from tokenizers_av.clip import ClipWriter

    parts = iter(parts)
    first = next(parts)
    size = None if first.frames is None else (first.height, first.width)
    rate = (sample_rate or poet.codec.sample_rate) if sound else None
    with ClipWriter(out, fps=first.fps, size=size, sample_rate=rate) as writer:
        for part in chain([first], parts):
            writer.write(part.frames, part.samples if sound else None)


def _counted(parts: Iterable[Clip], source: Source) -> Iterator[Clip]:
    """The parts, with a progress bar that counts frames."""
    from tqdm import tqdm

    with tqdm(desc="superres", unit="frame", delay=2, file=sys.stderr, dynamic_ncols=True) as bar:
        for part in parts:
            yield part
            if source.seconds:
                bar.total = round(source.seconds * part.fps)
            bar.update(part.n_frames)


@contextmanager
def _bar(row: Task | None = None) -> Iterator[Progress]:
    """A progress bar with the time left, on stderr, for what takes longer than two seconds."""
    from tqdm import tqdm

    with tqdm(desc=row.command if row else "extend", unit="id", delay=2, file=sys.stderr, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
