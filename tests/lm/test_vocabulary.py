from __future__ import annotations

import json

import pytest

from lm import IdRange, Vocabulary


def test_ranges_follow_each_other_in_the_papers_order():
    v = Vocabulary.build(["<bos>", "<task>"], 2**18, (1024,) * 4, 512)
    assert [r.name for r in v] == ["special", "visual", "audio_0", "audio_1", "audio_2", "audio_3", "text"]
    assert (v["special"].size, v["visual"].start, v["visual"].stop) == (256, 256, 256 + 2**18)
    assert v["audio_3"].stop == v["text"].start and v["text"].stop == v.size == 266_496 + 512
    assert v.special("<task>") == 1


def test_survives_json():
    v = Vocabulary.build(["<bos>"], 16, (4, 8), 3)
    assert Vocabulary.from_dict(json.loads(json.dumps(v.to_dict()))) == v
    assert Vocabulary.build(["<bos>"], 16, (4, 9), 3) != v
    assert Vocabulary.build(["<eos>"], 16, (4, 8), 3) != v


def test_new_special_tokens_move_no_id():
    assert Vocabulary.build(["a"], 16, (4,), 3)["text"] == Vocabulary.build(["a", "b"], 16, (4,), 3)["text"]


def test_size_zero_leaves_a_range_out():
    assert "text" not in Vocabulary.build([], 16, (4,), 0)


def test_table_names_every_range_and_token():
    table = Vocabulary.build(["<bos>"], 16, (4,), 3).table()
    assert all(word in table for word in ("special", "visual", "audio_0", "text", "<bos>", "271"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vocabulary([IdRange("a", 0, 4), IdRange("b", 5, 4)]), "starts at 5, expected 4"),
        (lambda: Vocabulary([IdRange("a", 0, 4), IdRange("a", 4, 4)]), "must differ"),
        (lambda: Vocabulary([]), "at least one"),
        (lambda: IdRange("a", 0, 0), "size >= 1"),
        (lambda: Vocabulary.build([str(i) for i in range(257)], 4, (), 0), "257 special tokens do not fit"),
        (lambda: Vocabulary.build(["a", "a"], 4, (), 0), "must differ"),
        (lambda: Vocabulary.build([], 4, (4,), 0).range_of(258, 262), "do not lie in one id range"),
    ],
)
def test_wrong_vocabularies_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_names_list_the_known_ones():
    v = Vocabulary.build(["<bos>"], 4, (), 0)
    with pytest.raises(KeyError, match="visual"):
        v["sound"]
    with pytest.raises(KeyError, match="<bos>"):
        v.special("<eos>")
