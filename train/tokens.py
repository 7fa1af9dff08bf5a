"""Media turned into ids once, in shards on disk, so that the transformer's training reads ids only.

A shard is one safetensors file, written whole, with its captions in the file's metadata; making them goes on where it
stopped. Clips hold video and sound; images (one-frame clips without sound) are many more for the same time. Beside the
shards `made_from.json` says what they were made from, so that ids of other tokenizers are never taken for these.
"""
# Shapes: n items, t h w latent frames, height and width, Q audio levels, F audio columns

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenizers_av.audio import AudioTokenizer
from tokenizers_av.video import VideoTokenizer
from train.checkpoint import CheckpointError, write_json
from train.data import MediaSpec, Source

SHARD = 512  # items per file


@dataclass(frozen=True)
class TokenSet:
    video: Tensor  # (n, t, h, w) int32
    audio: Tensor | None  # (n, Q, F) int16 or int32; None for images
    captions: list[str]  # n, "" where there is none

    def __len__(self) -> int:
        return len(self.captions)


def tokenize(source: Source, video: VideoTokenizer, audio: AudioTokenizer, spec: MediaSpec, folder: Path, *,
             n_clips: int, n_images: int, batch_size: int = 32) -> None:  # fmt: skip
    """Write the ids of the first `n_clips` clips and of `n_images` further first frames to shards in `folder`.

    Shards that are there are kept. Raises CheckpointError where they were made from something else: other tokenizers,
    another size or number of clips, another source or split of it. Its seed may differ: any clips will do.
    """
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    _check_origin(folder, {
        "spec": asdict(spec), "n_clips": n_clips, "source": type(source).__name__,
        "split": getattr(source, "split", None), "root": str(getattr(source, "root", "")),
        "video_tokenizer": fingerprint(video), "audio_tokenizer": fingerprint(audio),
    })  # fmt: skip
    image = replace(spec, n_frames=1)
    jobs = [("clips", first, min(first + SHARD, n_clips)) for first in range(0, n_clips, SHARD)]
    jobs += [("images", first, min(first + SHARD, n_images)) for first in range(0, n_images, SHARD)]
    for kind, first, last in tqdm(jobs, desc="tokenize", unit="shard", file=sys.stderr):
        path = folder / f"{kind}-{first // SHARD:05d}.safetensors"
        if path.exists():
            continue
        offset = first + (n_clips if kind == "images" else 0)
        items = range(offset, offset + last - first)
        batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
        parts = [_ids(source, batch, spec if kind == "clips" else image, video, audio) for batch in batches]
        tensors = {"video": torch.cat([p[0] for p in parts])}
        if kind == "clips":
            tensors["audio"] = torch.cat([p[1] for p in parts if p[1] is not None])
        fresh = path.with_suffix(".new")
        captions = [c for p in parts for c in p[2]]
        save_file(tensors, fresh, metadata={"captions": json.dumps(captions)})
        fresh.replace(path)


@torch.inference_mode()
def _ids(source: Source, indices: range, spec: MediaSpec, video: VideoTokenizer,
         audio: AudioTokenizer) -> tuple[Tensor, Tensor | None, list[str]]:  # fmt: skip
    sound = spec.n_frames > 1
    media = source.batch(indices, spec, audio=sound)
    device = next(video.parameters()).device
    assert media.video is not None
    small = torch.int16 if audio.codebook_size <= 2**15 else torch.int32
    with torch.autocast(device.type, torch.bfloat16):  # about one id in a hundred differs from float32; 3 times faster
        frames = video.encode(media.video.to(device)).to("cpu", torch.int32)
        heard = audio.encode(media.audio.to(device)).to("cpu", small) if media.audio is not None else None
    return frames, heard, media.captions


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights: equal for a model and its copy on another device, different after any training step."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_origin(folder: Path, origin: dict[str, Any]) -> None:
    path = folder / "made_from.json"
    if not path.exists():
        write_json(path, origin)
        return
    before = json.loads(path.read_text())
    changed = sorted(name for name in origin if before.get(name) != origin[name])
    if changed:
        raise CheckpointError(f"{folder}: its ids were made from another {', '.join(changed)}; "
                              "choose another folder or delete this one")  # fmt: skip


def load_tokens(folder: Path, kind: str) -> TokenSet:
    """All shards of `kind` ("clips" or "images") in `folder`. Raises CheckpointError where there are none."""
    paths: Iterable[Path] = sorted(folder.glob(f"{kind}-*.safetensors"))
    video, audio, captions = [], [], []
    for path in paths:
        with safe_open(path, framework="pt") as file:
            video.append(file.get_tensor("video"))
            if "audio" in file.keys():  # noqa: SIM118
                audio.append(file.get_tensor("audio"))
            captions += json.loads(file.metadata()["captions"])
    if not video:
        raise CheckpointError(f"{folder}: holds no {kind}-*.safetensors; make them first")
    return TokenSet(torch.cat(video), torch.cat(audio) if audio else None, captions)
