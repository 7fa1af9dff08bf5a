"""Sound to ids and back (SoundStream)."""

from tokenizers_av.audio.config import AUDIO_PRESETS, AudioTokenizerConfig, audio_tokenizer_config
from tokenizers_av.audio.model import AudioOutput, AudioTokenizer, check_samples
from tokenizers_av.audio.resample import resample

__all__ = [
    "AUDIO_PRESETS",
    "AudioOutput",
    "AudioTokenizer",
    "AudioTokenizerConfig",
    "audio_tokenizer_config",
    "check_samples",
    "resample",
]
