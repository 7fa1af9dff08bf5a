from __future__ import annotations

import json

import pytest
import torch

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


def test_factors_survive_json_and_plain_ranges_keep_their_form():
    v = Vocabulary.build(["<bos>"], 2**18, (4, 8), 3, visual_factors=(512, 512))
    data = json.loads(json.dumps(v.to_dict()))
    assert Vocabulary.from_dict(data) == v and Vocabulary.from_dict(data)["visual"].factors == (512, 512)
    assert data["ranges"][:3] == [["special", 256], ["visual", 2**18, [512, 512]], ["audio_0", 4]]
    assert v != Vocabulary.build(["<bos>"], 2**18, (4, 8), 3) and v.size == 256 + 2**18 + 15


def test_without_factors_row_i_is_id_i():
    v = Vocabulary.build(["<bos>"], 16, (4, 8), 3)
    assert v.n_rows == v.size and all(v.rows(r.name) == ((r.start, r.stop),) for r in v)
    first, further = v.rows_of(torch.arange(v.size))
    assert torch.equal(first, torch.arange(v.size)) and not further


def test_rows_of_all_factors_follow_each_other():
    v = Vocabulary.build([], 2**18, (4,), 3, visual_factors=(512, 512))
    assert v.n_rows == 256 + 1024 + 4 + 3
    assert [v.rows(r.name) for r in v] == [
        ((0, 256),), ((256, 768), (768, 1280)), ((1280, 1284),), ((1284, 1287),),
    ]  # fmt: skip
    with pytest.raises(KeyError, match="visual"):
        v.rows("sound")


@pytest.mark.parametrize("factors", [(30,), (5, 6), (5, 2, 3)])
def test_split_numbers_ids_like_digits_and_join_undoes_it(factors):
    r = IdRange("a", 7, 30, factors)
    values = r.split(torch.arange(30))
    assert torch.equal(torch.cartesian_prod(*map(torch.arange, factors)).view(30, -1), torch.stack(values, -1))
    assert torch.equal(r.join(values), torch.arange(30))


def test_rows_of_ids_equal_their_definition():
    ranges = [["a", 3], ["b", 30, [5, 2, 3]], ["c", 4], ["d", 6, [2, 3]], ["e", 5]]
    v = Vocabulary.from_dict({"ranges": ranges, "special": []})
    ids = torch.arange(v.size).view(2, -1)
    first, further = v.rows_of(ids)
    assert len(further) == 3
    added = [rows.where(where, -1) for rows, where in further]
    for id, *found in torch.stack((ids, first, *added), dim=-1).flatten(0, 1).tolist():
        r = v.range_of(id, id + 1)
        values = r.split(torch.tensor(id - r.start))
        wanted = [start + int(value) for (start, _), value in zip(v.rows(r.name), values, strict=True)]
        assert [row for row in found if row >= 0] == wanted, f"id {id}"


def test_new_special_tokens_move_no_id():
    assert Vocabulary.build(["a"], 16, (4,), 3)["text"] == Vocabulary.build(["a", "b"], 16, (4,), 3)["text"]


def test_size_zero_leaves_a_range_out():
    assert "text" not in Vocabulary.build([], 16, (4,), 0)


def test_table_names_every_range_and_token():
    table = Vocabulary.build(["<bos>"], 16, (4,), 3).table()
    assert all(word in table for word in ("special", "visual", "audio_0", "text", "<bos>", "271"))


def test_table_shows_the_rows_of_each_factor():
    table = Vocabulary.build(["<bos>"], 16, (4,), 3, visual_factors=(8, 2)).table()
    assert "256-263 (8) x 264-265 (2)" in table and "266-269 (4)" in table


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vocabulary([IdRange("a", 0, 4), IdRange("b", 5, 4)]), "starts at 5, expected 4"),
        (lambda: Vocabulary([IdRange("a", 0, 4), IdRange("a", 4, 4)]), "must differ"),
        (lambda: Vocabulary([]), "at least one"),
        (lambda: IdRange("a", 0, 0), "size >= 1"),
        (lambda: IdRange("a", 0, 8, (2, 2)), r"factors \(2, 2\) must be .* whose product is 8"),
        (lambda: IdRange("a", 0, 8, (8, 1)), "of 2 or more"),
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
