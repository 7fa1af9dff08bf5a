"""From decoded sound of any rate and channel layout to mono float32 samples of the rate asked for."""
# Shapes: C channels, N samples

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

RESTART_SECONDS = 1.0  # a jump back that is longer is a clock that starts again, as where streams were joined
GAP_SECONDS = 0.1  # a jump of the time stamps that is longer is silence; a shorter one is rounding
SILENCE_BLOCK = 1 << 16
# how loud each loudspeaker is in the mono mix; the low-frequency channel is left out, as in usual downmixes
WEIGHTS = {"FL": 1.0, "FR": 1.0, "FC": 1.0, "LFE": 0.0, "LFE2": 0.0}
OTHER_WEIGHT = math.sqrt(0.5)


def mono_weights(names: list[str]) -> np.ndarray:
    """Weights (C,) float32 of the channels in the mono mix; they sum to one, so that the mix never clips."""
    weights = np.array([WEIGHTS.get(name, OTHER_WEIGHT) for name in names], dtype=np.float32)
    if weights.sum() == 0:
        weights[:] = 1
    return weights / weights.sum()


class MonoResampler:
    """Resamples a run of audio frames to mono float32 at `sample_rate`; the first output lies on the first input."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.resampler: Any = None
        self.source: tuple[int, str] | None = None

    def push(self, frame: Any) -> Iterator[np.ndarray]:
        import av

        source = (frame.sample_rate, frame.layout.name)
        if source != self.source:  # the first frame, or a stream that changes its mind
            yield from self.flush()
            self.source = source
            # interleaved: of planes, PyAV reads beyond the eighth
            self.resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=self.sample_rate)
        frame.pts = None  # the clock is kept outside
        yield from map(self._mix, self.resampler.resample(frame))

    def flush(self) -> Iterator[np.ndarray]:
        """The samples still inside; the next push starts afresh."""
        if self.resampler is not None:
            for out in self.resampler.resample(None):
                yield self._mix(out)
        self.resampler, self.source = None, None

    @staticmethod
    def _mix(frame: Any) -> np.ndarray:
        names = [channel.name for channel in frame.layout.channels]
        return frame.to_ndarray().reshape(-1, len(names)) @ mono_weights(names)


def mono_chunks(frames: Iterable[Any], sample_rate: int, origin: float, start: float) -> Iterator[np.ndarray]:
    """Yield chunks (N,) float32 in [-1, 1] at `sample_rate`; the first sample lies `start` seconds after `origin`.

    Time stamps decide where sound lies: sound before the start is dropped, holes are filled with silence.
    """
    resampler = MonoResampler(sample_rate)
    emitted = 0  # samples given out, counted from `start`
    skip = 0  # samples of the current run to drop
    expected: float | None = None  # where the next frame should begin, in seconds from `origin`
    ahead = 0.0  # of a clock that has started again

    def keep(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal emitted, skip
        for chunk in chunks:
            dropped = min(skip, len(chunk))
            skip -= dropped
            if dropped < len(chunk):
                emitted += len(chunk) - dropped
                yield np.nan_to_num(chunk[dropped:]).clip(-1, 1)

    for frame in frames:
        time = expected if frame.time is None else frame.time - origin + ahead
        time = 0.0 if time is None else time
        if expected is not None and time < expected - RESTART_SECONDS:
            ahead, time = ahead + expected - time, expected
        if expected is None or abs(time - expected) > GAP_SECONDS:
            yield from keep(resampler.flush())
            place = round((time - start) * sample_rate)  # of this frame's first sample, counted from `start`
            skip = max(0, emitted - place)
            while emitted < place:
                silence = np.zeros(min(place - emitted, SILENCE_BLOCK), dtype=np.float32)
                emitted += len(silence)
                yield silence
            expected = time
        expected += frame.samples / frame.sample_rate
        yield from keep(resampler.push(frame))
    yield from keep(resampler.flush())
