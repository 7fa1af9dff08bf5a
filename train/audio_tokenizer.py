"""Training of the audio tokenizer: which crops it sees, what it pays for, and how it is judged."""
# Shapes: B batch, N samples

from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_av.audio import AudioTokenizer
from tokenizers_av.audio.mel import log_mel
from train.audio_losses import DEFAULT_WEIGHTS, AudioLossWeights, audio_loss
from train.audio_metrics import mel_distance, share_of_codes_used, si_sdr
from train.data.source import MediaSpec, Source
from train.watch import Watch


class AudioTokenizerJob:
    """What the training loop drives. `batch` is a pure function of (seed, step, rank, world)."""

    name = "audio-tokenizer"
    lr = 1e-3
    betas = (0.8, 0.99)
    weight_decay = 0.0
    ema = 0.99
    critic = None

    def __init__(
        self,
        model: AudioTokenizer,
        source: Source,
        test: Source | None = None,
        *,
        batch_size: int = 16,
        seconds: float = 1.0,
        seed: int = 0,
        loud_share: float = 0.8,
        soft: tuple[float, float] = (0.15, 0.35),
        weights: AudioLossWeights = DEFAULT_WEIGHTS,
    ):
        """`seconds` is the crop length, rounded down to whole frames; at least `loud_share` of the crops hold sound,
        where there is any; clips are quantized as `loss` says from `soft`.

        `evaluate` and `sample` read `test`, or the training source where there is none.
        """
        n_samples = int(seconds * model.sample_rate) // model.hop_length * model.hop_length
        if n_samples == 0 or batch_size < 1:
            raise ValueError(
                f"batch_size={batch_size}, seconds={seconds}: need a clip or more and at least "
                f"{model.hop_length / model.sample_rate:.3f} s"
            )
        self.model: nn.Module = model
        self.source, self.test = source, source if test is None else test
        self.batch_size, self.n_samples, self.seed = batch_size, n_samples, seed
        self.loud_share, self.soft, self.weights = loud_share, soft, weights
        self.sample_rate, self.hop_length, self.codebook_size = model.sample_rate, model.hop_length, model.codebook_size
        self.watch = Watch()
        fps = MediaSpec().fps
        self.spec = MediaSpec(
            n_frames=max(MediaSpec().n_frames, ceil(n_samples / model.sample_rate * fps)),
            fps=fps,
            sample_rate=model.sample_rate,
        )

    @property
    def settings(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "lr": self.lr, "n_samples": self.n_samples}

    def notices(self, step: int, metrics: dict[str, float]) -> list[str]:
        return self.watch.step(step, metrics)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        parameters = self.model.parameters()
        return [torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)]

    def batch(self, step: int, rank: int = 0, world: int = 1, progress: float = 0.0) -> Tensor:
        """Crops (B, N) for one step of one process."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step * world + rank) % 2**63)
        if self.source.len is None:  # endless: every clip is new
            first = (step * world + rank) * self.batch_size
            indices = list(range(first, first + self.batch_size))
        else:
            indices = torch.randint(self.source.len, (self.batch_size,), generator=generator).tolist()
        clips = self._audio(self.source, indices)
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
        if chance < self.loud_share and len(loud):
            start = int(loud[int(where * len(loud))]) - int(offset * self.n_samples)
        start = min(max(start, 0), spare)
        return clip[start : start + self.n_samples]

    def loss(self, model: nn.Module, batch: Tensor, progress: float) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Loss of one batch (B, N) and what to log.

        No clip is quantized while `progress` is below soft[0], every one from soft[1] on: codebooks that start from an
        encoder which already knows the signal keep many more codes in use.
        """
        start, end = self.soft
        soft_share = min(1.0, max(0.0, (end - progress) / max(end - start, 1e-6)))
        bypass = torch.rand(len(batch), device=batch.device) < soft_share
        bypass[0] = soft_share == 1  # so that all processes of a run start to use their codebooks at the same step
        out = model(batch, bypass=bypass)
        loss = audio_loss(out.samples, batch, self.sample_rate, out.commit_loss, self.weights)
        used = share_of_codes_used(out.ids, 1)  # counts: codes that occur in this batch
        return loss.total, {
            "mel": loss.mel.detach(),
            "linear": loss.linear.detach(),
            "complex": loss.complex.detach(),
            "wave": loss.wave.detach(),
            "commit": out.commit_loss.detach(),
            **{f"codes_{level}": count for level, count in enumerate(used)},
        }

    @torch.no_grad()
    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write `audio_{step}.png` (log-mel of four test clips above their reconstructions) and a pair of wav files."""
        from PIL import Image

        from tokenizers_av.clip import Clip

        assert isinstance(model, AudioTokenizer)
        folder.mkdir(parents=True, exist_ok=True)
        before, after = self._reconstruct(model, list(range(4)))
        columns = []
        for pair in zip(before, after):
            mels = log_mel(torch.stack(pair), self.sample_rate, 1024, 160)  # (2, n_mels, frames)
            columns.append(torch.cat([mel.flip(0) for mel in mels]))
        picture = ((torch.cat(columns, 1) + 5) / 5).clamp(0, 1)  # -100 dB black, 0 dB white
        Image.fromarray((picture * 255).byte().cpu().numpy()).resize((picture.shape[1], 2 * picture.shape[0])).save(
            folder / f"audio_{step:06d}.png"
        )
        for name, clips in (("before", before), ("after", after)):
            sound = Clip(None, self.spec.fps, clips.flatten().float().cpu().clamp(-1, 1), self.sample_rate)
            sound.save(folder / f"audio_{step:06d}_{name}.wav")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, n: int) -> dict[str, float]:
        """Whole clips 0..n-1 of the test source: mel distance in decades (all clips), SI-SDR in dB (clips with sound),
        share of codes used per level, and the rms of what a silent clip decodes to."""
        assert isinstance(model, AudioTokenizer)
        if n < 1:
            raise ValueError(f"n={n}: needs at least one test clip")
        distances, ratios, ids = [], [], []
        for first in range(0, n, self.batch_size):
            indices = list(range(first, min(first + self.batch_size, n)))
            before, after = self._reconstruct(model, indices)
            distances.append(mel_distance(after, before, self.sample_rate))
            ratios.append(si_sdr(after, before))
            ids.append(model.encode(before))
        silence = model.decode(model.encode(before.new_zeros(1, self.n_samples)))
        used = share_of_codes_used(torch.cat(ids), self.codebook_size)
        ratio = torch.cat(ratios)
        return {
            "n": float(n),
            "mel_distance": float(torch.cat(distances).mean()),
            "si_sdr": float(ratio[ratio.isfinite()].mean()),
            "silence_rms": float(silence.square().mean().sqrt()),
            **{f"codes_used_{level}": share for level, share in enumerate(used)},
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model as a folder that `AudioTokenizer.from_pretrained` opens."""
        assert isinstance(model, AudioTokenizer)
        model.save_pretrained(folder)

    def _reconstruct(self, model: AudioTokenizer, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Whole test clips cut to whole frames, and what the codec makes of them: (B, N'), (B, N')."""
        training = model.training
        model.eval()
        before = self._audio(self.test, indices).to(next(model.parameters()).device)
        after = model.decode(model.encode(before))
        model.train(training)
        return before[:, : after.shape[1]], after
