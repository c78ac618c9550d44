"""Files of earlier days bring causal triangles as tensors: unread, written back as they came."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mirada
from parity import test_gpt1, test_gptj, test_gptneo, test_starcoder
from parity.harness import pair

BUFFERS = {  # the row -> what its files had in each layer, and keys of its config
    test_gpt1.ROWS[0]: (["attn.bias"], {"n_ctx": 512, "n_special": 0, "summary_type": "cls_index",
                                        "predict_special_tokens": True}),
    test_gptj.ROWS[0]: (["attn.bias", "attn.masked_bias"],
                        {"rotary": True, "scale_attn_weights": True, "gradient_checkpointing": 1}),
    test_gptneo.ROWS[0]: (["attn.attention.bias", "attn.attention.masked_bias"],
                          {"summary_first_dropout": 0.1, "gradient_checkpointing": False}),
    test_starcoder.ROWS[0]: (["attn.bias"], {"inference_runner": 0, "validate_runner_input": True,
                                             "pad_key_length": True}),
}

CASES = [(row, bare) for row in BUFFERS for bare in (False, True)
         if not (bare and row.architecture == "GPTJForCausalLM")]  # its head is not its table


@pytest.mark.parametrize("row, bare", CASES, ids=str)
def test_an_older_file(row, bare, tmp_path):
    both, (names, keys) = pair(row), BUFFERS[row]
    old = {n: t for n, t in load_file(both.folder / "model.safetensors").items()
           if not (bare and n.startswith("lm_head"))}
    old |= {f"transformer.h.{n}.{name}": torch.ones(1, 1, 32, 32).tril() for n in range(2)
            for name in names}
    if bare:
        old = {name.removeprefix("transformer."): t for name, t in old.items()}
    (tmp_path / "old").mkdir()
    save_file(old, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    raw = json.loads((both.folder / "config.json").read_text()) | keys
    (tmp_path / "old" / "config.json").write_text(json.dumps(raw))
    model = mirada.load(tmp_path / "old")
    assert torch.equal(model(**both.batch).logits, both.ours(**both.batch).logits)
    mirada.save(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == old.keys()
    assert all(torch.equal(again[name], old[name]) for name in old)
