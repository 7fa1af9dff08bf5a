"""From a trained image tokenizer to a video tokenizer (MAGVIT-v2, appendix A; last-slice inflation).

A model that has seen images only has learned nothing about the past: what its temporal layers do with earlier frames is
chance. After `inflate` an image is coded as before, and each frame of a still video is decoded like the image.
"""

from __future__ import annotations

import torch

from tokenizers_av.video.layers import TemporalConv, TemporalDown, TemporalUp
from tokenizers_av.video.tokenizer import VideoTokenizer


@torch.no_grad()
def inflate(model: VideoTokenizer) -> VideoTokenizer:
    """Set the temporal weights of a tokenizer trained on images, in place, so that they treat every frame alike."""
    for module in model.modules():
        if isinstance(module, TemporalConv):
            module.weight[:, : module.weight.shape[1] * 2 // 3] = 0  # two earlier frames; the last slice is the image's
        elif isinstance(module, TemporalDown):
            even, odd = module.conv.weight.chunk(2, dim=1)  # an image stands in both
            module.conv.weight.copy_(((even + odd) / 2).repeat(1, 2))
        elif isinstance(module, TemporalUp):
            for parameter in (module.conv.weight, module.conv.bias):
                parameter.copy_(parameter.chunk(2)[1].repeat(2, *[1] * (parameter.dim() - 1)))  # the second is kept
    return model
