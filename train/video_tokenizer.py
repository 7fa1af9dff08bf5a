"""Training of the video tokenizer: reconstruction, commitment and group entropy."""
# Shapes: B batch, T frames, H W height and width in pixels

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_av.video import VideoTokenizer
from train.data import MediaSpec, Source
from train.optimizers import matrix_optimizers


class VideoTokenizerJob:
    """Fits a `VideoTokenizer` to the clips of a source. Weights were chosen by PSNR on the playground.

    `soft_share` is the share of the training over which fewer and fewer samples bypass the quantizer.
    """

    name = "video-tokenizer"
    lr = 2.5e-3
    ema = 0.995

    def __init__(self, model: VideoTokenizer, train: Source, test: Source, spec: MediaSpec, *, batch_size: int = 16,
                 seed: int = 0, edge_weight: float = 0.5, entropy_weight: float = 0.3,
                 commitment_weight: float = 0.1, soft_share: float = 0.3) -> None:  # fmt: skip
        self.model, self.train, self.test, self.spec = model, train, test, spec
        self.batch_size, self.seed = batch_size, seed
        self.edge_weight = edge_weight
        self.entropy_weight, self.commitment_weight, self.soft_share = entropy_weight, commitment_weight, soft_share

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return matrix_optimizers(self.model.named_parameters(), self.lr)

    def batch(self, step: int, rank: int, world: int, progress: float) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1] on the model's device: clips that no other step or process sees."""
        first = ((self.seed * 7_919 + step) * world + rank) * self.batch_size
        video = self.train.batch(range(first, first + self.batch_size), self.spec, audio=False).video
        assert video is not None
        return video.to(next(self.model.parameters()).device)

    def loss(self, model: nn.Module, batch: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of one batch (B, 3, T, H, W), () and what to log; needs T = 1 + 4n and sizes the stride divides."""
        # the share of samples that bypass the quantizer falls from one to zero in the first part of the training
        share = max(0.0, 1 - progress / self.soft_share) if self.soft_share else 0.0
        soft = torch.rand(len(batch), device=batch.device) < share
        output = model(batch, soft)
        q = output.quantized
        error = output.video.float() - batch
        mae = error.abs().mean()
        # log of each frame's error, as in PSNR: within a frame large errors (objects) count most, yet no frame is lost
        log_mse = (error.square().mean((1, 3, 4)) + 1e-4).log().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        total = 0.1 * log_mse + 0.3 * mae + self.edge_weight * edges
        total = total + self.entropy_weight * q.entropy_loss + self.commitment_weight * q.commitment_loss
        return total, {
            "mae": mae.detach(),
            "edges": edges.detach(),
            "psnr": psnr(error),
            "commitment": q.commitment_loss.detach(),
            "entropy": q.entropy_loss.detach(),
            "codes": q.ids.unique().numel(),
            "soft": share,
        }

    @torch.no_grad()
    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write `{step}.png`: every fourth frame of four test clips, the truth above its reconstruction."""
        from PIL import Image

        video = self.test.batch(range(4), self.spec, audio=False).video
        assert video is not None and isinstance(model, VideoTokenizer)
        again = model.decode(model.encode(video.to(next(model.parameters()).device))).cpu()
        rows = torch.stack([video, again[:, :, : video.shape[2]]], 1).flatten(0, 1)[:, :, ::4]  # (8, 3, t, H, W)
        grid = rows.permute(0, 3, 2, 4, 1).flatten(2, 3).flatten(0, 1)  # (8H, tW, 3)
        Image.fromarray(((grid + 1) * 127.5).round().clamp(0, 255).byte().numpy()).save(folder / f"{step:07d}.png")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, n: int) -> dict[str, float]:
        """PSNR in dB (mean over frames, then clips) and the share of codes used on n test clips."""
        assert isinstance(model, VideoTokenizer)
        scores, seen = [], set()
        for first in range(0, n, self.batch_size):
            video = self.test.batch(range(first, min(first + self.batch_size, n)), self.spec, audio=False).video
            assert video is not None
            video = video.to(next(model.parameters()).device)
            ids = model.encode(video)
            error = model.decode(ids)[:, :, : video.shape[2]] - video
            mse = (error / 2).square().mean((1, 3, 4)).clamp(min=1e-10)
            scores.append(-10 * mse.log10().mean(1))
            seen.update(ids.unique().tolist())
        return {"psnr": float(torch.cat(scores).mean()), "codes_used": len(seen) / model.codebook_size, "n": n}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model as a folder that `VideoTokenizer.from_pretrained` opens."""
        assert isinstance(model, VideoTokenizer)
        model.save_pretrained(folder)


def psnr(error: Tensor) -> Tensor:
    """PSNR of the whole batch from errors on the [-1, 1] scale, in dB."""
    return -10 * torch.log10(F.mse_loss(error.detach() / 2, torch.zeros_like(error)) + 1e-10)
