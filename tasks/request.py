"""What is asked of a row of the task table, looked over before any model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.check import check_prompt, check_result, check_seconds
from tasks.errors import InputError
from tasks.model_folder import PoetConfig
from tasks.options import Options
from tasks.sequence import Layout
from tasks.source import Source
from tasks.story import Prompts, Story
from tasks.table import get_task
from tasks.task import Conditioner, Task
from tokenizers_av.clip import MediaError

MEDIA = ("image", "video", "audio")  # inputs that are read from a Source


@dataclass(frozen=True)
class Request:
    """What is asked for, checked; `source` is the picture or sound that goes in, if one does."""

    row: Task
    prompt: str | None
    source: Source | None
    conditioner: Conditioner | None
    seconds: float | None
    options: Options

    @property
    def keeps_sound(self) -> bool:
        """Whether the sound of a video comes back with what is made of its picture."""
        source = self.source
        if source is None or source.is_image or self.row.condition is None or self.row.fixed_length:
            return False
        return self.options.sound and source.has_audio

    @classmethod
    def of(
        cls, config: PoetConfig, task: str, *, given: Mapping[str, Any], seconds: float | None,
        options: Mapping[str, Any],
    ) -> Request:  # fmt: skip
        """`given` are the inputs by name (prompt, image, video, audio), `options` everything else.

        Raises InputError, and MediaError where a file does not fit.
        """
        row = get_task(task)
        names = {a.name for a in row.arguments}
        opts = options_of({k: v for k, v in options.items() if k not in names})
        check_inputs(row, given)
        check_length(row, seconds)
        check_choices(row, keep_known=opts.keep_known, superres=opts.superres)
        check_guidance(row, opts, prompted=given.get("prompt") is not None, guides=config.sampling.guides(row))
        name = next((n for n in MEDIA if given.get(n) is not None), None)
        source = None if name is None else Source(given[name], need="audio" if name == "audio" else "video")
        if source is not None and row.needs_sound and not source.has_audio:
            raise MediaError(f"{source.name}: has no sound, which {row.command} goes on from")
        if source is not None and seconds is not None:
            _check_future(row, source, seconds, config.layout)
        arguments = check_arguments(row, options)  # last: a depth model is opened here
        conditioner = None
        if row.condition is not None and source is not None:
            conditioner = row.condition.open(source.picture_size(), config.size, config.layout.fps, **arguments)
            if opts.keep_known:
                check_result(conditioner.canvas, "the picture with its known pixels")
        return cls(row, given.get("prompt"), source, conditioner, seconds, opts)


def check_inputs(row: Task, given: Mapping[str, object]) -> None:
    """Each input of the row is there unless optional, and nothing else; raises InputError. Needs no model."""
    for block in row.inputs:
        value = given.get(block.argument)
        if value is None and not block.optional:
            raise InputError(f"{row.command} needs a{'n' * (block.argument[0] in 'aio')} {block.argument}")
        if block.kind == "text" and value is not None:
            check_prompt(value)
    known = {b.argument for b in row.inputs}
    for name, value in given.items():
        if value is not None and name not in known:
            takes = " and ".join(dict.fromkeys(b.argument for b in row.inputs)) or "nothing but a seed"
            raise InputError(f"{row.command} takes {takes}, it takes no {name}")


def check_arguments(row: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    """The further arguments of a row, parsed; raises InputError or MediaError. Needs no model."""
    values = {}
    for argument in row.arguments:
        value = given.get(argument.name)
        if value is None and argument.required:
            raise InputError(f"{row.command} needs {argument.name}: {argument.help}")
        values[argument.name] = argument.default if value is None else argument.parse(value)
    return values


def check_choices(row: Task, *, keep_known: bool, superres: bool) -> None:
    """Raise InputError where a row has nothing that these could be about, or one rules out the other."""
    if keep_known and not (row.condition and row.condition.keeps):
        raise InputError(f"{row.command} has no known pixels to keep")
    if superres and row.output("video") is None:
        raise InputError(f"{row.command} makes no picture that superres could enlarge")
    if superres and keep_known:
        raise InputError("superres draws every pixel anew, keep_known keeps some: choose one of them")


def check_guidance(row: Task, options: Options, *, prompted: bool, guides: bool = True) -> None:
    """Raise InputError where guidance is asked for and the model `guides` nothing of what the row makes, or there is
    nothing that it could push away from."""
    asked = options.guidance_scale not in (None, 1) or options.negative_prompt is not None
    if asked and not guides:
        raise InputError(f"{row.command}: this model's {row.outputs[-1].kind} is drawn without guidance: leave out "
                         "guidance_scale and negative_prompt")  # fmt: skip
    if prompted:
        return
    if options.negative_prompt is not None:
        raise InputError("negative_prompt needs a prompt: it takes the place of none, from which guidance leads away")
    whole = any(b.droppable and b.kind != "text" for b in row.inputs)
    if options.guidance_scale not in (None, 1) and not whole:
        raise InputError(f"guidance_scale={options.guidance_scale:g} needs a prompt: without one there is nothing "
                         "that the result could follow closer")  # fmt: skip


def check_length(row: Task, seconds: float | None) -> None:
    """Raise InputError where a row cannot make so many seconds."""
    if seconds is None:
        return
    check_seconds(seconds)
    if row.fixed_length:
        raise InputError(f"{row.command} makes one {'image' if row.is_image else 'clip'}, it takes no seconds")


def extension_of(seconds: float, prompts: Prompts, options: Mapping[str, Any]) -> tuple[Story, Options]:
    """What a clip is to be continued by, checked; raises InputError. Needs no model."""
    from tasks.long_video import next_row

    opts = options_of(options)
    check_seconds(seconds)
    story = Story(prompts, seconds)
    check_guidance(next_row(opts.sound), opts, prompted=bool(story.texts))
    return story, opts


def _check_future(row: Task, source: Source, seconds: float, layout: Layout) -> None:
    """Raise InputError where nothing would follow the frames that are given."""
    from tasks.long_video import n_kept

    if source.seconds is None or all(b.part != "context" for b in row.inputs):
        return
    n_given = min(n_kept(layout), max(1, round(source.seconds * layout.fps)))
    n_given -= (n_given - 1) % layout.temporal_stride
    if seconds * layout.fps < n_given + 0.5:
        raise InputError(f"seconds={seconds:g}: the result begins with the last {n_given / layout.fps:g} seconds of "
                         f"{source.name}; ask for more than that")  # fmt: skip


def options_of(options: Mapping[str, Any]) -> Options:
    """The options among keyword arguments; InputError for unknown ones."""
    try:
        return Options(**options)
    except TypeError as error:
        names = ", ".join(Options.__dataclass_fields__)
        raise InputError(f"{str(error).split('__init__() ')[-1]}; the options are {names}") from None
