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

CEILING = 100.0  # dB, what equal frames count as


@dataclass(frozen=True)
class Reconstruction:
    """A piece of a clip at the model's rates, before and after: the frames of one latent frame, or samples."""

    original: Clip
    decoded: Clip
    ids: Tensor | None = None  # (1, h, w) of the frames


def reconstructed(codec: Codec, source: Source, size: tuple[int, int] | None = None) -> Iterator[Reconstruction]:
    """Picture and sound in pieces, as soon as they are known; joined, the originals and the decoded are equally long.

    The whole picture is one clip to the tokenizer: only its very first frame is coded alone. It is resized to `size`
    (H, W), or to the model's. Sound is coded in whole columns.
    """
    fps, rate = codec.layout.fps, codec.sample_rate
    picture, sound = _PictureTrip(codec), _SoundTrip(codec)

    def of_picture(frames: Tensor | None) -> Iterator[Reconstruction]:
        for ids, before, after in picture.push(frames):
            yield Reconstruction(Clip(before, fps, sample_rate=rate), Clip(after, fps, sample_rate=rate), ids)

    def of_sound(before: Tensor, after: Tensor) -> Iterator[Reconstruction]:
        if len(before):
            yield Reconstruction(Clip(None, fps, before, rate), Clip(None, fps, after, rate))

    for window in source.windows(sample_rate=rate, fps=fps, size=size or codec.size):
        if window.frames is not None:
            yield from of_picture(window.frames)
        if window.samples is not None:
            yield from of_sound(*sound.push(window.samples))
    if source.has_video:
        yield from of_picture(None)
    if n := len(sound.waiting):
        before, after = sound.push(torch.zeros(-n % sound.hop))
        yield from of_sound(before[:n], after[:n])


class _PictureTrip:
    """Codes a picture piece by piece, a latent frame at a time, with what the tokenizer remembers of the past."""

    def __init__(self, codec: Codec) -> None:
        self.encode, self.decode = codec.video_encoder(), codec.video_decoder()
        self.stride = codec.layout.temporal_stride
        self.waiting: list[Tensor] = []  # frames (H, W, 3) that do not fill a latent frame yet

    def push(self, frames: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The next frames (T, H, W, 3), or None at the end, in; out come, for each latent frame they complete, its ids
        (1, h, w) and its frames before and after, both (n, H, W, 3) with n from 1 to the stride.
        """
        for chunk in (None,) if frames is None else frames.split(self.stride):
            self.waiting += [] if chunk is None else list(chunk)
            for ids in self.encode(chunk):
                after = self.decode(ids)
                before, self.waiting = torch.stack(self.waiting[: len(after)]), self.waiting[len(after) :]
                n, height, width = before.shape[:3]  # the tokenizer fills clips and pictures up
                yield ids, before, after[:n, :height, :width]


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
    """Adds up what reconstruction loses and what it costs."""

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self.codes: set[int] = set()
        self.n_frames = self.n_pixels = self.n_ids = 0
        self.frame_psnr = self.sound_error = self.sound_power = 0.0

    def add(self, r: Reconstruction) -> None:
        if r.original.frames is not None and r.decoded.frames is not None:
            for before, after in zip(r.original.frames, r.decoded.frames, strict=True):
                mse = float(((before.double() - after.double()) / 255).square().mean())
                self.frame_psnr += -10 * math.log10(max(mse, 10 ** (-CEILING / 10)))
                self.n_frames += 1
                self.n_pixels += before.shape[0] * before.shape[1]
        if r.ids is not None:
            self.codes.update(r.ids.unique().tolist())
            self.n_ids += r.ids.numel()
        if r.original.samples is not None and r.decoded.samples is not None:
            error = r.original.samples.double() - r.decoded.samples.double()
            self.sound_error += float(error.square().sum())
            self.sound_power += float(r.original.samples.double().square().sum())

    @property
    def psnr(self) -> float | None:
        """Peak signal-to-noise ratio in dB, the mean over frames (equal ones count as 100); None without a picture."""
        return self.frame_psnr / self.n_frames if self.n_frames else None

    @property
    def bits_per_pixel(self) -> float | None:
        """Bits of all ids of the picture over its pixels; None without a picture."""
        return math.log2(self.codebook_size) * self.n_ids / self.n_pixels if self.n_pixels else None

    @property
    def snr(self) -> float | None:
        """Signal-to-noise ratio of the sound in dB; None without a sound, or where it is silence."""
        if self.sound_power == 0:
            return None
        return math.inf if self.sound_error == 0 else 10 * math.log10(self.sound_power / self.sound_error)

    def figures(self) -> dict[str, str]:
        """All there is to say, to be printed."""
        figures = {}
        if self.n_frames:
            figures["frames"] = f"{self.n_frames}"
            figures["picture PSNR, mean over frames"] = f"{self.psnr:.2f} dB"
            figures["codes used"] = f"{len(self.codes)} of {self.codebook_size}"
            figures["bits per pixel"] = f"{self.bits_per_pixel:.4f}"
        if self.snr is not None:
            figures["sound SNR"] = f"{self.snr:.2f} dB"
        return figures


def side_by_side(r: Reconstruction) -> Tensor:
    """Original on the left, decoded on the right: (T, H, 2W, 3) uint8."""
    assert r.original.frames is not None and r.decoded.frames is not None
    return torch.cat([r.original.frames, r.decoded.frames], dim=2)
