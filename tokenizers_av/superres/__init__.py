from tokenizers_av.superres.config import (
    RATES,
    SCALES,
    STEPS,
    SUPERRES_PRESETS,
    SuperResConfig,
    check_rate,
    check_sampling,
    check_scale,
    superres_config,
)
from tokenizers_av.superres.head import SuperRes, downsample, upsample
from tokenizers_av.superres.motion import frames_between, in_between, steadied
from tokenizers_av.superres.windows import window_within

__all__ = [
    "RATES",
    "SCALES",
    "STEPS",
    "SUPERRES_PRESETS",
    "SuperRes",
    "SuperResConfig",
    "check_rate",
    "check_sampling",
    "check_scale",
    "downsample",
    "frames_between",
    "in_between",
    "steadied",
    "superres_config",
    "upsample",
    "window_within",
]
