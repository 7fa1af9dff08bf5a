"""Media turned into ids once, in Parquet shards on disk, so that the transformer's training reads ids only.

One row is one window of a clip, or one image; the `datasets` library reads the shards too (`load_dataset("parquet",
data_files="tokens/clips-*.parquet")`). A shard is written whole, and making them goes on where it stopped. In its
schema's metadata each shard says what it was made from, so that ids of other tokenizers are never taken for these.
"""
# Shapes: B batch, n items, t h w latent frames, height and width, Q audio levels, F audio columns

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenizers_av.audio import AudioTokenizer
from tokenizers_av.video import VideoTokenizer
from train.checkpoint import CheckpointError
from train.conditions import conditions
from train.data import SPLITS, MediaBatch, MediaSpec, Source

log = logging.getLogger(__name__)

SHARD = 512  # items per file
_CONDITION = "condition_"  # of the columns that hold conditioning clips
TEST_ROWS = 20  # one row in 20 is held out where files are too few to hold some out


@dataclass(frozen=True)
class TokenSet:
    video: Tensor  # (n, t, h, w) int32
    audio: Tensor | None  # (n, Q, F) int16 or int32; None for images
    captions: list[str]  # n, "" where there is none
    conditions: dict[str, Tensor] = field(default_factory=dict)  # by task, (n, t, h, w) int32

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class TrainingTokens:
    clips: TokenSet  # with sound
    images: TokenSet  # one latent frame
    held_out: TokenSet  # clips with sound that are never trained on


@dataclass(frozen=True)
class Window:
    """One row of a shard."""

    video: Tensor  # (t, h, w) int32
    audio: Tensor | None = None  # (Q, F) int16 or int32; None where there is no sound
    caption: str = ""
    file_name: str = ""  # path inside the folder of media; "" for a source that has no files
    start: float = 0.0  # seconds from the start of the file
    conditions: Mapping[str, Tensor] = field(default_factory=dict)  # by task, (t, h, w) int32


def training_tokens(
    folder: Path, source: Callable[[str], Source], video: VideoTokenizer, audio: AudioTokenizer, spec: MediaSpec, *,
    n_window: int, n_clips: int, n_images: int, n_test: int, rank: int = 0, world: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> TrainingTokens:  # fmt: skip
    """What the transformer is trained on: ids from `folder`, made first where they are missing.

    Clips have spec.n_frames, and the model windows of n_window of them, of which the conditioning clips are made.
    A folder that `avpoet-train tokenize` made is read as it is, whatever its source; some of its files are held out.
    Any other gets the clips of `source(split)` in folder/train and folder/test. Process `rank` of `world` makes its
    share of the shards and calls `wait` until all have. Without pyarrow its share is made in memory and not kept.
    Raises CheckpointError where the ids are those of other tokenizers or sizes, clips are too short, or none has sound.
    """
    if any(folder.glob("*.parquet")):
        made_for = {k: v for k, v in asdict(spec).items() if k != "n_frames"}
        check_origin(folder, {"spec": made_for, **fingerprints(video, audio)})
        clips, held_out = _for_windows(folder, n_window)
        return TrainingTokens(clips, _images(folder, clips), held_out)
    # the few of the test are made first: where its files cannot be read, that is said at once
    if not has_parquet():
        if rank == 0:
            print("pyarrow is not installed: the ids are made in memory and not kept", file=sys.stderr)

        def made(split: str, items: range, n_frames: int) -> TokenSet:
            return collect(source(split), video, audio, replace(spec, n_frames=n_frames), n_window, items)

        return TrainingTokens(
            held_out=made("test", range(n_test), spec.n_frames),
            clips=made("train", range(n_clips)[rank::world], spec.n_frames),
            images=made("train", range(n_clips, n_clips + n_images)[rank::world], 1),
        )
    for split, clips_here, images_here in (("test", n_test, 0), ("train", n_clips, n_images)):
        tokenize(source(split), video, audio, spec, n_window, folder / split, n_clips=clips_here, n_images=images_here,
                 rank=rank, world=world)  # fmt: skip
    wait()
    return TrainingTokens(
        load_tokens(folder / "train", "clips"),
        load_tokens(folder / "train", "images"),
        load_tokens(folder / "test", "clips"),
    )


def _for_windows(folder: Path, n_window: int) -> tuple[TokenSet, TokenSet]:
    """`load_split`, without conditioning clips unless they have n_window frames; raises CheckpointError."""
    origin = read_notes(min(folder.glob("*.parquet")))[1]
    if (n_frames := origin["spec"]["n_frames"]) < n_window:
        raise CheckpointError(f"{folder}: its clips have {n_frames} frames, need {n_window} or more; "
                              "tokenize the media again with more --frames")  # fmt: skip
    clips, held_out = load_split(folder)
    if origin.get("n_window") != n_window:
        log.warning("%s: no conditioning clips of %d frames; tasks that need them are not trained", folder, n_window)
        clips, held_out = replace(clips, conditions={}), replace(held_out, conditions={})
    return clips, held_out


def _images(folder: Path, clips: TokenSet) -> TokenSet:
    """The images in `folder`; where it was made of none, or of none that can be read, the first frames of `clips`."""
    n, paths = _n_shards(folder, "images"), list(folder.glob("images-*.parquet"))
    if len(paths) < n or any(read_notes(path)[0] for path in paths):
        return load_tokens(folder, "images")
    if n:
        log.warning("%s: none of its images could be read; the first frames of its clips are taken for images", folder)
    # the first frame of a clip is coded alone: its ids are those of an image
    return TokenSet(clips.video[:, :1].contiguous(), None, clips.captions)


def tokenize(source: Source, video: VideoTokenizer, audio: AudioTokenizer, spec: MediaSpec, n_window: int,
             folder: Path, *, n_clips: int, n_images: int, batch_size: int = 32, rank: int = 0,
             world: int = 1) -> None:  # fmt: skip
    """Write the ids of the first `n_clips` clips and of `n_images` further first frames to shards in `folder`.

    Shards that are there are kept; process `rank` of `world` makes what is missing of every `world`-th.
    Raises CheckpointError where they were made from something else: other tokenizers, another size or number of clips,
    another source or split of it. Its seed may differ: any clips will do.
    """
    from tqdm import tqdm

    n_items = {"clips": n_clips, "images": n_images}
    jobs = [(kind, first) for kind, n in n_items.items() for first in range(0, n, SHARD)]
    origin = {
        "spec": asdict(spec), "n_window": n_window, "n_clips": n_clips, "n_images": n_images,
        "source": _describe(source), **fingerprints(video, audio),
        "shards": {kind: -(-n // SHARD) for kind, n in n_items.items()},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    check_origin(folder, origin)
    for kind, first in tqdm(jobs[rank::world], desc="tokenize", unit="shard", file=sys.stderr, disable=rank > 0):
        path = shard_path(folder, kind, first // SHARD)
        if path.exists():
            continue
        last = min(first + SHARD, n_items[kind])
        if kind == "clips":
            windows = source_windows(source, video, audio, spec, n_window, range(first, last), batch_size)
        else:
            items = range(n_clips + first, n_clips + last)
            windows = source_windows(source, video, audio, replace(spec, n_frames=1), n_window, items, batch_size)
        write_shard(path, windows, origin)


def _describe(source: Any) -> dict[str, Any]:
    """What decides which clips a source has, but for its seed."""
    values: dict[str, Any] = {"name": type(source).__name__, "split": getattr(source, "split", None)}
    if hasattr(source, "files"):
        captions = digest({name: text for name in source.files if (text := source.caption(name))})
        values |= {"root": str(source.root), "files": digest(source.files), "captions": captions}
    if hasattr(source, "sources"):
        values |= {"parts": [_describe(part) for part in source.sources], "weights": source.weights}
    return values


def digest(value: Any) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def collect(source: Source, video: VideoTokenizer, audio: AudioTokenizer, spec: MediaSpec, n_window: int,
            items: range, *, batch_size: int = 32) -> TokenSet:  # fmt: skip
    """The ids of the clips with numbers `items`, in memory; without sound where they are of one frame."""
    windows = list(source_windows(source, video, audio, spec, n_window, items, batch_size))
    sound = [w.audio for w in windows if w.audio is not None]
    return TokenSet(
        torch.stack([w.video for w in windows]), torch.stack(sound) if sound else None, [w.caption for w in windows],
        {name: torch.stack([w.conditions[name] for w in windows]) for name in windows[0].conditions},
    )  # fmt: skip


def source_windows(source: Source, video: VideoTokenizer, audio: AudioTokenizer, spec: MediaSpec, n_window: int,
                   items: range, batch_size: int) -> Iterator[Window]:  # fmt: skip
    """The ids of the clips with numbers `items`, one by one; those of one frame without sound and conditions."""
    seen = replace(spec, n_frames=min(n_window, spec.n_frames))
    for i in range(0, len(items), batch_size):
        some = items[i : i + batch_size]
        media = source.batch(some, spec, audio=spec.n_frames > 1)
        assert media.video is not None
        frames, sound = encode(media.video, media.audio, video, audio)
        given = encode_conditions(media, seen, [str(k) for k in some], video, audio)
        for k, caption in enumerate(media.captions):
            one = {name: ids[k] for name, ids in given.items()}
            yield Window(frames[k], None if sound is None else sound[k], caption, conditions=one)


def encode_conditions(clips: MediaBatch, spec: MediaSpec, seeds: Sequence[str], video: VideoTokenizer,
                      audio: AudioTokenizer) -> dict[str, Tensor]:  # fmt: skip
    """Ids (B, t, h, w) int32 of the conditioning clips of the first spec.n_frames of clips; none of single images."""
    if spec.n_frames == 1:
        return {}
    return {name: encode(clip, None, video, audio)[0] for name, clip in conditions(clips, spec, seeds).items()}


@torch.inference_mode()
def encode(frames: Tensor, samples: Tensor | None, video: VideoTokenizer,
           audio: AudioTokenizer) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Ids (B, t, h, w) int32 of frames (B, 3, T, H, W), and (B, Q, F) of samples (B, N), both in [-1, 1]."""
    device = next(video.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):  # about one id in a hundred differs from float32; 3 times faster
        ids = video.encode(frames.to(device)).to("cpu", torch.int32)
        heard = None if samples is None else audio.encode(samples.to(device)).cpu()
    return ids, None if heard is None else heard.to(getattr(torch, _audio_dtype(audio)))


def _audio_dtype(audio: AudioTokenizer) -> str:
    return "int16" if audio.codebook_size <= 2**15 else "int32"


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights: equal for a model and its copy on another device, different after any training step."""
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return weights.hexdigest()


def fingerprints(video: VideoTokenizer, audio: AudioTokenizer) -> dict[str, str]:
    """What a shard says of the tokenizers that made it: a hash of what makes ids, without the decoders."""
    video_ids, audio_ids = (fingerprint(nn.ModuleList([m.encoder, m.quantizer])) for m in (video, audio))
    return {"video_tokenizer": video_ids, "audio_tokenizer": audio_ids, "audio_dtype": _audio_dtype(audio)}


def has_parquet() -> bool:
    """Whether shards can be written and read here."""
    return find_spec("pyarrow") is not None


def shard_path(folder: Path, kind: str, number: int) -> Path:
    """Where the shard with this number lies; `kind` is "clips" or "images"."""
    return folder / f"{kind}-{number:05d}.parquet"


def write_shard(path: Path, windows: Iterable[Window], origin: dict[str, Any],
                skipped: Sequence[tuple[str, str]] = ()) -> None:  # fmt: skip
    """Write `windows` to one Parquet file, whole or not at all.

    `origin` says what they were made from (see `check_origin`), `skipped` names files without rows, or with less than
    they should have, and why.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(windows)
    audio_type = pa.int16() if origin["audio_dtype"] == "int16" else pa.int32()
    columns = {
        "file_name": pa.array([os.fsencode(w.file_name).decode("utf-8", "replace") for w in rows], pa.string()),
        "start": pa.array([w.start for w in rows], pa.float32()),
        "caption": pa.array([w.caption for w in rows], pa.string()),
        "video": _lists([w.video.numpy() for w in rows], pa.int32()),
        "video_shape": pa.array([list(w.video.shape) for w in rows], pa.list_(pa.int32())),
        "audio": _lists([None if w.audio is None else w.audio.numpy() for w in rows], audio_type),
        "audio_shape": pa.array([None if w.audio is None else list(w.audio.shape) for w in rows], pa.list_(pa.int32())),
    }
    for name in rows[0].conditions if rows else ():
        given = [w.conditions[name] for w in rows]
        columns[_CONDITION + name] = _lists([ids.numpy() for ids in given], pa.int32())
        columns[_CONDITION + name + "_shape"] = pa.array([list(ids.shape) for ids in given], pa.list_(pa.int32()))
    table = pa.table(columns).replace_schema_metadata({"made_from": json.dumps(origin), "skipped": json.dumps(skipped)})
    fresh = path.with_name(path.name + ".new")
    pq.write_table(table, fresh, compression="zstd")
    fresh.replace(path)


def _lists(arrays: Sequence[np.ndarray | None], kind: Any) -> Any:
    """Arrow lists of the elements of each array in row-major order; null for None."""
    import pyarrow as pa

    ends = np.cumsum([0] + [0 if a is None else a.size for a in arrays], dtype=np.int32)
    values = [a.reshape(-1) for a in arrays if a is not None]
    flat = pa.array(np.concatenate(values) if values else [], kind)
    return pa.ListArray.from_arrays(pa.array(ends), flat, mask=pa.array([a is None for a in arrays], pa.bool_()))


def read_notes(path: Path) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
    """Number of rows of a shard, what it was made from, and the files skipped with reasons; raises CheckpointError."""
    with _parquet(path) as file:
        notes = file.schema_arrow.metadata or {}
        if b"made_from" not in notes:
            raise CheckpointError(f"{path}: was not made by avpoet; choose another folder")
        skipped = [(name, reason) for name, reason in json.loads(notes.get(b"skipped", b"[]"))]
        return file.metadata.num_rows, json.loads(notes[b"made_from"]), skipped


def _parquet(path: Path) -> Any:
    """An open Parquet file. Raises CheckpointError where it is damaged, or pyarrow is missing."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise CheckpointError(f"{path}: needs pyarrow to be read; pip install 'avpoet[train]'") from None
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(f"{path}: is damaged ({str(error).splitlines()[0]}); delete it") from None


def check_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Raise CheckpointError unless all shards in `folder` were made from what `origin` says."""
    now = json.loads(json.dumps(origin))
    for path in sorted(folder.glob("*.parquet")):
        if changed := _differences(read_notes(path)[1], now):
            raise CheckpointError(f"{folder}: its ids were made from another {', '.join(changed)}; "
                                  "choose another folder or delete this one")  # fmt: skip


def _differences(there: dict[str, Any], now: dict[str, Any], within: str = "") -> list[str]:
    """Names of the entries of `now` that differ in `there`, with both values where they are short."""
    names = []
    for name, value in sorted(now.items()):
        before = there.get(name)
        if isinstance(value, list) and isinstance(before, list) and len(value) == len(before):
            value, before = ({f"{i}": part for i, part in enumerate(parts)} for parts in (value, before))
        if isinstance(value, dict) and isinstance(before, dict):
            names += _differences(before, value, f"{within}{name}.")
        elif before != value and not (name == "captions" and before is None):  # older shards do not say
            short = max(len(str(before)), len(str(value))) < 40
            names.append(f"{within}{name} ({before} there, {value} now)" if short else within + name)
    return names


def load_tokens(folder: Path, kind: str) -> TokenSet:
    """The rows of all shards of `kind` ("clips" or "images") in `folder`; `audio` is None unless all have sound.

    Raises CheckpointError where there are no rows, shards are missing or damaged, or rows differ in shape.
    """
    table = _table(folder, kind)
    return _token_set(folder, table, sound=not table["audio"].null_count)


def load_split(folder: Path) -> tuple[TokenSet, TokenSet]:
    """The clips with sound in `folder`, for training and for the test; raises CheckpointError as `load_tokens` does.

    Clips of one file stay together, as in `train.data.folder.split_files`. Where files are too few, every 20th clip is
    for the test.
    """
    import pyarrow as pa

    table = _table(folder, "clips")
    if silent := table["audio"].null_count:
        log.warning("%s: %d of %d clips have no sound and are left out", folder, silent, len(table))
        table = table.filter(table["audio"].is_valid())
        if not len(table):
            raise CheckpointError(f"{folder}: none of its clips has sound, which the transformer is to learn")
    names = table["file_name"].to_pylist()
    train, test = (_token_set(folder, table.filter(pa.array(_in_split(names, split))), sound=True) for split in SPLITS)
    return train, test


def _table(folder: Path, kind: str) -> Any:
    """An Arrow table of all shards of `kind`; raises CheckpointError."""
    paths, n = sorted(folder.glob(f"{kind}-*.parquet")), _n_shards(folder, kind)
    if not n:
        raise CheckpointError(f"{folder}: holds no {kind}-*.parquet; make them first")
    if len(paths) < n:
        raise CheckpointError(f"{folder}: holds {len(paths)} of {n} shards of {kind}; "
                              "run what made them again: it goes on where it stopped")  # fmt: skip
    import pyarrow as pa

    tables = []
    for path in paths:
        with _parquet(path) as file:
            try:
                tables.append(file.read())
            except (pa.ArrowException, OSError) as error:
                raise CheckpointError(f"{path}: is damaged ({str(error).splitlines()[0]}); delete it") from None
    tables = [table for table in tables if len(table)]  # without rows there are no columns of conditioning clips
    if not tables:
        raise CheckpointError(f"{folder}: its shards of {kind} have no rows")
    if any(table.column_names != tables[0].column_names for table in tables):
        raise CheckpointError(f"{folder}: its shards differ in their conditioning clips, as different versions make "
                              "them; delete it and make it again")  # fmt: skip
    return pa.concat_tables(tables)


def _n_shards(folder: Path, kind: str) -> int:
    """How many shards of `kind` there are in `folder` once it is whole; raises CheckpointError."""
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        return 0
    origin = read_notes(paths[0])[1]
    check_origin(folder, origin)
    return int(origin["shards"].get(kind, 0))


def _token_set(folder: Path, table: Any, sound: bool) -> TokenSet:
    audio = _stacked(folder, table, "audio", 2) if sound else None
    names = [c for c in table.column_names if c.startswith(_CONDITION) and not c.endswith("_shape")]
    given = {c.removeprefix(_CONDITION): _stacked(folder, table, c, 3) for c in names}
    return TokenSet(_stacked(folder, table, "video", 3), audio, table["caption"].to_pylist(), given)


def _stacked(folder: Path, table: Any, name: str, n_dims: int) -> Tensor:
    """A column of lists as one tensor (n, *shape), straight from Arrow's buffers."""
    shapes = np.concatenate([c.flatten().to_numpy() for c in table[name + "_shape"].chunks]).reshape(-1, n_dims)
    found = np.unique(shapes, axis=0)
    if len(found) > 1:
        some = " and ".join("x".join(map(str, shape)) for shape in found[:2])
        raise CheckpointError(f"{folder}: {name} ids differ in shape ({some}); tokenize the media in one size")
    values = np.concatenate([c.flatten().to_numpy() for c in table[name].chunks])  # chunk by chunk: any length
    return torch.from_numpy(values.reshape(-1, *found[0]))


def _in_split(names: list[str], split: str) -> np.ndarray:
    """Which rows (n,) bool belong to `split`, by the name of the file each comes from."""
    from train.data.folder import MIN_FILES_TO_SPLIT, split_files

    distinct = sorted(set(names))
    if len(distinct) >= MIN_FILES_TO_SPLIT:
        chosen = set(split_files(distinct, split))
        return np.array([name in chosen for name in names])
    if len(names) < 2:
        return np.ones(len(names), bool)
    return (np.arange(len(names)) % TEST_ROWS == 0) == (split == "test")
