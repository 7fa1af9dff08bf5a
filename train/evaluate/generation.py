"""Running one task of a model for many clips at once. The same ids as one by one, but for the rounding of a batch."""
# Shapes: B clips, T frames, H W height and width, t h w latent sizes, N samples, Q audio levels, F audio columns

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lm import Prefix
from tasks.sequence import TokenSample, plan, prefix, split
from tasks.table import get_task

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
    task, g = get_task(task_name), poet.generator
    places, segments = plan(task, g.vocab, g.layout, sound=sound, n_context=n_context, block_size=g.engine.block_size)
    samples = []
    for b, caption in enumerate(captions):
        text = poet.codec.encode_text(caption) if caption is not None and task.input("text") else None
        media = (None if ids is None else ids[b] for ids in (video, audio, condition))
        samples.append(TokenSample(text, *media))
    scale = g.defaults.guidance_scale if any(s.text is not None for s in samples) else 1.0
    conditional = [prefix(task, s, g.vocab, g.layout, n_context) for s in samples]
    without = [prefix(task, replace(s, text=None), g.vocab, g.layout, n_context) for s in samples] if scale != 1 else []
    steps = g.engine.stream(
        Prefix(*map(list, zip(*conditional))),
        places,
        unconditional=Prefix(*map(list, zip(*without))) if without else None,
        guidance_scale=scale,
        sampling=g.defaults.resolve(None, None, None),
        seeds=list(seeds),
    )
    drawn = []
    for ids in steps:
        drawn.append(ids)
        tick(ids.numel())
    parts = split(torch.cat(drawn, 1).cpu(), segments, g.vocab)
    first = {block.kind: block.frames(g.layout.latent_frames, n_context)[0] for block in task.outputs}
    made, heard = parts.get("video"), parts.get("audio")
    if made is not None and video is not None and first["video"]:
        made = torch.cat([video[:, : first["video"]], made], dim=1)
    if heard is not None and audio is not None and first["audio"]:
        heard = torch.cat([audio[..., : g.layout.columns(first["audio"])], heard], dim=2)
    return made, heard


def generate(
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
) -> Media:
    """What `draw` answers, decoded."""
    ids = draw(
        poet, task_name, captions=captions, video=video, audio=audio, condition=condition, seeds=seeds, sound=sound,
        n_context=n_context, tick=tick,
    )  # fmt: skip
    return decode(poet, *ids)


def n_steps(poet: AVPoet, task_name: str, *, sound: bool = True, n_context: int = 1) -> int:
    """Ids that `generate` draws for one clip."""
    g = poet.generator
    block_size = g.engine.block_size
    return len(plan(get_task(task_name), g.vocab, g.layout, sound=sound, n_context=n_context, block_size=block_size)[0])
