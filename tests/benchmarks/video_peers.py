"""Public video tokenizers beside ours, at equal parameters, compression and bits. Nothing is installed: those that are
found take part. `pip install magvit2-pytorch diffusers` gives all of them.

Every tokenizer here takes video (B, 3, T, H, W) in [-1, 1], T = 1 + 4n, and has 4x8x8 compression. Widths are searched
within +-10 % of the parameters asked for: multiples of 8 for the CPU's kernels, in the peer's own proportions, of which
only the last width may differ; of those that fit, the narrowest at full size, which is the fastest.
"""
# Shapes: B batch, T frames, H W height and width in pixels, t h w their latent counterparts

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_av.video import VIDEO_PRESETS, VideoTokenizer, VideoTokenizerConfig, video_tokenizer_config

TOLERANCE = 0.1  # of the number of parameters
PACKAGES = ("magvit2-pytorch", "vector-quantize-pytorch", "diffusers")


class Contestant:
    """A video tokenizer and how it is called: `encode` and `decode` without gradients, `train_loss` with."""

    name: str
    about: str
    discrete = True  # whether `encode` gives ids

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> ids (B, t, h, w)."""
        raise NotImplementedError

    def decode(self, ids: Tensor) -> Tensor:
        """Ids (B, t, h, w) -> (B, 3, T, H, W)."""
        raise NotImplementedError

    def train_loss(self, video: Tensor) -> Tensor:
        """Loss () of a batch; the model is in training mode."""
        raise NotImplementedError


class Ours(Contestant):
    def __init__(self, config: VideoTokenizerConfig, name: str = "ours") -> None:
        super().__init__(VideoTokenizer(config))
        self.name = name
        patch = f"patch {config.patch} (kernel {config.patch_kernel})"
        self.about = f"VideoTokenizer: {config.quantizer}, {patch}, widths {config.dims}"

    def encode(self, video: Tensor) -> Tensor:
        return self.model.encode(video)

    def decode(self, ids: Tensor) -> Tensor:
        return self.model.decode(ids)


class Magvit2(Contestant):
    """VideoTokenizer of magvit2-pytorch: its residual units, two at every size (one at full size), its strided
    convolutions down and depth-to-space up, no attention (costly, and needless to reach the compression).

    Widths grow as in its README, from 64 to at most 512; with `paper` as in MAGVIT-v2 (App. A.2), 1:2:2:4. Its loss is
    reconstruction and that of LFQ (FSQ has none), with its weights; no discriminator and no VGG, so that all time goes
    into the reconstruction that is measured."""

    def __init__(self, n_parameters: int, bits: int, size: int, fsq: bool = False, paper: bool = False) -> None:
        from magvit2_pytorch import VideoTokenizer as Peer

        if fsq and bits % 3:
            raise ValueError(f"bits={bits}: need a multiple of 3 for FSQ of 8 levels")
        lfq = {"codebook_size": 2**bits}
        codes: dict[str, Any] = {"use_fsq": True, "fsq_levels": [8] * (bits // 3)} if fsq else lfq

        def build(widths: tuple[int, ...], codes: dict[str, Any] = lfq) -> nn.Module:
            # for counting LFQ will do: FSQ cannot be built without memory, and its projections are hardly smaller
            first, second, third, last = widths
            two = ("consecutive_residual", 2)
            space = (("compress_space", second), two, ("compress_space", third), two, ("compress_space", last), two)
            layers = ("residual", *space, ("compress_time", last), two, ("compress_time", last), two)
            model = Peer(image_size=size, init_dim=first, layers=layers, use_gan=False, perceptual_loss_weight=0.0,
                         **codes)  # fmt: skip
            del model.discr  # built in any case
            return model

        if paper:
            groups = ([(d, 2 * d, 2 * d, last) for last in range(3 * d, 5 * d + 1, 8)] for d in range(8, 257, 8))
        else:
            groups = ([(d, 2 * d, 4 * d, last) for last in range(4 * d, 8 * d + 1, 8)] for d in range(16, 129, 16))
        widths = fitting(n_parameters, groups, build)
        model = build(widths, codes)
        model.quantizers = InWeightsPrecision(model.quantizers)
        super().__init__(model)
        self.name = "magvit2-pytorch" + ("-fsq" if fsq else "") + ("-paper" if paper else "")
        self.about = (f"magvit2-pytorch VideoTokenizer: {'fsq' if fsq else 'lfq'}, widths {widths} as in "
                      f"{'the paper' if paper else 'its README'}, no attention")  # fmt: skip

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        return self.model.tokenize(video)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        return self.model.decode_from_code_indices(ids)

    def train_loss(self, video: Tensor) -> Tensor:
        return self.model(video, return_loss=True)[0]


class VidTok(Contestant):
    """AutoencoderVidTok of diffusers: causal, FSQ of 8 levels, its defaults but for the widths. The class has no loss;
    L1 is the reconstruction term of the original."""

    def __init__(self, n_parameters: int, bits: int) -> None:
        from diffusers import AutoencoderVidTok

        if bits % 3:
            raise ValueError(f"bits={bits}: need a multiple of 3 for VidTok's FSQ of 8 levels")

        def build(widths: tuple[int, int], regularizer: str = "kl") -> nn.Module:
            # for counting "kl" will do: no regularizer has parameters
            ch, last = widths
            return AutoencoderVidTok(ch=ch, ch_mult=[1, 2, 4, last], z_channels=bits // 3, double_z=False,
                                     regularizer=regularizer, codebook_size=2**bits)  # fmt: skip

        groups = ([(ch, last) for last in range(4, 9)] for ch in range(16, 129, 8))
        ch, last = widths = fitting(n_parameters, groups, build)
        super().__init__(build(widths, "fsq"))
        self.name = "vidtok"
        self.about = f"diffusers AutoencoderVidTok: fsq, widths {(ch, 2 * ch, 4 * ch, last * ch)}, causal"

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        return self.model.encode(self._lead(video))[1].long()

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        z = self.model.indices_to_latent(ids).to(self.model.dtype)  # they come in float32
        return self.model.decode(z)

    def train_loss(self, video: Tensor) -> Tensor:
        z, _ = self.model.encode(self._lead(video))
        return F.l1_loss(self.model.decode(z), video)

    def _lead(self, video: Tensor) -> Tensor:
        """The first frame three times more in front, as its `forward` does."""
        return F.pad(video, (0, 0, 0, 0, self.model.temporal_compression_ratio - 1, 0), mode="replicate")


class Cosmos(Contestant):
    """AutoencoderKLCosmos of diffusers, the body of the Cosmos tokenizers at 4x8x8: 16 continuous channels and no ids,
    here because it is fast. Its defaults but for the widths."""

    discrete = False

    def __init__(self, n_parameters: int) -> None:
        from diffusers import AutoencoderKLCosmos

        def build(widths: tuple[int, int]) -> nn.Module:
            ch, last = widths
            return AutoencoderKLCosmos(
                encoder_block_out_channels=(ch, 2 * ch, 4 * ch, last),
                decode_block_out_channels=(2 * ch, 4 * ch, 4 * ch, last),
                temporal_compression_ratio=4,
            )

        groups = ([(ch, last) for last in range(4 * ch, 8 * ch + 1, 8)] for ch in range(16, 257, 8))
        ch, last = widths = fitting(n_parameters, groups, build)
        super().__init__(build(widths))
        self.name = "cosmos"
        self.about = f"diffusers AutoencoderKLCosmos: continuous, patch 4, widths {(ch, 2 * ch, 4 * ch, last)}"

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        return self.model.encode(video).latent_dist.mode()

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        return self.model.decode(ids).sample


class InWeightsPrecision(nn.Module):
    """A quantizer outside of autocast. LFQ and FSQ ask for this themselves (`force_quantization_f32`), but the library
    switches only CUDA's autocast off, and on a CPU the entropies would be taken in bfloat16."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, **options: Any) -> Any:
        weight = next(self.inner.parameters(), x)
        with torch.autocast(x.device.type, enabled=False):
            return self.inner(x.to(weight.dtype), **options)

    def indices_to_codes(self, ids: Tensor) -> Tensor:
        return self.inner.indices_to_codes(ids)


def ours_of_size(size: str, **overrides: Any) -> VideoTokenizerConfig:
    """The config of a preset, or of the shape of `tiny` with widths (w, 2w) for about `size` parameters ("35M")."""
    if size in VIDEO_PRESETS:
        return video_tokenizer_config(size, **overrides)
    try:
        n_parameters = round(float(size.lower().removesuffix("m")) * (1e6 if size[-1] in "mM" else 1))
    except ValueError:
        presets = ", ".join(VIDEO_PRESETS)
        raise ValueError(f"params={size!r}: expected one of {presets}, or a number such as 35M") from None

    def config(w: int) -> VideoTokenizerConfig:
        return video_tokenizer_config("tiny", **{**overrides, "dims": (w, 2 * w)})

    return config(fitting(n_parameters, [range(16, 1025, 16)], lambda w: VideoTokenizer(config(w))))


def fitting(n_parameters: int, groups: Iterable[Iterable[Any]], build: Callable[[Any], nn.Module]) -> Any:
    """The option nearest to `n_parameters` in the first group, fastest first, that has one within +-10 %.

    Raises ValueError where none fits.
    """
    for group in groups:
        misses = {}
        for option in group:
            with torch.device("meta"):
                n = sum(p.numel() for p in build(option).parameters())
            misses[option] = abs(n / n_parameters - 1)
        option = min(misses, key=misses.__getitem__)
        if misses[option] <= TOLERANCE:
            return option
    raise ValueError(f"no width gives {n_parameters:,} parameters within {TOLERANCE:.0%}")


def build_peers(n_parameters: int, *, bits: int, size: int, only: Iterable[str]) -> list[Contestant]:
    """Those of the peers named in `only` that are installed, with about `n_parameters` each, for ids of `bits` and
    frames of `size` x `size`; what is missing is said on stderr. Raises ValueError for an unknown name."""
    makers: dict[str, Callable[[], Contestant]] = {
        "magvit2-pytorch": lambda: Magvit2(n_parameters, bits, size),
        "magvit2-pytorch-paper": lambda: Magvit2(n_parameters, bits, size, paper=True),
        "magvit2-pytorch-fsq": lambda: Magvit2(n_parameters, bits, size, fsq=True),
        "vidtok": lambda: VidTok(n_parameters, bits),
        "cosmos": lambda: Cosmos(n_parameters),
    }
    peers = []
    for name in only:
        if name not in makers:
            raise ValueError(f"unknown peer {name!r}, expected one of {', '.join(makers)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _let_torchvision_import()
            try:
                peers.append(makers[name]())
            except ImportError as error:
                print(f"peer {name}: left out ({error})", file=sys.stderr)
    return peers


def _let_torchvision_import() -> None:
    """magvit2-pytorch imports torchvision, for a VGG that is not used here. Its wheels come with operators compiled for
    CUDA; beside a CPU build of torch these do not load, and the import fails on their absence. Declared without a body,
    they let the Python part import."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    except ImportError:
        pass


_KEPT: list[Any] = []  # a library's operators live as long as it does


@dataclass(frozen=True)
class Mode:
    """How a model is run: the type of its weights, under autocast to bfloat16 or not, in which memory layout."""

    name: str
    dtype: str  # "fp32" or "bf16", that of the heavy arithmetic
    weights: torch.dtype = torch.float32
    autocast: bool = False
    channels_last: bool = False

    def apply(self, contestant: Contestant) -> Contestant:
        """A copy of the contestant in this mode."""
        made = copy.deepcopy(contestant)
        nn.Module.to(made.model, self.weights)  # not diffusers' own, which warns
        if self.channels_last:
            for p in made.model.parameters():
                if p.dim() in (4, 5):
                    p.data = p.data.contiguous(memory_format=LAYOUTS[p.dim()])
        return made

    def video(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) as this mode wants it."""
        video = video.to(self.weights)
        return video.contiguous(memory_format=torch.channels_last_3d) if self.channels_last else video

    def context(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)


LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
MODES = (
    Mode("fp32", "fp32"),
    Mode("fp32 channels-last", "fp32", channels_last=True),
    Mode("bf16", "bf16", torch.bfloat16),
    Mode("bf16 channels-last", "bf16", torch.bfloat16, channels_last=True),
    Mode("autocast", "bf16", autocast=True),
    Mode("autocast channels-last", "bf16", autocast=True, channels_last=True),
)


def describe(contestants: Iterable[Contestant]) -> str:
    """A table of who takes part."""
    rows = [f"  {c.name:<22} {c.n_parameters / 1e6:7.2f}M  {c.about}" for c in contestants]
    return "\n".join([f"  {'name':<22} {'params':>8}  what it is", *rows])


def conditions() -> dict[str, Any]:
    """Hardware, versions and commit that a figure depends on."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    return {"cpu": cpu, "threads": torch.get_num_threads(), "versions": versions,
            "commit": (commit or "unknown") + (" with changes" if changed else "")}  # fmt: skip
