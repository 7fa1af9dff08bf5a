"""What the transformer is trained on: how sequences are padded, drawn and mixed, and what is logged."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from lm import IGNORE_INDEX, LM, Vocabulary, lm_config
from tasks import SPECIAL_TOKENS, Layout
from tasks.sequence import TokenSample, build
from tasks.table import TASKS
from tokenizers_av.text import TextTokenizer
from train.lm import IMAGES, IMAGES_FIRST, VIDEOS, Batch, LMJob, Mix, collate
from train.tokens import TokenSet

LAYOUT = Layout(latent_frames=3, height=2, width=2, audio_frames=6, n_codebooks=2)
CAPTIONS = ["a red ball", "a blue cube slides to the left", "two green discs collide", "a red cube"]


def tokens(n: int, *, image: bool = False) -> TokenSet:
    g = torch.Generator().manual_seed(n)
    video = torch.randint(0, 256, (n, 1 if image else 3, 2, 2), generator=g, dtype=torch.int32)
    audio = None if image else torch.randint(0, 16, (n, 2, 6), generator=g, dtype=torch.int16)
    return TokenSet(video, audio, [CAPTIONS[i % 4] for i in range(n)])


@pytest.fixture(scope="module")
def job() -> LMJob:
    text = TextTokenizer.train(CAPTIONS, vocab_size=300)
    vocabulary = Vocabulary.build(SPECIAL_TOKENS, 256, [16, 16], text.vocab_size)
    torch.manual_seed(0)
    model = LM(lm_config("debug", vocabulary))
    return LMJob(model, text, LAYOUT, tokens(8), tokens(9, image=True), tokens(5), batch_size=4, drop_text=0.3)


def has_text(job: LMJob, batch: Batch) -> torch.Tensor:
    return (batch.ids == job.vocab.special("<bot_i>")).any(1)


def test_padding_stands_on_the_left_and_changes_nothing_else(job: LMJob) -> None:
    video = torch.zeros(3, 2, 2, dtype=torch.int64)
    sequences = [
        build(TASKS["text_to_video"], TokenSample(torch.arange(n), video), job.vocab, LAYOUT, sound=False)
        for n in (7, 2)
    ]
    pad = job.vocab.special("<pad>")
    batch = collate(sequences, pad, "text_to_video")
    assert batch.ids.shape == batch.labels.shape == batch.mask.shape == batch.positions.shape[:2]
    assert batch.mask.sum(1).tolist() == [len(s.ids) for s in sequences] and bool(batch.mask[0].all())
    for i, s in enumerate(sequences):
        skip = batch.ids.shape[1] - len(s.ids)
        assert bool((batch.ids[i, :skip] == pad).all()) and bool((batch.labels[i, :skip] == IGNORE_INDEX).all())
        assert torch.equal(batch.ids[i, skip:], s.ids) and torch.equal(batch.labels[i, skip:], s.labels)
        assert torch.equal(batch.positions[i, skip:], s.positions)
        assert int(batch.prefix_len[i]) == skip + s.prefix_len
        n_targets = int((batch.labels[i] != IGNORE_INDEX).sum())
        assert n_targets == 12 and bool((batch.labels[i, : batch.prefix_len[i]] == IGNORE_INDEX).all())


def test_padding_does_not_change_the_loss(job: LMJob) -> None:
    video = torch.arange(12).view(3, 2, 2)
    short, long = (
        build(TASKS["text_to_video"], TokenSample(torch.arange(n), video), job.vocab, LAYOUT, sound=False)
        for n in (2, 9)
    )

    def total(*sequences):
        return float(job.loss(job.model, collate(list(sequences), 0, "text_to_video"), 0.0)[0].detach())

    assert total(short, long) == pytest.approx((total(short) + total(long)) / 2, abs=1e-4)


def test_a_batch_is_a_function_of_seed_step_and_rank(job: LMJob) -> None:
    other = LMJob(job.model, job.text, LAYOUT, job.clips, job.images, job.held_out, batch_size=4, drop_text=0.3)
    other.batch(2, 0, 2, 0.5)  # what was drawn before does not matter
    one, again, rank = job.batch(7, 0, 2, 0.5), other.batch(7, 0, 2, 0.5), job.batch(7, 1, 2, 0.5)
    assert torch.equal(one.ids, again.ids) and torch.equal(one.labels, again.labels) and one.task == again.task
    assert rank.task == one.task and not torch.equal(rank.ids, one.ids)
    seeded = LMJob(job.model, job.text, LAYOUT, job.clips, job.images, job.held_out, batch_size=4, seed=1)
    assert [seeded.batch(s, 0, 1, 0.5).task for s in range(20)] != [job.batch(s, 0, 1, 0.5).task for s in range(20)]


def test_all_sequences_of_a_batch_are_of_one_kind(job: LMJob) -> None:
    special = {name: job.vocab.special(name) for name in ("<bov_i>", "<boa_o>", "<task_audio>", "<task_video>")}
    sizes = {m.task + ("+sound" if m.sound else ""): max(1, round(4 * m.batch)) for m in (IMAGES, *VIDEOS)}
    seen = set()
    for step in range(60):
        batch = job.batch(step, 0, 1, 0.5)
        seen.add(batch.task)
        assert len(batch.ids) == sizes[batch.task]
        for name, id_ in special.items():
            assert (batch.ids == id_).any(1).unique().numel() == 1, (batch.task, name)
        counts = (batch.labels != IGNORE_INDEX).sum(1)
        assert counts.unique().numel() == 1, (batch.task, counts)
    assert seen == set(sizes)


def test_text_is_dropped_as_often_as_asked_and_where_it_is_empty(job: LMJob) -> None:
    rng = random.Random(0)
    kept = has_text(job, job.sequences(IMAGES, job.images, rng, 600)).float().mean()
    assert abs(float(kept) - 0.7) < 0.06
    silent = TokenSet(job.images.video, None, [" "] * len(job.images))
    assert not has_text(job, job.sequences(IMAGES, silent, rng, 20)).any()


def test_images_come_first_and_videos_after(job: LMJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LMJob, "sequences", lambda self, mix, tokens, rng: (mix, tokens))

    def share(progress: float) -> float:
        drawn = [job.batch(step, 0, 1, progress) for step in range(200)]
        assert all(data is (job.images if mix is IMAGES else job.clips) for mix, data in drawn)
        return sum(mix is IMAGES for mix, _ in drawn) / 200

    assert share(0.0) > 0.75 and share(IMAGES_FIRST - 1e-6) > 0.75
    assert share(IMAGES_FIRST) < 0.25 and 0 < share(1.0) < 0.25


@pytest.mark.parametrize("mix", [IMAGES, *VIDEOS], ids=lambda m: m.task + ("+sound" if m.sound else ""))
def test_the_loss_is_logged_for_each_range(mix: Mix, job: LMJob) -> None:
    batch = job.sequences(mix, job.held_out, random.Random(0), 2)
    total, logged = job.loss(job.model, batch, 1.0)
    visual = [] if mix.task == "video_to_audio" else ["visual"]
    ranges = [*visual, *(["audio_0", "audio_1"] if mix.sound else [])]
    assert set(logged) == {f"{batch.task}/{name}" for name in ranges}
    assert total.requires_grad and all(0 < float(v) < 12 for v in logged.values())


def test_evaluation_covers_every_kind_and_is_repeatable(job: LMJob, tmp_path: Path) -> None:
    first, again = job.evaluate(job.model, 3), job.evaluate(job.model, 3)
    assert first == again and first["n"] == 3
    kinds = {m.task + ("+sound" if m.sound else "") for m in (IMAGES, *VIDEOS)}
    assert {key.split("/")[0] for key in first if "/" in key} == kinds
    job.sample(job.model, tmp_path, 5)
    assert "text_to_video/visual" in (tmp_path / "0000005.tsv").read_text()
