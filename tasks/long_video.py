"""Any length in constant memory: condition on the last second, generate the next, repeat (VideoPoet, section 5.5).

The last 1 + 4k frames are encoded anew as the beginning of a clip, the rest of that clip is predicted, and its new
frames are kept. The sound of the whole window is then made from its picture and the columns of the new part are kept;
they are decoded after the columns that came before them, so the causal decoder finds no seam.
"""
# Shapes: T frames, H W pixels, N samples, Q audio levels, F audio columns

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.codec import Codec
from tasks.errors import InputError
from tasks.generation import Generator, gather
from tasks.options import Options, derived_seed
from tasks.sequence import Layout, TokenSample
from tasks.table import get_task
from tokenizers_av.clip import Clip

PICTURE = get_task("frame_prediction")
SOUND = get_task("video_to_audio")


@dataclass(frozen=True)
class Step:
    """One window: how many latent frames are given, and how many new frames it shall add."""

    n_context: int
    n_new: int  # as many as the window holds, or fewer where the end is reached


def steps(layout: Layout, n_tail: int, n_frames: int) -> Iterator[Step]:
    """The windows that add `n_frames` to a clip of which the last `n_tail` >= 1 frames are at hand."""
    if layout.latent_frames < 2:
        raise InputError("this model makes single images, it cannot continue a video")
    while n_frames > 0:
        n_context = context(layout, n_tail)
        n_new = min(n_frames, layout.n_frames - _n_given(layout, n_context))
        yield Step(n_context, n_new)
        n_tail, n_frames = n_tail + n_new, n_frames - n_new


def context(layout: Layout, n_tail: int) -> int:
    """Latent frames to condition on: half of a clip, or what the frames at hand fill."""
    return min((layout.latent_frames + 1) // 2, 1 + (n_tail - 1) // layout.temporal_stride)


def n_kept(layout: Layout) -> int:
    """Frames of the past that continuing can use."""
    return _n_given(layout, (layout.latent_frames + 1) // 2)


def n_windows_ids(generator: Generator, n_tail: int, n_frames: int, sound: bool) -> int:
    """Ids that `continue_clip` draws."""
    of_sound = generator.n_ids(SOUND, sound=True) if sound else 0
    windows = Counter(s.n_context for s in steps(generator.layout, n_tail, n_frames))
    return sum(
        n * (generator.n_ids(PICTURE, sound=False, n_context=n_context) + of_sound) for n_context, n in windows.items()
    )


class Track:
    """Keeps the sound as long as the picture: cuts what is too much, fills what is missing with silence."""

    def __init__(self, codec: Codec, n_frames: int = 0) -> None:
        self.codec, self.n_frames = codec, n_frames
        self.n_samples = codec.n_samples(n_frames)

    def fit(self, samples: Tensor, n_frames: int, *, fill: bool) -> Tensor:
        """samples (N,) that come with `n_frames` further frames; `fill` where nothing follows that could fill a gap."""
        self.n_frames += n_frames
        due = self.codec.n_samples(self.n_frames) - self.n_samples
        samples = samples[: max(0, due)]
        if fill and len(samples) < due:
            samples = torch.cat([samples, samples.new_zeros(due - len(samples))])
        self.n_samples += len(samples)
        return samples


def continue_clip(
    generator: Generator,
    codec: Codec,
    *,
    tail: Tensor,
    hear: Callable[[Tensor], Tensor] | None,
    track: Track,
    n_frames: int,
    prompts: list[str],
    options: Options,
    tick: Callable[[int], None],
) -> Iterator[Clip]:
    """Yield `n_frames` new frames with their sound, a window at a time.

    tail (T, H, W, 3) uint8: the last frames so far. `hear` decodes the next audio ids (Q, F) after those so far; None
    for no sound. The prompts are spread evenly over the new frames.
    """
    layout = generator.layout
    negative = codec.encode_text(options.negative_prompt)
    texts = [codec.encode_text(p) for p in prompts] or [None]
    done = 0
    for i, step in enumerate(steps(layout, len(tail), n_frames), start=1):
        given = tail[-_n_given(layout, step.n_context) :]
        text = texts[done * len(texts) // n_frames]
        sample = TokenSample(text, codec.encode_video(given))
        window = gather(generator.blocks(
            PICTURE, sample, options, seed=derived_seed(options.seed, "picture", i), sound=False,
            n_context=step.n_context, negative=negative, tick=tick,
        ))  # fmt: skip
        assert window.video is not None
        new = codec.decode_video(window.video)[len(given) : len(given) + step.n_new]
        done += len(new)
        tail = torch.cat([tail, new])[-n_kept(layout) :]
        samples = None
        if hear is not None:
            heard = sound_columns(generator, window.video, options, derived_seed(options.seed, "sound", i), tick)
            heard = heard[:, -n_columns(layout, layout.n_frames - len(given)) :]
            samples = track.fit(hear(heard), len(new), fill=done == n_frames)
        yield Clip(frames=new, fps=layout.fps, samples=samples, sample_rate=codec.sample_rate)


def sound_columns(
    generator: Generator, video: Tensor, options: Options, seed: int, tick: Callable[[int], None]
) -> Tensor:
    """Audio ids (Q, F) for the video ids (t, h, w) of a whole window."""
    audio = gather(generator.blocks(SOUND, TokenSample(video=video), options, seed=seed, sound=True, tick=tick)).audio
    assert audio is not None
    return audio


def n_columns(layout: Layout, n_frames: int) -> int:
    """Audio columns that last as long as `n_frames`, the last one included if it is begun."""
    return min(layout.audio_frames, math.ceil(n_frames / layout.fps * layout.audio_rate - 1e-6))


def _n_given(layout: Layout, n_context: int) -> int:
    return 1 + layout.temporal_stride * (n_context - 1)
