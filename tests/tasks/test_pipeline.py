"""What all tasks share: names, heads, lengths, order, mistakes, and the command."""

import json

import pytest
import torch

import mirada
from mirada import cli
from mirada.errors import MiradaError
from mirada.tasks.tag import TokenClassification
from tasks import tiny

TEXT = "the cat sat on a mat"
LONG = "the cat sat on a mat " * 20
MANY = [" ".join(TEXT.split()[: 1 + n % 6]) for n in range(11)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("pipeline") / "model", "ForSequenceClassification",
                     id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("pipeline") / "masked", "ForMaskedLM")


@pytest.mark.parametrize("task", ["ner", "token-classification", "question-answering", "fill-mask",
                                  "text-generation", "translation", "summarization"])
def test_a_wrong_head_is_named_with_those_there_are(classifier, task):
    with pytest.raises(MiradaError) as refused:
        mirada.pipeline(task, classifier)
    said = str(refused.value)
    assert "this model is BertForSequenceClassification" in said
    assert "BertForTokenClassification" in said and "BertForQuestionAnswering" in said


def test_a_wrong_name_gets_a_hint(classifier):
    with pytest.raises(MiradaError, match="did you mean 'text-classification'"):
        mirada.pipeline("text-clasification", classifier)
    with pytest.raises(MiradaError, match="there are .*feature-extraction"):
        mirada.pipeline("dance", classifier)
    with pytest.raises(MiradaError, match="did you mean top_k"):
        mirada.pipeline("sentiment-analysis", classifier, topk=3)
    with pytest.raises(MiradaError, match="batch_size is 0"):
        mirada.pipeline("sentiment-analysis", classifier, batch_size=0)


@pytest.mark.parametrize("size", [1, 2, 3, 32])
def test_batches_keep_the_order(classifier, size):
    alone = mirada.pipeline("text-classification", classifier, top_k=None)
    pipe = mirada.pipeline("text-classification", classifier, top_k=None, batch_size=size)
    wanted = [alone(text)[0] for text in MANY]
    assert len({one[0]["score"] for one in wanted}) > 5
    tiny.near(pipe(MANY), wanted)
    tiny.near(list(pipe(text for text in MANY)), wanted)
    assert pipe([]) == []


def test_texts_of_like_length_share_a_batch(classifier, monkeypatch):
    pipe = mirada.pipeline("text-classification", classifier, batch_size=3)
    seen = []
    pipe.model.register_forward_hook(
        lambda m, a, kw, o: seen.append(kw["attention_mask"]), with_kwargs=True)
    pipe(MANY)
    assert [len(m) for m in seen] == [3, 3, 3, 2]
    sizes = [len(pipe.tokenizer.encode(text)) for text in MANY]

    def pads(lengths):
        batches = [lengths[n : n + 3] for n in range(0, len(lengths), 3)]
        return sum(max(some) * len(some) - sum(some) for some in batches)

    found = sum(int((m == 0).sum()) for m in seen)
    assert found == pads(sorted(sizes, reverse=True)) < pads(sizes)


def test_a_text_too_long_is_refused_or_cut_with_a_warning(classifier):
    pipe = mirada.pipeline("text-classification", classifier)
    with pytest.raises(MiradaError, match="context of this model is 64.*truncation=True"):
        pipe([TEXT, LONG])
    with pytest.warns(UserWarning, match="cut to 64"):
        cut = pipe(LONG, truncation=True)
    kept = pipe.tokenizer([LONG], truncate=64)
    with torch.no_grad():
        wanted = pipe.model(**kept).logits.softmax(-1)[0].max()
    assert cut[0]["score"] == pytest.approx(float(wanted), abs=1e-6)
    ids = pipe.tokenizer.encode(TEXT).ids
    with pytest.warns(UserWarning, match="cut to 6"):
        cut = pipe(TEXT, truncation=True, max_length=6)
    with torch.no_grad():
        out = pipe.model(torch.tensor([[*ids[:5], ids[-1]]]))
    assert cut[0]["score"] == pytest.approx(float(out.logits.softmax(-1).max()), abs=1e-6)


def test_labels_that_do_not_fit(classifier):
    pipe = mirada.pipeline("text-classification", classifier)
    pipe.model.origin.raw = pipe.model.origin.raw | {"id2label": {"0": "no"}}
    with pytest.raises(MiradaError, match="names 1 labels.*2 outputs"):
        pipe(TEXT)
    pipe.model.origin.raw = {}
    assert pipe(TEXT)[0]["label"] in ("LABEL_0", "LABEL_1")


def test_mistakes_in_texts(classifier, masked):
    fill = mirada.pipeline("fill-mask", masked)
    with pytest.raises(MiradaError, match=r"has no mask: write \[MASK\]"):
        fill(TEXT)
    with pytest.raises(MiradaError, match="needs candidate_labels"):
        mirada.pipeline("zero-shot-classification", classifier)(TEXT)
    with pytest.raises(MiradaError, match="keys text and text_pair"):
        mirada.pipeline("text-classification", classifier)({"txt": TEXT})
    with pytest.warns(UserWarning, match='none of the labels no, yes begins with "entail"'):
        mirada.pipeline("zero-shot-classification", classifier)(TEXT, ["a", "b"])


def test_a_table_larger_than_the_vocabulary(tmp_path):
    fill = mirada.pipeline("fill-mask", tiny.bert(tmp_path / "m", "ForMaskedLM", vocab=300))
    assert fill.model.config.vocab == 300 > fill.tokenizer.size == 200
    assert sorted(one["token"] for one in fill("the [MASK]", top_k=300)) == list(range(200))


BIOES = ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "S-LOC"]


@pytest.mark.parametrize(("tags", "groups"), [
    ("O B-PER I-PER E-PER O O", [("PER", "cat sat on")]),
    ("S-PER S-PER O O O S-LOC", [("PER", "the"), ("PER", "cat"), ("LOC", "mat")]),
    ("B-PER E-PER I-PER O O O", [("PER", "the cat"), ("PER", "sat")]),
    ("B-PER B-PER I-PER B-LOC O O", [("PER", "the"), ("PER", "cat sat"), ("LOC", "on")]),
    ("I-PER I-PER O O I-PER E-PER", [("PER", "the cat"), ("PER", "a mat")])])
def test_bioes_to_spans(tmp_path_factory, tags, groups, monkeypatch):
    """The scores are written here, so that the decoding alone is seen."""
    folder = tmp_path_factory.mktemp("tags") / "model"
    ids = dict(enumerate(BIOES))
    model = mirada.load(tiny.bert(folder, "ForTokenClassification", id2label=ids,
                                  label2id={v: k for k, v in ids.items()}))
    pipe = mirada.pipeline("ner", model, aggregation_strategy="first")
    words = [BIOES.index(tag) for tag in tags.split()]
    assert isinstance(pipe, TokenClassification)
    encoding = model.tokenizer.encode(TEXT)
    logits = torch.zeros(1, len(encoding), len(BIOES))
    for i, word in enumerate(encoding.found.word_ids):
        logits[0, i, words[word] if word is not None else 0] = 9
    monkeypatch.setattr(model.head, "forward", lambda x, inputs, ctx: {"logits": logits})
    found = pipe(TEXT)
    assert [(f["entity_group"], TEXT[f["start"] : f["end"]]) for f in found] == groups


def command(*words) -> int:
    return cli.main(["task", *map(str, words)])


def test_the_command(classifier, capsys):
    pipe = mirada.pipeline("sentiment-analysis", classifier)
    assert command("sentiment-analysis", classifier, TEXT, "--json") == 0
    tiny.near(json.loads(capsys.readouterr().out), pipe(TEXT))
    assert command("sentiment-analysis", classifier, TEXT, "a mat", "-o", "top_k=2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and {line.split()[1] for line in lines} == {"no", "yes"}
    assert command("zero-shot-classification", classifier, TEXT, "-o",
                   "candidate_labels=a cat, a dog", "-o", "hypothesis_template=this is {}") == 0
    assert sorted(line.split("  ")[1] for line in capsys.readouterr().out.splitlines()) == [
        "a cat", "a dog"]


def test_the_command_for_two_texts(tmp_path, capsys):
    folder = tiny.bert(tmp_path / "model", "ForQuestionAnswering")
    assert command("question-answering", folder, "what sat?", TEXT, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert TEXT[found["start"] : found["end"]] == found["answer"]
    assert command("question-answering", folder, "what sat?") == 2
    assert "the question, then the passage" in capsys.readouterr().err
    assert command("ner", folder, TEXT) == 2
    said = capsys.readouterr().err
    assert said.startswith("mirada: token-classification needs a head") and said.count("\n") == 1
    assert command("question-answering", folder, "a", "b", "-o", "top_k") == 2
    assert "NAME=VALUE" in capsys.readouterr().err
