"""Training of the video tokenizer: reconstruction, entropy and commitment; perceptual and adversarial losses if asked.

Image and video batches are mixed: a step draws one or the other. The reconstruction loss is the log of each frame's
squared error, which is its PSNR, beside absolute error and edges.
"""
# Shapes: B batch, T frames, H W height and width in pixels

from __future__ import annotations

import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_av.video import VideoOutput, VideoTokenizer
from train.adversarial import LeCAM, discriminator_loss, frozen, generator_loss, r1_penalty
from train.checkpoint import CheckpointError, has_checkpoint, load_weights, save_model
from train.data import MediaSpec, Source
from train.discriminator import Discriminator
from train.evaluate.tokenizer_metrics import CodeUse, psnr
from train.optimizers import matrix_optimizers
from train.perceptual import PerceptualLoss
from train.video_training import VideoTraining
from train.watch import Watch

R1_CLIPS = 4  # of a batch: a penalty needs two passes backward


class Critic(nn.Module):
    """The discriminator with what regularises it."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.discriminator = Discriminator(dims)
        self.lecam = LeCAM()


class VideoTokenizerJob:
    """Fits a `VideoTokenizer` to the clips of a source. The weights of `tiny` were chosen by PSNR on the playground."""

    name = "video-tokenizer"

    def __init__(self, tokenizer: VideoTokenizer, train: Source, test: Source, spec: MediaSpec, *, batch_size: int = 16,
                 seed: int = 0, training: VideoTraining | None = None,
                 perceptual: PerceptualLoss | None = None) -> None:  # fmt: skip
        self.training = training or VideoTraining()
        self.model = tokenizer
        for part in (tokenizer.encoder, tokenizer.quantizer):
            part.requires_grad_(not self.training.decoder_only)
        self.critic = Critic(self.training.discriminator_dims) if self.training.adversarial_weight > 0 else None
        self.train, self.test, self.spec = train, test, spec
        self.batch_size, self.seed, self.perceptual = batch_size, seed, perceptual
        self.ema = self.training.ema
        self.watch = Watch(tokenizer.codebook_size)
        self._ids: Tensor | None = None  # of the last batch
        self._takes_r1 = False  # whether its step does
        self._notices: list[str] = []  # not yet said

    def compile(self) -> None:
        self.model.compile(dynamic=False)

    @property
    def settings(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, **asdict(self.training)}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        learn = ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)
        found = matrix_optimizers(learn, self.training.lr)
        if self.critic is not None:
            weights = self.critic.parameters()
            found.append(torch.optim.Adam(weights, lr=self.training.discriminator_lr, betas=(0.0, 0.99)))
        return found

    def batch(self, step: int, rank: int, world: int, progress: float) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1] on the model's device, or images (T = 1, more of them): clips that no other
        step or process sees."""
        t = self.training
        images, self._takes_r1 = (  # the same on every process
            random.Random(f"{self.seed}/{step}{what}").random() < share
            for what, share in (("", t.image_share), ("/r1", 1 / t.r1_every))
        )
        n = self.batch_size * (t.images_per_clip if images else 1)
        spec = replace(self.spec, n_frames=1) if images else self.spec
        first = ((self.seed * 7_919 + step) * world + rank) * self.batch_size * max(1, t.images_per_clip)
        video = self.train.batch(range(first, first + n), spec, audio=False).video
        assert video is not None
        self._notices += self.watch.batch(video)
        return video.to(next(self.model.parameters()).device)

    def notices(self, step: int, metrics: dict[str, float]) -> list[str]:
        """What `Watch` has noticed since it was asked last."""
        found, self._notices = self._notices + self.watch.step(step, metrics, self._ids), []
        return found

    def go_on_from(self, checkpoint: Path) -> None:
        """Fine-tune what an earlier training has made: quantized from the start, and with its critic if both have one,
        which then plays from the start too; `checkpoint` may be missing."""
        self.training = replace(self.training, soft_share=0.0, entropy_boost=1.0)
        if self.critic is None or not has_checkpoint(checkpoint):
            return
        weights = load_weights(checkpoint, "critic")
        if weights is not None:
            try:
                self.critic.load_state_dict(weights)
            except RuntimeError:
                raise CheckpointError(f"{checkpoint}: its discriminator is of other sizes") from None
            self.training = replace(self.training, adversarial_from=0.0)

    def loss(self, model: nn.Module, batch: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of one batch (B, 3, T, H, W), () and what to log; needs T = 1 + 4n and sizes the stride divides."""
        t = self.training
        early = max(0.0, 1 - progress / t.soft_share) if t.soft_share else 0.0  # from one to zero
        soft = torch.rand(len(batch), device=batch.device) < early
        output: VideoOutput = model(batch, soft)
        q = output.quantized
        self._ids = q.ids.detach()
        error = output.video.float() - batch
        mae = error.abs().mean()
        # log of each frame's error, as in PSNR: within a frame large errors (objects) count most, yet no frame is lost
        log_mse = (error.square().mean((1, 3, 4)) + 1e-4).log().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        total = t.log_mse_weight * log_mse + t.mae_weight * mae + t.edge_weight * edges
        if error.shape[2] > 1 and (t.change_weight or t.join_weight):
            change = error.diff(dim=2).abs()
            joins = change[:, :, :: self.model.temporal_stride]
            total = total + t.change_weight * change.mean() + t.join_weight * joins.mean()
        total = total + t.entropy_weight * (1 + (t.entropy_boost - 1) * early) * q.entropy_loss
        total = total + t.commitment_weight * q.commitment_loss
        metrics: dict[str, Tensor | float] = {
            "mae": mae.detach(),
            "edges": edges.detach(),
            "psnr": -10 * ((error.detach() / 2).square().mean() + 1e-10).log10(),  # of the whole batch, in dB
            "commitment": q.commitment_loss.detach(),
            "entropy": q.entropy_loss.detach(),
            "codes": q.ids.unique().numel(),
            "soft": early,
        }
        if self.perceptual is not None:
            distance = self.perceptual.to(batch.device)(output.video.float(), batch)
            total, metrics["perceptual"] = total + t.perceptual_weight * distance, distance.detach()
        if self.critic is not None and progress >= t.adversarial_from:
            more, logged = self._adversarial(self.critic, output.video.float(), batch)
            total, metrics = total + more, metrics | logged
        return total, metrics

    def _adversarial(self, critic: Critic, video: Tensor, batch: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Losses of both players, added: neither sends a gradient into the other, so one backward pass serves both."""
        t, judge = self.training, critic.discriminator
        with frozen(judge):
            for_tokenizer = generator_loss(judge(video))
        real, fake = judge(batch), judge(video.detach())
        for_critic = discriminator_loss(real, fake) + t.lecam_weight * critic.lecam(real, fake)
        if self._takes_r1:
            for_critic = for_critic + t.r1_every * t.r1_weight * r1_penalty(judge, batch[:R1_CLIPS])
        return t.adversarial_weight * for_tokenizer + for_critic, {
            "g_adversarial": for_tokenizer.detach(),
            "d_real": real.detach().mean(),
            "d_fake": fake.detach().mean(),
        }

    @torch.no_grad()
    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write `{step}.png`: every fourth frame of four test clips, the truth above its reconstruction."""
        from PIL import Image

        assert isinstance(model, VideoTokenizer)
        video = self.test.batch(range(4), self._test_spec, audio=False).video
        assert video is not None
        again = model.reconstruct(video.to(next(model.parameters()).device)).cpu()
        rows = torch.stack([video, again], 1).flatten(0, 1)[:, :, ::4]  # (8, 3, t, H, W)
        grid = rows.permute(0, 3, 2, 4, 1).flatten(2, 3).flatten(0, 1)  # (8H, tW, 3)
        Image.fromarray(((grid + 1) * 127.5).round().clamp(0, 255).byte().numpy()).save(folder / f"{step:07d}.png")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, n: int) -> dict[str, float]:
        """PSNR in dB (mean over frames, then clips) and the share of codes used on n test clips."""
        assert isinstance(model, VideoTokenizer)
        scores, use = [], CodeUse.of_size(model.codebook_size)
        for first in range(0, n, self.batch_size):
            video = self.test.batch(range(first, min(first + self.batch_size, n)), self._test_spec, audio=False).video
            assert video is not None
            video = video.to(next(model.parameters()).device)
            ids = model.encode(video)
            again = model.decode(ids)[:, :, : video.shape[2]].clamp(-1, 1)
            scores.append(psnr((again + 1) / 2, (video + 1) / 2))
            use.add(ids)
        return {"psnr": float(torch.cat(scores).mean()), "codes_used": use.share, "n": n}

    @property
    def _test_spec(self) -> MediaSpec:
        """What it is judged on: a model that sees images only, on images."""
        return replace(self.spec, n_frames=1) if self.training.image_share == 1 else self.spec

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the tokenizer as a folder that `VideoTokenizer.from_pretrained` opens."""
        assert isinstance(model, VideoTokenizer)
        save_model(model, folder)
