"""`mirada next`: the table of likeliest tokens, and the trace of output becoming input."""

import json

import pytest
import torch

import mirada
from generate.words import speaker
from mirada import cli
from mirada.generate import next as ahead


def command(*words) -> int:
    try:
        return cli.main(list(map(str, words)))
    except SystemExit as left:  # argparse
        return left.code


@pytest.mark.scope("1.3.11")
def test_the_table_after_dear(real, capsys):
    folder = real("smollm2")
    assert command("next", folder, "Dear", "-k", "10") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["TokenId", "Token", "Probs"] and len(rows) == 10
    model = mirada.load(folder)
    ids = model.tokenizer.encode("Dear").ids
    chances = model(torch.tensor([ids])).logits[0, -1].detach().float().softmax(-1)
    best = chances.topk(10)
    assert [int(row.split()[0]) for row in rows] == best.indices.tolist()
    assert [row.split()[-1] for row in rows] == [f"{p:.2%}" for p in best.values.tolist()]
    for row, token in zip(rows, best.indices.tolist(), strict=True):
        assert json.dumps(model.tokenizer.decode([token]), ensure_ascii=False) in row
    assert command("next", folder, "Dear", "-k", "3", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["prompt"] == "Dear" and data["prompt_tokens"] == len(ids)
    assert [row["id"] for row in data["next"]] == best.indices.tolist()[:3]
    assert [row["probability"] for row in data["next"]] == pytest.approx(
        best.values.tolist()[:3], rel=1e-5)


@pytest.mark.scope("1.15.3")
def test_each_output_becomes_input(capsys):
    model = speaker()
    ahead.trace(model, "Dear", 5, as_json=True)
    data = json.loads(capsys.readouterr().out)
    ids = model.tokenizer.encode("Dear").ids
    for number, step in enumerate(data["steps"], 1):
        chances = model(torch.tensor([ids])).logits[0, -1].detach().softmax(-1)
        assert step["step"] == number
        assert step["input"] == model.tokenizer.decode(ids, skip_special=False)
        assert step["id"] == int(chances.argmax()) == step["next"][0]["id"]
        assert step["probability"] == pytest.approx(float(chances.max()), rel=1e-4)
        assert len(step["next"]) == 10
        ids = [*ids, step["id"]]
    assert len(data["steps"]) == 5 or ids[-1] == 259
    ahead.trace(model, "Dear", 5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(data["steps"]) + 1 and lines[0].startswith('Step 1: "Dear" -> ')
    assert lines[-1] == f"Result: {json.dumps(data['text'], ensure_ascii=False)}"


def test_defaults_have_no_say_in_the_table(capsys):
    """The table shows the model's own chances, the trace its greedy choices up to n."""
    model = speaker()
    ahead.show(model, "ab", 4, as_json=True)
    plain = json.loads(capsys.readouterr().out)
    ahead.trace(model, "ab", 3, as_json=True)
    free = json.loads(capsys.readouterr().out)
    model.origin.generation = {"do_sample": True, "temperature": 9.0, "forced_eos_token_id": 7,
                               "num_beams": 4, "suppress_tokens": [plain["next"][0]["id"]]}
    ahead.show(model, "ab", 4, as_json=True)
    assert json.loads(capsys.readouterr().out) == plain
    del model.origin.generation["suppress_tokens"]
    ahead.trace(model, "ab", 3, as_json=True)
    assert json.loads(capsys.readouterr().out) == free


def test_mistakes_are_said(real, capsys):
    folder = real("smollm2")
    for words, said in ((["-k", "0"], "k is 0; a table needs 1 token or more"),
                        (["--steps", "0"], "max_new_tokens is 0"),
                        (["--steps", "2", "-k", "0"], "top is 0")):
        assert command("next", folder, "Dear", *words) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(mirada.MiradaError, match="no tokenizer"):
        ahead.show(mirada.build("gpt2", size="tiny"), "Dear")
    with pytest.raises(mirada.MiradaError, match="the prompt is empty"):
        ahead.show(speaker(), "")
