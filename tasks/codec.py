"""Between media and local ids at the sizes of one model: the three tokenizers together with the layout."""
# Shapes: T frames, H W pixels, t h w latent sizes, N samples, Q audio levels, F audio columns

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tasks.model_folder import PoetConfig
from tokenizers_av.audio import AudioTokenizer
from tokenizers_av.text import TextTokenizer
from tokenizers_av.video import VideoTokenizer, n_latent_frames

MAX_TEXT_TOKENS = 64  # VideoPoet A.5.1


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
        with exact():
            return self.video.encode(to_network(frames).to(self.device))[0].cpu()

    def decode_video(self, ids: Tensor) -> Tensor:
        """ids (t, h, w) -> frames (1 + stride * (t - 1), H, W, 3) uint8."""
        return self.video_decoder()(ids)

    def video_encoder(self) -> Callable[[Tensor | None], list[Tensor]]:
        """A function that codes one clip of any size piece by piece; its ids are those of the whole clip.

        Called with the next frames (n, H, W, 3) uint8, it gives the ids (1, h, w) of each latent frame they complete;
        called with None at the end, those of the frames that are left.
        """
        stream, stride = Pushed(self.video.encode_stream), self.video.temporal_stride
        n_frames = n_coded = 0

        def encode(frames: Tensor | None) -> list[Tensor]:
            nonlocal n_frames, n_coded
            if frames is None:
                chunk, n_complete = None, n_latent_frames(n_frames, stride)
            else:
                n_frames += len(frames)
                chunk, n_complete = to_network(frames).to(self.device), -(-n_frames // stride)
            ids = [part[0].cpu() for part in stream(chunk, n_complete - n_coded)]
            n_coded = n_complete
            return ids

        return encode

    def video_decoder(self) -> Callable[[Tensor], Tensor]:
        """A function that decodes one clip piece by piece: called with the next ids (t, h, w), it gives their frames.

        Joined they are those of `decode_video`: 1 frame for the first latent frame, `stride` for each later one.
        """
        stream = Pushed(self.video.decode_stream)
        return lambda ids: torch.cat([to_frames(part) for part in stream(ids[None].to(self.device), len(ids))])

    def encode_audio(self, samples: Tensor) -> Tensor:
        """samples (N,) -> ids (Q, N // hop_length), aligned with the end of the samples."""
        extra = len(samples) % self.audio.hop_length
        if extra == len(samples):
            return torch.zeros(self.audio.n_codebooks, 0, dtype=torch.int64)
        samples = samples[extra:]
        with exact():
            return self.audio.encode(samples[None].to(self.device))[0].cpu()

    def decode_audio(self, ids: Tensor) -> Tensor:
        """ids (Q, F) -> samples (F * hop_length,)."""
        return self.audio_decoder()(ids)

    def audio_encoder(self) -> Callable[[Tensor], Tensor]:
        """A function that codes one sound piece by piece: called with the next samples (N,), it gives the ids (Q, F) of
        the columns they complete."""
        stream = Pushed(self.audio.encode_stream)
        return lambda samples: stream(samples[None].to(self.device), 1)[0][0].cpu()

    def audio_decoder(self) -> Callable[[Tensor], Tensor]:
        """A function that decodes one sound piece by piece: called with the next ids (Q, F), it gives their samples."""
        stream = Pushed(self.audio.decode_stream)
        return lambda ids: stream(ids[None].to(self.device), 1)[0][0].cpu()


def even_size(canvas: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(H, W), even, with the proportions of `canvas` and about as many pixels as `size`."""
    scale = (size[0] * size[1] / (canvas[0] * canvas[1])) ** 0.5
    height, width = (max(2, 2 * round(n * scale / 2)) for n in canvas)
    return height, width


def to_network(frames: Tensor) -> Tensor:
    """(T, H, W, 3) uint8 -> (1, 3, T, H, W) float in [-1, 1]."""
    return frames.permute(3, 0, 1, 2).unsqueeze(0).float() / 127.5 - 1


def to_frames(video: Tensor) -> Tensor:
    """(1, 3, T, H, W) in [-1, 1] -> (T, H, W, 3) uint8 on the CPU."""
    frames = ((video[0].float() + 1) * 127.5).round().to(torch.uint8)
    return frames.permute(1, 2, 3, 0).contiguous().cpu()


class Pushed:
    """A stream of the tokenizer that is handed its chunks one by one, where their source cannot be pulled."""

    def __init__(self, stream: Callable[[Iterator[Tensor]], Iterator[Tensor]]) -> None:
        self.chunks: deque[Tensor | None] = deque()
        self.results = stream(iter(self.chunks.popleft, None))

    def __call__(self, chunk: Tensor | None, n: int) -> list[Tensor]:
        """The `n` results that the next chunk, or with None the end, makes known."""
        self.chunks.append(chunk)
        with exact():
            return [next(self.results) for _ in range(n)]


@contextmanager
def exact() -> Iterator[None]:
    """The tokenizers stay in float32: one of their bits is worth more than their share of the time."""
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        yield
