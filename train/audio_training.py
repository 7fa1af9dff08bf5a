"""How an audio tokenizer is trained: the numbers behind `AudioTokenizerJob`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class AudioTraining:
    """How an audio tokenizer is trained. Shares are of the whole training; the defaults are those of `tiny`.

    The weights of mel, linear, complex, wave and commitment multiply their losses. With discriminators, those of
    adversarial loss and feature matching are EnCodec's (arXiv:2210.13438, sec. 3.4): how strong their gradient on the
    samples is where that of all reconstruction losses together counts 1, whatever the scales of the losses.
    """

    lr: float = 3e-3
    ema: float = 0.99
    seconds: float = 1.0  # length of a crop, rounded down to whole frames
    loud_share: float = 0.8  # of the crops hold sound, at least, where there is any
    soft_from: float = 0.15  # before it nothing is quantized; codebooks that start from an encoder which already knows
    soft_to: float = 0.35  # the signal keep many more codes in use. From here on all is
    mel_weight: float = 1.0
    linear_weight: float = 0.5
    complex_weight: float = 0.2
    wave_weight: float = 0.5
    commitment_weight: float = 0.1
    adversarial_weight: float = 0.0  # 0: no discriminators (EnCodec: 3, beside 1.1 for reconstruction)
    feature_weight: float = 3.0  # of feature matching, where there are discriminators
    adversarial_from: float = 0.5  # share of the training after which the discriminators begin to learn
    head_start: float = 0.1  # share after which the codec hears them: of one that knows nothing it learns only noise
    discriminator_lr: float = 1e-3
    stft_width: int = 16
    wave_width: int = 16

    def __post_init__(self) -> None:
        for name in ("loud_share", "soft_from", "soft_to", "adversarial_from", "head_start", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: need 0 to 1")
        for name in ("lr", "discriminator_lr", "seconds", "mel_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: need a number above 0")
        for name in (f.name for f in fields(self) if f.name.endswith("_weight")):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: need a number, 0 or more")
        if self.soft_from > self.soft_to:
            raise ValueError(f"soft_from={self.soft_from}, soft_to={self.soft_to}: need them in this order")
        if self.adversarial_weight and self.adversarial_from + self.head_start >= 1:
            raise ValueError(f"adversarial_from={self.adversarial_from}, head_start={self.head_start}: need a sum "
                             "below 1, else the codec never hears its discriminators")  # fmt: skip
