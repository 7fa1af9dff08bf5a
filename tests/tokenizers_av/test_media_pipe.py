"""A movie into a pipe: what is written is out at once and can be watched, and what came out is a whole file."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import av
import pytest
import torch

from tokenizers_av.clip import Clip, ClipWriter, MediaError, check_output, read_clip

ROOT = Path(__file__).parents[2]
WINDOW = 17  # frames
PER_FRAME = 2000  # samples


class Sink(io.RawIOBase):
    """A stream that cannot seek, and takes at most `limit` bytes at a time."""

    def __init__(self, limit: int = 10**9) -> None:
        self.limit, self.data = limit, bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.data += bytes(data[: self.limit])
        return min(self.limit, len(data))


def make_clip(n_frames=2 * WINDOW, side=32) -> Clip:
    """Waves of colour that wander, and a tone that rises."""
    t, y, x = torch.meshgrid(*(torch.arange(n) / n for n in (n_frames, side, side)), indexing="ij")
    waves = [torch.sin(6.28 * (a * x + b * y + 2 * t)) for a, b in ((1, 0), (0, 1), (1, 1))]
    time = torch.arange(n_frames * PER_FRAME) / 16000
    samples = 0.3 * torch.sin(2 * torch.pi * 300 * time * (1 + time / 4))
    return Clip((128 + 80 * torch.stack(waves, dim=-1)).round().to(torch.uint8), 8.0, samples)


def write_windows(writer, clip, order="together") -> list[int]:
    """Write window by window; returns how many bytes were out after each."""
    sizes = []
    for k in range(0, clip.n_frames, WINDOW):
        frames, samples = clip.frames[k : k + WINDOW], clip.samples[k * PER_FRAME : (k + WINDOW) * PER_FRAME]
        if order == "together":
            writer.write(frames, samples)
        elif order == "late":
            writer.write(frames)
            writer.write(samples=samples)
        else:
            writer.write(frames)
        sizes.append(len(writer.stream.data))
    return sizes


def packets(data, kind: str) -> list[tuple[float, int]]:
    """(time, place) of the packets of one stream, in the order of the file."""
    with av.open(io.BytesIO(bytes(data))) as file:
        stream = file.streams.get(**{kind: 0})
        found = [(float(p.pts * p.time_base), p.pos) for p in file.demux(stream) if p.size]
    return sorted(found, key=lambda p: p[1])


def pictures(data) -> torch.Tensor:
    with av.open(io.BytesIO(bytes(data))) as file:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)])


def boxes(data) -> list[tuple[str, int]]:
    """(kind, end) of the outer boxes of an mp4."""
    found, at = [], 0
    while at < len(data):
        kind = bytes(data[at + 4 : at + 8]).decode()
        at += int.from_bytes(data[at : at + 4], "big")
        found.append((kind, at))
    return found


@pytest.mark.parametrize("order", ["together", "late", "silent"])
def test_what_came_out_is_a_whole_file(tmp_path, order):
    clip, sink = make_clip(), Sink()
    with ClipWriter(sink, fps=8, sample_rate=None if order == "silent" else 16000) as writer:
        write_windows(writer, clip, order)
    assert not sink.closed and not list(tmp_path.iterdir())
    (tmp_path / "a.mp4").write_bytes(sink.data)
    again = read_clip(tmp_path / "a.mp4")
    assert (again.n_frames, again.fps) == (34, 8)
    error = (again.frames.float() - clip.frames.float()).square().mean().sqrt()
    assert error < 6, f"picture {error:.1f} of 255 off"
    late = read_clip(tmp_path / "a.mp4", start=3.0, n_frames=4)
    assert torch.equal(late.frames, again.frames[24:28])
    if order == "silent":
        assert again.samples is None
    else:
        assert len(again.samples) == len(clip.samples)
        noise = (again.samples - clip.samples).square().mean() / clip.samples.square().mean()
        assert noise < 0.01, f"sound {10 * noise.log10():.1f} dB off; a shift of one sample is -15 dB"


@pytest.mark.parametrize("order", ["together", "late", "silent"])
def test_a_window_is_out_when_write_returns(order):
    clip, sink = make_clip(), Sink()
    with ClipWriter(sink, fps=8, sample_rate=None if order == "silent" else 16000) as writer:
        sizes = write_windows(writer, clip, order)
    whole = pictures(sink.data)
    for n, size in enumerate(sizes, 1):
        cut = sink.data[:size]
        assert boxes(cut)[-1] == ("mdat", size), "the stream is not cut at a fragment's end"
        seen = pictures(cut)
        assert len(seen) == n * WINDOW - 1, f"{n * WINDOW - len(seen)} frames are held back"
        assert torch.equal(seen, whole[: len(seen)])
        if order != "silent":
            heard = packets(cut, "audio")[-1][0] + 1024 / 16000
            assert n * WINDOW / 8 - heard < 0.25, "seconds of sound are held back"


def test_pictures_do_not_wait_for_sound_after_its_beginning():
    clip, sink = make_clip(), Sink()
    with ClipWriter(sink, fps=8, sample_rate=16000) as writer:
        writer.write(clip.frames[:WINDOW])
        assert not sink.data
        writer.write(clip.frames[WINDOW:20], clip.samples[: 2 * PER_FRAME])
        writer.write(clip.frames[20:])
        n_seen = len(packets(sink.data, "video"))
    assert n_seen >= 34 - 2, f"{34 - n_seen} frames are held back"
    times = [time for time, _ in packets(sink.data, "video")]
    assert times == [k / 8 for k in range(34)]


def test_picture_and_sound_alternate():
    sink = Sink()
    with ClipWriter(sink, fps=8, sample_rate=16000) as writer:
        write_windows(writer, make_clip())
    ordered = sorted((place, time) for kind in ("video", "audio") for time, place in packets(sink.data, kind))
    latest, behind = 0.0, 0.0
    for _, time in ordered:
        latest = max(latest, time)
        behind = max(behind, latest - time)
    assert behind <= 0.25, f"a packet comes {behind:.3f} s after a later one"


def test_the_same_frames_give_the_same_bytes_however_they_are_taken():
    clip, sinks = make_clip(), [Sink(), Sink(), Sink(limit=100)]
    for sink in sinks:
        with ClipWriter(sink, fps=8, sample_rate=16000) as writer:
            write_windows(writer, clip)
    assert sinks[0].data == sinks[1].data == sinks[2].data


def test_a_pipe_is_played_while_it_is_written():
    reader, entrance = os.pipe()
    seen: list[float] = []
    first = threading.Event()

    def play() -> None:
        with os.fdopen(reader, "rb", buffering=0) as pipe, av.open(pipe, options={"probesize": "32"}) as file:
            for frame in file.decode(video=0):
                seen.append(frame.time)
                first.set()

    player = threading.Thread(target=play)
    player.start()
    clip = make_clip()
    with os.fdopen(entrance, "wb") as pipe:
        with ClipWriter(pipe, fps=8, sample_rate=16000) as writer:
            writer.write(clip.frames[:WINDOW], clip.samples[: WINDOW * PER_FRAME])
            played = first.wait(timeout=30)
            writer.write(clip.frames[WINDOW:], clip.samples[WINDOW * PER_FRAME :])
    player.join(timeout=30)
    assert played, "nothing could be seen before the second window was written"
    assert seen == [k / 8 for k in range(34)]


def test_standard_output_takes_a_movie(tmp_path, monkeypatch):
    clip, sink = make_clip(n_frames=WINDOW), Sink()
    monkeypatch.chdir(tmp_path)
    with ClipWriter(sink, fps=8, sample_rate=16000) as writer:
        writer.write(clip.frames, clip.samples)
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held))
    clip.save("-")
    assert held.getvalue() == sink.data and not list(tmp_path.iterdir())


def test_a_terminal_is_no_place_for_a_movie(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO()))
    for attempt in (check_output, ClipWriter):
        with pytest.raises(MediaError, match=r"^-: standard output is a terminal; pipe it into a player .*$"):
            attempt("-")
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(MediaError, match=r"^-: there is no standard output"):
        check_output("-")


def test_an_error_ends_the_stream_where_it_is():
    clip, sink = make_clip(), Sink()
    with pytest.raises(KeyError):
        with ClipWriter(sink, fps=8, sample_rate=16000) as writer:
            size = write_windows(writer, clip)[-1]
            raise KeyError
    assert len(sink.data) == size and len(pictures(sink.data)) == 33


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_stops_a_blocked_write_is_not_lost(stop):
    class Blocked(Sink):
        def write(self, data) -> int:
            raise stop

    clip = make_clip(n_frames=WINDOW)
    expected = MediaError if isinstance(stop, OSError) else stop
    with pytest.raises(expected, match=r"^-: writing failed \(No space .*\)$" if expected is MediaError else None):
        with ClipWriter(Blocked(), fps=8) as writer:
            writer.write(clip.frames)


def test_a_reader_that_goes_away_leaves_one_line():
    script = """
import sys, torch
from tokenizers_av.media_write import ClipWriter, MediaError
try:
    with ClipWriter("-", fps=8) as writer:
        while True:
            writer.write(torch.randint(0, 256, (4, 16, 16, 3)).to(torch.uint8))
except MediaError as error:
    print(error, file=sys.stderr)
    sys.exit(3)
"""
    command = [sys.executable, "-c", script]
    env = os.environ | {"PYTHONUNBUFFERED": ""}  # with its buffer standard output is harder to leave
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        begin = process.stdout.read(2000)
        process.stdout.close()
        complaint = process.stderr.read().decode()
    assert begin[4:8] == b"ftyp"
    assert (process.returncode, complaint) == (3, "-: writing failed (Broken pipe)\n")
