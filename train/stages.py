"""The stages of a training, each of which leaves a folder that opens by itself.

In order they leave a whole model folder:

    OUT/video_tokenizer  OUT/audio_tokenizer  OUT/text_tokenizer  OUT/tokens  OUT/lm  OUT/config.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.check import check_opencv
from tasks.errors import InputError
from train.data import Source, open_source
from train.loop import LoopConfig, fit, has_begun
from train.presets import CHAINS, ChainPreset

if TYPE_CHECKING:
    from lm import LM, LMConfig
    from tokenizers_av.text import TextTokenizer
    from tokenizers_av.video import VideoTokenizer, VideoTokenizerConfig

DEFAULT_MINUTES = {"video-tokenizer": 30.0, "audio-tokenizer": 10.0, "lm": 50.0, "superres": 60.0}
# shares of `--max-minutes` of a whole chain; making ids and saving takes what is left
CHAIN_SHARES = {"video-tokenizer": 0.32, "audio-tokenizer": 0.10, "lm": 0.50}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every stage is told."""

    preset: str = "tiny"
    data: tuple[str, ...] = ("playground",)
    data_weights: tuple[float, ...] | None = None  # shares of the data; equal where not given
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    batch_size: int | None = None
    device: str | None = None
    compile: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        if self.preset not in CHAINS:
            raise InputError(f"unknown preset {self.preset!r}, expected one of {', '.join(sorted(CHAINS))}")
        for name in ("steps", "minutes", "batch_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name}={value}: need a number above 0")
        if self.steps is not None and self.minutes is not None:
            raise InputError("give either steps or minutes, not both")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed={self.seed}: need 0 to {2**32 - 1}")
        if self.device is not None:
            from tasks.pipeline import pick_device

            pick_device(self.device)

    @property
    def chain(self) -> ChainPreset:
        return CHAINS[self.preset]

    def batch(self, stage: str) -> int:
        return self.batch_size or self.chain.batch_size[stage]

    def loop(self, stage: str) -> LoopConfig:
        minutes = self.minutes or (None if self.steps else DEFAULT_MINUTES[stage])
        return LoopConfig(steps=self.steps, minutes=minutes, seed=self.seed, compile=self.compile)

    def source(self, split: str = "train", *, augment: bool = False) -> Source:
        try:
            return open_source(self.data, split=split, seed=self.seed, weights=self.data_weights, augment=augment)
        except ValueError as error:
            raise InputError(str(error)) from None


def check_out(out: Path) -> None:
    """Raise InputError unless folder `out` can be written, before any work."""
    parent = out
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"--out {out}: {parent} is a file, expected a folder")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise InputError(f"--out {out}: cannot write to {parent} ({error.strerror}); choose another folder") from None


def announce(stage: str, out: Path, options: Options, **more: Any) -> None:
    """Print the resolved configuration before anything else happens."""
    values = {"stage": stage, "out": str(out), **asdict(options), **more}
    print(json.dumps(values), file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """What only the video tokenizer is told; None leaves what the preset says."""

    quantizer: str | None = None
    init: Path | None = None  # folder of a trained video tokenizer to start from
    inflate: bool = False  # it has seen images only
    decoder_only: bool = False  # its encoder stays
    decoder_depth: int | None = None  # None: that of `init`, or the preset's
    lr: float | None = None
    image_share: float | None = None
    perceptual: str | None = None
    change_weight: float | None = None
    join_weight: float | None = None
    adversarial_weight: float | None = None


def train_video_tokenizer(out: Path, options: Options, video: VideoOptions | None = None) -> dict[str, float]:
    """Train a video tokenizer into folder `out` and return its test metrics."""
    from tokenizers_av.video import VideoTokenizer, inflate, video_tokenizer_config
    from train.perceptual import open_perceptual
    from train.video_tokenizer import VideoTokenizerJob

    video = video or VideoOptions()
    if video.inflate and video.init is None:
        raise InputError("--inflate needs --init FOLDER, a tokenizer trained on images")
    if video.decoder_only and (video.init is None or video.inflate):
        raise InputError("--decoder-only needs --init FOLDER, whose encoder stays as it is: without --inflate")
    try:
        training = _told(options.chain.video_training, video)
        config = _told(video_tokenizer_config(options.chain.video), video)
    except ValueError as error:
        raise InputError(str(error)) from None
    network = open_perceptual(training.perceptual)
    if network is None and video.perceptual is not None:
        raise InputError(f"--perceptual {video.perceptual}: not to be had, see above")
    training = replace(training, perceptual=training.perceptual if network else None)
    train, test = options.source(augment=True), options.source("test")
    test.batch(range(1), options.chain.spec, audio=False)  # raises here, not after hours, where no file can be read
    _seed(options.seed)
    tokenizer = _start_from(video.init, config, video.decoder_depth) if video.init else VideoTokenizer(config)
    if video.inflate:
        inflate(tokenizer)
    job = VideoTokenizerJob(tokenizer, train, test, options.chain.spec, batch_size=options.batch("video-tokenizer"),
                            seed=options.seed, training=training, perceptual=network)  # fmt: skip
    if video.init is not None:
        job.go_on_from(video.init / "train/checkpoint")
    announce("video-tokenizer", out, options, model=asdict(tokenizer.config), training=asdict(job.training),
             init=str(video.init) if video.init else None)  # fmt: skip
    results = fit(job, out, options.loop(job.name), resume=options.resume, device=options.device)
    report_skipped(train, test)
    return results


def _told(values: Any, options: VideoOptions | AudioOptions | SuperResOptions) -> Any:
    """The dataclass `values` with what `options` say of fields that it has, too; None says nothing."""
    names = {field.name for field in fields(values)}
    told = {name: value for name, value in asdict(options).items() if name in names and value is not None}
    return replace(values, **told)


def report_skipped(*sources: Source) -> None:
    """Say on stderr how many files of the sources could not be read, if any."""
    skipped = sorted({name for source in sources for name in getattr(source, "skipped", ())})
    if skipped:
        print(f"skipped {len(skipped)} files that could not be read: {', '.join(skipped)}", file=sys.stderr)


def _start_from(folder: Path, config: VideoTokenizerConfig, depth: int | None) -> VideoTokenizer:
    """The tokenizer in `folder`, its decoder made `depth` deep; raises InputError where it is none, or else not one of
    `config`."""
    from tasks.model_folder import open_video_tokenizer
    from tokenizers_av.video import deepen

    tokenizer = open_video_tokenizer(folder).float()
    found = tokenizer.config
    _check_config(folder, replace(config, decoder_depth=found.decoder_depth), found,
                  "choose its --preset and --quantizer")  # fmt: skip
    try:
        return tokenizer if depth is None else deepen(tokenizer, depth)
    except ValueError as error:
        raise InputError(f"--init {folder}: {error}") from None


def _check_config(folder: Path | None, config: Any, found: Any, cure: str) -> None:
    """Raise InputError naming each field in which the tokenizer found in `folder` differs from the preset."""
    if found != config:
        names = [f.name for f in fields(config) if getattr(config, f.name) != getattr(found, f.name)]
        wrong = ", ".join(f"{n}={getattr(found, n)}, the preset {getattr(config, n)}" for n in names)
        raise InputError(f"--init {folder}: has {wrong}; {cure}")


@dataclass(frozen=True, kw_only=True)
class AudioOptions:
    """What only the audio tokenizer is told; None leaves what the preset says."""

    init: Path | None = None  # folder of a trained audio tokenizer to start from
    lr: float | None = None
    seconds: float | None = None
    adversarial_weight: float | None = None


def train_audio_tokenizer(out: Path, options: Options, audio: AudioOptions | None = None) -> dict[str, float]:
    """Train an audio tokenizer into folder `out` and return its test metrics."""
    from accelerate import PartialState

    from tasks.model_folder import open_audio_tokenizer
    from tokenizers_av.audio import AudioTokenizer, audio_tokenizer_config
    from train.audio_tokenizer import AudioTokenizerJob

    audio = audio or AudioOptions()
    config = audio_tokenizer_config(options.chain.audio)
    train, test = options.source(), options.source("test")
    PartialState(cpu=options.device == "cpu")  # only codebooks made after this learn from all processes
    _seed(options.seed)
    if audio.init is None:
        tokenizer = AudioTokenizer(config)
    else:
        tokenizer = open_audio_tokenizer(audio.init).float()
        _check_config(audio.init, config, tokenizer.config, "choose its --preset")
    try:
        training = _told(options.chain.audio_training, audio)
        job = AudioTokenizerJob(tokenizer, train, test, batch_size=options.batch("audio-tokenizer"), seed=options.seed,
                                training=training)  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from None
    test.batch(range(1), job.spec, video=False)  # raises here, not after hours, where no file can be read
    if audio.init is not None:
        job.go_on_from(audio.init / "train/checkpoint")
    announce("audio-tokenizer", out, options, model=asdict(config), training=asdict(job.training),
             init=str(audio.init) if audio.init else None)  # fmt: skip
    results = fit(job, out, options.loop(job.name), resume=options.resume, device=options.device)
    report_skipped(train, test)
    return results


def train_text_tokenizer(out: Path, options: Options) -> dict[str, float]:
    """Train a text tokenizer on the captions of the data into folder `out`; returns its vocabulary size."""
    from tokenizers_av.text import TextTokenizer

    if (out / "config.json").exists():
        raise InputError(f"{out}: already holds a text tokenizer, which ids depend on; choose another folder")
    announce("text-tokenizer", out, options)
    try:
        text = TextTokenizer.train(_captions(options), vocab_size=options.chain.text_vocab)
    except ValueError as error:
        raise InputError(str(error)) from None
    text.save_pretrained(out)
    return {"vocab_size": text.vocab_size}


def _captions(options: Options) -> Iterable[str]:
    """Captions of the training split of all data; raises InputError where there are none."""
    from train.data.folder import FolderSource
    from train.data.playground import all_captions

    found: list[str] = []
    for name in options.data:
        source = replace(options, data=(name,), data_weights=None).source()
        found += source.all_captions() if isinstance(source, FolderSource) else all_captions(
            options.chain.n_captions, options.seed)  # fmt: skip
    if not found:
        names = " ".join(options.data)
        raise InputError(f"data={names}: has no captions; give a metadata.jsonl with file_name and text")
    return found


@dataclass(frozen=True, kw_only=True)
class LMOptions:
    """What only the training of a transformer can be asked for. Raises InputError."""

    tokenizers: Path  # folder of the three tokenizers, or the name of a model
    tokens: Path | None = None  # where the ids are kept, or what `tokenize` made (default: OUT/../tokens)
    init: Path | None = None  # folder of a trained transformer to start from
    block_size: int = 1  # ids predicted at a time
    visual_factors: int | None = None  # 1 or 2 chained values per visual id; None: 2 where there are many ids

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise InputError(f"--block-size {self.block_size}: need at least 1 id at a time")
        if self.visual_factors not in (None, 1, 2):
            raise InputError(f"--visual-factors {self.visual_factors}: expected 1 or 2 values per visual id")


def train_lm(out: Path, options: Options, lm: LMOptions) -> dict[str, float]:
    """Train the transformer into folder `out`, on ids made with trained tokenizers, first where they are missing.

    OUT/../config.json is written with it: beside the tokenizers' folders it makes OUT/.. a whole model. Raises
    InputError.
    """
    from accelerate import PartialState

    from lm import LM, lm_config
    from tasks.model_folder import find_parts
    from tasks.pipeline import pick_device
    from train.lm import LMJob
    from train.sharding import requested_sharding
    from train.tokenize_shards import open_tokenizers
    from train.tokens import fingerprints, training_tokens

    chain, spec = options.chain, options.chain.spec
    tokenizers = find_parts(lm.tokenizers, ("video_tokenizer", "audio_tokenizer", "text_tokenizer"))
    has_begun(out, resume=options.resume)  # is refused here, not after the ids are made
    announce("lm", out, options, tokenizers=str(tokenizers), block_size=lm.block_size,
             visual_factors=lm.visual_factors, init=str(lm.init) if lm.init else None)  # fmt: skip
    video, audio = open_tokenizers(tokenizers)
    text = _open_text(tokenizers)
    if audio.sample_rate != spec.sample_rate:
        raise InputError(f"{tokenizers}: its audio tokenizer codes {audio.sample_rate} Hz, preset {options.preset} "
                         f"has {spec.sample_rate} Hz; choose the --preset it was trained with")  # fmt: skip
    vocabulary = model_vocabulary(video, audio, text, lm.visual_factors)
    lm_preset = lm_config(chain.lm, vocabulary, block_size=lm.block_size)
    config = model_config(video, audio, chain)
    _seed(options.seed)
    if lm.init is None:
        model = LM(lm_preset)
        start_from_bits(model, video)
    else:
        model = _lm_from(lm.init, lm_preset)
        if others := other_tokenizers(lm.init.parent, tokenizers):
            print(f"--init {lm.init}: was trained with another {', '.join(others)} than {tokenizers} holds, whose ids "
                  "stand for something else", file=sys.stderr)  # fmt: skip
    requested_sharding(model)  # what cannot be sharded is refused here, not after the ids are made
    device = pick_device(options.device)
    processes = PartialState(cpu=device.type == "cpu")
    kept = lm.tokens or out.parent / "tokens"
    found = training_tokens(kept, options.source, video.to(device), audio.to(device), chain.clip_spec,
                            n_window=spec.n_frames, n_clips=chain.n_clips, n_images=chain.n_images, n_test=chain.n_test,
                            rank=processes.process_index, world=processes.num_processes,
                            wait=processes.wait_for_everyone)  # fmt: skip
    made_by = {name: value[:12] for name, value in fingerprints(video, audio).items()}
    del video, audio  # the training needs their memory
    job = LMJob(model, text, config.layout, found.clips, found.images, found.held_out,
                batch_size=options.batch("lm"), seed=options.seed, images_first=lm.init is None,
                tokenizers=made_by, whole=config)  # fmt: skip
    return fit(job, out, options.loop(job.name), resume=options.resume, device=options.device)


@dataclass(frozen=True, kw_only=True)
class SuperResOptions:
    """What only the super-resolution head is told; an `lr` of None leaves what the preset says."""

    tokenizers: Path  # folder of the video tokenizer whose clips it learns from, and with captions of that of text
    init: Path | None = None  # folder of a trained head to start from
    lr: float | None = None
    captions: bool = False
    regression: bool = False  # a network of one step without noise, to compare with; its config says so


def train_superres(out: Path, options: Options, superres: SuperResOptions) -> dict[str, float]:
    """Train a super-resolution head into folder `out` and return its test metrics.

    Beside the folders of the other parts it belongs to that model. Raises InputError.
    """
    from tasks.model_folder import find_parts, open_superres, open_video_tokenizer
    from tokenizers_av.superres import SuperRes, superres_config
    from train.superres import SuperResJob

    chain, init = options.chain, superres.init
    try:
        training = _told(chain.superres_training, superres)
    except ValueError as error:
        raise InputError(str(error)) from None
    if tuple(options.data) != ("playground",):
        check_opencv()  # only there the motion is known
    parts = ("video_tokenizer", *(["text_tokenizer"] if training.captions else []))
    tokenizers = find_parts(superres.tokenizers, parts)
    text = _open_text(tokenizers) if training.captions else None
    learned = {"steps": 1, "noise": 0.0, "max_noise": 0.0} if training.regression else {}
    config = superres_config(chain.superres, text_size=text.vocab_size if text else 0, **learned)
    tokenizer = open_video_tokenizer(tokenizers / "video_tokenizer").float()
    train, test = options.source(augment=True), options.source("test")
    test.batch(range(1), chain.large_spec, audio=False)  # raises here, not after hours, where no file can be read
    _seed(options.seed)
    head = SuperRes(config)
    if init is not None:
        found = open_superres(init)
        cure = "choose its --preset, and --captions as it was trained"
        _check_config(init, config, superres_config(chain.superres, **{**asdict(found.config), **learned}), cure)
        head.load_state_dict(found.float().state_dict())
    try:
        job = SuperResJob(head, tokenizer, train, test, chain.large_spec, text=text,
                          batch_size=options.batch("superres"), seed=options.seed, training=training)  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from None
    announce("superres", out, options, model=asdict(config), training=asdict(job.training), tokenizers=str(tokenizers),
             init=str(init) if init else None)  # fmt: skip
    results = fit(job, out, replace(options.loop(job.name), n_evaluate=16), resume=options.resume,
                  device=options.device)  # fmt: skip
    report_skipped(train, test)
    return results


def _open_text(tokenizers: Path) -> TextTokenizer:
    """The text tokenizer in a folder of tokenizers; raises InputError."""
    from tokenizers_av.text import TextTokenizer

    try:
        return TextTokenizer.from_pretrained(tokenizers / "text_tokenizer")
    except (OSError, ValueError) as error:
        raise InputError(f"{tokenizers}: its text tokenizer cannot be opened ({error})") from None


def _lm_from(folder: Path, config: LMConfig) -> LM:
    """The transformer in `folder`, to predict as many ids at a time as `config` has; raises InputError where it is
    none, or not one of `config` otherwise."""
    from safetensors import SafetensorError

    from lm import LM
    from tasks.model_folder import quietly

    if not (folder / "config.json").is_file():
        raise InputError(f"--init {folder}: no transformer there, expected a folder with config.json")
    try:
        with quietly():
            model = LM.from_pretrained(folder, dtype="float32")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"--init {folder}: no transformer that can be opened ({error})") from None
    model.config.block_size = config.block_size
    known = model.config.vocabulary["special"]
    if config.vocabulary["special"][: len(known)] == known:  # new tasks take ids that were free
        model.config.vocabulary = {**model.config.vocabulary, "special": config.vocabulary["special"]}
        model.vocabulary = type(model.vocabulary).from_dict(model.config.vocabulary)
    values = config.to_diff_dict()
    values.pop("transformers_version", None)  # of the release that runs, not of the one that saved
    if wrong := [name for name, value in values.items() if getattr(model.config, name, None) != value]:
        raise InputError(f"--init {folder}: has another {', '.join(wrong)} than this preset and these tokenizers")
    return model


def other_tokenizers(folder: Path, tokenizers: Path) -> list[str]:
    """The tokenizers in `folder`, of those that are there, whose ids differ from those in `tokenizers`: what makes
    ids is compared, rounded to float16 as `export` does."""
    from safetensors.torch import load_file

    def content(path: Path) -> str:
        if path.suffix == ".model":
            return hashlib.sha256(path.read_bytes()).hexdigest()
        weights = hashlib.sha256()
        for name, tensor in sorted(load_file(path).items()):
            if not name.startswith("decoder."):
                weights.update(name.encode() + tensor.half().numpy().tobytes())
        return weights.hexdigest()

    files = ("video_tokenizer/model.safetensors", "audio_tokenizer/model.safetensors", "text_tokenizer/tokenizer.model")
    found = [file for file in files if (folder / file).is_file()]
    return [file.split("/")[0] for file in found if content(folder / file) != content(tokenizers / file)]


def start_from_bits(model: Any, video: Any) -> None:
    """Let the embeddings of visual ids start half from a random projection of their bits, so that ids that differ in
    one bit start alike; the scale stays that of the other embeddings. Factorised ids share rows anyway."""
    import torch

    place = model.vocabulary["visual"]
    if len(place.factors) > 1:
        return
    codes = video.quantizer.codes(torch.arange(video.codebook_size, device=model.embed.weight.device))
    with torch.no_grad():
        rows = model.embed.weight[place.start : place.stop]
        projection = torch.randn(codes.shape[1], rows.shape[1]) * rows.std() / codes.shape[1] ** 0.5
        rows.copy_((rows + codes.to(projection) @ projection) * 0.5**0.5)


MANY_IDS = 2**14  # visual ids above this are factorised unless asked otherwise


def model_vocabulary(video: Any, audio: Any, text: Any, visual_factors: int | None = None) -> Any:
    """The `lm.Vocabulary` with one range for each id range of the three tokenizers."""
    from lm import Vocabulary
    from tasks import SPECIAL_TOKENS

    n, factors = video.codebook_size, tuple[int, ...]()
    if visual_factors == 2 or (visual_factors is None and n > MANY_IDS):
        small = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
        factors = (n // small, small)
    levels = [audio.codebook_size] * audio.n_codebooks
    return Vocabulary.build(SPECIAL_TOKENS, n, levels, text.vocab_size, visual_factors=factors)


def model_config(video: Any, audio: Any, chain: ChainPreset) -> Any:
    """The `tasks.PoetConfig` of the whole model: layout, size, sampling."""
    from tasks import Layout, PoetConfig
    from tasks.model_folder import SamplingDefaults
    from tokenizers_av.video import n_latent_frames

    spec, side = chain.spec, chain.spec.size // video.spatial_stride
    layout = Layout(
        latent_frames=n_latent_frames(spec.n_frames), height=side, width=side,
        audio_frames=spec.n_samples // audio.hop_length, n_codebooks=audio.n_codebooks, fps=spec.fps,
        audio_rate=audio.frame_rate, temporal_stride=video.temporal_stride,
    )  # fmt: skip
    return PoetConfig(layout, (spec.size, spec.size), SamplingDefaults(**chain.sampling))


def train_all(out: Path, options: Options) -> dict[str, dict[str, float]]:
    """Train the whole chain into a model folder; a stage that is done is not done again with `resume`.

    Returns the metrics of each stage, or {} if a signal stopped it.
    """
    from accelerate import PartialState

    total = options.minutes
    if total is None and options.steps is None:
        total = sum(DEFAULT_MINUTES[name] for name in CHAIN_SHARES) / sum(CHAIN_SHARES.values())
    processes = PartialState(cpu=options.device == "cpu")
    if processes.is_main_process and out.exists() and any(out.iterdir()) and not options.resume:
        raise InputError(f"{out}: is not empty; continue with --resume or choose another folder")
    processes.wait_for_everyone()

    def stage(name: str) -> Options:
        return replace(options, minutes=None if total is None else total * CHAIN_SHARES[name])

    if not (out / "audio_tokenizer/train/metrics.json").is_file():  # said here, not after the video tokenizer's hours
        options.source("test").batch(range(1), options.chain.spec, video=False)
    results: dict[str, dict[str, float]] = {}
    for name, run in (
        ("text-tokenizer", lambda folder: train_text_tokenizer(folder, options)),
        ("video-tokenizer", lambda folder: train_video_tokenizer(folder, stage("video-tokenizer"))),
        ("audio-tokenizer", lambda folder: train_audio_tokenizer(folder, stage("audio-tokenizer"))),
        ("lm", lambda folder: train_lm(folder, stage("lm"), LMOptions(tokenizers=out))),
    ):
        folder = out / name.replace("-", "_")
        done = folder / ("config.json" if name == "text-tokenizer" else "train/metrics.json")
        # the text tokenizer is trained by one process, the others find it done
        with processes.main_process_first() if name == "text-tokenizer" else contextlib.nullcontext():
            if done.is_file():
                print(f"{name}: done before, {folder}", file=sys.stderr)
                results[name] = json.loads(done.read_text())
                continue
            results[name] = run(folder)
        if not results[name]:
            return {}  # stopped by a signal
    from tasks.model_folder import model_card, read_config

    card = out / "README.md"
    if not card.exists():
        card.write_text(model_card(read_config(out)), encoding="utf-8")
    return results


def export(out: Path, folder: Path) -> None:
    """Copy the model in `out` to `folder` without what only training needs, in float16: half the size to ship.

    Raises InputError where they are the same folder.
    """
    import torch

    from tasks import AVPoet
    from tasks.model_folder import find_model, quietly

    if folder.resolve() == find_model(out).resolve():
        raise InputError(f"--out {folder}: is the model itself, whose weights are to stay; choose another folder")
    poet = AVPoet.from_pretrained(out, device="cpu", dtype="float32")
    for part in (poet.codec.video, poet.codec.audio, poet.lm, poet.superres_head):
        if part is not None:
            part.to(torch.float16)
    poet.save_pretrained(folder)
    (folder / "lm/model.safetensors").unlink(missing_ok=True)
    with quietly():
        poet.lm.save_pretrained(folder / "lm", max_shard_size="12MB")  # files that every git host takes
    for part in ("video_tokenizer", "audio_tokenizer", "superres"):
        (folder / part / "README.md").unlink(missing_ok=True)  # the card of the whole model says it all


def _seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)
