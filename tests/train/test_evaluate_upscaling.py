"""The super-resolution suite measures every way to enlarge, on small clips as they are and as they are decoded."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tasks import AVPoet, InputError
from tokenizers_av.superres import SuperRes, downsample, in_between, superres_config, upsample
from train.data import MediaSpec
from train.data.playground import Playground
from train.evaluate import command, generation, upscaling
from train.evaluate.tokenizer_metrics import psnr
from train.evaluate.upscaling import MEASURES, Figures, UpscalingReport, lanczos, superres_suite

WAYS = ["truth", "bicubic", "Lanczos", "1 step, noise 0.1", "2 steps, noise 0.1", "4 steps, noise 0.1",
        "8 steps, noise 0.1", "4 steps, noise 0", "4 steps, noise 0.2", "4 steps, noise 0.3"]  # fmt: skip
KEPT = ["truth", "bicubic", "Lanczos", "1 step, noise 0", "2 steps, noise 0", "4 steps, noise 0", "8 steps, noise 0",
        "4 steps, noise 0.1", "4 steps, noise 0.2", "4 steps, noise 0.3"]  # clean clips, of which nothing is made up


class Grainy:
    """A head that leaves its noise on the bicubic clip."""

    config = superres_config("debug", noise=0.1, max_noise=0.3)

    def __init__(self) -> None:
        self.kept = set[bool]()

    def upscale(
        self, video: Tensor, scale: int, *, rate: int = 1, steps: int = 4, noise: float = 0.1, seed: int,
        keep: bool = False, text: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        self.kept.add(keep)
        large = upsample(video, scale)
        if text is not None:
            return -large
        grain = torch.randn(1, 3, 1, *large.shape[3:], generator=torch.Generator().manual_seed(seed))
        return in_between((large + noise * grain).clamp(-1, 1), rate)


@pytest.fixture(scope="module")
def loaded(debug_model: Path) -> AVPoet:
    return AVPoet.from_pretrained(debug_model, device="cpu")


@pytest.fixture
def poet(loaded: AVPoet, monkeypatch: pytest.MonkeyPatch) -> AVPoet:
    monkeypatch.setattr(loaded, "superres_head", Grainy(), raising=False)
    return loaded


def means(report: UpscalingReport) -> dict[tuple[str, str], SimpleNamespace]:
    """(part, method) -> the mean of each measure."""
    rows = json.loads(report.to_json())["rows"]
    return {(r["part"], r["method"]): SimpleNamespace(**{m: r[m]["mean"] for m in MEASURES}) for r in rows}


def test_every_way_is_measured_on_both_parts(poet: AVPoet, capsys: pytest.CaptureFixture[str]) -> None:
    report = superres_suite(poet, 2, scale=2, only=["clean", "decoded"])
    of = means(report)
    assert list(of) == [*(("clean", way) for way in KEPT), *(("decoded", way) for way in WAYS)]
    assert all(len(v) == 2 for row in report.rows for v in row.values.values())
    for part, least in (("clean", "4 steps, noise 0.1"), ("decoded", "1 step, noise 0.1")):
        truth = of[part, "truth"]
        assert (truth.psnr, truth.gmsd, truth.detail, truth.seconds) == (100, 0, 1, None)
        silent = of[part, "4 steps, noise 0"]
        assert silent.psnr == of[part, "bicubic"].psnr and silent.seconds > 0
        plain, noisy, noisier = (of[part, name] for name in ("bicubic", least, "4 steps, noise 0.3"))
        assert plain.psnr > noisy.psnr > noisier.psnr and plain.flicker < noisy.flicker < noisier.flicker
        assert plain.detail < noisy.detail < noisier.detail and noisy.detail_off < noisier.detail_off
    assert of["clean", "bicubic"].detail < 1 < of["clean", "4 steps, noise 0.1"].detail
    assert of["clean", "bicubic"].psnr > of["decoded", "bicubic"].psnr + 5  # an untrained tokenizer keeps little
    assert of["clean", "truth"].kept < 1 < of["decoded", "truth"].kept
    assert report.conditions["clip"] == "9 frames of 32x32 at 8 a second" and report.conditions["split"] == "test"
    assert report.markdown().count("\n| clean |") == len(WAYS)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(("part", "rate"), [("between", 2), ("thirds", 3)])
def test_frames_between_are_measured_beside_plain_interpolation(
    poet: AVPoet, monkeypatch: pytest.MonkeyPatch, part: str, rate: int
) -> None:
    monkeypatch.setattr(upscaling, "_small", lambda poet, truth, scale, decoded: small_of(truth, scale))
    of = means(superres_suite(poet, 1, scale=2, only=[part], progress=False))
    ways = ["truth", "bicubic, blend", "bicubic, optical flow", "head, blend", f"head, rate {rate}"]
    assert list(of) == [(part, way) for way in ways]
    assert of[part, "truth"].psnr == 100 and of[part, "truth"].kept is None
    video = Playground("test").batch([0], MediaSpec(1 + 8 * rate, 32, 8.0 * rate), audio=False).video
    assert video is not None
    truth = generation.to_frames(video)
    large = upsample(small_of(truth[:, ::rate], 2), 2)
    noisy = poet.superres_head.upscale(small_of(truth[:, ::rate], 2), 2, steps=4, noise=0.1, seed=0)  # its own noise
    between = [(t, k) for t in range(8) for k in range(1, rate)]  # k of rate from frame t to the next
    for way, made in (
        ("bicubic, blend", blend(large, between, rate)), ("head, blend", blend(noisy, between, rate)),
        ("bicubic, optical flow", torch.stack([in_between(large, rate)[:, :, rate * t + k] for t, k in between], 2)),
        (f"head, rate {rate}", torch.stack([in_between(noisy, rate)[:, :, rate * t + k] for t, k in between], 2)),
    ):  # fmt: skip
        wanted = torch.stack([truth[:, rate * t + k] for t, k in between], dim=1)
        by_hand = psnr(generation.to_unit(generation.to_frames(made)), generation.to_unit(wanted))
        assert of[part, way].psnr == pytest.approx(float(by_hand), abs=2e-3), way


def blend(video: Tensor, between: list[tuple[int, int]], rate: int) -> Tensor:
    frames = [((rate - k) * video[:, :, t] + k * video[:, :, t + 1]) / rate for t, k in between]
    return torch.stack(frames, dim=2)


def small_of(truth: Tensor, scale: int) -> Tensor:
    return generation.to_network(generation.to_frames(downsample(generation.to_network(truth), scale)))


def test_clean_clips_are_kept_and_decoded_ones_may_be_mended(poet: AVPoet) -> None:
    for part, keep in (("clean", True), ("decoded", False)):
        poet.superres_head = head = Grainy()  # type: ignore[assignment]
        superres_suite(poet, 1, scale=2, only=[part], progress=False)
        assert head.kept == {keep}


def test_a_head_that_looks_at_text_is_also_told_the_caption(poet: AVPoet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grainy, "config", replace(Grainy.config, text_size=poet.codec.text.vocab_size))
    of = means(superres_suite(poet, 1, scale=2, only=["clean"], progress=False))
    assert list(of)[-1] == ("clean", "4 steps, noise 0, caption")
    assert of["clean", "4 steps, noise 0, caption"].psnr < 20 < of["clean", "4 steps, noise 0"].psnr


class Knowing:
    """A head that has seen the true clips, and tells them by the seed."""

    config = superres_config("debug", noise=0.1, max_noise=0.3)

    def __init__(self, seed: int) -> None:
        self.world, self.first, self.asked = Playground("test", seed=seed), seed, set[tuple[int, float, int]]()

    def upscale(
        self, video: Tensor, scale: int, *, steps: int, noise: float, seed: int, keep: bool, text: Tensor | None
    ) -> Tensor:
        assert text is None and not keep
        if video.shape[2] < 9:  # to warm up
            return upsample(video, scale)
        self.asked.add((steps, noise, seed))
        clip = self.world.batch([seed - self.first], MediaSpec(9, 32), audio=False).video
        assert clip is not None
        return clip


def test_a_head_that_makes_the_true_clips_scores_as_they_do(poet: AVPoet) -> None:
    head: Any = Knowing(seed=3)
    poet.superres_head = head
    of = means(superres_suite(poet, 2, 3, scale=2, only=["decoded"], progress=False))
    assert {part for part, _ in of} == {"decoded"}
    assert head.asked == {(s, x, 3 + i) for s, x in [(1, 0.1), (2, 0.1), (4, 0.1), (8, 0.1), (4, 0), (4, 0.2), (4, 0.3)]
                          for i in (0, 1)}  # fmt: skip
    for way in WAYS[3:]:
        assert vars(of["decoded", way]) | {"seconds": None} == vars(of["decoded", "truth"])
    assert of["decoded", "bicubic"].psnr < 40


def test_files_are_measured_too(poet: AVPoet, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "still.png")
    report = superres_suite(poet, 1, data=[str(tmp_path)], only=["clean"], progress=False)
    of = means(report)
    assert max(of["clean", way].flicker for way in KEPT) < 1e-3  # noise stands still, too
    truth = torch.from_numpy(pixels[None, None, :, 8:72])  # cropped square
    small = generation.to_frames(downsample(generation.to_network(truth), 4))
    made = generation.to_frames(upsample(generation.to_network(small), 4))
    by_hand = psnr(generation.to_unit(made), generation.to_unit(truth))
    assert of["clean", "bicubic"].psnr == pytest.approx(float(by_hand), abs=1e-3)
    assert of["clean", "bicubic"].detail < 0.1
    assert math.isnan(report.rows[0].margin("psnr")) and report.conditions["data"] == str(tmp_path)


def test_lanczos_is_pillows() -> None:
    frames = np.random.default_rng(0).integers(40, 200, (2, 12, 10, 3), dtype=np.uint8)
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    made = ((lanczos(video, 4) + 1) * 127.5)[0].permute(1, 2, 3, 0)
    for one, frame in zip(made, frames, strict=True):
        whole = np.asarray(Image.fromarray(frame).resize((40, 48), Image.Resampling.LANCZOS)).astype(float)
        assert np.abs(one.numpy() - whole).max() < 1.5  # Pillow rounds twice on the way


def test_intervals_are_of_the_mean_and_of_differences_on_the_same_clips() -> None:
    def row(method: str, psnrs: list[float]) -> Figures:
        return Figures("clean", method, dict.fromkeys(MEASURES, psnrs))

    rows = [row("bicubic", [20.0, 30.0, 40.0]), row("head", [21.0, 31.0, 41.0]), row("other", [23.0, 33.0, 43.0])]
    report = UpscalingReport(rows, {"command": "x"}, ("other",))
    assert report.rows[1].margin("psnr") == pytest.approx(4.30265 * 10 / math.sqrt(3))  # Student's t, df 2
    head = json.loads(report.to_json())["rows"][1]
    assert head["n"] == 3 and head["psnr"]["mean"] == 31 and head["psnr"]["margin"] == pytest.approx(24.841, abs=1e-3)
    assert head["psnr"]["over_bicubic"] == {"mean": 1, "margin": 0}
    assert head["psnr"]["over_other"] == {"mean": -2, "margin": 0} and "over_Lanczos" not in head["psnr"]
    assert "| clean | head | 31.00 ± 24.84 | " in report.markdown() and report.markdown().startswith("`x`\n")


def untrained() -> SuperRes:
    return SuperRes(superres_config("debug", noise=0.1, max_noise=0.3)).eval()


def arguments(model: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(model), "--n", "1", "--device", "cpu", *more])


def test_the_command_compares_with_another_head(
    poet: AVPoet, debug_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AVPoet, "from_pretrained", lambda model, device: poet)
    poet.superres_head = untrained()
    untrained().save_pretrained(tmp_path / "other")
    out, other = tmp_path / "table.md", str(tmp_path / "other")
    still = tmp_path / "still.png"
    Image.new("RGB", (40, 32), "teal").save(still)
    options = ["--only", "clean", "--data", str(still), "--scale", "2", "--against", other]
    assert command.run(arguments(debug_model, "--suite", "superres", "--out", str(out), *options)) == 0
    table, line = capsys.readouterr().out.strip().rsplit("\n", 1)
    result = json.loads(line)
    assert [row["method"] for row in result["rows"]] == [*KEPT, "regression"]
    assert {row["part"] for row in result["rows"]} == {"clean"}
    plain, silent, other_s = (r["psnr"] for r in result["rows"] if r["method"] in ("bicubic", KEPT[5], "regression"))
    assert plain == silent == other_s  # an untrained head changes nothing
    assert result["conditions"]["command"].endswith(shlex.join([*options, "--device", "cpu"]))
    assert (result["conditions"]["data"], result["conditions"]["scale"]) == (str(still), 2)
    assert out.read_text().strip() == table.strip() and json.loads(out.with_suffix(".json").read_text()) == result


def test_wrong_requests_are_told_before_any_work(
    poet: AVPoet, debug_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscaling, "_small", lambda *a, **k: pytest.fail("began to work"))
    for more, message in (
        (("--data", "playground"), "--data is an option of --suite superres"),
        (("--against", str(tmp_path)), "--against is an option of --suite superres"),
        (("--suite", "superres", "--grid", str(tmp_path / "a.png")), "--grid is an option of --suite playground"),
        (("--suite", "superres", "--batch-size", "2"), "--batch-size is an option of --suite playground"),
        (("--suite", "superres", "--only", "text_to_video"), "expected some of clean, decoded"),
        (("--suite", "superres", "--against", str(tmp_path / "no")), "no super-resolution head there"),
    ):
        with pytest.raises(InputError, match=message):
            command.run(arguments(debug_model, *more))
    for values, message in (
        ({"n": 0}, "need n >= 1"),
        ({"n": 1, "scale": 3}, "scale of 2 or 4"),
        ({"n": 1, "only": ["colour"]}, "expected some of clean, decoded"),
        ({"n": 1, "data": str(tmp_path / "no")}, "no such folder"),
        ({"n": 1, "only": ["between"], "data": str(tmp_path)}, "between: only of the playground"),
        ({"n": 1, "only": ["thirds"], "data": str(tmp_path)}, "exactly 3 times"),
    ):
        with pytest.raises(InputError, match=message):
            superres_suite(poet, **values)  # type: ignore[arg-type]
    poet.superres_head = None
    with pytest.raises(InputError, match="no super-resolution head"):
        superres_suite(poet, 1)
