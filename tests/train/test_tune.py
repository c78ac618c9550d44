"""mirada tune: a file of rows becomes a model that transformers loads and scores the same."""

import csv
import json
import random
import re

import pytest
import torch
import transformers

import mirada
from generate import words
from mirada.cli import main
from mirada.errors import MiradaError, WorkFailed
from mirada.tasks import examples
from mirada.tasks import tune as tuning
from mirada.tasks.metrics import correlation
from mirada.tasks.tune import tune
from mirada.text import Tokenizer
from mirada.text.train import train as train_tokenizer
from mirada.train import supervised
from mirada.train.heads import with_head
from mirada.train.log import Folder
from mirada.train.supervised import Example

GOOD, BAD = ("bueno", "hermoso", "genial", "rico"), ("malo", "feo", "triste", "soso")
THINGS = ("libro", "parque", "actor", "caldo", "final", "paseo", "vino", "mar")
NAMES = ("Ana", "Luis", "Eva")


def sentence(draw, words):
    return f"el {draw.choice(THINGS)} es {draw.choice(words)} y el {draw.choice(THINGS)} tambien"


def reviews(count=200, seed=0):
    """Texts that all differ, each with a good or a bad word, and its label."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        side = draw.random() < 0.5
        found[sentence(draw, GOOD if side else BAD)] = "pos" if side else "neg"
    return list(found.items())


def table(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a small BERT from nothing and a tokenizer of the words here."""
    folder = tmp_path_factory.mktemp("base")
    words = " ".join((*GOOD, *BAD, *THINGS, *NAMES, "el es y tambien quien vive en con"))
    (folder / "words.txt").write_text("\n".join([words] * 20))
    train_tokenizer([str(folder / "words.txt")], "wordpiece", 200, folder / "tokenizer")
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    model = mirada.build("bert:tiny", architecture="BertForMaskedLM", seed=0, d=32, heads=2,
                         hidden=64, context=64, vocab=tokenizer.size)
    model.tokenizer = tokenizer
    return mirada.save(model, folder / "model")


FAST = {"rate": 2e-3, "batch": 16}


@pytest.mark.scope("1.14.1")
def test_a_csv_becomes_a_classifier_that_transformers_scores_the_same(base, tmp_path, capsys):
    data = table(tmp_path / "reviews.csv", ("review", "stars"), reviews())
    words = ["tune", str(base), "--task", "sentiment", "--data", str(data), "--text", "review",
             "--label", "stars", "--rate", "2e-3", "--out", str(tmp_path / "mine"), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"]["train"] + told["rows"]["held_out"] == 200
    assert 20 <= told["rows"]["held_out"] <= 60
    assert told["metrics"]["held_out"]["accuracy"] > 0.95
    assert not (tmp_path / "mine.run").exists()
    new = [text for text, _ in reviews(40, seed=9)]
    ours = mirada.pipeline("sentiment-analysis", str(tmp_path / "mine"))(new, top_k=None)
    theirs = transformers.pipeline("text-classification", str(tmp_path / "mine"))(new, top_k=None)
    for a, b in zip(ours, theirs, strict=True):
        assert [one["label"] for one in a] == [one["label"] for one in b]
        assert [one["score"] for one in a] == pytest.approx([one["score"] for one in b], abs=1e-5)
    assert {one["label"] for some in ours for one in some} == {"pos", "neg"}
    right = [some[0]["label"] == label
             for some, (_, label) in zip(ours, reviews(40, seed=9), strict=True)]
    assert sum(right) / 40 > 0.9


def test_a_tuned_one_is_tuned_on_and_the_given_one_stays(base, tmp_path):
    data = table(tmp_path / "a.csv", ("text", "label"), reviews())
    model = mirada.load(base)
    before = {n: p.clone() for n, p in model.named_parameters()}
    once = tune(model, "classify", data, epochs=3, **FAST).model
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert once.architecture == "BertForSequenceClassification"
    again = with_head(once, "ForSequenceClassification", ["neg", "pos"])
    assert again is once
    other = with_head(once, "ForSequenceClassification", ["ham", "spam"])
    assert not torch.equal(other.head.score.weight, once.head.score.weight)
    assert torch.equal(other.head.pool.dense.weight, once.head.pool.dense.weight)
    assert other.body.embed.token.weight is once.body.embed.token.weight


def test_tags(base, tmp_path):
    draw, rows = random.Random(0), []
    for _ in range(160):
        who = draw.sample(NAMES, 2)
        where = draw.choice(THINGS)
        rows.append({"tokens": ["el", where, "es", *who, "y", draw.choice(THINGS)],
                     "tags": ["O", "O", "O", "B-PER", "I-PER", "O", "O"]})
    result = tune(base, "ner", lines(tmp_path / "a.jsonl", rows), tmp_path / "tagger", epochs=8,
                  **FAST)
    assert result.metrics["held_out"]["f1"] > 0.95
    found = mirada.pipeline("ner", str(tmp_path / "tagger"), aggregation_strategy="simple")(
        "el vino es Eva Luis y mar")
    assert [(one["entity_group"], one["word"]) for one in found] == [("PER", "Eva Luis")]
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "tagger")
    assert set(theirs.config.id2label.values()) == {"O", "B-PER", "I-PER"}


def test_each_word_is_learnt_at_its_first_token(base):
    model = mirada.load(base)
    one = Example("Ana xyz Luis", None, ["B-PER", "O", "B-PER"])
    found = model.tokenizer.encode(one.text)
    places = supervised.first_tokens(model.tokenizer, one.text)
    assert [found.offsets[at][0] for at in places] == [0, 4, 8]
    objective = supervised.Tags(model, [one], ["O", "B-PER"])
    labels = objective.batch([objective.sample(0, None)])["labels"][0].tolist()
    assert [labels[at] for at in places] == [1, 0, 1]
    assert sum(label != -100 for label in labels) == 3
    long = Example(" ".join(["Ana"] * 100), None, ["B-PER"] * 100)
    ids, labels = supervised.Tags(model, [long], ["O", "B-PER"]).rows[0]
    assert len(ids) == len(labels) == 64 and ids[-1] == model.tokenizer.sep_id
    assert labels[0] == labels[-1] == -100


def test_answers_in_a_passage(base, tmp_path):
    draw, rows = random.Random(0), []
    for n in range(240):
        who, where = draw.sample(NAMES, 2), draw.choice(THINGS)
        passage = f"{who[0]} vive en el {where} y {who[1]} es {draw.choice(GOOD)} {n}"
        rows.append((f"quien es {passage.split()[-2]}", passage, who[1]))
    data = table(tmp_path / "qa.csv", ("question", "context", "answers"), rows)
    result = tune(base, "qa", data, tmp_path / "reader", epochs=12, **FAST)
    assert result.metrics["held_out"]["f1"] > 0.8
    loaded = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "reader")
    batch = result.model.tokenizer("quien es rico", "Eva vive en el mar y Ana es rico")
    with torch.inference_mode():
        ours, theirs = result.model(**batch), loaded.eval()(**batch)
    assert torch.allclose(ours.start_logits, theirs.start_logits, atol=1e-5)


def test_windows_over_a_long_passage(base):
    tokenizer = mirada.load(base).tokenizer
    passage = " ".join(["el"] * 100 + ["Eva"] + ["mar"] * 50)
    where = passage.index("Eva")
    rows = supervised.windows(tokenizer, Example("quien vive", passage, (where, where + 3)), 64)
    assert all(len(ids) <= 64 for ids, *_ in rows)
    inside = [row for row in rows if row[2]]
    assert inside and len(inside) < len(rows)
    for ids, _, first, last in inside:
        assert tokenizer.decode(ids[first : last + 1]).replace(" ", "") in ("eva", "Eva")
    assert all(row[2:] == (0, 0) for row in supervised.windows(
        tokenizer, Example("quien vive", passage, None), 64))


@pytest.mark.parametrize("task", ["score", "similarity"])
def test_numbers(base, task, tmp_path):
    draw, rows = random.Random(0), []
    for _ in range(240):
        a, b = (draw.choice((GOOD, BAD)) for _ in range(2))
        told = (a is GOOD) + (b is GOOD) if task == "score" else float(a is b)
        rows.append((sentence(draw, a), sentence(draw, b), told))
    data = table(tmp_path / "n.csv", ("text", "text_pair", "label"), rows)
    pair = {"pair": "text_pair"} if task == "score" else {}
    result = tune(base, task, data, tmp_path / "out", epochs=12, **pair, **FAST)
    assert result.metrics["held_out"]["pearson"] > 0.8
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["architectures"] == [{"score": "BertForSequenceClassification",
                                     "similarity": "BertModel"}[task]]
    assert raw.get("problem_type") == {"score": "regression"}.get(task)


def test_correlation_by_hand():
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx({"pearson": 1, "spearman": 1})
    assert correlation([1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 27.0, 64.0]) == pytest.approx(
        {"pearson": 0.9514, "spearman": 1}, abs=1e-4)
    assert correlation([1, 1, 1], [1, 2, 3]) == {"pearson": 0.0, "spearman": 0.0}
    assert correlation([1, 2, 2, 3], [1, 2, 3, 4])["spearman"] == pytest.approx(0.9487, abs=1e-4)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "albert", "electra", "deberta",
                                  "gpt2", "llama", "modernbert", "bart"])
def test_every_family_takes_a_head_that_transformers_reads(name, tmp_path):
    old = mirada.build(f"{name}:tiny", seed=0)
    model = with_head(old, "ForSequenceClassification", ["a", "b", "c"], seed=1)
    assert model.config.labels == 3
    mirada.save(model, tmp_path / "m")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    ids = torch.randint(5, 200, (1, 9))
    ids[:, -1] = 2  # where BART's head reads
    with torch.inference_mode():
        assert torch.allclose(model(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-5)


def test_a_decoder_classifies_by_its_last_token_however_a_batch_is_padded(base, tmp_path):
    train_tokenizer([str(base.parent / "words.txt")], "bpe", 300, tmp_path / "tokenizer")
    model = mirada.build("gpt2:tiny", seed=0, vocab=300, d=32, heads=2, context=64)
    model.tokenizer = Tokenizer.from_folder(tmp_path / "tokenizer")
    assert model.tokenizer.pad_id is None
    data = table(tmp_path / "a.csv", ("text", "label"), reviews(60))
    result = tune(model, "classify", data, tmp_path / "mine", epochs=1, **FAST)
    texts = ["el libro es malo", "el mar es hermoso y el vino tambien es rico"]
    batch = model.tokenizer(texts)
    assert batch["attention_mask"].sum(1).tolist() != [batch["input_ids"].shape[1]] * 2
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "mine")
    with torch.inference_mode():
        ours, theirs = result.model(**batch).logits, loaded.eval()(**batch).logits
        alone = torch.cat([result.model(**model.tokenizer(text)).logits for text in texts])
    assert torch.allclose(ours, theirs, atol=1e-5) and torch.allclose(ours, alone, atol=1e-5)


def test_a_family_without_such_a_head_says_so():
    with pytest.raises(MiradaError, match="has no head ...ForSequenceClassification"):
        with_head(mirada.build("palm:tiny"), "ForSequenceClassification", ["a", "b"])


WRONG = [
    (("text", "stars"), reviews(20), "no column 'label'; it has 'text', 'stars'.*--label"),
    (("text", "label"), [(t, "pos") for t, _ in reviews(20)], "every row has the label 'pos'"),
    (("text", "label"), [(t, "") for t, _ in reviews(20)], "no row with both.*'label' is empty"),
    (("text", "label"), [], "no row with both"),
    (("text", "label"), [*reviews(20), ("uno", "rare")], "only 1 row of the label 'rare'"),
    (("text", "label"), [(t, n) for n, (t, _) in enumerate(reviews(20))],
     "20 different values in 20 rows"),
    (("text", "label"), [*reviews(20), ("a", "b", "c")], "row 21: has 3 cells"),
]


@pytest.mark.parametrize("header,rows,says", WRONG)
def test_files_that_cannot_be_learnt(base, header, rows, says, tmp_path, capsys):
    data = table(tmp_path / "a.csv", header, rows)
    out = tmp_path / "out"
    assert main(["tune", str(base), "--task", "classify", "--data", str(data), "-o", str(out)]) == 2
    told = capsys.readouterr().err
    assert re.search(says, told), told
    assert told.count("\n") == 1 and not out.exists() and not (tmp_path / "out.run").exists()


@pytest.mark.parametrize("code,says", [("latin-1", "row 2: 'text' is no UTF-8.*iconv"),
                                       ("utf-16", "UTF-16")])
def test_other_encodings(code, says, tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\nbien,pos\nestá mal,neg\n".encode(code))
    with pytest.raises(MiradaError, match=says):
        examples.read(tmp_path / "a.csv", "classify")


def test_options_that_cannot_be(tmp_path):
    for given, says in (({"batch": 0}, "from 1"), ({"epochs": 0}, "from 1"),
                        ({"train": "tail"}, "one of all, lora, head")):
        with pytest.raises(MiradaError, match=says):
            tune("nowhere", "classify", tmp_path / "a.csv", **given)
    with pytest.raises(MiradaError, match="no task is called 'sing'"):
        tune("nowhere", "sing", tmp_path / "a.csv")
    with pytest.raises(MiradaError, match="no such file"):
        tune("nowhere", "classify", tmp_path / "a.csv")


def test_what_else_can_be_wrong_in_a_row(tmp_path):
    for task, row, says in (
            ("ner", {"tokens": ["a", "b"], "tags": ["O"]}, "2 words .* and 1 tags"),
            ("ner", {"tokens": ["a b"], "tags": ["O"]}, "has a space"),
            ("ner", {"tokens": 5, "tags": ["O"]}, "must be a list"),
            ("score", {"text": "a", "label": "good"}, "learns numbers.*classify"),
            ("score", {"text": "a", "label": "nan"}, "finite"),
            ("similarity", {"text": "a", "text_pair": "b", "label": 5}, "from -1"),
            ("classify", {"text": 7, "label": "x"}, "no text"),
            ("classify", {"body": "x", "label": "x"}, "has no 'text'; it has 'body', 'label'")):
        with pytest.raises(MiradaError, match=f"row 1.*{says}"):
            examples.read(lines(tmp_path / "a.jsonl", [row]), task)


def test_rows_that_are_left_out_are_said(tmp_path):
    rows = [*reviews(60), ("", "pos"), ("algo", ""), (reviews(1)[0][0].upper(), reviews(1)[0][1]),
            (reviews(2)[1][0] + " ", "pos" if reviews(2)[1][1] == "neg" else "neg")]
    found = examples.read(table(tmp_path / "a.csv", ("text", "label"), rows), "classify")
    assert len(found.rows) == 60 and found.labels == ["neg", "pos"]
    assert found.notes[:4] == [
        "1 left out, 'text' is empty: row 61", "1 left out, 'label' is empty: row 62",
        "1 left out, a copy of an earlier one: row 63",
        "1 left out, the text of an earlier one with another label: row 64"]
    passage = {"question": "quien", "context": "vive Eva", "answers": "Ana"}
    data = lines(tmp_path / "q.jsonl", [passage, passage | {"answers": {
        "text": ["Eva"], "answer_start": [5]}}, passage | {"context": "nadie", "answers": []}])
    found = examples.read(data, "qa")
    assert [one.label for one in found.rows] == [(5, 8), None]
    assert "does not stand in the passage" in found.notes[0]


def test_a_text_goes_to_the_same_side_whatever_else_there_is(tmp_path):
    every = [Example(text, None, label) for text, label in reviews(400)]
    train, held = examples.held_out(every)
    assert len(train) + len(held) == 400 and 40 < len(held) < 130
    some, less = examples.held_out(every[100:300])
    assert {one.text for one in less} == {one.text for one in held} & {
        one.text for one in every[100:300]}
    assert examples.held_out(every[:2])[1]


def test_rows_of_the_test_file_are_not_trained_on(base, tmp_path):
    rows = reviews(220)
    data = table(tmp_path / "a.csv", ("text", "label"), rows[:200])
    test = table(tmp_path / "t.csv", ("text", "label"), rows[190:])
    result = tune(base, "classify", data, test=test, epochs=1, **FAST)
    assert result.rows["train"] + result.rows["held_out"] == 190 and result.rows["test"] == 30
    assert any("10 training rows have a text of" in note for note in result.notes)
    assert set(result.metrics) == {"held_out", "test"}
    other = table(tmp_path / "o.csv", ("text", "label"), [("uno", "meh")])
    with pytest.raises(MiradaError, match="no row to train on has the label 'meh'"):
        tune(base, "classify", data, test=other)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_an_interrupted_run_goes_on_to_the_same_model(base, tmp_path, monkeypatch):
    data = table(tmp_path / "a.csv", ("text", "label"), reviews())
    whole = tune(base, "classify", data, tmp_path / "whole", epochs=9, **FAST)
    plain = tuning.Keeper.__call__

    def killed(self, line):
        answer = plain(self, line)
        if line["step"] == 25:
            raise WorkFailed("killed")
        return answer

    monkeypatch.setattr(tuning.loop, "Plan", lambda **given: plan(**{**given, "save": 4}))
    monkeypatch.setattr(tuning.Keeper, "__call__", killed)
    with pytest.raises(WorkFailed):
        tune(base, "classify", data, tmp_path / "mine", epochs=9, **FAST)
    assert (tmp_path / "mine.run").exists() and not (tmp_path / "mine").exists()
    monkeypatch.setattr(tuning.Keeper, "__call__", plain)
    with pytest.raises(MiradaError, match="holds an interrupted run"):
        tune(base, "classify", data, tmp_path / "mine", epochs=9, rate=1e-3)
    again = tune(base, "classify", data, tmp_path / "mine", epochs=9, **FAST)
    assert not (tmp_path / "mine.run").exists()
    assert (again.epochs, again.best) == (whole.epochs, whole.best)
    assert all(map(torch.equal, weights(whole.model), weights(again.model)))
    with pytest.raises(MiradaError, match="is there already"):
        tune(base, "classify", data, tmp_path / "mine")


plan = tuning.loop.Plan


def test_it_ends_when_it_gets_no_better_and_keeps_the_best(base, tmp_path):
    draw = random.Random(0)
    noise = [(text, draw.choice(("pos", "neg"))) for text, _ in reviews(120)]
    data = table(tmp_path / "a.csv", ("text", "label"), noise)
    result = tune(base, "classify", data, epochs=20, rate=5e-3)
    assert result.epochs < 20 and result.epochs - result.best >= tuning.PATIENCE
    _, held = examples.held_out(examples.read(data, "classify").rows)
    objective = supervised.Classes(result.model, held, ["neg", "pos"])
    assert supervised.mean_loss(result.model, objective) < 1  # the last know it by heart: about 2


@pytest.mark.parametrize("train", ["lora", "head"])
def test_adapters_or_the_head_alone(base, train, tmp_path):
    data = table(tmp_path / "a.csv", ("text", "label"), reviews())
    result = tune(base, "classify", data, tmp_path / "mine", train=train, epochs=10, rate=1e-2)
    before, after = mirada.load(base).body.state_dict(), result.model.body.state_dict()
    moved = {name for name, p in after.items() if not torch.equal(p, before[name])}
    assert all(re.search(r"\.(q|v)\.weight$", name) for name in moved)
    assert len(moved) == {"lora": 4, "head": 0}[train]
    if train == "lora":
        assert result.metrics["held_out"]["accuracy"] > 0.9
    fresh = with_head(mirada.load(base), "ForSequenceClassification", ["neg", "pos"])
    assert not torch.equal(result.model.head.score.weight, fresh.head.score.weight)
    theirs = transformers.pipeline("text-classification", str(tmp_path / "mine"))
    one = mirada.pipeline("text-classification", result.model)("el mar es rico")[0]
    assert theirs("el mar es rico")[0]["score"] == pytest.approx(one["score"], abs=1e-5)


def test_quantized_weights_take_adapters_only(base, tmp_path):
    data = table(tmp_path / "a.csv", ("text", "label"), reviews(40))
    small = mirada.edit.quantize(mirada.load(base), "int8")
    with pytest.raises(MiradaError, match='train="lora"'):
        tune(small, "classify", data, epochs=1)
    assert tune(small, "classify", data, train="lora", epochs=1).metrics["held_out"]
    with pytest.raises(MiradaError, match="similarity has no head of its own"):
        tune(base, "similarity", table(tmp_path / "s.csv", ("text", "text_pair", "label"), [
            (a, b, n / 40) for n, ((a, _), (b, _)) in enumerate(zip(
                reviews(40), reviews(40, 1), strict=True))]), train="head", epochs=1)


def test_answers_to_prompts(tmp_path):
    model = mirada.build("gpt2:tiny", seed=1, vocab=261, context=64)
    model.tokenizer = words.tokenizer()
    rows = [(f"say {a}{b}", f"{b}{a}") for a in "abcdef" for b in "uvwxyz"]
    data = table(tmp_path / "a.csv", ("prompt", "answer"), rows)
    result = tune(model, "chat", data, tmp_path / "mine", epochs=10, rate=3e-3)
    assert result.metrics["held_out"]["perplexity"] < 60 < 261  # of a model that knows nothing
    assert mirada.load(tmp_path / "mine").architecture == model.architecture
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    found = examples.read(lines(tmp_path / "b.jsonl", [{"messages": talk}]), "chat")
    assert found.rows == [Example("hi", None, talk)]
    for said, says in (([talk[0]], "nothing to learn"), ("hi", "list of objects")):
        with pytest.raises(MiradaError, match=says):
            examples.read(lines(tmp_path / "b.jsonl", [{"messages": said}]), "chat")
    with pytest.raises(MiradaError, match="does not write a text on"):
        tune(mirada.build("bert:tiny"), "chat", data)


def test_parts_of_speech_have_no_spans(base, tmp_path):
    kind = dict.fromkeys(THINGS, "noun") | dict.fromkeys((*GOOD, *BAD), "adjective") | {"el": "det"}
    draw = random.Random(0)
    texts = [["el", draw.choice(THINGS), draw.choice(GOOD + BAD), draw.choice(THINGS)]
             for _ in range(150)]
    data = lines(tmp_path / "a.jsonl", [{"tokens": text, "tags": [kind[word] for word in text]}
                                        for text in texts])
    other = lines(tmp_path / "t.jsonl", [{"tokens": ["el", "mar"], "tags": ["det", "strange"]}])
    found = tune(base, "ner", data, test=other, epochs=6, **FAST).metrics
    assert found["held_out"].keys() == {"accuracy"} and found["held_out"]["accuracy"] > 0.95
    assert found["test"]["accuracy"] == 0.5


def test_dropout_is_on_in_training_only_and_the_model_given_stays():
    model = mirada.build("bert:tiny", seed=0)
    dropped = mirada.edit.dropout(model, 0.5)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        same = model(input_ids=ids).logits
        assert torch.equal(dropped(input_ids=ids).logits, same)
        assert not torch.equal(dropped.train()(input_ids=ids).logits, same)
        assert torch.equal(model.train()(input_ids=ids).logits, same)
        assert torch.equal(mirada.edit.dropout(dropped, 0)(input_ids=ids).logits, same)
    assert dropped.body.embed.token.weight is model.body.embed.token.weight
    with pytest.raises(MiradaError, match="from 0 to below 1"):
        mirada.edit.dropout(model, 1.0)


def test_a_rate_that_explodes_leaves_nothing_in_the_way(base, tmp_path, capsys):
    data = table(tmp_path / "a.csv", ("text", "label"), reviews(60))
    words = ["tune", str(base), "--task", "classify", "--data", str(data), "--epochs", "2",
             "-o", str(tmp_path / "mine")]
    assert main([*words, "--rate", "1e12"]) == 1
    assert "lower the learning rate" in capsys.readouterr().err
    side = tmp_path / "mine.run"
    other = Folder(side)
    assert main([*words, "--rate", "2e-3"]) == 2
    other.close()
    assert "another process trains in this folder" in capsys.readouterr().err
    assert main([*words, "--rate", "2e-3", "--parts", "2", "--dtype", "float64"]) == 0
    assert mirada.load(tmp_path / "mine").dtype == torch.float64 and not side.exists()


def test_semicolons_between_columns_are_seen(base, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("text;label\n" + "".join(f"{t};{n}\n" for t, n in reviews(60)))
    words = ["tune", str(base), "--task", "classify", "--data", str(tmp_path / "a.csv"),
             "-o", str(tmp_path / "mine"), "--epochs", "1"]
    assert main(words) == 2
    assert capsys.readouterr().err.rstrip().endswith("set the delimiter (--delimiter)")
    assert main([*words, "--delimiter", ";"]) == 0
