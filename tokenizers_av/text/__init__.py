"""Text to ids and back (sentencepiece)."""

from tokenizers_av.text.tokenizer import TextTokenizer

__all__ = ["TextTokenizer"]
