"""Training of the super-resolution head: its pairs, its loss, its command, and going on after a kill."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest
import torch

from tokenizers_av.superres import SuperRes, downsample, superres_config, upsample
from tokenizers_av.text import TextTokenizer
from tokenizers_av.video import VideoTokenizer, video_tokenizer_config
from train.cli import main
from train.data import MediaBatch, MediaSpec, open_source
from train.degrade import to_8_bits
from train.evaluate.tokenizer_metrics import psnr
from train.loop import LoopConfig, fit
from train.superres import FLOOR, STEADY, Pairs, SuperResJob, _flow
from train.superres_training import SuperResTraining

CLEAN = SuperResTraining(
    n_frames=5, crop=32, clean_share=1.0, camera_share=0.0, half_share=0.0, text_share=1.0
)


def make_job(training: SuperResTraining = CLEAN, size: int = 64) -> SuperResJob:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(video_tokenizer_config("debug"))
    return SuperResJob(SuperRes(superres_config("debug")), tokenizer, open_source("playground"),
                       open_source("playground", "test"), MediaSpec(size=size), batch_size=4,
                       training=training)  # fmt: skip


def drawn(job: SuperResJob, step: int = 0):
    torch.manual_seed(step)
    return job.batch(step, 0, 1, 0.0)


class Chart:
    """Clips whose red says their index, green the row and blue the column; `asked` are the indices so far."""

    len = None

    def __init__(self) -> None:
        self.asked: list[int] = []

    def batch(self, indices, spec: MediaSpec, **_) -> MediaBatch:
        self.asked += indices
        along, shape = torch.linspace(-1, 1, spec.size), (len(indices), spec.n_frames, spec.size, spec.size)
        index = torch.tensor([i % 64 / 32 - 1 for i in indices]).view(-1, 1, 1, 1)
        video = torch.stack([x.expand(shape) for x in (index, along[:, None], along)], dim=1)
        return MediaBatch(video=video, audio=None)


class Negative(torch.nn.Module):
    """A tokenizer whose ids are pixels of 8 bits; they come back as the negative, a third of a step too dark."""

    codebook_size = 256

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return ((video + 1) * 127.5).round().long()

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        return 1 - (ids + 0.3) / 127.5


class Watched(torch.nn.Module):
    """A head that keeps what it is given and misses the true detail by `off`."""

    def __init__(self, pairs: Pairs, off: torch.Tensor | float = 0.0) -> None:
        super().__init__()
        self.detail = pairs.large - pairs.base + off

    def forward(self, *given):
        self.given = given
        return self.detail


def noise_pairs(B: int, T: int) -> Pairs:
    torch.manual_seed(0)
    base, large = torch.rand(2, B, T, 8, 8, 3) * 2 - 1
    return pairs_of(base, large)


def pairs_of(base: torch.Tensor, large: torch.Tensor) -> Pairs:
    """Pairs whose pixels stay where they are."""
    return Pairs(base=base, large=large, flow=torch.zeros(*large.shape[:4], 2), scale=4, decoded=torch.zeros(len(base)))


def test_pairs_are_crops_of_the_same_place() -> None:
    pairs = drawn(make_job())
    assert pairs.base.shape == pairs.large.shape == (4, 5, 32, 32, 3) and pairs.scale == 4
    assert pairs.flow.shape == (4, 5, 32, 32, 2)
    large = pairs.large.permute(0, 4, 1, 2, 3)
    inner = (..., slice(8, -8), slice(8, -8))
    again = upsample(downsample(large, 4), 4)[inner]  # edges of a crop see other neighbours
    assert (again - pairs.base.permute(0, 4, 1, 2, 3)[inner]).abs().mean() < 0.01
    other = drawn(make_job(), 1)
    assert not torch.equal(other.large, pairs.large) and torch.equal(drawn(make_job()).large, pairs.large)


def test_shares_say_how_low_sides_are_worn() -> None:
    def worn(**shares: float) -> float:
        pairs = drawn(make_job(replace(CLEAN, **shares)))
        clean = drawn(make_job())
        assert torch.equal(pairs.large, clean.large) or pairs.scale == 2
        return float((pairs.base - clean.base).abs().mean()) if pairs.scale == 4 else -1.0

    def decoded(**shares: float) -> list[float]:
        return drawn(make_job(replace(CLEAN, **shares))).decoded.tolist()

    assert worn() == 0 and worn(half_share=1.0) == -1
    assert set(decoded()) == set(decoded(clean_share=0.0, camera_share=1.0)) == {0}
    assert set(decoded(clean_share=0.0)) == {1}
    some = drawn(make_job(replace(CLEAN, clean_share=0.5)))  # two crops of each clip
    far = (some.base - drawn(make_job()).base).abs().mean((1, 2, 3, 4)) > 1e-2
    assert torch.equal(some.decoded, far.float()) and 0 < some.decoded.sum() < len(far)
    assert worn(clean_share=0.0, camera_share=1.0) > 1e-3 and worn(clean_share=0.0) > 1e-2


def test_crops_are_cut_everywhere_from_all_clips() -> None:
    job = make_job()
    job.train = Chart()
    corners = torch.cat([drawn(job, step).large[:, 0, 0, 0] for step in range(10)])  # (40, 3)
    index, top, left = ((corners + 1) * torch.tensor([32, 31.5, 31.5])).round().int().T.tolist()
    assert index == [i for i in range(20) for _ in range(2)]
    assert set(top) == set(left) == {0, 8, 16, 24, 32} and len(set(zip(top, left))) > 15


def test_captions_are_told_to_a_head_that_looks_at_text(debug_model: Path) -> None:
    words = TextTokenizer.from_pretrained(debug_model / "text_tokenizer")
    job = make_job()
    assert drawn(job).text is None
    job.text = words
    told = drawn(job).text
    caption = job.train.batch(range(2), replace(job.spec), audio=False).captions[1]
    assert told is not None and told.shape == (4, 64)
    assert [i for i in told[3].tolist() if i >= 0] == words.encode(caption)
    job.training = replace(CLEAN, text_share=0.0)
    untold = drawn(job).text
    assert untold is not None and (untold == -1).all() and len(untold) == 4


def test_files_need_opencv_and_the_playground_does_not(debug_model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tasks.check.find_spec", lambda name: None)
    words = ["superres", "--preset", "debug", "--steps", "1", "--device", "cpu", "--tokenizers", str(debug_model)]
    assert main([*words, "--out", str(tmp_path / "a"), "--data", str(tmp_path)]) == 2
    assert "pip install opencv-python-headless" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "b")]) == 0


def test_another_text_tokenizer_is_another_training(debug_model: Path) -> None:
    job = make_job()
    assert "text_tokenizer" not in job.settings
    made_by = []
    for text in (TextTokenizer.from_pretrained(debug_model / "text_tokenizer"), TextTokenizer.train(["a ball"], 300)):
        job.text = text
        made_by.append(job.settings["text_tokenizer"])
    assert made_by[0] != made_by[1]


def test_the_vectors_of_ids_are_no_matrix_to_orthogonalise() -> None:
    job = make_job()
    job.model = SuperRes(superres_config("debug", text_size=9))
    words = job.model.net.embed.words
    held = [type(o).__name__ for o in job.optimizers() if any(p is words for g in o.param_groups for p in g["params"])]
    assert held == ["AdamW"]


def test_no_clip_is_seen_twice() -> None:
    job = make_job()
    job.train = chart = Chart()
    for seed, step, rank in product(range(2), range(3), range(2)):
        job.seed = seed
        job.batch(step, rank, 2, 0.0)
    assert len(set(chart.asked)) == len(chart.asked) == 2 * 3 * 2 * 2


def test_low_sides_are_of_8_bits_and_each_is_of_its_own_clip() -> None:
    job = make_job(replace(CLEAN, clean_share=0.5, max_flips=0.0))
    job.tokenizer = Negative()
    large = torch.rand(32, 3, 1, 16, 16) * 2 - 1
    low = to_8_bits(downsample(large, 4))
    (made, decoded), negative = job._low_side(large, 4), to_8_bits(-low)
    through = (made * low).mean((1, 2, 3, 4)) < 0
    assert torch.equal(decoded, through.float())
    assert 8 < through.sum() < 24
    assert torch.equal(made[through], negative[through]) and torch.equal(made[~through], low[~through])
    job.training = replace(job.training, clean_share=0.0, max_flips=1.0)
    wrong = (job._low_side(large, 4)[0] != negative).float().mean((1, 2, 3, 4))
    assert wrong.max() > 0.5 and wrong.min() == 0


def test_evaluation_sets_the_head_beside_bicubic_on_decoded_test_clips() -> None:
    job, calls = make_job(), []
    assert (job.train.split, job.test.split) == ("train", "test")
    job.train, job.test, job.tokenizer = None, Chart(), Negative()
    large = Chart().batch([0, 1], job.spec).video
    low = to_8_bits(-to_8_bits(downsample(large, 4)))
    job.model.upscale = lambda low, scale, **how: calls.append((low, scale, how)) or torch.zeros_like(large[:1])
    grey, bicubic = (float(psnr((x + 1) / 2, (large + 1) / 2).mean()) for x in (0 * large, upsample(low, 4)))
    assert job.evaluate(job.model, 2) == pytest.approx({"psnr": grey, "bicubic_psnr": bicubic, "n": 2})
    assert torch.equal(torch.cat([given for given, *_ in calls]), low)
    assert [call[1:] for call in calls] == [(4, {"steady": False})] * 2  # steps and noise as its config says


def test_the_loss_is_least_for_the_true_detail() -> None:
    job, pairs = make_job(), noise_pairs(32, 2)
    least = math.log(FLOOR) + job.training.steady_weight * math.log(STEADY)
    loss, metrics = job.loss(Watched(pairs), pairs, 0.0)
    assert float(loss) == pytest.approx(least) and float(metrics["psnr"]) > 80
    start, _ = job.loss(job.model, pairs, 0.0)
    assert float(start.detach()) > least + 0.5


def test_the_loss_is_of_the_error_of_a_crop_and_of_its_change() -> None:
    job, off = make_job(replace(CLEAN, steady_weight=0.3)), torch.tensor([[0.1, 0.3, 0.1], [0.2, 0.2, 0.2]])
    pairs, still = noise_pairs(2, 3), noise_pairs(2, 1)
    pairs.large = pairs.large[:, :1].expand(-1, 3, -1, -1, -1)  # stands still
    loss, _ = job.loss(Watched(pairs, off.view(2, 3, 1, 1, 1)), pairs, 0.0)
    error = (torch.tensor([0.11 / 3, 0.04]) + FLOOR).log().mean()
    change = (torch.tensor([0.2, 0.0]) + STEADY).log().mean()
    assert float(loss) == pytest.approx(float(error + 0.3 * change), abs=1e-4)
    loss, _ = job.loss(Watched(still, 0.2), still, 0.0)
    assert float(loss) == pytest.approx(math.log(0.04 + FLOOR), abs=1e-4)


def test_an_error_is_steady_that_moves_along_with_what_is_seen() -> None:
    job = make_job(replace(CLEAN, steady_weight=1.0))
    torch.manual_seed(0)
    wide, errors = torch.rand(2, 1, 1, 8, 24, 3)

    def slide(x: torch.Tensor, by: int) -> torch.Tensor:
        return torch.cat([x[..., 8 - by * t : 20 - by * t, :] for t in range(3)], dim=1)  # (1, 3, 8, 12, 3)

    def loss(error: torch.Tensor, by: int) -> float:
        flow = torch.tensor([2.0, 0]).expand(1, 3, 8, 12, 2)
        pairs = Pairs(torch.zeros(1, 3, 8, 12, 3), slide(wide, 2), flow, 4, torch.zeros(1))
        return float(job.loss(Watched(pairs, error), pairs, 0.0)[0] - (error.square().mean() + FLOOR).log())

    assert loss(slide(errors, 2), 2) == pytest.approx(math.log(STEADY), abs=1e-3)
    assert loss(slide(errors, 0), 0) > math.log(0.2) and loss(slide(errors, 1), 1) > math.log(0.2)


def test_the_flow_of_files_leads_to_where_things_were() -> None:
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, 16, 20) * 2 - 1
    wide = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic").clamp(-1, 1)[0]
    video = torch.stack([wide[:, :, 16 - 4 * t :][:, :, :64] for t in range(3)], dim=1)  # to the right, 4 pixels each
    found = _flow(MediaBatch(video=video[None], audio=None), MediaSpec(n_frames=3, size=64))[0, :, 8:-8, 12:-12]
    assert not found[0].any()
    assert (found[1:] - torch.tensor([4.0, 0.0])).norm(dim=-1).mean() < 0.5, found[1:].mean((0, 1, 2))


def test_a_change_counts_only_where_the_pixel_was_seen_before() -> None:
    job = make_job(replace(CLEAN, steady_weight=1.0))
    large, error = torch.zeros(1, 2, 8, 8, 3), torch.zeros(1, 2, 8, 8, 3)
    large[:, 1, :, :4] = 1  # uncovered
    error[:, 1, :, :4] = 0.5
    error[:, 1, :, 4:] = 0.1
    pairs = pairs_of(torch.zeros_like(large), large)
    got = float(job.loss(Watched(pairs, error), pairs, 0.0)[0]) - float((error.square().mean() + FLOOR).log())
    assert got == pytest.approx(math.log(0.1 + STEADY), abs=1e-4)
    pairs.flow = pairs.flow + torch.tensor([0.0, -20.0])  # all came from outside
    got = float(job.loss(Watched(pairs, error), pairs, 0.0)[0]) - float((error.square().mean() + FLOOR).log())
    assert got == pytest.approx(math.log(STEADY), abs=1e-4)


def test_the_network_sees_the_line_from_the_noisy_base_to_the_large_clip() -> None:
    job, pairs = make_job(), noise_pairs(400, 2)
    model = Watched(pairs)
    job.loss(model, pairs, 0.0)
    x, base, time, noise, *rest = model.given
    assert base is pairs.base and rest == [pairs.scale, pairs.decoded, pairs.text]
    assert 0.4 < (time == 0).float().mean() < 0.6 and 0.95 < time.max() <= 1
    assert 0.95 < noise.max() / job.model.config.max_noise <= 1
    left = 1 - time.view(-1, 1, 1, 1, 1)
    grain = (x - left * base - (1 - left) * pairs.large) / (left * noise.view(-1, 1, 1, 1, 1))
    grain = grain[(1 - time) * noise > 0.01]  # elsewhere rounding drowns it
    assert grain.diff(dim=1).abs().max() < 1e-3
    assert grain.std(0).mean() == pytest.approx(1, abs=0.05) and grain.mean(0).abs().mean() < 0.1


def test_the_psnr_is_that_of_crops_at_the_beginning() -> None:
    job, pairs, counts = make_job(), noise_pairs(2, 1), set()
    errors = torch.tensor([0.01, 0.09])
    model = Watched(pairs, errors.sqrt().view(2, 1, 1, 1, 1))
    for _ in range(12):
        _, metrics = job.loss(model, pairs, 0.0)
        begins = model.given[2] == 0
        counts.add(int(begins.sum()))
        assert set(metrics) == ({"psnr", "bicubic"} if begins.any() else set())
        if begins.any():
            assert float(metrics["psnr"]) == pytest.approx(10 * math.log10(4 / errors[begins].mean()), abs=1e-3)
    assert counts == {0, 1, 2}


def test_regression_sees_neither_noise_nor_later_times() -> None:
    job, pairs = make_job(replace(CLEAN, regression=True)), noise_pairs(4, 2)
    model = Watched(pairs)
    model.detail = torch.zeros_like(pairs.base)
    _, metrics = job.loss(model, pairs, 0.0)
    x, base, time, noise, *_ = model.given
    assert torch.equal(x, base) and not time.any() and not noise.any()
    assert float(metrics["psnr"]) == pytest.approx(float(metrics["bicubic"]))


def squares(n: int) -> torch.Tensor:
    """Bright squares somewhere in dark clips (n, 3, 2, 32, 32)."""
    video = torch.full((n, 3, 2, 32, 32), -0.5)
    for clip, (top, left) in zip(video, torch.randint(2, 18, (n, 2)).tolist()):
        clip[..., top : top + 12, left : left + 12] = 0.8
    return video


def test_it_learns_to_beat_bicubic() -> None:
    job = make_job(replace(CLEAN, lr=2e-2))
    optimizers = job.optimizers()
    for _ in range(60):
        large = squares(8)
        base, target = (x.permute(0, 2, 3, 4, 1) for x in (upsample(downsample(large, 4), 4), large))
        loss, _ = job.loss(job.model, pairs_of(base, target), 0.0)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    large = squares(4)
    low = downsample(large, 4)
    bicubic = (upsample(low, 4) - large).square().mean()
    for steps, noise in ((1, 0.0), (4, 0.0), (4, 0.1)):
        made = job.model.upscale(low, steps=steps, noise=noise)
        assert (made - large).square().mean() < 0.6 * bicubic, steps


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = make_job()
    fit(whole, tmp_path / "whole", LoopConfig(steps=4, n_evaluate=1), device="cpu")
    job = make_job()
    batch = job.batch

    def die(step, *args):
        if step == 2:
            raise KeyboardInterrupt
        return batch(step, *args)

    job.batch = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(job, tmp_path / "parts", LoopConfig(steps=4, n_evaluate=1, save_every=0.0), device="cpu")
    again = make_job()
    fit(again, tmp_path / "parts", LoopConfig(steps=4, n_evaluate=1), resume=True, device="cpu")
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_command_leaves_a_head_that_opens(debug_model: Path, tmp_path: Path, capsys) -> None:
    command = ["superres", "--preset", "debug", "--steps", "2", "--device", "cpu", "--out"]
    assert main([*command, str(tmp_path / "superres"), "--tokenizers", str(debug_model)]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["n"] == 16 and metrics["bicubic_psnr"] > 5
    head = SuperRes.from_pretrained(tmp_path / "superres")
    words = TextTokenizer.from_pretrained(debug_model / "text_tokenizer")
    assert head.config == superres_config("debug")
    assert main([*command, str(tmp_path / "told"), "--tokenizers", str(debug_model), "--captions"]) == 0
    told = SuperRes.from_pretrained(tmp_path / "told")
    assert told.config == superres_config("debug", text_size=words.vocab_size)
    again = [*command, str(tmp_path / "again"), "--tokenizers", str(debug_model), "--init", str(tmp_path / "told")]
    assert main(again) == 2 and "--captions as it was trained" in capsys.readouterr().err
    assert list((tmp_path / "superres/train/samples").glob("*.png"))
    assert (
        main([*command, str(tmp_path / "more"), "--tokenizers", str(debug_model), "--init", str(tmp_path / "superres")])
        == 0
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokenizers", "/nowhere"], "no model '/nowhere'"),
        (["--tokenizers", "MODEL", "--init", "/nowhere"], "no super-resolution head there"),
        (["--tokenizers", "MODEL", "--data", "/nowhere"], "no such folder"),
        ([], "--tokenizers"),
    ],
)
def test_mistakes_are_told_before_any_work(debug_model: Path, tmp_path: Path, capsys, words, message) -> None:
    words = [str(debug_model) if w == "MODEL" else w for w in words]
    out = tmp_path / "superres"
    assert main(["superres", "--preset", "debug", "--steps", "1", "--out", str(out), *words]) == 2
    assert message in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"ema": 2}, {"clean_share": 0.9, "camera_share": 0.2}, {"lr": 0.0}, {"n_frames": 4}, {"crop": 0},
        {"steady_weight": -1.0}, {"steady_weight": math.nan},
    ],
)  # fmt: skip
def test_settings_are_checked(values) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SuperResTraining(**values)


def test_settings_hold_every_number_and_the_tokenizer() -> None:
    training = replace(CLEAN, lr=1e-4, steady_weight=2.0)
    job = make_job(training)
    before = job.settings
    with torch.no_grad():
        next(job.tokenizer.parameters()).add_(0.5)
    after = job.settings
    assert before.pop("video_tokenizer") != after.pop("video_tokenizer")
    assert before == after == {"batch_size": 4, **asdict(training)}


@pytest.mark.parametrize("training, size", [({"crop": 20}, 64), ({"crop": 128}, 64), ({}, 60)])
def test_crops_that_do_not_fit_are_refused(training, size) -> None:
    with pytest.raises(ValueError, match="need a multiple"):
        make_job(replace(CLEAN, **training), size)
