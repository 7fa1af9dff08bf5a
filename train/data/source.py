"""What training reads: batches of frames, sound and captions by index, whatever lies behind them."""
# Shapes: B batch, T frames, H W height and width, N samples

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from train.data.playground.scene import Scene

SPLITS = ("train", "test")


@dataclass(frozen=True)
class MediaSpec:
    """Size and rate of the clips that are asked for; the defaults are those of the tiny model."""

    n_frames: int = 17
    size: int = 64  # height and width in pixels
    fps: float = 8.0
    sample_rate: int = 16000

    def __post_init__(self) -> None:
        if self.n_frames < 1 or self.size < 8 or self.fps <= 0 or self.sample_rate < 1:
            raise ValueError(f"{self}: need n_frames >= 1, size >= 8, fps > 0 and sample_rate >= 1")

    @property
    def seconds(self) -> float:
        return self.n_frames / self.fps

    @property
    def n_samples(self) -> int:
        return round(self.n_frames / self.fps * self.sample_rate)


@dataclass
class MediaBatch:
    video: Tensor | None  # (B, 3, T, H, W) float32 in [-1, 1]
    audio: Tensor | None  # (B, N) float32 in [-1, 1]
    captions: list[str] = field(default_factory=list)
    scenes: Sequence[Scene | None] | None = None  # the truth behind each clip, None where it is not known

    def to(self, device: Any) -> MediaBatch:
        video = None if self.video is None else self.video.to(device)
        audio = None if self.audio is None else self.audio.to(device)
        return MediaBatch(video, audio, self.captions, self.scenes)


@runtime_checkable
class Source(Protocol):
    """Anything that yields clips by index; any index >= 0 is valid."""

    def batch(
        self, indices: Sequence[int], spec: MediaSpec, *, video: bool = True, audio: bool = True
    ) -> MediaBatch: ...


def open_source(
    data: str | Path | Sequence[str | Path],
    split: str = "train",
    device: Any = "cpu",
    seed: int = 0,
    weights: Sequence[float] | None = None,
    augment: bool = False,
) -> Source:
    """Open "playground" (the built-in world), a folder of media files, a media file, or several of these as a Mixture.

    `weights` are the shares of several; without them media files are one source, which counts as often as it has files.
    `augment` crops and mirrors what comes from files at random, see FolderSource. Raises ValueError for anything else.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    names: list[Any] = [data] if isinstance(data, str | Path) else list(data)
    files = [name for name in names if Path(name).is_file()]
    if weights is None and len(files) > 1:  # as if they were a folder, of which some are held out
        folders = [name for name in names if name not in files]
        names = [*folders, files]
        weights = [1.0] * len(folders) + [float(len(files))]
    if len(names) != 1 or (weights is not None and len(weights) != 1):
        from train.data.mixture import Mixture, check_weights

        check_weights(weights, len(names))  # before folders are searched
        sources = [_open_one(name, split, device, seed, augment) for name in names]
        return Mixture(sources, weights, split, seed, device)
    return _open_one(names[0], split, device, seed, augment)


def _open_one(data: str | Path | list[str | Path], split: str, device: Any, seed: int, augment: bool) -> Source:
    if str(data) == "playground":
        from train.data.playground import Playground

        return Playground(split=split, seed=seed, device=device)
    if not isinstance(data, list) and not Path(data).exists():
        raise ValueError(f"data={str(data)!r}: no such folder or file; give media files, or 'playground'")
    from train.data.folder import FolderSource

    return FolderSource(data, split=split, seed=seed, augment=augment)
