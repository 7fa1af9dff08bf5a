"""A decoder-only transformer over named id ranges: vocabulary, network, loss, generation."""

from lm.cache import KVCache
from lm.config import LM_PRESETS, LMConfig, lm_config
from lm.generate import Plan, Prefix, generate, generate_stream
from lm.loss import IGNORE_INDEX, LMLoss
from lm.sampling import Sampling
from lm.transformer import LM
from lm.vocabulary import IdRange, Vocabulary

__all__ = [
    "IGNORE_INDEX",
    "LM",
    "LM_PRESETS",
    "IdRange",
    "KVCache",
    "LMConfig",
    "LMLoss",
    "Plan",
    "Prefix",
    "Sampling",
    "Vocabulary",
    "generate",
    "generate_stream",
    "lm_config",
]
