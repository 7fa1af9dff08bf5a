"""Prefix-LM attention: every token sees the tokens before it, and tokens of the prefix also see each other.

VideoPoet §3.2: the input part of a sequence is read in both directions, the output part is written left to right, one
id or one block of ids at a time (next-block prediction, arXiv:2502.07737 §3.2: ids of a block see each other).
Three ways to the same numbers: `scaled_dot_product_attention`; flex attention, for a model opened with
`attn_implementation="flex_attention"`, which on a GPU skips what the mask hides; and for training on a CPU blocks of
queries over matrix products, which use the bf16 units and skip keys too (about 2.5 times faster there).
"""

# Shapes: B batch, L sequence, H heads, K key/value heads, G = H / K, D head_dim

from __future__ import annotations

import itertools
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

QUERY_BLOCK = 96  # queries per block of the CPU path: small skips more keys, large has fewer calls


class Visibility:
    """Who may see whom, worked out once per forward pass and shared by all layers.

    `prefix_len` (B,) counts index positions, left padding included; behind it ids come in blocks of `block_size`.
    `real` (B, L) is False at padding, which nobody sees (a padding query sees itself, so that no row is empty).
    """

    def __init__(
        self, n: int, prefix_len: Tensor, real: Tensor | None = None, block_size: int = 1, flex: bool = False
    ) -> None:
        self.n, self.real, self.flex = n, real, flex
        i, p = torch.arange(n, device=prefix_len.device), prefix_len[:, None]
        own_block = p + ((i - p) // block_size + 1) * block_size
        self.stop = torch.where(i < p, p, own_block).clamp(max=n)  # (B, L): one past the last key that query i sees
        self.prefix = min(int(prefix_len.max()), n)
        self.uniform = real is None and bool((prefix_len == prefix_len[0]).all())
        # padding behind the last real id is out of sight of every real id without any mask
        right_padded = real is None or bool((real[:, 1:] <= real[:, :-1]).all())
        self.causal_tail = block_size == 1 and right_padded
        self._additive: dict[torch.dtype, Tensor] = {}

    @cached_property
    def allowed(self) -> Tensor:
        """(B or 1, L, L) bool: query i may see key j."""
        j = torch.arange(self.n, device=self.stop.device)
        allowed = j < (self.stop[:1] if self.uniform else self.stop)[..., None]
        return allowed if self.real is None else (allowed & self.real[:, None, :]) | (j[:, None] == j)

    def additive(self, dtype: torch.dtype) -> Tensor:
        """(B or 1, L, L): 0 where allowed, -inf elsewhere."""
        if dtype not in self._additive:
            zeros = torch.zeros(self.allowed.shape, dtype=dtype, device=self.allowed.device)
            self._additive[dtype] = zeros.masked_fill_(~self.allowed, float("-inf"))
        return self._additive[dtype]

    def blocks(self, size: int) -> list[tuple[int, int, int]]:
        """(first query, stop query, stop key) of blocks of at most `size` queries."""
        edges, stop = [*range(0, self.n, size), self.n], self.stop.amax(0).tolist()
        return [(a, e, max(stop[e - 1], e)) for a, e in itertools.pairwise(edges)]

    @cached_property
    def block_mask(self) -> BlockMask:
        """The same for flex attention."""
        stop, real = self.stop, self.real

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            seen = j < stop[b, i]
            return seen if real is None else (seen & real[b, j]) | (i == j)

        return create_block_mask(visible, stop.shape[0], None, self.n, self.n, device=stop.device)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visibility) -> Tensor:
    """Softmax attention with grouped heads: q (B, L, H, D), k and v (B, L, K, D) -> (B, L, H, D)."""
    training = torch.is_grad_enabled() and q.requires_grad
    if q.device.type == "cpu" and training and not torch.compiler.is_compiling():
        return _BlockAttention.apply(q, k, v, visible)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    p, n = visible.prefix, visible.n
    if visible.flex:
        out = _flex()(q, k, v, block_mask=visible.block_mask, enable_gqa=q.shape[1] != k.shape[1])
    elif not visible.causal_tail:
        out = _masked(q, k, v, visible.allowed[:, None])
    elif p <= 1:
        out = _causal(q, k, v)
    else:  # the prefix by itself, the rest as if all were causal: fused kernels know no other mask
        mask = None if visible.uniform else visible.allowed[:, None, :p, :p]
        out = _masked(q[:, :, :p], k[:, :, :p], v[:, :, :p], mask)
        if p < n:
            out = torch.cat((out, _causal(q, k, v)[:, :, p:]), dim=2)
    return out.transpose(1, 2)


@cache
def _flex() -> Any:
    """Only compiled it is fast; inside a compiled model it is compiled with it."""
    return torch.compile(flex_attention)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if mask is not None and groups > 1:  # the masked kernels know no grouped heads and would fall back to plain code
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        groups = 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=groups > 1)


class _BlockAttention(torch.autograd.Function):
    """Rows of one key/value head lie together as (L * G, D), so that grouped heads need no copies of the keys."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Visibility) -> Tensor:
        B, L, H, D = q.shape
        K = k.shape[2]
        G = H // K
        rows = q.view(B, L, K, G, D).transpose(1, 2).reshape(B * K, L * G, D)
        keys, values = (x.transpose(1, 2).reshape(B * K, -1, D) for x in (k, v))
        mask = visible.additive(q.dtype)
        out, probabilities = torch.empty_like(rows), []
        for a, e, stop in visible.blocks(QUERY_BLOCK):
            scores = torch.bmm(rows[:, a * G : e * G], keys[:, :stop].transpose(1, 2)).mul_(D**-0.5)
            scores.view(B, K, e - a, G, stop).add_(mask[:, None, a:e, None, :stop])
            p = torch.softmax(scores, dim=-1)
            out[:, a * G : e * G] = torch.bmm(p, values[:, :stop])
            probabilities.append(p)
        ctx.save_for_backward(rows, keys, values, *probabilities)
        ctx.visible, ctx.sizes = visible, (B, L, K, G, D)
        return out.view(B, K, L, G, D).transpose(1, 2).reshape(B, L, H, D)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, keys, values, *probabilities = ctx.saved_tensors
        B, L, K, G, D = ctx.sizes
        grad = grads[0].reshape(B, L, K, G, D).transpose(1, 2).reshape(B * K, L * G, D)
        dq, dk, dv = torch.empty_like(rows), torch.zeros_like(keys), torch.zeros_like(values)
        for (a, e, stop), p in zip(ctx.visible.blocks(QUERY_BLOCK), probabilities, strict=True):
            g = grad[:, a * G : e * G]
            dv[:, :stop] += torch.bmm(p.transpose(1, 2), g)
            dp = torch.bmm(g, values[:, :stop].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(D**-0.5)
            dq[:, a * G : e * G] = torch.bmm(ds, keys[:, :stop])
            dk[:, :stop] += torch.bmm(ds.transpose(1, 2), rows[:, a * G : e * G])
        return (
            dq.view(B, K, L, G, D).transpose(1, 2).reshape(B, L, K * G, D),
            dk.view(B, K, -1, D).transpose(1, 2),
            dv.view(B, K, -1, D).transpose(1, 2),
            None,
        )
