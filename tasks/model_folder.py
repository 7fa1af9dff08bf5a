"""A whole model is a folder: config.json, README.md, and one folder each for the tokenizers and the transformer."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import InputError

if TYPE_CHECKING:
    from lm import Sampling
    from tasks.sequence import Layout
    from tasks.task import Task
    from tokenizers_av.audio import AudioTokenizer
    from tokenizers_av.superres import SuperRes
    from tokenizers_av.video import VideoTokenizer

CONFIG = "config.json"
PARTS = ("video_tokenizer", "audio_tokenizer", "text_tokenizer", "lm")
SUPERRES = "superres"  # a part that a folder may have
NO_HEAD = "has no super-resolution head; avpoet-train superres makes one, as a folder superres in that of the model"
FORMAT = 1  # raised when an older program could no longer read the folder
SHIPPED = ("tiny",)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class SamplingDefaults:
    """How this model is best sampled.

    `ranges` holds temperature, top_k, top_p and guided, whether guidance acts, for "visual" and "audio". `tasks` holds
    what is otherwise for single tasks, by name: guidance_scale, or one of the four for all ranges.
    """

    guidance_scale: float = 1.0
    ranges: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, task: str) -> SamplingDefaults:
        """Those of a task."""
        own = dict(self.tasks.get(task, {}))
        scale = own.pop("guidance_scale", self.guidance_scale)
        return SamplingDefaults(scale, {kind: {**how, **own} for kind, how in self.ranges.items()})

    def guides(self, task: Task) -> bool:
        """Whether guidance acts on anything that a task draws."""
        how = self.of(task.name).resolve(None, None, None)
        return any(how["visual" if b.kind == "video" else b.kind].guided for b in task.outputs)

    def resolve(self, temperature: float | None, top_k: int | None, top_p: float | None) -> dict[str, Sampling]:
        """The sampling of every kind of range; what the caller gave replaces the model's own setting everywhere."""
        from lm import Sampling

        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        kinds = ("visual", "audio")  # "audio" stands for audio_0, audio_1, ...
        return {kind: Sampling(**{**self.ranges.get(kind, {}), **changes}) for kind in kinds}


@dataclass(frozen=True)
class PoetConfig:
    """config.json of a model folder."""

    layout: Layout
    size: tuple[int, int]  # (H, W) of frames in pixels
    sampling: SamplingDefaults = SamplingDefaults()

    def to_dict(self) -> dict[str, Any]:
        return {
            "avpoet_format": FORMAT,
            "layout": self.layout.to_dict(),
            "size": list(self.size),
            "sampling": asdict(replace(self.sampling, ranges={k: dict(v) for k, v in self.sampling.ranges.items()})),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PoetConfig:
        from tasks.sequence import Layout

        height, width = values["size"]
        layout = Layout.from_dict(values["layout"])
        return cls(layout, (height, width), SamplingDefaults(**values.get("sampling", {})))

    def save(self, folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def find_model(model: str | Path) -> Path:
    """The local folder of "tiny", of a folder, or of a hub name owner/name (downloaded once); needs no torch.

    Raises InputError where there is none, or where it lacks a part.
    """
    name = str(model)
    if name in SHIPPED and not (Path(name) / CONFIG).is_file():
        folder = Path(str(files("tasks"))) / "models" / name
    elif name and Path(name).is_dir():
        folder = Path(name)
    elif name and Path(name).exists():
        raise InputError(f"model {name!r} is a file, expected {_EXPECTED}")
    elif _HUB_NAME.fullmatch(name):
        folder = _download(name)
    else:
        raise InputError(f"no model {name!r}, expected {_EXPECTED}")
    missing = [part for part in (CONFIG, *PARTS) if not (folder / part).exists()]
    if missing:
        raise InputError(
            f"model folder {str(folder)!r} lacks {', '.join(missing)}; expected config.json, "
            f"{', '.join(PARTS)} as save_pretrained writes them"
        )
    return folder


def find_parts(model: str | Path, parts: Iterable[str]) -> Path:
    """The folder that holds these parts: one that may hold no more, or any that `find_model` knows; InputError."""
    folder = Path(model)
    if not folder.is_dir():
        return find_model(model)
    for part in parts:
        if not (folder / part / CONFIG).is_file():
            raise InputError(f"{folder}: has no {part}; train it first, or name its folder's parent")
    return folder


_EXPECTED = f"{' or '.join(map(repr, SHIPPED))}, a model folder, or a hub name of the form owner/name"


def read_config(folder: Path) -> PoetConfig:
    """config.json, or InputError where it is damaged or from a newer version."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("avpoet_format")
        if version != FORMAT:
            raise InputError(f"{path}: avpoet_format is {version}, this version reads {FORMAT}")
        return PoetConfig.from_dict(values)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a readable model config ({type(error).__name__}: {error})") from error


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"no model folder {name!r} here and none to be had from the hub: {reason}") from error


def model_card(config: PoetConfig) -> str:
    """README.md of a saved model."""
    layout, (height, width) = config.layout, config.size
    return f"""---
library_name: avpoet
pipeline_tag: text-to-video
---
# avpoet model

Text, images, video and sound as one stream of ids: {layout.n_frames} frames of {height}x{width} pixels at
{layout.fps:g} frames a second, with sound. Load it with

```python
from tasks import AVPoet
poet = AVPoet.from_pretrained("path/to/this/folder")
poet.text_to_video("a red ball bounces", seed=0).save("ball.mp4")
```
"""


def n_parameters(folder: Path) -> dict[str, int]:
    """Numbers in the weight files of each part that has such, from their headers; InputError for damaged ones."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    counts: Counter[str] = Counter()
    for path in (path for part in (*PARTS, SUPERRES) for path in sorted((folder / part).glob("*.safetensors"))):
        try:
            with safe_open(path, framework="pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            what = f"model folder {str(folder)!r} cannot be read"
            raise InputError(f"{what} ({path.parent.name}: {type(error).__name__}: {error})") from None
        counts[path.parent.name] += sum(map(prod, shapes))
    return dict(counts)


def open_video_tokenizer(folder: str | Path) -> VideoTokenizer:
    """The video tokenizer in a folder of its own; raises InputError where there is none, or a damaged one."""
    from tokenizers_av.video import VideoTokenizer

    return _open_part(VideoTokenizer, folder, "video tokenizer")


def open_audio_tokenizer(folder: str | Path) -> AudioTokenizer:
    """The audio tokenizer in a folder of its own; raises InputError where there is none, or a damaged one."""
    from tokenizers_av.audio import AudioTokenizer

    return _open_part(AudioTokenizer, folder, "audio tokenizer")


def open_superres(folder: str | Path) -> SuperRes:
    """The super-resolution head in a folder of its own; raises InputError where there is none, or a damaged one."""
    from tokenizers_av.superres import SuperRes

    return _open_part(SuperRes, folder, "super-resolution head")


def _open_part(kind: Any, folder: str | Path, name: str) -> Any:
    from safetensors import SafetensorError

    if not (Path(folder) / CONFIG).is_file():
        raise InputError(f"{folder}: no {name} there, expected a folder with {CONFIG} and model.safetensors")
    try:
        with quietly():
            return kind.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: no {name} that can be opened ({error})") from None


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the libraries' own messages and bars out of stdout and stderr while a model is loaded or saved."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
