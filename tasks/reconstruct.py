"""Through the tokenizers and back: what a model can know of a clip, and how far that is from the clip."""
# Shapes: T frames, H W pixels, N samples, Q audio levels of which k are decoded, F audio columns

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tasks.codec import Codec
from tasks.source import Source
from tokenizers_av.audio import AudioTokenizer
from tokenizers_av.audio.metrics import SoundDistance
from tokenizers_av.clip import Clip

CEILING = 100.0  # dB, what equal frames count as


@dataclass(frozen=True)
class Reconstruction:
    """A piece of a clip at the model's rates, before and after: the frames of one latent frame, or samples."""

    original: Clip
    decoded: Clip
    ids: Tensor | None = None  # (1, h, w) of the frames
    sound_ids: Tensor | None = None  # (Q, F) of the audio columns that the samples complete
    of_levels: Mapping[int, Tensor] = field(default_factory=dict)  # samples (N,) decoded from the first k levels


def reconstructed(
    codec: Codec,
    source: Source,
    size: tuple[int, int] | None = None,
    levels: int | None = None,
    *,
    compare_levels: bool = False,
) -> Iterator[Reconstruction]:
    """Picture and sound in pieces, as soon as they are known; joined, the originals and the decoded are equally long.

    The whole picture is one clip to the tokenizer: only its very first frame is coded alone. It is resized to `size`
    (H, W), or to the model's. Sound is coded in whole columns and decoded from the first `levels` levels, or from all.
    With `compare_levels` it is decoded from each smaller number of levels, too.
    """
    fps, rate = codec.layout.fps, codec.sample_rate
    levels = codec.audio.n_codebooks if levels is None else levels
    picture = _PictureTrip(codec)
    sound = _SoundTrip(codec, range(1 if compare_levels else levels, levels + 1))

    def of_picture(frames: Tensor | None) -> Iterator[Reconstruction]:
        for ids, before, after in picture.push(frames):
            yield Reconstruction(Clip(before, fps, sample_rate=rate), Clip(after, fps, sample_rate=rate), ids)

    def of_sound(samples: Tensor, n: int | None = None) -> Iterator[Reconstruction]:
        ids, before, after = sound.push(samples)
        if len(before):
            after = {k: x[:n] for k, x in after.items()}
            yield Reconstruction(
                Clip(None, fps, before[:n], rate), Clip(None, fps, after[levels], rate), None, ids, after
            )

    for window in source.windows(sample_rate=rate, fps=fps, size=size or codec.size):
        if window.frames is not None:
            yield from of_picture(window.frames)
        if window.samples is not None:
            yield from of_sound(window.samples)
    if source.has_video:
        yield from of_picture(None)
    if n := len(sound.waiting):
        yield from of_sound(torch.zeros(-n % sound.hop), n)


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
    """Codes a sound piece by piece, with what the tokenizer remembers of the past."""

    def __init__(self, codec: Codec, levels: range) -> None:
        self.encode, self.hop = codec.audio_encoder(), codec.audio.hop_length
        self.decode = {k: codec.audio_decoder() for k in levels}
        self.waiting = torch.zeros(0)  # samples that do not fill a column yet

    def push(self, samples: Tensor) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """The next samples (N,) in; out come the ids (Q, F) of the columns they complete, the samples of these columns
        (M,), and their reconstructions (M,) from the first k levels, for each k.
        """
        ids = self.encode(samples)
        after = {k: decode(ids[:k]) for k, decode in self.decode.items()}
        whole, n = torch.cat([self.waiting, samples]), self.hop * ids.shape[1]
        before, self.waiting = whole[:n], whole[n:]
        return ids, before, after


class Distance:
    """Adds up what reconstruction loses and what it costs."""

    def __init__(self, codebook_size: int, audio: AudioTokenizer | None = None) -> None:
        self.codebook_size = codebook_size
        self.codes: set[int] = set()
        self.n_frames = self.n_pixels = self.n_ids = 0
        self.frame_psnr = 0.0
        self.audio = audio
        self.sound: dict[int, SoundDistance] = {}  # by number of levels
        self.sound_codes: Tensor | None = None  # (Q, codebook_size) whether they occur

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
        if r.original.samples is not None and r.sound_ids is not None and self.audio is not None:
            for k, samples in r.of_levels.items():
                self.sound.setdefault(k, SoundDistance(r.original.sample_rate)).add(samples, r.original.samples)
            if self.sound_codes is None:
                self.sound_codes = torch.zeros(len(r.sound_ids), self.audio.codebook_size, dtype=torch.bool)
            self.sound_codes.scatter_(1, r.sound_ids, True)

    @property
    def psnr(self) -> float | None:
        """Peak signal-to-noise ratio in dB, the mean over frames (equal ones count as 100); None without a picture."""
        return self.frame_psnr / self.n_frames if self.n_frames else None

    @property
    def bits_per_pixel(self) -> float | None:
        """Bits of all ids of the picture over its pixels; None without a picture."""
        return math.log2(self.codebook_size) * self.n_ids / self.n_pixels if self.n_pixels else None

    def kbps(self, levels: int) -> float:
        """Kilobits of the ids of a second of sound, with so many levels."""
        assert self.audio is not None
        return levels * self.audio.frame_rate * math.log2(self.audio.codebook_size) / 1000

    def figures(self) -> dict[str, str]:
        """All there is to say, to be printed. Ratios to silence do not exist and are left out."""
        figures = {}
        if self.n_frames:
            figures["frames"] = f"{self.n_frames}"
            figures["picture PSNR, mean over frames"] = f"{self.psnr:.2f} dB"
            figures["codes used"] = f"{len(self.codes)} of {self.codebook_size}"
            figures["bits per pixel"] = f"{self.bits_per_pixel:.4f}"
        if self.sound and self.sound_codes is not None:
            levels = max(self.sound)
            used = ", ".join(str(n) for n in self.sound_codes[:levels].sum(1).tolist())
            figures["sound seconds"] = f"{self.sound[levels].seconds:.3f}"
            figures |= {f"sound {name}": value for name, value in self._of_sound(levels).items()}
            figures["sound codes used, level by level"] = f"{used} of {self.sound_codes.shape[1]}"
            for k in sorted(self.sound) if len(self.sound) > 1 else ():
                name = f"sound with {k} level{'s' if k > 1 else ''}"
                figures[name] = ", ".join(f"{key} {value}" for key, value in self._of_sound(k).items())
        return figures

    def _of_sound(self, levels: int) -> dict[str, str]:
        distance = self.sound[levels]
        figures = {"kbit/s": f"{self.kbps(levels):.3g}", "mel distance": f"{distance.mel_distance:.3f} decades"}
        ratios = {"SI-SDR": distance.si_sdr, "SNR": distance.snr}
        return figures | {name: f"{value:.2f} dB" for name, value in ratios.items() if not math.isnan(value)}


def side_by_side(r: Reconstruction) -> Tensor:
    """Original on the left, decoded on the right: (T, H, 2W, 3) uint8."""
    assert r.original.frames is not None and r.decoded.frames is not None
    return torch.cat([r.original.frames, r.decoded.frames], dim=2)
