"""What a change costs, and the commands that say so."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import mirada
from mirada import cli
from mirada.errors import MiradaError
from mirada.look.quality import WINDOW, quality
from mirada.look.shrink import shrink
from mirada.text.tokenizer import Tokenizer

TEXT = "The cat drank the milk because it was thirsty, and the dog slept near the warm stove. "


@pytest.fixture(scope="module")
def model(real):
    made = mirada.build("gpt2", "tiny", seed=4, vocab=30522)
    made.tokenizer = Tokenizer.from_folder(real("minilm"))
    return made


@pytest.mark.scope("1.15.7", "1.15.8")
def test_figures_by_hand(model):
    other = mirada.edit.quantize(model, "int4")
    ids = model.tokenizer.encode(TEXT * 20, special=False).ids[:300]
    found = quality(model, other, TEXT * 20, tokens=300)
    step = min(WINDOW, model.context)
    assert step == 256 < 300, "the text must fill more than one window"
    a, b, then = [], [], []
    with torch.inference_mode():
        for part in (ids[:step], ids[step:]):
            part = torch.tensor([part])
            a.append(model(part).logits[0]), b.append(other(part).logits[0]), then.append(part[0])
    both = torch.cat(a), torch.cat(b)
    for logits, said in zip((a, b), found.perplexity, strict=True):
        nats = sum(F.cross_entropy(x[:-1], t[1:], reduction="sum") for x, t in
                   zip(logits, then, strict=True)) / (300 - 2)
        assert math.isclose(said, nats.exp(), rel_tol=1e-5)
    assert found.tokens == 300
    assert math.isclose(found.logit_mean, (both[0] - both[1]).abs().mean(), rel_tol=1e-5)
    assert math.isclose(found.logit_max, (both[0] - both[1]).abs().max(), rel_tol=1e-6)
    flips = (both[0].argmax(-1) != both[1].argmax(-1)).float().mean()
    assert math.isclose(found.flips, flips, rel_tol=1e-6) and found.flips > 0
    kl = F.kl_div(both[1].log_softmax(-1), both[0].log_softmax(-1), log_target=True,
                  reduction="batchmean")
    assert math.isclose(found.kl, kl, rel_tol=1e-4)


def test_a_model_beside_itself(model):
    found = quality(model, model, TEXT)
    assert found.logit_max == found.flips == found.kl == 0
    assert found.perplexity[0] == found.perplexity[1] and "+0.00%" in str(found)


def test_more_bits_cost_less(model):
    costs = [quality(model, mirada.edit.quantize(model, to), TEXT).kl
             for to in ("int4", "Q5_0", "Q8_0")]
    assert costs[0] > costs[1] > costs[2] > 0


def test_models_that_write_nothing(real):
    encoder = mirada.load(real("minilm"))
    found = quality(encoder, mirada.edit.quantize(encoder, "int8"), TEXT)
    assert found.perplexity is None and 0 < found.logit_mean < 0.05 * found.spread
    assert "perplexity" not in str(found) and "outputs" in str(found)


def test_mistakes_are_said(model, tmp_path):
    with pytest.raises(MiradaError, match="no tokenizer"):
        quality(mirada.build("gpt2", "tiny"), model, TEXT)
    with pytest.raises(MiradaError, match="fewer than two tokens"):
        quality(model, model, "")
    with pytest.raises(MiradaError, match="two forms of one model"):
        quality(model, mirada.build("gpt2", "tiny", vocab=40000), TEXT)
    (tmp_path / "there").mkdir()
    for to, out, words in (("int8", "there", "there already"), ("nf4", "m.gguf", "GGUF has no nf4"),
                           ("nf4d", "m.gguf", "GGUF has no nf4d"),
                           ("U4", "m.gguf", "GGUF has no U4"),
                           ("Q4_K", "folder", "safetensors has no Q4_K"),
                           ("int3", "folder", "'int3' is no type")):
        with pytest.raises(MiradaError, match=words):
            shrink(model, to, tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.fixture
def saved(model, tmp_path):
    (tmp_path / "text").write_text(TEXT * 40, encoding="utf-8")
    return mirada.save(model, tmp_path / "wide")


@pytest.mark.parametrize("to, out, times", [("int8", "small", 1.03), ("int4", "small.gguf", 3.5),
                                            ("int8", "small.gguf", 3.4)])
def test_the_command_writes_and_says_what_it_cost(to, out, times, saved, tmp_path, capsys):
    words = ["quantize", saved, "--to", to, "-o", tmp_path / out, "--check", tmp_path / "text"]
    assert cli.main([str(w) for w in [*words, "--json"]]) == 0
    said = json.loads(capsys.readouterr().out)
    before, after = said["loss"]["perplexity"]
    assert abs(after / before - 1) < 0.2 and said["loss"]["flips"] < 0.9
    large, small = said["loss"]["nbytes"]
    assert large / small > times, "the tables of this model are most of it"
    ids = torch.arange(3, 20)[None]
    again, wide = mirada.load(tmp_path / out), mirada.load(saved)
    moved = (again(ids).logits - wide(ids).logits).abs().max() / wide(ids).logits.std()
    assert 0 < moved < 1.5
    assert cli.main([str(w) for w in words]) == 2, "it is there already"
    assert "there already" in capsys.readouterr().err


def test_calibration_by_command(saved, tmp_path, capsys):
    assert cli.main(["quantize", str(saved), "--to", "int4", "-o", str(tmp_path / "m.gguf"),
                     "--calibrate", str(tmp_path / "text")]) == 0
    assert "m.gguf" in capsys.readouterr().out


def test_convert_both_ways(saved, tmp_path, capsys):
    def run(*words):
        code = cli.main([str(w) for w in ("convert", *words)])
        return code, capsys.readouterr()

    assert run(saved, tmp_path / "m.gguf", "--type", "F16")[0] == 0
    code, said = run(tmp_path / "m.gguf", tmp_path / "back", "--json")
    assert code == 0 and json.loads(said.out)["path"] == str(tmp_path / "back")
    ids, wide = torch.arange(3, 20)[None], mirada.load(saved)
    again = mirada.load(tmp_path / "back")
    assert (again(ids).logits - wide(ids).logits).abs().max() < 1e-2
    text = "A dog, 12 cats."
    assert again.tokenizer.encode(text).ids == wide.tokenizer.encode(text).ids
    code, said = run(tmp_path / "back", tmp_path / "m.gguf")
    assert code == 2 and "there already" in said.err
    code, said = run(tmp_path / "back", tmp_path / "n.gguf", "--type", "Q9")
    assert code == 2 and "'Q9' is no type of GGUF" in said.err
