"""Laws of sequences: what is built can be undone, and what is planned is what is built."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch

from lm import Vocabulary
from tasks import (
    IGNORE,
    SPECIAL_TOKENS,
    TASKS,
    InputError,
    Layout,
    TokenSample,
    build,
    get_task,
    plan,
    prefix,
    split,
    whole,
)

LEVELS = (16, 24)
VOCAB = Vocabulary.build(SPECIAL_TOKENS, 64, LEVELS, 40)
LAYOUT = Layout(latent_frames=4, height=2, width=3, audio_frames=7, n_codebooks=2, audio_rate=4)
CASES = list(product(TASKS.values(), (True, False), (True, False), ("level", "time"), (1, 3)))


def sample(*, text: bool = True) -> TokenSample:
    g = torch.Generator().manual_seed(0)
    return TokenSample(
        torch.randint(0, 40, (5,), generator=g) if text else None,
        torch.randint(0, 64, (4, 2, 3), generator=g),
        torch.stack([torch.randint(0, n, (7,), generator=g) for n in LEVELS]),
        torch.randint(0, 64, (4, 2, 3), generator=g),
    )


def layout_of(order: str) -> Layout:
    return Layout(**{**LAYOUT.to_dict(), "audio_order": order})


def names(ids: torch.Tensor) -> list[str]:
    """Special tokens by name, other ids by their range."""
    found = []
    for i in ids.tolist():
        kind = next(r for r in VOCAB if i in r)
        name = SPECIAL_TOKENS[i] if kind.name == "special" else kind.name
        if not found or found[-1] != name:
            found.append(name)
    return found


@pytest.mark.parametrize(("task", "sound", "text", "order", "n_context"), CASES)
def test_split_undoes_build(task, sound, text, order, n_context):
    x = sample(text=text)
    sequence = build(task, x, VOCAB, layout_of(order), sound=sound, n_context=n_context)
    y = whole(task, split(sequence.ids, sequence.segments, VOCAB))
    if task.input("text") and text:
        assert torch.equal(y.text, x.text)
    else:
        assert y.text is None
    if y.video is not None:
        assert torch.equal(y.video, x.video[:1] if task.is_image else x.video)
    if y.audio is not None:
        assert torch.equal(y.audio, x.audio)
    blocks = [*task.inputs, *task.outputs]
    assert (y.video is not None) == any(b.kind == "video" and not b.condition for b in blocks)
    assert (y.audio is not None) == any(b.kind == "audio" and (sound or not b.optional) for b in blocks)
    assert y.condition is None if task.condition is None else torch.equal(y.condition, x.condition)


@pytest.mark.parametrize(("task", "sound", "text", "order", "n_context"), CASES)
def test_prefix_and_plan_are_what_build_makes(task, sound, text, order, n_context):
    x, layout = sample(text=text), layout_of(order)
    sequence = build(task, x, VOCAB, layout, sound=sound, n_context=n_context)
    ids, positions = prefix(task, x, VOCAB, layout, n_context)
    places, segments = plan(task, VOCAB, layout, sound=sound, n_context=n_context)
    P = sequence.prefix_len
    assert torch.equal(ids, sequence.ids[:P]) and torch.equal(positions, sequence.positions[:P])
    out = sequence.ids[P:]
    assert len(out) == len(places.start)
    assert bool(((places.start <= out) & (out < places.stop)).all())
    assert torch.equal(places.positions, sequence.positions[P:])
    assert tuple(s.shifted(P) for s in segments) == tuple(s for s in sequence.segments if s.start >= P)


@pytest.mark.parametrize(("task", "sound", "text", "order", "n_context"), CASES)
def test_labels_stand_on_drawn_outputs_only(task, sound, text, order, n_context):
    sequence = build(task, sample(text=text), VOCAB, layout_of(order), sound=sound, n_context=n_context)
    wanted = torch.zeros(len(sequence.ids), dtype=torch.bool)
    for s in sequence.segments:
        if s.start >= sequence.prefix_len:
            wanted[s.start : s.stop] = True
    assert torch.equal(sequence.labels[wanted], sequence.ids[wanted])
    assert bool((sequence.labels[~wanted] == IGNORE).all())


@pytest.mark.parametrize("n", [2, 4, 5])
@pytest.mark.parametrize(("task", "sound", "text", "order", "n_context"), CASES)
def test_outputs_in_blocks_are_the_same_outputs_filled_up(task, sound, text, order, n_context, n):
    x, layout = sample(text=text), layout_of(order)
    classic = build(task, x, VOCAB, layout, sound=sound, n_context=n_context)
    sequence = build(task, x, VOCAB, layout, sound=sound, n_context=n_context, block_size=n)
    P = sequence.prefix_len
    assert torch.equal(sequence.ids[:P], classic.ids[: classic.prefix_len]) and (len(sequence.ids) - P) % n == 0
    for a, b in zip(sequence.segments, classic.segments, strict=True):
        assert torch.equal(sequence.ids[a.start : a.stop], classic.ids[b.start : b.stop])
        assert torch.equal(sequence.positions[a.start : a.stop], classic.positions[b.start : b.stop])
        assert a.start < P or (a.start - P) % n == 0
    media = torch.zeros(len(sequence.ids), dtype=torch.bool)
    for s in sequence.segments:
        media[s.start : s.stop] = True
    filling = sequence.ids[P:][~media[P:]]
    assert bool((filling < 256).all())
    assert names(sequence.ids[P:]) == names(classic.ids[P:]) or not task.closed
    assert bool((sequence.labels[~media] == IGNORE).all())
    places, segments = plan(task, VOCAB, layout, sound=sound, n_context=n_context, block_size=n)
    assert bool(((places.start <= sequence.ids[P:]) & (sequence.ids[P:] < places.stop)).all())
    assert torch.equal(places.positions, sequence.positions[P:])
    assert tuple(s.shifted(P) for s in segments) == tuple(s for s in sequence.segments if s.start >= P)


@pytest.mark.parametrize(
    ("task", "expected"),
    {
        "unconditional": "<bos> <task_video> | <bov_o> visual <eov_o> <boa_o> audio_0 audio_1 <eoa_o> <eos>",
        "text_to_image": "<bos> <task_video> <bot_i> text <eot_i> | <bov_o> visual",
        "text_to_video": "<bos> <task_video> <bot_i> text <eot_i> | "
        "<bov_o> visual <eov_o> <boa_o> audio_0 audio_1 <eoa_o> <eos>",
        "image_to_video": "<bos> <task_video> <bot_i> text <eot_i> <bov_i> visual <eov_i> | "
        "<bov_o> visual <eov_o> <boa_o> audio_0 audio_1 <eoa_o> <eos>",
        "video_to_audio": "<bos> <task_audio> <bov_i> visual <eov_i> | <boa_o> audio_0 audio_1 <eoa_o> <eos>",
    }.items(),
)
def test_layout_is_that_of_the_paper(task, expected):
    sequence = build(get_task(task), sample(), VOCAB, LAYOUT)
    P = sequence.prefix_len
    assert " ".join([*names(sequence.ids[:P]), "|", *names(sequence.ids[P:])]) == expected


@pytest.mark.parametrize(("short", "sound"), [("text_to_image", True), ("text_to_video", False)])
def test_the_shorter_sequence_is_the_beginning_of_the_longer(short, sound):
    long = build(get_task("text_to_video"), sample(), VOCAB, LAYOUT)
    part = build(get_task(short), sample(), VOCAB, LAYOUT, sound=sound)
    n = len(part.ids)
    assert n < len(long.ids)
    assert torch.equal(part.ids, long.ids[:n]) and torch.equal(part.positions, long.positions[:n])


def test_positions_run_on_one_clock():
    layout = Layout(latent_frames=3, height=2, width=2, audio_frames=56, n_codebooks=1)
    x = TokenSample(None, torch.zeros(3, 2, 2, dtype=torch.int64), torch.zeros(1, 56, dtype=torch.int64))
    sequence = build(get_task("frame_prediction"), x, VOCAB, layout, n_context=2)
    by_name = {s.name: sequence.positions[s.start : s.stop] for s in sequence.segments}
    assert by_name["video_in"][:, 0].tolist() == [0.0] * 4 + [25.0] * 4
    assert by_name["video"].tolist() == [[50.0, h, w] for h in (0, 1) for w in (0, 1)]
    assert by_name["audio"].tolist() == [[float(k), 0, 0] for k in range(56)]
    begin = next(i for i, n in enumerate(sequence.ids.tolist()) if n == VOCAB.special("<bov_o>"))
    assert sequence.positions[begin].tolist() == [50.0, 0.0, 0.0]


def test_time_order_keeps_the_levels_of_a_column_together():
    sequence = build(get_task("video_to_audio"), sample(), VOCAB, layout_of("time"))
    s = next(s for s in sequence.segments if s.name == "audio")
    ids = sequence.ids[s.start : s.stop]
    assert [next(r.name for r in VOCAB if i in r) for i in ids.tolist()] == ["audio_0", "audio_1"] * 7


def test_batches_of_ids_split_like_single_ones():
    task = get_task("text_to_video")
    x = sample()
    sequence = build(task, x, VOCAB, LAYOUT)
    parts = split(torch.stack([sequence.ids, sequence.ids]), sequence.segments, VOCAB)
    assert parts["video"].shape == (2, 4, 2, 3) and torch.equal(parts["video"][1], x.video)
    assert torch.equal(parts["audio"][0], x.audio)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"video": None}, "no video"),
        ({"audio": torch.zeros(2, 6, dtype=torch.int64)}, r"\(2, 6\), the layout needs \(2, 7\)"),
        ({"video": torch.full((4, 2, 3), 64)}, "outside of their vocabulary range"),
        ({"video": torch.full((4, 2, 3), -1)}, "outside of their vocabulary range"),
    ],
)
def test_samples_that_do_not_fit_are_refused(change, match):
    x = sample()
    broken = TokenSample(x.text, change.get("video", x.video), change.get("audio", x.audio))
    with pytest.raises(InputError, match=match):
        build(get_task("text_to_video"), broken, VOCAB, LAYOUT)


@pytest.mark.parametrize("n_context", [0, 4, -1])
def test_context_must_leave_something_to_predict(n_context):
    with pytest.raises(InputError, match="n_context"):
        plan(get_task("frame_prediction"), VOCAB, LAYOUT, n_context=n_context)


def test_layout_survives_json_and_refuses_nonsense():
    assert Layout.from_dict(json.loads(json.dumps(LAYOUT.to_dict()))) == LAYOUT
    with pytest.raises(ValueError, match="unknown layout fields"):
        Layout.from_dict({"frames": 3})
    with pytest.raises(ValueError, match="latent_frames=0"):
        Layout(latent_frames=0)
    with pytest.raises(ValueError, match="audio_order"):
        Layout(audio_order="random")  # type: ignore[arg-type]


def test_tasks_are_found_by_either_spelling():
    assert get_task("text-to-video") is get_task("text_to_video")
    with pytest.raises(InputError, match=r"expected one of .*video-to-audio"):
        get_task("text_to_smell")
    assert len(set(SPECIAL_TOKENS)) == len(SPECIAL_TOKENS) <= 256
