"""The loss balancer of EnCodec (arXiv:2210.13438, sec. 3.4): each loss gets a fixed share of the output's gradient."""
# Shapes: B batch

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Balancer(nn.Module):
    """Rescales losses of a model's output: their weights say how strong their gradients are, whatever their scale.

    The gradient of each is divided by a moving average of its own norm: the L2 norm per clip, mean over the clips of
    all processes. The averages are corrected for the zero they start from and kept in buffers.
    """

    def __init__(self, weights: dict[str, float], decay: float = 0.999, total_norm: float = 1.0) -> None:
        super().__init__()
        if not weights or any(not (math.isfinite(w) and w > 0) for w in weights.values()):
            raise ValueError(f"weights={weights}: need at least one, each finite and above 0; leave out what counts 0")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: need 0 <= decay < 1")
        if not (math.isfinite(total_norm) and total_norm > 0):
            raise ValueError(f"total_norm={total_norm}: need a finite number above 0")
        self.weights, self.decay, self.total_norm = dict(weights), decay, total_norm
        for name in weights:  # (2,) decayed sum of norms, and of ones; in float64 a decay near 1 keeps its digits
            self.register_buffer(f"norm_{name}", torch.zeros(2, dtype=torch.float64))

    def combine(self, losses: dict[str, Tensor], output: Tensor) -> Tensor:
        """A scalar to call backward on, (); its value means nothing. Every process must call this at the same steps.

        With g_i = B * d loss_i / d output, for a loss that is a mean over clips the gradient of each clip's own loss,
        the gradient with respect to output (B, ...) is

            total_norm / B * sum_i w_i / sum(w) * g_i / EMA(mean over clips of |g_i|_2)

        so a clip's gradient has a norm of about total_norm / B. That is what an ordinary mean over the batch of
        per-clip losses gives: neither B nor the number of processes changes its strength beside another such mean, for
        example a commitment loss, that is added for a single backward.

        A loss that is absent, needs no gradient, or has a gradient of zero on all processes leaves its average alone,
        and the other weights share the whole. NaN and infinity are left out of the averages and reach the gradient.
        """
        unknown = sorted(losses.keys() - self.weights.keys())
        if unknown:
            raise ValueError(f"losses {unknown} have no weight, expected some of {sorted(self.weights)}")
        if not output.requires_grad:
            raise ValueError("output does not require grad: nothing could be trained by the result")
        B, gradients = len(output), {}
        for name, loss in losses.items():
            if loss.requires_grad:  # the graphs may share what lies between output and losses
                (g,) = torch.autograd.grad(loss, output, retain_graph=True, allow_unused=True)
                if g is not None:
                    gradients[name] = g.float() * B
        scales = self._scales(gradients, output)
        total = torch.zeros_like(output, dtype=torch.float32)
        for name, g in gradients.items():
            total += (scales[name] / B).to(g.dtype) * g
        with torch.autocast(output.device.type, enabled=False):
            return (output.float() * total).sum()

    @torch.no_grad()
    def _scales(self, gradients: dict[str, Tensor], output: Tensor) -> dict[str, Tensor]:
        """What to multiply each gradient with, (); takes their norms into the averages."""
        norms = torch.zeros(len(self.weights), dtype=torch.float64, device=output.device)
        for i, name in enumerate(self.weights):
            if name in gradients:
                norms[i] = gradients[name].flatten(1).norm(dim=1).mean()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(norms)
            norms /= dist.get_world_size()
        present = norms != 0  # so is NaN
        weights = torch.tensor(list(self.weights.values()), dtype=torch.float64, device=output.device)
        shares = weights * present / (weights * present).sum().clamp(min=1e-300)
        scales = {}
        for name, norm, share in zip(self.weights, norms, shares):
            average = self.get_buffer(f"norm_{name}")
            new = self.decay * average + (1 - self.decay) * torch.stack([norm, torch.ones_like(norm)])
            average.copy_(torch.where(norm.isfinite() & (norm > 0), new, average))
            divisor = torch.where(average[1] > 0, average[0] / average[1], norm)
            scales[name] = torch.where(share > 0, self.total_norm * share / divisor, share)
        return scales
