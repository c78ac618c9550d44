"""Measures, against the packages that define them, and the evaluation of whole files."""

import json
import math
import random
import re

import pytest
import sacrebleu
import seqeval.metrics
import sklearn.metrics
import torch
import transformers
from rouge_score import rouge_scorer

import mirada
from mirada import cli
from mirada.errors import MiradaError
from mirada.tasks import metrics, score
from mirada.tasks.evaluate import evaluate
from tasks import tiny

LABELS = {0: "NEG", 1: "NEUTRAL", 2: "POS"}
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
WORDS = "the cat sat on a mat attention is all you need language every model hello world".split()


def named(labels: dict) -> dict:
    return {"id2label": labels, "label2id": {v: k for k, v in labels.items()}}


def sentences(count: int, words: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(2, words))) for _ in range(count)]


def lines(path, rows: list[dict]):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Measures


@pytest.mark.parametrize("seed", range(3))
def test_labels_as_sklearn_counts_them(seed):
    draw = random.Random(seed)
    gold, found = (draw.choices("abcde"[: 3 + seed], k=60) for _ in range(2))
    found[:20] = gold[:20]
    ours = metrics.labels(gold, found)
    assert ours == pytest.approx({
        "accuracy": sklearn.metrics.accuracy_score(gold, found),
        "macro_f1": sklearn.metrics.f1_score(gold, found, average="macro", zero_division=0),
        "micro_f1": sklearn.metrics.f1_score(gold, found, average="micro")})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("marks", ["BI", "BIES"])
@pytest.mark.parametrize("seed", range(5))
def test_spans_as_seqeval_counts_them(marks, seed):
    draw = random.Random(seed)
    tags = ["O", *(f"{mark}-{name}" for mark in marks for name in ("PER", "LOC", "A-B"))]
    gold, found = ([draw.choices(tags, k=12) for _ in range(40)] for _ in range(2))
    found[:15] = [[*tags] for tags in gold[:15]]
    for sentence in gold:
        assert metrics.spans(sentence) == [
            (name, first, last + 1) for name, first, last in
            seqeval.metrics.sequence_labeling.get_entities(sentence)]
    ours = metrics.span_f1(gold, found)
    assert ours == pytest.approx({
        "precision": seqeval.metrics.precision_score(gold, found),
        "recall": seqeval.metrics.recall_score(gold, found),
        "f1": seqeval.metrics.f1_score(gold, found),
        "macro_f1": seqeval.metrics.f1_score(gold, found, average="macro"),
        "accuracy": seqeval.metrics.accuracy_score(gold, found)})
    assert 0.3 < ours["f1"] < 1


def test_nothing_to_find_is_no_error():
    assert metrics.span_f1([["O"]], [["O"]])["f1"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_rouge_as_its_package_counts_it(seed):
    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    a, *references = sentences(4, 14, seed)
    wanted = theirs.score_multi([one.title() + "!" for one in references], a)
    assert metrics.rouge(a, [one.title() + "!" for one in references]) == pytest.approx(
        {name: score.fmeasure for name, score in wanted.items()})
    assert 0 < wanted["rougeL"].fmeasure < 1


def test_rouge_keeps_accented_words():
    assert metrics.rouge("el año", ["el ano"])["rouge1"] == 0.5
    assert metrics.rouge("", ["x"])["rougeL"] == 0


@pytest.mark.parametrize(("answer", "references", "em", "f1"), [
    ("The Cat!", ["cat"], 1, 1), ("a cat on the mat", ["cat", "the mat"], 0, 1 / 2),
    ("cat cat", ["cat"], 0, 2 / 3), ("", [], 1, 1), ("cat", [], 0, 0), ("", ["cat"], 0, 0),
    ("an a the", ["the"], 1, 1)])
def test_answers_as_squad_compares_them(answer, references, em, f1):
    assert metrics.exact(answer, references) == em
    assert metrics.overlap(answer, references) == pytest.approx(f1)


def test_translations_by_sacrebleu(monkeypatch):
    found, first, second = (sentences(20, 12, seed) for seed in range(3))
    found[:5] = first[:5]
    ours = metrics.translations(found, [[a, b] if n % 2 else [a] for n, (a, b) in
                                        enumerate(zip(first, second, strict=True))])
    columns = [first, [b if n % 2 else None for n, b in enumerate(second)]]
    assert ours == {"bleu": sacrebleu.corpus_bleu(found, columns).score,
                    "chrf": sacrebleu.corpus_chrf(found, columns).score}
    assert 20 < ours["bleu"] < 90
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(MiradaError, match=r"pip install 'mirada\[eval\]'"):
        metrics.translations(found, [[one] for one in first])


# Files


def test_classification(tmp_path):
    folder = tiny.bert(tmp_path / "m", "ForSequenceClassification", **named(LABELS))
    model, texts = mirada.load(folder), sentences(12, 9)
    found = [one["label"] for one in mirada.pipeline("text-classification", model)(texts)]
    gold = [LABELS[n % 3] for n in range(12)]
    rows = [{"body": t, "label": n % 3 if n % 2 else LABELS[n % 3]} for n, t in enumerate(texts)]
    report = evaluate("sentiment-analysis", model, lines(tmp_path / "a.jsonl", rows),
                      columns=["text=body"])
    assert report.metrics == pytest.approx(metrics.labels(gold, found)) and report.rows == 12
    assert evaluate("text-classification", model, tmp_path / "a.jsonl", columns=["text=body"],
                    limit=4).rows == 4


def test_zero_shot_takes_its_labels_from_the_file(tmp_path):
    folder = tiny.bert(tmp_path / "m", "ForSequenceClassification",
                       **named({0: "contradiction", 1: "neutral", 2: "entailment"}))
    model, texts = mirada.load(folder), sentences(6, 9)
    gold = ["cat", "mat", "model"] * 2
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(
        f"{t},{g}\n" for t, g in zip(texts, gold, strict=True)))
    found = mirada.pipeline("zero-shot-classification", model)(texts, sorted({*gold}))
    assert evaluate("zero-shot-classification", model, tmp_path / "a.csv").metrics == (
        metrics.labels(gold, [one["labels"][0] for one in found]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.scope("1.14.2")
def test_names_as_character_spans_and_their_f1(tmp_path):
    """Spans as the reference's pipeline gives them; F1 by seqeval on its token labels."""
    folder = tiny.bert(tmp_path / "m", "ForTokenClassification", **named(TAGS))
    texts, draw = sentences(15, 9), random.Random(1)
    theirs = transformers.pipeline("ner", model=folder)
    ours = mirada.pipeline("ner", folder)
    for text in texts:
        wanted = theirs(text, aggregation_strategy="simple")
        found = ours(text, aggregation_strategy="simple")
        tiny.near(found, wanted)
        assert all(text[one["start"]:one["end"]] for one in found)
    tokens = [text.split() for text in texts]
    read = [theirs(text, ignore_labels=[]) for text in texts]
    found = []
    for words, each in zip(tokens, read, strict=True):
        starts = {one["start"]: one["entity"] for one in reversed(each)}
        places = [len(" ".join(words[:n])) + (n > 0) for n in range(len(words))]
        found.append([starts[at] for at in places])
    gold = [[tag if draw.random() < 0.7 else "O" for tag in tags] for tags in found]
    path = lines(tmp_path / "a.jsonl", [{"tokens": w, "tags": g} for w, g in
                                        zip(tokens, gold, strict=True)])
    report = evaluate("ner", ours.model, path)
    assert report.metrics["f1"] == pytest.approx(seqeval.metrics.f1_score(gold, found))
    assert 0 < report.metrics["f1"] < 1


def test_questions(tmp_path):
    model = mirada.load(tiny.bert(tmp_path / "m", "ForQuestionAnswering"))
    ask = mirada.pipeline("question-answering", model)
    texts = sentences(5, 12)
    said = [ask(question="what is it?", context=text)["answer"] for text in texts]
    answers = [said[0], [said[1], "x"], {"text": ["the cat"], "answer_start": [0]}, [], "nothing"]
    path = lines(tmp_path / "a.jsonl", [
        {"question": "what is it?", "context": c, "answers": a}
        for c, a in zip(texts, answers, strict=True)])
    report = evaluate("question-answering", model, path)
    pairs = [*zip(said, [[said[0]], [said[1], "x"], ["the cat"], [], ["nothing"]], strict=True)]
    assert report.metrics == pytest.approx({
        "exact_match": sum(metrics.exact(*p) for p in pairs) / 5,
        "f1": sum(metrics.overlap(*p) for p in pairs) / 5})
    assert report.metrics["exact_match"] >= 0.4


def test_translations(tmp_path):
    model = mirada.load(tiny.t5(tmp_path / "t5"))
    texts = sentences(4, 9)
    said = [one["translation_text"] for one in
            mirada.pipeline("translation", model, max_new_tokens=5)(texts)]
    path = lines(tmp_path / "a.jsonl", [{"text": t, "target": [s, "x"] if n else s + " more"}
                                        for n, (t, s) in enumerate(zip(texts, said, strict=True))])
    report = evaluate("translation", model, path, max_new_tokens=5)
    wanted = metrics.translations(said, [[said[0] + " more"], *([s, "x"] for s in said[1:])])
    assert report.metrics == pytest.approx(wanted) and wanted["chrf"] > 50


class Unicode:
    """Words for the package, whose own reading drops accented letters."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def bart(vocab: int):
    return transformers.BartForConditionalGeneration(transformers.BartConfig(
        vocab_size=vocab, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, encoder_attention_heads=2, decoder_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=0,
        decoder_start_token_id=1, forced_eos_token_id=1))


def pegasus(vocab: int):
    return transformers.PegasusForConditionalGeneration(transformers.PegasusConfig(
        vocab_size=vocab, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, encoder_attention_heads=2, decoder_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0))


@pytest.mark.scope("1.14.7")
@pytest.mark.parametrize("make", [bart, pegasus])
def test_summaries_and_their_rouge(tmp_path, make):
    """Summaries as the reference writes them (4 beams); ROUGE as its package counts it."""
    torch.manual_seed(7)
    tokenizer = tiny.byte_level(ends=True)
    folder = tiny.saved(tmp_path / "m", make(400), tokenizer)
    texts, references = sentences(4, 12), sentences(4, 12, 1)
    asked = {"num_beams": 4, "max_new_tokens": 8, "no_repeat_ngram_size": 2,
             "length_penalty": 2.0, "early_stopping": True}
    theirs = getattr(transformers, make(400).__class__.__name__).from_pretrained(folder).eval()
    said = []
    for text in texts:
        with torch.no_grad():
            ids = theirs.generate(**{n: v for n, v in tokenizer(text, return_tensors="pt").items()
                                     if n != "token_type_ids"}, **asked)
        said.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    model = mirada.load(folder)
    found = mirada.pipeline("summarization", model)(texts, **asked)
    assert [one["summary_text"] for one in found] == said
    references[0] = "X " + said[0]  # so that something is shared
    path = lines(tmp_path / "a.jsonl", [{"text": t, "summary": r} for t, r in
                                        zip(texts, references, strict=True)])
    report = evaluate("summarization", model, path, **asked)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Unicode())
    each = [scorer.score(r, s) for r, s in zip(references, said, strict=True)]
    for name, value in report.metrics.items():
        assert value == pytest.approx(sum(one[name].fmeasure for one in each) / 4)


def test_multiple_choice_as_lm_eval_counts_it(tmp_path):
    model = mirada.load(tiny.gpt2(tmp_path / "m"))
    rows = [{"prompt": text, "choices": ["on a mat", "hello", "is"], "answer": n % 3}
            for n, text in enumerate(sentences(6, 5))]
    rows[1]["answer"] = "hello"
    path = lines(tmp_path / "a.jsonl", rows)
    for shots, template in ((0, None), (2, None), (0, "Q: {prompt}\nA:")):
        shown = [(template or "{prompt}").replace("{prompt}", row["prompt"]) for row in rows]
        told = [f"{text} {row['choices'][n % 3]}\n\n" for n, (text, row) in
                enumerate(zip(shown, rows, strict=True))]
        hits = dict.fromkeys(("acc", "acc_norm", "acc_bytes"), 0)
        for n in range(shots, 6):
            found = score.score(model, "".join(told[:shots]) + shown[n],
                                [" " + one for one in rows[n]["choices"]])
            for name, lengths in (("acc", [1, 1, 1]), ("acc_norm", [8, 5, 2]),
                                  ("acc_bytes", [8, 5, 2])):
                by = [one.logprob / w for one, w in zip(found, lengths, strict=True)]
                hits[name] += by.index(max(by)) == n % 3
        report = evaluate("multiple-choice", model, path, shots=shots, template=template)
        assert report.metrics == pytest.approx({k: v / (6 - shots) for k, v in hits.items()})
        assert report.rows == 6 - shots


def test_perplexity_of_rows_and_of_a_document(tmp_path):
    model = mirada.load(tiny.gpt2(tmp_path / "m"))
    texts = sentences(3, 9)
    each = [score.perplexity(model, text) for text in texts]
    report = evaluate("perplexity", model, lines(tmp_path / "a.jsonl",
                                                 [{"text": text} for text in texts]))
    nats, count = sum(one.nats for one in each), sum(one.tokens for one in each)
    assert report.metrics["perplexity"] == pytest.approx(math.exp(nats / count))
    (tmp_path / "a.txt").write_text("\n".join(texts))
    whole = evaluate("perplexity", model, tmp_path / "a.txt")
    assert whole.metrics == score.perplexity(model, "\n".join(texts)).data()


@pytest.mark.parametrize(("task", "row", "said"), [
    ("text-classification", {"text": "x", "label": "GOOD"},
     "row 2: the label 'GOOD' is none of this model's, NEG, NEUTRAL, POS"),
    ("text-classification", {"text": "x", "label": 3}, "row 2: the label '3' is none"),
    ("text-classification", {"text": "x"}, "row 2: 'label' is missing"),
    ("text-classification", {"text": " ", "label": 1}, "row 2: 'text' is ' '"),
    ("text-classification", {"text": "the cat " * 60, "label": 1}, "row 2: a text has"),
    ("multiple-choice", {"prompt": "x", "choices": "y", "answer": 0}, "should be a list"),
    ("dance", {}, "no task is called"),
    ("fill-mask", {}, "needs a head"),
    ("feature-extraction", {}, "cannot be evaluated"),
])
def test_a_file_that_does_not_fit(tmp_path, task, row, said):
    model = mirada.load(tiny.bert(tmp_path / "m", "ForSequenceClassification", **named(LABELS)))
    path = lines(tmp_path / "a.jsonl", [{"text": "x", "label": 1, "prompt": "x",
                                         "choices": ["y"], "answer": 0}, row])
    with pytest.raises(MiradaError, match=said):
        evaluate(task, model, path)


def test_choices_that_do_not_fit(tmp_path):
    model = mirada.load(tiny.gpt2(tmp_path / "m"))
    rows = [{"prompt": "x", "choices": ["y", "z"], "answer": 2}]
    with pytest.raises(MiradaError, match="row 1: the answer 2 is neither"):
        evaluate("multiple-choice", model, lines(tmp_path / "a.jsonl", rows))
    rows[0]["answer"] = 1
    with pytest.raises(MiradaError, match="shots is 1; of 1 rows"):
        evaluate("multiple-choice", model, lines(tmp_path / "a.jsonl", rows), shots=1)
    with pytest.raises(MiradaError, match="'tags' must be written FIELD=NAME"):
        evaluate("multiple-choice", model, tmp_path / "a.jsonl", columns=["tags"])


def test_the_command(tmp_path, capsys):
    folder = tiny.bert(tmp_path / "m", "ForSequenceClassification", **named(LABELS))
    path = lines(tmp_path / "a.jsonl", [{"text": "x", "label": 1}, {"text": "y", "label": 1}])
    assert cli.main(["eval", "text-classification", folder, "--data", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "text-classification, 2 rows" and said[1].split()[0] == "accuracy"
    assert cli.main(["eval", "text-classification", folder, "--data", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2
