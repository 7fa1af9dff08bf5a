"""A folder of media files as a data source: pure draws, captions from where people keep them, bad files passed over."""

import json
import logging

import pytest
import torch

from tokenizers_av.clip import Clip, MediaError
from train.data import MediaSpec, Source, open_source
from train.data.folder import FolderSource, split_files

SPEC = MediaSpec(n_frames=5, size=16)


def save_clip(path, n_frames=16, level=None, sound=True):
    generator = torch.Generator().manual_seed(len(str(path.name)))
    frames = torch.randint(0, 255, (n_frames, 4, 4, 3), generator=generator, dtype=torch.uint8)
    frames = frames.repeat_interleave(4, 1).repeat_interleave(4, 2)
    if level is not None:
        frames = torch.full_like(frames, level)
    samples = 0.5 * torch.sin(torch.arange(n_frames * 2000) / 10)
    path.parent.mkdir(parents=True, exist_ok=True)
    Clip(frames, 8.0, samples if sound else None, 16000).save(path)


@pytest.fixture
def folder(tmp_path):
    save_clip(tmp_path / "long.mp4")
    save_clip(tmp_path / "deep" / "er" / "short.webm", n_frames=2)
    save_clip(tmp_path / "silent.mp4", sound=False)
    save_clip(tmp_path / "still.png", n_frames=1, sound=False)
    return tmp_path


def test_batches_have_the_asked_shape_and_range(folder):
    source = open_source(folder)
    assert isinstance(source, FolderSource) and isinstance(source, Source) and source.len is None
    batch = source.batch(range(12), SPEC)
    assert batch.video.shape == (12, 3, 5, 16, 16) and batch.video.dtype == torch.float32
    assert batch.audio.shape == (12, SPEC.n_samples) and batch.captions == [""] * 12
    assert -1 <= batch.video.min() < -0.5 and 0.5 < batch.video.max() <= 1
    loud = batch.audio.abs().amax(1)
    assert (loud == 0).any() and (loud > 0.3).any(), "silent files give silence, others their sound"
    only = source.batch([0], SPEC, audio=False)
    assert only.audio is None and torch.equal(only.video, batch.video[:1])


def test_a_sample_is_a_function_of_seed_split_and_index(folder):
    first, again = FolderSource(folder).batch([3, 4, 5, 6], SPEC), FolderSource(folder).batch([6, 3], SPEC)
    assert torch.equal(first.video[[3, 0]], again.video) and torch.equal(first.audio[[3, 0]], again.audio)
    for other in (FolderSource(folder, seed=1), FolderSource(folder, split="test")):
        assert not torch.equal(other.batch([3, 4, 5, 6], SPEC).video, first.video)


def test_only_sound_comes_from_files_that_have_some(folder):
    save_clip(folder / "tone.wav")
    batch = FolderSource(folder).batch(range(8), SPEC, video=False)
    assert batch.video is None and (batch.audio.abs().amax(1) > 0.3).all()
    assert FolderSource(folder).batch(range(8), SPEC).video.shape[0] == 8  # the wav has no picture: others are drawn


def test_captions_from_metadata_and_from_beside(folder):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "long.mp4", "text": " a long one "}) + "\n\n")
    (folder / "deep" / "metadata.csv").write_text('file_name,caption\ner/short.webm,"short, and deep"\n')
    (folder / "silent.txt").write_text("says\n nothing\n")
    source = FolderSource(folder)
    names = ["long.mp4", "deep/er/short.webm", "silent.mp4", "still.png"]
    assert [source.caption(name) for name in names] == ["a long one", "short, and deep", "says nothing", ""]
    assert set(source.batch(range(16), SPEC).captions) <= {source.caption(name) for name in names}
    assert sorted(source.all_captions()) == ["a long one", "says nothing", "short, and deep"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"file_name": "a.mp4"\n', "line 1: not valid JSON"),
        ("metadata.jsonl", '{"text": "a"}\n', "line 1: needs a file_name"),
        ("metadata.csv", "name,text\na,b\n", "line 2: needs a file_name"),
    ],
)
def test_wrong_metadata_is_named_with_its_line(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(MediaError, match=message):
        FolderSource(folder)


def test_a_bad_file_is_reported_once_and_replaced(tmp_path, caplog):
    save_clip(tmp_path / "good.mp4", level=200)
    (tmp_path / "bad.mp4").write_text("not a film")
    source = FolderSource(tmp_path)
    with caplog.at_level(logging.WARNING):
        for start in (0, 8):
            batch = source.batch(range(start, start + 8), SPEC)
            assert (batch.video.mean((1, 2, 3, 4)) - (200 / 127.5 - 1)).abs().max() < 0.05
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "bad.mp4" in lines[0] and "\n" not in lines[0], lines


def test_unusable_folders_are_errors(tmp_path):
    with pytest.raises(MediaError, match="no such folder"):
        FolderSource(tmp_path / "none")
    with pytest.raises(MediaError, match="no media files"):
        FolderSource(tmp_path)
    (tmp_path / "bad.mp4").write_text("not a film")
    with pytest.raises(MediaError, match="none of its 1 train files"):
        FolderSource(tmp_path).batch([0], SPEC)


def test_split_is_stable_and_disjoint():
    names = [f"clip{i}.mp4" for i in range(400)]
    train, test = split_files(names, "train"), split_files(names, "test")
    assert sorted(train + test) == sorted(names) and 8 <= len(test) <= 36
    assert set(test) <= set(split_files([*names, "another.mp4"], "test"))
    for n in (20, 21, 25):
        assert split_files(names[:n], "test") and split_files(names[:n], "train")
    assert split_files(names[:19], "train") == split_files(names[:19], "test") == names[:19]
