"""How a video tokenizer is trained: the numbers behind `VideoTokenizerJob`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class VideoTraining:
    """How a video tokenizer is trained. Shares are of the whole training; the defaults are those of `tiny`."""

    lr: float = 2.5e-3
    ema: float = 0.995
    image_share: float = 0.0  # of the steps that see images
    images_per_clip: int = 4  # images in a batch of images for each clip in a batch of clips
    log_mse_weight: float = 0.1
    mae_weight: float = 0.1
    edge_weight: float = 0.2
    change_weight: float = 0.0  # of the error of the change from frame to frame: what is seen as flicker
    join_weight: float = 0.0  # of the same, only where one latent frame meets the next
    entropy_weight: float = 0.3  # of nats per bit
    entropy_boost: float = 1.0  # factor on it at the start, falling to 1 over the first `soft_share` (the paper: 3)
    commitment_weight: float = 0.1
    decoder_only: bool = False  # the encoder stays, and so do the ids that a transformer was trained on
    soft_share: float = 0.3  # over which fewer and fewer samples bypass the quantizer
    perceptual: str | None = None  # a transformers vision model: folder, or name in the local cache
    perceptual_weight: float = 0.1
    adversarial_weight: float = 0.0  # 0: no discriminator
    adversarial_from: float = 0.5  # share of the training after which the discriminator joins
    r1_weight: float = 10.0
    r1_every: int = 16  # steps; the penalty counts so much more when it is taken
    lecam_weight: float = 0.001
    discriminator_lr: float = 1e-4
    discriminator_dims: tuple[int, ...] = (64, 128, 256, 256)

    def __post_init__(self) -> None:
        for name in ("image_share", "soft_share", "adversarial_from", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: need 0 to 1")
        for name in ("lr", "discriminator_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: need a number above 0")
        for name in (f.name for f in fields(self) if f.name.endswith("_weight")):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: need a number, 0 or more")
        if self.images_per_clip < 1 or self.r1_every < 1:
            raise ValueError(f"images_per_clip={self.images_per_clip}, r1_every={self.r1_every}: need at least 1")
