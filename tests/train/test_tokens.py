"""Ids on disk: made in shards, gone on with where it stopped, and never mixed with those of another tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokenizers_av.audio import AudioTokenizer, audio_tokenizer_config
from tokenizers_av.video import VideoTokenizer, video_tokenizer_config
from train import tokens
from train.checkpoint import CheckpointError
from train.data import MediaBatch, MediaSpec
from train.tokens import fingerprint, load_tokens, tokenize

SPEC = MediaSpec(n_frames=5, size=16)


class Noise:
    """A source whose clip i is noise from seed i; counts what is read."""

    len = None
    split = "train"

    def __init__(self) -> None:
        self.read: list[int] = []

    def batch(self, indices, spec, *, video=True, audio=True) -> MediaBatch:
        self.read += indices
        generators = [torch.Generator().manual_seed(i) for i in indices]
        frames = [torch.rand(3, 1, spec.size, spec.size, generator=g) * 2 - 1 for g in generators]
        sound = [torch.rand(spec.n_samples, generator=g) - 0.5 for g in generators]
        return MediaBatch(
            torch.stack(frames).expand(-1, -1, spec.n_frames, -1, -1),
            torch.stack(sound) if audio else None,
            [f"clip {i}" for i in indices],
        )


@pytest.fixture(scope="module")
def tokenizers() -> tuple[VideoTokenizer, AudioTokenizer]:
    torch.manual_seed(0)
    video = VideoTokenizer(video_tokenizer_config("debug")).eval()
    return video, AudioTokenizer(audio_tokenizer_config("debug")).eval()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "SHARD", 4)


def make(folder: Path, tokenizers, **change) -> Noise:
    source = Noise()
    values = {"n_clips": 6, "n_images": 5, "batch_size": 2, "spec": SPEC, **change}
    tokenize(source, *tokenizers, values.pop("spec"), folder, **values)
    return source


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_hold_the_ids_of_the_clips_in_order(tmp_path: Path, tokenizers) -> None:
    source = make(tmp_path, tokenizers)
    assert source.read == list(range(11))  # images are further clips, not those of the videos
    clips, images = load_tokens(tmp_path, "clips"), load_tokens(tmp_path, "images")
    assert clips.captions == [f"clip {i}" for i in range(6)] and images.captions == [f"clip {i}" for i in range(6, 11)]
    assert clips.video.shape == (6, 2, 2, 2) and images.video.shape == (5, 1, 2, 2) and images.audio is None
    with torch.autocast("cpu", torch.bfloat16):
        ids = tokenizers[0].encode(Noise().batch([4, 5], SPEC).video)
        heard = tokenizers[1].encode(Noise().batch([4, 5], SPEC).audio)
    assert torch.equal(clips.video[4:].long(), ids)
    assert clips.audio is not None
    assert torch.equal(clips.audio[4:].long(), heard)


def test_a_lost_shard_is_made_again_and_alone(tmp_path: Path, tokenizers) -> None:
    make(tmp_path, tokenizers)
    before = contents(tmp_path)
    assert len(before) == 5  # two shards of each kind, and what they were made from
    (tmp_path / "images-00000.safetensors").unlink()
    again = make(tmp_path, tokenizers)
    assert again.read == [6, 7, 8, 9] and contents(tmp_path) == before
    assert make(tmp_path, tokenizers).read == []


def test_half_written_shards_are_not_read(tmp_path: Path, tokenizers) -> None:
    make(tmp_path, tokenizers)
    before = contents(tmp_path)
    shard = tmp_path / "clips-00001.safetensors"
    shard.with_suffix(".new").write_bytes(shard.read_bytes()[:100])
    shard.unlink()
    assert len(load_tokens(tmp_path, "clips")) == 4
    make(tmp_path, tokenizers)
    assert contents(tmp_path) == before


def test_a_stop_in_the_middle_leaves_whole_shards_only(tmp_path: Path, tokenizers) -> None:
    class Stopped(Noise):
        def batch(self, indices, spec, **which):
            if 4 in indices:
                raise KeyboardInterrupt
            return super().batch(indices, spec, **which)

    with pytest.raises(KeyboardInterrupt):
        tokenize(Stopped(), *tokenizers, SPEC, tmp_path, n_clips=6, n_images=0, batch_size=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clips-00000.safetensors", "made_from.json"]


def test_ids_of_another_origin_are_refused(tmp_path: Path, tokenizers) -> None:
    make(tmp_path, tokenizers)
    video, audio = tokenizers
    torch.manual_seed(1)
    other = VideoTokenizer(video_tokenizer_config("debug")).eval()
    with pytest.raises(CheckpointError, match="another video_tokenizer; choose"):
        make(tmp_path, (other, audio))
    with pytest.raises(CheckpointError, match="another n_clips, spec"):
        make(tmp_path, tokenizers, n_clips=7, spec=replace(SPEC, fps=4.0))
    other.load_state_dict(video.state_dict())
    assert fingerprint(other) == fingerprint(video)
    assert make(tmp_path, (other, audio)).read == []


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no clips-\*"):
        load_tokens(tmp_path, "clips")
