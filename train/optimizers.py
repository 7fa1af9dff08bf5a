"""Muon for the matrices, AdamW for everything else (Muon: momentum whose update is orthogonalised by Newton-Schulz)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def matrix_optimizers(
    parameters: Iterable[tuple[str, Tensor]], lr: float, *, plain: tuple[str, ...] = (), weight_decay: float = 0.02
) -> list[torch.optim.Optimizer]:
    """Muon and AdamW for `parameters` (name, tensor); tensors whose name starts with one of `plain` go to AdamW.

    Muon's step is scaled to the size of AdamW's, so one learning rate serves both.
    """
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in parameters:
        (matrices if parameter.ndim == 2 and not name.startswith(plain) else rest).append(parameter)
    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    if rest:
        found.append(torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0))
    return found
