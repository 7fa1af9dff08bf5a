"""The decoder-only transformer over ids of all modalities (VideoPoet, arXiv:2312.14125, §3.2).

Pre-norm blocks of grouped-query attention with QK-norm and SwiGLU. Two choices beyond the paper: rotary positions over
(time, height, width), and an embedding of the place that a token predicts added to the input, so that the model knows
which place it is about to fill even where rows, frames or blocks end.
"""

# Shapes: B batch, L sequence, H heads, K key/value heads, D head_dim

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from lm.attention import Visibility, attend
from lm.config import LMConfig
from lm.heads import FactorLink
from lm.loss import LMLoss, range_loss
from lm.norm import RMSNorm
from lm.rotary import angles, rotate
from lm.vocabulary import Vocabulary


class ResidualLinear(nn.Linear):
    """A projection whose output is added to the residual stream; it starts smaller in deeper networks (GPT-2)."""


class Attention(nn.Module):
    """Grouped-query self-attention; queries and keys are normalised, then rotated.

    One weight serves both norms, so that a step norms all heads at once; a weight for each could express more scores.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.qkv = nn.Linear(config.dim, (config.n_heads + 2 * config.n_kv_heads) * config.head_dim, bias=False)
        self.qk_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.out = ResidualLinear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], visible: Visibility) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        H, K = self.n_heads, self.n_kv_heads
        heads = self.qkv(x).unflatten(-1, (H + 2 * K, self.head_dim))
        qk, v = heads.split((H + K, K), dim=2)
        q, k = rotate(self.qk_norm(qk), *rope).split((H, K), dim=2)
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

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], visible: Visibility) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        x = x + self._drop(self.attention(self.attention_norm(x), rope, visible))
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
    _supports_flex_attn = True
    main_input_name = "ids"

    def __init__(self, config: LMConfig) -> None:
        super().__init__(config)
        self.vocabulary = Vocabulary.from_dict(config.vocabulary)  # the id space that the model was made for
        self.embed = nn.Embedding(self.vocabulary.n_rows, config.dim)
        self.place = nn.Linear(config.head_dim, config.dim, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.dim, self.vocabulary.n_rows, bias=False)
        self.links = nn.ModuleDict(
            {r.name: nn.ModuleList(FactorLink(config) for _ in r.factors[1:]) for r in self.vocabulary.factorised}
        )
        self.post_init()

    @property
    def head_weight(self) -> Tensor:
        """(n_rows, dim): logits of factor k are `factor_hidden` @ head_weight[start:stop].T, with its rows of
        `vocabulary.rows`; where nothing is factorised, row i scores id i."""
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

    def embed_ids(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., dim); of a factorised range, the sum of the embeddings of its values."""
        first, further = self.vocabulary.rows_of(ids)
        x: Tensor = self.embed(first)
        for rows, count in further:
            x = x + self.embed(rows) * count[..., None]
        return x

    def factor_hidden(self, name: str, k: int, hidden: Tensor, values: Sequence[Tensor]) -> Tensor:
        """From hidden (..., dim), what the head scores factor k of the id range `name` from, same shape and dtype.

        values: k tensors (...) int64, the values of the factors before it. Factor 0 is scored from `hidden` itself.
        """
        if k == 0:
            return hidden
        rows = [start + value for (start, _), value in zip(self.vocabulary.rows(name)[:k], values, strict=True)]
        known = self.embed(torch.stack(rows)).sum(dim=0) * self.config.dim**0.5
        links = cast("nn.ModuleList", self.links[name])
        return cast("Tensor", links[k - 1](hidden, known)).to(hidden.dtype)

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
        labels: Tensor | None = None,
    ) -> Any:
        """Hidden states (B, L, dim) after the final norm; with `labels` (B, L) the `LMLoss` instead.

        ids (B, L); positions and next_positions (B, L, 3): the place of each token, and the place it predicts, which is
        that of the token `block_size` later; prefix_len (B,): ids before this index see each other in both directions,
        left padding counted in; attention_mask (B, L) bool: False at padding, left or right.
        """
        x = torch.add(self.place_embedding(next_positions), self.embed_ids(ids), alpha=self.config.dim**0.5)
        real = None if attention_mask is None else attention_mask.bool()
        flex = self.config._attn_implementation == "flex_attention"
        visible = Visibility(ids.shape[1], prefix_len, real, self.config.block_size, flex)
        kind = x.device.type
        phase = angles(positions, self.config).unsqueeze(-2)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        rope = phase.cos().to(dtype), phase.sin().to(dtype)
        for block in self.blocks:
            x = block(x, rope, visible)
        hidden = self.norm(x)
        return hidden if labels is None else self.loss(hidden, labels)

    def loss(self, hidden: Tensor, labels: Tensor) -> LMLoss:
        """Loss of hidden (B, L, dim) under labels (B, L), indexed as ids; IGNORE_INDEX and special ids are free."""
        return range_loss(
            hidden, self.head_weight, labels, self.vocabulary, self.factor_hidden, self.config.z_loss,
            shift=self.config.block_size,
        )  # fmt: skip

    def n_parameters(self, embeddings: bool = True) -> int:
        """Number of parameters, with or without input and output embeddings."""
        skip = () if embeddings else ("embed.", "head.")
        return sum(p.numel() for name, p in self.named_parameters() if not (skip and name.startswith(skip)))


AutoConfig.register(LMConfig.model_type, LMConfig, exist_ok=True)
AutoModel.register(LMConfig, LM, exist_ok=True)
