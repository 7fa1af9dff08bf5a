"""Files turned into ids: entirely, resumably, whatever is wrong with some of them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tasks import AVPoet, InputError
from tasks.table import TASKS
from tokenizers_av.clip import Clip, MediaError, read_clip
from train import tokenize_shards
from train.checkpoint import CheckpointError
from train.data import MediaSpec, open_source
from train.data.folder import to_audio, to_video
from train.tokenize_command import add_arguments, make_plan, run
from train.tokenize_shards import Plan, Shard, WorkerLost, cut, file_windows
from train.tokens import load_split, load_tokens

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

SPEC = MediaSpec(n_frames=5, size=16, sample_rate=16000)
FPS = 8.0
CONDITIONED = [name for name, task in TASKS.items() if task.condition is not None]


def save(path: Path, n_frames: int, sound: bool = True, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 255, (n_frames, 2, 2, 3), generator=generator, dtype=torch.uint8)
    samples = 0.5 * torch.sin(torch.arange(n_frames * 2000) / (5 + seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = frames.repeat_interleave(8, 1).repeat_interleave(8, 2)
    Clip(frames, FPS, samples if sound else None, 16000).save(path)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 12, 2 and 10 frames, one of them silent, an image, a sound, and three files that are broken."""
    folder = tmp_path_factory.mktemp("media")
    save(folder / "a.mp4", 12)
    save(folder / "deep/b.mp4", 2, seed=1)
    save(folder / "silent.mp4", 10, sound=False, seed=2)
    save(folder / "still.png", 1, sound=False, seed=3)
    save(folder / "tone.wav", 8)
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:100])
    (folder / "empty.mp4").touch()
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "the first"}\n')
    return folder


@pytest.fixture
def tokenize(tmp_path: Path, debug_model: Path):
    """Run the command, by default into tmp_path/tokens in windows of 5 frames; returns its exit code."""

    def call(data: object, *more: str, out: Path = tmp_path / "tokens", frames: int | None = 5) -> int:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        sizes = [] if frames is None else ["--frames", str(frames)]  # what `more` says counts more
        words = [str(data), "--tokenizers", str(debug_model), "--out", str(out), "--device", "cpu", *sizes, *more]
        return run(parser.parse_args(words))

    return call


def rows(folder: Path, kind: str = "clips") -> list[dict]:
    return [row for path in sorted(folder.glob(f"{kind}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_window_of_every_readable_file(media: Path, tmp_path: Path, tokenize, debug_model: Path, capsys) -> None:
    assert tokenize(media, "--batch-size", "3") == 0
    out, err = capsys.readouterr()
    clips, images = rows(tmp_path / "tokens"), rows(tmp_path / "tokens", "images")
    windows = [(row["file_name"], row["start"], row["caption"], row["audio"] is None) for row in clips]
    assert windows == [
        ("a.mp4", 0.0, "the first", False),
        ("a.mp4", 0.625, "the first", False),
        ("deep/b.mp4", 0.0, "", False),
        ("silent.mp4", 0.0, "", True),
        ("silent.mp4", 0.625, "", True),
    ]
    assert [(row["file_name"], row["video_shape"]) for row in images] == [("still.png", [1, 2, 2])]
    summary = json.loads(out.splitlines()[-1])
    assert summary | {"seconds": 0} == {"rows": 6, "files": 8, "skipped": 4, "shards": 3, "seconds": 0}
    for name, reason in (("broken.mp4", "holds neither picture nor sound"), ("empty.mp4", "is empty"),
                         ("broken.png", "not a readable image"), ("tone.wav", "has no picture")):  # fmt: skip
        lines = [line for line in err.splitlines() if line.startswith("skipped:") and name in line]
        assert len(lines) == 1 and reason in lines[0], (name, lines)
    settings = json.loads(err.splitlines()[0])
    assert (settings["n_frames"], settings["size"], settings["fps"], settings["sample_rate"]) == (5, 16, 8.0, 16000)

    codec = AVPoet.from_pretrained(debug_model, device="cpu", dtype="float32").codec
    for row in clips:  # the same ids as of the window read by itself
        clip = read_clip(media / row["file_name"], fps=FPS, size=16, start=row["start"], n_frames=5)
        with torch.autocast("cpu", torch.bfloat16):
            ids = codec.video.encode(to_video(clip, SPEC)[None])
            heard = codec.audio.encode(to_audio(clip, SPEC)[None])
        assert (torch.tensor(row["video"]) == ids.flatten()).float().mean() > 0.9
        assert row["video_shape"] == [2, 2, 2]
        if row["audio"]:
            assert (torch.tensor(row["audio"]) == heard.flatten()).float().mean() > 0.9
            assert row["audio_shape"] == [2, 31]


def test_windows_are_longer_than_the_models_clips_and_conditions_as_long(
    media: Path, tmp_path: Path, tokenize, debug_model: Path, capsys
) -> None:
    """The model's clips have 9 frames, windows 17, and all files less: they are held on their last frame."""
    assert tokenize(media, "--batch-size", "2", frames=None) == 0
    assert json.loads(capsys.readouterr().err.splitlines()[0])["n_frames"] == 17
    clips, (image,) = rows(tmp_path / "tokens"), rows(tmp_path / "tokens", "images")
    assert [(row["file_name"], row["start"]) for row in clips] == [
        ("a.mp4", 0.0), ("deep/b.mp4", 0.0), ("silent.mp4", 0.0)
    ]  # fmt: skip
    codec = AVPoet.from_pretrained(debug_model, device="cpu", dtype="float32").codec
    for row in clips:
        clip = read_clip(media / row["file_name"], fps=FPS, size=16)
        assert clip.frames is not None and clip.n_frames < 17
        with torch.autocast("cpu", torch.bfloat16):
            ids = codec.video.encode(to_video(clip, replace(SPEC, n_frames=17))[None]).flatten()
        assert row["video_shape"] == [5, 2, 2] and row["audio_shape"] in ([2, 106], None)
        assert (torch.tensor(row["video"]) == ids).float().mean() > 0.9
        # the first latent frame is coded alone, and of this condition it is that of the clip
        between, first = torch.tensor(row["condition_frame_interpolation"]), torch.tensor(row["video"])[:4]
        assert (between[:4] == first).float().mean() > 0.7
        for name in CONDITIONED:
            assert row[f"condition_{name}_shape"] == [3, 2, 2] and len(row[f"condition_{name}"]) == 12
    assert not any("condition" in name for name in image)


def test_what_is_there_is_not_made_again(media: Path, tmp_path: Path, tokenize, capsys) -> None:
    def listing() -> dict[str, tuple[int, bytes]]:
        files = sorted((tmp_path / "tokens").iterdir())
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    assert tokenize(media) == 0
    first, before = capsys.readouterr().out, listing()
    (tmp_path / "tokens/clips-00001.parquet").unlink()
    assert tokenize(media) == 0
    again, after = capsys.readouterr().out, listing()
    assert {name for name in before if before[name][0] != after[name][0]} == {"clips-00001.parquet"}
    assert {name: content for name, (_, content) in before.items()} == {n: content for n, (_, content) in after.items()}
    assert json.loads(first) | {"seconds": 0} == json.loads(again) | {"seconds": 0}
    metadata = (media / "metadata.jsonl").read_text()
    try:
        (media / "metadata.jsonl").write_text(metadata.replace("first", "second"))
        with pytest.raises(CheckpointError, match="another captions"):
            tokenize(media)
        (media / "metadata.jsonl").write_text("no JSON")
        with pytest.raises(MediaError, match=r"metadata.jsonl, line 1: not valid JSON"):
            tokenize(media, "--workers", "2", out=tmp_path / "other")
        assert not (tmp_path / "other").exists()  # before there are any workers
    finally:
        (media / "metadata.jsonl").write_text(metadata)
    with pytest.raises(CheckpointError, match=r"n_window \(5 .*, spec.n_frames \(5 there, 9 now\); choose"):
        tokenize(media, frames=9)
    save(media / "new.mp4", 5)
    try:
        with pytest.raises(CheckpointError, match="another files"):
            tokenize(media)
    finally:
        (media / "new.mp4").unlink()


def test_playground(tmp_path: Path, tokenize, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.tokens.SHARD", 4)
    assert tokenize("playground", "--n", "6") == 0
    assert json.loads(capsys.readouterr().out) | {"seconds": 0} == {
        "rows": 6, "files": 0, "skipped": 0, "shards": 2, "seconds": 0
    }  # fmt: skip
    clips = load_tokens(tmp_path / "tokens", "clips")
    assert clips.audio is not None and clips.captions == open_source("playground").batch(range(6), SPEC).captions
    train, test = load_split(tmp_path / "tokens")
    assert (len(train), len(test)) == (5, 1)


def test_worker_processes_make_the_same(media: Path, tmp_path: Path, tokenize, capsys) -> None:
    assert tokenize(media) == 0
    one = capsys.readouterr().out
    assert tokenize(media, "--workers", "2", out=tmp_path / "two") == 0
    two, err = capsys.readouterr()
    assert json.loads(two) | {"seconds": 0} == json.loads(one) | {"seconds": 0}
    assert err.count("skipped: ") == 4
    for kind in ("clips", "images"):
        assert rows(tmp_path / "two", kind) == rows(tmp_path / "tokens", kind)


def test_a_lost_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize_shards, "_work", os._exit)  # called with arguments it does not take
    with pytest.raises(WorkerLost, match="a worker process ended with exit code 1"):
        tokenize_shards.work_in_processes(None, [Shard("clips", 0)], 1, print)  # type: ignore[arg-type]
    killed = SimpleNamespace(join=lambda: None, exitcode=-9)
    assert tokenize_shards._farewell(killed) == "a worker process was killed by signal 9 (out of memory?)"


def test_finished_shards_outlive_a_lost_worker(
    media: Path, tmp_path: Path, tokenize, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(plan, shards, n_workers, tell) -> None:
        tokenize_shards.work_here(plan, shards[:1], tell)
        raise WorkerLost("a worker process went away")

    monkeypatch.setattr(tokenize_shards, "work_in_processes", lose)
    assert tokenize(media, "--workers", "2") == 1
    out, err = capsys.readouterr()
    assert not out and "avpoet-train: error: a worker process went away; finished shards are kept" in err
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["clips-00000.parquet"]


def test_windows_join_to_the_whole_file(media: Path) -> None:
    whole = read_clip(media / "a.mp4", fps=FPS, size=16)
    assert whole.frames is not None and whole.samples is not None
    starts, shares, frames, samples = zip(*file_windows(media / "a.mp4", SPEC), strict=True)
    assert starts == (0.0, 0.625) and shares[0] < shares[1] <= 1
    assert torch.equal(torch.cat(frames, 1).add(1).mul(127.5).round().byte().permute(1, 2, 3, 0), whole.frames[:10])
    assert torch.equal(torch.cat(samples), whole.samples[:20_000])
    (_, _, held, sound), *rest = file_windows(media / "deep/b.mp4", SPEC)
    assert not rest and torch.equal(held[:, 1], held[:, 4]) and not torch.equal(held[:, 0], held[:, 1])
    assert sound is not None and not sound[4000:].any() and sound[:4000].any()
    with pytest.raises(MediaError, match="has no picture"):
        next(file_windows(media / "tone.wav", SPEC))


def test_a_decoder_that_fails_is_a_file_that_cannot_be_read(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OverflowError("too many")

    monkeypatch.setattr("tokenizers_av.clip.ClipReader.windows", fail)
    with pytest.raises(MediaError, match=r"a.mp4: cannot be decoded \(OverflowError: too many\)"):
        next(file_windows(media / "a.mp4", SPEC))


def test_shards_hold_neighbours_of_limited_size() -> None:
    files = [(f"{i:05d}.mp4", 1000) for i in range(5)]
    files += [("big.mp4", 40 << 20), ("c.png", 5), ("d.mp4", 1), ("e.wav", 9)]
    assert [(s.kind, s.number, [name for name, _ in s.files]) for s in cut(files)] == [
        ("clips", 0, [f"{i:05d}.mp4" for i in range(4)]),
        ("clips", 1, ["00004.mp4", "big.mp4"]),
        ("clips", 2, ["d.mp4"]),
        ("images", 0, ["c.png"]),
    ]
    many = cut([(f"{i}.mp4", 1 << 20) for i in range(40_000)])
    assert {len(s.files) for s in many[:-1]} == {512} and sum(len(s.files) for s in many) == 40_000
    assert max(s.size for s in cut([(f"{i}.mp4", 300 << 20) for i in range(1000)])) < 2 << 30
    assert Shard("clips", 0, clips=range(4)).size == 4


@pytest.mark.parametrize(
    ("data", "words", "message"),
    [
        ("nowhere", [], "no such folder"),
        ("media", ["--n", "3"], "only the playground"),
        ("media", ["--frames", "6"], "--frames 6: need 1 .* of 4, such as 9"),
        ("media", ["--size", "4"], "size >= 8"),
        ("media", ["--fps", "nan"], "--fps nan: need"),
        ("media", ["--fps", "1000"], "too short for one column of audio ids"),
        ("media", ["--workers", "0"], "--workers 0: need"),
        ("media", ["--tokenizers", "nobody"], "no model 'nobody'"),
        ("media", ["--device", "toaster"], "device 'toaster'"),
    ],
)
def test_what_cannot_be_done_is_refused(media: Path, tmp_path: Path, tokenize, data, words, message) -> None:
    with pytest.raises((InputError, MediaError), match=message):
        tokenize(media if data == "media" else data, *words)
    assert not (tmp_path / "tokens").exists()


def test_nothing_readable_is_a_failure(tmp_path: Path, media: Path, tokenize, capsys) -> None:
    assert tokenize(media / "broken.mp4") == 1
    out, err = capsys.readouterr()
    assert "broken.mp4: none of its files has a readable picture" in err and json.loads(out)["rows"] == 0


def test_without_pyarrow_the_cure_is_named(media: Path, tokenize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.tokens.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs pyarrow; pip install 'avpoet\[train\]'"):
        tokenize(media)


def test_a_file_that_is_cut_off_is_coded_up_to_there_and_named(tmp_path: Path, tokenize, capsys) -> None:
    data = tmp_path / "data"
    save(data / "whole.mp4", 40)
    (data / "half.mp4").write_bytes((data / "whole.mp4").read_bytes()[: (data / "whole.mp4").stat().st_size // 2])
    assert tokenize(data) == 0
    out, err = capsys.readouterr()
    names = [row["file_name"] for row in rows(tmp_path / "tokens")]
    assert names.count("whole.mp4") == 8 and 0 < names.count("half.mp4") < 8
    assert json.loads(out.splitlines()[-1])["skipped"] == 1
    (line,) = [line for line in err.splitlines() if line.startswith("skipped:")]
    assert "half.mp4: all but the first" in line and "of 5.0 s" in line


def test_a_disk_that_is_gone_is_not_taken_for_damaged_files(tmp_path: Path, tokenize, monkeypatch) -> None:
    data, out = tmp_path / "data", tmp_path / "tokens"
    for i in range(8):
        save(data / f"{i}.mp4", 5)
    right = tokenize_shards.write_shard

    def unplug(path: Path, *rest) -> None:
        right(path, *rest)
        if data.exists():
            data.rename(tmp_path / "away")

    monkeypatch.setattr(tokenize_shards, "write_shard", unplug)
    with pytest.raises(FileNotFoundError, match="is gone"):
        tokenize(data)
    assert len(list(out.glob("*.parquet"))) == 1
    (tmp_path / "away").rename(data)
    monkeypatch.undo()
    assert tokenize(data) == 0 and len(rows(out)) == 8


def test_names_that_are_not_utf8_are_no_hindrance(tmp_path: Path, tokenize) -> None:
    data = tmp_path / "data"
    save(data / "a.mp4", 5)
    try:
        (data / "a.mp4").rename(data / os.fsdecode(b"caf\xe9.mp4"))
    except OSError:
        pytest.skip("the file system has no such names")
    assert tokenize(data) == 0 and [row["file_name"] for row in rows(tmp_path / "tokens")] == ["caf\ufffd.mp4"]


def test_a_chain_without_its_transformer_has_the_sizes_of_a_preset(tmp_path: Path, media: Path, debug_model: Path):
    chain = tmp_path / "chain"
    for part in ("video_tokenizer", "audio_tokenizer"):
        shutil.copytree(debug_model / part, chain / part)

    def plan(folder: Path, *words: str) -> Plan:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        words = (str(media), "--tokenizers", str(folder), "--out", str(tmp_path / "tokens"), "--device", "cpu", *words)
        return make_plan(parser.parse_args(words))[0]

    default, debug = plan(chain), plan(chain, "--preset", "debug")
    assert (default.spec.n_frames, default.spec.size, default.n_window) == (33, 64, 17)
    assert (debug.spec.n_frames, debug.spec.size, debug.n_window) == (9, 16, 5)
    longer = plan(chain, "--preset", "debug", "--frames", "13", "--size", "32")
    assert (longer.spec.n_frames, longer.spec.size, longer.n_window) == (13, 32, debug.n_window)
    with pytest.raises(InputError, match="unknown preset 'huge'"):
        plan(chain, "--preset", "huge")
    with pytest.raises(InputError, match=r"--preset debug: .*config\.json says"):
        plan(debug_model, "--preset", "debug")
    (chain / "video_tokenizer/model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="no video tokenizer that can be opened"):
        plan(chain)
