"""Readings of one text, and `mirada look --flow|--lens|--dla ...`: said, drawn, or refused."""

import json

import pytest
import torch

import mirada
from mirada.cli import main
from mirada.errors import MiradaError
from mirada.look.readings import reading

SAYS = {"rollout": "rollout: where", "routes": "routes: where", "maxflow": "maxflow: where",
        "neurons": "neurons of 1536 that wrote most", "redundant": "72 heads of the encoder"}
TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def smollm2(real):
    return mirada.load(real("smollm2"))


def test_each_reading(real, tmp_path):
    m, out = mirada.load(real("minilm")), tmp_path / "x.png"
    for kind, said in SAYS.items():
        found = reading(m, TEXT, kind)
        assert said in str(found) and json.dumps(found.data(), ensure_ascii=False)
        assert found.save(out) == str(out) and out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(MiradaError, match="ends without logits"):
        reading(m, TEXT, "lens")


def test_where_a_small_model_takes_paris_from(smollm2):
    """The head that adds most to the answer is one that looks at France, and the routes run there
    while the rollout, which sees weights only, ends at the first token."""
    head = next(t for t in reading(smollm2, TEXT, "dla").largest()[0] if t.kind == "head")
    with smollm2.record() as tape:
        smollm2(input_ids=torch.tensor([smollm2.tokenizer.encode(TEXT).ids]))
    assert tape.row(head.layer, head.head, -1)[0].argmax() == 3
    routes, rollout = (reading(smollm2, TEXT, kind) for kind in ("routes", "rollout"))
    assert routes.value[3] > 0.2 > rollout.value[3]
    assert any((e.layer, e.head, e.key) == (head.layer, head.head, 3) for e in routes.edges)


def test_a_reading_is_refused(smollm2):
    with pytest.raises(MiradaError, match=r"is 2 tokens here \(·two ·words\): name one token"):
        reading(smollm2, TEXT, "dla", token="two words")
    with pytest.raises(MiradaError, match="token 9 does not exist: there are 5"):
        reading(smollm2, TEXT, "rollout", at=9)


def test_the_command(real, capsys, tmp_path):
    out = tmp_path / "x.png"
    words = ["look", str(real("smollm2")), TEXT, "--dla", "--token", " Rome"]
    assert main([*words, "--json", "-o", str(out)]) == 0
    said, err = capsys.readouterr()
    data = json.loads(said)
    assert data["token"]["s"] == "·Rome" and abs(data["sum"] - data["logit"]) < 1e-3
    assert err == f"{out}\n" and out.read_bytes().startswith(b"\x89PNG")
    assert main(["look", "no model", TEXT, "--flow", "-o", "x.gif"]) == 2
    assert "a picture is a file ending in .png" in capsys.readouterr().err
