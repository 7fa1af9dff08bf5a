"""The network of the head: what a large frame has that the upsampled one has not.

A U-Net of two resolutions made of the video tokenizer's causal blocks: 3x3 convolutions in space, causal ones in time,
norms over the channels of one position. These are modulated by the time, the noise level, the scale, the text and
whether the clip was decoded from ids: of one that was, less can be believed. Nothing in the network depends on the size
of the frame or on what follows in time, and of frames that stand still it makes frames that stand still.
"""
# Shapes: B batch, T frames, H W height and width of the large frame, D embedding, L text ids

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_av.superres.config import SuperResConfig
from tokenizers_av.video.layers import (
    CausalSequential,
    ChannelNorm,
    Flow,
    ResidualBlock,
    SpatialConv,
    SpatialDown,
    SpatialUp,
    depth_to_space,
    space_to_depth,
)

N_NUMBERS = 4  # time, noise level, scale, whether the clip was decoded from ids
N_WAVES = 6  # sines and cosines for each number that is embedded


class Embedding(nn.Module):
    """N_NUMBERS numbers and text as one vector: sines and cosines of each number, the mean of a learned vector for each
    text id, in any order, and a small perceptron."""

    def __init__(self, dim: int, text_size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(N_NUMBERS * 2 * N_WAVES, dim)
        self.out = nn.Linear(dim, dim)
        self.words = nn.Parameter(torch.zeros(text_size, dim)) if text_size else None

    def forward(self, numbers: Tensor, text: Tensor | None = None) -> Tensor:
        """(B, N_NUMBERS) float32, each in about [0, 1], and ids (B, L), -1 where there is none -> (B, D)."""
        waves = math.pi / 2 * 2.0 ** torch.arange(N_WAVES, device=numbers.device)
        angles = numbers[:, :, None] * waves
        features = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).to(self.hidden.weight.dtype)
        hidden = F.silu(self.hidden(features))
        if text is not None and self.words is not None:
            there = (text >= 0).unsqueeze(-1)
            hidden = hidden + (self.words[text.clamp(min=0)] * there).sum(1) / there.sum(1).clamp(min=1)
        return F.silu(self.out(hidden))


class DetailNet(nn.Module):
    """The detail that the flow at x leads to, given the upsampled clip it began at. It starts at zero: no detail."""

    def __init__(self, config: SuperResConfig) -> None:
        super().__init__()
        self.config = c = config
        outer, inner = c.dims
        self.embed = Embedding(c.code_dim, c.text_size)
        self.enter = SpatialConv(6 * c.patch**2, outer)
        self.fine_in = CausalSequential([ResidualBlock(outer, c.code_dim, hold=True) for _ in range(c.n_blocks)])
        self.down = SpatialDown(outer, inner)
        self.coarse = CausalSequential([ResidualBlock(inner, c.code_dim, hold=True) for _ in range(c.n_inner_blocks)])
        self.up = SpatialUp(inner, outer)
        self.fine_out = CausalSequential([ResidualBlock(outer, c.code_dim, hold=True) for _ in range(c.n_blocks)])
        self.norm = ChannelNorm(outer)
        self.leave = SpatialConv(outer, 3 * c.patch**2)
        nn.init.zeros_(self.leave.weight)

    def forward(
        self, gone: Tensor, base: Tensor, time: Tensor, noise: Tensor, scale: int, decoded: Tensor,
        text: Tensor | None, flow: Flow,
    ) -> Tensor:  # fmt: skip
        """Detail (B, T, H, W, 3), large clip - base; base (B, T, H, W, 3) is the upsampled clip.

        gone (B, T, H, W, 3): x - base, how far the flow has come. It is much smaller than both, so low precision keeps
        it only if the difference is taken before. time (B,) in [0, 1], noise (B,) in [0, max_noise], scale 2 or 4,
        decoded (B,) 1 for clips that were decoded from ids, else 0, text ids (B, L) or None; H and W are multiples of
        `config.stride`.
        """
        level = noise / self.config.max_noise if self.config.max_noise else noise
        numbers = torch.stack([time, level, torch.full_like(time, math.log2(scale) - 1), decoded], dim=1)
        flow.code = self.embed(numbers, text)[:, None, None, None].expand(-1, base.shape[1], 1, 1, -1)
        fine = self.enter(space_to_depth(torch.cat([gone, base], dim=-1), self.config.patch), flow)
        fine = self.fine_in(fine, flow)
        coarse = self.coarse(self.down(fine), flow)
        fine = self.fine_out(fine + self.up(coarse), flow)
        return depth_to_space(self.leave(F.silu(self.norm(fine)), flow), self.config.patch)
