"""Long videos: no window is drawn or coded twice, a story is told in time, a killed run goes on as if nothing was."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

from tasks import InputError
from tasks.journal import Journal
from tasks.long_video import Ending, Past, Track, n_carried, next_row, steps
from tasks.sequence import TokenSample
from tasks.source import Source
from tasks.story import Story, parse_prompt
from tasks.stream import join
from tokenizers_av.clip import Clip, ClipWriter, MediaError, read_clip
from tokenizers_av.media_frames import stretch


def test_windows_carry_ids_and_nothing_is_coded_again(poet, clip, monkeypatch):
    """The frames are those of one decoding of all ids in a row."""
    given, drawn = [], []
    blocks = type(poet.generator).blocks

    def watched(self, task, sample, *args, **options):
        given.append(sample)
        parts = list(blocks(self, task, sample, *args, **options))
        drawn.append(next(p.video for p in reversed(parts) if p.video is not None))
        return iter(parts)

    monkeypatch.setattr(type(poet.generator), "blocks", watched)
    made = poet.extend(clip, 4.0, "a red ball")
    k = n_carried(poet.config.layout)
    assert len(given) > 3
    for before, sample in zip(drawn, given[1:]):
        assert torch.equal(sample.video, before[-k:])
    ids = torch.cat([given[0].video, *(d[k:] for d in drawn)])
    n_given = 1 + 4 * (k - 1)
    decoded = stretch(poet.codec.decode_video(ids), *made.frames.shape[1:3])
    assert torch.equal(made.frames[18:], decoded[n_given:][:32])


def test_sound_is_carried_in_step_with_the_picture(poet, clip, monkeypatch):
    layout, given, drawn = poet.config.layout, [], []
    blocks = type(poet.generator).blocks

    def watched(self, task, sample, *args, **options):
        given.append(sample)
        parts = list(blocks(self, task, sample, *args, **options))
        drawn.append(next(p.audio for p in parts if p.audio is not None))
        return iter(parts)

    monkeypatch.setattr(type(poet.generator), "blocks", watched)
    made = poet.extend(clip, 4.0)
    n = layout.columns(n_carried(layout))
    assert all(s.audio.shape[1] == n for s in given) and len(made.samples) == made.n_frames * 2000
    for before, made_then, after in zip(given, drawn, given[1:]):
        assert torch.equal(torch.cat([before.audio, made_then], dim=1)[:, -n:], after.audio)


def test_a_longer_video_begins_like_a_shorter_one(poet):
    short, long = (poet.text_to_video("a red ball", seconds=s, seed=1) for s in (2.0, 3.5))
    assert torch.equal(long.frames[:16], short.frames) and torch.equal(long.samples[:30000], short.samples[:30000])


def test_without_sound_the_picture_is_continued_alone(poet, clip):
    assert next_row(True).input("audio") is not None and next_row(False).input("audio") is None
    silent = poet.extend(clip, 1.0, sound=False)
    assert silent.samples is None and silent.n_frames == 18 + 8


def test_missing_sound_of_the_past_is_silence(poet):
    past = Past.begin(poet.codec, sound=True)
    layout = poet.config.layout
    past.add_video(torch.zeros(1, layout.height, layout.width, dtype=torch.int64))
    n = layout.columns(1)
    assert past.context(1).audio.shape == (layout.n_codebooks, n)
    past.add_audio(torch.ones(layout.n_codebooks, 2, dtype=torch.int64))
    assert past.context(1).audio.shape == (layout.n_codebooks, n) and bool((past.context(1).audio[:, -2:] == 1).all())


@pytest.mark.parametrize(("n", "kept"), [(1, 1), (4, 1), (5, 5), (9, 5)])
def test_the_end_of_a_clip_is_its_last_whole_latent_frames(poet, n, kept):
    frames = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(-1, 16, 16, 3)
    samples = torch.linspace(-1, 1, 2000 * n)
    end, clip = Ending(poet.codec), Clip(frames, 8.0, samples, 16000)
    whole = join(end.read(Source(clip), Track(poet.codec)))
    assert torch.equal(whole.frames, frames) and torch.equal(whole.samples, samples)
    assert torch.equal(end.frames, frames[n - kept :]) and torch.equal(end.samples, samples)
    assert poet.extend(clip, 0.5).n_frames == n + 4


@pytest.mark.parametrize("kills", [1, 3])
def test_a_killed_run_goes_on_to_the_same_file(poet, clip, tmp_path, monkeypatch, kills):
    whole = tmp_path / "whole.mp4"
    poet.extend(clip, 5.0, ["a red ball", "a cube"], out=whole, seed=5)
    out, blocks, n_drawn = tmp_path / "x.mp4", type(poet.generator).blocks, []

    def mortal(self, *args, **options):
        n_drawn.append(1)
        if len(n_drawn) % 3 == 0 and len(n_drawn) <= 3 * kills:
            raise KeyboardInterrupt
        return blocks(self, *args, **options)

    monkeypatch.setattr(type(poet.generator), "blocks", mortal)
    for _ in range(kills):
        with pytest.raises(KeyboardInterrupt):
            poet.extend(clip, 5.0, ["a red ball", "a cube"], out=out, seed=5)
        assert not out.exists() and len(list(tmp_path.glob(".x.mp4.windows"))) == 1
    poet.extend(clip, 5.0, ["a red ball", "a cube"], out=out, seed=5)
    assert out.read_bytes() == whole.read_bytes()
    assert len(n_drawn) == len(list(steps(poet.config.layout, 2, 40))) + kills  # none was drawn twice
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.mp4", "x.mp4"]


MADE = TokenSample(video=torch.arange(8).view(2, 2, 2), audio=torch.arange(4).view(2, 2))


def begun(folder: Path, request: dict, part: str | None = None) -> Journal:
    """A journal after its first window was asked for."""
    journal = Journal(folder / "a.mp4", request, None if part is None else folder / part)
    journal.read(1)
    return journal


def test_a_journal_is_read_on_and_that_of_another_request_is_begun_anew(tmp_path):
    journal = begun(tmp_path, {"seed": 1})
    for window in (1, 2):
        journal.write(window, MADE)
    journal.close(done=False)
    with open(journal.path, "a") as file:
        file.write('{"video": [[[1')  # cut off
    again = Journal(tmp_path / "a.mp4", {"seed": 1})
    assert again.n_known == 0
    video, audio = again.read(1)
    assert torch.equal(video.video, MADE.video) and torch.equal(audio.audio, MADE.audio)
    assert again.n_known == 2 and again.read(2) is not None and again.read(3) is None
    again.write(2, MADE)  # known
    again.write(3, MADE)
    again.close(done=False)
    third = begun(tmp_path, {"seed": 1})
    assert third.n_known == 3
    third.close(done=False)
    Journal(tmp_path / "a.mp4", {"seed": 2}).close(done=False)  # never asked for a window
    assert third.path.exists()
    other = begun(tmp_path, {"seed": 2})
    assert other.n_known == 0 and other.read(1) is None
    other.close(done=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["nothing of ours", '{"request": "5e', '["request"]\n', '{"request": KEY, "part": null}']
)
def test_a_journal_with_a_damaged_head_is_begun_anew(tmp_path, text):
    journal = Journal(tmp_path / "a.mp4", {})
    journal.path.write_text(text.replace("KEY", json.dumps(journal.key)))
    assert journal.read(1) is None and journal.n_known == 0
    journal.write(1, MADE)
    journal.close(done=False)
    again = begun(tmp_path, {})
    assert again.n_known == 1
    again.close(done=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("request_of_next", [{"seed": 1}, {"seed": 2}])
def test_what_a_killed_run_left_half_written_is_removed(tmp_path, request_of_next):
    ours, foreign = tmp_path / ".avpoet-1.part", tmp_path / "a.part"
    for path in (ours, foreign):
        path.write_bytes(b"half a file")
        killed = begun(tmp_path, {"seed": 1}, path.name)
        killed.write(1, MADE)
        killed.close(done=False)
        begun(tmp_path, request_of_next, ".avpoet-2.part").close(done=True)
    assert list(tmp_path.iterdir()) == [foreign]


def test_what_a_run_left_that_went_on_and_was_killed_again_is_removed_for_another_request_too(tmp_path):
    for name in (".avpoet-1.part", ".avpoet-2.part"):
        killed = begun(tmp_path, {"seed": 1}, name)
        killed.part.write_bytes(b"half a file")
        killed.write(killed.n_known + 1, MADE)
        killed.close(done=False)
    begun(tmp_path, {"seed": 2}, ".avpoet-3.part").close(done=True)
    assert not list(tmp_path.iterdir())


def test_the_journal_knows_the_unfinished_file_before_there_is_one(poet, clip, tmp_path, monkeypatch):
    seen, write = [], ClipWriter.write

    def spied(self, *args):
        if self.n_frames == 0:
            seen.append(json.loads((tmp_path / ".x.mp4.windows").read_text())["part"] == self.temporary.name)
        write(self, *args)

    monkeypatch.setattr(ClipWriter, "write", spied)
    poet.extend(clip, 0.5, out=tmp_path / "x.mp4")
    assert seen == [True]


@pytest.mark.parametrize(("error", "free"), [(BlockingIOError(11, "busy"), False), (OSError(95, "no locks"), True)])
def test_a_file_system_without_locks_is_none_that_is_taken(tmp_path, monkeypatch, error, free):
    def refuse(*args):
        raise error

    monkeypatch.setattr("fcntl.flock", refuse)
    with contextlib.nullcontext() if free else pytest.raises(InputError, match="another run"):
        begun(tmp_path, {"seed": 1}).close(done=True)


def test_sound_alone_of_a_video_without_sound_is_refused_at_once(poet, clip, tmp_path):
    with pytest.raises(InputError, match=r"x\.wav: holds only sound, and none is made"):
        poet.extend(clip, 1.0, out=tmp_path / "x.wav", sound=False)


def test_a_run_beside_another_is_refused_and_leaves_its_journal_whole(poet, clip, tmp_path):
    first = begun(tmp_path, {"seed": 1}, ".avpoet-1.part")
    first.write(1, MADE)
    first.part.write_bytes(b"half a file")
    before = first.path.read_bytes()
    with pytest.raises(InputError, match="another run is making this video"):
        poet.extend(clip, 1.0, out=tmp_path / "a.mp4")
    assert first.path.read_bytes() == before and first.part.exists()
    assert {p.name for p in tmp_path.iterdir()} == {first.path.name, first.part.name}
    first.write(2, MADE)
    first.close(done=False)
    again = begun(tmp_path, {"seed": 1}, ".avpoet-1.part")
    assert again.n_known == 2
    again.close(done=True)


def test_a_folder_of_pictures_goes_on_too(poet, clip, tmp_path, killed_at):
    out, drawn = tmp_path / "shots", killed_at(poet, 2)
    with pytest.raises(KeyboardInterrupt):
        poet.extend(clip, 2.0, out=out / "%05d.png", sound=False)
    poet.extend(clip, 2.0, out=out / "%05d.png", sound=False)
    assert len(list(out.iterdir())) == 18 + 16 and list(tmp_path.iterdir()) == [out]
    assert len(drawn) == len(list(steps(poet.config.layout, 2, 16))) + 1


def test_wrong_input_leaves_the_journal_of_a_killed_run(poet, clip, tmp_path, killed_at):
    out, drawn = tmp_path / "x.mp4", killed_at(poet, 3)
    with pytest.raises(KeyboardInterrupt):
        poet.extend(clip, 4.0, out=out)
    for seconds, prompts, options in ((4.0, ["a"] * 9, {}), (-1, None, {}), (4.0, None, {"seed": -1})):
        with pytest.raises(InputError):
            poet.extend(clip, seconds, prompts, out=out, **options)
    with pytest.raises(MediaError):
        poet.extend(tmp_path / "none.mp4", 4.0, out=out)
    poet.extend(clip, 4.0, out=out)
    assert len(drawn) == len(list(steps(poet.config.layout, 2, 32))) + 1  # none was drawn twice
    assert [p.name for p in tmp_path.iterdir()] == ["x.mp4"]


def test_a_story_is_told_in_time():
    even = Story(["a", "b"], 10)
    assert [even.prompt(t, 10) for t in (0, 4.9, 5, 9.9)] == ["a", "a", "b", "b"]
    timed = Story([(0, "a"), (3, "b"), (8.5, "c")], 10)
    assert [timed.prompt(t, 10) for t in (0, 2.9, 3, 8, 8.5, 9.9)] == ["a", "a", "b", "b", "c", "c"]
    assert Story(None).prompt(3, 10) is None and Story("a").prompt(3, 10) == "a"
    untimed = (["a"] * 11, [""], [(0, "a"), "b"])
    for wrong in (*untimed, [(1, "a")], [(0, "a"), (0, "b")], [(0, "a"), (10, "b")], [(0, "")]):
        with pytest.raises(InputError):
            Story(wrong, 10)


def test_a_prompt_that_no_window_would_be_told_is_refused(poet, clip, monkeypatch):
    Story(["a", "b"], 2).check_told([0, 1], 2)
    Story([(0, "a"), (0.9, "b")], 3).check_told([0, 1, 2], 3)
    Story(None, 3).check_told([0, 1, 2], 3)
    for story, windows in ((Story(["a", "b", "c"], 3), [0, 2]), (Story([(0, "a"), (0.3, "b"), (0.9, "c")], 3), [0, 2])):
        with pytest.raises(InputError, match="the prompt 'b' would never be told: windows begin at 0, 2 s"):
            story.check_told(windows, 3)
    monkeypatch.setattr(type(poet.generator), "blocks", None)  # is not come to
    image = Clip(clip.frames[:1], 8.0)
    with pytest.raises(InputError, match="the prompt 'blue' would never be told"):
        poet.extend(image, 2, [(0, "red"), (0.1, "blue"), (0.2, "green")])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("a red ball", "a red ball"),
        ("12: a red ball", (12.0, "a red ball")),
        ("1:02.5: a red ball", (62.5, "a red ball")),
        ("neon: a red ball", "neon: a red ball"),
        ("ratio 4:3", "ratio 4:3"),
        ("²: a ball", "²: a ball"),
    ],
)
def test_times_are_typed_before_prompts(typed, meant):
    assert parse_prompt(typed) == meant


def test_parts_come_as_soon_as_they_are_known(poet, clip):
    """The first new frames are there before the window is done."""
    told: list[int] = []
    parts = poet.stream.extend(clip, 2.0, progress=lambda done, total: told.append(done))
    for part in parts:
        if told and part.frames is not None:
            break
    n_window = poet.generator.n_ids(next_row(True), sound=True, n_context=2)
    assert 0 < told[-1] < n_window
    assert join(parts).n_frames > 4


def test_the_journal_is_plain_and_small(poet, clip, tmp_path, monkeypatch):
    close = Journal.close
    monkeypatch.setattr(Journal, "close", lambda self, done: close(self, done=False))
    poet.extend(clip, 1.0, out=tmp_path / "x.mp4")
    head, *windows = map(json.loads, (tmp_path / ".x.mp4.windows").read_text().splitlines())
    assert set(head) == {"request", "part"} and all(set(w) == {"video", "audio"} for w in windows)
    assert read_clip(tmp_path / "x.mp4").n_frames == 26


def test_sound_for_a_long_video_goes_on_from_window_to_window(poet, clip, monkeypatch):
    known, drawn = [], []
    blocks = type(poet.generator).blocks

    def watched(self, *args, **options):
        known.append(options["known"])
        parts = list(blocks(self, *args, **options))
        drawn.append(parts[-1].audio)
        return iter(parts)

    monkeypatch.setattr(type(poet.generator), "blocks", watched)
    made = poet.video_to_audio(clip)
    assert known[0] is None and len(known) == 4 and len(made.samples) == 35200
    for k, before, after in zip(known[1:], drawn, drawn[1:]):
        n = k.audio.shape[1]
        assert n > 20 and torch.equal(before[:, -n:], after[:, :n])
    known.clear()
    drawn.clear()
    made = poet.text_to_audio("a red ball", seconds=3)
    assert len(known) > 2 and len(made.samples) == 48000
    assert all(torch.equal(k.audio, b[:, -k.audio.shape[1] :]) for k, b in zip(known[1:], drawn))
