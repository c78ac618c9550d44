"""GPT-Neo against the reference."""

import json
import shutil

import pytest
import transformers

import mirada
from parity.harness import Row, pair, table

TINY = dict(vocab_size=61, max_position_embeddings=32, hidden_size=24, num_layers=2, num_heads=4,
            attention_types=[[["global", "local"], 1]], window_size=3, pad_token_id=1,
            bos_token_id=None, eos_token_id=None)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    return Row(architecture, "GPTNeoConfig", TINY | more, **keys)


ROWS = [
    row("GPTNeoForCausalLM", cached=True),
    row("GPTNeoForCausalLM", cached=True, name="odd", intermediate_size=40, num_layers=3,
        activation_function="prelu", layer_norm_epsilon=1e-3, tie_word_embeddings=False,
        attention_types=[[["local"], 2], [["global"], 1]], window_size=2),
    row("GPTNeoModel"),
    row("GPTNeoForSequenceClassification", num_labels=3),
    row("GPTNeoForTokenClassification", num_labels=3),
    row("GPTNeoForQuestionAnswering"),
]
test_parity = pytest.mark.scope("1.6.10", "1.6.3")(table(ROWS))


@pytest.mark.parametrize("size, count", [
    ("125m", 125_198_592), ("1.3b", 1_315_575_808), ("2.7b", 2_651_307_520)])
def test_published_sizes(size, count):
    model = mirada.build("gptneo", size=size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("kept", ["attention_types", "attention_layers"])
def test_either_spelling_says_which_layers_are_local(kept, tmp_path):
    both = pair(ROWS[1])
    raw = json.loads((both.folder / "config.json").read_text())
    for name in {"attention_types", "attention_layers"} - {kept}:
        del raw[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    shutil.copy(both.folder / "model.safetensors", tmp_path)
    model = mirada.load(tmp_path)
    assert model.config.each() == ("local", "local", "global")
    mirada.save(model, tmp_path / "again")
    again = transformers.AutoConfig.from_pretrained(tmp_path / "again")
    assert again.attention_layers == ["local", "local", "global"]


@pytest.mark.parametrize("said", [
    {"attention_layers": ["global"]}, {"attention_layers": ["global", "near", "local"]},
    {"attention_types": [[["global"], 10**9]]}, {"attention_types": [["global", 3]]},
    {"attention_types": 7}])
def test_layers_that_cannot_be_are_refused(said, tmp_path):
    raw = json.loads((pair(ROWS[1]).folder / "config.json").read_text())
    del raw["attention_types"], raw["attention_layers"]
    (tmp_path / "config.json").write_text(json.dumps(raw | said))
    with pytest.raises(mirada.MiradaError, match="attention_|not iterable"):
        mirada.load(tmp_path)
