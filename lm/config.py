"""Configuration of the transformer and its named sizes (VideoPoet §5.2: 300M, 1B, 8B)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from lm.vocabulary import Vocabulary


class LMConfig(PretrainedConfig):
    """All that decides the shape of an `LM`; saved as config.json beside the weights.

    `rope_axes` counts rotary pairs for (time, height, width) and must add up to head_dim / 2; by default half of them
    turn with time. `block_size` ids are predicted at a time (next-block prediction, arXiv:2502.07737); 1 is the classic
    next id. `vocabulary` is a `Vocabulary` or its `to_dict()`. Raises ValueError for sizes that do not divide.
    """

    model_type = "avpoet_lm"

    def __init__(
        self,
        vocabulary: Vocabulary | Mapping[str, Any] | None = None,
        dim: int = 256,
        n_layers: int = 8,
        n_heads: int = 4,
        n_kv_heads: int = 2,
        hidden_dim: int = 768,
        rope_base_time: float = 10000.0,
        rope_base_space: float = 100.0,
        rope_axes: Sequence[int] | None = None,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        z_loss: float = 1e-4,
        initializer_range: float = 0.02,
        block_size: int = 1,
        **kwargs: Any,
    ) -> None:
        if dim % n_heads or (dim // n_heads) % 8:
            raise ValueError(f"dim={dim} must be n_heads={n_heads} times a multiple of 8")
        if n_heads % n_kv_heads:
            raise ValueError(f"n_heads={n_heads} must be a multiple of n_kv_heads={n_kv_heads}")
        if block_size < 1:
            raise ValueError(f"block_size={block_size}: need at least 1 id a step")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must lie in [0, 1)")
        pairs = dim // n_heads // 2
        axes = [pairs // 2, pairs // 4, pairs // 4] if rope_axes is None else [int(n) for n in rope_axes]
        if len(axes) != 3 or sum(axes) != pairs or min(axes) < 0:
            raise ValueError(f"rope_axes={axes} must be three counts that add up to head_dim / 2 = {pairs}")
        if vocabulary is None:
            vocabulary = Vocabulary.build((), 4096, (1024,) * 4, 512)
        if not isinstance(vocabulary, Vocabulary):
            vocabulary = Vocabulary.from_dict(vocabulary)
        self.vocabulary = vocabulary.to_dict()
        self.dim = dim
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.hidden_dim = hidden_dim
        self.rope_base_time = rope_base_time
        self.rope_base_space = rope_base_space
        self.rope_axes = axes
        self.norm_eps = norm_eps
        self.dropout = dropout
        self.tie_embeddings = tie_embeddings
        self.z_loss = z_loss
        self.initializer_range = initializer_range
        self.block_size = block_size
        super().__init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def vocab_size(self) -> int:
        """Number of ids, all ranges together."""
        return Vocabulary.from_dict(self.vocabulary).size


# Parameters without the embedding (which depends on the codebooks): 0.02M, 6.3M, 302M, 1.0B, 7.9B.
LM_PRESETS: dict[str, dict[str, Any]] = {
    "debug": {"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 64},
    "tiny": {"dim": 256, "n_layers": 8, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 768},
    "300m": {"dim": 1024, "n_layers": 24, "n_heads": 16, "n_kv_heads": 8, "hidden_dim": 3072},
    "1b": {"dim": 2048, "n_layers": 22, "n_heads": 16, "n_kv_heads": 8, "hidden_dim": 5632},
    "8b": {"dim": 4096, "n_layers": 36, "n_heads": 32, "n_kv_heads": 8, "hidden_dim": 14336},
}
_FIELDS = frozenset(inspect.signature(LMConfig.__init__).parameters) - {"self", "vocabulary", "kwargs"}


def lm_config(preset: str, vocabulary: Vocabulary | Mapping[str, Any], **overrides: Any) -> LMConfig:
    """The config of a named size for a vocabulary, single fields replaced by `overrides`."""
    if preset not in LM_PRESETS:
        raise ValueError(f"unknown preset {preset!r}, expected one of {sorted(LM_PRESETS)}")
    if unknown := sorted(overrides.keys() - _FIELDS):
        raise ValueError(f"unknown LMConfig fields {unknown}, expected some of {sorted(_FIELDS)}")
    return LMConfig(vocabulary, **{**LM_PRESETS[preset], **overrides})
