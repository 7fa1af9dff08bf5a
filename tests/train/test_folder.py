"""Media files as a data source: pure draws, captions from where people keep them, bad files passed over."""

import json
import logging

import pytest
import torch

from tokenizers_av.clip import Clip, MediaError, read_clip
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
    assert isinstance(source, FolderSource) and isinstance(source, Source)
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
    assert len(lines) == 1 and lines[0].startswith(f"skipped 1 of 2 files, now {tmp_path / 'bad.mp4'}: not a"), lines
    assert list(source.skipped) == ["bad.mp4"] and source.skipped["bad.mp4"].startswith("not a readable media file")


def test_bad_files_are_counted_and_their_majority_is_said_once(tmp_path, caplog):
    save_clip(tmp_path / "good.png", n_frames=1, level=200)
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    for name in ("a.mp4", "b.jpg", "c.mp4"):
        (tmp_path / name).write_bytes(b"" if name == "c.mp4" else b"neither film nor picture")
    for augment in (False, True):
        caplog.clear()
        source = FolderSource(tmp_path, augment=augment)
        with caplog.at_level(logging.WARNING):
            for k in range(4):
                assert (source.batch(range(8 * k, 8 * k + 8), SPEC).video > 0.5).all()
        lines = [record.getMessage() for record in caplog.records]
        assert set(source.skipped) == {"a.mp4", "b.jpg", "c.mp4", "cut.png"} and all(source.skipped.values())
        assert [line[:20] for line in lines if "skipped" in line] == [
            f"skipped {n} of 5 files"[:20] for n in (1, 2, 3, 4)
        ]
        assert [("over half of its 5 train files" in line) for line in lines] == [False, False, False, True, False]


def test_a_single_file_is_a_folder_of_one(folder):
    (folder / "long.txt").write_text("a long one")
    (folder / "deep" / "metadata.jsonl").write_text("what lies deeper does not matter")
    source = open_source(folder / "long.mp4")
    assert source.files == open_source(str(folder / "long.mp4"), split="test").files == ["long.mp4"]
    batch = source.batch([0, 1], SPEC)
    assert batch.video.shape == (2, 3, 5, 16, 16) and batch.captions == ["a long one"] * 2
    (folder / "notes.txt").write_text("no film")
    with pytest.raises(MediaError, match="not a media file by its name"):
        open_source(folder / "notes.txt")


def test_files_that_are_named_are_one_source_with_some_held_out(tmp_path):
    files = []
    for k in range(24):
        files.append(tmp_path / f"{k % 2}/[deep]/{k}.png")
        save_clip(files[-1], n_frames=1, sound=False)
    (tmp_path / "0/[deep]/metadata.jsonl").write_text('{"file_name": "2.png", "text": "two"}\n')
    (tmp_path / "metadata.jsonl").write_text("not of these folders")
    train, test = (open_source([str(file) for file in files], split) for split in ("train", "test"))
    assert isinstance(train, FolderSource) and isinstance(test, FolderSource) and test.files
    assert sorted(train.files + test.files) == sorted(str(file.relative_to(tmp_path)) for file in files)
    assert not set(train.files) & set(test.files) and train.caption("0/[deep]/2.png") == "two"
    mixed = open_source(["playground", *files], "train")
    assert mixed.weights == [1 / 25, 24 / 25]
    assert open_source(files[0]).files == [files[0].name]
    with pytest.raises(MediaError, match=r"a\.xyz: not a media file"):
        (tmp_path / "a.xyz").write_text("")
        open_source([files[0], tmp_path / "a.xyz"])


@pytest.mark.parametrize("name", ["still.png", "long.mp4"])
def test_augmented_samples_are_pure_and_differ(folder, name):
    source = open_source(folder / name, augment=True)
    batch = source.batch([3, 4, 5, 6], SPEC)
    assert batch.video.shape == (4, 3, 5, 16, 16) and batch.video.min() >= -1 and batch.video.max() <= 1
    again = open_source(folder / name, augment=True).batch([6, 3], SPEC, audio=False)
    assert torch.equal(batch.video[[3, 0]], again.video)
    assert torch.equal(batch.video[[3, 0]], source.batch([6, 3], SPEC).video), "the cache changes a sample"
    plain = open_source(folder / name).batch([3, 4, 5, 6], SPEC)
    assert torch.equal(batch.audio, plain.audio), "the sound of a window is that of the same index without crops"
    for i in range(4):
        assert not torch.equal(batch.video[i], plain.video[i]) and not torch.equal(batch.video[i], batch.video[i - 1])


def test_without_augment_an_image_stands_still_and_is_read_once(folder, monkeypatch):
    from train.data import folder as module

    reads = []
    monkeypatch.setattr(module, "read_clip", lambda path, **options: reads.append(path) or read_clip(path, **options))
    source = open_source(folder / "still.png")
    first, second = source.batch([0], SPEC).video, source.batch([1], SPEC).video
    expected = read_clip(folder / "still.png", size=16).frames.permute(3, 0, 1, 2) / 127.5 - 1  # (3, 1, H, W)
    assert torch.allclose(first[0], expected.expand(3, 5, 16, 16), atol=1e-6) and torch.equal(first, second)
    assert len(reads) == 1


def test_a_video_is_cropped_inside_and_alike_in_all_its_frames(tmp_path):
    ramp = torch.arange(256).expand(32, 256)  # bright to the right: shows where a crop lies
    Clip(torch.stack([ramp] * 3, -1).expand(8, 32, 256, 3).to(torch.uint8).contiguous(), 8.0).save(
        tmp_path / "ramp.mp4"
    )
    video = open_source(tmp_path, augment=True).batch(range(24), SPEC, audio=False).video
    assert (video - video[:, :, :1]).abs().max() < 0.06, "a crop of a video stays where it is"
    across = (video[..., -1] - video[..., 0]).mean((1, 2, 3)) * 127.5 * 16 / 15  # the side of the crop, signed
    assert ((across.abs() > 14) & (across.abs() < 34)).all() and across.abs().max() - across.abs().min() > 6
    assert 4 <= (across < 0).sum() <= 20, "about half are mirrored"
    assert video.mean((1, 2, 3, 4)).std() > 0.2, "crops lie at different places"


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


def test_the_only_file_with_a_picture_is_always_found(tmp_path):
    save_clip(tmp_path / "still.png", n_frames=1, sound=False)
    for i in range(18):
        (tmp_path / f"{i:02d}.wav").touch()  # without a picture, known by their names
    source = FolderSource(tmp_path)
    for first in range(0, 1500, 500):
        assert len(source.batch(range(first, first + 500), MediaSpec(n_frames=1, size=16), audio=False).video) == 500


def test_each_split_has_pictures_and_sounds():
    names = [f"{i}.mp4" for i in range(20)] + [f"{i}.wav" for i in range(25)] + ["a.png"]
    for suffix in (".mp4", ".wav"):
        train, test = ({n for n in split_files(names, split) if n.endswith(suffix)} for split in ("train", "test"))
        assert train and test and not train & test
    few = split_files([*names[:5], *names[20:]], "train")
    assert {n for n in few if n.endswith(".mp4")} == set(names[:5])


def test_linked_folders_count_and_loops_end(tmp_path):
    save_clip(tmp_path / "elsewhere" / "a.mp4")
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "deep" / "loop").symlink_to(tmp_path / "data")
    assert FolderSource(tmp_path / "data").files == ["linked/a.mp4"]


def test_captions_hold_only_what_utf8_can(tmp_path):
    save_clip(tmp_path / "still.png", n_frames=1, sound=False)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "still.png", "text": "a ball \\ud83d"}\n')
    assert FolderSource(tmp_path).caption("still.png") == "a ball ?"
