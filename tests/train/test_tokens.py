"""Ids on disk: made in shards, gone on with where it stopped, and never mixed with those of another tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tokenizers_av.audio import AudioTokenizer, audio_tokenizer_config
from tokenizers_av.video import VideoTokenizer, deepen, video_tokenizer_config
from train import tokens
from train.checkpoint import CheckpointError
from train.conditions import conditions
from train.data import MediaBatch, MediaSpec, open_source
from train.tokens import (
    TokenSet,
    Window,
    collect,
    fingerprint,
    fingerprints,
    load_split,
    load_tokens,
    read_notes,
    shard_path,
    tokenize,
    training_tokens,
    write_shard,
)

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

SPEC = MediaSpec(n_frames=9, size=16)
N_WINDOW = 5
ORIGIN = {"audio_dtype": "int16", "shards": {"clips": 1, "images": 0}}


class NoiseSource:
    """A source whose clip i is noise from seed i; counts what is read."""

    len = None

    def __init__(self, split: str = "train") -> None:
        self.split = split
        self.read: list[int] = []
        self.stop_at: int | None = None

    def batch(self, indices, spec, *, video=True, audio=True) -> MediaBatch:
        if self.stop_at in indices:
            raise KeyboardInterrupt
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


@pytest.fixture
def no_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "has_parquet", lambda: False)


def make(folder: Path, tokenizers, source: NoiseSource | None = None, **change) -> NoiseSource:
    source = source or NoiseSource()
    values = {"n_clips": 6, "n_images": 5, "batch_size": 2, "spec": SPEC, **change}
    tokenize(source, *tokenizers, values.pop("spec"), N_WINDOW, folder, **values)
    return source


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def windows(n: int, *, sound=lambda i: True, files: int = 1, shape=(2, 1, 1), given=()) -> list[Window]:
    """Window i holds the video ids i, i + 1000, ..., the audio id -i, and i + 2000 k in the condition of task k."""
    return [
        Window(
            torch.full(shape, i, dtype=torch.int32) + 1000 * torch.arange(shape[0], dtype=torch.int32).view(-1, 1, 1),
            torch.full((2, 3), -i, dtype=torch.int16) if sound(i) else None,
            f"clip {i}",
            f"file {i % files}",
            i / 2,
            {name: torch.full((1, 2, 1), i + 2000 * k, dtype=torch.int32) for k, name in enumerate(given, start=1)},
        )
        for i in range(n)
    ]


def same(a: TokenSet, b: TokenSet) -> bool:
    sound = a.audio is b.audio or (a.audio is not None and b.audio is not None and torch.equal(a.audio, b.audio))
    given = a.conditions.keys() == b.conditions.keys()
    given = given and all(torch.equal(a.conditions[name], b.conditions[name]) for name in a.conditions)
    return torch.equal(a.video, b.video) and sound and given and a.captions == b.captions


def test_shards_hold_the_ids_of_the_clips_in_order(tmp_path: Path, tokenizers) -> None:
    source = make(tmp_path, tokenizers)
    assert source.read == list(range(11))  # images are further clips, not those of the videos
    clips, images = load_tokens(tmp_path, "clips"), load_tokens(tmp_path, "images")
    assert clips.captions == [f"clip {i}" for i in range(6)] and images.captions == [f"clip {i}" for i in range(6, 11)]
    assert clips.video.shape == (6, 3, 2, 2) and images.video.shape == (5, 1, 2, 2) and images.audio is None
    media = NoiseSource().batch([4, 5], SPEC)
    given = conditions(media, replace(SPEC, n_frames=N_WINDOW), ["4", "5"])
    with torch.autocast("cpu", torch.bfloat16):
        ids = tokenizers[0].encode(media.video)
        heard = tokenizers[1].encode(media.audio)
        shown = {name: tokenizers[0].encode(clip) for name, clip in given.items()}
    assert torch.equal(clips.video[4:].long(), ids)
    assert clips.audio is not None
    assert torch.equal(clips.audio[4:].long(), heard)
    assert (clips.video.dtype, clips.audio.dtype) == (torch.int32, torch.int16)
    assert clips.conditions.keys() == shown.keys() and not images.conditions
    for name, ids in shown.items():
        assert torch.equal(clips.conditions[name][4:].long(), ids) and ids.shape == (2, 2, 2, 2)
        assert clips.conditions[name].dtype == torch.int32


def test_a_set_in_memory_is_the_one_on_disk(tmp_path: Path, tokenizers) -> None:
    make(tmp_path, tokenizers)
    assert same(
        collect(NoiseSource(), *tokenizers, SPEC, N_WINDOW, range(6), batch_size=2), load_tokens(tmp_path, "clips")
    )
    images = collect(NoiseSource(), *tokenizers, replace(SPEC, n_frames=1), N_WINDOW, range(6, 11), batch_size=2)
    assert same(images, load_tokens(tmp_path, "images"))


def test_a_lost_shard_is_made_again_and_alone(tmp_path: Path, tokenizers) -> None:
    make(tmp_path, tokenizers)
    before = contents(tmp_path)
    assert len(before) == 4  # two shards of each kind
    (tmp_path / "images-00000.parquet").unlink()
    again = make(tmp_path, tokenizers)
    assert again.read == [6, 7, 8, 9] and contents(tmp_path) == before
    assert make(tmp_path, tokenizers).read == []


def test_processes_make_each_shard_once(tmp_path: Path, tokenizers) -> None:
    read = [make(tmp_path / "many", tokenizers, rank=rank, world=3).read for rank in range(3)]
    assert read == [[0, 1, 2, 3, 10], [4, 5], [6, 7, 8, 9]]
    make(tmp_path / "one", tokenizers)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_stop_in_the_middle_leaves_whole_shards_only(tmp_path: Path, tokenizers) -> None:
    source = NoiseSource()
    source.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, tokenizers, source)
    assert list(contents(tmp_path)) == ["clips-00000.parquet"]
    with pytest.raises(CheckpointError, match="holds 1 of 2 shards of clips; run"):
        load_tokens(tmp_path, "clips")
    (tmp_path / "clips-00001.parquet.new").write_bytes(b"half")
    make(tmp_path, tokenizers)
    assert len(load_tokens(tmp_path, "clips")) == 6 and len(contents(tmp_path)) == 4


def test_ids_of_another_origin_are_refused(tmp_path: Path, tokenizers) -> None:
    make(tmp_path, tokenizers)
    video, audio = tokenizers
    torch.manual_seed(1)
    other = VideoTokenizer(video_tokenizer_config("debug")).eval()
    with pytest.raises(CheckpointError, match="another video_tokenizer; choose"):
        make(tmp_path, (other, audio))
    with pytest.raises(CheckpointError, match=r"another n_clips \(6 there, 7 now\), .*spec.fps \(8.0 there, 4.0 now\)"):
        make(tmp_path, tokenizers, n_clips=7, spec=replace(SPEC, fps=4.0))
    with pytest.raises(CheckpointError, match=r"another source.split \(train there, test now\)"):
        make(tmp_path, tokenizers, NoiseSource("test"))
    other.load_state_dict(video.state_dict())
    assert fingerprint(other) == fingerprint(video)
    deeper = deepen(other, 2)  # only what makes ids must be the same
    assert fingerprint(deeper) != fingerprint(video)
    assert make(tmp_path, (deeper, audio)).read == []


def test_conditioning_clips_come_back_beside_their_clips(tmp_path: Path) -> None:
    origin = {**ORIGIN, "shards": {"clips": 4}}
    rows = windows(40, sound=lambda i: i % 4, given=("inpainting", "a_task"))
    for number, part in enumerate(([], rows[:25], rows[25:], [])):  # no file of a shard may have been readable
        write_shard(shard_path(tmp_path, "clips", number), part, origin)
    every = load_tokens(tmp_path, "clips")
    for clips in (every, *load_split(tmp_path)):
        numbers = clips.video[:, 0, 0, 0]
        assert clips.conditions.keys() == {"inpainting", "a_task"} and len(numbers) > 1
        for k, name in enumerate(("inpainting", "a_task"), start=1):
            assert torch.equal(clips.conditions[name], (numbers + 2000 * k).view(-1, 1, 1, 1).expand(-1, 1, 2, 1))
    assert len(every) == 40


def test_what_a_shard_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no clips-\*"):
        load_tokens(tmp_path, "clips")
    path = shard_path(tmp_path, "clips", 0)
    write_shard(path, [], ORIGIN)
    with pytest.raises(CheckpointError, match="its shards of clips have no rows"):
        load_tokens(tmp_path, "clips")
    write_shard(path, windows(2, sound=lambda i: False), ORIGIN)
    with pytest.raises(CheckpointError, match="none of its clips has sound"):
        load_split(tmp_path)
    write_shard(path, windows(2), {**ORIGIN, "shards": {"clips": 2}})
    write_shard(shard_path(tmp_path, "clips", 1), windows(2, given=("new",)), {**ORIGIN, "shards": {"clips": 2}})
    with pytest.raises(CheckpointError, match="its shards differ in their conditioning clips"):
        load_tokens(tmp_path, "clips")
    shard_path(tmp_path, "clips", 1).unlink()
    write_shard(path, [*windows(2), *windows(2, shape=(1, 1, 1))], ORIGIN)
    with pytest.raises(CheckpointError, match=r"video ids differ in shape \(1x1x1 and 2x1x1\)"):
        load_tokens(tmp_path, "clips")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"clips-00000.parquet: is damaged"):
        load_tokens(tmp_path, "clips")


def test_rows_without_sound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    origin = {**ORIGIN, "shards": {"clips": 2}}
    for number in range(2):
        write_shard(shard_path(tmp_path, "clips", number), windows(5, sound=lambda i: i % 2), origin)
    every, (loud, held_out) = load_tokens(tmp_path, "clips"), load_split(tmp_path)
    assert every.audio is None and every.video[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4] * 2
    assert held_out.captions == ["clip 1"] and loud.video[:, 1, 0, 0].tolist() == [1003, 1001, 1003]
    assert loud.audio is not None
    assert loud.audio[:, 1, 2].tolist() == [-3, -1, -3]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "6 of 10 clips have no sound and are left out"
    ]


@pytest.mark.parametrize("n_files", [3, 60])
def test_splits_are_apart_and_complete(tmp_path: Path, n_files: int) -> None:
    write_shard(shard_path(tmp_path, "clips", 0), windows(180, files=n_files), ORIGIN)
    train, test = (clips.video[:, 0, 0, 0].tolist() for clips in load_split(tmp_path))
    assert sorted(train + test) == list(range(180)) and 0 < len(test) < 40
    if n_files == 60:  # whole files
        assert not {i % 60 for i in train} & {i % 60 for i in test}


def test_a_row_says_where_it_comes_from(tmp_path: Path) -> None:
    path = shard_path(tmp_path, "clips", 0)
    write_shard(path, windows(3, sound=lambda i: i < 2, files=2), ORIGIN, [("bad.mp4", "is broken")])
    assert pq.read_table(path).to_pylist()[1:] == [
        {"file_name": "file 1", "start": 0.5, "caption": "clip 1", "video": [1, 1001], "video_shape": [2, 1, 1],
         "audio": [-1] * 6, "audio_shape": [2, 3]},
        {"file_name": "file 0", "start": 1.0, "caption": "clip 2", "video": [2, 1002], "video_shape": [2, 1, 1],
         "audio": None, "audio_shape": None},
    ]  # fmt: skip
    assert read_notes(path) == (3, ORIGIN, [("bad.mp4", "is broken")])


@pytest.mark.filterwarnings("default")
def test_datasets_reads_the_shards(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    write_shard(shard_path(tmp_path, "clips", 0), windows(3, sound=bool, given=("inpainting",)), ORIGIN)
    write_shard(shard_path(tmp_path, "clips", 1), windows(3, given=("inpainting",)), ORIGIN)
    rows = datasets.load_dataset("parquet", data_files=f"{tmp_path}/clips-*.parquet", split="train",
                                 cache_dir=str(tmp_path / "cache"))  # fmt: skip
    assert rows["caption"][:] == ["clip 0", "clip 1", "clip 2"] * 2
    assert torch.tensor(rows[2]["video"]).view(rows[2]["video_shape"]).shape == (2, 1, 1)
    assert rows[0]["audio"] is None and rows[3]["audio"] == [0] * 6
    assert rows[5]["condition_inpainting"] == [2002, 2002] and rows[5]["condition_inpainting_shape"] == [1, 2, 1]


def test_training_tokens_from_a_source_on_disk_and_in_memory(
    tmp_path: Path, tokenizers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts, waits = {"n_window": N_WINDOW, "n_clips": 6, "n_images": 5, "n_test": 2}, []
    disk = training_tokens(tmp_path, NoiseSource, *tokenizers, SPEC, **counts, wait=lambda: waits.append(1))
    assert waits == [1] and len(disk.clips) == 6 and len(disk.images) == 5 and len(disk.held_out) == 2
    assert disk.images.video.shape[1] == 1
    monkeypatch.setattr(tokens, "has_parquet", lambda: False)
    capsys.readouterr()
    memory = training_tokens(tmp_path / "other", NoiseSource, *tokenizers, SPEC, **counts)
    assert capsys.readouterr().err == "pyarrow is not installed: the ids are made in memory and not kept\n"
    assert not (tmp_path / "other").exists()
    assert all(same(getattr(memory, name), getattr(disk, name)) for name in ("clips", "images", "held_out"))
    share = training_tokens(tmp_path / "other", NoiseSource, *tokenizers, SPEC, **counts, rank=1, world=2)
    assert share.clips.captions == memory.clips.captions[1::2] and len(share.held_out) == 2
    assert not capsys.readouterr().err


@pytest.mark.parametrize("parquet", [True, False])
def test_a_test_split_that_cannot_be_read_is_told_before_anything_is_made(
    tmp_path: Path, tokenizers, monkeypatch: pytest.MonkeyPatch, parquet: bool
) -> None:
    opened: list[str] = []

    def source(split: str) -> NoiseSource:
        opened.append(split)
        raise OSError("none of its files can be read")

    monkeypatch.setattr(tokens, "has_parquet", lambda: parquet)
    with pytest.raises(OSError, match="none of its files"):
        training_tokens(tmp_path, source, *tokenizers, SPEC, n_window=N_WINDOW, n_clips=6, n_images=5, n_test=2)
    assert opened == ["test"]


def test_ids_of_other_captions_are_refused(tmp_path: Path, tokenizers) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red ball")

    def make_ids() -> None:
        source = open_source([str(tmp_path)] * 2)
        tokenize(source, *tokenizers, SPEC, N_WINDOW, tmp_path / "ids", n_clips=1, n_images=0)

    make_ids()
    make_ids()
    (tmp_path / "a.txt").write_text("a blue cube")
    with pytest.raises(CheckpointError, match=r"another source.parts.0.captions, source.parts.1.captions; choose"):
        make_ids()
    path = shard_path(tmp_path / "ids", "clips", 0)
    origin = read_notes(path)[1]
    for part in origin["source"]["parts"]:
        del part["captions"]  # as before there were any
    write_shard(path, windows(1), origin)
    make_ids()


def unwanted(split: str) -> NoiseSource:
    raise AssertionError("the source is not needed")


def test_training_tokens_from_a_folder_of_media(tmp_path: Path, tokenizers, caplog: pytest.LogCaptureFixture) -> None:
    def load(spec: MediaSpec = SPEC):
        return training_tokens(tmp_path, unwanted, *tokenizers, spec, n_window=5, n_clips=9, n_images=9, n_test=9)

    made_for = {"spec": {**vars(SPEC), "n_frames": 13}, "n_window": 5}  # clips may be of any length
    origin = {**made_for, **fingerprints(*tokenizers), "shards": {"clips": 1, "images": 0}}
    rows = windows(40, sound=lambda i: i > 9, files=40)
    write_shard(shard_path(tmp_path, "clips", 0), rows, origin)
    got = load()
    assert len(got.clips) + len(got.held_out) == 30 and not set(got.clips.captions) & set(got.held_out.captions)
    assert torch.equal(got.images.video, got.clips.video[:, :1]) and got.images.audio is None
    origin["shards"]["images"] = 1
    write_shard(shard_path(tmp_path, "clips", 0), rows, origin)
    with pytest.raises(CheckpointError, match="holds 0 of 1 shards of images; run what made them again"):
        load()  # stopped before the images
    write_shard(shard_path(tmp_path, "images", 0), [], origin)
    assert torch.equal(load().images.video, got.clips.video[:, :1]) and "none of its images could be" in caplog.text
    stills = windows(3, sound=lambda i: False, shape=(1, 1, 1))
    write_shard(shard_path(tmp_path, "images", 0), stills, origin)
    assert len(load().images) == 3
    with pytest.raises(CheckpointError, match=r"another spec.size \(16 there, 32 now\)"):
        load(replace(SPEC, size=32))
    write_shard(shard_path(tmp_path, "images", 0), stills, {**origin, "video_tokenizer": "other"})
    with pytest.raises(CheckpointError, match="another video_tokenizer"):
        load()


def test_conditioning_clips_of_another_length_are_left_out(
    tmp_path: Path, tokenizers, caplog: pytest.LogCaptureFixture
) -> None:
    def load(n_window: int):
        return training_tokens(
            tmp_path, unwanted, *tokenizers, SPEC, n_window=n_window, n_clips=9, n_images=9, n_test=9
        )

    origin = {"spec": vars(SPEC), "n_window": 5, **fingerprints(*tokenizers), "shards": {"clips": 1}}
    path, told = shard_path(tmp_path, "clips", 0), "no conditioning clips of 9 frames; tasks that need them"
    write_shard(path, windows(40, given=("inpainting",)), origin)
    kept = load(5)
    assert kept.clips.conditions.keys() == kept.held_out.conditions.keys() == {"inpainting"} and not caplog.records
    left = load(9)
    assert not left.clips.conditions and not left.held_out.conditions and told in caplog.text
    caplog.clear()
    write_shard(path, windows(40), {name: value for name, value in origin.items() if name != "n_window"})
    assert not load(9).clips.conditions and told in caplog.text  # as folders were before there were any
    with pytest.raises(CheckpointError, match="its clips have 9 frames, need 13 or more; tokenize the media again"):
        load(13)
