"""A loaded debug model, and clips for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks import AVPoet
from tokenizers_av.clip import Clip


@pytest.fixture(scope="session")
def poet(debug_model: Path) -> AVPoet:
    return AVPoet.from_pretrained(debug_model, dtype="float32")


@pytest.fixture(scope="session")
def clip() -> Clip:
    """2.2 s of 24x32 pixels at 10 frames a second: a bright column that moves, and a tone."""
    frames = torch.zeros(22, 24, 32, 3, dtype=torch.uint8)
    for i in range(22):
        frames[i, :, i : i + 6] = 200
    samples = 0.3 * torch.sin(torch.arange(35200) * 0.05)
    return Clip(frames, 10.0, samples, 16000)


@pytest.fixture(scope="session")
def clip_file(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    clip.save(path)
    return path


@pytest.fixture(scope="session")
def silent_file(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "silent.mp4"
    Clip(clip.frames, 10.0).save(path)
    return path


@pytest.fixture(scope="session")
def photo(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert clip.frames is not None
    path = tmp_path_factory.mktemp("media") / "photo.png"
    Clip(clip.frames[:1], 8.0).save(path)
    return path


@pytest.fixture(scope="session")
def tone(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "tone.wav"
    Clip(None, 8.0, clip.samples, 16000).save(path)
    return path


@pytest.fixture
def killed_at(monkeypatch):
    """`killed_at(poet, n)`: drawing the n-th window is interrupted; gives the list that grows by each that is drawn."""

    def prepare(poet, n: int) -> list[int]:
        blocks, drawn = type(poet.generator).blocks, []

        def mortal(self, *args, **options):
            drawn.append(1)
            if len(drawn) == n:
                raise KeyboardInterrupt
            return blocks(self, *args, **options)

        monkeypatch.setattr(type(poet.generator), "blocks", mortal)
        return drawn

    return prepare
