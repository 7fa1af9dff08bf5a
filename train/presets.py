"""Named sizes of the whole chain: which preset of each part, on clips of which size, with how much data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from train.data import MediaSpec


@dataclass(frozen=True, kw_only=True)
class ChainPreset:
    spec: MediaSpec
    parts: str  # preset name of the tokenizers and of the transformer
    text_vocab: int = 512
    n_captions: int = 20_000  # for the text tokenizer, where the data has no end
    n_clips: int = 8_192  # turned into ids for the transformer; later epochs see them again
    n_images: int = 32_768
    batch_size: dict[str, int] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)  # config.json of the model folder


CHAINS: dict[str, ChainPreset] = {
    "debug": ChainPreset(
        spec=MediaSpec(n_frames=5, size=16), parts="debug", text_vocab=320, n_captions=200, n_clips=24, n_images=24,
        batch_size={"video-tokenizer": 2, "audio-tokenizer": 2, "lm": 2},
    ),
    "tiny": ChainPreset(
        spec=MediaSpec(), parts="tiny",
        batch_size={"video-tokenizer": 16, "audio-tokenizer": 16, "lm": 32},
        sampling={"guidance_scale": 3.0, "ranges": {"visual": {"temperature": 0.8, "top_k": 100},
                                                    "audio": {"temperature": 1.0, "top_k": 100, "guided": False}}},
    ),
}  # fmt: skip
