"""What differs between two architectures, and nothing that does not."""

import json

import mirada
from mirada.look.diff import diff


def test_bert_and_gpt2_differ_as_the_books_say():
    page = diff("bert:base", "gpt2:small")
    changed = page.changed
    assert changed["kind"] == ("encoder", "decoder")
    assert "post-norm" in changed["norm"][0] and "pre-norm" in changed["norm"][1]
    assert changed["attends"] == ("both ways", "what lies before (causal)")
    assert changed["positions"] == ("learned, up to 512", "learned, up to 1024")
    assert "2 segment kinds" in changed["input"][0] and "segment" not in changed["input"][1]
    assert changed["network"] == ("gelu, 3072 wide", "gelu_new, 3072 wide")
    assert page.same["heads"] == "12 of 64" and page.same["width"] == "768"
    assert not changed.keys() & page.same.keys()
    tree = [line.strip() for line in page.tree]
    assert any(line.startswith("-") and "segment: Segments 2 × 768" in line for line in tree)
    assert "q: 768 → 768 + bias" in tree, "what is in both is marked in neither"
    text = str(page)
    assert "bert:base" in text and "the same in both" in text
    json.dumps(page.data())


def test_a_model_does_not_differ_from_itself():
    page = diff("gpt2:tiny", mirada.build("gpt2:tiny"))
    assert not page.changed and not any(line[0] in "+-" for line in page.tree)
    assert page.a == "gpt2:tiny" and page.b == "gpt2 GPT2LMHeadModel"


def test_one_setting():
    page = diff("llama:tiny", mirada.build("llama:tiny", rope_base=5e5))
    assert page.changed == {"positions": ("rotary, base 10000", "rotary, base 500000")}
