"""The suite measures a model end to end; its metrics agree with slow references, its baselines with hand counts."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks import AVPoet, InputError
from train.data.playground import Playground
from train.data.playground.scene import Scene
from train.evaluate import command, generation, prompts
from train.evaluate.grid import LINE, N_FRAMES, SCALE, grid
from train.evaluate.report import Report, Row, compared, effective, mean, t_quantile
from train.evaluate.suite import PARTS, Shown, Suite, playground_suite
from train.evaluate.tokenizer_metrics import CodeUse, psnr, ssim


@pytest.fixture(scope="module")
def poet(debug_model: Path) -> AVPoet:
    return AVPoet.from_pretrained(debug_model, device="cpu")


def test_psnr_is_the_mean_of_the_frames_decibels() -> None:
    target = torch.zeros(2, 3, 2, 4, 4)
    output = target.clone()
    output[0, :, 0] = 0.1  # 20 dB
    output[0, :, 1] = 0.01  # 40 dB
    assert psnr(output, target).tolist() == pytest.approx([30.0, 100.0], abs=1e-3)
    with pytest.raises(ValueError, match="expected"):
        psnr(output, target[:1])


def slow_ssim(a: Tensor, b: Tensor) -> float:
    """Window by window, for one channel of one frame (H, W)."""
    at = torch.arange(11.0, dtype=torch.float64) - 5
    g = torch.exp(-(at**2) / (2 * 1.5**2))
    w = g.outer(g) / g.outer(g).sum()
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11].double(), b[i : i + 11, j : j + 11].double()
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq, c = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum(), (w * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + 1e-4) * (2 * c + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return float(torch.stack(values).mean())


def test_ssim_agrees_with_a_slow_loop() -> None:
    g = torch.manual_seed(0)
    a = torch.rand(1, 3, 2, 13, 12, generator=g)
    b = (a + 0.2 * torch.randn(a.shape, generator=g)).clamp(0, 1)
    slow = [slow_ssim(a[0, c, t], b[0, c, t]) for c in range(3) for t in range(2)]
    assert float(ssim(a, b)) == pytest.approx(sum(slow) / len(slow), abs=1e-5)
    assert float(ssim(a, a)) == pytest.approx(1.0)


def test_code_use_counts_over_batches() -> None:
    use = CodeUse.of_size(8)
    use.add(torch.tensor([[0, 1]]))
    use.add(torch.tensor([[2, 3]]))
    assert (use.share, use.entropy) == (0.5, pytest.approx(2.0))
    alone = CodeUse.of_size(8)
    alone.add(torch.zeros(5, dtype=torch.int64))
    assert (alone.share, alone.entropy) == (0.125, 0.0)


def echo(scene: Scene) -> SimpleNamespace:
    """A reading in which all is as the scene has it."""
    thing = scene.objects[0]
    return SimpleNamespace(
        colour=thing.colour, shape=thing.shape, size=thing.size, motion=thing.motion,
        went=lambda motion, direction: (motion, direction) == (thing.motion, thing.direction),
        track=SimpleNamespace(visible=torch.ones(17, dtype=torch.bool)),
    )  # fmt: skip


def test_the_baseline_judges_each_clip_by_other_prompts() -> None:
    scenes = Playground("test").evaluation_scenes(6)
    readings = [echo(scene) for scene in scenes]
    assert all(all(v is not False for v in prompts.judge(r, s).values()) for r, s in zip(readings, scenes))
    colours = [scene.objects[0].colour for scene in scenes]
    pairs = [(a, b) for i, a in enumerate(colours) for j, b in enumerate(colours) if i != j]
    by_hand = sum(a == b for a, b in pairs) / len(pairs)
    assert prompts.shuffled(readings, scenes)["colour"] == pytest.approx(by_hand)
    assert math.isnan(prompts.shuffled(readings[:1], scenes[:1])["colour"])


def test_size_counts_only_where_the_prompt_tells_it() -> None:
    scenes = Playground("test").evaluation_scenes(40)
    told = [scene for scene in scenes if prompts.tells_size(scene)]
    assert 10 < len(told) < 35
    verdicts = [prompts.judge(echo(scene), scene) for scene in scenes]
    assert prompts.share(verdicts, "size") == (1.0, len(told))
    assert math.isnan(prompts.share([{"size": None}], "size")[0])


def test_shifted_pairings_never_pair_a_row_with_itself() -> None:
    seen: list[list[int]] = []
    prompts.over_shifts(4, lambda paired: float(len(seen.append(paired) or seen)))
    assert len(seen) == 3 and all(k != i for paired in seen for i, k in enumerate(paired))


def test_one_clip_of_a_batch_is_the_clip_the_model_makes_alone(poet: AVPoet) -> None:
    scenes = Playground("test").evaluation_scenes(2)
    captions = [scene.caption for scene in scenes]
    both = generation.generate(poet, "text_to_video", captions=captions, seeds=[5, 6])
    assert both.video is not None and both.audio is not None
    for i in range(2):
        alone = poet.text_to_video(captions[i], seed=5 + i)
        assert alone.frames is not None and alone.samples is not None
        assert torch.equal(both.video[i], alone.frames)
        n = min(both.audio.shape[1], len(alone.samples))
        assert torch.allclose(both.audio[i, :n], alone.samples[:n], atol=1e-5)


def test_a_continued_clip_begins_with_what_was_given(poet: AVPoet) -> None:
    suite = Suite(poet, 2, progress=False)
    ids, _ = generation.encode(poet, suite.world.render(suite.world.evaluation_scenes(2), suite.spec), None)
    assert ids is not None
    whole = generation.decode(poet, ids, None).video
    made = generation.generate(
        poet, "frame_prediction", captions=[None] * 2, video=ids, seeds=[0, 1], sound=False, n_context=2
    ).video
    assert whole is not None and made is not None and made.shape == whole.shape
    assert torch.equal(made[:, :5], whole[:, :5])  # the tokenizer is causal


def arguments(model: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(model), "--n", "2", "--device", "cpu", *more])


def test_the_whole_suite_runs_on_an_untrained_model(
    debug_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "table.md", tmp_path / "grid.png"
    assert command.run(arguments(debug_model, "--out", str(out), "--grid", str(picture))) == 0
    stdout, stderr = capsys.readouterr()
    result = json.loads(stdout.strip().splitlines()[-1])
    assert {row["part"] for row in result["rows"]} == set(PARTS)
    assert result["conditions"]["n"] == 2 and result["conditions"]["split"] == "test"
    assert result["conditions"]["command"].startswith("avpoet-train evaluate")
    assert all(row["n"] >= 0 for row in result["rows"])
    psnrs = [row for row in result["rows"] if row["unit"] == "dB" and "PSNR" in row["measure"]]
    assert psnrs and all(row["value"] > 0 for row in psnrs)
    assert out.read_text().strip() in stdout and json.loads(out.with_suffix(".json").read_text()) == result
    assert picture.stat().st_size > 1000
    assert "text_to_video" in stderr and "text_to_video: " not in stdout  # progress goes to stderr


def test_sound_is_measured_with_every_number_of_levels(poet: AVPoet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Playground, "render", lambda *a: pytest.fail("draws pictures to measure sound"))
    given: list[int] = []
    decode = poet.codec.audio.decode
    monkeypatch.setattr(poet.codec.audio, "decode", lambda ids: given.append(ids.shape[1]) or decode(ids))
    rows = playground_suite(poet, 6, only=["sound_reconstruction"], batch=3, progress=False)[0].rows
    assert given == [1, 2, 1, 2]
    named = {row.measure: row for row in rows}
    assert len(named) == len(rows)
    for what in ("audio mel distance, decades", "audio SI-SDR, clips that sound", ON_TIME, IN_TUNE):
        assert {m for m in named if m.startswith(what)} == {what, what + ", 1 level"}
        assert named[what].value != named[what + ", 1 level"].value or what in (ON_TIME, IN_TUNE)
    assert named[ON_TIME].truth > 0.9 and named[IN_TUNE].truth > 0.9 and named[IN_TUNE].n >= 2


ON_TIME, IN_TUNE = "impacts with an onset within 10 ms", "isolated impacts with a pitch within half a semitone"


def test_a_perfect_codec_keeps_pitch_and_onset_and_a_late_low_one_does_not(
    poet: AVPoet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figures(change: Callable[[Tensor], Tensor]) -> list[float]:
        """Shares on time and in tune of a codec that gives `change` of its input."""
        given: list[Tensor] = []
        encode = generation.encode
        with monkeypatch.context() as patch:
            patch.setattr(generation, "encode", lambda p, v, a: given.append(a) or encode(p, v, a))
            patch.setattr(generation, "decode", lambda p, v, a: generation.Media(None, change(given[-1])))
            rows = playground_suite(poet, 16, only=["sound_reconstruction"], progress=False)[0].rows
        named = {row.measure: row.value for row in rows}
        return [named[ON_TIME], named[IN_TUNE], named["audio mel distance, decades"]]

    on_time, in_tune, far = figures(lambda x: x)
    assert on_time > 0.95 and in_tune > 0.95 and far == 0
    on_time, in_tune, far = figures(lambda x: F.pad(x, (480, 0))[:, : x.shape[1]])  # 30 ms late
    assert on_time < 0.1 and in_tune > 0.9 and far > 0.03
    on_time, in_tune, _ = figures(lambda x: x * torch.cos(torch.arange(x.shape[1]) * 0.5))  # other partials
    assert on_time > 0.5 and in_tune < 0.2


def test_results_do_not_depend_on_the_batch(poet: AVPoet) -> None:
    parts = ["reconstruction", "sound_reconstruction", "image_to_video"]
    one, two = (playground_suite(poet, 3, only=parts, batch=b, progress=False)[0].rows for b in (1, 3))
    for a, b in zip(one, two):
        assert a.value == pytest.approx(b.value, abs=1e-3, nan_ok=True), a.measure


def test_wrong_requests_are_told_before_any_work(debug_model: Path, tmp_path: Path, poet: AVPoet) -> None:
    missing = tmp_path / "no" / "table.md"
    for more, message in (
        (("--only", "colour"), "expected some of reconstruction"),
        (("--n", "0"), "at least 1"),
        (("--out", str(missing)), "cannot be written"),
        (("--out", str(tmp_path / "table.txt")), "ends in .md"),
        (("--grid", str(tmp_path / "grid.doc")), "ends in .png"),
    ):
        with pytest.raises(InputError, match=message):
            command.run(arguments(debug_model, *more))
    with pytest.raises(InputError, match="unknown part"):
        playground_suite(poet, 1, only=["colour"])


def test_intervals_of_shares_lie_within_what_is_possible() -> None:
    def interval(value: float, n: int, **more: float) -> tuple[float, float]:
        found = Row("t", "right", value, "%", n, **more).interval
        assert found is not None
        return found

    assert interval(0.96, 50) == pytest.approx((0.865, 0.989), abs=1e-3)  # Wilson
    assert interval(1.0, 13) == pytest.approx((0.772, 1.0), abs=1e-3) and interval(0.0, 13)[0] == 0
    assert interval(0.5, 400, independent=100.0) == interval(0.5, 100)
    assert Row("t", "PSNR", 30.0, "dB", 5).interval is None


def test_moments_of_one_clip_count_as_one_as_far_as_they_go_together() -> None:
    assert effective([4, 0, 4, 0], [4, 4, 4, 4]) == pytest.approx(3)  # each clip all or nothing: 4 trials, less one
    assert effective([2, 2, 2, 2], [4, 4, 4, 4]) == 4  # no difference between clips says nothing of them
    assert effective([3, 3], [3, 3]) == 2 and math.isnan(effective([3], [3])) and math.isnan(effective([0, 1], [0, 1]))
    apart = [int(k % 2 == 0) for k in range(40)]
    assert effective(apart, [1] * 40) == pytest.approx(39)
    random = torch.Generator().manual_seed(0)
    hits = torch.rand(400, 3, generator=random).lt(0.7).sum(1).tolist()
    assert 900 < effective(hits, [3] * 400) <= 1200  # alone, they count nearly all


def test_a_report_shows_missing_figures_as_dashes_and_null() -> None:
    row = Row("t", "colour right", 0.5, "%", 100, truth=1.0, baseline=0.125, baseline_is="other prompts")
    report = Report([row, Row("t", "error", math.inf, "ms", 3, better="lower")], {"command": "x", "n": 100})
    table = report.markdown()
    assert "| t | colour right | 50.0 % (40.4–59.6) | 100.0 % | – | 12.5 % (other prompts) | 100 |" in table
    assert "| t | error ↓ | ∞ | – | – | – | 3 |" in table
    rows = json.loads(report.to_json())["rows"]
    assert rows[0]["tokenizer"] is None and rows[1]["value"] is None
    assert mean([1.0, math.nan, 3.0]) == 2.0 and math.isnan(mean([]))


def test_a_difference_from_a_baseline_is_taken_clip_by_clip():
    row = compared("inpainting", "PSNR", [20.0, 31.0, 39.0], [19.0, 29.0, 39.0], "nearest pixel", tokenizer=40.0)
    assert row.value == 30 and row.baseline == 29 and row.n == 3
    assert row.over_baseline == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)  # Student's t, df 2
    assert "| 30.00 dB | – | 40.00 dB | 29.00 dB (nearest pixel): +1.00 ± 2.48 | 3 |" in Report([row]).markdown()


@pytest.mark.parametrize(
    ("df", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (11, 2.20099), (100, 1.98397), (9999, 1.9602)]
)
def test_quantiles_are_those_of_the_tables(df: int, t: float) -> None:
    assert t_quantile(df) == pytest.approx(t, rel=1e-5)


def test_the_grid_holds_every_clip_and_its_caption() -> None:
    frames = torch.full((17, 8, 8, 3), 200, dtype=torch.uint8)
    sheet = grid([Shown("t", "a red ball", frames, frames), Shown("t", "a blue cube", frames)])
    assert sheet.size == (SCALE * 8 * N_FRAMES, SCALE * 8 * 3 + 2 * LINE)
    assert sheet.getpixel((0, 0)) == (200, 200, 200)
    with pytest.raises(ValueError, match="no clips"):
        grid([])
