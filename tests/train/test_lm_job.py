"""What the transformer is trained on: how sequences are padded, drawn and mixed, and what is logged."""

from __future__ import annotations

import copy
import functools
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from lm import IGNORE_INDEX, LM, Engine, Vocabulary, lm_config
from lm.attention import Visibility
from tasks import SPECIAL_TOKENS, Layout
from tasks.generation import Generator
from tasks.model_folder import SamplingDefaults
from tasks.options import Options
from tasks.sequence import TokenSample, build
from tasks.table import TASKS
from tokenizers_av.text import TextTokenizer
from train.lm import IMAGES, IMAGES_FIRST, Batch, LMJob, Mix, collate, mixture
from train.tokens import TokenSet

LAYOUT = Layout(latent_frames=3, height=2, width=2, audio_frames=6, n_codebooks=2, audio_rate=6.0)
CONDITIONED = [name for name, task in TASKS.items() if task.condition is not None]
VIDEOS = mixture(CONDITIONED)
CAPTIONS = ["a red ball", "a blue cube slides to the left", "two green discs collide", "a red cube"]


def tokens(n: int, *, image: bool = False) -> TokenSet:
    g = torch.Generator().manual_seed(n)
    video = torch.randint(0, 256, (n, 1 if image else 3, 2, 2), generator=g, dtype=torch.int32)
    captions = [CAPTIONS[i % 4] for i in range(n)]
    if image:
        return TokenSet(video, None, captions)
    audio = torch.randint(0, 16, (n, 2, 6), generator=g, dtype=torch.int16)
    return TokenSet(video, audio, captions, {name: torch.full_like(video, k) for k, name in enumerate(CONDITIONED)})


@pytest.fixture(scope="module")
def job() -> LMJob:
    text = TextTokenizer.train(CAPTIONS, vocab_size=300)
    vocabulary = Vocabulary.build(SPECIAL_TOKENS, 256, [16, 16], text.vocab_size)
    torch.manual_seed(0)
    model = LM(lm_config("debug", vocabulary))
    return LMJob(model, text, LAYOUT, tokens(8), tokens(9, image=True), tokens(5), batch_size=4, drop_text=0.3)


def with_clips(job: LMJob, clips: TokenSet, layout: Layout = LAYOUT) -> LMJob:
    return LMJob(job.model, job.text, layout, clips, job.images, clips, batch_size=4, drop_text=0.3)


def local(job: LMJob, ids: torch.Tensor, name: str) -> list[int]:
    """Those of a sequence that are of one range, counted from its start."""
    place = job.vocab[name]
    return [int(i) - place.start for i in ids if place.start <= i < place.stop]


def has_text(job: LMJob, batch: Batch) -> torch.Tensor:
    return (batch.ids == job.vocab.special("<bot_i>")).any(1)


def test_padding_stands_on_the_right_and_changes_nothing_else(job: LMJob) -> None:
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
        n = len(s.ids)
        assert bool((batch.ids[i, n:] == pad).all()) and bool((batch.labels[i, n:] == IGNORE_INDEX).all())
        assert torch.equal(batch.ids[i, :n], s.ids) and torch.equal(batch.labels[i, :n], s.labels)
        assert torch.equal(batch.positions[i, :n], s.positions)
        assert int(batch.prefix_len[i]) == s.prefix_len
        n_targets = int((batch.labels[i] != IGNORE_INDEX).sum())
        assert n_targets == 12 and bool((batch.labels[i, : batch.prefix_len[i]] == IGNORE_INDEX).all())
    assert Visibility(batch.ids.shape[1], batch.prefix_len, batch.mask).causal_tail  # fused kernels will do


def test_padding_does_not_change_the_loss(job: LMJob) -> None:
    video = torch.arange(12).view(3, 2, 2)
    short, long = (
        build(TASKS["text_to_video"], TokenSample(torch.arange(n), video), job.vocab, LAYOUT, sound=False)
        for n in (2, 9)
    )

    def total(*sequences):
        return float(job.loss(job.model, collate(list(sequences), 0, "text_to_video"), 0.0)[0].detach())

    assert total(short, long) == pytest.approx((total(short) + total(long)) / 2, abs=1e-4)


@pytest.mark.parametrize("n", [1, 4])
def test_what_is_learned_by_heart_is_generated(job: LMJob, n: int) -> None:
    torch.manual_seed(0)
    model = LM(lm_config("debug", job.vocab, block_size=n))
    mine = LMJob(model, job.text, LAYOUT, job.clips, job.images, job.held_out, batch_size=4, drop_text=0.0)
    task, clip = TASKS["text_to_video"], job.clips.video[0].long()
    sample = TokenSample(torch.arange(3), clip, job.clips.audio[0].long())
    batch = collate([build(task, sample, job.vocab, LAYOUT, block_size=n)], 0, task.name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(60):
        optimizer.zero_grad()
        mine.loss(model, batch, 0.0)[0].backward()
        optimizer.step()
    generator = Generator(Engine(model), job.vocab, LAYOUT, SamplingDefaults())
    greedy = Options(temperature=0.0, guidance_scale=1.0)
    (made,) = generator.answers(task, [sample], greedy, seeds=[0], sound=True)
    assert torch.equal(made.video, clip) and torch.equal(made.audio, sample.audio)


def test_a_batch_is_a_function_of_seed_step_and_rank(job: LMJob) -> None:
    other = LMJob(job.model, job.text, LAYOUT, job.clips, job.images, job.held_out, batch_size=4, drop_text=0.3)
    other.batch(2, 0, 2, 0.5)  # what was drawn before does not matter
    one, again, rank = job.batch(7, 0, 2, 0.5), other.batch(7, 0, 2, 0.5), job.batch(7, 1, 2, 0.5)
    assert torch.equal(one.ids, again.ids) and torch.equal(one.labels, again.labels) and one.task == again.task
    assert rank.task == one.task and not torch.equal(rank.ids, one.ids)
    seeded = LMJob(job.model, job.text, LAYOUT, job.clips, job.images, job.held_out, batch_size=4, seed=1)
    assert [seeded.batch(s, 0, 1, 0.5).task for s in range(20)] != [job.batch(s, 0, 1, 0.5).task for s in range(20)]


@pytest.mark.parametrize("mix", [IMAGES, *VIDEOS], ids=lambda m: m.name)
def test_all_sequences_of_a_batch_are_of_one_kind_and_as_many_as_make_equal_work(mix: Mix, job: LMJob) -> None:
    special = {name: job.vocab.special(name) for name in ("<bov_i>", "<boa_o>", "<task_audio>", "<task_video>")}
    first, text = job.vocab["visual"].start, job.vocab["text"].start
    tokens = job.images if mix is IMAGES else job.clips
    for seed in range(4):
        batch = job.sequences(mix, tokens, random.Random(seed))
        assert batch.task == mix.name
        for name, id_ in special.items():
            assert (batch.ids == id_).any(1).unique().numel() == 1, name
        assert (batch.labels != IGNORE_INDEX).sum(1).unique().numel() == 1
        media = ((batch.ids >= first) & (batch.ids < text)).sum(1)
        silent = LAYOUT.latent_frames * LAYOUT.height * LAYOUT.width  # ids of a silent video
        assert len(batch.ids) == min(4 * 4, round(4 * silent / int(media[0])))


def test_the_mixture_is_that_of_the_table() -> None:
    for conditions in ((), CONDITIONED[:1], CONDITIONED):
        shares: Counter[str] = Counter()
        for mix in mixture(conditions):
            shares[mix.task] += mix.weight
        assert shares == pytest.approx({
            name: task.share for name, task in TASKS.items()
            if task.share and (task.condition is None or name in conditions)
        })  # fmt: skip
    sounds = {(m.task, m.sound): m.weight for m in VIDEOS}
    assert sounds["text_to_video", False] == sounds["text_to_video", True] == TASKS["text_to_video"].share / 2
    assert ("video_to_audio", False) not in sounds and ("inpainting", True) not in sounds
    assert len({m.name for m in VIDEOS}) == len(VIDEOS)


def test_steps_are_dealt_out_by_share(job: LMJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LMJob, "sequences", lambda self, mix, tokens, rng: mix)
    n, total = 4000, sum(mix.weight for mix in VIDEOS)
    drawn = Counter(mix for step in range(n) if (mix := job.batch(step, 0, 1, 0.5)) is not IMAGES)
    for mix in VIDEOS:
        expected = n * 0.9 * mix.weight / total
        assert abs(drawn[mix] - expected) < 4 * expected**0.5, mix.name


def test_clips_without_conditions_train_the_rest(job: LMJob) -> None:
    older = with_clips(job, replace(job.clips, conditions={}))
    kinds = {mix.name for mix in VIDEOS if mix.task not in CONDITIONED}
    assert {mix.name for mix in older.videos} == kinds
    assert {older.batch(step, 0, 1, 1.0).task for step in range(40)} <= kinds | {IMAGES.name}
    assert {key.split("/")[0] for key in older.evaluate(job.model, 2) if "/" in key} == kinds | {IMAGES.name}


@pytest.mark.parametrize("name", CONDITIONED)
def test_a_condition_is_that_of_the_clip_itself(name: str, job: LMJob) -> None:
    """Clip i holds i everywhere, its condition 20 k + i, where k is the number of the task."""
    numbers = torch.arange(8, dtype=torch.int32).view(-1, 1, 1, 1).expand(8, 3, 2, 2)
    given = {other: numbers + 20 * k for k, other in enumerate(CONDITIONED)}
    clips = TokenSet(numbers, job.clips.audio, job.clips.captions, given)
    batch = with_clips(job, clips).sequences(Mix(name), clips, random.Random(0), 6)
    for ids, prefix_len in zip(batch.ids, batch.prefix_len, strict=True):
        shown, made = (local(job, part, "visual") for part in (ids[:prefix_len], ids[prefix_len:]))
        assert len(made) == 12 and set(made) <= set(range(8))
        assert shown == [i + 20 * CONDITIONED.index(name) for i in made]
    assert len({tuple(ids.tolist()) for ids in batch.ids}) > 1


@pytest.mark.parametrize("fps, starts", [(8.0, {0, 1, 2, 3}), (12.0, {0, 3}), (7.7, {0})], ids=lambda v: f"{v}")
def test_windows_from_anywhere_pair_a_video_with_its_own_sound(fps: float, starts: set[int], job: LMJob) -> None:
    """Latent frame t holds t, audio column c holds c % 16 and c // 16; a frame lasts 25 columns, 50 / 3, or 25.97."""
    layout = replace(LAYOUT, fps=fps, audio_rate=50.0, audio_frames=int(9 / fps * 50))
    video = torch.arange(6).view(1, -1, 1, 1).expand(4, -1, 2, 2)  # twice as long as the model's
    columns = torch.arange(int(21 / fps * 50))
    clips = TokenSet(video, torch.stack([columns % 16, columns // 16]).expand(4, -1, -1), CAPTIONS)
    longer = with_clips(job, clips, layout)
    seen: dict[str, set[int]] = {}
    for mix in mixture(()):
        for ids in longer.sequences(mix, clips, random.Random(0), 24).ids:
            frames = local(job, ids, "visual")
            first = frames[0] if frames else 0
            assert frames == [t for t in range(first, first + 3) for _ in range(4)] or mix.task == "text_to_audio"
            heard = [a + 16 * b for a, b in zip(local(job, ids, "audio_0"), local(job, ids, "audio_1"), strict=True)]
            begin = round(first * 200 / fps)
            assert heard == list(range(begin, begin + layout.audio_frames)) or not (mix.sound or heard), mix.name
            seen.setdefault(mix.task, set()).add(first)
    from_anywhere = {"frame_prediction", "audio_video_continuation", "video_to_audio"}
    assert seen == {task: starts if task in from_anywhere else {0} for task in seen} and from_anywhere < seen.keys()


def test_clips_must_be_as_long_as_the_model(job: LMJob) -> None:
    with pytest.raises(ValueError, match="clips of 3 latent frames, need 4"):
        with_clips(job, job.clips, replace(LAYOUT, latent_frames=4))


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


@pytest.mark.parametrize("mix", [IMAGES, *VIDEOS], ids=lambda m: m.name)
def test_the_loss_is_logged_for_each_range(mix: Mix, job: LMJob) -> None:
    batch = job.sequences(mix, job.held_out, random.Random(0), 2)
    total, logged = job.loss(job.model, batch, 1.0)
    visual = ["visual"] if TASKS[mix.task].output("video") else []
    ranges = [*visual, *(["audio_0", "audio_1"] if mix.sound else [])]
    assert set(logged) == {f"{batch.task}/{name}" for name in ranges}
    assert total.requires_grad and all(0 < float(v) < 12 for v in logged.values())


def test_evaluation_covers_every_kind_and_is_repeatable(job: LMJob, tmp_path: Path) -> None:
    first, again = job.evaluate(job.model, 3), job.evaluate(job.model, 3)
    assert first == again and first["n"] == 3
    kinds = {mix.name for mix in (IMAGES, *VIDEOS)}
    assert {key.split("/")[0] for key in first if "/" in key} == kinds
    job.sample(job.model, tmp_path, 5)
    assert "text_to_video/visual" in (tmp_path / "0000005.tsv").read_text()


def test_a_kill_while_saving_leaves_the_model_that_was_there(
    job: LMJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def matches(model: LM) -> bool:
        found = LM.from_pretrained(tmp_path).state_dict()
        return all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())

    def killed(model: LM, folder: Path, **how: str) -> None:
        save(model, folder, **how)
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    first, second, save = LM(job.model.config), LM(job.model.config), LM.save_pretrained
    first.save_pretrained(tmp_path, max_shard_size="20KB")  # as older versions did
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    job.save(first, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert matches(first) and names == {"config.json", "model.safetensors", "train"}
    monkeypatch.setattr(LM, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        job.save(second, tmp_path)
    assert matches(first)
    monkeypatch.undo()
    job.save(second, tmp_path)
    assert matches(second) and not list((tmp_path / "train").iterdir())


def test_a_training_goes_on_with_the_tokenizers_it_began_with(job: LMJob) -> None:
    def settings(text: TextTokenizer, **more) -> dict:
        sets = job.clips, job.images, job.held_out
        return LMJob(job.model, text, LAYOUT, *sets, batch_size=job.batch_size, **more).settings

    video = {"video_tokenizer": "another"}
    assert settings(job.text) == job.settings and settings(job.text, tokenizers=video) == {**job.settings, **video}
    other = settings(TextTokenizer.train(CAPTIONS[:2], vocab_size=300))
    assert {name for name in other if other[name] != job.settings[name]} == {"text_tokenizer"}
    assert settings(job.text, images_first=False) == {**job.settings, "images_first": False}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at all tensors that it traces
def test_batches_of_many_lengths_are_compiled_few_times(job: LMJob, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)  # else it would go on uncompiled
    compiled = LMJob(copy.deepcopy(job.model), job.text, LAYOUT, job.clips, job.images, job.held_out, batch_size=4)
    batches = [compiled.batch(step, 0, 1, 1.0) for step in range(24)]
    expected = [compiled.loss(compiled.model, batch, 1.0)[0] for batch in batches]
    compiled.compile()
    seen, late, counts = set[torch.Size](), 0, list[int]()
    for batch, loss in zip(batches, expected, strict=True):
        torch.testing.assert_close(compiled.loss(compiled.model, batch, 1.0)[0], loss)
        late += len(counts) > 12 and batch.ids.shape not in seen
        seen.add(batch.ids.shape)
        counts.append(counter.frame_count)
    assert 0 < counts[-1] == counts[12], counts
    assert late, "no new length came late"
