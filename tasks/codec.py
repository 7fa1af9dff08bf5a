"""Between media and local ids at the sizes of one model: the three tokenizers together with the layout."""
# Shapes: T frames, H W pixels, t h w latent sizes, N samples, Q audio levels, F audio columns

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tasks.model_folder import PoetConfig
from tokenizers_av.audio import AudioTokenizer
from tokenizers_av.text import TextTokenizer
from tokenizers_av.video import VideoTokenizer

MAX_TEXT_TOKENS = 64  # VideoPoet A.5.1
ENCODER_COLUMNS = 50  # a second of past sound at hand for the causal encoder


class Codec:
    """Encodes and decodes single clips without batch axis, on the CPU side; the networks may live on a device."""

    def __init__(
        self,
        video: VideoTokenizer,
        audio: AudioTokenizer,
        text: TextTokenizer,
        config: PoetConfig,
        device: torch.device,
    ) -> None:
        self.video, self.audio, self.text = video.to(device).eval(), audio.to(device).eval(), text
        self.layout, self.size, self.device = config.layout, config.size, device

    @property
    def sample_rate(self) -> int:
        return self.audio.sample_rate

    def n_samples(self, n_frames: int) -> int:
        """Samples as long as `n_frames`, to the nearest."""
        return round(n_frames / self.layout.fps * self.sample_rate)

    def encode_text(self, prompt: str | None) -> Tensor | None:
        """(n,) ids; None for no prompt."""
        return None if prompt is None else torch.tensor(self.text.encode(prompt, MAX_TEXT_TOKENS), dtype=torch.int64)

    def encode_video(self, frames: Tensor) -> Tensor:
        """frames (T, H, W, 3) uint8 of the model's size -> ids (t, h, w) int64."""
        with _exact():
            return self.video.encode(to_network(frames).to(self.device))[0].cpu()

    def decode_video(self, ids: Tensor) -> Tensor:
        """ids (t, h, w) -> frames (1 + stride * (t - 1), H, W, 3) uint8."""
        with _exact():
            video = self.video.decode(ids[None].to(self.device))[0].float()
        frames = ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return frames.permute(1, 2, 3, 0).contiguous().cpu()

    def encode_audio(self, samples: Tensor) -> Tensor:
        """samples (N,) -> ids (Q, N // hop_length), aligned with the end of the samples."""
        extra = len(samples) % self.audio.hop_length
        if extra == len(samples):
            return torch.zeros(self.audio.n_codebooks, 0, dtype=torch.int64)
        samples = samples[extra:]
        with _exact():
            return self.audio.encode(samples[None].to(self.device))[0].cpu()

    def decode_audio(self, ids: Tensor, carry: Tensor | None = None) -> Tensor:
        """ids (Q, F) -> samples (F * hop_length,); `carry` (Q, c) are the ids before them, for the causal decoder."""
        with _exact():
            whole = ids if carry is None else torch.cat([carry, ids], dim=-1)
            samples = self.audio.decode(whole[None].to(self.device))[0].float().cpu()
        return samples[samples.shape[0] - ids.shape[-1] * self.audio.hop_length :]

    def carry(self, ids: Tensor) -> Tensor:
        """The last columns of ids (Q, F), as many as the decoder looks back."""
        return ids[:, max(0, ids.shape[1] - self.audio.context_frames) :]


def to_network(frames: Tensor) -> Tensor:
    """(T, H, W, 3) uint8 -> (1, 3, T, H, W) float in [-1, 1]."""
    return frames.permute(3, 0, 1, 2).unsqueeze(0).float() / 127.5 - 1


@contextmanager
def _exact() -> Iterator[None]:
    """The tokenizers stay in float32: one of their bits is worth more than their share of the time."""
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        yield
