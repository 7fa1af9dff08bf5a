"""Pictures of sounds: the same however they are cut, never wide, labelled where things are, whole or not at all."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tokenizers_av.audio import spectrogram
from tokenizers_av.audio.mel import log_mel
from tokenizers_av.audio.spectrogram import MAX_COLUMNS, N_MELS, Spectrogram
from tokenizers_av.media_formats import MediaError

RATE = 16000


def tone(hertz: float, seconds: float, rate: int = RATE) -> Tensor:
    return 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)


def test_a_short_sound_is_its_log_mel() -> None:
    x = tone(440, 1.003)
    sheet = Spectrogram(RATE, ["it"])
    for part in x.split(777):
        sheet.add(part)
    expected = log_mel(x[None], RATE, 1024, 160, N_MELS)
    assert sheet._decades().shape == expected.shape
    assert (sheet._decades() - expected).abs().max() < 1e-3


@pytest.mark.parametrize("sizes", [37, 5000])
def test_pieces_make_the_picture_of_the_whole(sizes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrogram, "MAX_COLUMNS", 16)  # so that columns are merged several times
    torch.manual_seed(0)
    pair = 0.1 * torch.randn(2, 12001)
    whole, parts = Spectrogram(RATE), Spectrogram(RATE)
    whole.add(*pair)
    for part in pair.split(sizes, dim=1):
        parts.add(*part)
    assert whole.merged == parts.merged == 8
    columns = whole._decades()
    assert torch.allclose(columns, parts._decades(), atol=1e-5)
    steps = log_mel(pair, RATE, 1024, 160, N_MELS)  # (2, M, 76)
    expected = torch.stack([s.amax(2) for s in steps.split(8, dim=2)], dim=2)
    assert columns.shape == expected.shape and (columns - expected).abs().max() < 1e-3


def test_memory_and_width_stay_bounded() -> None:
    sheet, minute = Spectrogram(RATE), torch.zeros(RATE * 60)
    for k in range(8):
        sheet.add(minute + (tone(1000, 60) if k == 4 else 0), minute)
    assert sheet.n_samples == 8 * 60 * RATE and MAX_COLUMNS // 2 <= sheet._columns.shape[2] < MAX_COLUMNS
    assert sheet._waiting.shape[1] < 2 * sheet.n_fft and sheet._steps.shape[2] < sheet.merged
    loud = (sheet._decades()[0].amax(0) > -1).nonzero()[:, 0].float() * sheet.merged * sheet.hop / RATE
    assert loud[0] == pytest.approx(4 * 60, abs=1) and loud[-1] == pytest.approx(5 * 60, abs=1)
    assert sheet.image().width <= 2000
    names = [name for name, _ in sheet._times(1, sheet._columns.shape[2])]
    assert names[:2] == ["0 s", "30 s"]


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_tone_is_bright_at_its_label_and_only_where_it_sounds(rate: int) -> None:
    silence = torch.zeros(rate)
    sheet = Spectrogram(rate, ["it", "nothing"])
    sheet.add(torch.cat([silence, tone(1000, 1, rate)]), torch.zeros(2 * rate))
    image = sheet.image().convert("L")
    height = spectrogram.BAND * N_MELS
    y = next(y for hertz, y in sheet._frequencies(height) if hertz == 1000)
    (x,) = [x for name, x in sheet._times(760 // 201, 3 * 201) if name == "1 s"]
    left, top = spectrogram.LEFT, spectrogram.TOP
    before, after = (image.getpixel((left + x + d, top + y)) for d in (-20, 20))
    assert before < 20 and after > 150, (before, after)
    column = [image.getpixel((left + x + 60, top + row)) for row in range(height)]
    assert abs(max(range(height), key=column.__getitem__) - y) <= 2 * spectrogram.BAND
    below = image.crop((left, 2 * top + height, left + 603, 2 * top + 2 * height))
    assert below.getextrema() == (0, 0)


@pytest.mark.parametrize("n", [0, 1, 100])
def test_next_to_nothing_can_be_drawn(n: int) -> None:
    sheet = Spectrogram(8000)
    sheet.add(torch.zeros(n), torch.zeros(n))
    assert sheet.image().width > 100


def test_sounds_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\), \(4,\): expected \(N,\) for each of 2"):
        Spectrogram(RATE).add(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="expected"):
        Spectrogram(RATE).add(torch.zeros(3))


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = Spectrogram(RATE)
    for name in ("x.jpg", "x", "x%03d.png", "none/x.png"):
        with pytest.raises(MediaError):
            sheet.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    sheet.save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == sheet.image().size
    old = (tmp_path / "x.png").read_bytes()

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MediaError, match="No space left"):
        sheet.save(tmp_path / "x.png")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"] and (tmp_path / "x.png").read_bytes() == old
