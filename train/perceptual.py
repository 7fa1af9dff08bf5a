"""Perceptual distance of frames: how far apart the features are that a frozen image network sees in them.

Per layer the squared distance of the feature vectors at each position, scaled to unit length, then the mean over
positions and layers (arXiv:1801.03924, eq. 1, with all channel weights one). This is not LPIPS, which learns weights
from human judgements: numbers cannot be compared. Any image network of transformers with hidden states will do.
"""
# Shapes: B batch, T frames, N frames of all clips together, C channels, H W height and width in pixels, h w of a layer

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.errors import InputError
from tasks.model_folder import quietly

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIN_SIZE = 32  # smaller frames are enlarged: networks halve the size up to five times

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class PerceptualLoss(nn.Module):
    """Distance of the features `network` sees in two videos, 0 where equal; see `open_perceptual`.

    The network is frozen and stays in evaluation mode, whatever `train()` says. With `n_frames` only so many frames of
    every clip are looked at, drawn by torch's random generator, the same ones of both videos; None looks at all.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        n_frames: int | None = 4,
    ) -> None:
        super().__init__()
        if n_frames is not None and n_frames < 1:
            raise ValueError(f"n_frames={n_frames}: need at least one frame, or None for all")
        self.network = network.requires_grad_(False).eval()
        self.n_frames = n_frames
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        takes = inspect.signature(network.forward).parameters
        self.options = {"output_hidden_states": True, "return_dict": True}
        if "interpolate_pos_encoding" in takes:  # ViT would refuse other sizes than it was trained on
            self.options["interpolate_pos_encoding"] = True

    def train(self, mode: bool = True) -> PerceptualLoss:
        return super().train(False)  # batch norms must keep their statistics

    def features(self, frames: Tensor) -> list[Tensor]:
        """Frames (N, 3, H, W) in [-1, 1] -> per layer (N, C, h, w), or (N, h * w, C) of a transformer."""
        scale = MIN_SIZE / min(frames.shape[2:])
        if scale > 1:
            size = [max(MIN_SIZE, round(n * scale)) for n in frames.shape[2:]]
            frames = F.interpolate(frames, size, mode="bilinear", align_corners=False)
        pixels = ((frames + 1) / 2 - self.mean) / self.std
        return list(self.network(pixel_values=pixels, **self.options).hidden_states)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Distance of videos (B, 3, T, H, W) in [-1, 1], (), between 0 and 4; gradient flows into `output` alone."""
        if output.shape != target.shape or output.ndim != 5 or output.shape[1] != 3:
            raise ValueError(f"output {tuple(output.shape)}, target {tuple(target.shape)}: both need (B, 3, T, H, W)")
        B, T = output.shape[0], output.shape[2]
        output, target = output.float().transpose(1, 2), target.float().transpose(1, 2)  # (B, T, 3, H, W)
        if self.n_frames is not None and self.n_frames < T:
            frame = torch.rand(B, T, device=output.device).argsort(1)[:, : self.n_frames]
            clip = torch.arange(B, device=output.device)[:, None]
            output, target = output[clip, frame], target[clip, frame]
        with torch.no_grad():
            wanted = self.features(target.flatten(0, 1))
        layers = [_distance(a, b) for a, b in zip(self.features(output.flatten(0, 1)), wanted, strict=True)]
        return torch.stack(layers).mean()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """() mean over positions of |a/|a| - b/|b||^2, vectors along axis 1 of (N, C, h, w), the last of (N, h * w, C)."""
    dim = 1 if a.ndim == 4 else -1
    a, b = a.float(), b.float()
    a, b = (x * (x.square().sum(dim, keepdim=True) + 1e-6).rsqrt() for x in (a, b))  # finite gradient at zero
    return (a - b).square().sum(dim).mean()


def open_perceptual(
    name_or_path: str | Path | None, *, n_frames: int | None = 4
) -> PerceptualLoss | None:
    """The loss with the network in a folder (config.json, model.safetensors) or under a hub name; None gives None.

    A hub name is looked up in the local cache only. Where there is none, one line on stderr says so and the result is
    None. Raises InputError for a folder that is missing, or cannot be loaded
    as an image network from safetensors.
    """
    if name_or_path is None:
        return None
    name = str(name_or_path)
    if Path(name).exists():
        return _load(Path(name), n_frames)
    if isinstance(name_or_path, Path) or not _HUB_NAME.fullmatch(name):
        raise InputError(f"perceptual network {name!r}: no such folder")
    folder, reason = _from_cache(name)
    if folder is None:
        print(f"perceptual network {name!r}: {reason}; without it there is no perceptual loss. To have it, run "
              f"`hf download {name}` or give the folder of a saved image model", file=sys.stderr)  # fmt: skip
        return None
    return _load(folder, n_frames)


def _from_cache(name: str) -> tuple[Path | None, str]:
    """The folder in the hub's cache; or None and why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=wanted))
    except LocalEntryNotFoundError:
        return None, "no such folder, and not in the local cache"
    except (HFValidationError, OSError) as error:
        return None, f"not to be had from the cache ({' '.join(str(error).split())[:200] or type(error).__name__})"
    pickled = any(folder.glob("*.bin"))  # `_load` refuses it: downloading again would not help
    if not pickled and not ((folder / "config.json").is_file() and any(folder.glob("*.safetensors"))):
        return None, "only in part in the local cache"
    return folder, ""


def _load(folder: Path, n_frames: int | None) -> PerceptualLoss:
    """The loss with the network in `folder`, or InputError."""
    if not (folder / "config.json").is_file():
        raise InputError(f"perceptual network {str(folder)!r}: need a folder with config.json and model.safetensors")
    if not any(folder.glob("*.safetensors")):
        found = " (pickled weights are not opened)" if any(folder.glob("*.bin")) else ""
        raise InputError(f"perceptual network {str(folder)!r}: no model.safetensors{found}; save it with "
                         "save_pretrained")  # fmt: skip
    mean, std = _normalisation(folder / "preprocessor_config.json")
    with _silently():
        from transformers import AutoModel

        try:
            network, info = AutoModel.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False,
                dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
            loss = PerceptualLoss(network, mean=mean, std=std, n_frames=n_frames)
            image = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
            with torch.no_grad():
                features, again = loss.features(image), loss.features(image)
        except Exception as error:  # whatever a network that is none of images may raise
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"perceptual network {str(folder)!r}: not an image network with hidden states that "
                             f"transformers can load ({type(error).__name__}: {reason})") from error  # fmt: skip
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)  # not used here
    if missing:
        raise InputError(f"perceptual network {str(folder)!r}: its weights lack {missing[0]!r}"
                         + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""))  # fmt: skip
    if not features or any(x.ndim not in (3, 4) for x in features):
        raise InputError(f"perceptual network {str(folder)!r}: {type(network).__name__} gives no layers of features")
    if not all(torch.allclose(a, b) for a, b in zip(features, again, strict=True)):  # masked autoencoders do
        raise InputError(f"perceptual network {str(folder)!r}: {type(network).__name__} sees something else every time")
    return loss


def _normalisation(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels in [0, 1] the network expects; ImageNet's where the file is silent."""
    if not path.is_file():
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not values.get("do_normalize", True):
            return (0.0,) * 3, (1.0,) * 3
        mean, std = (tuple(map(float, values.get(key) or default)) for key, default in
                     (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)))  # fmt: skip
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"image_mean={mean}, image_std={std}: need three numbers each, image_std above 0")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a readable preprocessor config ({error})") from error
    return mean, std


@contextmanager
def _silently() -> Iterator[None]:
    """`quietly`, and without the warnings about weights, which are checked here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with quietly():
            yield
    finally:
        logging.set_verbosity(level)
