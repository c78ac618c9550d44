"""GPT-NeoX against the reference: side by side and serial, partial rotation, its scalings."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mirada
from parity.harness import BAR, Row, compare, pair, run_theirs, table, wide

TINY = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=32, pad_token_id=1, bos_token_id=None,
            eos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                                                "partial_rotary_factor": 0.5})


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    return Row(architecture, "GPTNeoXConfig", TINY | more, **keys)


ROWS = [
    row("GPTNeoXForCausalLM", cached=True),
    row("GPTNeoXForCausalLM", cached=True, name="odd", use_parallel_residual=False,
        hidden_act="prelu", layer_norm_eps=1e-3, attention_bias=False, tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0,
                         "partial_rotary_factor": 1.0}),
    row("GPTNeoXForCausalLM", name="yarn", rope_parameters={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8,
        "rope_theta": 100.0, "partial_rotary_factor": 0.5}),
    row("GPTNeoXModel"),
    row("GPTNeoXForSequenceClassification", num_labels=3),
    row("GPTNeoXForTokenClassification", num_labels=3),
    row("GPTNeoXForQuestionAnswering"),
]
test_parity = pytest.mark.scope("1.6.12", "1.6.3")(table(ROWS))


@pytest.mark.parametrize("size, count", [
    ("pythia-70m", 70_426_624), ("pythia-160m", 162_322_944), ("pythia-410m", 405_334_016),
    ("pythia-1b", 1_011_781_632), ("pythia-1.4b", 1_414_647_808), ("pythia-2.8b", 2_775_208_960),
    ("pythia-6.9b", 6_857_302_016), ("pythia-12b", 11_846_072_320), ("20b", 20_554_567_680)])
def test_published_sizes(size, count):
    model = mirada.build("neox", size=size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.scope("1.6.12")
def test_an_older_file_with_its_buffers_and_spellings(tmp_path):
    """Pythia's own form: rotary_pct and rotary_emb_base outside, causal triangles as buffers."""
    torch.manual_seed(2)
    both = pair(ROWS[0])
    config = json.loads((both.folder / "config.json").read_text())
    del config["rope_parameters"], config["attention_bias"]
    config |= {"rotary_pct": 0.5, "rotary_emb_base": 700, "attention_probs_dropout_prob": 0,
               "hidden_dropout_prob": 0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    tensors = load_file(both.folder / "model.safetensors")
    for n in range(2):
        at = f"gpt_neox.layers.{n}.attention."
        tensors |= {at + "bias": torch.ones(1, 1, 32, 32).tril().bool(),
                    at + "masked_bias": torch.tensor(-1e9),
                    at + "rotary_emb.inv_freq": torch.ones(2)}
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(config))
    save_file(tensors, old / "model.safetensors", {"format": "pt"})
    _same_as_the_reference(old, both)
    mirada.save(mirada.load(old), tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    _same_as_the_reference(tmp_path / "again", both)


def _same_as_the_reference(folder, both) -> None:
    with wide():
        theirs = transformers.GPTNeoXForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager").eval()
    ours = mirada.load(folder)
    assert ours.config.rope_part == 0.5 and ours.config.rope_base == 700
    there = run_theirs(type(both)(both.row, folder, theirs, ours, both.batch), both.batch)
    assert compare(both, both.batch, ours(**both.batch), there) < BAR
    assert compare(both, both.batch, ours(**both.batch), run_theirs(both, both.batch)) > 1e-3
