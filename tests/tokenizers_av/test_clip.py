"""Reading and writing media: what goes in comes out, at the right time, in windows as whole, or not at all."""

import os
import random
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tokenizers_av import media_read
from tokenizers_av.clip import Clip, ClipReader, ClipWriter, MediaError, check_output, read_clip
from tokenizers_av.media_formats import is_numbered
from tokenizers_av.media_frames import RGB_TO_YCBCR, YCBCR_OFFSET, picture_of, stretch, to_yuv420
from tokenizers_av.media_sound import mono_chunks

MOVIES = ["mp4", "m4v", "mov", "mkv", "webm", "gif"]


def make_clip(n_frames=17, height=32, width=48, fps=8.0, sample_rate=16000, sound=True) -> Clip:
    """Waves of colour that wander, and a tone that rises, with one click in the middle."""
    t, y, x = torch.meshgrid(*(torch.arange(n) / n for n in (n_frames, height, width)), indexing="ij")
    waves = [torch.sin(6.28 * (a * x + b * y + 2 * t)) for a, b in ((1, 0), (0, 1), (1, 1))]
    frames = (128 + 80 * torch.stack(waves, dim=-1)).round().to(torch.uint8)
    time = torch.arange(round(n_frames / fps * sample_rate)) / sample_rate
    samples = 0.3 * torch.sin(2 * torch.pi * 300 * time * (1 + time / 4))
    samples[len(samples) // 2] = 0.9
    return Clip(frames, fps, samples if sound else None, sample_rate)


def psnr(a, b) -> float:
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean()))


def snr(a, b) -> float:
    return float(10 * torch.log10(b.square().mean() / (a - b).square().mean()))


def write_wav(path, channels, rate) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels.shape[0], 2, rate, 0, "NONE", ""))
        file.writeframes(np.rint(channels.T * 32767).astype("<i2").tobytes())


@pytest.mark.parametrize("suffix", MOVIES)
def test_movie_round_trip(tmp_path, suffix):
    clip = make_clip()
    path = tmp_path / f"a.{suffix}"
    clip.save(path)
    again = read_clip(path)
    assert again.n_frames == 17 and again.fps == 8 and again.seconds == 2.125
    quality = psnr(again.frames, clip.frames)
    assert quality > (30 if suffix == "gif" else 36), f"picture at {quality:.1f} dB"
    if suffix == "gif":
        assert again.samples is None
    else:
        assert len(again.samples) == 34000
        fidelity = snr(again.samples, clip.samples)  # a shift of one sample would fall below 15 dB
        assert fidelity > 20, f"sound at {fidelity:.1f} dB"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [*MOVIES, "wav"])
def test_same_clip_gives_the_same_bytes(tmp_path, suffix):
    clip = make_clip(n_frames=9)
    for name in ("a", "b"):
        clip.save(tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_colour_samples_lie_on_even_columns_between_two_rows():
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    planes = picture / 255 @ RGB_TO_YCBCR.T.astype(np.float64) + YCBCR_OFFSET
    wanted = [planes[..., 0].ravel()]
    for k in (1, 2):
        rows = (planes[0::2, :, k] + planes[1::2, :, k]) / 2  # (2, 6)
        columns = [rows[:, max(0, x - 1)] / 4 + rows[:, x] / 2 + rows[:, x + 1] / 4 for x in (0, 2, 4)]
        wanted.append(np.stack(columns, axis=1).ravel())
    assert np.abs(to_yuv420(picture).ravel() - np.concatenate(wanted)).max() < 0.51


def test_what_the_memory_held_before_does_not_matter(tmp_path):
    """An encoder that reads beyond its buffers gives other bytes once in 40 times, where freed blocks lie about."""
    rng, path, blocks, written = random.Random(0), tmp_path / "a.mp4", [], set()
    coarse = torch.rand(1, 3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(24, 16, 16), mode="trilinear")
    clip = Clip((smooth[0] * 255).byte().permute(1, 2, 3, 0), 8.0)
    for _ in range(80):
        for _ in range(50):
            blocks.append(rng.randbytes(int(2 ** rng.uniform(4, 20))))
            if len(blocks) > 60:
                blocks.pop(rng.randrange(60))
        clip.save(path)
        written.add(path.read_bytes())
    assert len(written) == 1


def test_mp4_plays_everywhere(tmp_path):
    make_clip(n_frames=3).save(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as file:
        video, audio = file.streams.video[0].codec_context, file.streams.audio[0].codec_context
        assert (video.name, video.pix_fmt, video.profile, audio.name) == ("h264", "yuv420p", "Main", "aac")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_odd_sizes_are_padded_to_even_ones(tmp_path):
    clip = make_clip(n_frames=2, height=33, width=47)
    clip.save(tmp_path / "a.mp4")
    again = read_clip(tmp_path / "a.mp4")
    assert (again.height, again.width) == (34, 48)
    assert psnr(again.frames[:, :33, :47], clip.frames) > 34


def test_png_and_png_sequence_are_lossless(tmp_path):
    clip = make_clip(n_frames=3)
    Clip(clip.frames[:1], 8.0).save(tmp_path / "a.png")
    assert torch.equal(read_clip(tmp_path / "a.png").frames, clip.frames[:1])
    for target, folder, name in (("seq/", "seq", "00002.png"), ("num/f%03d.png", "num", "f002.png")):
        clip.save(f"{tmp_path}/{target}")
        assert len(list((tmp_path / folder).glob("*.png"))) == 3
        assert torch.equal(read_clip(tmp_path / folder / name).frames[0], clip.frames[2])
        assert len(read_clip(tmp_path / folder / "sound.wav").samples) == len(clip.samples)
    with pytest.raises(MediaError, match="holds one frame"):
        clip.save(tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_wav_round_trip(tmp_path):
    clip = make_clip(height=8, width=8)
    clip.save(tmp_path / "a.wav")
    again = read_clip(tmp_path / "a.wav")
    assert again.frames is None and torch.allclose(again.samples, clip.samples, atol=2e-4)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_sound_alone_in_a_movie_file_keeps_its_time(tmp_path, suffix):
    samples = make_clip(height=8, width=8).samples
    Clip(None, 8.0, samples).save(tmp_path / f"a.{suffix}")
    again = read_clip(tmp_path / f"a.{suffix}")
    assert again.frames is None and 0 <= len(again.samples) - 34000 <= (0 if suffix == "mp4" else 1024)
    assert snr(again.samples[:34000], samples) > 20


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.wav"])
@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_windows_joined_are_the_whole(tmp_path, name, seconds):
    make_clip(n_frames=20, height=16, width=16).save(tmp_path / name)
    options = {"sample_rate": 11025, "fps": 10.0}
    whole = read_clip(tmp_path / name, **options)
    with ClipReader(tmp_path / name, **options) as reader:
        windows = list(reader.windows(seconds))
    assert len(windows) > 2
    assert torch.equal(torch.cat([w.samples for w in windows]), whole.samples)
    if whole.frames is not None:
        assert torch.equal(torch.cat([w.frames for w in windows]), whole.frames)
        assert windows[0].n_frames == round(10 * seconds)


def test_reading_is_lazy(tmp_path, monkeypatch):
    with ClipWriter(tmp_path / "long.mp4", fps=8, size=(16, 16), sample_rate=8000) as writer:
        for _ in range(60):
            writer.write(torch.zeros(8, 16, 16, 3, dtype=torch.uint8), torch.zeros(8000))
    decoded = []
    original = media_read._packets_decoded

    def counting(container, stream):
        for frame in original(container, stream):
            decoded.append(stream.type)
            yield frame

    monkeypatch.setattr(media_read, "_packets_decoded", counting)
    with ClipReader(tmp_path / "long.mp4") as reader:
        assert reader.seconds == pytest.approx(60, abs=0.1)
        window = next(reader.windows(1.0))
    assert (window.n_frames, len(window.samples)) == (8, 16000)
    assert decoded.count("video") < 60 and decoded.count("audio") < 60, "far more than one window was decoded"
    late = read_clip(tmp_path / "long.mp4", start=55.0, n_frames=4)
    assert late.n_frames == 4 and len(decoded) < 300, "reading late parts must not decode what comes before"


def test_start_cuts_the_same_pictures_and_sound(tmp_path):
    make_clip(n_frames=40).save(tmp_path / "a.mp4")
    whole, part = read_clip(tmp_path / "a.mp4"), read_clip(tmp_path / "a.mp4", start=2.5, n_frames=9)
    assert torch.equal(part.frames, whole.frames[20:29])
    assert snr(part.samples, whole.samples[40000:58000]) > 40
    assert read_clip(tmp_path / "a.mp4", seconds=1.5).n_frames == 12


def test_nearest_frame_of_a_variable_frame_rate(tmp_path):
    times = [0, 40, 80, 500, 520, 900, 1400]  # milliseconds
    with av.open(str(tmp_path / "v.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=1000)
        stream.width = stream.height = 16
        stream.pix_fmt = "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 30 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    clip = read_clip(tmp_path / "v.mkv", fps=10.0)
    shown = (clip.frames[:, 0, 0, 0] // 30).tolist()
    grid = [100 * k for k in range(len(shown))]
    assert shown == [min(range(len(times)), key=lambda i: abs(times[i] - time)) for time in grid]
    assert 14 <= clip.n_frames <= 15


def without_rate(data: bytes) -> bytes:
    """A matroska file whose DefaultDuration became a void element: as browsers write it."""
    at = data.index(b"\x23\xe3\x83")
    size = data[at + 3] & 0x7F
    return data[:at] + b"\xec" + bytes([0x80 | (size + 2)]) + bytes(size + 2) + data[at + 4 + size :]


def test_a_frame_rate_that_no_header_tells_is_that_of_the_time_stamps(tmp_path):
    path, times = tmp_path / "v.mkv", [0, 40, 70, 110, 140, 180, 210, 250, 270, 310, 340, 380]  # milliseconds
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    path.write_bytes(without_rate(path.read_bytes()))
    clip = read_clip(path)
    assert clip.fps == pytest.approx(11 / 0.38) and 11 <= clip.n_frames <= 13


def test_the_length_of_a_bare_stream_of_sound_is_not_guessed(tmp_path):
    """Silence takes fewer bits than noise, so the bit rate of the beginning does not tell how much follows."""
    with av.open(str(tmp_path / "a.aac"), "w", format="adts") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        samples = np.zeros((1, 48 * 1024), np.float32)
        samples[:, 24 * 1024 :] = np.random.default_rng(0).uniform(-0.5, 0.5, 24 * 1024)
        for k in range(48):
            frame = av.AudioFrame.from_ndarray(samples[:, 1024 * k : 1024 * (k + 1)], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * k
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with ClipReader(tmp_path / "a.aac") as reader:
        assert reader.seconds is None
    assert abs(read_clip(tmp_path / "a.aac").seconds - 3.1) < 0.2
    assert read_clip(tmp_path / "a.aac", start=2.0).samples.abs().max() > 0.1
    with pytest.raises(MediaError, match="beyond the end"):
        read_clip(tmp_path / "a.aac", start=9.0)


def test_other_rates_and_sizes(tmp_path):
    make_clip(n_frames=30, fps=30.0).save(tmp_path / "a.mp4")
    clip = read_clip(tmp_path / "a.mp4", fps=8, size=16)
    assert clip.frames.shape == (8, 16, 16, 3) and len(clip.samples) == 16000
    padded = read_clip(tmp_path / "a.mp4", size=(32, 32), fit="pad", n_frames=1).frames[0]  # from 32x48
    assert padded[:5].max() == 0 and padded[-5:].max() == 0 and padded[8:24].min() > 0
    cropped = read_clip(tmp_path / "a.mp4", size=32, n_frames=1).frames
    assert torch.equal(cropped, read_clip(tmp_path / "a.mp4", n_frames=1).frames[:, :, 8:40])


def test_frames_are_scaled_one_by_one_for_their_floats_are_large(monkeypatch):
    frames, scale, sizes = make_clip(n_frames=5).frames, torch.nn.functional.interpolate, []
    monkeypatch.setattr("torch.nn.functional.interpolate", lambda x, **o: sizes.append(len(x)) or scale(x, **o))
    assert stretch(frames, 20, 30).shape == (5, 20, 30, 3) and sizes == [1] * 5


def test_shrinking_does_not_alias(tmp_path):
    checker = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    Image.fromarray(checker.to(torch.uint8).numpy()).save(tmp_path / "a.png")
    small = read_clip(tmp_path / "a.png", size=16).frames.float()
    assert small.shape == (1, 16, 16, 3) and (small - 127.5).abs().max() < 12


def test_channels_are_mixed_without_clipping(tmp_path):
    tone = 0.9 * np.sin(np.arange(4800) / 20)
    write_wav(tmp_path / "both.wav", np.stack([tone, tone]), 16000)
    write_wav(tmp_path / "left.wav", np.stack([tone, 0 * tone]), 16000)
    expected = torch.from_numpy(tone).float()
    assert torch.allclose(read_clip(tmp_path / "both.wav").samples, expected, atol=1e-3)
    assert torch.allclose(read_clip(tmp_path / "left.wav").samples, expected / 2, atol=1e-3)


@pytest.mark.parametrize("n", [8, 16])
def test_any_number_of_channels_is_mixed(tmp_path, n):
    tone = 0.9 * np.sin(np.arange(4800) / 20)
    write_wav(tmp_path / "a.wav", np.stack([tone] * n), 16000)
    assert torch.allclose(read_clip(tmp_path / "a.wav").samples, torch.from_numpy(tone).float(), atol=1e-3)


def test_more_channels_than_can_be_mixed_are_an_error(tmp_path):
    write_wav(tmp_path / "a.wav", np.zeros((72, 4800)), 16000)
    with pytest.raises(MediaError, match=r"a\.wav: its sound cannot be read"):
        read_clip(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resampling_keeps_time_and_level(tmp_path, rate):
    write_wav(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)[None], rate)
    samples = read_clip(tmp_path / "a.wav").samples
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)
    assert abs(len(samples) - 16000) <= 1
    assert (samples[200:15800] - expected[200:15800]).abs().max() < 0.01


def write_greys(path, greys, **options):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for grey in greys:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), grey, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def greys_of(clip):
    return clip.frames.float().mean((1, 2, 3))


@pytest.mark.parametrize("bf", ["0", "3"])
def test_an_avi_has_no_times_and_keeps_all_its_frames(tmp_path, bf):
    greys = torch.arange(60) * 4
    write_greys(tmp_path / "a.avi", greys.tolist(), bf=bf, g="25")
    assert (greys_of(read_clip(tmp_path / "a.avi")) - greys).abs().max() < 2
    assert (greys_of(read_clip(tmp_path / "a.avi", start=1.6)) - greys[40:]).abs().max() < 2


def test_what_comes_after_the_clock_starts_again_is_read(tmp_path):
    for name, first in (("a.ts", 0), ("b.ts", 150)):
        write_greys(tmp_path / name, range(first, first + 50))
    (tmp_path / "both.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    expected = torch.tensor([*range(50), *range(150, 200)])
    assert (greys_of(read_clip(tmp_path / "both.ts")) - expected).abs().max() < 2


def test_sound_after_the_clock_starts_again_follows_what_was_before():
    frames = []
    for k in range(10):
        frames.append(av.AudioFrame.from_ndarray(np.full((1, 3200), k / 10, np.float32), "fltp", "mono"))
        frames[-1].sample_rate, frames[-1].time_base, frames[-1].pts = 16000, Fraction(1, 16000), k % 7 * 3200
    samples = np.concatenate(list(mono_chunks(frames, 16000, 0.0, 0.0)))
    assert np.allclose(samples, np.arange(10).repeat(3200) / 10, atol=1e-6)


@pytest.mark.parametrize("rows", [64, 720])
def test_transparency_changes_no_colours(rows):
    planes = torch.randint(16, 235, (rows * 3 // 2, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    opaque = av.VideoFrame.from_ndarray(planes.numpy(), format="yuv420p")
    clear = av.VideoFrame(64, rows, "yuva420p")
    for k, plane in enumerate(clear.planes):
        plane.update(bytes(opaque.planes[k]) if k < 3 else b"\xff" * plane.buffer_size)
    assert (picture_of(clear).int() - picture_of(opaque).int()).abs().max() <= 1


def test_an_image_of_another_format_than_the_known_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.ppm")  # as PostScript would be, for which Pillow starts a program
    (tmp_path / "a.ppm").rename(tmp_path / "a.png")
    with pytest.raises(MediaError, match="not a readable image"):
        read_clip(tmp_path / "a.png")


def test_turned_phone_video_is_shown_upright(tmp_path):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :32] = 255  # left half white
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=8)
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a display rotation")
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(90)
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")), *stream.encode(None)]:
            file.mux(packet)
    with av.open(str(tmp_path / "a.mp4")) as file:
        degrees = next(file.decode(video=0)).rotation
    assert abs(degrees) == 90
    frame = read_clip(tmp_path / "a.mp4").frames[0].float()
    assert frame.shape == (64, 32, 3)
    top, bottom = frame[:28].mean(), frame[36:].mean()
    assert (bottom > 240 and top < 15) if degrees == 90 else (top > 240 and bottom < 15)  # counter-clockwise by degrees


def test_a_file_that_is_no_image_is_known_before_it_is_decoded(tmp_path):
    (tmp_path / "text.png").write_text("no picture at all")
    with pytest.raises(MediaError, match="not a readable image"):
        ClipReader(tmp_path / "text.png")


def test_images_of_all_kinds(tmp_path):
    clear = np.zeros((4, 6, 4), np.uint8)
    clear[:, 3:] = [10, 20, 30, 255]
    Image.fromarray(clear).save(tmp_path / "a.png")
    clip = read_clip(tmp_path / "a.png")
    assert (clip.n_frames, clip.height, clip.width, clip.fps, clip.samples) == (1, 4, 6, 8.0, None)
    assert clip.frames[0, 0, 0].tolist() == [255] * 3 and clip.frames[0, 0, 5].tolist() == [10, 20, 30]
    Image.fromarray(np.full((4, 6), 77, np.uint8)).save(tmp_path / "grey.png")
    assert read_clip(tmp_path / "grey.png").frames.unique().tolist() == [77]
    Image.fromarray(np.full((4, 6), 257 * 77, np.uint16)).save(tmp_path / "grey16.png")
    assert read_clip(tmp_path / "grey16.png").frames.unique().tolist() == [77]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(np.zeros((16, 32, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_clip(tmp_path / "a.jpg").frames.shape == (1, 32, 16, 3)
    first, second = Image.fromarray(clear), Image.fromarray(clear)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert read_clip(tmp_path / "a.gif").frames[0, 0, 0].tolist() == [255] * 3


def test_unsuitable_files_are_one_clear_line(tmp_path):
    make_clip(n_frames=4).save(tmp_path / "good.mp4")
    make_clip(n_frames=4, sound=False).save(tmp_path / "silent.mp4")
    make_clip(n_frames=4).save(tmp_path / "sound.wav")
    good = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a film\n" * 50)
    (tmp_path / "text.txt").write_text("this is not a film\n" * 50)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "headless.mp4").write_bytes(good[good.index(b"mdat") :])
    (tmp_path / "torn.mp4").write_bytes(good[: good.index(b"moov") + 40])
    cases = [
        ("missing.mp4", {}, "no such file"),
        ("", {}, "is a folder"),
        ("empty.mp4", {}, "is empty"),
        ("text.mp4", {}, "not a readable media file"),
        ("text.txt", {}, "not a"),
        ("list.m3u8", {}, "not a"),
        ("text.png", {}, "not a readable image"),
        ("headless.mp4", {}, "not a readable media file"),
        ("torn.mp4", {}, "not a readable media file|could be decoded|neither"),
        ("sound.wav", {"need": "video"}, "has no picture"),
        ("silent.mp4", {"need": "audio"}, "has no sound"),
        ("good.mp4", {"seconds": 0}, "seconds=0: must be above 0"),
        ("good.mp4", {"seconds": -1.0}, "must be above 0"),
        ("good.mp4", {"start": -1.0}, "start=-1.0"),
        ("good.mp4", {"start": 7.0}, "beyond the end"),
        ("sound.wav", {"start": 7.0}, "beyond the end"),
        ("good.mp4", {"seconds": 1.0, "n_frames": 8}, "not both"),
    ]
    for name, options, message in cases:
        with pytest.raises(MediaError, match=message) as caught:
            read_clip(tmp_path / name, **options)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_a_file_that_breaks_off_gives_what_it_has(tmp_path):
    make_clip(n_frames=40).save(tmp_path / "a.mkv")
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "b.mkv").write_bytes(data[: len(data) // 2])
    clip = read_clip(tmp_path / "b.mkv")
    assert 5 < clip.n_frames < 39 and len(clip.samples) == round(clip.seconds * 16000)
    assert torch.equal(clip.frames[:4], read_clip(tmp_path / "a.mkv").frames[:4])


def test_names_that_look_like_addresses_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_clip(n_frames=2, height=8, width=8).save("http:a%1b ü.mp4")
    assert read_clip("http:a%1b ü.mp4").n_frames == 2


def test_writing_in_pieces_equals_writing_at_once(tmp_path):
    clip = make_clip(n_frames=12)
    clip.save(tmp_path / "whole.mkv")
    with ClipWriter(tmp_path / "pieces.mkv", fps=8, sample_rate=16000) as writer:
        writer.write(clip.frames[:5])
        writer.write(clip.frames[5:6], clip.samples[:1000])
        writer.write(samples=clip.samples[1000:])
        writer.write(clip.frames[6:])
    whole, pieces = read_clip(tmp_path / "whole.mkv"), read_clip(tmp_path / "pieces.mkv")
    assert torch.equal(whole.frames, pieces.frames) and torch.equal(whole.samples, pieces.samples)


@pytest.mark.parametrize("n_samples", [0, 5000, 30000])
def test_sound_is_as_long_as_the_picture(tmp_path, n_samples):
    with ClipWriter(tmp_path / "a.mp4", fps=8, sample_rate=16000) as writer:
        writer.write(make_clip(n_frames=8).frames, torch.full((n_samples,), 0.1))
    with av.open(str(tmp_path / "a.mp4")) as file:
        lengths = [float(stream.duration * stream.time_base) for stream in file.streams]
    assert lengths == pytest.approx([1.0, 1.0], abs=0.07)  # AAC counts in blocks of 64 ms
    assert len(read_clip(tmp_path / "a.mp4").samples) == 16000


def test_a_gif_that_is_too_fast_is_refused(tmp_path):
    with pytest.raises(MediaError, match="at most 100 frames a second, not 120"):
        ClipWriter(tmp_path / "a.gif", fps=120)
    ClipWriter(tmp_path / "a.mp4", fps=120)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.wav", "folder/"])
def test_an_error_leaves_nothing_behind(tmp_path, name):
    target = f"{tmp_path}/{name}"
    with pytest.raises(KeyboardInterrupt):
        with ClipWriter(target, fps=8, sample_rate=16000) as writer:
            writer.write(make_clip(n_frames=4).frames, make_clip(n_frames=4).samples)
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MediaError, match="nothing to write"):
        with ClipWriter(target, fps=8):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_older_file(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"older")
    with pytest.raises(MediaError, match="frames of"):
        with ClipWriter(tmp_path / "a.mp4", fps=8) as writer:
            writer.write(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
            writer.write(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert (tmp_path / "a.mp4").read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["a.wav", "a.mp4"])
def test_a_disk_that_is_full_to_the_end_leaves_one_error_and_nothing_else(tmp_path, name, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with pytest.raises(MediaError, match=r"writing failed \(No space left on device\)$") as caught:
        with ClipWriter(tmp_path / name, fps=8, sample_rate=16000) as writer:
            writer.write(make_clip(n_frames=1).frames, make_clip(n_frames=1).samples)
            for ending in ("finish", "abandon"):
                monkeypatch.setattr(type(writer._sink), ending, full)
    assert isinstance(caught.value, OSError) and not list(tmp_path.iterdir())


def test_what_an_encoder_refuses_is_one_line(tmp_path):
    with pytest.raises(MediaError, match=r"a\.mp4: writing failed \([^\n]+\)$") as caught:
        Clip(torch.zeros(1, 2, 16_390, 3, dtype=torch.uint8), 8.0).save(tmp_path / "a.mp4")
    assert isinstance(caught.value, OSError) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0.0, -1.0, 4e-4, float("nan"), float("inf")])
def test_a_rate_that_no_file_can_hold_is_told_at_once(tmp_path, fps):
    with pytest.raises(MediaError, match=r"must be at least 0\.001"):
        ClipWriter(tmp_path / "a.mp4", fps=fps)


def test_a_percent_sign_alone_makes_no_sequence():
    assert [n for n in ("%05d", "f%d", "my%20image", "my%20dog", "50%", "%s", "%d_%d") if is_numbered(f"{n}.png")] == [
        "%05d",
        "f%d",
    ]


def test_check_output_speaks_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for name, message in [
        ("a.xyz", r"unknown suffix '.xyz'; use one of .mp4 .* .wav"),
        ("a", "no suffix"),
        ("none/a.mp4", "does not exist"),
        ("full", "no suffix"),
        ("full/", "is not empty"),
        ("full/%05d.png", "is not empty"),
        (f"{'x' * 300}.mp4", "cannot be written"),
    ]:
        with pytest.raises(MediaError, match=message):
            check_output(f"{tmp_path}/{name}")
    for name in ("a.mp4", "a.WEBM", "new/", "new/%d.png", "a.png"):
        check_output(f"{tmp_path}/{name}")
    assert [file.name for file in tmp_path.iterdir()] == ["full"]

    def read_only(*args, **kwargs):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(os, "open", read_only)  # a read-only disk, which root meets as well
    with pytest.raises(MediaError, match="cannot write to the folder"):
        check_output(tmp_path / "a.mp4")


def test_a_clip_knows_its_shape():
    clip = make_clip(n_frames=4, height=16, width=24)
    assert (clip.n_frames, clip.height, clip.width, clip.seconds) == (4, 16, 24, 0.5)
    assert Clip(None, 8.0, torch.zeros(8000)).seconds == 0.5
    for wrong in ({"frames": None}, {"frames": torch.zeros(1, 3, 8, 8)}, {"samples": torch.zeros(1, 5)}, {"fps": 0.0}):
        with pytest.raises(MediaError):
            Clip(**{"frames": clip.frames, "fps": 8.0, "samples": None, **wrong})
