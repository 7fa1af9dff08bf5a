"""A decoder-only transformer over named id ranges: vocabulary, network, loss, sampling engine."""

from lm.config import LM_PRESETS, LMConfig, lm_config
from lm.engine import Engine
from lm.loss import IGNORE_INDEX, LMLoss
from lm.plan import Plan, Prefix
from lm.sampling import Sampling
from lm.transformer import LM
from lm.vocabulary import IdRange, Vocabulary

__all__ = [
    "IGNORE_INDEX",
    "LM",
    "LM_PRESETS",
    "Engine",
    "IdRange",
    "LMConfig",
    "LMLoss",
    "Plan",
    "Prefix",
    "Sampling",
    "Vocabulary",
    "lm_config",
]
