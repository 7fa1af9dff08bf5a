"""Training of the audio tokenizer: which crops it sees, what it pays for, and how it is judged."""
# Shapes: B batch, N samples

from __future__ import annotations

from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_av.audio import AudioTokenizer, check_samples
from tokenizers_av.audio.metrics import mel_distance, share_of_codes_used, si_sdr
from train.audio_discriminator import (
    AudioDiscriminator,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from train.audio_losses import audio_loss
from train.audio_training import AudioTraining
from train.balancer import Balancer
from train.checkpoint import CheckpointError, has_checkpoint, load_weights, save_model
from train.data.source import MediaSpec, Source
from train.optimizers import matrix_optimizers
from train.watch import Watch

COLLAPSED = "lower the learning rate"


class Critic(nn.Module):
    """The discriminators, and the balancer between what they ask for and reconstruction."""

    def __init__(self, training: AudioTraining) -> None:
        super().__init__()
        self.discriminator = AudioDiscriminator(stft_width=training.stft_width, wave_width=training.wave_width)
        weights = {"adversarial": training.adversarial_weight, "features": training.feature_weight}
        self.balancer = Balancer({"reconstruction": 1.0, **{name: w for name, w in weights.items() if w}})


class AudioTokenizerJob:
    """What the training loop drives. `batch` is a pure function of (seed, step, rank, world)."""

    name = "audio-tokenizer"

    def __init__(
        self,
        model: AudioTokenizer,
        source: Source,
        test: Source | None = None,
        *,
        batch_size: int = 16,
        seed: int = 0,
        training: AudioTraining | None = None,
    ):
        """`evaluate` and `sample` read `test`, or the training source where there is none."""
        self.training = t = training or AudioTraining()
        n_samples = int(t.seconds * model.sample_rate) // model.hop_length * model.hop_length
        if n_samples == 0 or batch_size < 1:
            raise ValueError(
                f"batch_size={batch_size}, seconds={t.seconds}: need a clip or more and at least {model.latency:.3f} s"
            )
        self.model = model
        self.critic = Critic(t) if t.adversarial_weight else None
        if self.critic is not None and n_samples < self.critic.discriminator.min_samples:
            least = self.critic.discriminator.min_samples / model.sample_rate
            raise ValueError(f"seconds={t.seconds}: the discriminators need {least:.3f} s or more")
        self.source, self.test = source, source if test is None else test
        self.batch_size, self.n_samples, self.seed = batch_size, n_samples, seed
        self.sample_rate, self.hop_length, self.codebook_size = model.sample_rate, model.hop_length, model.codebook_size
        self.ema = t.ema
        self.watch = Watch()
        self.watch_levels = [Watch(model.codebook_size, collapsed=COLLAPSED) for _ in range(model.n_codebooks)]
        self._ids: Tensor | None = None  # (B, Q, F) of the last batch
        fps = MediaSpec().fps
        self.spec = MediaSpec(
            n_frames=max(MediaSpec().n_frames, ceil(n_samples / model.sample_rate * fps)),
            fps=fps,
            sample_rate=model.sample_rate,
        )

    def compile(self) -> None:
        for module in (self.model.encoder, self.model.decoder):  # the library's quantizer does not compile
            module.compile(dynamic=False)

    @property
    def settings(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, **asdict(self.training)}

    def notices(self, step: int, metrics: dict[str, float]) -> list[str]:
        """What `Watch` notices in the losses and in the codes of each level."""
        found = self.watch.step(step, metrics)
        if self._ids is not None and metrics.get("soft", 1.0) <= 0.5:
            for level, (watch, ids) in enumerate(zip(self.watch_levels, self._ids.unbind(1))):
                found += [f"level {level}: {words}" for words in watch.step(step, {}, ids)]
        return found

    def optimizers(self) -> list[torch.optim.Optimizer]:
        found = matrix_optimizers(self.model.named_parameters(), self.training.lr)
        if self.critic is not None:
            weights = self.critic.discriminator.parameters()
            found.append(torch.optim.Adam(weights, lr=self.training.discriminator_lr, betas=(0.5, 0.9)))
        return found

    def go_on_from(self, checkpoint: Path) -> None:
        """Fine-tune what an earlier training has made: quantized from the start, and with its discriminators if both
        have some, which then play from the start too; `checkpoint` may be missing."""
        self.training = replace(self.training, soft_from=0.0, soft_to=0.0)
        self.watch = Watch(trained=True)
        if self.critic is None or not has_checkpoint(checkpoint):
            return
        weights = load_weights(checkpoint, "critic")
        if weights is not None:
            weights = {k: v for k, v in weights.items() if not k.startswith("balancer.")}  # its averages are soon made
            try:
                self.critic.discriminator.load_state_dict(
                    {k.removeprefix("discriminator."): v for k, v in weights.items()}
                )
            except RuntimeError:
                raise CheckpointError(f"{checkpoint}: its discriminators are of other sizes") from None
            self.training = replace(self.training, adversarial_from=0.0, head_start=0.0)

    def batch(self, step: int, rank: int = 0, world: int = 1, progress: float = 0.0) -> Tensor:
        """Crops (B, N) for one step of one process."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step * world + rank) % 2**63)
        first = ((self.seed * 7_919 + step) * world + rank) * self.batch_size
        clips = self._audio(self.source, list(range(first, first + self.batch_size)))
        check_samples(clips)
        crops = torch.stack([self._crop(clip, generator) for clip in clips.cpu()])
        return crops.to(next(self.model.parameters()).device)

    def _audio(self, source: Source, indices: list[int]) -> Tensor:
        audio = source.batch(indices, self.spec, video=False).audio
        if audio is None:
            raise ValueError("the data has no sound: the audio tokenizer needs clips with an audio track")
        return audio

    def _crop(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        """(N_clip,) -> (N,); with probability `loud_share` a random loud sample lies somewhere inside the crop."""
        spare = len(clip) - self.n_samples
        chance, where, offset = torch.rand(3, generator=generator).tolist()
        start = int(where * (spare + 1))
        level = clip.abs()
        loud = (level > max(0.1 * float(level.max()), 1e-3)).nonzero()[:, 0]
        if chance < self.training.loud_share and len(loud):
            start = int(loud[int(where * len(loud))]) - int(offset * self.n_samples)
        start = min(max(start, 0), spare)
        return clip[start : start + self.n_samples]

    def loss(self, model: nn.Module, batch: Tensor, progress: float) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Loss of one batch (B, N), (), and what to log.

        With discriminators the value means nothing, only its gradient does: the balancer makes it. Logged as `loss` is
        the weighted sum of the reconstruction losses, which is what should fall.
        """
        t = self.training
        soft = 0.0  # share of clips that bypass the quantizer
        if progress < t.soft_to:
            soft = min(1.0, (t.soft_to - progress) / max(t.soft_to - t.soft_from, 1e-6))
        bypass = torch.rand(len(batch), device=batch.device) < soft
        bypass[0] = soft == 1  # so that all processes of a run start to use their codebooks at the same step
        out = model(batch, bypass=bypass)
        self._ids = out.ids.detach()
        r = audio_loss(out.samples, batch, self.sample_rate)
        reconstruction = (
            t.mel_weight * r.mel + t.linear_weight * r.linear + t.complex_weight * r.complex + t.wave_weight * r.wave
        )
        metrics: dict[str, float | Tensor] = {
            "loss": reconstruction.detach(),
            **{name: getattr(r, name).detach() for name in ("mel", "linear", "complex", "wave")},
            "level": _decibels(out.samples.detach()) - _decibels(batch),  # below 0: quieter than it should be
            "commitment": out.commit_loss.detach(),
            "soft": soft,
            **{f"codes_{level}": ids.unique().numel() for level, ids in enumerate(self._ids.unbind(1))},
        }
        total = reconstruction
        if self.critic is not None and progress >= t.adversarial_from:
            judged = progress >= t.adversarial_from + t.head_start
            total, logged = self._adversarial(self.critic, reconstruction, out.samples, batch, judged)
            metrics |= logged
        return total + t.commitment_weight * out.commit_loss, metrics

    @staticmethod
    def _adversarial(
        critic: Critic, reconstruction: Tensor, samples: Tensor, batch: Tensor, judged: bool
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Losses of both players, added: neither sends a gradient into the other, so one backward pass serves both.

        The codec hears the discriminators where it is `judged`, balanced against `reconstruction`.
        """
        judge = critic.discriminator
        real, apart = judge(batch), judge(samples.detach())
        mean = lambda judged: torch.stack([j.logits.detach().float().mean() for j in judged]).mean()
        metrics: dict[str, float | Tensor] = {"d_real": mean(real), "d_fake": mean(apart)}
        total = hinge_discriminator_loss(real, apart)
        if not judged:
            return total + reconstruction, metrics
        fake = judge(samples)  # the balancer takes its gradient no further back than to the samples
        losses = {"adversarial": hinge_generator_loss(fake), "features": feature_matching_loss(real, fake)}
        metrics |= {"g_adversarial": losses["adversarial"].detach(), "features": losses["features"].detach()}
        wanted = {name: loss for name, loss in losses.items() if name in critic.balancer.weights}
        return total + critic.balancer.combine({"reconstruction": reconstruction, **wanted}, samples), metrics

    @torch.no_grad()
    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write `audio_{step}.png` (spectra of four test clips above their reconstructions), and both as wav files."""
        from tokenizers_av.audio.spectrogram import Spectrogram
        from tokenizers_av.clip import Clip

        assert isinstance(model, AudioTokenizer)
        folder.mkdir(parents=True, exist_ok=True)
        before, ids = self._encoded(model, list(range(4)))
        after = model.decode(ids)
        picture = Spectrogram(self.sample_rate)
        picture.add(before.flatten(), after.flatten())
        picture.save(folder / f"audio_{step:06d}.png")
        for name, clips in (("before", before), ("after", after)):
            sound = Clip(None, self.spec.fps, clips.flatten().float().cpu().clamp(-1, 1), self.sample_rate)
            sound.save(folder / f"audio_{step:06d}_{name}.wav")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, n: int) -> dict[str, float]:
        """Whole clips 0..n-1 of the test source: mel distance in decades (all clips) and SI-SDR in dB (clips with
        sound) of all levels and of the first k, share of codes used per level, and the rms of what silence becomes."""
        assert isinstance(model, AudioTokenizer)
        if n < 1:
            raise ValueError(f"n={n}: needs at least one test clip")
        Q = model.n_codebooks
        distances: list[list[Tensor]] = [[] for _ in range(Q)]
        ratios: list[list[Tensor]] = [[] for _ in range(Q)]
        ids = []
        for first in range(0, n, self.batch_size):
            before, found = self._encoded(model, list(range(first, min(first + self.batch_size, n))))
            ids.append(found)
            for k in range(Q):
                after = model.decode(found[:, : k + 1])
                distances[k].append(mel_distance(after, before, self.sample_rate))
                ratios[k].append(si_sdr(after, before))
        silence = model.decode(model.encode(before.new_zeros(1, self.n_samples)))
        results = {"n": float(n), "silence_rms": float(silence.square().mean().sqrt())}
        for k in range(Q):
            name = "" if k == Q - 1 else f"_{k + 1}"
            results["mel_distance" + name] = float(torch.cat(distances[k]).mean())
            if torch.cat(ratios[k]).isfinite().any():  # not where all is silence
                results["si_sdr" + name] = float(torch.cat(ratios[k]).nanmean())
        used = share_of_codes_used(torch.cat(ids), self.codebook_size)
        return results | {f"codes_used_{level}": share for level, share in enumerate(used)}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model as a folder that `AudioTokenizer.from_pretrained` opens."""
        assert isinstance(model, AudioTokenizer)
        save_model(model, folder)

    def _encoded(self, model: AudioTokenizer, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Whole test clips cut to whole frames (B, N'), and their ids (B, Q, F)."""
        audio = self._audio(self.test, indices).to(next(model.parameters()).device)
        ids = model.encode(audio)
        return audio[:, : ids.shape[-1] * self.hop_length], ids


def _decibels(samples: Tensor) -> Tensor:
    """() mean power of samples (B, N) in dB, at least -100."""
    return 10 * (samples.float().square().mean() + 1e-10).log10()
