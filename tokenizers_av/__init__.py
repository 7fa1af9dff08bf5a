"""Everything between media and ids, both ways: files, video, audio, text.

Names are loaded when first used, so that reading a file's format does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers_av.audio import AudioTokenizer
    from tokenizers_av.clip import Clip, ClipReader, ClipWriter, MediaError, check_output, read_clip
    from tokenizers_av.text import TextTokenizer
    from tokenizers_av.video import VideoTokenizer

_MODULE = {
    "AudioTokenizer": "tokenizers_av.audio",
    "TextTokenizer": "tokenizers_av.text",
    "VideoTokenizer": "tokenizers_av.video",
    **dict.fromkeys(
        ("Clip", "ClipReader", "ClipWriter", "MediaError", "check_output", "read_clip"), "tokenizers_av.clip"
    ),
}

__all__ = [
    "AudioTokenizer",
    "Clip",
    "ClipReader",
    "ClipWriter",
    "MediaError",
    "TextTokenizer",
    "VideoTokenizer",
    "check_output",
    "read_clip",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
