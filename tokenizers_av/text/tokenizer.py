"""Text to ids with sentencepiece (arXiv:1808.06226): a small subword vocabulary with bytes to fall back on.

Captions are lower-cased and normalised (Unicode NFKC with case folding), so `decode` gives back the normalised text.
"""

import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MODEL_FILE = "tokenizer.model"
CONFIG_FILE = "config.json"
N_RESERVED = 1 + 256  # <unk>, which byte fallback makes unreachable, and one piece per byte


class TextTokenizer:
    """A trained sentencepiece model; any Unicode text encodes, and encoding is deterministic."""

    def __init__(self, model_bytes: bytes):
        """`model_bytes` is the content of a sentencepiece model file; raises ValueError if it is not one."""
        from sentencepiece import SentencePieceProcessor

        if not model_bytes:
            raise ValueError("the text tokenizer's model is empty: expected the bytes of a sentencepiece model")
        try:
            self._processor = SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise ValueError(f"not a sentencepiece model ({len(model_bytes)} bytes): {error}") from None
        self.model_bytes = model_bytes

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 512) -> "TextTokenizer":
        """Fit to texts, one caption each. `vocab_size` is an upper limit: a small corpus gives fewer pieces.

        Raises ValueError where there is no text, or no room for the 256 bytes and the characters.
        """
        import sentencepiece

        if vocab_size <= N_RESERVED:
            raise ValueError(f"vocab_size={vocab_size}: needs more than {N_RESERVED}, which bytes and <unk> take")
        corpus = [text for text in texts if text.strip()]
        if not corpus:
            raise ValueError("no text to train the text tokenizer on: give at least one caption")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(corpus),
                model_writer=model,
                vocab_size=vocab_size,
                model_type="bpe",
                hard_vocab_limit=False,
                byte_fallback=True,
                normalization_rule_name="nmt_nfkc_cf",
                # characters that did not make it are spelled in bytes, so rare ones need no piece of their own
                character_coverage=0.9995,
                split_digits=True,
                num_threads=1,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(
                f"training the text tokenizer on {len(corpus)} texts with vocab_size={vocab_size} "
                f"failed: {str(error).splitlines()[-1]}"
            ) from None
        return cls(model.getvalue())

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    def encode(self, text: str, max_tokens: int = 64) -> list[int]:
        """Ids in [0, vocab_size), at most `max_tokens` (64 as in VideoPoet), cut at the end; [] for blank text."""
        if not isinstance(text, str):
            raise ValueError(f"text is {type(text).__name__}: expected a string")
        if max_tokens < 0:
            raise ValueError(f"max_tokens={max_tokens} must not be negative")
        if not text.strip():
            return []
        # a lone surrogate (half of a character) has no UTF-8 form
        text = text.encode("utf-8", errors="replace").decode()
        return self._processor.encode(text)[:max_tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """The normalised text that ids stand for; a character cut in two by truncation becomes U+FFFD."""
        ids = [int(i) for i in ids]
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            raise ValueError(f"text ids range from {min(ids)} to {max(ids)}: expected 0 to {self.vocab_size - 1}")
        return self._processor.decode(ids)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `tokenizer.model` and `config.json` into the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self.model_bytes)
        config = {"type": "sentencepiece", "model_file": MODEL_FILE, "vocab_size": self.vocab_size}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **hub_options: Any) -> "TextTokenizer":
        """Open a folder, or the name of a repository on the hub (`hub_options` go to its download, e.g. revision).

        Raises FileNotFoundError for a folder without a model and ValueError for a file that is not one.
        """
        path = Path(folder) / MODEL_FILE
        if not path.is_file():
            if Path(folder).exists() or not _looks_like_hub_name(str(folder)):
                raise FileNotFoundError(f"{path}: no such file; expected a folder with a text tokenizer")
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(str(folder), MODEL_FILE, **hub_options))
        return cls(path.read_bytes())

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the hub and return its address; `options` go to `huggingface_hub.HfApi.upload_folder`."""
        from huggingface_hub import HfApi

        api = HfApi(token=options.pop("token", None))
        repo_id = api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **options))


def _looks_like_hub_name(name: str) -> bool:
    """`owner/name`, and not a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))
