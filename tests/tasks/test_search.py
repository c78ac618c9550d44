"""Search: passages by their meaning, an index that is refused when it is of something else."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers

import mirada
from mirada import cli
from mirada.errors import MiradaError, UntrustedInputError, WorkFailed
from mirada.tasks import search
from mirada.weights import tensorfile
from tasks import tiny

BOOK = """\
The cat sleeps on the sofa
all afternoon.

Interest rates were raised by the central bank.


Paella is made with rice and saffron.
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mirada.load(tiny.bert(tmp_path_factory.mktemp("search") / "model", "Model"))


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book.txt").write_text(BOOK)
    return tmp_path / "book.txt"


@pytest.mark.scope("1.14.4")
def test_a_real_encoder_finds_what_is_meant(real, book, tmp_path, capsys):
    """The score is the cosine of mean-pooled vectors by the reference's own model."""
    asked = "What did the financial authorities do?"
    words = ["search", str(book), asked, "-k", "2", "--index", str(tmp_path / "i.safetensors")]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [hit["line"] for hit in found][0] == 4 and len(found) == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(real("minilm"))
    theirs = transformers.BertModel.from_pretrained(real("minilm")).eval()
    batch = tokenizer([asked, *(hit["text"] for hit in found)], padding=True, return_tensors="pt")
    with torch.no_grad():
        states, kept = theirs(**batch).last_hidden_state, batch["attention_mask"][..., None]
    vectors = F.normalize((states * kept).sum(1) / kept.sum(1), dim=-1)
    wanted = (vectors[1:] @ vectors[0]).tolist()
    assert [hit["score"] for hit in found] == pytest.approx(wanted, abs=1e-5)
    assert cli.main(words) == 0  # from the index
    assert f"{wanted[0]:7.4f}  line 4: Interest rates" in capsys.readouterr().out


def test_passages(book):
    assert [(p.line, p.text) for p in search.passages(book)] == [
        (1, "The cat sleeps on the sofa\nall afternoon."),
        (4, "Interest rates were raised by the central bank."),
        (7, "Paella is made with rice and saffron.")]
    assert [p.line for p in search.passages(book, "line")] == [1, 2, 4, 7]
    book.write_bytes(b"\xef\xbb\xbfone\r\n  two \r\nthree\n\n")
    assert [(p.line, p.text) for p in search.passages(book)] == [
        (1, "one"), (2, "two"), (3, "three")]


def test_the_nearest_are_those_of_all_cosines(model):
    texts = ["the cat sat", "attention is all", "you need", "on a mat"]
    found = search.Index(texts, model).search("the cat", k=9)
    vectors = F.normalize(mirada.embed(model, ["the cat", *texts]), dim=-1)
    wanted = sorted(zip((vectors[1:] @ vectors[0]).tolist(), texts, strict=True), reverse=True)
    assert [hit.text for hit in found] == [text for _, text in wanted]
    assert [hit.score for hit in found] == pytest.approx([score for score, _ in wanted], abs=1e-6)


def test_a_long_passage_is_found_by_its_nearest_piece(model):
    long = "the cat sat on a mat. " * 12 + "attention is all you need. " + "hello world. " * 12
    index = search.Index(["year 2024", long], model)
    assert index.owner.tolist().count(1) > 2 and index.owner.tolist().count(0) == 1
    with pytest.raises(MiradaError, match="the context of this model is 64"):
        mirada.embed(model, long)
    hits = {hit.line: hit for hit in index.search("attention is all you need.", k=2)}
    asked = mirada.embed(model, "attention is all you need.", normalize=True)
    scores = (index.vectors @ asked)[index.owner == 1]
    assert hits[2].score == pytest.approx(scores.max().item(), abs=1e-6) and hits[2].text == long
    assert scores.max() > scores.min() + 1e-3 and hits.keys() == {1, 2}


def test_a_saved_index_gives_the_same(model, tmp_path):
    texts, path = ["the cat sat", "attention is all"], tmp_path / "i.safetensors"
    made = search.Index(texts, model)
    made.save(path)
    again = search.Index.load(path, texts, model)
    assert torch.equal(again.vectors, made.vectors)
    assert again.search("a mat") == made.search("a mat")
    assert [p.name for p in tmp_path.iterdir()] == ["i.safetensors"]


def test_a_stale_index_is_refused(model, tmp_path):
    texts, path = ["the cat sat", "attention is all"], tmp_path / "i.safetensors"
    search.Index(texts, model).save(path)
    with pytest.raises(MiradaError, match="was made of another text"):
        search.Index.load(path, ["the cat sat", "attention is"], model)
    with pytest.raises(MiradaError, match="was made of another prompt"):
        search.Index.load(path, texts, model, prompt="query: ")
    other = mirada.build("bert", size="tiny", vocab=model.config.vocab)
    other.tokenizer = model.tokenizer
    with pytest.raises(MiradaError, match="was made of another model"):
        search.Index.load(path, texts, other)
    weight = model.body.blocks[0].mlp.f.up.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1e-3)
    with pytest.raises(MiradaError, match="was made of another model"):
        search.Index.load(path, texts, model)
    with torch.no_grad():
        weight.copy_(kept)
    assert search.Index.load(path, texts, model).search("a mat", k=1)


@pytest.mark.parametrize("broken", [
    {"vectors": torch.zeros(2, 32)},
    {"vectors": torch.zeros(2, 32), "owner": torch.tensor([0, 9])},
    {"vectors": torch.zeros(2, 32), "owner": torch.tensor([0, -1])},
    {"vectors": torch.full((2, 32), torch.nan), "owner": torch.tensor([0, 1])},
    {"vectors": torch.zeros(1, 32), "owner": torch.tensor([0])},
    {"vectors": torch.zeros(2, 32).half(), "owner": torch.tensor([0, 1])},
])
def test_a_hostile_index_is_refused(model, tmp_path, broken):
    texts, path = ["the cat sat", "attention is all"], tmp_path / "i.safetensors"
    passages = [search.Passage(n, t) for n, t in enumerate(texts, 1)]
    tensorfile.write_file(path, broken.items(), search._made(passages, model, None))
    with pytest.raises(UntrustedInputError):
        search.Index.load(path, texts, model)


def test_a_full_disk_leaves_no_half_index(model, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorfile, "write_file", full)
    with pytest.raises(WorkFailed, match="No space left"):
        search.Index(["x"], model).save(tmp_path / "i.safetensors")
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_searched(model, tmp_path):
    path = tmp_path / "a.txt"
    for raw, said in ((b"\n \n", "has no text to search"),
                      (b"fine\nbad \xff\n", "line 2: is not valid UTF-8")):
        path.write_bytes(raw)
        with pytest.raises(MiradaError, match=said):
            search.passages(path)
    with pytest.raises(MiradaError, match="nothing to search"):
        search.Index([], model)
    index = search.Index(["the cat"], model)
    for query, k, said in (("", 1, "the query is empty"), ("x", 0, "k is 0")):
        with pytest.raises(MiradaError, match=said):
            index.search(query, k)
    with pytest.raises(MiradaError, match="by is 'page'"):
        search.passages(path, "page")
