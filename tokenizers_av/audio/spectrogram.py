"""Log-mel pictures of sounds of any length, one above the other, drawn while the sound goes by."""
# Shapes: S sounds, N samples, M mel bands, K columns of the picture

from __future__ import annotations

import copy
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_av.audio.mel import hz_to_mel, mel_filters
from tokenizers_av.media_formats import MediaError, check_output, hidden_sibling, output_kind

if TYPE_CHECKING:
    from PIL import Image

MAX_COLUMNS = 1900  # when there are more, pairs are merged: a picture is at most so wide, and its margin
MIN_WIDTH = 760  # pixels; shorter sounds are stretched by a whole number, at most so often:
MAX_STRETCH = 8
N_MELS, BAND = 96, 2  # bands, and pixels of each
LEFT, TOP, BOTTOM, RIGHT = 54, 18, 18, 40  # pixels for labels
DECADES = 5.0  # from black, -100 dB, to white, a sine of amplitude one
SECONDS = tuple(  # from one label of the time axis to the next, whichever is far enough
    [m * 10.0**e for e in range(-3, 1) for m in (1, 2, 5)]
    + [n * unit for unit, counts in ((1, (10, 20, 30)), (60, (1, 2, 5, 10, 20, 30)), (3600, (1, 2, 4, 6, 12, 24, 96)))
       for n in counts]
)  # fmt: skip
LABEL_WIDTH = 70  # pixels that is
HERTZ = (125, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000)
# black, violet, red, yellow, white: brightness alone tells the level, too
COLOURS = ((0, 0, 0), (70, 20, 110), (190, 50, 90), (250, 160, 60), (255, 255, 255))


class Spectrogram:
    """Collects sounds of equal length piece by piece, then draws them; memory does not grow with their length.

    A column is the loudest of the 10 ms steps that it stands for, so that brief sounds stay visible in a long one.
    """

    def __init__(self, sample_rate: int, titles: Sequence[str] = ("original", "reconstruction")) -> None:
        self.sample_rate, self.titles = sample_rate, tuple(titles)
        self.hop = max(1, round(sample_rate / 100))
        self.n_fft = max(64, 2 ** round(6 + math.log2(sample_rate / 1000)))  # about 64 ms
        self.n_samples = 0
        self.merged = 1  # steps that a column stands for
        # (S, n) samples from half a window before the next step on; before the first there is silence
        self._waiting = torch.zeros(len(self.titles), self.n_fft // 2)
        self._columns = torch.zeros(len(self.titles), N_MELS, 0)  # amplitudes
        self._steps = torch.zeros(len(self.titles), N_MELS, 0)  # amplitudes, fewer than make a column

    @torch.no_grad()
    def add(self, *sounds: Tensor) -> None:
        """The next samples (N,) of every sound, any N >= 0; raises ValueError where the lengths differ."""
        if len(sounds) != len(self.titles) or len({x.shape for x in sounds}) != 1 or sounds[0].ndim != 1:
            shapes = ", ".join(str(tuple(x.shape)) for x in sounds)
            raise ValueError(f"samples of shapes {shapes}: expected (N,) for each of {len(self.titles)} sounds")
        for part in torch.stack([x.detach().float().cpu() for x in sounds]).split(10 * self.sample_rate, dim=1):
            self.n_samples += part.shape[1]
            self._waiting = torch.cat([self._waiting, part], dim=1)
            self._advance()

    def _advance(self) -> None:
        """Turn the samples that fill windows into columns."""
        if self._waiting.shape[1] < self.n_fft:
            return
        windows = self._waiting.unfold(1, self.n_fft, self.hop)  # (S, n, n_fft)
        self._waiting = self._waiting[:, windows.shape[1] * self.hop :].clone()
        hann = torch.hann_window(self.n_fft)
        magnitude = torch.fft.rfft(windows * hann).abs() * (2 / hann.sum())
        steps = (magnitude @ mel_filters(self.sample_rate, self.n_fft, N_MELS)).transpose(1, 2)
        self._steps = torch.cat([self._steps, steps], dim=2)
        while n := min(self._steps.shape[2] // self.merged, MAX_COLUMNS - self._columns.shape[2]):
            whole, self._steps = self._steps.tensor_split([n * self.merged], dim=2)
            self._columns = torch.cat([self._columns, whole.unflatten(2, (n, self.merged)).amax(3)], dim=2)
            if self._columns.shape[2] == MAX_COLUMNS:
                self._columns = self._columns.unflatten(2, (MAX_COLUMNS // 2, 2)).amax(3)
                self.merged *= 2

    def _decades(self) -> Tensor:
        """(S, M, K) log10 of the amplitudes of what has been added so far, with the silence that follows it."""
        end = copy.copy(self)  # nothing is changed in place
        end._waiting = F.pad(self._waiting, (0, self.n_fft // 2))
        end._advance()
        columns = end._columns
        if end._steps.shape[2]:
            columns = torch.cat([columns, end._steps.amax(2, keepdim=True)], dim=2)
        return columns.clamp(min=10**-DECADES).log10()

    def image(self) -> Image.Image:
        """The picture as it is now: at most about 2,000 pixels wide, time below, frequencies on the left."""
        from PIL import Image, ImageDraw

        decades = self._decades()
        stretch = min(MAX_STRETCH, max(1, MIN_WIDTH // decades.shape[2]))
        width, height = stretch * decades.shape[2], BAND * N_MELS
        sheet = Image.new("RGB", (LEFT + max(width, MIN_WIDTH // 2) + RIGHT, len(decades) * (TOP + height) + BOTTOM))
        pen = ImageDraw.Draw(sheet)
        for k, (title, picture) in enumerate(zip(self.titles, _coloured(decades), strict=True)):
            top = TOP + k * (TOP + height)
            panel = Image.fromarray(picture.numpy()).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(panel, (LEFT, top))
            pen.text((LEFT, top - TOP + 3), title, fill="white")
            for hertz, y in self._frequencies(height):
                pen.line((LEFT - 4, top + y, LEFT - 1, top + y), fill="white")
                name = f"{hertz // 1000} kHz" if hertz >= 1000 else f"{hertz} Hz"
                pen.text((LEFT - 6, top + y), name, fill="white", anchor="rm")
        for name, x in self._times(stretch, width):
            bottom = sheet.height - BOTTOM
            pen.line((LEFT + x, bottom, LEFT + x, bottom + 3), fill="white")
            pen.text((LEFT + x, bottom + 4), name, fill="white", anchor="ma")
        return sheet

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture as a png that is there whole or not at all. Raises MediaError for other names."""
        check_png(path)
        png = io.BytesIO()
        self.image().save(png, format="PNG")
        target = Path(path).absolute()
        temporary = hidden_sibling(target)
        try:
            temporary.write_bytes(png.getvalue())
            temporary.replace(target)
        except OSError as error:
            raise MediaError(f"{os.fspath(path)}: cannot be written ({error.strerror or error})") from None
        finally:
            temporary.unlink(missing_ok=True)

    def _frequencies(self, height: int) -> list[tuple[int, float]]:
        """Labels in hertz and where they stand, in pixels from the top of a panel."""
        nyquist = self.sample_rate / 2
        known = torch.tensor([h for h in HERTZ if h <= 0.95 * nyquist], dtype=torch.float64)
        # band m is centred at (m + 1) / (N_MELS + 1) of the scale
        band = hz_to_mel(known) / float(hz_to_mel(torch.tensor(nyquist).double())) * (N_MELS + 1) - 1
        places = (height - BAND * (band + 0.5)).round().tolist()
        kept: list[tuple[int, float]] = []
        for hertz, y in zip(known.int().tolist(), places, strict=True):
            if y < height and (not kept or kept[-1][1] - y >= 12):
                kept.append((hertz, y))
        return kept

    def _times(self, stretch: int, width: int) -> list[tuple[str, float]]:
        """Labels of the time axis and where they stand, in pixels from the left of a panel."""
        per_second = stretch * self.sample_rate / (self.hop * self.merged)
        step = next((s for s in SECONDS if s * per_second >= LABEL_WIDTH), SECONDS[-1])
        last = min(self.n_samples / self.sample_rate, width / per_second)
        return [(_clock(k * step, step), k * step * per_second) for k in range(int(last / step + 1e-6) + 1)]


def check_png(path: str | os.PathLike[str]) -> None:
    """Raise MediaError where no png could be written to `path`."""
    check_output(path)
    if output_kind(path) != "image":
        raise MediaError(f"{os.fspath(path)}: a spectrogram is one image; use a name that ends in .png")


def _coloured(decades: Tensor) -> Tensor:
    """(S, M, K) -> (S, M, K, 3) uint8, low bands below."""
    colours = torch.tensor(COLOURS, dtype=torch.float32)
    level = (decades.flip(1) / DECADES + 1).clamp(0, 1) * (len(colours) - 1)
    below = level.floor().long().clamp(max=len(colours) - 2)
    part = (level - below)[..., None]
    return (colours[below] * (1 - part) + colours[below + 1] * part).round().byte()


def _clock(seconds: float, step: float) -> str:
    """A moment as 0.25 s, as 2:30 or as 1:02:30, whichever suits the distance of the labels."""
    if step < 60:
        return f"{seconds:g} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    minutes = round(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"
