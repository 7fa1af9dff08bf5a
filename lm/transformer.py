"""The decoder-only transformer over ids of all modalities (VideoPoet, arXiv:2312.14125, §3.2).

Pre-norm blocks of grouped-query attention with QK-norm and SwiGLU. Two choices beyond the paper: rotary positions over
(time, height, width), and an embedding of the place of the *next* token added to the input, so that the model knows
which place it is about to fill even where rows, frames or blocks end.
"""

# Shapes: B batch, L sequence, H heads, K key/value heads, D head_dim

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from lm.attention import Visibility, attend
from lm.cache import KVCache
from lm.config import LMConfig
from lm.loss import LMLoss, range_loss
from lm.norm import RMSNorm
from lm.rotary import angles, rotate
from lm.vocabulary import Vocabulary


class ResidualLinear(nn.Linear):
    """A projection whose output is added to the residual stream; it starts smaller in deeper networks (GPT-2)."""


class Attention(nn.Module):
    """Grouped-query self-attention; queries and keys are normalised with one shared weight, then rotated.

    One weight serves both, because only the product of a query and a key weight ever reaches the scores.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.qkv = nn.Linear(config.dim, (config.n_heads + 2 * config.n_kv_heads) * config.head_dim, bias=False)
        self.qk_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.out = ResidualLinear(config.dim, config.dim, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], visible: Visibility, cache: KVCache | None, layer: int
    ) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        H, K = self.n_heads, self.n_kv_heads
        heads = self.qkv(x).unflatten(-1, (H + 2 * K, self.head_dim))
        qk, v = heads.split((H + K, K), dim=2)
        q, k = rotate(self.qk_norm(qk), *rope).split((H, K), dim=2)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        return self.out(attend(q, k, v, visible).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward network (arXiv:2002.05202); gate and value come from one product."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.hidden_dim, bias=False)
        self.down = ResidualLinear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LMConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.dropout = config.dropout
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], visible: Visibility, cache: KVCache | None = None
    ) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        x = x + self._drop(self.attention(self.attention_norm(x), rope, visible, cache, self.layer))
        return x + self._drop(self.mlp(self.mlp_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class LM(PreTrainedModel):
    """Ids in, hidden states out; `loss` and `head_weight` turn hidden states into what may come next.

    Input embeddings are scaled by sqrt(dim): they share their weights with the output, where small rows are wanted.
    """

    config_class = LMConfig
    config: LMConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    main_input_name = "ids"

    def __init__(self, config: LMConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.place = nn.Linear(config.head_dim, config.dim, bias=False)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.post_init()

    @property
    def vocabulary(self) -> Vocabulary:
        """The id space that the model was made for."""
        return Vocabulary.from_dict(self.config.vocabulary)

    @property
    def head_weight(self) -> Tensor:
        """(vocabulary, dim): row i scores id i; logits of a range are hidden @ head_weight[start:stop].T."""
        return self.embed.weight if self.head is None else self.head.weight

    def get_input_embeddings(self) -> nn.Module:
        """The embedding module, where transformers looks for it."""
        return self.embed

    def get_output_embeddings(self) -> nn.Module | None:
        """The head module; None when the embedding serves as head."""
        return self.head

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, ResidualLinear):
            init.normal_(module.weight, mean=0.0, std=std / (2 * self.config.n_layers) ** 0.5)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, mean=0.0, std=std)

    def place_embedding(self, positions: Tensor) -> Tensor:
        """Embedding of the place that is filled next: positions (..., 3) -> (..., dim)."""
        phase = angles(positions, self.config)
        return self.place(torch.cat((phase.cos(), phase.sin()), dim=-1).to(self.place.weight.dtype))

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        next_positions: Tensor,
        prefix_len: Tensor,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        labels: Tensor | None = None,
    ) -> Any:
        """Hidden states (B, L, dim) after the final norm; with `labels` (B, L) the `LMLoss` instead.

        ids (B, L); positions and next_positions (B, L, 3): places of each token and of the token after it;
        prefix_len (B,): ids before this index see each other in both directions, left padding counted in;
        attention_mask (B, L) bool: False at padding, left or right. With a cache the L ids follow those it holds,
        indices (prefix_len) count from the cache's start, and the cache takes up their keys and values.
        """
        x = torch.add(self.place_embedding(next_positions), self.embed(ids), alpha=self.config.dim**0.5)
        offset = 0 if cache is None else cache.length
        real = attention_mask
        if cache is not None and offset and (cache.real is not None or real is not None):
            past = (
                torch.ones_like(ids[:, :1], dtype=torch.bool).expand(-1, offset)
                if cache.real is None
                else cache.real[:, :offset]
            )
            real = torch.cat((past, torch.ones_like(ids, dtype=torch.bool) if real is None else real.bool()), dim=1)
        visible = Visibility(ids.shape[1], prefix_len, None if real is None else real.bool(), offset)
        kind = x.device.type
        phase = angles(positions, self.config).unsqueeze(-2)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        rope = phase.cos().to(dtype), phase.sin().to(dtype)
        for block in self.blocks:
            x = block(x, rope, visible, cache)
        if cache is not None:
            cache.advance(ids.shape[1], attention_mask)
        hidden = self.norm(x)
        return hidden if labels is None else self.loss(hidden, labels)

    def loss(self, hidden: Tensor, labels: Tensor) -> LMLoss:
        """Loss of hidden (B, L, dim) under labels (B, L), indexed as ids; IGNORE_INDEX and special ids are free."""
        ranges = [r for r in self.vocabulary if r.name != "special"]
        return range_loss(hidden, self.head_weight, labels, ranges, self.config.z_loss)

    def n_parameters(self, embeddings: bool = True) -> int:
        """Number of parameters, with or without input and output embeddings."""
        skip = () if embeddings else ("embed.", "head.")
        return sum(p.numel() for name, p in self.named_parameters() if not (skip and name.startswith(skip)))
