"""Every task has a part of the suite, which is at its best for true clips and falls for those of other inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks import TASKS, InputError, Layout, PoetConfig
from train.data.playground import Scene
from train.data.playground.captions import STYLE_WORDS
from train.data.source import MediaSpec
from train.evaluate import generation, suite
from train.evaluate.conditioned import restyled
from train.evaluate.detectors import Seen, look
from train.evaluate.drift import N_WINDOWS
from train.evaluate.report import Row
from train.evaluate.suite import PARTS, Suite, playground_suite

N = 6
LAYOUT = Layout()
MADE = [name for name in PARTS if name in TASKS]


READ: dict[bytes, Seen] = {}


def look_once(frames: Tensor, fps: float) -> Seen:
    """The same clips are looked at by every part."""
    key = frames.numpy().tobytes()
    if key not in READ:
        READ[key] = look(frames, fps)
    return READ[key]


class Store:
    """Tokenizers that lose nothing: an id is the number of a clip that is kept here."""

    def __init__(self) -> None:
        self.video: list[Tensor] = []  # (T, H, W, 3)
        self.audio: list[Tensor] = []  # (N,)

    def encode(self, poet: Any, video: Tensor | None, audio: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        frames = seen = None
        if video is not None:
            seen = self._numbers(self.video, generation.to_frames(video))[:, None, None, None]
            seen = seen.repeat(1, LAYOUT.latent_frames, LAYOUT.height, LAYOUT.width)
        if audio is not None:
            frames = self._numbers(self.audio, audio)[:, None, None]
            frames = frames.repeat(1, LAYOUT.n_codebooks, LAYOUT.audio_frames)
        return seen, frames

    def decode(self, poet: Any, video: Tensor | None, audio: Tensor | None) -> generation.Media:
        return generation.Media(
            None if video is None else torch.stack([self.video[int(ids.flatten()[0])] for ids in video]),
            None if audio is None else torch.stack([self.audio[int(ids.flatten()[0])] for ids in audio]),
        )

    def _numbers(self, kept: list[Tensor], more: Tensor) -> Tensor:
        kept += list(more)
        return torch.arange(len(kept) - len(more), len(kept))


class Answers:
    """A model that gives the true clip of each input, or another's, `off` places later, and a third one's sound."""

    def __init__(self, off: int) -> None:
        self.off, self.store = off, Store()
        poet: Any = SimpleNamespace(config=PoetConfig(LAYOUT, (64, 64)), codec=SimpleNamespace(sample_rate=16000))
        self.suite = Suite(poet, N, batch=4, progress=False, pictures=1)
        self.given: dict[str, list[dict[str, Any]]] = {}  # of each task, batch by batch

    def scenes(self, name: str) -> Sequence[Scene]:
        if name in ("video_to_audio", "audio_to_video"):
            return self.suite.striking.scenes
        if name == "unconditional":
            return self.suite.all_kinds.scenes
        if name == "stylization":
            return [restyled(scene, 0, i) for i, scene in enumerate(self.suite.clips.scenes)]
        return self.suite.clips.scenes

    def generate(self, poet: Any, name: str, *, seeds: Sequence[int], **given: Any) -> generation.Media:
        self.given.setdefault(name, []).append(given)
        scenes = self.scenes(name)
        shown, heard = ([scenes[(seed % 1_000_003 + k * self.off) % N] for seed in seeds] for k in (1, 2))
        frames = generation.to_frames(self.suite.world.render(shown, self.suite.spec))
        samples = self.suite.world.sound(heard, self.suite.spec)
        return generation.Media(frames[:, :1] if TASKS[name].is_image else frames, samples)

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("encode", "decode"):
            patch.setattr(generation, name, getattr(self.store, name))
        patch.setattr(suite, "look", look_once)
        patch.setattr(generation, "generate", self.generate)
        patch.setattr(generation, "n_steps", lambda *a, **k: 1)

    def conditions(self, name: str) -> Tensor:
        """The conditioning clips (n, T, H, W, 3) that were given."""
        return torch.cat([self.store.decode(None, given["condition"], None).video for given in self.given[name]])


Measured = tuple[Answers, dict[str, list[Row]]]


def measured(off: int) -> Iterator[Measured]:
    with pytest.MonkeyPatch.context() as patch:
        answers = Answers(off)
        answers.patch(patch)
        yield answers, {name: PARTS[name](answers.suite) for name in MADE}


@pytest.fixture(scope="module")
def right() -> Measured:
    return next(measured(0))


@pytest.fixture(scope="module")
def wrong() -> Measured:
    return next(measured(1))


def test_there_is_a_part_for_every_task() -> None:
    assert set(PARTS) == set(TASKS) | {"reconstruction", "sound_reconstruction", "long_video"}


@pytest.mark.parametrize("name", MADE)
def test_true_clips_score_as_the_truth_does(right: Measured, name: str) -> None:
    rows = right[1][name]
    assert rows and all(row.part == name for row in rows)
    assert len({row.measure for row in rows}) == len(rows)
    for row in rows:
        best = 100.0 if row.unit == "dB" else row.truth
        assert row.value == row.tokenizer == best, row
        assert row.n > 0 and (row.unit != "%" or row.value >= 0.7), row


@pytest.mark.parametrize("name", MADE)
def test_clips_of_other_inputs_score_worse(right: Measured, wrong: Measured, name: str) -> None:
    compared = [(a, b) for a, b in zip(right[1][name], wrong[1][name], strict=True) if not math.isnan(a.baseline)]
    assert bool(compared) != (name == "unconditional")  # which has no input
    for good, bad in compared:
        assert good.baseline_is
        sign = 1 if good.better == "higher" else -1
        assert sign * bad.value < sign * good.value and sign * good.baseline < sign * good.value, (good, bad)


@pytest.mark.parametrize("name", MADE)
def test_every_input_of_a_task_is_given(right: Measured, name: str) -> None:
    given = right[0].given[name]
    assert sum(len(some["captions"]) for some in given) == N
    for some in given:
        text = TASKS[name].input("text") is not None
        assert all((caption is not None) == text for caption in some["captions"])
        needed = {"condition" if block.condition else block.kind for block in TASKS[name].inputs} - {"text"}
        assert {key for key in ("video", "audio", "condition") if some[key] is not None} == needed
        assert all(len(some[key]) == len(some["captions"]) for key in needed)


def test_pictures_are_kept_of_every_task_that_makes_them(right: Measured) -> None:
    assert [shown.part for shown in right[0].suite.shown] == [name for name in MADE if TASKS[name].output("video")]


def test_conditions_tell_what_is_known_and_no_more(right: Measured) -> None:
    answers, true = right[0], right[0].suite.clips.video
    blends = answers.conditions("frame_interpolation")
    assert torch.equal(blends[:, 0], true[:, 0]) and torch.equal(blends[:, -1], true[:, -1])
    assert not torch.equal(blends[:, 8], true[:, 8])
    known = answers.conditions("inpainting")
    hidden = (known == 128).all(-1)
    assert torch.equal(known[~hidden], true[~hidden]) and 0.1 < hidden.float().mean() < 0.6
    around = answers.conditions("outpainting")
    same = (around == true).all(-1).float().mean((1, 2, 3))
    assert (same >= (5 / 8) ** 2).all() and same.min() < 0.9
    structure = answers.conditions("stylization").float()
    assert (structure[:, 0, ..., :2] == 128).all()  # nothing has moved yet
    assert structure[..., :2].std() > 1


def test_prompts_of_stylization_ask_for_every_other_style(right: Measured) -> None:
    captions = [caption for some in right[0].given["stylization"] for caption in some["captions"]]
    for words in STYLE_WORDS.values():
        assert sum(any(word in caption for word in words) for caption in captions) == N / len(STYLE_WORDS)


class Long(Answers):
    """A model whose long clips are the true ones for some windows and then show nothing but an even grey."""

    def __init__(self, n_good: int) -> None:
        super().__init__(0)
        self.n_good = n_good
        self.windows: list[dict[str, Any]] = []
        self.suite.poet.codec.decode_video = self.decode_video  # type: ignore[method-assign]

    def draw(self, poet: Any, name: str, *, video: Tensor, audio: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        self.windows.append({"name": name, "video": video, "audio": audio, **given})
        made = video[:, :1].repeat(1, LAYOUT.latent_frames, 1, 1)
        made[:, -1, 0, 0] += 1000 * len(self.windows)  # so that what is carried can be told
        return made, audio[..., :1].repeat(1, 1, LAYOUT.audio_frames)

    def decode_video(self, ids: Tensor) -> Tensor:
        n_frames = 1 + LAYOUT.temporal_stride * (len(ids) - 1)
        scene = self.suite.clips.scenes[int(ids[0, 0, 0])]
        frames = generation.to_frames(self.suite.world.render([scene], MediaSpec(n_frames=n_frames)))[0]
        frames[9 + 8 * self.n_good :] = 128
        return frames


@pytest.mark.parametrize("n_good", [N_WINDOWS, 3])
def test_drift_is_told_window_by_window(n_good: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Long(n_good)
    answers.patch(monkeypatch)
    monkeypatch.setattr(generation, "draw", answers.draw)
    rows = PARTS["long_video"](answers.suite)
    assert len(rows) == 4 * N_WINDOWS and {row.n for row in rows} == {2}
    for w in range(N_WINDOWS):
        colour, present, sharp, change = rows[4 * w : 4 * w + 4]
        assert all(row.measure.startswith(f"window {w + 1}: ") for row in (colour, present, sharp, change))
        if w < n_good:
            assert (colour.value, present.value, sharp.value) == (1, 1, sharp.truth) and 0.5 < sharp.truth < 2
            assert change.value == change.truth > 0.1
        else:
            assert (colour.value, present.value, sharp.value) == (0, 0, 0)
            assert (change.value == 0) == (w > n_good)  # that into the first one that is blank counts
    for before, window in zip([None, *answers.windows], answers.windows):
        assert window["name"] == "audio_video_continuation" and window["n_context"] == 3
        assert window["video"].shape == (2, 3, 8, 8) and window["audio"].shape == (2, 4, 56)
        assert window["captions"] == answers.suite.clips.captions[:2]
        if before is not None:
            assert (window["video"][:, -1, 0, 0] >= 1000).all() and window["seeds"] != before["seeds"]


def test_tasks_that_a_model_does_not_know_are_told_before_any_work() -> None:
    poet: Any = SimpleNamespace(generator=SimpleNamespace(vocab=SimpleNamespace(special_tokens={"<task_video>"})))
    with pytest.raises(InputError, match="not trained for text_to_audio, video_to_audio"):
        playground_suite(poet, 1, only=["text_to_audio", "text_to_image", "long_video", "video_to_audio"])
