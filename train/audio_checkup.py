"""What `avpoet-train doctor` looks at in the audio tokenizer: sound, quantizer, network, losses and codes.

Each check returns what it found in words, or raises `Failed` with what is likely wrong and what to try.
"""
# Shapes: B batch, N samples, F latent frames, Q levels, D latent channels

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_av.audio import AudioTokenizer, check_samples
from tokenizers_av.audio.spectrogram import Spectrogram
from tokenizers_av.clip import MediaError, read_clip
from tokenizers_av.media_formats import IMAGE_SUFFIXES
from tokenizers_av.packed import Packed
from train import checkup
from train.audio_discriminator import AudioDiscriminator
from train.audio_training import AudioTraining
from train.checkup import Failed, Target, load
from train.data import MediaSpec, Source
from train.loop import LoopConfig

SECONDS = 3.0  # that are learned by heart, the loudest of
LOOK_SECONDS = 120.0  # at the start of a file
MIN_SECONDS = 0.5
SILENT_DB, QUIET_DB = -60.0, -45.0  # rms
FULL_SCALE, CLIPPED_SHARE = 0.99, 0.01  # of the samples that stand there
GOAL = (
    Target(metric="si_sdr", need=25.0, enough=30.0, useless=0.0, words="SI-SDR {} dB"),
    Target(metric="mel_distance", need=0.05, enough=0.03, useless=1.0, words="mel distance {}", digits=3, falls=True),
)
# one clip is there as a whole in every batch, and so short a training has no use for long averages
OVERFIT = AudioTraining(ema=0.9, soft_from=0.1, soft_to=0.3)


def decibels(samples: Tensor) -> float:
    """Root mean square of samples against full scale, at least -200."""
    return 10 * math.log10(float(samples.double().square().mean()) + 1e-20)


def loudest(samples: Tensor, n: int) -> Tensor:
    """The n samples in a row of samples (N,) that hold the most energy, found to a hundredth of n; all if N <= n."""
    if len(samples) <= n:
        return samples
    energy = F.pad(samples.double().square().cumsum(0), (1, 0))  # (N + 1,) of all samples before
    step = max(1, n // 100)
    start = step * int((energy[n:] - energy[:-n])[::step].argmax())
    return samples[start : start + n]


def find_clip(data: str | Path, sample_rate: int, seed: int) -> tuple[Tensor, str]:
    """The loudest 3 s of the first file of `data` that has sound, (1, N), or all of it if shorter; and what was found.

    Of a long file its first minutes are looked at.
    """
    n = round(SECONDS * sample_rate)

    def draw(source: Source) -> Tensor:
        spec = MediaSpec(n_frames=math.ceil(SECONDS * MediaSpec.fps), sample_rate=sample_rate)
        audio = source.batch(list(range(8)), spec, video=False).audio  # some clips of a made world are silent
        assert audio is not None
        return next((clip[None, :n] for clip in audio if decibels(clip) > QUIET_DB), audio[:1, :n])

    def read(path: Path) -> Tensor:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise MediaError("picture")
        samples = read_clip(path, sample_rate=sample_rate, seconds=LOOK_SECONDS, video=False).samples
        if samples is None or len(samples) < MIN_SECONDS * sample_rate:
            raise MediaError(f"less than {MIN_SECONDS:g} s of sound")
        return loudest(samples, n)[None]

    return checkup.find_clip(data, seed, "sound", draw=draw, read=read, good=lambda clip: decibels(clip) > SILENT_DB)


def check_clip(clip: Tensor, about: str, sample_rate: int) -> str:
    peak, rms = float(clip.abs().max()), decibels(clip)
    words = (f"{about}, {clip.shape[1] / sample_rate:.2f} s at {sample_rate} Hz, rms {rms:.1f} dB, "
             f"peak {20 * math.log10(max(peak, 1e-10)):.1f} dB")  # fmt: skip
    try:
        check_samples(clip)
    except ValueError as error:
        raise Failed(f"{words}: {error}") from None
    if rms < SILENT_DB:
        raise Failed(f"{words}: silent, nothing can be learned from it; take another file, or look at which of its "
                     "tracks has the sound")  # fmt: skip
    if (share := float((clip.abs() >= FULL_SCALE).float().mean())) > CLIPPED_SHARE:
        raise Failed(f"{words}: clipped, {share:.0%} of the samples stand at full scale; record it with less gain, or "
                     "take another copy")  # fmt: skip
    return words + (", very quiet" if rms < QUIET_DB else "")


def check_quantizer(model: AudioTokenizer) -> str:
    """Each level takes the nearest code to what is left, in training too, and the gradient passes straight through."""
    quantizer, device = copy.deepcopy(model.quantizer), next(model.parameters()).device
    quantizer.dropout = 0.0
    z = torch.randn(2, 64, model.config.codebook_dim, generator=torch.Generator().manual_seed(0)).to(device)
    quantizer.train()
    quantizer(z)  # makes the codebooks
    books = quantizer.frozen()
    chosen = books.encode(z)
    decoded = books.decode(chosen)
    z.requires_grad_()
    trained = quantizer(z)
    for what, ids, z_q in (("encoding", chosen, decoded), ("training", trained.ids, trained.z_q)):
        rest = z.detach()
        for level, codes in enumerate(books.codes):
            distances = torch.cdist(rest.flatten(0, 1), codes, compute_mode="donot_use_mm_for_euclid_dist")
            taken = distances.gather(1, ids[:, level].flatten()[:, None])[:, 0]
            if wrong := int((taken > distances.amin(1) + 1e-3).sum()):
                raise Failed(f"in {what} {wrong} of {len(taken)} ids of level {level} do not name the nearest code")
            rest = rest - codes[ids[:, level]]
        if not torch.allclose(z_q, z.detach() - rest, atol=1e-3):
            raise Failed(f"what is decoded in {what} is not the sum of the codes")
    w = torch.randn_like(z)
    (grad,) = torch.autograd.grad((trained.z_q * w).sum(), z)
    if not grad.any():
        raise Failed("no gradient passes from the codes to the latents: the encoder cannot learn")
    if (off := float((grad - w).abs().max())) > 1e-4:
        raise Failed(f"the gradient does not pass straight through the codes: it is changed by up to {off:.2g}")
    n_levels, n_codes, _ = books.codes.shape
    return f"{n_levels} levels take the nearest of {n_codes:,} codes, and the gradient passes straight through"


def noise(model: AudioTokenizer, n_samples: int) -> Tensor:
    """(1, n_samples) uniform noise in [-1, 1]."""
    draw = torch.Generator().manual_seed(1)
    return (2 * torch.rand(1, n_samples, generator=draw) - 1).to(next(model.parameters()).device)


def check_causality(model: AudioTokenizer) -> str:
    """No gradient and no change reaches latents and decoded samples from later ones."""
    n_frames, k, hop = 12, 7, model.hop_length
    samples = noise(model, n_frames * hop).requires_grad_()
    latents = model.encoder(samples)
    z = latents.detach().requires_grad_()
    decoded = model.decoder(z)
    for what, made, given, seen in (
        ("latents", latents[:, :k], samples, k * hop),
        ("decoded samples", decoded[:, : k * hop], z, k),
    ):
        (grad,) = torch.autograd.grad((made * torch.randn_like(made)).sum(), given)
        reach = (grad.abs().flatten(2).amax((0, 2)) if grad.ndim == 3 else grad.abs().amax(0)) > 0  # over time
        if reach[seen:].any():
            first = seen + 1 + int(reach[seen:].nonzero()[0])
            on = f"sample {first:,}" if given is samples else f"latent frame {first}"
            raise Failed(f"the {what} of the first {k} frames depend on {on}: a layer looks ahead in time")
    with torch.no_grad():
        changed = torch.cat([samples[:, : k * hop], -samples[:, k * hop :]], dim=1)
        before, after = model.encode(samples), model.encode(changed)
        moved = int((before[..., :k] != after[..., :k]).sum())
        moved += int((model(samples).ids[..., :k] != model(changed).ids[..., :k]).sum())
        apart = float((model.decode(before) - model.decode(after))[:, : k * hop].abs().max())
    if moved:
        raise Failed(f"{moved} ids of the first {k} frames change with later samples: a layer looks ahead in time")
    if apart > 1e-5:
        raise Failed(f"what is decoded of the first {k} frames changes with later ids: a layer looks ahead in time")
    return f"the first {k} frames, their ids and what is decoded do not depend on later ones"


def check_streaming(model: AudioTokenizer) -> str:
    """Chunks of any length give the ids and samples of the whole, and those that training sees."""
    hop, n_frames = model.hop_length, 23
    samples = noise(model, n_frames * hop + hop // 2)
    ids = model.encode(samples)
    whole, apart = model.decode(ids), 0.0
    for cut in (hop // 3 + 1, hop, 2 * hop + 5, 9 * hop):
        chunked = torch.cat(list(model.encode_stream(samples.split(cut, dim=1))), dim=-1)
        turned = float((chunked != ids).float().mean())
        # others round by size, so an id may turn
        if turned > (0 if Packed.can(model.encoder.out.weight) else 0.005):
            raise Failed(f"chunks of {cut} samples give other ids than the whole: a layer forgets what it saw")
    for cut in (1, 3, 8):
        decoded = torch.cat(list(model.decode_stream(ids.split(cut, dim=2))), dim=1)
        apart = max(apart, float((decoded - whole).abs().max()))
        if apart > 1e-3:
            raise Failed(f"chunks of {cut} frames of ids are decoded to samples {apart:.2g} apart from the whole")
    with torch.no_grad():
        seen = model(samples).ids
    differ = float((seen != ids).float().mean())  # sums in another order may turn a code, and those of later levels
    if differ > 0.05:
        raise Failed(f"{differ:.0%} of the ids differ between training and encoding: the two paths do not agree")
    return (f"chunks of any length give the same ids, and samples at most {apart:.0e} apart; {differ:.1%} of the ids "
            "differ from training")  # fmt: skip


def check_sizes(model: AudioTokenizer) -> str:
    hop = model.hop_length
    lengths = (1, hop - 1, hop + 1, 4 * hop, 5 * hop + hop // 2 + 1)
    for n in lengths:
        samples = noise(model, n)
        if n >= hop and tuple((ids := model.encode(samples)).shape) != (1, model.n_codebooks, n // hop):
            raise Failed(f"{n} samples give ids {tuple(ids.shape)}, expected {(1, model.n_codebooks, n // hop)}")
        if (shape := model.reconstruct(samples).shape) != samples.shape:
            raise Failed(f"{n} samples come back as {tuple(shape)}")
    return ", ".join(f"{n:,}" for n in lengths) + " samples come back in their number"


def check_levels(model: AudioTokenizer) -> str:
    """Any number of levels can be decoded, and each adds its codes to those before."""
    ids = model.encode(noise(model, 6 * model.hop_length))
    before = None
    for k in range(1, model.n_codebooks + 1):
        samples = model.decode(ids[:, :k])
        if tuple(samples.shape) != (1, 6 * model.hop_length) or not samples.isfinite().all():
            raise Failed(f"{k} of {model.n_codebooks} levels are decoded to {tuple(samples.shape)} samples, "
                         f"{int((~samples.isfinite()).sum())} of them not finite")  # fmt: skip
        if before is not None and torch.equal(samples, before):
            raise Failed(f"level {k - 1} changes nothing of what is decoded: its codes are not used")
        before = samples
    return f"the first 1 to {model.n_codebooks} of {model.n_codebooks} levels can be decoded, and each counts"


def shortest_crop(model: AudioTokenizer) -> float:
    """Seconds of the shortest crop that the discriminators take, in whole frames."""
    n = -(-AudioDiscriminator(stft_width=1, wave_width=1).min_samples // model.hop_length) * model.hop_length
    return seconds_of(n, model.sample_rate)


def seconds_of(n_samples: int, sample_rate: int) -> float:
    """So many seconds that rounding down gives n_samples, whatever the floating point does."""
    return (n_samples + 0.5) / sample_rate


def check_losses(job: Any, device: torch.device) -> str:
    """A batch of the shortest crops that the discriminators take, through every loss."""
    names = checkup.check_losses(job, [job.batch(step, 0, 1, 1.0) for step in range(2)], device)
    missing = {"mel", "linear", "complex", "wave", "commitment", "g_adversarial", "features", "d_real"} - set(names)
    if missing:
        raise Failed(f"{', '.join(sorted(missing))}: not among the losses of a training with discriminators")
    return f"{', '.join(names)} of crops of {job.n_samples:,} samples"


def check_overfit(job: Any, clip: Tensor, out: Path, limit: LoopConfig, device: torch.device) -> str:
    """SI-SDR and mel distance of the whole clip, decoded from its ids by the saved model."""
    if decibels(clip) < SILENT_DB:
        raise Failed("not tried, the clip is silent: see data")
    return checkup.check_overfit(job, GOAL, out, limit, device)


def check_codes(folder: Path, clip: Tensor, learned: bool, device: torch.device) -> str:
    """How many different ids the clip has, level by level; few are a fault where the clip was not learned."""
    model = load(AudioTokenizer, folder, device)
    ids = model.encode(clip.to(device))[0]  # (Q, F)
    n = ids.shape[1]
    found, bits, most = [], [], min(n, model.codebook_size)
    for level in ids:
        counts = level.unique(return_counts=True)[1]
        found.append(len(counts))
        bits.append(float((counts / n * (n / counts).log2()).sum()))
    words = (f"{', '.join(map(str, found))} of {model.codebook_size:,} per level on the {n:,} frames of the clip, "
             f"{', '.join(f'{b:.1f}' for b in bits)} bits of at most {math.log2(most):.1f}")  # fmt: skip
    few = [str(level) for level, count in enumerate(found) if count < math.sqrt(most) / 2]
    if few and not learned:
        raise Failed(f"{words}: the codes of level {', '.join(few)} have collapsed; lower the learning rate, or raise "
                     "dead_code_threshold")  # fmt: skip
    return words


def save_picture(folder: Path, clip: Tensor, device: torch.device) -> str:
    """Write `reconstruction.png`: the spectrogram of the clip (1, N) above that of what the model makes of it."""
    model = load(AudioTokenizer, folder, device)
    picture = Spectrogram(model.sample_rate)
    picture.add(clip[0], model.reconstruct(clip.to(device)).cpu()[0])
    picture.save(folder / "reconstruction.png")
    return f"{folder / 'reconstruction.png'}, spectrogram of the clip above that of its reconstruction"


@contextlib.contextmanager
def few_latents() -> Iterator[None]:
    """Inside, the quantizer's library does not remark that a clip has fewer frames than there are codes."""
    try:
        from loguru import logger
    except ImportError:  # versions of the library without it
        yield
        return
    logger.disable("vector_quantize_pytorch")
    try:
        yield
    finally:
        logger.enable("vector_quantize_pytorch")
