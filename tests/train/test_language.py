"""Next tokens of packed documents, and the shards that they are read from."""

import random
import sys

import numpy as np
import pytest
import torch

import mirada
from mirada.errors import MiradaError, UntrustedInputError
from mirada.text.records import values
from mirada.text.train import train as train_tokenizer
from mirada.train import config, corpus
from mirada.train.corpus import Corpus
from mirada.train.language import IGNORED, NextToken
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe

DOCUMENTS = [[3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13], [14] * 9]


def model(**more):
    return mirada.build("gpt2:tiny", **{"layers": 2, "d": 16, "heads": 2, "vocab": 32,
                                        "context": 32} | more).to(torch.float64)


def packed(length=20):
    objective = NextToken(Corpus.of(DOCUMENTS), length)
    return objective, objective.batch([objective.sample(0, random.Random(0))])


@pytest.mark.scope("1.12.3")
def test_each_token_is_told_from_those_before_it_in_its_document():
    _, batch = packed()
    assert batch["input_ids"][0].tolist() == sum(DOCUMENTS, [])
    assert batch["segment_ids"][0].tolist() == [0] * 3 + [1] * 6 + [2] * 2 + [3] * 9
    assert batch["position_ids"][0].tolist() == [*range(3), *range(6), *range(2), *range(9)]
    told = batch["labels"][0].tolist()
    assert told == [IGNORED, 4, 5, IGNORED, 7, 8, 9, 10, 11, IGNORED, 13, IGNORED, *[14] * 8]


@pytest.mark.scope("1.12.3")
def test_packed_documents_do_not_see_each_other():
    m, (objective, batch) = model(), packed()
    together = objective.loss(m, batch)[0]
    alone = sum(m(input_ids=torch.tensor([d]), labels=torch.tensor([d])).loss * (len(d) - 1)
                for d in DOCUMENTS)
    assert float((together - alone).detach()) == pytest.approx(0, abs=1e-10)
    for a, b in zip(*(torch.autograd.grad(x, list(m.parameters())) for x in (together, alone)),
                    strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    given = {k: batch[k] for k in ("input_ids", "segment_ids", "position_ids")}
    first = m(**given).logits[0]
    given["input_ids"] = batch["input_ids"].clone()
    given["input_ids"][0, 4] = 20
    other = m(**given).logits[0]
    assert torch.equal(first[:4], other[:4]) and torch.equal(first[9:], other[9:])
    assert not torch.equal(first[4:9], other[4:9])


@pytest.mark.scope("1.12.3")
def test_trained_in_parallel_and_written_one_by_one():
    text = Corpus.of([[(5 + n * k) % 31 for n in range(24)] for k in (1, 2, 3)] * 8)
    m = model(layers=1, d=32)
    result = fit(m, NextToken(text, 24), Plan(steps=150, batch=8, dtype="float64"),
                 Recipe(rate=1e-2, warmup=10, decay=0.0))
    assert result.history[-1]["loss"] < 0.2 * result.history[0]["loss"]
    m.eval()
    for k in (1, 2, 3):
        said = [(5 + n * k) % 31 for n in range(24)]
        written = m.generate(torch.tensor([said[:3]]), max_new_tokens=18)[0].tolist()
        assert written == said[:21]
    ids = torch.tensor([said])
    at_once, cache, one_by_one = m(input_ids=ids).logits, m.new_cache(), []
    for token in ids[0]:
        one_by_one.append(m(input_ids=token.view(1, 1), cache=cache).logits[:, -1])
    assert torch.allclose(at_once, torch.stack(one_by_one, 1), atol=1e-10)


def test_every_token_is_in_one_sample():
    tokens = list(range(57))
    objective = NextToken(Corpus.of([tokens]), 10)
    seen = [int(i) for n in range(objective.count) for i in objective.sample(n, None)[0]]
    assert seen == tokens[:50]
    assert NextToken(Corpus.of([[1, 2, 3]]), 10).count == 1  # shorter than a sample
    with pytest.raises(MiradaError, match="one token has no next"):
        NextToken(Corpus.of([[1]]), 4)


# Shards


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t")
    (folder / "a.txt").write_text("uno dos tres cuatro cinco\n" * 20)
    train_tokenizer([str(folder / "a.txt")], "bpe", 300, folder / "tokenizer")
    return mirada.text.Tokenizer.from_folder(folder / "tokenizer")


def test_a_shard_holds_the_documents_and_is_mapped(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BUFFER", 8)
    texts = ["uno dos", "", "tres", "cuatro cinco uno dos tres"]
    made = corpus.write(texts, tokenizer, tmp_path / "x")
    assert isinstance(made.tokens, np.memmap) and made.tokens.dtype == np.uint16
    wanted = [[*tokenizer.encode(t, special=False).ids, min(tokenizer.eos_ids)]
              for t in texts if t]
    assert [made.document(n).tolist() for n in range(3)] == wanted
    assert made.segments(0, len(made.tokens)).tolist() == [
        n for n, ids in enumerate(wanted) for _ in ids]
    with pytest.raises(MiradaError, match="exists already"):
        corpus.write(texts, tokenizer, tmp_path / "x")
    with pytest.raises(MiradaError, match="no text to train on"):
        corpus.write(["", ""], tokenizer, tmp_path / "y")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("spoil, says", [
    (lambda p: (p / "corpus.json").write_text("{"), "corpus.json"),
    (lambda p: (p / "tokens.bin").write_bytes(b"12"), "tokens.bin"),
    (lambda p: (p / "ends.bin").unlink(), "ends.bin"),
    (lambda p: (p / "corpus.json").write_text('{"dtype": "int8", "tokens": 1, "documents": 1}'),
     "names no tokens"),
])
def test_a_shard_that_does_not_agree(tokenizer, spoil, says, tmp_path):
    corpus.write(["uno dos tres"], tokenizer, tmp_path / "x")
    spoil(tmp_path / "x")
    with pytest.raises(UntrustedInputError, match=says):
        Corpus.open(tmp_path / "x")


# Parquet


def parquet(file, columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    parquet.write_table(pyarrow.table(columns), file, row_group_size=3)
    return str(file)


def test_a_parquet_file_is_read_row_by_row(tmp_path):
    said = [f"frase {n}" for n in range(8)]
    name = parquet(tmp_path / "a.parquet", {"said": said, "n": list(range(8))})
    assert list(config.texts(config.Run("gpt2:tiny", (name,), column="said"))) == said
    assert [(r.row, r.item) for r in values(name, {"text": "said"})][4] == (
        5, {"said": "frase 4", "n": 4})
    with pytest.raises(MiradaError, match="no column 'text'; it has 'said', 'n'"):
        list(config.texts(config.Run("gpt2:tiny", (name,))))
    with pytest.raises(MiradaError, match="row 1: 'n' holds no text"):
        list(config.texts(config.Run("gpt2:tiny", (name,), column="n")))


def test_what_is_no_parquet_file(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(MiradaError, match="is no Parquet file"):
        list(values(tmp_path / "a.parquet", {"text": "x"}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MiradaError, match=r"needs pyarrow: pip install 'mirada\[parquet\]'"):
        list(values(tmp_path / "a.parquet", {"text": "x"}))
