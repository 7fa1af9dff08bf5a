"""What `avpoet-train doctor` looks at: clip, quantizer, network, gradient, checkpoint, and whether it learns one clip.

Each check returns what it found in words, or raises `Failed` with what is likely wrong and what to try.
"""
# Shapes: B batch, T frames, H W height and width in pixels, t h w latent frames, height and width, C latent channels

from __future__ import annotations

import contextlib
import copy
import io
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tasks.errors import InputError
from tasks.model_folder import quietly
from tokenizers_av.clip import MediaError, read_clip
from tokenizers_av.media_formats import AUDIO_SUFFIXES
from tokenizers_av.video import VideoTokenizer, n_latent_frames
from train.data import MediaBatch, MediaSpec, open_source
from train.data.folder import FolderSource, to_video
from train.loop import LoopConfig, fit
from train.video_tokenizer import VideoTokenizerJob
from train.video_training import VideoTraining
from train.watch import Watch

NEED_DB, ENOUGH_DB = 33.0, 34.0  # to pass, and to stop early
CHECK_EVERY = 10.0  # seconds between two looks at how well the clip is known
MAX_FILES = 50  # files that are read
# one clip has no use for balanced codes, and so short a run none for long averages
OVERFIT = VideoTraining(ema=0.9, mae_weight=0.3, edge_weight=0.0, entropy_weight=0.02, soft_share=0.3)


class Failed(Exception):
    """A check did not pass; the message says why."""


class OneClip:
    """A `Source` of one clip (1, 3, T, H, W)."""

    len: int | None = 1

    def __init__(self, video: Tensor) -> None:
        self.video = video

    def batch(self, indices: Sequence[int], spec: MediaSpec, *, video: bool = True, audio: bool = True) -> MediaBatch:
        """The clip, as often as it is asked for; it has no sound."""
        n = len(indices)
        return MediaBatch(self.video[:, :, : spec.n_frames].expand(n, -1, -1, -1, -1), None, [""] * n)


def find_clip(data: str | Path, spec: MediaSpec, seed: int) -> tuple[Tensor, str]:
    """The first clip (1, 3, T, H, W) of `data` that can be read and moves, else the first; and what was found."""
    try:
        source = open_source(data, seed=seed)
        if not isinstance(source, FolderSource):
            video = source.batch([0], spec, audio=False).video
            assert video is not None
            return video, f"{data}, its first clip"
        names = sorted({*source.files, *open_source(data, "test", seed=seed).files})  # type: ignore[attr-defined]
    except ValueError as error:
        raise InputError(str(error)) from None
    skipped, chosen, chosen_name = [], None, ""
    for name in names[:MAX_FILES]:
        if Path(name).suffix.lower() in AUDIO_SUFFIXES:
            skipped.append(f"{name} (sound)")
            continue
        try:
            found = read_clip(source.root / name, fps=spec.fps, size=spec.size, n_frames=spec.n_frames, audio=False)
        except MediaError as error:
            skipped.append(f"{name} ({str(error).removeprefix(f'{source.root / name}: ')})")
            continue
        video = to_video(found, spec)[None]
        if chosen is None or (motion(chosen) == 0 and motion(video) > 0):
            chosen, chosen_name = video, name
    n = len(names)
    looked = f"{n} file{'s' * (n > 1)}" if n <= MAX_FILES else f"the first {MAX_FILES} of {n:,} files"
    bad = f", {len(skipped)} skipped: {', '.join(skipped[:3])}{', ...' * (len(skipped) > 3)}" if skipped else ""
    if chosen is None:
        raise InputError(f"{data}: no picture can be read in {looked}{bad}")
    return chosen, f"{looked}{bad}; {chosen_name}"


def motion(video: Tensor) -> float:
    """Mean absolute difference of one frame to the next, video (B, 3, T, H, W)."""
    return float(video.diff(dim=2).abs().mean()) if video.shape[2] > 1 else 0.0


def check_machine(device: torch.device) -> str:
    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(1024, 1024, device=device, dtype=dtype)
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            float((a @ a)[0, 0])  # waits for the device
            times.append(time.perf_counter() - begun)
        return min(times)

    faster = seconds(torch.float32) / seconds(torch.bfloat16)
    hint = "" if faster > 0.8 else ", which trainings use: they will be slow here"
    where = f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    return f"torch {torch.__version__}, {where}; bf16 is {faster:.1f} times as fast as fp32{hint}"


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


def shaken(model: VideoTokenizer) -> VideoTokenizer:
    """A copy with every weight moved: branches that start at zero would hide what is wrong with them."""
    model, draw = copy.deepcopy(model).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_((0.3 * torch.randn(p.shape, generator=draw) / p.shape[-1] ** 0.5).to(p))
    return model


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


def check_gradient(job: VideoTokenizerJob, device: torch.device) -> str:
    """After one step, which ends the zeros that branches start with, every parameter gets a gradient."""
    optimizers = job.optimizers()
    job.model.train()
    for step in range(2):
        for optimizer in optimizers:
            if step:
                optimizer.step()
            optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss, _ = job.loss(job.model, job.batch(step, 0, 1, 1.0), 1.0)
        loss.backward()
    parameters = dict(job.model.named_parameters())
    broken = [name for name, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
    missed = [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]
    for what, names in (("is not finite in", broken), ("does not reach", missed)):
        if names:
            more = f" and {len(names) - 5} more" * (len(names) > 5)
            raise Failed(f"the gradient {what} {', '.join(names[:5])}{more}, of {len(parameters)} parameters")
    n = sum(p.numel() for p in parameters.values())
    return f"reaches all {len(parameters)} parameters ({n / 1e6:.1f}M numbers)"


def check_losses(job: VideoTokenizerJob, device: torch.device) -> str:
    """One batch of clips and one of images through every loss, with finite gradients for both players."""
    assert job.critic is not None
    job.model.train()
    job.critic.to(device)
    torch.nn.init.normal_(job.critic.discriminator.head.weight)  # at zero nothing would reach the other layers
    batches: dict[bool, Tensor] = {}
    for step in range(64):  # the share decides which come first
        batch = job.batch(step, 0, 1, 1.0)
        batches.setdefault(batch.shape[2] == 1, batch)
    found = set()
    for batch in batches.values():
        job.model.zero_grad()
        job.critic.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss, metrics = job.loss(job.model, batch, 1.0)
        loss.backward()
        found |= {name for name in metrics if name not in ("codes", "soft", "psnr")}
        for who, player in (("tokenizer", job.model), ("discriminator", job.critic)):
            for name, p in player.named_parameters():
                if p.grad is not None and not p.grad.isfinite().all():
                    raise Failed(f"the gradient of the {who} is not finite in {name}")
        missed = [name for name, p in job.critic.named_parameters() if p.grad is None or not p.grad.any()]
        if missed:
            raise Failed(f"the gradient does not reach {', '.join(missed[:5])} of the discriminator")
    return ", ".join(sorted(found)) + " of clips and images"


class _Crash(Exception):
    """What a kill would do."""


class Crashing(VideoTokenizerJob):
    """Remembers its losses, and ends in a crash before a step if told so."""

    crash_at: int | None = None

    def batch(self, step: int, rank: int, world: int, progress: float) -> Tensor:
        if step == self.crash_at:
            raise _Crash
        return super().batch(step, rank, world, progress)

    def loss(self, model: nn.Module, batch: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        total, metrics = super().loss(model, batch, progress)
        self.losses = [*getattr(self, "losses", ()), float(total.detach())]
        return total, metrics

    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        pass


def load(folder: Path, device: torch.device) -> VideoTokenizer:
    with quietly():
        return VideoTokenizer.from_pretrained(folder).to(device).eval()


def check_checkpoint(model: VideoTokenizer, make_job: Callable[[], Crashing], clip: Tensor, folder: Path) -> str:
    """A saved model gives the same ids, and a training that crashed and went on has the losses of one that did not."""
    device = next(model.parameters()).device
    clip = clip.to(device)
    model.save_pretrained(folder / "saved")
    again = load(folder / "saved", device)
    if wrong := int((again.encode(clip) != model.encode(clip)).sum()):
        raise Failed(f"{wrong} ids differ after the model was saved and loaded")
    config = LoopConfig(steps=4, save_every=0.0, n_evaluate=1)
    whole, crashed, resumed = make_job(), make_job(), make_job()
    crashed.crash_at = 2
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        finished = bool(fit(whole, folder / "whole", config, device=str(device)))
        with contextlib.suppress(_Crash):
            finished = bool(fit(crashed, folder / "crashed", config, device=str(device)))
        finished = finished and bool(fit(resumed, folder / "crashed", config, resume=True, device=str(device)))
    if not finished:  # a signal
        raise KeyboardInterrupt
    losses = crashed.losses + resumed.losses
    if len(losses) != len(whole.losses):
        raise Failed(f"a training of {len(whole.losses)} steps that was resumed has made {len(losses)}")
    tolerance = 1e-5 if device.type == "cpu" else 1e-2
    for step, (a, b) in enumerate(zip(whole.losses, losses, strict=True)):
        if not abs(a - b) <= tolerance:
            raise Failed(f"a training that was resumed at step 2 has loss {b:.5f} at step {step} instead of {a:.5f}")
    return "a loaded model gives the same ids, a resumed training the same losses"


class _Enough(Exception):
    """The clip is known well enough."""


class Overfit(VideoTokenizerJob):
    """Looks now and then at how well the averaged model knows the clip."""

    name = "overfit"

    def begin(self, out: Path) -> None:
        self.out, self.begun, self.n_steps = out, time.monotonic(), 0
        self.watch = Watch()  # one clip needs few codes: `check_codes` judges them
        self.said: list[str] = []
        self.history: list[tuple[float, float]] = []  # minutes, dB

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.begun) / 60

    def batch(self, step: int, rank: int, world: int, progress: float) -> Tensor:
        self.n_steps = step + 1
        return super().batch(step, rank, world, progress)

    def notices(self, step: int, metrics: dict[str, float]) -> list[str]:
        found = super().notices(step, {name: value for name, value in metrics.items() if name != "entropy"})
        self.said += found
        return found

    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        self.history.append((self.minutes, self.evaluate(model, 1)["psnr"]))
        if self.history[-1][1] >= ENOUGH_DB:
            self.save(model, self.out)
            raise _Enough


def check_overfit(job: Overfit, out: Path, limit: LoopConfig, device: torch.device) -> str:
    """PSNR of the saved model on the clip it was trained on, through the ids."""
    config = replace(limit, sample_every=CHECK_EVERY / 60, save_every=60.0, n_evaluate=1)
    job.begin(out)
    try:
        if not fit(job, out, config, device=str(device)):
            raise KeyboardInterrupt
    except _Enough:
        pass
    except FloatingPointError as error:
        raise Failed(str(error)) from None
    took = job.minutes
    job.model = load(out, device)
    db = job.evaluate(job.model, 1)["psnr"]
    found = f"{db:.1f} dB after {took:.1f} min ({job.n_steps:,} steps), needs {NEED_DB:.0f} dB"
    if db < NEED_DB:
        raise Failed(f"{found}: {advice(job, db)}")
    return found


def advice(job: Overfit, db: float) -> str:
    """What is likely wrong with a clip that was not learned, and what to try."""
    if job.said:
        return "; ".join(job.said)
    seconds = 60 * job.minutes / max(1, job.n_steps)
    if job.n_steps < 150:
        return f"a step takes {seconds:.1f} s, so there were too few; try --minutes {math.ceil(300 * seconds / 60)}"
    middle = [value for at, value in job.history if at < job.minutes / 2]
    if middle and db > middle[-1] + 1:
        return f"it still rises; try --minutes {math.ceil(2 * job.minutes)}"
    if db < 15:
        return "almost nothing is learned; look at what failed above, and at the learning rate"
    return "it rises no more: the clip may hold more detail than this preset can; try another clip or a larger preset"


def check_codes(folder: Path, clip: Tensor, device: torch.device) -> str:
    """How many different ids the clip has."""
    model = load(folder, device)
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

    again = load(folder, device).reconstruct(clip.to(device)).cpu()
    rows = torch.cat([clip, again]).permute(0, 3, 2, 4, 1)  # (2, H, T, W, 3)
    pixels = ((rows.flatten(2, 3).flatten(0, 1) + 1) * 127.5).round().clamp(0, 255).byte()
    Image.fromarray(pixels.numpy()).save(folder / "reconstruction.png")
    return f"{folder / 'reconstruction.png'}, the clip above its reconstruction"


def check_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB on {device} at the highest"
    try:
        import resource
    except ImportError:  # not on this system
        return "cannot be read on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB at the highest"
