"""Sizes of the super-resolution head, and how it is sampled by default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

SCALES = (2, 4)  # enlargements of height and width
STEPS = (1, 2, 4, 8)  # of the sampler
RATES = (1, 2, 3)  # how many frames are made of one


@dataclass(frozen=True, kw_only=True)
class SuperResConfig:
    """A causal network of two resolutions: 1/patch of the large frame's height and width, and half of that."""

    patch: int = 4  # pixels of the large frame folded into channels
    dims: tuple[int, int] = (64, 128)  # channels at each resolution
    n_blocks: int = 3  # residual blocks at the finer resolution, on the way in and again on the way out
    n_inner_blocks: int = 8  # at the coarser resolution
    code_dim: int = 64  # of the embedding of time, noise level, scale, text and whether a clip was decoded
    text_size: int = 0  # ids of the text tokenizer that it looks at; with 0 at no text
    max_noise: float = 0.15  # highest noise level it has learned, on the scale of pixels in [-1, 1]
    steps: int = 4  # of the sampler, unless asked otherwise
    noise: float = 0.0  # the sampler's noise level where clips may be mended, unless asked otherwise

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))  # a list where it comes from JSON
        if len(self.dims) != 2 or min(self.dims) < 1 or (4 * self.dims[0]) % self.dims[1]:
            raise ValueError(f"dims={self.dims}: need two widths, four times the first a multiple of the second")
        for name in ("patch", "n_blocks", "n_inner_blocks", "code_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: need at least 1")
        if self.text_size < 0:
            raise ValueError(f"text_size={self.text_size}: need 0 or more")
        if not 0 <= self.max_noise < math.inf:
            raise ValueError(f"max_noise={self.max_noise}: need a number, 0 or more")
        check_sampling(self, self.steps, self.noise)

    @property
    def stride(self) -> int:
        """What height and width of the large frame are filled up to a multiple of."""
        return 2 * self.patch

    @property
    def reach(self) -> int:
        """How many pixels away what goes in still counts for what comes out, filled up to the stride."""
        fine = -(-(self.n_blocks + 1) // 2)  # in strides
        return self.stride * (2 * fine + self.n_inner_blocks)


def check_scale(scale: int) -> None:
    """Raise ValueError for an enlargement that heads do not learn."""
    if scale not in SCALES:
        raise ValueError(f"scale={scale}: expected {' or '.join(map(str, SCALES))}")


def check_rate(rate: int) -> None:
    """Raise ValueError for a number of frames that is not made of one."""
    if rate not in RATES or isinstance(rate, float | bool):
        raise ValueError(f"rate={rate}: expected {', '.join(map(str, RATES[:-1]))} or {RATES[-1]}")


def check_sampling(config: SuperResConfig, steps: int, noise: float) -> None:
    """Raise ValueError unless the head can be sampled so."""
    if steps not in STEPS:
        raise ValueError(f"steps={steps}: expected one of {', '.join(map(str, STEPS))}")
    if not 0 <= noise <= config.max_noise:
        raise ValueError(f"noise={noise}: this head has learned levels of 0 to {config.max_noise:g}")


SUPERRES_PRESETS: dict[str, dict[str, Any]] = {
    "debug": {"dims": (16, 16), "n_blocks": 1, "n_inner_blocks": 1, "code_dim": 8},
    "tiny": {"steps": 2, "noise": 0.1},
    "base": {"dims": (192, 384), "n_blocks": 4, "n_inner_blocks": 16, "code_dim": 256},
}


def superres_config(preset: str, **overrides: Any) -> SuperResConfig:
    """The config of a named preset with some fields replaced; raises ValueError for an unknown name."""
    if preset not in SUPERRES_PRESETS:
        raise ValueError(f"unknown super-resolution preset {preset!r}, expected one of {sorted(SUPERRES_PRESETS)}")
    return SuperResConfig(**{**SUPERRES_PRESETS[preset], **overrides})
