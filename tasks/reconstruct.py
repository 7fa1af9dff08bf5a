"""Through the tokenizers and back: what a model can know of a clip, and how far that is from the clip."""
# Shapes: T frames, H W pixels, N samples

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.codec import ENCODER_COLUMNS, Codec
from tasks.source import Source
from tokenizers_av.clip import Clip


@dataclass(frozen=True)
class Reconstruction:
    """A window of a clip at the model's size and rates, before and after."""

    original: Clip
    decoded: Clip


def reconstructed(codec: Codec, source: Source) -> Iterator[Reconstruction]:
    """Windows as long as the model's clips, each with its first frame coded alone; the sound runs through.

    Sound is coded in whole columns, so it may lag behind the picture by less than one; the last window makes up for it.
    """
    layout, rate, hop = codec.layout, codec.sample_rate, codec.audio.hop_length
    sound = _SoundTrip(codec)
    for window in source.windows(sample_rate=rate, fps=layout.fps, size=codec.size, seconds=layout.seconds):
        frames = None
        if window.frames is not None:
            frames = codec.decode_video(codec.encode_video(window.frames))[: len(window.frames)]
        before, after = sound.push(window.samples) if window.samples is not None else (None, None)
        if frames is not None or after is not None:
            yield Reconstruction(
                Clip(window.frames, layout.fps, before, rate), Clip(frames, layout.fps, after, rate)
            )
    if n := len(sound.waiting):
        before, after = sound.push(torch.zeros(-n % hop))
        yield Reconstruction(Clip(None, layout.fps, before[:n], rate), Clip(None, layout.fps, after[:n], rate))


class _SoundTrip:
    """Codes a sound piece by piece, with what came before at hand for the causal encoder and decoder."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.hop = codec, codec.audio.hop_length
        self.past = torch.zeros(0)
        self.columns: Tensor | None = None
        self.waiting = torch.zeros(0)  # samples that do not fill a column yet

    def push(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The next samples (N,) in; what is coded of them and before them, and its reconstruction, both (M,)."""
        whole = torch.cat([self.waiting, samples])
        n_columns = len(whole) // self.hop
        coded, self.waiting = whole[: n_columns * self.hop], whole[n_columns * self.hop :]
        if not n_columns:
            return coded, coded
        heard = torch.cat([self.past, coded])
        ids = self.codec.encode_audio(heard)[:, -n_columns:]
        decoded = self.codec.decode_audio(ids, self.columns)
        self.past = heard[-self.hop * ENCODER_COLUMNS :]
        self.columns = self.codec.carry(ids if self.columns is None else torch.cat([self.columns, ids], dim=1))
        return coded, decoded


class Distance:
    """Adds up the error of windows: PSNR of the picture over all pixels, signal-to-noise ratio of the sound, in dB."""

    def __init__(self) -> None:
        self.pixel_error = self.n_pixels = self.sound_error = self.sound_power = self.n_samples = 0.0

    def add(self, r: Reconstruction) -> None:
        if r.original.frames is not None and r.decoded.frames is not None:
            error = (r.original.frames.double() - r.decoded.frames.double()) / 255
            self.pixel_error += float(error.square().sum())
            self.n_pixels += error.numel()
        if r.original.samples is not None and r.decoded.samples is not None:
            error = r.original.samples.double() - r.decoded.samples.double()
            self.sound_error += float(error.square().sum())
            self.sound_power += float(r.original.samples.double().square().sum())
            self.n_samples += error.numel()

    @property
    def psnr(self) -> float | None:
        """Peak signal-to-noise ratio in dB; None without a picture."""
        if not self.n_pixels:
            return None
        return math.inf if self.pixel_error == 0 else -10 * math.log10(self.pixel_error / self.n_pixels)

    @property
    def snr(self) -> float | None:
        """Signal-to-noise ratio in dB; None without a sound, or where it is silence."""
        if not self.n_samples or self.sound_power == 0:
            return None
        return math.inf if self.sound_error == 0 else 10 * math.log10(self.sound_power / self.sound_error)


def side_by_side(r: Reconstruction) -> Tensor:
    """Original on the left, decoded on the right: (T, H, 2W, 3) uint8."""
    assert r.original.frames is not None and r.decoded.frames is not None
    return torch.cat([r.original.frames, r.decoded.frames], dim=2)
