"""The low side of a training pair: what a decoder, a camera or a codec would have left of a clip."""
# Shapes: B batch, T frames, H W height and width

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_av.video import VideoTokenizer

MAX_BLUR = 1.2  # standard deviation in pixels
MAX_GRAIN = 0.06  # standard deviation on the scale of pixels in [-1, 1]
QUALITY = (30, 95)  # of JPEG


@torch.no_grad()
def coded(video: Tensor, tokenizer: VideoTokenizer, max_flips: float) -> Tensor:
    """Through the tokenizer and back, (B, 3, T, H, W) in [-1, 1] twice; see `flipped`."""
    with torch.autocast(video.device.type, torch.bfloat16):
        ids = tokenizer.encode(video)
        return tokenizer.decode(flipped(ids, tokenizer.codebook_size, max_flips))[:, :, : video.shape[2]].float()


def flipped(ids: Tensor, codebook_size: int, max_share: float) -> Tensor:
    """ids (B, ...) in [0, codebook_size), a power of two; of half of the clips a share of up to `max_share` of the ids
    has one bit turned over, as a transformer errs to a neighbour."""
    B, n_bits = len(ids), codebook_size.bit_length() - 1
    share = torch.rand(B, device=ids.device) * max_share * (torch.rand(B, device=ids.device) < 0.5)
    wrong = torch.rand(ids.shape, device=ids.device) < share.view(B, *[1] * (ids.ndim - 1))
    bit = torch.randint(0, n_bits, ids.shape, device=ids.device)
    return torch.where(wrong, ids ^ (1 << bit), ids)


def to_8_bits(video: Tensor) -> Tensor:
    """Rounded as files are, in [-1, 1] twice."""
    return ((video + 1) * 127.5).round() / 127.5 - 1


def filmed(video: Tensor) -> Tensor:
    """One clip (3, T, H, W) in [-1, 1], a little blurred, noisy, and compressed frame by frame, each by chance."""
    blur, grain, quality = torch.rand(3).tolist()
    if blur < 0.5:
        video = _blurred(video, MAX_BLUR * 2 * blur)
    if grain < 0.5:
        video = video + MAX_GRAIN * 2 * grain * torch.randn_like(video)
    video = video.clamp(-1, 1)
    if quality < 0.5:
        low, high = QUALITY
        video = _compressed(video, round(low + (high - low) * 2 * quality))
    return video


def _blurred(video: Tensor, sigma: float) -> Tensor:
    """(3, T, H, W) through a Gaussian window in height and width; edges are repeated."""
    at = torch.arange(-3, 4, device=video.device, dtype=video.dtype)
    kernel = (-at.square() / (2 * max(sigma, 0.1) ** 2)).exp()
    kernel = kernel / kernel.sum()
    planes = F.pad(video, (3, 3, 3, 3), mode="replicate").flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return planes.view_as(video)


def _compressed(video: Tensor, quality: int) -> Tensor:
    """(3, T, H, W) in [-1, 1] through JPEG."""
    from PIL import Image

    frames = ((video.permute(1, 2, 3, 0) + 1) * 127.5).round().byte().cpu().numpy()
    out = np.empty_like(frames)
    for i, frame in enumerate(frames):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        with Image.open(file) as picture:
            out[i] = np.asarray(picture)
    return (torch.from_numpy(out).to(video.device).float() / 127.5 - 1).permute(3, 0, 1, 2)
