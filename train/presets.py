"""Named sizes of the whole chain: which preset of each part, clips of which size, trained how, on how much data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from train.audio_training import AudioTraining
from train.data import MediaSpec
from train.superres_training import SuperResTraining
from train.video_training import VideoTraining


@dataclass(frozen=True, kw_only=True)
class ChainPreset:
    spec: MediaSpec
    video: str  # preset names of the parts
    audio: str
    lm: str
    superres: str
    video_training: VideoTraining = field(default_factory=VideoTraining)
    audio_training: AudioTraining = field(default_factory=AudioTraining)
    superres_training: SuperResTraining = field(default_factory=SuperResTraining)
    text_vocab: int = 512
    n_captions: int = 20_000  # for the text tokenizer, where the data has no end
    n_clips: int = 8_192  # turned into ids for the transformer; later epochs see them again
    n_images: int = 32_768
    n_test: int = 32
    batch_size: dict[str, int] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)  # config.json of the model folder

    @property
    def clip_spec(self) -> MediaSpec:
        """Of the clips that the transformer learns from: twice as long as its own, to learn how clips go on."""
        return replace(self.spec, n_frames=2 * self.spec.n_frames - 1)

    @property
    def large_spec(self) -> MediaSpec:
        """Of the clips that the super-resolution head learns to make."""
        return replace(self.spec, size=4 * self.spec.size)


_SAMPLING = {
    "guidance_scale": 3.0,
    "ranges": {
        "visual": {"temperature": 0.8, "top_k": 100},
        "audio": {"temperature": 1.0, "top_k": 100, "guided": False},
    },
    "tasks": {
        # what the conditioning clip tells counts for more than the prompt
        **{
            name: {"guidance_scale": 1.5, "temperature": 0.5}
            for name in ("frame_interpolation", "inpainting", "outpainting", "stylization")
        },
        "video_to_audio": {"guidance_scale": 2.0, "temperature": 0.8, "guided": True},
    },
}
# MAGVIT-v2 appendix A.2: adversarial and perceptual losses, entropy weight three times as high at the start
_PAPER = VideoTraining(lr=1e-3, ema=0.999, entropy_boost=3.0, adversarial_weight=0.1, perceptual="microsoft/resnet-50")
# the balance of EnCodec (section 4.4) and the width of its discriminators
_ENCODEC = AudioTraining(lr=1e-3, ema=0.999, adversarial_weight=3.0, stft_width=32, wave_width=32)
_LARGE: dict[str, Any] = {
    "video_training": _PAPER, "audio_training": _ENCODEC, "text_vocab": 8_192, "sampling": _SAMPLING,
    "batch_size": {"video-tokenizer": 16, "audio-tokenizer": 64, "lm": 64, "superres": 64},
}  # fmt: skip

_TINY = ChainPreset(
    spec=MediaSpec(), video="tiny", audio="tiny", lm="tiny", superres="tiny",
    batch_size={"video-tokenizer": 16, "audio-tokenizer": 16, "lm": 32, "superres": 8}, sampling=_SAMPLING,
)  # fmt: skip

CHAINS: dict[str, ChainPreset] = {
    "debug": ChainPreset(
        spec=MediaSpec(n_frames=5, size=16), video="debug", audio="debug", lm="debug", superres="debug",
        audio_training=AudioTraining(seconds=0.5), superres_training=SuperResTraining(n_frames=5, crop=32),
        text_vocab=320, n_captions=200, n_clips=24, n_images=24, n_test=4,
        batch_size={"video-tokenizer": 2, "audio-tokenizer": 2, "lm": 2, "superres": 2},
    ),
    "tiny": _TINY,
    "fast": replace(_TINY, video="fast"),
    "base": ChainPreset(spec=MediaSpec(size=128), video="base", audio="base", lm="300m", superres="base", **_LARGE),
    "base-24khz": ChainPreset(spec=MediaSpec(size=128, sample_rate=24000), video="base", audio="base-24khz", lm="300m",
                              superres="base", **_LARGE),
    "large": ChainPreset(spec=MediaSpec(size=128), video="large", audio="base", lm="1b", superres="base", **_LARGE),
}  # fmt: skip
