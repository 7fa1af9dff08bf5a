"""SoundStream-like audio tokenizer (arXiv:2107.03312): causal codec whose ids are a few residual levels per frame."""
# Shapes: B batch, N samples, F = N // hop_length latent frames, Q = n_codebooks

from dataclasses import dataclass

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from tokenizers_av.audio.config import AudioTokenizerConfig
from tokenizers_av.audio.quantizer import ResidualQuantizer
from tokenizers_av.audio.seanet import Decoder, Encoder


@dataclass
class AudioOutput:
    samples: Tensor  # (B, F * hop_length) reconstruction, not clipped
    ids: Tensor  # (B, levels, F) int64 in [0, codebook_size)
    commit_loss: Tensor  # () zero in eval mode


class AudioTokenizer(nn.Module, PyTorchModelHubMixin, library_name="avpoet"):
    """Samples to ids and back; encoding and decoding are exactly causal: frame k needs samples and ids up to k only."""

    def __init__(self, config: AudioTokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = ResidualQuantizer(config)
        self.decoder = Decoder(config)

    @classmethod
    def _from_pretrained(cls, **kwargs):
        """A file that lacks weights is an error, and what was loaded is ready to encode."""
        kwargs.setdefault("strict", True)
        return super()._from_pretrained(**kwargs).eval()

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        return self.config.hop_length

    @property
    def n_codebooks(self) -> int:
        return self.config.n_codebooks

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def frame_rate(self) -> float:
        return self.config.frame_rate

    @property
    def context_frames(self) -> int:
        """Past frames that influence a decoded block: decode a chunk after this many and drop their samples."""
        return self.decoder.context_frames

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Tensor:
        """(B, N) float in [-1, 1] -> ids (B, Q, N // hop_length) int64; a tail shorter than a hop is dropped.

        Raises ValueError for other shapes, integer samples, and NaN or infinity.
        """
        samples = self._whole_frames(samples)
        return self.quantizer.encode(self.encoder(samples))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids (B, k, F) of the first k <= Q levels -> samples (B, F * hop_length) float32 in [-1, 1].

        Raises ValueError for other shapes and for ids outside [0, codebook_size).
        """
        if ids.ndim != 3 or not 1 <= ids.shape[1] <= self.n_codebooks:
            raise ValueError(
                f"audio ids of shape {tuple(ids.shape)}: expected (batch, 1 to {self.n_codebooks} levels, frames)"
            )
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"audio ids are {ids.dtype}: expected integers")
        if ids.numel() == 0:
            return torch.zeros(ids.shape[0], ids.shape[2] * self.hop_length, device=ids.device)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(f"audio ids range from {low} to {high}: expected 0 to {self.codebook_size - 1}")
        return self.decoder(self.quantizer.decode(ids.long())).float().clamp(-1, 1)

    def forward(self, samples: Tensor, n_levels: int | None = None, bypass: Tensor | None = None) -> AudioOutput:
        """Reconstruct samples (B, N). In training mode codebooks move, levels are dropped at random, and the latents of
        clips where `bypass` (B,) is True are not quantized; in eval mode the first `n_levels` levels (all if None) are
        used and nothing changes."""
        if n_levels is not None and (self.training or not 1 <= n_levels <= self.n_codebooks):
            raise ValueError(f"n_levels={n_levels}: expected 1 to {self.n_codebooks}, and in eval mode only")
        z = self.encoder(self._whole_frames(samples))
        if self.training:
            q = self.quantizer(z, bypass)
            return AudioOutput(self.decoder(q.z_q).float(), q.ids, q.commit_loss)
        ids = self.quantizer.encode(z, n_levels)
        return AudioOutput(self.decoder(self.quantizer.decode(ids)).float(), ids, z.new_zeros(()))

    def _whole_frames(self, samples: Tensor) -> Tensor:
        """Check samples (B, N) and drop the tail that does not fill a frame."""
        if samples.ndim != 2:
            raise ValueError(f"audio of shape {tuple(samples.shape)}: expected mono samples (batch, samples)")
        if not samples.is_floating_point():
            raise ValueError(f"audio samples are {samples.dtype}: expected floats in [-1, 1]")
        if not torch.isfinite(samples).all():
            n_bad = int((~torch.isfinite(samples)).sum())
            raise ValueError(f"{n_bad} of {samples.numel()} audio samples are NaN or infinite: expected [-1, 1]")
        return samples[:, : samples.shape[1] // self.hop_length * self.hop_length]
