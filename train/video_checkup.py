"""What `avpoet-train doctor` looks at in the video tokenizer: clip, quantizer, network and codes.

Each check returns what it found in words, or raises `Failed` with what is likely wrong and what to try.
"""
# Shapes: B batch, T frames, H W height and width in pixels, t h w latent frames, height and width, C latent channels

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from tokenizers_av.clip import MediaError, read_clip
from tokenizers_av.media_formats import AUDIO_SUFFIXES
from tokenizers_av.video import VideoTokenizer, n_latent_frames
from train import checkup
from train.checkup import Failed, Target, load
from train.data import MediaSpec, Source
from train.data.folder import to_video
from train.video_tokenizer import VideoTokenizerJob
from train.video_training import VideoTraining
from train.watch import Watch

GOAL = (Target(metric="psnr", need=33.0, enough=34.0, useless=15.0),)
# one clip has no use for balanced codes, and so short a run none for long averages
OVERFIT = VideoTraining(ema=0.9, mae_weight=0.3, edge_weight=0.0, entropy_weight=0.02, soft_share=0.3)


def find_clip(data: str | Path, spec: MediaSpec, seed: int) -> tuple[Tensor, str]:
    """The first clip (1, 3, T, H, W) of `data` that can be read and moves, else the first; and what was found."""

    def draw(source: Source) -> Tensor:
        video = source.batch([0], spec, audio=False).video
        assert video is not None
        return video

    def read(path: Path) -> Tensor:
        if path.suffix.lower() in AUDIO_SUFFIXES:
            raise MediaError("sound")
        found = read_clip(path, fps=spec.fps, size=spec.size, n_frames=spec.n_frames, audio=False)
        return to_video(found, spec)[None]

    return checkup.find_clip(data, seed, "picture", draw=draw, read=read, good=lambda video: motion(video) > 0)


def motion(video: Tensor) -> float:
    """Mean absolute difference of one frame to the next, video (B, 3, T, H, W)."""
    return float(video.diff(dim=2).abs().mean()) if video.shape[2] > 1 else 0.0


def check_clip(clip: Tensor, about: str) -> str:
    T, H, W = clip.shape[2:]
    words = f"{about}, {T} frames of {W}x{H} in [{clip.min():.2f}, {clip.max():.2f}]"
    try:
        Watch().batch(clip)
    except ValueError as error:
        raise Failed(f"{words}: {error}") from None
    if clip.std() < 0.01:
        raise Failed(f"{words} are one colour: nothing can be learned from them; take another file")
    return words + (", moving" if motion(clip) else ", standing still: nothing of time is tested")


def check_quantizer(model: VideoTokenizer) -> str:
    """Ids come back from their codes, and codes pass their gradient to the latents."""
    quantizer, device = model.quantizer, next(model.parameters()).device
    n = min(quantizer.codebook_size, 1 << 16)
    ids = torch.arange(n, device=device)
    if n < quantizer.codebook_size:
        ids = torch.randint(0, quantizer.codebook_size, (n,), device=device)
    again = quantizer.ids(quantizer.codes(ids))
    if wrong := int((again != ids).sum()):
        raise Failed(f"{wrong:,} of {n:,} ids do not come back from their codes")
    z = torch.randn(1, 64, quantizer.dim, device=device, requires_grad=True)
    found = quantizer(z)
    if not torch.allclose(found.z_q, quantizer.codes(found.ids)):
        raise Failed("what is decoded in training is not the code of the id")
    (grad,) = torch.autograd.grad((found.z_q * torch.randn_like(z)).sum(), z)
    if not grad.isfinite().all() or not grad.any(-1).all():
        raise Failed("no gradient passes from the codes to the latents: the encoder cannot learn")
    return f"{n:,} ids come back from their codes, and the gradient passes"


def noise(model: VideoTokenizer, n_frames: int, height: int, width: int) -> Tensor:
    """Video (1, 3, n_frames, height, width) of uniform noise in [-1, 1]."""
    draw = torch.Generator().manual_seed(1)
    return (2 * torch.rand(1, 3, n_frames, height, width, generator=draw) - 1).to(next(model.parameters()).device)


def check_causality(model: VideoTokenizer) -> str:
    """No gradient and no change reaches latents and decoded frames from later frames."""
    n, side, r = 1 + model.temporal_stride, 2 * model.spatial_stride, model.temporal_stride
    video = noise(model, 1 + 3 * r, side, side).requires_grad_()
    output = model(video)
    for what, part in (("latents", output.quantized.z_q[:, :2]), ("decoded frames", output.video[:, :, :n])):
        (grad,) = torch.autograd.grad((part * torch.randn_like(part)).sum(), video, retain_graph=True)
        reach = grad.abs().amax((0, 1, 3, 4)) > 0  # (T,)
        if reach[n:].any():
            first = n + 1 + int(reach[n:].nonzero()[0])
            raise Failed(f"the {what} of the first {n} frames depend on frame {first}: a layer looks ahead in time")
    with torch.no_grad():
        changed = torch.cat([video[:, :, :n], -video[:, :, n:]], dim=2)
        moved = int((model(changed).quantized.ids[:, :2] != output.quantized.ids[:, :2]).sum())
        moved += int((model.encode(changed)[:, :2] != model.encode(video)[:, :2]).sum())
    if moved:
        raise Failed(f"{moved} ids of the first {n} frames change with later frames: a layer looks ahead in time")
    return f"the first {n} frames, their ids and what is decoded do not depend on later ones"


def check_streaming(model: VideoTokenizer) -> str:
    """Chunks of any length give the ids and frames of the whole clip, and those that training sees."""
    r, side = model.temporal_stride, 2 * model.spatial_stride
    video = noise(model, 1 + 4 * r, side, side)
    ids = model.encode(video)
    whole = model.decode(ids)
    for cut in (1, 3, 2 * r):
        chunked = torch.cat(list(model.encode_stream(video.split(cut, dim=2))), dim=1)
        if not torch.equal(chunked, ids):
            raise Failed(f"chunks of {cut} frames give other ids than the whole clip: a layer forgets what it saw")
        frames = torch.cat(list(model.decode_stream(ids.split(cut, dim=1))), dim=2)
        if not torch.equal(frames, whole):
            raise Failed(f"chunks of {cut} latent frames are decoded to other frames than the whole")
    with torch.no_grad():
        output = model(video)
    differ = float((output.quantized.ids != ids).float().mean())  # sums in another order may turn a bit
    if differ > 0.05:
        raise Failed(f"{differ:.0%} of the ids differ between training and encoding: the two paths do not agree")
    return f"chunks of any length give the same ids and frames; {differ:.1%} of the ids differ from training"


def check_sizes(model: VideoTokenizer) -> str:
    s, r = model.spatial_stride, model.temporal_stride
    sizes = [(1, s, s), (2, s + 1, s), (r, 2 * s, 2 * s - 1), (r + 2, s - 1, 3 * s)]
    for T, H, W in sizes:
        video = noise(model, T, H, W)
        ids = model.encode(video)
        expected = (1, n_latent_frames(T, r), -(-H // s), -(-W // s))
        if tuple(ids.shape) != expected:
            raise Failed(f"{T} frames of {W}x{H} give ids {tuple(ids.shape)}, expected {expected}")
        if (shape := model.reconstruct(video).shape) != video.shape:
            raise Failed(f"{T} frames of {W}x{H} come back as {tuple(shape)}")
    return ", ".join(f"{T} of {W}x{H}" for T, H, W in sizes) + " frames come back in their size"


def check_losses(job: VideoTokenizerJob, device: torch.device) -> str:
    """One batch of clips and one of images through every loss, with finite gradients for both players."""
    batches: dict[bool, Tensor] = {}
    for step in range(64):  # the share decides which come first
        batch = job.batch(step, 0, 1, 1.0)
        batches.setdefault(batch.shape[2] == 1, batch)
    return ", ".join(checkup.check_losses(job, batches.values(), device)) + " of clips and images"


def check_codes(folder: Path, clip: Tensor, device: torch.device) -> str:
    """How many different ids the clip has."""
    model = load(VideoTokenizer, folder, device)
    counts = model.encode(clip.to(device)).unique(return_counts=True)[1]
    n = int(counts.sum())
    p = counts / n
    bits, most = float((p * (1 / p).log2()).sum()), min(n, model.codebook_size)
    words = (f"{len(counts):,} of {model.codebook_size:,} on the {n:,} places of the clip, {bits:.1f} bits of at most "
             f"{math.log2(most):.1f}")  # fmt: skip
    if len(counts) < math.sqrt(most) / 2:  # a single clip of a few things does with few
        raise Failed(f"{words}: the codes have collapsed; raise entropy_weight or lower the learning rate")
    return words


def save_picture(folder: Path, clip: Tensor, device: torch.device) -> str:
    """Write `reconstruction.png`: the frames of the clip (1, 3, T, H, W) above what the model makes of them."""
    from PIL import Image

    again = load(VideoTokenizer, folder, device).reconstruct(clip.to(device)).cpu()
    rows = torch.cat([clip, again]).permute(0, 3, 2, 4, 1)  # (2, H, T, W, 3)
    pixels = ((rows.flatten(2, 3).flatten(0, 1) + 1) * 127.5).round().clamp(0, 255).byte()
    Image.fromarray(pixels.numpy()).save(folder / "reconstruction.png")
    return f"{folder / 'reconstruction.png'}, the clip above its reconstruction"
