from tokenizers_av.video.bsq import BSQ
from tokenizers_av.video.config import (
    VIDEO_PRESETS,
    VideoTokenizerConfig,
    n_decoded_frames,
    n_latent_frames,
    nearest_n_frames,
    video_tokenizer_config,
)
from tokenizers_av.video.deepening import deepen
from tokenizers_av.video.fsq import FSQ
from tokenizers_av.video.inflation import inflate
from tokenizers_av.video.lfq import LFQ
from tokenizers_av.video.quantizer import Quantized, Quantizer
from tokenizers_av.video.tokenizer import VideoOutput, VideoTokenizer

__all__ = [
    "BSQ",
    "FSQ",
    "LFQ",
    "VIDEO_PRESETS",
    "Quantized",
    "Quantizer",
    "VideoOutput",
    "VideoTokenizer",
    "VideoTokenizerConfig",
    "deepen",
    "inflate",
    "n_decoded_frames",
    "n_latent_frames",
    "nearest_n_frames",
    "video_tokenizer_config",
]
