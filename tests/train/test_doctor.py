"""The doctor: a sound training passes, each part that is broken is named, and unusable data is one line."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks import command
from tasks.errors import InputError
from tokenizers_av.clip import Clip
from tokenizers_av.video import VideoTokenizer, video_tokenizer_config
from tokenizers_av.video.layers import SpatialDown, TemporalConv
from train import checkup, doctor, loop, video_checkup
from train.checkup import Failed, OneClip, Target
from train.data import MediaSpec
from train.discriminator import DownBlock
from train.doctor import Check, diagnose
from train.loop import LoopConfig
from train.video_tokenizer import VideoTokenizerJob
from train.video_training import VideoTraining

SPEC = MediaSpec(n_frames=5, size=16)
CPU = torch.device("cpu")


def save_clip(path: Path, *, moving: bool = True) -> None:
    x = torch.arange(32).view(1, 1, -1, 1) + 16 * torch.arange(12).view(-1, 1, 1, 1) * moving
    frames = (127 + 120 * torch.sin(x / 8 + torch.arange(32).view(1, -1, 1, 1) / 16)).expand(-1, -1, -1, 3)
    Clip(frames.byte().contiguous(), 8.0).save(path)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film that stands still, one that moves, one that is none, and a sound."""
    folder = tmp_path_factory.mktemp("clips")
    save_clip(folder / "a_still.gif", moving=False)
    save_clip(folder / "b_moves.mp4")
    (folder / "c_bad.mp4").write_text("not a film")
    Clip(None, 8.0, torch.zeros(1600)).save(folder / "d.wav")  # a tenth of a second
    return folder


@pytest.fixture
def model() -> VideoTokenizer:
    torch.manual_seed(0)
    return VideoTokenizer(video_tokenizer_config("debug"))


@pytest.fixture
def clip() -> Tensor:
    return 2 * torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) - 1


def goal(need: float, enough: float) -> tuple[Target, ...]:
    return (Target(metric="psnr", need=need, enough=enough, useless=5.0),)


def words(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.words for check in checks}


def test_a_sound_training_passes_and_leaves_model_and_picture(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_checkup, "GOAL", goal(10.0, 34.0))  # 33 takes longer
    seen: list[Check] = []
    checks = diagnose(clips, preset="debug", steps=30, device="cpu", out=tmp_path / "out", report=seen.append)
    assert checks == seen and [check.name for check in checks] == [
        "machine", "data", "quantizer", "causality", "streaming", "sizes", "gradient", "losses", "checkpoint",
        "overfit", "codes", "picture", "memory",
    ]  # fmt: skip
    assert all(check.ok for check in checks), [str(check) for check in checks]
    found = words(checks)
    assert found["data"].startswith("4 files, 2 skipped: c_bad.mp4 (") and "d.wav (sound); b_moves.mp4" in found["data"]
    assert "5 frames of 16x16" in found["data"] and found["data"].endswith("moving")
    assert found["overfit"].endswith("(30 steps), needs 10 dB")
    assert VideoTokenizer.from_pretrained(tmp_path / "out").config.bits == 8
    assert (tmp_path / "out/reconstruction.png").is_file()
    with pytest.raises(InputError, match="not empty"):
        diagnose(clips, preset="debug", steps=1, device="cpu", out=tmp_path / "out")


def test_training_stops_once_the_clip_is_known(
    model: VideoTokenizer, clip: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "CHECK_EVERY", 0.0)
    source = OneClip(clip)
    job = VideoTokenizerJob(model, source, source, SPEC, batch_size=1, training=video_checkup.OVERFIT)
    found = checkup.check_overfit(job, goal(0.0, 0.0), tmp_path, LoopConfig(minutes=5), CPU)
    assert "(1 steps), needs 0 dB" in found


def test_a_layer_that_looks_ahead_is_named_and_the_other_checks_go_on(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    causal = TemporalConv.forward
    monkeypatch.setattr(TemporalConv, "forward", lambda self, x, flow: causal(self, x + x.mean(1, keepdim=True), flow))
    checks = diagnose(clips / "b_moves.mp4", preset="debug", steps=2, device="cpu")
    failed = {check.name: check.words for check in checks if not check.ok}
    assert "depend on frame 6: a layer looks ahead" in failed["causality"] and "do not agree" in failed["streaming"]
    assert "needs 33 dB: a step takes" in failed["overfit"] and {"machine", "data", "gradient"}.isdisjoint(failed)


def test_a_layer_that_forgets_is_found(model: VideoTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = checkup.shaken(model)
    assert "chunks of any length" in video_checkup.check_streaming(moved)
    causal = TemporalConv.forward

    def forgets(self: TemporalConv, x: Tensor, flow) -> Tensor:
        if flow.tails is not None and not flow.first:
            flow.tails[self] = torch.zeros_like(flow.tails[self])
        return causal(self, x, flow)

    monkeypatch.setattr(TemporalConv, "forward", forgets)
    with pytest.raises(Failed, match="do not agree"):
        video_checkup.check_streaming(moved)


def test_wrong_ids_and_dead_gradients_of_a_quantizer_are_found(
    model: VideoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "256 ids" in video_checkup.check_quantizer(model)
    kind = type(model.quantizer)
    with monkeypatch.context() as broken:
        broken.setattr(kind, "_ids", lambda self, z, right=kind._ids: right(self, z) // 2 * 2)
        with pytest.raises(Failed, match="128 of 256 ids do not come back"):
            video_checkup.check_quantizer(model)
    monkeypatch.setattr(kind, "_carrier", lambda self, z: z.detach() + 0 * z)
    with pytest.raises(Failed, match="no gradient passes"):
        video_checkup.check_quantizer(model)


def test_parameters_without_a_gradient_are_named(
    model: VideoTokenizer, clip: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, training = OneClip(clip), video_checkup.OVERFIT

    def job() -> VideoTokenizerJob:
        return VideoTokenizerJob(copy.deepcopy(model), source, source, SPEC, batch_size=1, training=training)

    assert "reaches all" in checkup.check_gradient(job(), CPU)
    right = SpatialDown.forward
    monkeypatch.setattr(SpatialDown, "forward", lambda self, x: right(self, x).detach())
    with pytest.raises(Failed, match=r"does not reach encoder\..* and \d+ more"):
        checkup.check_gradient(job(), CPU)


def test_a_checkpoint_that_forgets_the_optimizer_is_found(
    model: VideoTokenizer, clip: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job() -> VideoTokenizerJob:
        source, training = OneClip(clip), video_checkup.OVERFIT
        return VideoTokenizerJob(copy.deepcopy(model), source, source, SPEC, batch_size=1, training=training)

    def forgets(folder: Path, models: dict, optimizers: list, right=loop.load_checkpoint) -> dict:
        return right(folder, models, [copy.deepcopy(o) for o in optimizers])

    monkeypatch.setattr(loop, "load_checkpoint", forgets)
    with pytest.raises(Failed, match=r"resumed at step 2 has loss .* at step 3 instead"):
        checkup.check_checkpoint(model.eval(), job, clip, tmp_path)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.full((1, 3, 5, 16, 16), 0.2), "one colour"),
        (torch.rand(1, 3, 5, 16, 16) * 255, "expected .-1, 1"),
    ],
)
def test_clips_that_teach_nothing_are_refused(video: Tensor, message: str) -> None:
    with pytest.raises(Failed, match=message):
        video_checkup.check_clip(video, "clip")


def test_a_clip_that_stands_still_is_used_with_a_word(clips: Path) -> None:
    video, about = video_checkup.find_clip(clips / "a_still.gif", SPEC, 0)
    assert video_checkup.check_clip(video, about).endswith("standing still: nothing of time is tested")
    video, about = video_checkup.find_clip("playground", SPEC, 0)
    assert video.shape == (1, 3, 5, 16, 16) and "playground" in about


def test_few_codes_on_a_clip_are_a_collapse(model: VideoTokenizer, clip: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "varied")
    with torch.no_grad():
        model.encoder[-1].weight.zero_()
    model.save_pretrained(tmp_path / "same")
    assert "of 256 on the 8 places of the clip" in video_checkup.check_codes(tmp_path / "varied", clip, CPU)
    with pytest.raises(Failed, match=r"1 of 256 .* 0\.0 bits of at most 3\.0: the codes have collapsed"):
        video_checkup.check_codes(tmp_path / "same", clip, CPU)


def main(*argv: str) -> int:
    parser = command.Parser("doctor")
    doctor.add_arguments(parser)
    return command.run(lambda words: doctor.run(parser.parse_args(words)), argv, "avpoet-train")


@pytest.mark.parametrize(
    ("passed", "code", "last"),
    [((True, True), 0, "pass"), ((True, False), 1, "1 check failed"), ((False, False), 1, "2 checks failed")],
)
def test_exit_code_and_last_line_say_how_many_failed(
    passed, code, last, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(data, *, report, **options) -> list[Check]:
        assert data == "playground" and options["minutes"] == 4.0 and options["preset"] == "tiny"
        assert options["tokenizer"] == "video-tokenizer"
        checks = [Check(f"part{i}", ok, "words") for i, ok in enumerate(passed)]
        for check in checks:
            report(check)
        return checks

    monkeypatch.setattr(doctor, "diagnose", found)
    assert main() == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last and lines[0] == f"{'ok   ' if passed[0] else 'FAIL '} part0: words"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere"], "no such folder or file"),
        (["--data", "c_bad.mp4"], "no picture can be read in 1 file, 1 skipped: c_bad.mp4"),
        (["--data", "d.wav"], "d.wav (sound)"),
        (["audio-tokenizer", "--data", "c_bad.mp4"], "no sound can be read in 1 file, 1 skipped: c_bad.mp4"),
        (["audio-tokenizer", "--data", "d.wav"], "d.wav (less than 0.5 s of sound)"),
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--minutes", "0"], "need a number above 0"),
        (["--device", "warp"], "device 'warp'"),
        (["--out", "."], "is not empty"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clips)
    assert main(*arguments) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("avpoet-train: error:") and error.count("\n") == 1 and message in error


def test_a_discriminator_that_learns_nothing_is_found(
    model: VideoTokenizer, clip: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = VideoTraining(adversarial_weight=0.1, adversarial_from=0.0, r1_every=1, image_share=0.5, soft_share=0.0,
                             discriminator_dims=(8, 8))  # fmt: skip

    def job() -> VideoTokenizerJob:
        source = OneClip(clip)
        return VideoTokenizerJob(copy.deepcopy(model), source, source, SPEC, batch_size=1, training=training)

    found = video_checkup.check_losses(job(), CPU)
    assert found.endswith("of clips and images") and all(name in found for name in ("d_real", "entropy", "mae"))
    right = DownBlock.forward
    monkeypatch.setattr(DownBlock, "forward", lambda self, x: right(self, x.detach()) + 0 * x.mean())
    with pytest.raises(Failed, match=r"does not reach discriminator\.stem\.weight"):
        video_checkup.check_losses(job(), CPU)


def test_a_signal_during_the_checkpoint_check_ends_the_doctor(
    model: VideoTokenizer, clip: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "fit", lambda *args, **options: {})  # what `fit` returns after a signal
    with pytest.raises(KeyboardInterrupt):
        source = OneClip(clip)
        checkup.check_checkpoint(model, lambda: VideoTokenizerJob(model, source, source, SPEC), clip, tmp_path)
