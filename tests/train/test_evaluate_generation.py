"""What the suite makes of many clips at once is what the model makes of each for its users."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lm import Prefix
from tasks import AVPoet, long_video
from tasks.long_video import Past, continue_clip, n_carried
from tasks.options import Options, Ticker
from tasks.story import Story
from tokenizers_av.clip import Clip
from train.evaluate import drift, generation
from train.evaluate.conditioned import conditions
from train.evaluate.suite import Suite

N = 2


@pytest.fixture(scope="module")
def suite(debug_model: Path) -> Suite:
    return Suite(AVPoet.from_pretrained(debug_model, device="cpu", dtype="float32"), N, progress=False)


def arguments(suite: Suite, name: str, i: int) -> tuple[Tensor, dict[str, Any]]:
    """What a task with a condition is given of a clip."""
    clip = suite.clips.video[i]
    hole = torch.zeros(clip.shape[:3], dtype=torch.bool)
    hole[:, 4:9, 6:14] = True
    return {
        "inpainting": (clip, {"mask": hole}),
        "outpainting": (clip[:, 2:12, :12], {"left": 0, "top": 2, "right": 4, "bottom": 4}),
        "frame_interpolation": (clip, {"last": Clip(clip[-1:], 8.0)}),
        "stylization": (clip, {}),
    }[name]


@pytest.fixture
def prefixes(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The ids that every generation starts from, for each of its samples."""
    found: list[list[Tensor]] = []
    stream = suite.poet.generator.engine.stream

    def recorded(prefix: Prefix, *rest: Any, **options: Any) -> Iterator[Tensor]:
        found.append(prefix.ids)
        return stream(prefix, *rest, **options)

    monkeypatch.setattr(suite.poet.generator.engine, "stream", recorded)
    return found


@pytest.mark.parametrize("name", ["inpainting", "outpainting", "frame_interpolation", "stylization"])
def test_a_conditioned_clip_is_the_one_that_users_get(suite: Suite, name: str, prefixes: list[list[Tensor]]) -> None:
    given = [arguments(suite, name, i) for i in range(N)]
    condition = suite.encode_video(conditions(suite, name, *zip(*given)), name)
    captions = suite.clips.captions
    made = suite.make(name, 3, captions, condition=condition)
    assert made.video is not None and made.audio is None
    block = "image" if name == "frame_interpolation" else "video"
    for i, seed in enumerate(suite.seeds(slice(0, N), 3)):
        source, more = given[i]
        alone = suite.poet.generate(name, prompt=captions[i], **{block: Clip(source, 8.0)}, **more, seed=seed)
        assert alone.frames is not None and torch.equal(made.video[i], alone.frames)
        assert torch.equal(prefixes[0][i], prefixes[-1][0])
    assert not torch.equal(condition[0], condition[1])


def test_a_clip_for_a_sound_is_the_one_that_users_get(suite: Suite, prefixes: list[list[Tensor]]) -> None:
    clips = suite.striking
    made = suite.make("audio_to_video", 4, clips.captions, audio=clips.audio_ids).video
    assert made is not None
    for i, seed in enumerate(suite.seeds(slice(0, N), 4)):
        sound = Clip(None, 8.0, clips.audio[i], suite.spec.sample_rate)
        alone = suite.poet.generate("audio_to_video", prompt=clips.captions[i], audio=sound, seed=seed)
        assert alone.frames is not None and torch.equal(made[i], alone.frames)
        assert torch.equal(prefixes[0][i], prefixes[-1][0])
    assert not torch.equal(clips.audio_ids[0], clips.audio_ids[1])


def test_what_a_task_goes_on_from_stands_before_its_answer(suite: Suite) -> None:
    clips, n = suite.clips, 2
    columns = suite.poet.config.layout.columns(n)
    video, audio = generation.draw(
        suite.poet, "audio_video_continuation", captions=clips.captions, video=clips.video_ids, audio=clips.audio_ids,
        seeds=[0, 1], n_context=n,
    )  # fmt: skip
    assert video is not None and audio is not None
    assert video.shape == clips.video_ids.shape and audio.shape == clips.audio_ids.shape
    assert torch.equal(video[:, :n], clips.video_ids[:, :n]) and not torch.equal(video, clips.video_ids)
    assert torch.equal(audio[..., :columns], clips.audio_ids[..., :columns])
    assert not torch.equal(audio, clips.audio_ids)


def test_a_long_clip_is_the_one_that_is_made_window_by_window(
    suite: Suite, prefixes: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, layout = suite.clips, suite.poet.config.layout
    made = drift._continued(suite, slice(0, N), lambda n: None)
    n = n_carried(layout)
    assert made.shape[1] == 1 + layout.temporal_stride * (n - 1 + drift.N_WINDOWS * (layout.latent_frames - n))
    for i in range(N):
        seeds = iter([suite.seeds(slice(i, i + 1), drift.SALT + w)[0] for w in range(drift.N_WINDOWS)])
        monkeypatch.setattr(long_video, "derived_seed", lambda *a, seeds=seeds: next(seeds))
        past = Past.begin(suite.poet.codec, sound=True)
        assert past.hear is not None
        before = past.decode(clips.video_ids[i, :n])
        past.add_video(clips.video_ids[i, :n])
        past.add_audio(clips.audio_ids[i, :, : layout.columns(n)])
        past.hear(past.audio)
        parts = continue_clip(
            suite.poet.generator, past, n_frames=made.shape[1] - len(before), story=Story(clips.captions[i]),
            options=Options(), tick=Ticker(None, 0),
        )  # fmt: skip
        after = [part.frames for part in parts if part.frames is not None]
        assert torch.equal(made[i], torch.cat([before, *after]))
        for w, ids in enumerate(prefixes[-drift.N_WINDOWS :]):
            assert torch.equal(prefixes[w][i], ids[0])
