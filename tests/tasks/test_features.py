"""Vectors of texts: poolings, folders of sentence encoders, and a real one."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

import mirada
from mirada.errors import MiradaError
from tasks import tiny

TEXTS = ["the cat sat on a mat", "attention is all you need and language", "Köln"]
REAL = ["A man is playing a guitar.", "Someone plays a musical instrument.",
        "The stock market fell sharply today."]


@pytest.fixture
def folder(tmp_path):
    return Path(tiny.bert(tmp_path / "model", "Model"))


def states(folder) -> list[torch.Tensor]:
    """(T, D) of each text, by the reference, one at a time."""
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0] for t in TEXTS]


POOL = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "last": lambda x: x[-1]}


def recipe(folder: Path, mode: str, *, unit=False, most=None, **more) -> None:
    """What makes a folder a sentence encoder's."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *[("2_Normalize", "Normalize")] * unit]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    files = {"modules.json": [{"idx": n, "name": str(n), "path": path,
                               "type": f"sentence_transformers.models.{kind}"}
                              for n, (path, kind) in enumerate(kinds)],
             "1_Pooling/config.json": {"pooling_mode_mean_tokens": False, mode: True},
             "sentence_bert_config.json": {"max_seq_length": most},
             "config_sentence_transformers.json": more}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("pooling", POOL)
@pytest.mark.parametrize("unit", [True, False])
def test_poolings(folder, pooling, unit):
    wanted = torch.stack([POOL[pooling](x) for x in states(folder)])
    wanted = F.normalize(wanted, dim=-1) if unit else wanted
    found = mirada.embed(mirada.load(folder), TEXTS, pooling=pooling, normalize=unit, batch_size=2)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(mirada.embed(folder, TEXTS[1], pooling, unit), wanted[1], atol=1e-5)


@pytest.mark.parametrize(("mode", "pooling"), [
    ("pooling_mode_mean_tokens", "mean"), ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_lasttoken", "last")])
def test_as_the_folder_says(folder, mode, pooling):
    recipe(folder, mode, unit=pooling != "cls")
    wanted = mirada.embed(folder, TEXTS, pooling, pooling != "cls")
    assert torch.equal(mirada.embed(folder, TEXTS), wanted)
    other = "cls" if pooling == "mean" else "mean"
    assert not torch.allclose(wanted, mirada.embed(folder, TEXTS, other), atol=1e-3)


def test_prompts(folder):
    recipe(folder, "pooling_mode_mean_tokens", prompts={"query": "every model: "})
    bare = mirada.embed(folder, "the cat")
    asked = mirada.embed(folder, "the cat", prompt="query")
    assert torch.equal(asked, mirada.embed(folder, "every model: the cat"))
    assert torch.equal(asked, mirada.embed(folder, "the cat", prompt="every model: "))
    assert not torch.equal(asked, bare)
    recipe(folder, "pooling_mode_mean_tokens", prompts={"query": "every model: "},
           default_prompt_name="query")
    assert torch.equal(mirada.embed(folder, "the cat"), asked)
    assert torch.equal(mirada.embed(folder, "the cat", prompt=""), bare)


def test_the_folders_length(folder):
    recipe(folder, "pooling_mode_mean_tokens", most=8)
    long = "the cat sat on a mat the cat sat"
    with pytest.raises(MiradaError, match="made for 8"):
        mirada.embed(folder, long)
    with pytest.warns(UserWarning, match="cut to 8"):
        assert mirada.embed(folder, long, truncation=True).shape == (32,)


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda f: recipe(f, "pooling_mode_max_tokens"), "max_tokens"),
    (lambda f: (f / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]'),
     "Dense"),
    (lambda f: (f / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Pooling", "path": "../x"}]'), "folder beside"),
    (lambda f: (f / "modules.json").write_text('["Pooling.x"]'), "'x' is not one of"),
    (lambda f: recipe(f, "pooling_mode_mean_tokens", most="8"), "whole number"),
    (lambda f: recipe(f, "pooling_mode_mean_tokens", prompts=["a"]), "prompts: must be an object"),
])
def test_folders_that_are_not_known(folder, spoil, says):
    recipe(folder, "pooling_mode_mean_tokens")
    spoil(folder)
    with pytest.raises(MiradaError, match=says):
        mirada.embed(folder, TEXTS)


def test_similarity_is_the_cosine(folder):
    e = mirada.embed(folder, TEXTS, normalize=True)
    pipe = mirada.pipeline("sentence-similarity", folder)
    wanted = (e[1:] @ e[0]).tolist()
    asked = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}
    assert pipe(asked) == pytest.approx(wanted, abs=1e-5)
    assert pipe(**asked) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(MiradaError, match="source_sentence and sentences"):
        pipe(source_sentence=TEXTS[0])


def test_the_three_cosines_of_a_real_encoder(real):
    pipe = mirada.pipeline("sentence-similarity", real("minilm"))
    first = pipe(source_sentence=REAL[0], sentences=REAL[1:])
    assert [*first, *pipe(source_sentence=REAL[1], sentences=[REAL[2]])] == pytest.approx(
        [0.684, -0.054, -0.035], abs=1e-3)
    e = mirada.embed(real("minilm"), REAL)
    assert torch.allclose(e.norm(dim=1), torch.ones(3), atol=1e-5), "its folder says so"
    assert (e @ e.T)[0, 1:].tolist() == pytest.approx(first, abs=1e-5)


def test_an_encoder_decoder_gives_its_encoders_states(tmp_path):
    path = tiny.t5(tmp_path / "t5")
    theirs = transformers.T5EncoderModel.from_pretrained(path).eval()
    ids = transformers.AutoTokenizer.from_pretrained(path)(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(**{k: ids[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
    assert torch.allclose(mirada.embed(path, TEXTS[0]), wanted[0].mean(0), atol=1e-5)
