"""The trace shows what runs: its stages add up to the stream, and the end is generation's."""

import json

import pytest
import torch
from safetensors.torch import load_file

import mirada
from generate.words import speaker, tokenizer
from mirada.core.block import Branch, Residual
from mirada.errors import MiradaError

TEXT = "Diego eats pizza"


def named(found):
    return {stage.name: stage for stage in found.stages}


@pytest.mark.scope("1.3.12")
def test_every_stage_of_a_decoder():
    m = speaker()
    found = mirada.look.trace(m, TEXT, k=4)
    assert list(named(found)) == ["Tokenizer", "Embeddings", "Blocks", "LM head", "Decoding"]
    ids = m.tokenizer.encode(TEXT).ids
    rows = named(found)["Tokenizer"].rows
    assert [tuple(row[:2]) for row in rows] == list(enumerate(ids))
    t, out = found.tensors, m(input_ids=torch.tensor([ids]))
    assert torch.equal(t["embed.token"], m.body.embed.token.weight[ids])
    assert torch.allclose(t["embed.token"] + t["embed.position"], t["embed"])
    stream = t["embed"]
    for layer in range(2):
        for part in ("attn", "mlp"):
            stream = stream + t[f"blocks.{layer}.{part}"]
        assert torch.allclose(stream, t[f"blocks.{layer}"], atol=1e-4)
    assert torch.equal(m.body.norm(t["blocks.1"]), t["norm"])
    assert torch.equal(t["logits"], out.logits[0])
    best = out.logits[0, -1].softmax(-1).topk(4)
    rows = named(found)["LM head"].rows
    assert [row[0] for row in rows] == best.indices.tolist()
    assert [row[2] for row in rows] == pytest.approx(best.values.tolist())
    (written, token, text), = named(found)["Decoding"].rows
    wanted = m.generate(torch.tensor([ids]), max_new_tokens=1, do_sample=False)[0].tolist()
    assert [*ids, written] == wanted and text == found.output == m.tokenizer.decode(wanted)
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in m.modules())


@pytest.mark.scope("1.3.12")
def test_the_decoding_strategy_is_the_caller_s():
    m = speaker()
    chosen = {mirada.look.trace(m, TEXT, temperature=3.0, seed=n).output for n in range(8)}
    assert len(chosen) > 2
    found = mirada.look.trace(m, TEXT, temperature=3.0, top_p=0.5, seed=1)
    assert named(found)["Decoding"].about == "temperature=3.0, top_p=0.5, seed=1"
    again = m.generate(torch.tensor([m.tokenizer.encode(TEXT).ids]), max_new_tokens=1,
                       temperature=3.0, top_p=0.5, seed=1)
    assert found.output == m.tokenizer.decode(again[0].tolist())
    with pytest.raises(MiradaError, match="temprature"):
        mirada.look.trace(m, TEXT, temprature=1.0)


@pytest.mark.parametrize("family", ["bert", "albert", "gptj", "gemma2", "t5", "transformer"])
def test_any_family(family):
    """Post-norm, one block twelve times, parallel, sandwich, and two stacks that share a table."""
    own = {"start": 256, "pad": 260} if family == "transformer" else {}
    m = mirada.build(f"{family}:tiny", seed=1, vocab=261, **own)
    m.tokenizer = tokenizer()
    found = mirada.look.trace(m, TEXT)
    stacks = ["encoder", "decoder"] if m.encoder_decoder else [None]
    for stack in stacks:
        before, built = (f"{stack}.", getattr(m.body, stack)) if stack else ("", m.body)
        stage = named(found)[f"Blocks ({stack})" if stack else "Blocks"]
        assert [row[0] for row in stage.rows] == list(range(len(built.order)))
        assert found.tensors[f"{before}embed"].shape[0] == (1 if stack == "decoder" else 16)
        stream = found.tensors[f"{before}embed"]
        for layer, index in enumerate(built.order):
            for name, part in built.blocks[index].named_children():
                if isinstance(part, Residual):
                    stream = part.out(stream + found.tensors[f"{before}blocks.{layer}.{name}"])
                elif isinstance(part, Branch):
                    stream = stream + found.tensors[f"{before}blocks.{layer}.{name}"]
            assert torch.allclose(stream, found.tensors[f"{before}blocks.{layer}"], atol=1e-4)
    assert str(found).startswith(f"{m.family} {m.architecture}: \"Diego eats pizza\"\n\n1. Tokeni")


@pytest.mark.scope("1.3.12")
def test_a_trace_goes_out_as_tables_tensors_and_a_picture(tmp_path):
    found = mirada.look.trace(speaker(), TEXT)
    found.save(tmp_path / "t.json")
    told = json.loads((tmp_path / "t.json").read_text())
    assert told == json.loads(json.dumps(found.data())) and told["text"] == TEXT
    assert [s["name"] for s in told["stages"]] == [s.name for s in found.stages]
    found.save(tmp_path / "t.safetensors")
    kept = load_file(tmp_path / "t.safetensors")
    assert kept.keys() == found.tensors.keys()
    assert all(torch.equal(kept[n], x) for n, x in found.tensors.items())
    found.save(tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(MiradaError, match=r"ending in \.png, \.svg, \.pdf, \.json, \.safetensors"):
        found.save(tmp_path / "t.txt")
    two = mirada.build("t5:tiny", seed=0, vocab=261)
    two.tokenizer = tokenizer()
    mirada.look.trace(two, TEXT).save(tmp_path / "two.png")
    assert len(list(tmp_path.iterdir())) == 4


def test_heads_that_do_not_write(real):
    m = mirada.load(real("minilm"))
    last = mirada.look.trace(m, TEXT).stages[-1]
    assert last.name == "Head" and "last_hidden_state (1, 5, 384)" in last.about
    m = mirada.load(real("rxnmapper"))
    ids = torch.tensor([m.tokenizer.encode("CCO>>CC[MASK]O").ids])
    chances = m(input_ids=ids).logits[0, 7].softmax(-1)  # behind [CLS] C C O >> C C
    (number, token, chance), = mirada.look.trace(m, "CCO>>CC[MASK]O", k=1).stages[-1].rows
    assert token == "C" and number == chances.argmax() and chance == pytest.approx(
        chances.max().item(), rel=1e-5)
    assert "write [MASK] in the text" in mirada.look.trace(m, "CCO>>CC").stages[-1].about
    m = mirada.build("bert:tiny", architecture="BertForSequenceClassification", seed=0)
    m.tokenizer = tokenizer()
    head = mirada.look.trace(m, TEXT).stages[-1]
    assert head.columns == ["id", "label", "probability"] and head.rows[0][1].startswith("LABEL_")
    assert sum(row[2] for row in head.rows) == pytest.approx(1)


def test_what_cannot_be_traced_is_said():
    with pytest.raises(MiradaError, match="reads no text"):
        mirada.look.trace(mirada.build("vit:tiny", device="meta"), TEXT)
    with pytest.raises(MiradaError, match="no tokenizer beside its weights"):
        mirada.look.trace(mirada.build("gpt2:tiny", device="meta"), TEXT)
    with pytest.raises(MiradaError, match="the text is empty"):
        mirada.look.trace(speaker(), "  ")
    with pytest.raises(MiradaError, match="has 300 tokens and the model takes 256"):
        mirada.look.trace(speaker(), "a" * 300)
