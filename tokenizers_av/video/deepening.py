"""From a trained tokenizer to one with a deeper decoder, which at first decodes the same.

Ids are made by the encoder, so a model of ids goes on with the deeper decoder as it went on with the other.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import torch
from torch import nn

from tokenizers_av.video.tokenizer import VideoTokenizer


@torch.no_grad()
def deepen(model: VideoTokenizer, depth: int) -> VideoTokenizer:
    """A new tokenizer of `decoder_depth=depth` that decodes what `model` decodes: the blocks it has more stand behind
    those of the same size, and residual branches begin at zero. Raises ValueError for less than `model` has."""
    if depth < model.config.decoder_depth:
        raise ValueError(f"decoder_depth={depth}: need {model.config.decoder_depth}, which it has, or more")
    deeper = VideoTokenizer(replace(model.config, decoder_depth=depth))
    deeper.encoder.load_state_dict(model.encoder.state_dict())
    deeper.quantizer.load_state_dict(model.quantizer.state_dict())
    for old, new in zip(_runs(model.decoder), _runs(deeper.decoder), strict=True):
        for before, after in zip(old, new, strict=False):
            after.load_state_dict(before.state_dict())
    return deeper


def _runs(layers: nn.ModuleList) -> list[list[nn.Module]]:
    """Neighbouring layers of one kind."""
    return [list(run) for _, run in groupby(layers, type)]
