"""The super-resolution head: a flow from the upsampled clip to the large one, in a few steps.

Flow matching between pairs (arXiv:2210.02747; from the low-resolution clip instead of noise as in FlashVideo,
arXiv:2502.05179): x_0 = upsampled clip + noise level * noise, x_1 = large clip, x_t on the line between them. The
network predicts x_1, from which the velocity (x_1 - x_t) / (1 - t) follows (arXiv:2511.13720): it need not predict the
noise. Noise gives detail something to grow from: without any, the flow ends near the mean of all large clips that fit,
which is blurred. It is the same in every frame, so that what stands still does not flicker. For the same reason detail
is cored: what is below half a grey level is none, and flat areas, which have none, stay as they are; and frames are
mixed with what moves along from the frame before.

Every layer is causal in time and every step of the sampler carries its own state, so a clip of any length goes through
one frame at a time, in constant memory. Windows in space, which save memory, see as much around them as counts for what
is drawn in them (`windows`): they cannot be told from the whole.
"""
# Shapes: B batch, T frames, H W height and width of the small frames, sH sW of the large ones

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_av.hub import HubModel
from tokenizers_av.packed import PackedConv
from tokenizers_av.superres.config import SuperResConfig, check_rate, check_sampling, check_scale
from tokenizers_av.superres.motion import frames_between, steadied
from tokenizers_av.superres.network import DetailNet
from tokenizers_av.superres.windows import Shelf, Window, windows_of
from tokenizers_av.video.layers import Flow
from tokenizers_av.video.tokenizer import check_video

CORING = 1 / 255  # detail that is taken as none: half a grey level
SAME = 24 * 2 / 255  # difference from which on two frames show something else, when they are steadied: 24 grey levels
SAME_DECODED = SAME / 2  # that of decoded clips: in real ones 24 levels mixed what flow had not followed
SLACK = 3 / 255  # a difference from the small frames that need not be undone: one and a half grey levels


class SuperRes(nn.Module, HubModel):
    """Small video -> large video, of any size and length."""

    def __init__(self, config: SuperResConfig) -> None:
        super().__init__()
        self.config = SuperResConfig(**config) if isinstance(config, dict) else config
        self.net = DetailNet(self.config)

    def forward(
        self, x: Tensor, base: Tensor, time: Tensor, noise: Tensor, scale: int, decoded: Tensor,
        text: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Detail (B, T, sH, sW, 3) of whole clips, for training; see `DetailNet`."""
        return self.net(x - base, base, time, noise, scale, decoded, text, Flow())

    def upscale(
        self, video: Tensor, scale: int = 4, *, rate: int = 1, steps: int | None = None, noise: float | None = None,
        seed: int = 0, keep: bool = False, steady: bool = True, text: Tensor | None = None,
        window: int | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, 3, rate * T, scale * H, scale * W) in [-1, 1] of video (B, 3, T, H, W) in [-1, 1], any T, H and W >= 1.

        rate: 1, 2 or 3 times as many frames, see `frames_between`; the last given one stands for those after it. steps:
        1, 2, 4 or 8; noise: 0 (nothing is made up) to `config.max_noise`; None is the head's own setting. keep: made
        small again, frames are what went in to one or two grey levels, and None is no noise; without it, the video is
        taken for one that was decoded from ids, and what is wrong in it may be mended. steady: frames are mixed with
        what moves along from the frame before, see `steadied`.
        text: ids (1, L) or (B, L) of what is seen, -1 where there is none, for a head that was trained with text.
        window: the network sees the large frame in windows of at most so many pixels a side (or the stride), and as
        much around them as counts for what it draws in them, which is what it draws of the whole but for rounding; what
        it remembers of them lies in a temporary file. None is the whole.
        Raises ValueError for other values; OSError where there is no room for that file.
        """
        frames = self.upscale_stream(
            [video], scale, rate=rate, steps=steps, noise=noise, seed=seed, keep=keep, steady=steady, text=text,
            window=window, alone=video.ndim == 5 and video.shape[2] == 1,
        )  # fmt: skip
        return torch.cat(list(frames), dim=2)

    @torch.no_grad()
    def upscale_stream(
        self, chunks: Iterable[Tensor], scale: int = 4, *, rate: int = 1, steps: int | None = None,
        noise: float | None = None, seed: int = 0, keep: bool = False, steady: bool = True,
        text: Tensor | None = None, window: int | None = None, alone: bool = False,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Frames (B, 3, 1, scale * H, scale * W) in [-1, 1] one by one; joined they are those of `upscale`.

        The chunks (B, 3, any number of frames, H, W) in [-1, 1] follow each other in time. alone: one frame is all, and
        nothing of it is remembered. Raises ValueError, when the first frame is asked for, as `upscale` does; later for
        a chunk of another size or a frame after the only one, and where there are no frames. The weights must not
        change meanwhile.
        """
        steps = self.config.steps if steps is None else steps
        if noise is None:
            noise = 0.0 if keep else self.config.noise
        check_scale(scale)
        check_rate(rate)
        check_sampling(self.config, steps, noise)
        if window is not None and (not isinstance(window, int) or window < 1):
            raise ValueError(f"window={window!r}: need a whole number of pixels, at least 1")
        windows: list[Window] = []
        flows: list[list[Flow]] = []  # of each step, in each window
        kernels: dict[nn.Module, PackedConv] = {}
        grain: Tensor | None = None  # (B, 1, sH, sW, 3), filled up to the stride
        last: Tensor | None = None
        before: Tensor | None = None  # the last frame as the network left it
        with contextlib.closing(Shelf(self.net)) as shelf:
            for frame in _frames(chunks):
                B, _, _, H, W = frame.shape
                base = upsample(frame, scale).permute(0, 2, 3, 4, 1)
                base = _fill(base, self.config.stride)
                if last is not None and alone:
                    raise ValueError("a second frame after one that was said to be alone")
                if grain is None:
                    self._check_text(text, B)
                    grain = _noise(base, seed) * noise if noise else base.new_zeros(1)
                    windows = windows_of(base.shape[2:4], window, self.config.stride, self.config.reach)
                    flows = [
                        [Flow(tails=None if alone else {}, kernels=kernels) for _ in windows] for _ in range(steps)
                    ]
                x = base + grain
                for i in range(steps):
                    parts = zip(windows, flows[i], strict=True)
                    waits = shelf if window and not alone else None
                    x = self._step(x, base, i, steps, parts, waits, noise, scale, not keep, text)
                x = base + F.softshrink(x - base, CORING)
                made = x[:, :, : scale * H, : scale * W].clamp(-1, 1).permute(0, 4, 1, 2, 3)
                if steady:
                    drawn = made
                    if before is not None and last is not None:
                        same = SAME if keep else SAME_DECODED
                        made = steadied(made[:, :, 0], before[:, :, 0], last[:, :, 0], same).unsqueeze(2)
                    before = drawn
                if keep:
                    made = _kept(made, frame)
                if last is not None and rate > 1:
                    yield from (x.unsqueeze(2) for x in frames_between(last[:, :, 0], made[:, :, 0], rate))
                last = made
                yield made
        if last is None:
            raise ValueError("no frames to enlarge, expected at least one")
        for _ in range(1, rate):
            yield last

    def _step(
        self, x: Tensor, base: Tensor, i: int, steps: int, parts: Iterable[tuple[Window, Flow]], shelf: Shelf | None,
        noise: float, scale: int, decoded: bool, text: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """x (B, 1, H, W, 3) after step i of the sampler."""
        time, level, told = (torch.full((len(x),), float(v), device=x.device) for v in (i / steps, noise, decoded))
        left = steps - i  # of the line; a step goes along it by 1 / steps of the velocity
        after = torch.empty_like(x)
        for place, flow in parts:
            near = base[place.seen]
            gone = (x[place.seen] - near).to(self._dtype)
            with contextlib.nullcontext() if shelf is None else shelf.lent(flow):
                detail = self.net(gone, near.to(self._dtype), time, level, scale, told, text, flow)
            flow.first = False
            here = x[place.drawn]
            after[place.drawn] = here + (base[place.drawn] + detail[place.kept] - here) / left
        return after

    def _check_text(self, text: Tensor | None, batch: int) -> None:
        n = self.config.text_size
        if text is None:
            return
        if n == 0:
            raise ValueError("this head was trained without text")
        fits = text.ndim == 2 and len(text) in (1, batch) and not text.is_floating_point()
        if not fits or (text.numel() and not -1 <= text.min() <= text.max() < n):
            raise ValueError(f"text: expected ids (B, L) in [0, {n}), or -1 where there is none")

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def _frames(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The frames (B, 3, 1, H, W) of chunks that follow each other, float32; raises ValueError where they do not."""
    shape: torch.Size | None = None
    for chunk in chunks:
        check_video(chunk)
        if shape is not None and (chunk.shape[0], *chunk.shape[3:]) != (shape[0], *shape[3:]):
            raise ValueError(f"a chunk has shape {tuple(chunk.shape)} after {tuple(shape)}: "
                             "only the number of frames may change")  # fmt: skip
        shape = chunk.shape
        yield from chunk.float().split(1, dim=2)


def _kept(large: Tensor, small: Tensor) -> Tensor:
    """The large frames nearer to what is `small` again, by back-projection (Irani & Peleg 1991) of what differs by more
    than SLACK."""
    scale = large.shape[-1] // small.shape[-1]
    for _ in range(2):
        missing = F.softshrink(small - downsample(large, scale), SLACK)
        large = (large + upsample(missing, scale)).clamp(-1, 1)
    return large


def upsample(video: Tensor, scale: int) -> Tensor:
    """Bicubic: (B, 3, T, H, W) in [-1, 1] -> (B, 3, T, scale * H, scale * W) in [-1, 1]."""
    B, _, T = video.shape[:3]
    frames = F.interpolate(video.transpose(1, 2).flatten(0, 1), scale_factor=scale, mode="bicubic", align_corners=False)
    return frames.clamp(-1, 1).unflatten(0, (B, T)).transpose(1, 2)


def downsample(video: Tensor, scale: int) -> Tensor:
    """Bicubic with antialiasing: (B, 3, T, H, W) in [-1, 1] -> (B, 3, T, H / scale, W / scale) in [-1, 1]."""
    B, _, T, H, W = video.shape
    size = (H // scale, W // scale)
    frames = video.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size=size, mode="bicubic", antialias=True, align_corners=False)
    return frames.clamp(-1, 1).unflatten(0, (B, T)).transpose(1, 2)


def _noise(like: Tensor, seed: int) -> Tensor:
    """Standard normal (1, 1, sH, sW, 3): the same whatever the device and the batch."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 1, *like.shape[2:], generator=generator).to(like.device)


def _fill(x: Tensor, stride: int) -> Tensor:
    """(B, 1, H, W, 3): repeat the right and bottom edges up to multiples of the stride."""
    H, W = x.shape[2:4]
    if H % stride == 0 and W % stride == 0:
        return x
    filled = F.pad(x[:, 0].permute(0, 3, 1, 2), (0, -W % stride, 0, -H % stride), mode="replicate")
    return filled.permute(0, 2, 3, 1).unsqueeze(1)
