"""From token ids of text, video and audio to one sequence and back (VideoPoet, arXiv:2312.14125, section 4.1, Fig. 2).

    <bos> <task> [<bot_i> text <eot_i>] [<bov_i> video <eov_i>] [<boa_i> audio <eoa_i>] |
    <bov_o> video <eov_o> [<boa_o> audio <eoa_o>] <eos>

Everything before the bar is the prefix. A missing block leaves with its delimiters. `build`, `prefix` and `plan` read
the same list of pieces, so what is generated has the form of what was learned. Nothing here needs a model.
For a model that predicts `block_size` ids at a time, each piece behind the bar is filled up to whole blocks: a
delimiter with itself, media with the delimiter that ends them.
"""
# Shapes: L sequence, P prefix, n text ids; t h w latent frames, height and width; Q audio levels, F audio columns

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tasks.errors import InputError
from tasks.task import CONTINUED, Block, Task

if TYPE_CHECKING:
    from lm import Plan, Vocabulary

IGNORE = -100  # a label without loss

_LETTER = {"text": "t", "video": "v", "audio": "a"}


@dataclass(frozen=True)
class TokenSample:
    """Ids of one clip, each counted from 0 in its own tokenizer; None where a medium is absent."""

    text: Tensor | None = None  # (n,) int64
    video: Tensor | None = None  # (t, h, w) int64
    audio: Tensor | None = None  # (Q, F) int64
    condition: Tensor | None = None  # (t, h, w) int64: the conditioning clip of a task that has one


@dataclass(frozen=True)
class Layout:
    """The sizes of a clip in ids and its clock; travels with a model as JSON."""

    latent_frames: int = 5
    height: int = 8
    width: int = 8
    audio_frames: int = 106
    n_codebooks: int = 4
    fps: float = 8.0
    audio_rate: float = 50.0  # audio columns per second: one tick of the clock shared by all media
    temporal_stride: int = 4
    audio_order: Literal["level", "time"] = "level"  # level by level over the clip (the paper), or column by column

    def __post_init__(self) -> None:
        for name in ("latent_frames", "height", "width", "audio_frames", "n_codebooks", "temporal_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: need at least 1")
        if not (self.fps > 0 and self.audio_rate > 0):
            raise ValueError(f"fps={self.fps}, audio_rate={self.audio_rate}: both must be positive")
        if self.audio_order not in ("level", "time"):
            raise ValueError(f"audio_order={self.audio_order!r}: expected 'level' or 'time'")

    @property
    def n_frames(self) -> int:
        """Frames of a whole clip: the first is coded alone, then `temporal_stride` per latent frame."""
        return 1 + self.temporal_stride * (self.latent_frames - 1)

    @property
    def seconds(self) -> float:
        return self.n_frames / self.fps

    @property
    def latent_columns(self) -> float:
        """Audio columns that last as long as one latent frame; a whole number where clips can be cut between any."""
        return self.temporal_stride / self.fps * self.audio_rate

    def columns(self, latent_frames: int) -> int:
        """Audio columns that end with or before the first `latent_frames` of a clip; all for a whole clip."""
        if latent_frames >= self.latent_frames:
            return self.audio_frames
        n_frames = 1 + self.temporal_stride * (latent_frames - 1)
        return max(0, min(self.audio_frames, int(n_frames / self.fps * self.audio_rate + 1e-6)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown layout fields {unknown}, expected some of {sorted(known)}")
        return cls(**values)


@dataclass(frozen=True)
class Segment:
    """Where one block lies: ids[start:stop] hold local ids of `shape` in reading order."""

    name: str  # "text", "video_in", "audio_in", "condition", "video" or "audio"
    start: int
    stop: int
    shape: tuple[int, ...]  # (n,), (t, h, w) or (Q, F)
    ranges: tuple[str, ...]  # vocabulary range of each row of the first axis, or one for all
    time_major: bool = False  # audio stored column by column

    def shifted(self, by: int) -> Segment:
        return Segment(self.name, self.start + by, self.stop + by, self.shape, self.ranges, self.time_major)


@dataclass(frozen=True)
class Sequence:
    ids: Tensor  # (L,) int64, counted in the whole vocabulary
    labels: Tensor  # (L,) int64: ids where something is to be learned, elsewhere IGNORE
    positions: Tensor  # (L, 3) float32 (t, h, w); t in ticks of `Layout.audio_rate`
    prefix_len: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class _Piece:
    """A delimiter (no segment; one legal id) or a block of ids whose legal range is known at each place."""

    start: Tensor  # (n,) int64 lowest legal id
    stop: Tensor  # (n,) int64 one past the highest
    positions: Tensor  # (n, 3)
    segment: Segment | None = None  # relative to the piece
    span: tuple[int, int] = (0, 0)  # latent frames of a video block, columns of an audio block


def build(
    task: Task, sample: TokenSample, vocab: Vocabulary, layout: Layout, *, sound: bool = True, n_context: int = 1,
    block_size: int = 1,
) -> Sequence:  # fmt: skip
    """The whole training sequence of `task` for a clip.

    labels has the index of ids: labels[i] is the id at place i, wanted from what stands before it or its block. The
    prefix and the delimiters, which generation forces, carry IGNORE. A droppable input that `sample` lacks is left out;
    `sound=False` ends the sequence after the video. Raises InputError where the sample lacks a block or has other
    sizes than `layout`.
    """
    before, after = _pieces(task, sample, vocab, layout, sound, n_context, block_size)
    ids = torch.cat([_fill(p, sample) for p in before + after])
    prefix_len = sum(len(p.start) for p in before)
    forced = torch.cat([p.stop - p.start == 1 for p in before + after])
    forced[:prefix_len] = True
    positions = torch.cat([p.positions for p in before + after])
    return Sequence(ids, ids.masked_fill(forced, IGNORE), positions, prefix_len, _segments(before + after))


def prefix(
    task: Task, sample: TokenSample, vocab: Vocabulary, layout: Layout, n_context: int = 1
) -> tuple[Tensor, Tensor]:
    """ids (P,) and positions (P, 3) of the input part; `sample` needs only what the task takes as input."""
    before, _ = _pieces(task, sample, vocab, layout, True, n_context)
    return torch.cat([_fill(p, sample) for p in before]), torch.cat([p.positions for p in before])


def plan(
    task: Task, vocab: Vocabulary, layout: Layout, *, sound: bool = True, n_context: int = 1, block_size: int = 1,
    known: TokenSample | None = None,
) -> tuple[Plan, tuple[Segment, ...]]:  # fmt: skip
    """What may stand at each place of the output, and where its blocks lie, counted from the first output id.

    `known` holds the beginning of the output, latent frames (k, h, w) or audio columns (Q, k), which is not drawn anew.
    """
    from lm import Plan

    after = _output_pieces(task, vocab, layout, sound, n_context, block_size)
    start, stop, positions = (torch.cat([getattr(p, f) for p in after]) for f in ("start", "stop", "positions"))
    segments = _segments(after)
    for s in segments:
        given: Tensor | None = getattr(known, s.name, None)
        if given is None:
            continue
        axis = 0 if s.name == "video" else 1
        mark = torch.full(s.shape, -1)
        mark.narrow(axis, 0, given.shape[axis]).copy_(given)
        flat = (mark.T if s.time_major else mark).reshape(-1)
        place, here = s.start + (flat >= 0).nonzero()[:, 0], flat[flat >= 0]
        start[place] += here
        stop[place] = start[place] + 1
    return Plan(start=start, stop=stop, positions=positions), segments


def split(ids: Tensor, segments: tuple[Segment, ...], vocab: Vocabulary) -> dict[str, Tensor]:
    """Blocks of ids (..., L) as local ids (..., *shape), by segment name. Undoes `build`."""
    parts = {}
    for s in segments:
        block = ids[..., s.start : s.stop]
        if s.time_major:
            block = block.unflatten(-1, s.shape[::-1]).transpose(-1, -2)
        else:
            block = block.unflatten(-1, s.shape)
        offset = torch.tensor([vocab[name].start for name in s.ranges], device=ids.device)
        parts[s.name] = block - offset.view(-1, *[1] * (len(s.shape) - 1))
    return parts


def whole(task: Task, parts: Mapping[str, Tensor]) -> TokenSample:
    """The clip of `parts` (without batch axis): an input is put in front of the output that continues it."""
    found: dict[str, Tensor | None] = {"text": parts.get("text"), "condition": parts.get("condition")}
    for kind, axis in (("video", 0), ("audio", 1)):
        before, made = parts.get(f"{kind}_in"), parts.get(kind)
        block = task.output(kind)  # type: ignore[arg-type]
        if before is not None and made is not None and block is not None and block.part in CONTINUED:
            made = torch.cat([before, made], dim=axis)
        found[kind] = before if made is None else made
    return TokenSample(**found)


def _pieces(
    task: Task, sample: TokenSample, vocab: Vocabulary, layout: Layout, sound: bool, n_context: int, block_size: int = 1
) -> tuple[list[_Piece], list[_Piece]]:
    before = [_delimiter("<bos>", vocab), _delimiter(task.token, vocab)]
    for block in task.inputs:
        if block.droppable and getattr(sample, block.kind) is None:
            continue
        n_text = len(sample.text) if sample.text is not None else 0
        before += _delimited(block, "i", vocab, layout, n_context, n_text)
    return before, _output_pieces(task, vocab, layout, sound, n_context, block_size)


def _output_pieces(
    task: Task, vocab: Vocabulary, layout: Layout, sound: bool, n_context: int, block_size: int
) -> list[_Piece]:
    pieces: list[_Piece] = []
    whole_sequence = task.closed
    for block in task.outputs:
        if block.optional and not sound:
            whole_sequence = False  # the sequence with sound goes on here, so nothing may end it
            continue
        begin, media, end = _delimited(block, "o", vocab, layout, n_context)
        pieces += [_whole_blocks(*pair, block_size) for pair in ((begin, begin), (media, end), (end, end))]
    if not task.closed:
        pieces.pop()
    if whole_sequence:
        eos = _delimiter("<eos>", vocab, float(pieces[-1].positions[0, 0]))
        pieces.append(_whole_blocks(eos, eos, block_size))
    return pieces


def _whole_blocks(piece: _Piece, filler: _Piece, block_size: int) -> _Piece:
    """The piece, filled up with a delimiter to a multiple of `block_size`; the fillers stand at its last place."""
    missing = -len(piece.start) % block_size
    if not missing:
        return piece
    start = torch.cat([piece.start, filler.start.expand(missing)])
    stop = torch.cat([piece.stop, filler.stop.expand(missing)])
    positions = torch.cat([piece.positions, piece.positions[-1:].expand(missing, 3)])
    return replace(piece, start=start, stop=stop, positions=positions)


def _delimited(
    block: Block, way: str, vocab: Vocabulary, layout: Layout, n_context: int, n_text: int = 0
) -> list[_Piece]:
    """A block between its two delimiters, which stand at the time the block starts."""
    name = block.kind if way == "o" or block.kind == "text" else f"{block.kind}_in"
    frames = block.frames(layout.latent_frames, n_context)
    if block.kind == "video":
        piece = _video("condition" if block.condition else name, frames, vocab, layout)
    elif block.kind == "audio":
        columns = (layout.columns(frames[0]) if frames[0] else 0, layout.columns(frames[1]))
        piece = _audio(name, columns, vocab, layout)
    else:
        piece = _text(name, n_text, vocab)
    begin = float(piece.positions[0, 0]) if len(piece.positions) else 0.0
    letter = _LETTER[block.kind]
    return [_delimiter(f"<bo{letter}_{way}>", vocab, begin), piece, _delimiter(f"<eo{letter}_{way}>", vocab, begin)]


def _delimiter(name: str, vocab: Vocabulary, t: float = 0.0) -> _Piece:
    id_ = torch.tensor([vocab.special(name)])
    return _Piece(id_, id_ + 1, torch.tensor([[t, 0.0, 0.0]]))


def _text(name: str, n: int, vocab: Vocabulary) -> _Piece:
    positions = torch.zeros(n, 3)
    positions[:, 0] = torch.arange(n)
    r = vocab["text"]
    return _Piece(
        torch.full((n,), r.start), torch.full((n,), r.start + r.size), positions, Segment(name, 0, n, (n,), ("text",))
    )


def _video(name: str, frames: tuple[int, int], vocab: Vocabulary, layout: Layout) -> _Piece:
    """Ids in (t, h, w) order, so that each latent frame is complete before the next begins."""
    first, last = frames
    shape = (last - first, layout.height, layout.width)
    ticks = torch.arange(first, last) * layout.temporal_stride / layout.fps * layout.audio_rate
    rows, columns = torch.arange(layout.height).float(), torch.arange(layout.width).float()
    axes = torch.meshgrid(ticks.float(), rows, columns, indexing="ij")
    n, r = axes[0].numel(), vocab["visual"]
    return _Piece(
        torch.full((n,), r.start),
        torch.full((n,), r.start + r.size),
        torch.stack(axes, dim=-1).reshape(n, 3),
        Segment(name, 0, n, shape, ("visual",)),
        frames,
    )


def _audio(name: str, columns: tuple[int, int], vocab: Vocabulary, layout: Layout) -> _Piece:
    """One id range per level; level by level over the clip, or all levels of each column."""
    Q, F = layout.n_codebooks, columns[1] - columns[0]
    names = audio_ranges(layout)
    start = torch.tensor([vocab[n].start for n in names])[:, None].expand(Q, F)
    size = torch.tensor([vocab[n].size for n in names])[:, None].expand(Q, F)
    ticks = torch.arange(*columns).expand(Q, F)
    time_major = layout.audio_order == "time"
    start, size, ticks = ((x.T if time_major else x).reshape(-1) for x in (start, size, ticks))
    positions = torch.zeros(Q * F, 3)
    positions[:, 0] = ticks
    return _Piece(start, start + size, positions, Segment(name, 0, Q * F, (Q, F), names, time_major), columns)


def audio_ranges(layout: Layout) -> tuple[str, ...]:
    """Names of the id ranges of the audio levels."""
    return tuple(f"audio_{level}" for level in range(layout.n_codebooks))


def _fill(piece: _Piece, sample: TokenSample) -> Tensor:
    """The ids (n,) of a piece, taken from the sample."""
    s = piece.segment
    if s is None:
        return piece.start
    kind = s.name.removesuffix("_in")
    local: Tensor | None = getattr(sample, kind)
    if local is None:
        raise InputError(f"this task needs {kind} ids of shape {s.shape}, the sample has no {kind}")
    if kind == "audio":
        local = local[:, slice(*piece.span)]
    elif kind != "text":
        local = local[slice(*piece.span)]
    if tuple(local.shape) != s.shape:
        raise InputError(f"{kind} ids have shape {tuple(getattr(sample, kind).shape)}, the layout needs {s.shape}")
    local = (local.T if s.time_major else local).reshape(-1).to("cpu", torch.int64)
    n = len(local)
    ids = torch.cat([local + piece.start[:n], piece.start[n:]])
    if n and not (bool((local >= 0).all()) and bool((ids < piece.stop).all())):
        raise InputError(f"{kind} ids span [{int(local.min())}, {int(local.max())}], outside of their vocabulary range")
    return ids


def _segments(pieces: list[_Piece]) -> tuple[Segment, ...]:
    found, at = [], 0
    for p in pieces:
        if p.segment is not None:
            found.append(p.segment.shifted(at))
        at += len(p.start)
    return tuple(found)
