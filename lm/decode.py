"""The arithmetic of `LM.forward` for a few new ids per row behind a cache, without the framework round it.

Written for many small calls: weights laid out once (`lm.linear`), everything that depends on places only (rotary
angles, embeddings of the place predicted) a table made before the first step, the cache read as a slice.
"""

# Shapes: R rows, n new ids per row, M = R * n, H heads, K key/value heads, G = H / K, D head_dim, S keys read

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.cache import KVCache
from lm.linear import Linear, frozen, in_loops
from lm.rotary import angles
from lm.transformer import LM, Block


@dataclass
class Places:
    """What new ids need to know of where they stand and what they predict; leading dimensions (n) or (R, n)."""

    embedding: Tensor  # (..., dim) of the place predicted
    turn: Tensor  # (..., 1, D / 2, 2) cosine and sine of the rotary angles

    def __getitem__(self, index: Any) -> Places:
        return Places(self.embedding[index], self.turn[index])


class Decoder:
    """A model's weights laid out in `dtype`, ready to continue sequences: a new one is needed after changing the model.

    `int8` rounds the matrices.
    Raises ValueError for a model whose linear layers are wrapped, such as by adapters, or that lies on several devices.
    """

    def __init__(self, model: LM, dtype: torch.dtype, *, int8: bool = False, compiled: bool = False) -> None:
        config = self.config = model.config
        self.dtype, self.device = dtype, model.embed.weight.device
        if len(devices := {str(p.device) for p in model.parameters()}) > 1:
            raise ValueError(f"the model lies on {', '.join(sorted(devices))}: move it to one device to generate")
        self.H, self.K, self.D, self.eps = config.n_heads, config.n_kv_heads, config.head_dim, config.norm_eps
        self.model, self.embed_scale = model, config.dim**0.5
        self.norm = model.norm.weight.detach().float() * config.dim**0.5
        # rms of K numbers with its epsilon, without the mean: sqrt(sum of squares + K * eps)
        floors = ((k * self.eps) ** 0.5 for k in (config.dim, self.D))
        self.floor, self.head_floor = (torch.tensor(f, device=self.device) for f in floors)
        self._int8, self._heads = int8, dict[tuple[int, int], Linear]()

        def matrix(weight: Tensor, norm: Tensor | None = None) -> Linear:
            """The matrix with the weights of the norm before it, which costs a step nothing then."""
            weight = weight.detach()
            if norm is not None:
                weight = weight.float() * norm.detach().float() * config.dim**0.5
            return frozen(weight, dtype, int8=int8, compiled=compiled)

        # the two halves of a head that are rotated against each other, as pairs side by side: complex numbers
        pairs = torch.arange(self.D, device=self.device).view(2, -1).T.flatten()
        qk = self.H + self.K
        self.layers = []
        for b in cast("Iterable[Block]", model.blocks):
            for linear in (b.attention.qkv, b.attention.out, b.mlp.gate_up, b.mlp.down):
                if not isinstance(linear, nn.Linear):
                    raise ValueError(f"the model has {type(linear).__name__} in place of its linear layers: merge its "
                                     "adapters first, model = model.merge_and_unload()")  # fmt: skip
            gate, up = b.mlp.gate_up.weight.chunk(2)
            before, after = b.attention_norm.weight, b.mlp_norm.weight
            heads = b.attention.qkv.weight.detach().unflatten(0, (-1, self.D))
            heads = torch.cat((heads[:qk, pairs], heads[qk:])).flatten(0, 1)
            self.layers.append((
                matrix(heads, before), b.attention.qk_norm.weight.detach().float()[..., pairs] * self.D**0.5,
                matrix(b.attention.out.weight), matrix(gate, after), matrix(up, after), matrix(b.mlp.down.weight),
            ))  # fmt: skip

    def places(self, positions: Tensor, predicted: Tensor) -> Places:
        """The table for ids at positions (..., 3) that predict the ids at predicted (..., 3)."""
        phase = angles(positions.to(self.device, torch.float32), self.config).unsqueeze(-2)
        embedding = self.model.place_embedding(predicted.to(self.device, torch.float32))
        return Places(embedding.to(self.dtype), torch.stack((phase.cos(), phase.sin()), dim=-1))

    def cache(self, n_rows: int, capacity: int) -> KVCache:
        return KVCache(self.config, n_rows, capacity, self.dtype, self.device)

    def logits(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Scores of the embedding rows start..stop-1: hidden (..., dim) -> (..., stop - start)."""
        if (start, stop) not in self._heads:
            self._heads[start, stop] = frozen(self.model.head_weight[start:stop], self.dtype, int8=self._int8)
        return self._heads[start, stop](hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])

    def factor_hidden(self, name: str, hidden: Tensor, values: list[Tensor]) -> Tensor:
        """What scores the next factor of an id of range `name`, after the values (...) of those before: see `LM`."""
        if not values:
            return hidden
        dtype = self.model.embed.weight.dtype
        return self.model.factor_hidden(name, len(values), hidden.to(dtype), values).to(self.dtype)

    def feed(
        self, ids: Tensor, places: Places, layers: list[Tensor], at: int | Tensor, stop: int | None,
        bias: Tensor | None = None, step: Callable[..., Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """ids (R, n) -> hidden (R, n, dim) after the final norm.

        Their keys and values are stored in the `layers` of a cache, from index `at` on or at indices `at` (R, n), and
        they see the first `stop` keys, to whose scores `bias` (1 or R, 1, 1 or n, stop) is added: -inf hides a key.
        Without it all see all; with it `stop` may be left to it. `step` is a compiled `forward`.
        """
        x = torch.add(places.embedding, self.model.embed_ids(ids).to(self.dtype), alpha=self.embed_scale)
        return (step or self.forward)(x, places.turn, layers, at, stop, bias)

    def forward(
        self, x: Tensor, turn: Tensor, layers: list[Tensor], at: int | Tensor, stop: int | None, bias: Tensor | None
    ) -> Tensor:
        """The blocks: x (R, n, dim), turn (n or R, n, 1, D / 2, 2) -> (R, n, dim); else see `feed`."""
        (R, n, dim), (H, K, D) = x.shape, (self.H, self.K, self.D)
        G = H // K
        row = torch.arange(R, device=x.device)[:, None] if isinstance(at, Tensor) else None
        stop = bias.shape[-1] if bias is not None else stop
        if bias is not None and bias.shape[2] > 1:  # queries of a shared key head lie side by side
            bias = bias.repeat_interleave(G, dim=2)
        x = x.reshape(R * n, dim)
        for (qkv, w_qk, out, gate, up, down), data in zip(self.layers, layers, strict=True):
            heads = qkv.over(x, _norm(x, self.floor)).view(R, n, H + 2 * K, D)
            heads = _turned(heads, H + K, w_qk, self.head_floor, turn)
            if row is None:
                data[:, :, at : at + n] = heads[:, :, H:].transpose(1, 2)
            else:
                data[row, :, at] = heads[:, :, H:]
            # the G queries that share a key head take the place of G query positions: no copies of keys
            q = heads[:, :, :H].unflatten(2, (K, G)).transpose(1, 2).reshape(R, K, n * G, D)
            seen = _attention(q, data[:, :K, :stop], data[:, K:, :stop], bias, loops=in_loops(x))
            seen = seen.unflatten(2, (n, G)).transpose(1, 2).reshape(R * n, dim)
            x = out.plus(seen, x)
            x = down.plus(gate.swiglu(x, _norm(x, self.floor), up), x)
        return (x / _norm(x, self.floor) * self.norm).to(x.dtype).view(R, n, dim)


def _norm(x: Tensor, floor: Tensor) -> Tensor:
    """sqrt(sum of squares + floor^2) of x (..., k), float32 (..., 1), in few operations; compiled, in cheap ones."""
    if torch.compiler.is_compiling():
        return (x.float().square().sum(-1, keepdim=True) + floor.square()).sqrt()
    return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32), floor)


def _attention(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, *, loops: bool) -> Tensor:
    """q (R, K, nG, D), keys and values (R, K, S, D), bias (1 or R, 1, 1 or nG, S) -> (R, K, nG, D).

    As `loops` it becomes part of what the compiler makes of the step, and of few queries that is the faster form.
    """
    if not loops:
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)
    scores = (q.float().unsqueeze(3) * keys.float().unsqueeze(2)).sum(-1) * q.shape[-1] ** -0.5
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return (weights.unsqueeze(-1) * values.float().unsqueeze(2)).sum(-2).to(q.dtype)


def _turned(heads: Tensor, count: int, weight: Tensor, floor: Tensor, turn: Tensor) -> Tensor:
    """The first `count` of heads (R, n, heads, D) normalized and rotated; in place, but for a compiler, which wants no
    views written to and knows no complex numbers."""
    qk = heads[:, :, :count]
    norm, pairs = _norm(qk, floor), (qk * weight).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (a, b), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2) / norm
        return torch.cat((turned.to(heads.dtype), heads[:, :, count:]), dim=2)
    turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn))
    torch.div(turned.flatten(-2), norm, out=qk)
    return heads
