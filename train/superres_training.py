"""How a super-resolution head is trained: the numbers behind `SuperResJob`."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SuperResTraining:
    """How a super-resolution head is trained; the defaults are those of `tiny`."""

    lr: float = 2e-3
    ema: float = 0.995
    n_frames: int = 5  # of a clip, 1 + a multiple of 4
    steady_weight: float = 0.05  # of how the error changes along the motion, beside the error itself
    crop: int = 128  # height and width that is learned from, in pixels of the large frame
    crops_per_clip: int = 2  # making a clip costs more than cutting it
    half_share: float = 0.2  # of the steps that double the size; the others make it four times as large
    captions: bool = False  # whether the head looks at text
    text_share: float = 0.75  # of the clips whose caption is told, if so
    clean_share: float = 0.13  # of the clips whose low side is only downsampled
    camera_share: float = 0.07  # blurred, noisy, compressed; the rest goes through the tokenizer
    max_flips: float = 0.15  # ids with a wrong bit, from none to this share, in half of the clips that are coded
    regression: bool = False  # always time 0 without noise: a plain network of one step, to compare with

    def __post_init__(self) -> None:
        for name in ("ema", "half_share", "text_share", "clean_share", "camera_share", "max_flips"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: need 0 to 1")
        if self.clean_share + self.camera_share > 1:
            raise ValueError(f"clean_share={self.clean_share} and camera_share={self.camera_share} are more than all")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr}: need a number above 0")
        if not 0 <= self.steady_weight < math.inf:
            raise ValueError(f"steady_weight={self.steady_weight}: need a number, 0 or more")
        if self.n_frames < 1 or (self.n_frames - 1) % 4:
            raise ValueError(f"n_frames={self.n_frames}: need 1 + a multiple of 4")
        if self.crop < 1 or self.crops_per_clip < 1:
            raise ValueError(f"crop={self.crop}, crops_per_clip={self.crops_per_clip}: need at least 1")
