"""Documents longer than the context: windows with a stated pooling, models made for them, and a
language model that slides."""

import re

import pytest
import torch
import transformers

import mirada
from mirada.errors import MiradaError
from mirada.tasks import long
from tasks import tiny

TEXT = "The cat sat on a mat. Attention is all you need! Language was there in every model. " * 9
LABELS = {"id2label": {0: "NEG", 1: "POS"}, "label2id": {"NEG": 0, "POS": 1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("long") / "model", "ForSequenceClassification",
                     **LABELS)


def windows(folder: str, stride: int = 0) -> dict:
    """The reference tokenizer's own windows over TEXT."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    read = tokenizer(TEXT, truncation=True, max_length=64, stride=stride, padding=True,
                     return_overflowing_tokens=True, return_tensors="pt")
    return {n: read[n] for n in ("input_ids", "attention_mask", "token_type_ids")}


@pytest.mark.scope("1.14.16")
def test_a_document_for_longformer_and_for_a_language_model_that_slides(tmp_path):
    """Over 1,000 tokens: Longformer reads them at once, as the reference's pipeline does; a
    decoder of 64 reads them in windows, each token after the 32 before it or more."""
    text = TEXT * 5
    folder = tiny.longformer(tmp_path / "longformer", **LABELS)
    ours = mirada.pipeline("text-classification", folder)
    assert len(ours.tokenizer.encode(text)) > 1000
    theirs = transformers.pipeline("text-classification", model=folder)
    for one in (text, "a document that is short", text[400:]):
        tiny.near(ours(one, top_k=None), theirs(one, top_k=None))
    from mirada.tasks import score
    folder = tiny.gpt2(tmp_path / "gpt2")
    slid = score.perplexity(mirada.load(folder), text, window=64, stride=32)
    reference = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    nats, p = 0.0, 1
    while p < len(ids):
        q = min(p + (64 if p == 1 else 32), len(ids))
        with torch.no_grad():
            after = reference(torch.tensor([ids[max(0, q - 65) : q - 1]])).logits[0, -(q - p):]
        nats += torch.nn.functional.cross_entropy(after, torch.tensor(ids[p:q]),
                                                  reduction="sum").item()
        p = q
    assert len(ids) > 1000 and slid.tokens == len(ids) - 1
    assert slid.nats == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("stride", [0, 16])
def test_a_classifiers_windows_are_averaged_by_their_tokens(folder, stride):
    pipe = mirada.pipeline("text-classification", folder, long="stride", top_k=None)
    found = {one["label"]: one["score"] for one in pipe(TEXT, stride=stride)[0]}
    batch = windows(folder, stride)
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        each = theirs(**batch).logits.softmax(-1)
    share = batch["attention_mask"].sum(1) / batch["attention_mask"].sum()
    assert len(each) > 3
    assert [found["NEG"], found["POS"]] == pytest.approx((share @ each).tolist(), abs=1e-5)
    short = "the cat"
    assert pipe(short) == mirada.pipeline("text-classification", folder, top_k=None)(short)


def test_a_pairs_longer_text_is_the_one_read_in_windows(folder):
    model = mirada.load(folder)
    rows = long.parts(model, "the cat", TEXT, {"long": "stride"})
    first = model.tokenizer.encode("the cat").ids
    assert len(rows) > 3 and all(row.ids[: len(first)] == first for row in rows)
    assert all(len(row) <= 64 for row in rows)
    rows = long.parts(model, TEXT, "the cat", {"long": "stride"})
    assert all(row.ids[-len(first) + 1 :] == first[1:] for row in rows)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_documents_vector_is_its_windows_mean(folder, pooling):
    model = mirada.load(folder)
    found = mirada.embed(model, TEXT, pooling, long="stride")
    batch = windows(folder)
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        x = theirs(**batch).last_hidden_state
    real = batch["attention_mask"]
    share = real.sum(1) / real.sum()
    each = x[:, 0] if pooling == "cls" else (x * real[..., None]).sum(1) / real.sum(1)[:, None]
    assert torch.allclose(found, share @ each, atol=1e-5)
    with pytest.warns(UserWarning, match="was cut to 64"):
        mirada.embed(model, TEXT, long="truncate")
    for options in ({}, {"long": "refuse"}):
        with pytest.raises(MiradaError, match="the context of this model is 64"):
            mirada.embed(model, TEXT, **options)
    with pytest.raises(MiradaError, match="long is 'cut'"):
        mirada.embed(model, TEXT, long="cut")


def test_names_in_a_long_document(tmp_path):
    labels = {0: "O", 1: "B-PER", 2: "I-PER"}
    folder = tiny.bert(tmp_path / "m", "ForTokenClassification", id2label=labels,
                       label2id={v: k for k, v in labels.items()})
    pipe = mirada.pipeline("ner", folder)
    assert pipe(TEXT, long="stride") == pipe(TEXT, stride=16, aggregation_strategy="simple")
    with pytest.raises(MiradaError, match="the context of this model is 64"):
        pipe(TEXT)


def test_a_long_text_is_summarized_piece_by_piece(tmp_path):
    pipe = mirada.pipeline("summarization", tiny.t5(tmp_path / "m"), num_beams=2,
                           max_new_tokens=5, prefix="sum: ")
    pieces = long.pieces(pipe.model, "sum: ", TEXT)  # this tokenizer says 128 tokens
    assert len(pieces) > 2 and re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", TEXT)
    assert all(piece[-1] in ".!" for piece in pieces)
    assert all(len(pipe.tokenizer.encode("sum: " + piece)) <= 128 for piece in pieces)
    each = [one["summary_text"] for one in pipe(pieces)]
    assert pipe(TEXT, long="stride") == [{"summary_text": " ".join(each)}]
    short = "the cat sat"
    assert pipe([TEXT, short], long="stride")[1] == pipe([short])[0]


@pytest.mark.parametrize("text", ["x" * 700, "ñandú" * 200, "a b " * 300, "\n" * 400 + "word " * 90,
                                  "el año. " * 90])
def test_pieces_fit_whatever_the_text_is(folder, text):
    model = mirada.load(folder)
    pieces = long.pieces(model, "say: ", text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(len(model.tokenizer.encode("say: " + piece)) <= 64 for piece in pieces)


def test_windows_cover_the_whole_text(folder):
    model = mirada.load(folder)
    rows = long.parts(model, TEXT, None, {"long": "stride", "stride": 10})
    encoding = model.tokenizer.encode(TEXT)
    seen = sorted({i for row in rows for i in row.at})
    assert seen == list(range(len(encoding))) and sum(long.weights(rows)) == pytest.approx(1)


@pytest.mark.parametrize(("task", "head", "options", "said"), [
    ("fill-mask", "ForMaskedLM", {"long": "stride"}, "fill-mask has no long=stride; it has "
     "truncate, refuse"),
    ("question-answering", "ForQuestionAnswering", {"long": "truncate"}, "has no long=truncate"),
    ("text-classification", "ForSequenceClassification", {"long": "cut"}, "long is 'cut'; it can"),
])
def test_a_policy_that_a_task_lacks(tmp_path, task, head, options, said):
    with pytest.raises(MiradaError, match=said):
        mirada.pipeline(task, tiny.bert(tmp_path / "m", head), **options)


def test_a_stride_that_cannot_be(folder, tmp_path):
    pipe = mirada.pipeline("text-classification", folder, long="stride")
    for stride, said in ((62, "neighbours are to share 62"), (-1, "stride is -1"),
                         ("x", "stride is 'x'")):
        with pytest.raises(MiradaError, match=said):
            pipe(TEXT, stride=stride)
    ask = mirada.pipeline("question-answering", tiny.bert(tmp_path / "m", "ForQuestionAnswering"),
                          long="refuse")
    with pytest.raises(MiradaError, match="and a window 64: shorten them, or ask for long=stride"):
        ask(question="what?", context=TEXT)
    assert ask(question="what?", context="the cat sat")["answer"]
