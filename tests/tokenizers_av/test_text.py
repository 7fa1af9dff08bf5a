"""The text tokenizer encodes any string, deterministically, and survives saving."""

import json

import pytest

from tokenizers_av.text import TextTokenizer

COLOURS = ("red", "green", "blue", "yellow", "white", "purple")
SHAPES = ("ball", "box", "star", "ring", "triangle")
MOVES = ("bounces on", "slides over", "rolls along", "falls onto", "swings above")
FLOORS = ("a wooden floor", "an icy lake", "a steel plate", "the grass")
CORPUS = [f"a {c} {s} {m} {f}" for c in COLOURS for s in SHAPES for m in MOVES for f in FLOORS]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(iter(CORPUS), vocab_size=400)


def test_known_text_round_trips_in_few_ids(tokenizer):
    text = "a red ball bounces on a wooden floor"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) <= 12
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.parametrize("text", ["ein blauer würfel", "赤いボールが跳ねる", "🎈 up!", "a\x00b", "\u05d0 \u202e b"])
def test_any_unicode_encodes_without_unknown_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids and 0 not in ids  # 0 is <unk>
    assert tokenizer.decode(tokenizer.encode(tokenizer.decode(ids))) == tokenizer.decode(ids)


def test_foreign_text_round_trips(tokenizer):
    assert tokenizer.decode(tokenizer.encode("赤いボール 🎈 würfel")) == "赤いボール 🎈 würfel"


def test_case_and_width_are_normalised(tokenizer):
    assert tokenizer.encode("A RED  Ｂall ") == tokenizer.encode("a red ball")


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u3000"])
def test_blank_text_has_no_ids(tokenizer, text):
    assert tokenizer.encode(text) == []
    assert tokenizer.decode([]) == ""


def test_long_text_is_cut(tokenizer):
    ids = tokenizer.encode("a red ball " * 100)
    assert len(ids) == 64
    assert tokenizer.encode("a red ball " * 100, max_tokens=5) == ids[:5]


def test_lone_surrogate_encodes(tokenizer):
    assert tokenizer.encode("a \ud83d ball")


def test_training_is_deterministic(tokenizer):
    again = TextTokenizer.train(CORPUS, vocab_size=400)
    assert [again.encode(t) for t in CORPUS[::37]] == [tokenizer.encode(t) for t in CORPUS[::37]]
    assert again.vocab_size == tokenizer.vocab_size


def test_one_caption_is_enough():
    small = TextTokenizer.train(["hello"])
    assert small.vocab_size <= 512
    assert small.decode(small.encode("hello world")) == "hello world"


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "text")
    loaded = TextTokenizer.from_pretrained(tmp_path / "text")
    assert loaded.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])
    assert json.loads((tmp_path / "text" / "config.json").read_text())["vocab_size"] == tokenizer.vocab_size


def test_wrong_input_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="vocab_size=100"):
        TextTokenizer.train(CORPUS, vocab_size=100)
    with pytest.raises(ValueError, match="no text"):
        TextTokenizer.train(["", "  "])
    with pytest.raises(ValueError, match="expected 0 to"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(ValueError, match="NoneType"):
        tokenizer.encode(None)
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        TextTokenizer(b"hello, this is no model")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model"):
        TextTokenizer.from_pretrained(tmp_path)
