from tokenizers_av.superres.config import (
    SCALES,
    STEPS,
    SUPERRES_PRESETS,
    SuperResConfig,
    check_sampling,
    check_scale,
    superres_config,
)
from tokenizers_av.superres.head import SuperRes, downsample, upsample

__all__ = [
    "SCALES",
    "STEPS",
    "SUPERRES_PRESETS",
    "SuperRes",
    "SuperResConfig",
    "check_sampling",
    "check_scale",
    "downsample",
    "superres_config",
    "upsample",
]
