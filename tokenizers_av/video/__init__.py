from tokenizers_av.video.config import (
    VIDEO_PRESETS,
    VideoTokenizerConfig,
    n_decoded_frames,
    n_latent_frames,
    video_tokenizer_config,
)
from tokenizers_av.video.lfq import LFQ, Quantized
from tokenizers_av.video.tokenizer import VideoOutput, VideoTokenizer

__all__ = [
    "LFQ",
    "VIDEO_PRESETS",
    "Quantized",
    "VideoOutput",
    "VideoTokenizer",
    "VideoTokenizerConfig",
    "n_decoded_frames",
    "n_latent_frames",
    "video_tokenizer_config",
]
