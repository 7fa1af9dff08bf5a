"""Dense truth of a scene: which pixel shows which object, how far away it is, and where it moves next.

These follow the geometry, whatever the style paints over it (glow, outlines and blocks are left out, strings too).
"""
# Shapes: n objects, T frames, H W height and width

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from train.data.playground.scene import Scene
from train.data.playground.shapes import distance
from train.data.source import MediaSpec

FAR = 1.0  # depth of the ground; objects lie before it, later ones nearer


def masks(scene: Scene, spec: MediaSpec, *, visible: bool = True) -> Tensor:
    """(n, T, H, W) bool: pixels whose centre lies on each object; with `visible`, less those that a later one hides."""
    truth = scene.truth(spec)
    place = torch.arange(spec.size, dtype=torch.float64) + 0.5
    out = torch.zeros(len(scene.objects), spec.n_frames, spec.size, spec.size, dtype=torch.bool)
    for i, thing in enumerate(scene.objects):
        x, y, radius, angle = (
            torch.from_numpy(np.ascontiguousarray(a))[:, None, None]
            for a in (*truth.positions[:, i].T, truth.radii[:, i], truth.angles[:, i])
        )
        dx, dy = (place[None, None, :] - x) / radius, (place[None, :, None] - y) / radius
        u, v = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
        out[i] = distance(thing.shape, u, v) < 0
        if visible:
            out[:i] &= ~out[i]
    return out


def depth(scene: Scene, spec: MediaSpec) -> Tensor:
    """(T, H, W) float32 in (0, 1]: 1 for the ground, less for objects, least for the one drawn last."""
    shown = masks(scene, spec)
    out = torch.full(shown.shape[1:], FAR)
    for i, mask in enumerate(shown):
        out[mask] = FAR - (i + 1) / (len(shown) + 1)
    return out


def flow(scene: Scene, spec: MediaSpec) -> Tensor:
    """(T-1, H, W, 2) float32: how many pixels to the right and down what a pixel shows has moved by the next frame."""
    return _moved(scene, spec, frames=slice(0, -1))


def flow_since(scene: Scene, spec: MediaSpec) -> Tensor:
    """(T, H, W, 2) float32: how far what a pixel shows has moved since the frame before; zero in the first."""
    moved = _moved(scene, spec, frames=slice(1, None))
    return torch.cat([torch.zeros_like(moved[:1]), moved])


def _moved(scene: Scene, spec: MediaSpec, frames: slice) -> Tensor:
    """(T-1, H, W, 2): from the frame before to the one after, as seen from the pixels of either of them."""
    before = frames.start == 0
    truth, view = scene.truth(spec), scene.view(scene.times(spec))
    place = torch.arange(spec.size, dtype=torch.float64) + 0.5
    here = torch.stack(torch.meshgrid(place, place, indexing="xy"), -1)  # (H, W, 2), x then y

    grow = torch.from_numpy(view.zoom[1:] / view.zoom[:-1])[:, None, None, None]
    pan = torch.from_numpy((view.centre[:-1] - view.centre[1:]) * view.zoom[1:, None] * spec.size)[:, None, None]
    middle = spec.size / 2  # the ground moves with the camera alone
    out = (here - middle) * grow + middle + pan - here if before else here - (here - middle - pan) / grow - middle

    shown = masks(scene, spec)
    for i in range(len(scene.objects)):
        centre = torch.from_numpy(truth.positions[:, i].copy())[:, None, None]  # (T, 1, 1, 2)
        turn = torch.from_numpy(np.diff(truth.angles[:, i]))[:, None, None] * (1 if before else -1)
        x, y = ((here - centre[frames]) * (grow if before else 1 / grow)).unbind(-1)
        turned = torch.stack([x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()], -1)
        moved = centre[1:] + turned - here if before else here - centre[:-1] - turned
        out = torch.where(shown[i, frames, ..., None], moved, out)
    return out.float()
