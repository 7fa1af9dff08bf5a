"""AVPoet: one trained model for every task, from words, pictures and clips to clips (VideoPoet, arXiv:2312.14125)."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from lm import LM, Engine, Vocabulary
from tasks.check import check_levels, check_seed, check_size
from tasks.codec import Codec
from tasks.errors import InputError
from tasks.generation import Generator
from tasks.journal import Journal
from tasks.model_folder import (
    PARTS,
    SUPERRES,
    PoetConfig,
    find_model,
    model_card,
    open_superres,
    quietly,
    read_config,
)
from tasks.options import Progress
from tasks.reconstruct import reconstructed
from tasks.sequence import audio_ranges
from tasks.source import Media, Source
from tasks.story import Prompts
from tasks.stream import Stream, join
from tasks.table import get_task
from tokenizers_av.audio import AudioTokenizer
from tokenizers_av.clip import Clip, ClipWriter, check_output
from tokenizers_av.media_formats import output_kind
from tokenizers_av.superres import SuperRes, SuperResConfig
from tokenizers_av.text import TextTokenizer
from tokenizers_av.video import VideoTokenizer

if TYPE_CHECKING:
    from tasks.masks import MaskLike
    from tasks.structure import DepthModel


_LISTED = ("prompt", "image", "video", "audio", "seed")  # inputs of which several make several clips


class AVPoet:
    """Text, images, video and sound in; images, video and sound out.

    `AVPoet(...)` takes the parts as they are, `from_pretrained` reads them from a folder.
    Every method is deterministic: the same inputs and seed give the same frames and samples. Options left at None are
    the model's own settings. `progress(done, total)` is told after each drawn id. Lists of prompts, media or seeds give
    lists of clips (see `generate`).
    `superres_head` is None where the model has none.
    Wrong values raise InputError, files that do not fit raise MediaError; both are ValueErrors.
    """

    def __init__(
        self,
        video_tokenizer: VideoTokenizer,
        audio_tokenizer: AudioTokenizer,
        text_tokenizer: TextTokenizer,
        lm: LM,
        config: PoetConfig,
        *,
        superres: SuperRes | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,
        int8: bool = False,
    ) -> None:
        self.config = config
        self.device = pick_device(device)
        self.dtype = lm.dtype if dtype is None else pick_dtype(dtype, self.device)
        head = None if superres is None else superres.config
        _check_fit(video_tokenizer, audio_tokenizer, text_tokenizer, lm.vocabulary, config, head)
        self.codec = Codec(video_tokenizer, audio_tokenizer, text_tokenizer, config, self.device)
        self.lm = lm.to(self.device, self.dtype).eval()  # type: ignore[arg-type]
        self.superres_head = None if superres is None else superres.to(self.device, self.dtype).eval()
        engine = Engine(self.lm, compile=compile, int8=int8)
        self._rounding = {"compile": compile, "int8": int8}
        self.generator = Generator(engine, lm.vocabulary, config.layout, config.sampling)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "tiny",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,
        int8: bool = False,
    ) -> AVPoet:
        """Load "tiny" (travels with the package), a folder, or a hub name of the form owner/name.

        device: "cpu", "cuda", ...; None takes an accelerator if there is one. dtype of the transformer and the head:
        "float32" or "bfloat16"; None takes bfloat16 where the device computes in it. compile and int8: see `lm.Engine`;
        for many or long generations, and for less memory traffic. Raises InputError for no or another model.
        """
        folder = find_model(os.fspath(model))
        config = read_config(folder)
        device, dtype = pick_device(device), pick_dtype(dtype, pick_device(device))
        try:
            with quietly():
                parts = (
                    VideoTokenizer.from_pretrained(folder / "video_tokenizer"),
                    AudioTokenizer.from_pretrained(folder / "audio_tokenizer"),
                    TextTokenizer.from_pretrained(folder / "text_tokenizer"),
                    LM.from_pretrained(folder / "lm", dtype=torch.float32),
                )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"model folder {str(folder)!r} cannot be loaded: {reason}") from error
        superres = open_superres(folder / SUPERRES) if (folder / SUPERRES).exists() else None
        return cls(*parts, config, superres=superres, device=device, dtype=dtype, compile=compile, int8=int8)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, README.md, the four parts and the head, if there is one, into a folder; the transformer
        and the head in `dtype`.

        Raises InputError where this model has no head and the folder holds one, which would be taken for its own.
        """
        target = Path(folder)
        if self.superres_head is None and (target / SUPERRES).exists():
            raise InputError(f"{target / SUPERRES} is of another model, and this one has no head: remove it first")
        target.mkdir(parents=True, exist_ok=True)
        self.config.save(target)
        parts: dict[str, Any] = dict(
            zip(PARTS, (self.codec.video, self.codec.audio, self.codec.text, self.lm), strict=True)
        )
        if self.superres_head is not None:
            parts[SUPERRES] = self.superres_head
        with quietly():
            for name, part in parts.items():
                part.save_pretrained(target / name)
        if not (target / "README.md").exists():
            (target / "README.md").write_text(model_card(self.config), encoding="utf-8")

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the whole model as owner/name; `options` go to huggingface_hub.HfApi.upload_folder."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=options.pop("token", None))
        api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **options))

    @property
    def stream(self) -> Stream:
        """The same methods, yielding frames and sound as soon as they are known."""
        return Stream(self)

    def generate(self, task: str, **inputs: Any) -> Any:
        """Run any row of the task table: a Clip, or a list of Clips where an input or the seed is a list.

        `inputs` are the row's own (prompt, image, video, audio and its further arguments), `seconds`, and the options
        of `text_to_video`. Lists are as long as each other; what is no list counts for all. One seed for a list stands
        for seed, seed + 1, ...: each clip is what its own seed gives alone.
        """
        names = [k for k in (*_LISTED, *(a.name for a in get_task(task).arguments)) if isinstance(inputs.get(k), list)]
        if not names:
            return join(self.stream.generate(task, **inputs))
        for a in get_task(task).arguments:  # once for all of them: a value may be a network
            if a.name not in names and inputs.get(a.name) is not None:
                inputs = {**inputs, a.name: a.parse(inputs[a.name])}
        sizes = {name: len(inputs[name]) for name in names}
        n = max(sizes.values())
        if min(sizes.values()) != n:
            raise InputError(f"lists of different lengths: {', '.join(f'{k} has {v}' for k, v in sizes.items())}")
        if n == 0:
            return []
        if "seed" not in names:
            first = check_seed(inputs.get("seed", 0))
            inputs, names = {**inputs, "seed": list(range(first, first + n))}, [*names, "seed"]
        return self.stream.batch(task, [{**inputs, **{k: inputs[k][i] for k in names}} for i in range(n)])

    def unconditional(
        self,
        *,
        seconds: float | None = None,
        sound: bool = True,
        seed: int = 0,
        speculative: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip:
        """A video with sound from nothing but a seed; options as in `text_to_video`."""
        return self.generate("unconditional", **_given(locals()))

    def text_to_image(
        self,
        prompt: str,
        *,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip:
        """One image, a Clip of one frame; options as in `text_to_video`."""
        return self.generate("text_to_image", **_given(locals()))

    def text_to_video(
        self,
        prompt: str,
        *,
        seconds: float | None = None,
        sound: bool = True,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip:
        """A video of what the prompt says, with its sound.

        prompt: 1 to 1,000 characters, of which the first 64 tokens count. seconds: up to 24 hours; None is the length
        of the clips the model learned from, a longer video is continued as `extend` does, a shorter one is cut.
        guidance_scale: 1 follows the model as it is, more follows the prompt closer. temperature: 0 always takes the
        likeliest id. top_k, top_p: draw from the likeliest ids only. negative_prompt: what not to show. speculative:
        ids that each pass checks, all but the last drafted, of which the right ones are kept: fewer passes, other clips
        of equal kind.
        superres: frames four times as high and wide, see `superres`.
        """
        return self.generate("text_to_video", **_given(locals()))

    def text_to_audio(
        self,
        prompt: str,
        *,
        seconds: float | None = None,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        progress: Progress | None = None,
    ) -> Clip:
        """The sound of what the prompt says, a Clip without frames. Options as in `text_to_video`."""
        return self.generate("text_to_audio", **_given(locals()))

    def image_to_video(
        self,
        image: Media,
        prompt: str | None = None,
        *,
        seconds: float | None = None,
        sound: bool = True,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip:
        """A video that begins with an image: a file, or the first frame of a clip. Options as in `text_to_video`."""
        return self.generate("image_to_video", **_given(locals()))

    def frame_prediction(
        self,
        video: Media,
        prompt: str | None = None,
        *,
        seconds: float | None = None,
        sound: bool = True,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip:
        """The last second of a video and what follows it; `seconds` counts both. Options as in `text_to_video`."""
        return self.generate("frame_prediction", **_given(locals()))

    def frame_interpolation(
        self,
        image: Media,
        last: Media,
        prompt: str | None = None,
        *,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip:
        """A clip of the model's length that begins like `image` and ends like `last`; the proportions are those of
        `image`. Options as in `text_to_video`."""
        return self.generate("frame_interpolation", **_given(locals()))

    def inpainting(
        self,
        video: Media,
        mask: MaskLike,
        prompt: str | None = None,
        *,
        keep_known: bool = False,
        seconds: float | None = None,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip:
        """The video, with its own sound, and the hole of a mask painted anew; at the model's rate, in its proportions.

        mask: "X,Y,W,H" or a tuple of four ints, a box in pixels of the video; an image or a video, white where the hole
        is; a tensor (H, W) or (T, H, W). keep_known: at the size of the video, its own pixels untouched outside of the
        hole.
        Other options as in `text_to_video`; `seconds` cuts the video.
        """
        return self.generate("inpainting", **_given(locals()))

    def outpainting(
        self,
        video: Media,
        prompt: str | None = None,
        *,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        keep_known: bool = False,
        seconds: float | None = None,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip:
        """The video, with its own sound, and new picture around it; at the model's rate, in the larger proportions.

        left, top, right, bottom: how much, in pixels of the video. keep_known: at the size of the video and what is
        added, its own pixels untouched. Other options as in `text_to_video`; `seconds` cuts the video.
        """
        return self.generate("outpainting", **_given(locals()))

    def stylization(
        self,
        video: Media,
        prompt: str,
        *,
        depth: str | os.PathLike[str] | DepthModel | None = None,
        seconds: float | None = None,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip:
        """What moves in the video, in the look of the prompt, at the model's rate, in the proportions of the video.

        Its own sound comes with it. Optical flow is read off the video, and depth by `depth`, a depth model of
        transformers (a folder, a hub name or a `tasks.structure.DepthModel`); without one the brightness takes its
        place. Other options as in `text_to_video`; `seconds` cuts the video.
        """
        return self.generate("stylization", **_given(locals()))

    def video_to_audio(
        self,
        video: Media,
        *,
        seconds: float | None = None,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        progress: Progress | None = None,
    ) -> Clip:
        """The video as it is, whatever its size, rate and length, with a new sound; `seconds` cuts it.

        guidance_scale: more follows the video closer. Other options as in `text_to_video`.
        """
        return self.generate("video_to_audio", **_given(locals()))

    def audio_to_video(
        self,
        audio: Media,
        prompt: str | None = None,
        *,
        seconds: float | None = None,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip:
        """A video for a sound, which is given back with it; `seconds` cuts it. Options as in `text_to_video`."""
        return self.generate("audio_to_video", **_given(locals()))

    def audio_video_continuation(
        self,
        video: Media,
        prompt: str | None = None,
        *,
        seconds: float | None = None,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip:
        """The last second of a video that has sound, and what follows of both; `seconds` counts both.

        Options as in `text_to_video`.
        """
        return self.generate("audio_video_continuation", **_given(locals()))

    def extend(
        self,
        clip: Media,
        seconds: float,
        prompts: Prompts = None,
        *,
        out: str | os.PathLike[str] | None = None,
        sound: bool = True,
        seed: int = 0,
        speculative: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        superres: bool = False,
        progress: Progress | None = None,
    ) -> Clip | None:
        """The clip at the model's rate and number of pixels, followed by `seconds` of what comes next.

        prompts: one for all, several that are spread evenly over the new seconds, or a story: (second, prompt) pairs.
        With `out` the result goes to that file as it is made, in constant memory, and None is returned; after a kill
        the same call goes on from what was drawn. Other options as in `text_to_video`.
        """
        options = {k: v for k, v in _given(locals()).items() if k not in ("clip", "out", "seconds", "prompts")}
        if out is None:
            return join(self.stream.extend(clip, seconds, prompts, **options))
        check_output(out)
        if output_kind(out) == "sound" and not sound:
            raise InputError(f"{out}: holds only sound, and none is made here; use a movie such as .mp4")
        source = Source(clip, need="video")
        writer = ClipWriter(out, fps=self.config.layout.fps, sample_rate=self.codec.sample_rate if sound else None)
        journal, done = None, False
        if str(out) != "-":
            told = {k: v for k, v in options.items() if k not in ("progress", "superres")}  # what ids depend on
            key = {"clip": _name_of(source), "seconds": seconds, "prompts": prompts, "model": self._identity(), **told}
            journal = Journal(writer.target, key, writer.temporary)
        try:
            parts = self.stream.extend(clip, seconds, prompts, journal=journal, **options)
            if journal is not None:
                journal.begin()  # a kill while the clip itself is written shall not leave a file that nobody removes
            with writer:
                for part in parts:
                    writer.write(part.frames, part.samples)
            done = True
        finally:
            if journal is not None:
                journal.close(done)
        return None

    def superres(
        self, clip: Media, scale: int = 4, *, rate: int = 1, steps: int | None = None, noise: float | None = None,
        seed: int = 0, mend: bool = False, prompt: str | None = None, memory_gb: float | None = None,
    ) -> Clip:  # fmt: skip
        """The clip `scale` (2 or 4) times as high and wide, with its own sound, mixed to mono.

        rate: 1, 2 or 3 times as many frames a second. steps: 1, 2, 4 or 8; noise: from 0 to the head's `max_noise`, the
        more, the more detail is made up; None is the head's own setting. mend: the clip was decoded from ids, and what
        that got wrong may be changed, as it is where a task has superres=True; otherwise the result, made small again,
        is the clip to one or two grey levels, and None is no noise. prompt: what is seen, for a head that was trained
        with text. memory_gb: what the process may hold (on a CPU), the frames that are returned aside; the picture is
        the same, drawn in windows if need be. Raises InputError where that is not enough, and for more than 16,384
        pixels a side or 7680x4320 in all.
        """
        parts = self.stream.superres(
            clip, scale, rate=rate, steps=steps, noise=noise, seed=seed, mend=mend, prompt=prompt, memory_gb=memory_gb
        )
        return join(parts)

    def _identity(self) -> str:
        """What tells this model from others, for going on with what another run of it began."""
        weights = hashlib.sha256(json.dumps([self.config.to_dict(), self._rounding]).encode())
        for part in (self.codec.video, self.codec.audio, self.lm):
            for name, value in part.state_dict().items():
                weights.update(f"{name} {value.dtype} {value.double().sum().item()!r}".encode())
        return weights.hexdigest()

    def reconstruct(self, clip: Media, size: tuple[int, int] | None = None, levels: int | None = None) -> Clip:
        """The clip through the tokenizers and back, at the model's rates and size or at another `size` (H, W).

        Sound is decoded from the first `levels` levels of its ids, or from all.
        """
        size = None if size is None else check_size(size)
        levels = None if levels is None else check_levels(levels, self.codec.audio.n_codebooks)
        return join(r.decoded for r in reconstructed(self.codec, Source(clip), size, levels))


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or an accelerator if there is one; InputError where it is not there."""
    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).tolist()  # a device that holds nothing, such as meta, fails here
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return chosen


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype asked for; None is bfloat16 where the device computes in it, else float32."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if isinstance(dtype, str):
        if dtype not in names:
            raise InputError(f"dtype {dtype!r}: expected one of {', '.join(names)}")
        return names[dtype]
    if dtype is not None:
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_has_bf16() else torch.float32
    return torch.float32


def _cpu_has_bf16() -> bool:
    """Whether bfloat16 products are native; emulated ones are slower than float32."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask is not None and ask())


def _name_of(source: Source) -> str:
    """What tells one clip from another."""
    clip = source.media
    if not isinstance(clip, Clip):
        stat = os.stat(clip)
        return f"{os.path.abspath(clip)} {stat.st_size} {stat.st_mtime_ns}"
    parts = [t.cpu().contiguous().numpy().tobytes() for t in (clip.frames, clip.samples) if t is not None]
    return hashlib.sha256(b"".join(parts) + f"{clip.fps} {clip.sample_rate}".encode()).hexdigest()


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in arguments.items() if k != "self"}


def _check_fit(
    video: VideoTokenizer, audio: AudioTokenizer, text: TextTokenizer, vocab: Vocabulary, config: PoetConfig,
    head: SuperResConfig | None,
) -> None:  # fmt: skip
    """Raise InputError where the parts of a model are not made for each other."""
    layout = config.layout
    stride = video.spatial_stride
    facts = [
        ("visual ids", vocab["visual"].size, video.codebook_size),
        ("text ids", vocab["text"].size, text.vocab_size),
        ("audio levels", layout.n_codebooks, audio.n_codebooks),
        *((f"ids of {n}", vocab[n].size, audio.codebook_size) for n in audio_ranges(layout)),
        ("audio columns per second", layout.audio_rate, audio.frame_rate),
        ("frames per latent frame", layout.temporal_stride, video.temporal_stride),
        ("height in pixels", config.size[0], layout.height * stride),
        ("width in pixels", config.size[1], layout.width * stride),
        *([("text ids that the head looks at", head.text_size, text.vocab_size)] if head and head.text_size else []),
    ]
    for name, here, there in facts:
        if here != there:
            raise InputError(f"the parts of this model do not fit each other: {name}: {here:g} and {there:g}")
