"""Sound to ids and back (SoundStream)."""

from tokenizers_av.audio.config import AUDIO_PRESETS, AudioTokenizerConfig, audio_tokenizer_config
from tokenizers_av.audio.model import AudioOutput, AudioTokenizer

__all__ = ["AUDIO_PRESETS", "AudioOutput", "AudioTokenizer", "AudioTokenizerConfig", "audio_tokenizer_config"]
