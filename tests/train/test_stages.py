"""The whole chain at debug size: trained, resumed, exported, opened; and what the command refuses."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lm import LM, LMConfig, Vocabulary, lm_config
from tasks import SPECIAL_TOKENS, AVPoet, InputError
from tasks.table import TASKS
from tokenizers_av.audio import AudioTokenizer, audio_tokenizer_config
from tokenizers_av.superres import SUPERRES_PRESETS, SuperRes, superres_config
from tokenizers_av.text import TextTokenizer
from tokenizers_av.video import VideoTokenizer, video_tokenizer_config
from train import stages
from train.cli import main, parser
from train.data import open_source
from train.presets import CHAINS
from train.stages import _lm_from, other_tokenizers, start_from_bits
from train.tokens import load_tokens

CHAIN = ["all", "--preset", "debug", "--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chain") / "model"
    assert main([*CHAIN, "--out", str(out)]) == 0
    return out


def test_the_chain_leaves_a_model_that_makes_a_clip(trained: Path) -> None:
    clip = AVPoet.from_pretrained(trained, device="cpu").text_to_video("a red ball bounces", seed=0)
    assert clip.frames.shape == (5, 16, 16, 3) and clip.samples.shape == (10_000,)
    for part in ("video_tokenizer", "audio_tokenizer", "lm"):
        assert json.loads((trained / part / "train/metrics.json").read_text())["step"] == 2
    assert list((trained / "video_tokenizer/train/samples").glob("*.png"))


@pytest.mark.parametrize("how", [["--block-size", "4"], ["--visual-factors", "2"]], ids=" ".join)
def test_a_transformer_of_blocks_or_factors_is_trained_and_makes_a_clip(
    how: list[str], trained: Path, tmp_path: Path
) -> None:
    words = ["lm", "--preset", "debug", "--device", "cpu", "--tokenizers", str(trained), "--tokens",
             str(trained / "tokens"), *how, "--steps", "2", "--out", str(tmp_path / "lm")]  # fmt: skip
    assert main(words) == 0
    for part in ("video_tokenizer", "audio_tokenizer", "text_tokenizer"):
        shutil.copytree(trained / part, tmp_path / part)
    poet = AVPoet.from_pretrained(tmp_path, device="cpu")
    clip = poet.text_to_video("a red ball bounces", seed=0)
    assert clip.frames.shape == (5, 16, 16, 3) and clip.samples.shape == (10_000,)
    plain = AVPoet.from_pretrained(trained, device="cpu")
    plain.text_to_video("a red ball bounces", seed=0)
    passes, before = poet.generator.engine.passes, plain.generator.engine.passes
    assert poet.lm.config.block_size == (4 if "4" in how else 1)
    assert len(poet.lm.vocabulary["visual"].factors) == (2 if "2" in how else 1)
    assert passes < before / 2 if "4" in how else passes == before


def test_finished_stages_are_not_done_again(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "lm/config.json").stat().st_mtime_ns
    assert main([*CHAIN, "--out", str(trained), "--resume"]) == 0
    assert capsys.readouterr().err.count("done before") == 4
    assert (trained / "lm/config.json").stat().st_mtime_ns == before
    assert main([*CHAIN, "--out", str(trained)]) == 2  # without --resume


@pytest.mark.parametrize(
    ("given", "minutes"),
    [({}, {"video-tokenizer": 31.3, "audio-tokenizer": 9.78, "lm": 48.9}),
     ({"minutes": 100.0}, {"video-tokenizer": 32.0, "audio-tokenizer": 10.0, "lm": 50.0}),
     ({"steps": 2}, {"video-tokenizer": None, "audio-tokenizer": None, "lm": None})],
)  # fmt: skip
def test_the_chain_takes_as_long_as_its_own_stages(
    given: dict, minutes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, float | None] = {}
    for name in ("video-tokenizer", "audio-tokenizer", "lm", "superres"):

        def stage(out: Path, options: stages.Options, *more: object, name: str = name) -> dict[str, float]:
            told[name] = options.minutes
            return {} if name == "lm" else {"step": 1}

        monkeypatch.setattr(stages, "train_" + name.replace("-", "_"), stage)
    stages.train_all(tmp_path / "model", stages.Options(preset="debug", **given))
    assert told == {name: m and pytest.approx(m, rel=1e-3) for name, m in minutes.items()}
    if not given:
        assert sum(told.values()) == pytest.approx(90.0)  # what the stages take one by one


def test_ids_on_disk_are_those_of_the_clips(trained: Path) -> None:
    tokens = load_tokens(trained / "tokens/train", "clips")
    chain = CHAINS["debug"]
    media = open_source("playground").batch([3], chain.clip_spec)
    poet = AVPoet.from_pretrained(trained, device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        ids = poet.codec.video.encode(media.video)[0]
        heard = poet.codec.audio.encode(media.audio)[0]
    assert (tokens.video[3] == ids).float().mean() > 0.95  # bfloat16 sums differ a little with the batch
    assert (tokens.audio[3] == heard).float().mean() > 0.95
    assert tokens.captions[3] == media.captions[0] and len(tokens) == chain.n_clips
    assert tokens.video.shape == (24, 3, 2, 2)  # clips of 9 frames for a model of 5
    assert {name: ids.shape for name, ids in tokens.conditions.items()} == {
        name: (24, 2, 2, 2) for name, task in TASKS.items() if task.condition is not None
    }


def test_a_regression_network_says_that_it_takes_one_step_without_noise(debug_model: Path, tmp_path: Path) -> None:
    options = stages.Options(preset="debug", steps=2, device="cpu")
    stages.train_superres(tmp_path, options, stages.SuperResOptions(tokenizers=debug_model, regression=True))
    head = SuperRes.from_pretrained(tmp_path)
    assert head.config == superres_config("debug", steps=1, max_noise=0.0, text_size=head.config.text_size)
    small = torch.rand(1, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(head.upscale(small), head.upscale(small, steps=1, noise=0.0))
    assert not torch.equal(head.upscale(small), head.upscale(small, steps=4))
    with pytest.raises(ValueError, match="levels of 0 to 0"):
        head.upscale(small, noise=0.1)


def test_a_regression_network_may_begin_as_a_trained_head(
    debug_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUPERRES_PRESETS["debug"], "noise", 0.1)  # which such a network does without
    options = stages.Options(preset="debug", steps=1, device="cpu")
    superres = stages.SuperResOptions(tokenizers=debug_model)
    stages.train_superres(tmp_path / "head", options, superres)
    superres = replace(superres, init=tmp_path / "head", regression=True, lr=1e-9)
    stages.train_superres(tmp_path / "regression", options, superres)
    made, head = (SuperRes.from_pretrained(tmp_path / name) for name in ("regression", "head"))
    assert head.config.noise == 0.1 and made.config == replace(head.config, steps=1, noise=0.0, max_noise=0.0)
    for name, tensor in head.state_dict().items():
        assert torch.allclose(made.state_dict()[name], tensor, atol=1e-6), name


def test_the_benchmark_trains_a_regression_network_for_steps_or_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(stages, "train_superres", lambda out, options, superres: asked.append(
        (options.steps, options.minutes, options.data_weights, superres)))  # fmt: skip
    script = Path(__file__).parents[1] / "benchmarks/superres_training.py"

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", [script.name, str(tmp_path), "--tokenizers", "x", "--preset", "debug", *words])
        runpy.run_path(str(script), run_name="__main__")

    run("--steps", "3")
    run("--max-minutes", "0.5", "--data", "playground", "playground", "--data-weights", "0.2", "0.8", "--init", "y")
    superres = stages.SuperResOptions(tokenizers=Path("x"), regression=True)
    assert asked == [(3, None, None, superres), (None, 0.5, (0.2, 0.8), replace(superres, init=Path("y")))]
    for words, message in (((), "one of the arguments"), (("--steps", "3", "--max-minutes", "1"), "not allowed with")):
        with pytest.raises(SystemExit):
            run(*words)
        assert message in capsys.readouterr().err


def test_export_is_smaller_and_opens(trained: Path, tmp_path: Path) -> None:
    assert main(["export", str(trained), "--out", str(tmp_path / "m")]) == 0
    clip = AVPoet.from_pretrained(tmp_path / "m", device="cpu").text_to_video("a red ball bounces", seed=0)
    assert clip.frames.shape == (5, 16, 16, 3)
    weights = "video_tokenizer/model.safetensors"
    assert (tmp_path / "m" / weights).stat().st_size < 0.7 * (trained / weights).stat().st_size
    assert not list((tmp_path / "m").rglob("train"))
    assert [p.parent.name for p in (tmp_path / "m").rglob("README.md")] == ["m"]  # one card, of the whole model
    assert len(list((tmp_path / "m/lm").glob("*.safetensors"))) == 1  # no weights twice
    assert other_tokenizers(tmp_path / "m", trained) == other_tokenizers(trained, tmp_path / "m") == []
    before = (trained / weights).stat().st_size
    assert main(["export", str(trained), "--out", f"{trained}/lm/.."]) == 2
    assert (trained / weights).stat().st_size == before


def test_a_transformer_belongs_to_its_tokenizers_and_keeps_how_it_is_sampled(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(tokenizers: Path, tokens: Path, *more: str) -> tuple[int, str]:
        words = ["lm", "--preset", "debug", "--device", "cpu", "--init", str(trained / "lm"), "--tokens", str(tokens)]
        words += ["--data", "playground"]
        code = main([*words, "--tokenizers", str(tokenizers), "--out", str(tmp_path / "new/lm"), *more])
        return code, capsys.readouterr().err

    code, told = train(trained, trained / "tokens", "--steps", "1")  # there is no folder `new` yet
    assert code == 0 and "was trained with another" not in told
    path = tmp_path / "new/config.json"
    assert json.loads(path.read_text()) == json.loads((trained / "config.json").read_text())
    path.write_text(tuned := json.dumps(json.loads(path.read_text()) | {"sampling": {"guidance_scale": 7.0}}))
    assert train(trained, trained / "tokens", "--steps", "2", "--resume")[0] == 0 and path.read_text() == tuned

    other = tmp_path / "other"
    for part in ("video_tokenizer", "audio_tokenizer", "text_tokenizer"):
        shutil.copytree(trained / part, other / part)
    video = VideoTokenizer.from_pretrained(trained / "video_tokenizer")
    next(video.parameters()).data.mul_(1.1)
    video.save_pretrained(other / "video_tokenizer")
    code, told = train(other, tmp_path / "ids", "--steps", "3", "--resume")
    assert code == 2 and "this training began with video_tokenizer=" in told and path.read_text() == tuned
    assert "was trained with another video_tokenizer than" in told

    monkeypatch.setattr("train.tokens.training_tokens", None)  # is not come to
    code, told = train(trained, tmp_path / "ids", "--steps", "3")
    assert code == 2 and "already holds a training" in told and path.read_text() == tuned
    (other / "text_tokenizer/tokenizer.model").write_bytes(b"short")
    code, told = train(other, tmp_path / "ids", "--steps", "3", "--resume")
    assert code == 2 and "its text tokenizer cannot be opened" in told
    (other / "audio_tokenizer/model.safetensors").write_bytes(b"short")
    code, told = train(other, tmp_path / "ids", "--steps", "3", "--resume")
    assert code == 2 and "no audio tokenizer that can be opened" in told


def test_a_folder_of_tokens_that_holds_none_is_refused_unless_data_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["lm", "--preset", "debug", "--device", "cpu", "--steps", "1", "--tokenizers", str(trained)]
    assert main([*words, "--tokens", str(tmp_path / "tokns"), "--out", str(tmp_path / "m/lm")]) == 2
    assert f"--tokens {tmp_path / 'tokns'}: no ids there" in capsys.readouterr().err.splitlines()[-1]
    assert not any(tmp_path.iterdir())
    assert main([*words, "--tokens", str(trained / "tokens"), "--out", str(tmp_path / "m/lm")]) == 0


def test_a_model_without_its_training_is_not_written_over(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("text_tokenizer", "video_tokenizer"):
        (tmp_path / part).mkdir()
        for path in (trained / part).iterdir():
            if path.is_file():
                shutil.copy(path, tmp_path / part)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for stage, said in (("text-tokenizer", "a text tokenizer"), ("video-tokenizer", "a model, whose weights")):
        out = ["--out", str(tmp_path / stage.replace("-", "_"))]
        for more in ([], ["--resume"]):
            assert main([stage, "--preset", "debug", "--device", "cpu", "--steps", "1", *out, *more]) == 2
            assert f"already holds {said}" in capsys.readouterr().err.splitlines()[-1]
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}


def test_the_chain_says_at_once_that_there_is_no_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "data/a.png")
    (tmp_path / "data/a.txt").write_text("a black square")
    words = ["all", "--preset", "debug", "--steps", "1", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "m")]
    assert main(words) == 2
    assert "has a readable sound" in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "m").exists()


def test_visual_embeddings_start_alike_where_bits_agree() -> None:
    torch.manual_seed(0)
    video = VideoTokenizer(video_tokenizer_config("debug"))
    model = LM(lm_config("debug", Vocabulary.build(SPECIAL_TOKENS, video.codebook_size, [16] * 4, 320), dim=256))
    visual = model.vocabulary["visual"]
    rows = model.embed.weight[visual.start : visual.stop]
    before = rows.std().item()
    start_from_bits(model, video)
    rows = model.embed.weight[visual.start : visual.stop].detach()
    alike = torch.cosine_similarity(rows[::2], rows[1::2]).mean()  # pairs that differ in bit 0 alone
    opposite = torch.cosine_similarity(rows, rows.flip(0)).mean()  # every bit differs
    assert alike > 0.25 and opposite < -0.25, (alike, opposite)
    assert rows.std().item() == pytest.approx(before, rel=0.15)


def test_a_transformer_goes_on_with_tasks_that_it_did_not_know(tmp_path: Path) -> None:
    def config(special: tuple[str, ...]) -> LMConfig:
        return lm_config("debug", Vocabulary.build(special, 256, [16, 16], 300))

    torch.manual_seed(0)
    before = LM(config(SPECIAL_TOKENS[:-2]))
    before.save_pretrained(tmp_path / "old")
    values = json.loads((tmp_path / "old/config.json").read_text())
    (tmp_path / "old/config.json").write_text(json.dumps(values | {"transformers_version": "5.0.0"}))
    model = _lm_from(tmp_path / "old", config(SPECIAL_TOKENS))
    weights = model.state_dict()
    assert weights.keys() == before.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in before.state_dict().items())
    model.save_pretrained(tmp_path / "new")
    for known in (model, LM.from_pretrained(tmp_path / "new")):
        assert known.vocabulary == Vocabulary.build(SPECIAL_TOKENS, 256, [16, 16], 300)
        assert known.vocabulary.special(SPECIAL_TOKENS[-1]) == len(SPECIAL_TOKENS) - 1
    for special in (SPECIAL_TOKENS[:-3], ("<pad>", *SPECIAL_TOKENS[2:])):  # fewer than it knows, and in another order
        with pytest.raises(InputError, match="has another vocabulary than this preset"):
            _lm_from(tmp_path / "old", config(special))
    (tmp_path / "old/model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="no transformer that can be opened"):
        _lm_from(tmp_path / "old", config(SPECIAL_TOKENS))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["video-tokenizer", "--preset", "huge"], "unknown preset 'huge'"),
        (["video-tokenizer", "--data", "/nowhere"], "no such folder"),
        (["video-tokenizer", "--steps", "0"], "need a number above 0"),
        (["video-tokenizer", "--steps", "1", "--max-minutes", "1"], "not both"),
        (["video-tokenizer", "--seed", "-1"], "seed=-1: need 0 to"),
        (["video-tokenizer", "--device", "warp"], "device 'warp'"),
        (["lm", "--tokenizers", "/nowhere"], "no model '/nowhere'"),
        (["lm", "--tokenizers", "/"], "/: has no video_tokenizer"),
        (["lm"], "--tokenizers"),
        (["superres", "--tokenizers", "/"], "/: has no video_tokenizer"),
        (["lm", "--tokenizers", "tiny", "--preset", "base-24khz"], "codes 16000 Hz"),
        (["superres", "--tokenizers", "tiny", "--init", "/nowhere"], "/nowhere"),
        (["superres", "--tokenizers", "tiny", "--lr", "nan"], "lr=nan: need a number above 0"),
        (["all", "--preset", "debug", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("avpoet-train: error:") and message in error
    assert not (tmp_path / "x").exists()


def test_without_accelerate_the_cure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.cli.find_spec", lambda name: None)
    assert main(["video-tokenizer", "--preset", "debug", "--steps", "1", "--out", str(tmp_path / "x")]) == 2
    assert "needs accelerate; pip install 'avpoet[train]'" in capsys.readouterr().err


def test_an_audio_tokenizer_of_another_rate_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("video_tokenizer", "text_tokenizer"):
        shutil.copytree(trained / part, tmp_path / part)
    AudioTokenizer(audio_tokenizer_config("debug", sample_rate=24000)).save_pretrained(tmp_path / "audio_tokenizer")
    words = ["lm", "--preset", "debug", "--tokenizers", str(tmp_path), "--out", str(tmp_path / "lm"), "--steps", "1"]
    assert main(words) == 2
    assert "codes 24000 Hz, preset debug has 16000 Hz" in capsys.readouterr().err


def test_an_output_folder_below_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["text-tokenizer", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_the_text_tokenizer_learns_the_captions_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (16, 16)).save(tmp_path / "data" / f"{name}.png")
    words = ["text-tokenizer", "--preset", "debug", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "text")]
    assert main(words) == 2
    assert "has no captions" in capsys.readouterr().err and not (tmp_path / "text").exists()
    (tmp_path / "data" / "a.txt").write_text("a zebra runs over the grass")
    assert main(words) == 0
    text = TextTokenizer.from_pretrained(tmp_path / "text")
    assert text.decode(text.encode("a zebra")) == "a zebra" and len(text.encode("zebra")) < 5


def test_every_help_shows_an_example_that_parses(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ("all", "video-tokenizer", "audio-tokenizer", "text-tokenizer", "lm", "export", "evaluate", "tokenize",
                "doctor")  # fmt: skip
    for command in commands:
        assert main([command, "--help"]) == 0
        example = capsys.readouterr().out.split("example:")[1].strip().splitlines()[0]
        program, *arguments = example.split()
        assert program == "avpoet-train" and parser().parse_args(arguments).command == command


@pytest.mark.parametrize("command", ["all", "doctor"])
def test_help_names_every_preset(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())  # lines are broken anywhere
    *most, last = CHAINS
    assert f"{', '.join(most)} or {last} (default: tiny)" in words
