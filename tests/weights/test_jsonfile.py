"""Strict JSON agrees with `json` wherever both accept, and is never laxer."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as s

from mirada.errors import MiradaError, UntrustedInputError
from mirada.weights import jsonfile

VALUES = s.recursive(
    s.none() | s.booleans() | s.integers() | s.floats(allow_nan=False, allow_infinity=False)
    | s.text(s.characters(codec="utf-8")),
    lambda inner: s.lists(inner) | s.dictionaries(s.text(s.characters(codec="utf-8")), inner))


@settings(max_examples=50)
@given(s.lists(VALUES) | s.dictionaries(s.text(s.characters(codec="utf-8")), VALUES))
def test_what_is_written_is_read(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    jsonfile.write(path, value)
    assert jsonfile.read(path) == value


MARKS = s.text(alphabet='{}[]",:\\ 1e-+.NaNInfinitytruefalse').map(str.encode)


@given(s.binary(max_size=60) | MARKS)
def test_never_laxer_than_json(data):
    try:
        ours = jsonfile.parse(data, "a.json")
    except MiradaError:
        return
    assert ours == json.loads(data)


def test_the_written_form_is_stable(tmp_path):
    jsonfile.write(tmp_path / "a.json", {"b": [1, "ñ"], "a": None})
    want = '{\n  "b": [\n    1,\n    "ñ"\n  ],\n  "a": null\n}\n'
    assert (tmp_path / "a.json").read_text("utf-8") == want


def test_depth_and_size_at_the_limit():
    assert jsonfile.parse(b"[" * 100 + b"]" * 100, "a.json")
    assert jsonfile.parse(b'{"a": "' + b"[" * 500 + b'"}', "a.json") == {"a": "[" * 500}
    assert jsonfile.parse(b"[1]", "a.json", limit=3) == [1]
    with pytest.raises(UntrustedInputError, match="more than 3 bytes"):
        jsonfile.parse(b"[12]", "a.json", limit=3)


def test_a_pair_of_surrogates_is_one_character():
    assert jsonfile.parse(b'["\\ud83d\\ude00"]', "a.json") == ["😀"]


def test_the_sentence_says_where():
    with pytest.raises(UntrustedInputError, match=r"a\.json: line 2 column 3: is not JSON"):
        jsonfile.parse(b'{\n  x}', "a.json")
