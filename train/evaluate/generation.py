"""Running one task of a model for many clips at once. The same ids as one by one, but for the rounding of a batch."""
# Shapes: B clips, T frames, H W height and width, t h w latent sizes, N samples, Q audio levels, F audio columns

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tasks.options import Options
from tasks.sequence import TokenSample
from tasks.table import get_task
from tasks.task import CONTINUED

if TYPE_CHECKING:
    from tasks.pipeline import AVPoet


@dataclass
class Media:
    """Clips as a model gives them back."""

    video: Tensor | None  # (B, T, H, W, 3) uint8
    audio: Tensor | None  # (B, N) float32


@torch.inference_mode()
def encode(poet: AVPoet, video: Tensor | None, audio: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Ids (B, t, h, w) of video (B, 3, T, H, W) in [-1, 1] and (B, Q, F) of audio (B, N), on the CPU."""
    codec = poet.codec
    ids = None if video is None else codec.video.encode(video.to(codec.device)).cpu()
    return ids, None if audio is None else codec.audio.encode(audio.to(codec.device)).cpu()


@torch.inference_mode()
def decode(poet: AVPoet, video: Tensor | None, audio: Tensor | None) -> Media:
    """What ids (B, t, h, w) and (B, Q, F) show and sound."""
    codec = poet.codec
    frames = None
    if video is not None:
        decoded = codec.video.decode(video.to(codec.device)).float().clamp(-1, 1)
        frames = to_frames(decoded).cpu()
    return Media(frames, None if audio is None else codec.audio.decode(audio.to(codec.device)).float().cpu())


def to_frames(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [-1, 1] -> (B, T, H, W, 3) uint8."""
    return ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def to_unit(frames: Tensor) -> Tensor:
    """(B, T, H, W, 3) uint8 -> (B, 3, T, H, W) float in [0, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 255


def to_network(frames: Tensor) -> Tensor:
    """(B, T, H, W, 3) uint8 -> (B, 3, T, H, W) float in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def draw(
    poet: AVPoet,
    task_name: str,
    *,
    captions: Sequence[str | None],
    video: Tensor | None = None,
    audio: Tensor | None = None,
    condition: Tensor | None = None,
    seeds: Sequence[int],
    sound: bool = True,
    n_context: int = 1,
    tick: Callable[[int], None] = lambda n: None,
) -> tuple[Tensor | None, Tensor | None]:
    """Answer a task for B clips with the model's own sampling settings: ids (B, t, h, w) and (B, Q, F), on the CPU.

    captions: B prompts, used where the task takes text. video, audio: ids (B, t, h, w) and (B, Q, F) of whole clips,
    of which the task reads its inputs; what the answer continues is put in front of it. condition: ids (B, t, h, w) of
    conditioning clips. `tick` is called with the number of ids drawn, at each step.
    """
    task, layout = get_task(task_name), poet.config.layout
    samples = []
    for b, caption in enumerate(captions):
        text = poet.codec.encode_text(caption) if caption is not None and task.input("text") else None
        samples.append(TokenSample(text, *(None if ids is None else ids[b] for ids in (video, audio, condition))))
    answers = poet.generator.answers(task, samples, Options(), seeds=seeds, sound=sound, n_context=n_context, tick=tick)
    made, heard = ([getattr(one, kind) for one in answers] for kind in ("video", "audio"))
    block = task.output("audio")
    if heard[0] is not None and audio is not None and block is not None and block.part in CONTINUED:
        n_columns = layout.columns(block.frames(layout.latent_frames, n_context)[0])
        heard = [torch.cat(pair, dim=1) for pair in zip(audio[..., :n_columns], heard, strict=True)]
    return None if made[0] is None else torch.stack(made), None if heard[0] is None else torch.stack(heard)


def generate(poet: AVPoet, task_name: str, **inputs: Any) -> Media:
    """What `draw` answers to the same inputs, decoded."""
    return decode(poet, *draw(poet, task_name, **inputs))


def n_steps(poet: AVPoet, task_name: str, *, sound: bool = True, n_context: int = 1) -> int:
    """Ids that `generate` draws for one clip."""
    return poet.generator.n_ids(get_task(task_name), sound=sound, n_context=n_context)
