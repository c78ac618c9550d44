"""Old programs, run by the reference and by mirada on the same files: the results are the same."""

import pytest
import transformers

import mirada
from tasks import tiny

TEXTS = ["the cat sat on a mat", "attention is all you need and language was there in every model",
         "Köln año 2024", "hello world's model is every mat"]
LABELS = {0: "NEGATIVE", 1: "NEUTRAL", 2: "POSITIVE"}
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """both(task, maker, **options) -> the reference's pipeline and ours, on the same folder."""
    made: dict = {}

    def pair(task: str, name: str, maker, **options):
        if name not in made:
            made[name] = maker(tmp_path_factory.mktemp("live") / name)
        return (transformers.pipeline(task, model=made[name], **options),
                mirada.pipeline(task, model=made[name], **options))

    return pair


def agree(pair, *given, **options) -> None:
    theirs, ours = pair
    tiny.near(ours(*given, **options), theirs(*given, **options))


def classifier(folder):
    return tiny.bert(folder, "ForSequenceClassification", id2label=LABELS,
                     label2id={v: k for k, v in LABELS.items()})


def tagger(folder):
    return tiny.bert(folder, "ForTokenClassification", id2label=TAGS,
                     label2id={v: k for k, v in TAGS.items()})


def entailer(folder):
    return tiny.bert(folder, "ForSequenceClassification", id2label=NLI,
                     label2id={v: k for k, v in NLI.items()})


@pytest.mark.parametrize("options", [
    {}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}, {"function_to_apply": "sigmoid"},
    {"function_to_apply": "none", "top_k": None}])
@pytest.mark.parametrize("name", ["text-classification", "sentiment-analysis"])
def test_text_classification(both, name, options):
    agree(both(name, "classifier", classifier), TEXTS[0], **options)
    agree(both(name, "classifier", classifier), TEXTS, **options)


def test_text_classification_by_options_of_the_pipeline(both):
    pair = both("text-classification", "classifier", classifier, top_k=None)
    agree(pair, TEXTS[0])
    agree(pair, TEXTS)


def test_text_classification_of_pairs(both):
    pair = both("text-classification", "classifier", classifier)
    agree(pair, {"text": TEXTS[0], "text_pair": TEXTS[1]})
    agree(pair, [{"text": TEXTS[0], "text_pair": TEXTS[1]}, {"text": TEXTS[2]}])


@pytest.mark.parametrize(("kind", "count"), [
    ("regression", 1), ("multi_label_classification", 3), (None, 1)])
def test_text_classification_by_problem_type(both, kind, count):
    def maker(folder):
        return tiny.bert(folder, "ForSequenceClassification", problem_type=kind, num_labels=count)

    agree(both("text-classification", f"{kind}{count}", maker), TEXTS, top_k=None)


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support")
def test_token_classification(both, strategy):
    for name in ("token-classification", "ner"):
        pair = both(name, "tagger", tagger, aggregation_strategy=strategy)
        agree(pair, TEXTS[1])
        agree(pair, TEXTS)
        agree(pair, TEXTS, ignore_labels=[])
    found = pair[1](TEXTS[1], ignore_labels=[])
    assert len(found) > 1 and "".join(TEXTS[1][f["start"] : f["end"]] for f in found)


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support")
def test_token_classification_of_bytes(both, strategy):
    """Here a space, and not a mark, says where a word begins."""
    def maker(folder):
        return tiny.bert(folder, "ForTokenClassification", tokenizer=tiny.byte_level(),
                         id2label=TAGS, label2id={v: k for k, v in TAGS.items()})

    agree(both("ner", "bytes", maker, aggregation_strategy=strategy), TEXTS, ignore_labels=[])


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_token_classification_with_stride(both, strategy):
    text = " ".join([*TEXTS, *TEXTS, *TEXTS])

    def short(folder):
        return tiny.bert(folder, "ForTokenClassification", length=16, id2label=TAGS,
                         label2id={v: k for k, v in TAGS.items()})

    pair = both("ner", "short", short, aggregation_strategy=strategy, stride=4)
    agree(pair, text)
    assert len(pair[0].tokenizer(text)["input_ids"]) > 3 * 16


@pytest.mark.parametrize("options", [
    {}, {"multi_label": True}, {"hypothesis_template": "about {}"}])
@pytest.mark.parametrize("labels", [["cat", "language", "every mat"], "cat, language", "model"])
def test_zero_shot(both, labels, options):
    pair = both("zero-shot-classification", "entailer", entailer)
    agree(pair, TEXTS[0], candidate_labels=labels, **options)
    agree(pair, TEXTS[:2], labels, **options)


def test_fill_mask(both):
    pair = both("fill-mask", "masked", lambda folder: tiny.bert(folder, "ForMaskedLM"))
    agree(pair, "the [MASK] sat on a mat")
    agree(pair, ["the [MASK] sat on a mat"])
    agree(pair, ["the [MASK] sat on a mat", "[MASK] is all"], top_k=3)
    agree(pair, "the [MASK] sat [MASK] a mat", top_k=2)
    agree(pair, "the [MASK] sat", targets=["cat", "the", "is"])
    agree(pair, "the [MASK] sat", targets="cat")
    with pytest.warns(UserWarning, match="not in the vocabulary"):
        agree(pair, "the [MASK] sat", targets=["catmat"])


def test_feature_extraction(both):
    pair = both("feature-extraction", "masked", lambda folder: tiny.bert(folder, "ForMaskedLM"))
    agree(pair, TEXTS[0])
    agree(pair, TEXTS)


@pytest.mark.parametrize("options", [
    {}, {"return_full_text": False}, {"num_beams": 2, "num_return_sequences": 2},
    {"repetition_penalty": 1.4}, {"return_tensors": True}])
def test_text_generation(both, options):
    pair = both("text-generation", "gpt2", tiny.gpt2)
    told = {"do_sample": False, "max_new_tokens": 8, **options}
    agree(pair, "the cat", **told)
    agree(pair, ["the cat", "attention is all you need"], **told)


def test_text_generation_of_chats(both):
    pair = both("text-generation", "gpt2", tiny.gpt2)
    ask = [{"role": "user", "content": "the cat"}]
    for chat in (ask, [*ask, {"role": "assistant", "content": "sat on"}], [ask, ask[:1] * 2]):
        for full in (True, False):
            agree(pair, chat, do_sample=False, max_new_tokens=6, return_full_text=full)
