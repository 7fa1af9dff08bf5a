"""Training of the super-resolution head by flow matching between low sides, as decoders leave them, and large clips."""
# Shapes: B batch, T frames, H W height and width of the large frame

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.codec import MAX_TEXT_TOKENS
from tokenizers_av.optical_flow import dis_flow
from tokenizers_av.superres import SuperRes, downsample, upsample
from tokenizers_av.text import TextTokenizer
from tokenizers_av.video import VideoTokenizer
from train.checkpoint import save_model
from train.data import MediaBatch, MediaSpec, Source
from train.degrade import coded, filmed, to_8_bits
from train.evaluate.detail import look_up
from train.evaluate.generation import to_frames
from train.evaluate.tokenizer_metrics import psnr
from train.optimizers import matrix_optimizers
from train.superres_training import SuperResTraining
from train.tokens import fingerprint

FLOOR = 1e-4  # squared error below which a crop is right, 46 dB
STEADY = 2e-3  # change of the error below which a crop is steady, a quarter of a grey level
SEEN = 0.3  # a pixel that has changed by more than this since the frame before was not seen there


@dataclass
class Pairs:
    """Large clips and what they shall be made of."""

    base: Tensor  # (B, T, H, W, 3) in [-1, 1], upsampled from the low side
    large: Tensor  # (B, T, H, W, 3) in [-1, 1]
    flow: Tensor  # (B, T, H, W, 2) x, y: pixels that what is seen there has moved since the frame before
    scale: int
    decoded: Tensor  # (B,) 1 where the low side went through the tokenizer, else 0
    text: Tensor | None = None  # (B, 64) ids of captions, -1 where there is none


class SuperResJob:
    """Fits a `SuperRes` to the clips of a source as `tokenizer`, which is not trained, decodes them."""

    name = "superres"
    critic = None

    def __init__(self, head: SuperRes, tokenizer: VideoTokenizer, train: Source, test: Source, spec: MediaSpec, *,
                 text: TextTokenizer | None = None, batch_size: int = 8, seed: int = 0,
                 training: SuperResTraining | None = None) -> None:  # fmt: skip
        """spec: of the large clips; text: of the captions, for a head that looks at text; raises ValueError where
        crops do not fit."""
        self.training = t = training or SuperResTraining()
        self.model, self.tokenizer = head, tokenizer.eval().requires_grad_(False)
        self.train, self.test, self.spec = train, test, replace(spec, n_frames=t.n_frames)
        self.batch_size, self.seed, self.text = batch_size, seed, text
        self.ema = t.ema
        unit = max(head.config.stride, 4)
        if t.crop % unit or t.crop > spec.size:
            raise ValueError(f"crop={t.crop}: need a multiple of {unit}, at most {spec.size}")
        if spec.size % (4 * tokenizer.spatial_stride):
            raise ValueError(f"size={spec.size}: need a multiple of {4 * tokenizer.spatial_stride}")

    def compile(self) -> None:
        self.model.compile(dynamic=False)

    @property
    def settings(self) -> dict[str, Any]:
        made_by = {"video_tokenizer": fingerprint(self.tokenizer)[:12]}
        if self.text is not None:
            made_by["text_tokenizer"] = hashlib.sha256(self.text.model_bytes).hexdigest()[:12]
        return {"batch_size": self.batch_size, **made_by, **asdict(self.training)}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return matrix_optimizers(self.model.named_parameters(), self.training.lr, plain=("net.embed.words",))

    def batch(self, step: int, rank: int, world: int, progress: float) -> Pairs:
        """`batch_size` crops of clips that no other step or process sees."""
        t = self.training
        n = -(-self.batch_size // t.crops_per_clip)
        first = ((self.seed * 7_919 + step) * world + rank) * n
        clips = self.train.batch(range(first, first + n), self.spec, audio=False)
        assert clips.video is not None
        device = next(self.model.parameters()).device
        large, flow = clips.video.to(device), _flow(clips, self.spec).permute(0, 4, 1, 2, 3).to(device)
        scale = 2 if float(torch.rand(())) < t.half_share else 4
        places = [self._place(i, scale, *large.shape[3:]) for i in range(self.batch_size)]
        low, decoded = self._low_side(large, scale)
        base = upsample(low, scale)
        crops = [torch.stack([x[p] for p in places]).permute(0, 2, 3, 4, 1).contiguous() for x in (base, large, flow)]
        text = self._text([clips.captions[p[0]] for p in places]) if clips.captions else None
        told = decoded[[p[0] for p in places]]
        return Pairs(base=crops[0], large=crops[1], flow=crops[2], scale=scale, decoded=told, text=text)

    def _text(self, captions: list[str]) -> Tensor | None:
        """Ids (B, 64) of the captions, some by chance untold; None for a head that looks at no text.

        Mirrored clips keep their captions: what these say of left and right is noise, what they say of looks holds.
        """
        if self.text is None:
            return None
        told = torch.rand(len(captions)) < self.training.text_share
        text = torch.full((len(captions), MAX_TEXT_TOKENS), -1)  # one width: a compiled network knows one shape
        for row, caption, tell in zip(text, captions, told, strict=True):
            ids = self.text.encode(caption, MAX_TEXT_TOKENS) if tell else []
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return text.to(next(self.model.parameters()).device)

    def _place(self, i: int, scale: int, H: int, W: int) -> tuple[Any, ...]:
        """Where crop i is cut: at random, on the grid of the low side and of the network."""
        t, unit = self.training, max(self.model.config.stride, scale)
        top, left = (unit * int(torch.randint(0, (side - t.crop) // unit + 1, ())) for side in (H, W))
        return i // t.crops_per_clip, ..., slice(top, top + t.crop), slice(left, left + t.crop)

    def _low_side(self, large: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """(B, 3, T, H, W) -> (B, 3, T, H / scale, W / scale) of 8 bits, each worn in its own way, and `decoded`."""
        t, low = self.training, downsample(large, scale)
        kind = torch.rand(len(low)).tolist()
        through = [i for i, k in enumerate(kind) if k >= t.clean_share + t.camera_share]
        if through:
            low[through] = coded(low[through], self.tokenizer.to(low.device), t.max_flips)
        for i, k in enumerate(kind):
            if t.clean_share <= k < t.clean_share + t.camera_share:
                low[i] = filmed(low[i])
        decoded = torch.zeros(len(low), device=low.device)
        decoded[through] = 1
        return to_8_bits(low), decoded

    def notices(self, step: int, metrics: dict[str, float]) -> list[str]:
        return []

    def loss(self, model: nn.Module, batch: Pairs, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Log of each crop's squared error of the large clip, and of how much that error changes along the motion, at a
        random noise level; half of the crops at the beginning of the flow, the others at a random time.

        The error of the velocity is that of the large clip over the time left (arXiv:2511.13720); logs do not know of
        such factors: all times, noise levels and kinds of crops count alike, flat ones too. Later times are the easier
        the less noise there is, as x shows there where it is led: hence the half.
        """
        B, device = len(batch.base), batch.base.device
        time, noise, begins = torch.rand(3, B, device=device)
        time, noise = time * (begins < 0.5), noise * self.model.config.max_noise
        if self.training.regression:
            time, noise = torch.zeros_like(time), torch.zeros_like(noise)
        at, level = (x.view(B, 1, 1, 1, 1) for x in (time, noise))
        grain = torch.randn_like(batch.base[:, :1])  # one for all frames
        x = torch.lerp(batch.base + level * grain, batch.large, at)
        missing = batch.large - batch.base
        off = model(x, batch.base, time, noise, batch.scale, batch.decoded, batch.text).float() - missing
        error = off.square().mean((1, 2, 3, 4))
        loss = (error + FLOOR).log().mean()
        if off.shape[1] > 1:
            loss = loss + self.training.steady_weight * (_change(off, batch) + STEADY).log().mean()
        metrics: dict[str, Tensor | float] = {}
        if bool((first := time == 0).any()):  # later times are told a part of the answer
            metrics = {
                "psnr": _decibels(error.detach()[first]),
                "bicubic": _decibels(missing.square().mean((1, 2, 3, 4))[first]),
            }
        return loss, metrics

    @torch.no_grad()
    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write `{step}.png`: one frame of each of four decoded test clips: bicubic, the head, the truth."""
        from PIL import Image

        rows = []
        for low, large in self._test_pairs(model, 4):
            made = self._made(model, low)
            rows.append(torch.cat([x[0, :, -1] for x in (upsample(low, 4), made, large)], dim=-1))
        grid = torch.cat(rows, dim=-2).permute(1, 2, 0).cpu()
        Image.fromarray(((grid + 1) * 127.5).round().clamp(0, 255).byte().numpy()).save(folder / f"{step:07d}.png")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, n: int) -> dict[str, float]:
        """PSNR in dB of n decoded test clips, four times as large, and that of bicubic upsampling."""
        scores: dict[str, list[float]] = {"psnr": [], "bicubic_psnr": []}
        for low, large in self._test_pairs(model, n):
            for name, made in (("psnr", self._made(model, low)), ("bicubic_psnr", upsample(low, 4))):
                scores[name].append(float(psnr((made + 1) / 2, (large + 1) / 2)))
        return {name: sum(values) / n for name, values in scores.items()} | {"n": n}

    def _made(self, model: nn.Module, low: Tensor) -> Tensor:
        assert isinstance(model, SuperRes)
        with torch.autocast(low.device.type, torch.bfloat16):
            return model.upscale(low, 4, steady=False)  # needs no OpenCV

    def _test_pairs(self, model: nn.Module, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Decoded (1, 3, T, H / 4, W / 4) and large (1, 3, T, H, W) test clips."""
        device = next(model.parameters()).device
        for i in range(n):
            large = self.test.batch([i], self.spec, audio=False).video
            assert large is not None
            large = large.to(device)
            yield to_8_bits(coded(downsample(large, 4), self.tokenizer.to(device), 0.0)), large

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the head as a folder that `SuperRes.from_pretrained` opens."""
        assert isinstance(model, SuperRes)
        save_model(model, folder)


def _flow(clips: MediaBatch, spec: MediaSpec) -> Tensor:
    """(B, T, H, W, 2) as in `Pairs`: known where the scene is, elsewhere DIS optical flow, found in frames of half the
    size, in a third of the time."""
    from train.data.playground import flow_since

    assert clips.video is not None
    return torch.stack([
        dis_flow(frames, spec.size**2 // 4) if scene is None else flow_since(scene, spec)
        for frames, scene in zip(to_frames(clips.video), clips.scenes or [None] * len(clips.video), strict=True)
    ])


def _change(off: Tensor, batch: Pairs) -> Tensor:
    """How much the error off (B, T, H, W, 3) of what is seen differs from that in the frame before, mean of (B,)."""
    B, T, H, W = off.shape[:4]
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    size = torch.tensor([W - 1, H - 1], device=off.device)
    places = (torch.stack([x, y], -1).to(off.device) - batch.flow[:, 1:]) * 2 / size - 1  # (B, T - 1, H, W, 2)

    def before(frames: Tensor) -> Tensor:
        flat = frames[:, :-1].flatten(0, 1).permute(0, 3, 1, 2)
        return look_up(flat, places.flatten(0, 1)).permute(0, 2, 3, 1).unflatten(0, (B, T - 1))

    seen = (before(batch.large) - batch.large[:, 1:]).abs().amax(-1) < SEEN
    seen &= (places.abs() <= 1).all(-1)
    change = (off[:, 1:] - before(off)).abs().mean(-1) * seen
    return change.sum((1, 2, 3)) / seen.sum((1, 2, 3)).clamp(min=1)


def _decibels(errors: Tensor) -> Tensor:
    """PSNR of the mean of squared errors on the scale of [-1, 1]."""
    return -10 * (errors.mean() / 4 + 1e-10).log10()
