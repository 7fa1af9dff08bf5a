"""Which media files there are: suffixes, the error for unsuitable media, and the check of a place to write to."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
from pathlib import Path

# suffix -> (container, video codec, audio codec)
MOVIE_FORMATS = {
    ".mp4": ("mp4", "libx264", "aac"),
    ".m4v": ("mp4", "libx264", "aac"),
    ".mov": ("mov", "libx264", "aac"),
    ".mkv": ("matroska", "libx264", "aac"),
    ".webm": ("webm", "libvpx-vp9", "libopus"),
    ".gif": ("gif", "gif", None),
}
OUTPUT_SUFFIXES = (*MOVIE_FORMATS, ".png", ".wav")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".gif",
    ".mpg",
    ".mpeg",
    ".ts",
    ".wmv",
    ".flv",
    ".ogv",
)
AUDIO_SUFFIXES = (".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma")
INPUT_SUFFIXES = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, *AUDIO_SUFFIXES)

MediaPath = str | os.PathLike[str]


class MediaError(ValueError):
    """A media file cannot be read or written, or does not hold what is needed; one line that names the file."""


class WriteFailed(OSError, MediaError):
    """The system or an encoder gave up in the middle of writing: a full disk, a reader that went away."""


def output_kind(path: MediaPath) -> str:
    """Return "movie", "image", "sequence" or "sound": what writing to `path` makes, by its ending alone.

    "-", standard output, takes a movie.
    """
    name = os.fspath(path)
    if name == "-":
        return "movie"
    suffix = Path(name).suffix.lower()
    if name.endswith(("/", os.sep)) or (suffix == ".png" and is_numbered(name)):
        return "sequence"
    if suffix in MOVIE_FORMATS:
        return "movie"
    if suffix == ".png":
        return "image"
    if suffix == ".wav":
        return "sound"
    what = f"unknown suffix {suffix!r}" if suffix else "no suffix"
    raise MediaError(
        f'{name}: {what}; use one of {" ".join(OUTPUT_SUFFIXES)}, or a folder name ending in "/" for a png sequence'
    )


def is_numbered(name: str) -> bool:
    """Whether a file name holds a place for a number, as in frame_%05d.png; my%20dog.png holds none."""
    base = os.path.basename(name)
    return base.count("%") == 1 and re.search(r"%(0\d+)?d", base) is not None


def sequence_folder(path: MediaPath) -> tuple[Path, str]:
    """Split a png-sequence target into its folder and its numbered file name (%05d.png where none is given)."""
    name = os.fspath(path)
    if is_numbered(name):
        return Path(name).parent, os.path.basename(name)
    return Path(name), "%05d.png"


def check_output(path: MediaPath) -> None:
    """Raise MediaError, before any work is done, where nothing could be written to `path` later.

    The suffix must be known, the parent folder must exist and take a new file (tried, because file modes say nothing
    to root or on a read-only disk), and a folder for a png sequence must be new or empty. Standard output ("-") must
    lead somewhere else than to a terminal.
    """
    name = os.fspath(path)
    if not name:
        raise MediaError(f"the output path is empty; use a name ending in {' '.join(OUTPUT_SUFFIXES)}")
    if name == "-":
        if not hasattr(sys.stdout, "buffer"):  # closed, or replaced by something that takes only text
            raise MediaError("-: there is no standard output that takes bytes; give a file name")
        if sys.stdout.isatty():
            raise MediaError("-: standard output is a terminal; pipe it into a player (| ffplay -) or a file (> a.mp4)")
        return
    target = Path(name)
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise MediaError(f"{name}: cannot be written ({error.strerror or error})") from None
    if output_kind(path) == "sequence":
        target, _ = sequence_folder(path)
        if target.exists() and not target.is_dir():
            raise MediaError(f"{name}: is a file; a png sequence needs a new or empty folder")
        if target.is_dir() and any(target.iterdir()):
            raise MediaError(f"{name}: the folder {target} is not empty; a png sequence needs a new or empty one")
        target = target.absolute()
    elif target.is_dir():
        raise MediaError(f"{name}: is a folder; give a file name")
    parent = target.parent
    if parent.exists() and not parent.is_dir():
        raise MediaError(f"{name}: {parent} is a file, not a folder")
    if not parent.is_dir():
        raise MediaError(f"{name}: the folder {parent} does not exist; make it first")
    trial = hidden_sibling(target)
    try:
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise MediaError(f"{name}: cannot write to the folder {parent} ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()


def hidden_sibling(target: Path) -> Path:
    """A fresh hidden name in the folder of `target`: on the same disk, so that a rename to `target` is atomic."""
    return target.parent / f".avpoet-{secrets.token_hex(6)}.part"
