"""Adversarial losses of the video tokenizer: non-saturating logistic losses, R1 penalty, LeCAM regulariser.

MAGVIT-v2 (arXiv:2310.05737, App. A) weighs them 0.1 (generator), 10 (R1) and 0.001 (LeCAM).
"""
# Shapes: B batch, T frames, H W height and width; logits have any shape, their loss is the mean over all of them

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def generator_loss(fake: Tensor) -> Tensor:
    """mean softplus(-fake), (): -log of the probability that fakes are real (non-saturating; arXiv:1406.2661, sec. 3).

    `fake` are the discriminator's logits of generated videos, with gradient.
    """
    return F.softplus(-fake.float()).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(-real) + mean softplus(fake), (): cross-entropy of both kinds (arXiv:1406.2661, eq. 1).

    `fake` are the logits of generated videos that were detached. Logits of zero give 2 log 2.
    """
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def r1_penalty(discriminator: nn.Module, video: Tensor) -> Tensor:
    """E[|grad_x D(x)|^2], (), over real videos x (B, 3, T, H, W) (arXiv:1801.04406, sec. 4.1, without its gamma / 2).

    D(x) is the mean logit of a clip, the norm sums over pixels. Float32 even under autocast. Differentiable in the
    weights, at several times the cost of a plain step: apply it every n-th step, n times as strong.
    """
    with torch.enable_grad(), torch.autocast(video.device.type, enabled=False):
        x = video.detach().float().requires_grad_()
        logits = discriminator(x).flatten(1).mean(1)  # (B,)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return gradient.square().flatten(1).sum(1).mean()


class LeCAM(nn.Module):
    """mean (real - a_fake)^2 + mean (fake - a_real)^2 with moving averages a of the logits (arXiv:2104.03310).

    Keeps the logits of real and generated videos from drifting apart. The averages are plain means of all calls until
    there are 1 / (1 - decay) of them, so nothing pulls towards the zero they start from. For the first `warmup` calls,
    when they are hardly more than the batch itself, the loss is zero. All processes share the averages.
    """

    real: Tensor  # () average logit of real videos
    fake: Tensor  # () of generated ones
    n_calls: Tensor  # () int64

    def __init__(self, decay: float = 0.999, warmup: int = 100) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: need 0 <= decay < 1")
        self.decay, self.warmup = decay, warmup
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))
        self.register_buffer("n_calls", torch.zeros((), dtype=torch.int64))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Take the logits of one batch into the averages and return the loss, ()."""
        real, fake = real.float(), fake.float()
        with torch.no_grad():
            self.n_calls += 1
            share = (1 / self.n_calls).clamp(min=1 - self.decay)
            means = torch.stack([real.mean(), fake.mean()])
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(means)
                means /= dist.get_world_size()
            self.real += share * (means[0] - self.real)
            self.fake += share * (means[1] - self.fake)
        loss = (real - self.fake).square().mean() + (fake - self.real).square().mean()
        return loss * (self.n_calls > self.warmup)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, gradients pass through `module` but not into its weights."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
