"""One decoding step without framework overhead: weights cast once, places computed once, a slice of the cache read.

The same arithmetic as `LM.forward` for a single new token per row, written for many small calls: everything that
depends on the place only (rotary angles, next-place embeddings) is a table made before the loop.
"""

# Shapes: R rows, N steps of the plan, H heads, K key/value heads, G = H / K, D head_dim, S cache capacity

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lm.cache import KVCache
from lm.rotary import angles, rotate_
from lm.transformer import LM, Block


class Decoder:
    """Feeds one id per row and returns the hidden state that predicts the next.

    positions (N, 3) are the places of the ids to come, in order; step i takes the id placed at positions[i].
    """

    def __init__(self, model: LM, cache: KVCache, positions: Tensor) -> None:
        config, dtype = model.config, cache.data.dtype
        self.cache, self.eps = cache, config.norm_eps
        self.H, self.K, self.D = config.n_heads, config.n_kv_heads, config.head_dim
        self.embed_scale = config.dim**0.5
        self.embed = model.embed.weight.to(dtype)
        self.head = self.embed if model.head is None else model.head.weight.to(dtype)
        following = torch.cat((positions[1:], positions[-1:]))
        self.place = model.place_embedding(following).to(dtype)[:, None]  # (N, 1, dim)
        phase = angles(positions, config)[:, None, None]
        self.cos, self.sin = phase.cos().to(dtype), phase.sin().to(dtype)  # (N, 1, 1, P)
        self.norm = model.norm.weight.to(dtype)
        self.layers = [
            tuple(
                p.to(dtype)
                for p in (
                    b.attention_norm.weight, b.attention.qkv.weight, b.attention.qk_norm.weight, b.attention.out.weight,
                    b.mlp_norm.weight, b.mlp.gate_up.weight, b.mlp.down.weight,
                )
            )
            for b in cast("Iterable[Block]", model.blocks)
        ]  # fmt: skip
        self.slots = cache.data.unbind(0)  # one (R, 2K, S, D) view per layer
        self.bias: Tensor | None = None  # (R, 1, 1, S) additive, only when rows hold padding
        if cache.real is not None and not bool(cache.real.all()):
            shape = (cache.real.shape[0], 1, 1, cache.capacity)
            self.bias = torch.zeros(shape, dtype=dtype, device=cache.data.device)
            self.bias.masked_fill_(~cache.real[:, None, None], float("-inf"))
        self.n_steps = 0

    def logits(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Scores of the ids start..stop-1 only: hidden (R, dim) -> (R, stop - start)."""
        return F.linear(hidden, self.head[start:stop])

    def step(self, ids: Tensor) -> Tensor:
        """ids (R,) -> hidden (R, dim) after the final norm; the cache grows by one."""
        i, at, (H, K, D) = self.n_steps, self.cache.length, (self.H, self.K, self.D)
        rows, dim = ids.shape[0], self.embed.shape[1]
        x = torch.add(self.place[i], self.embed[ids], alpha=self.embed_scale)
        cos, sin, bias = self.cos[i], self.sin[i], None if self.bias is None else self.bias[..., : at + 1]
        for (w_in, w_qkv, w_qk, w_out, w_mlp, w_gate, w_down), data in zip(self.layers, self.slots, strict=True):
            heads = F.linear(F.rms_norm(x, (dim,), w_in, self.eps), w_qkv).view(rows, H + 2 * K, D)
            qk = heads[:, : H + K]
            rotate_(qk, F.rms_norm(qk, (D,), w_qk, self.eps), cos, sin)
            data[:, :, at] = heads[:, H:]
            filled = data[:, :, : at + 1]
            # the G queries that share a key head take the place of G query positions: no mask, no copies
            out = F.scaled_dot_product_attention(
                heads[:, :H].view(rows, K, H // K, D), filled[:, :K], filled[:, K:], attn_mask=bias
            )
            x = x + F.linear(out.reshape(rows, dim), w_out)
            gate, up = F.linear(F.rms_norm(x, (dim,), w_mlp, self.eps), w_gate).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate).mul_(up), w_down)
        self.n_steps += 1
        self.cache.length += 1
        return F.rms_norm(x, (dim,), self.norm, self.eps)
