"""Translations, summaries, text to text: the reference dropped them, so its generate is called and
the rest is written out here. And what a prompt's length does."""

import pytest
import torch
import transformers

import mirada
from mirada.errors import MiradaError
from tasks import tiny

TEXTS = ["the cat sat on a mat", "attention is all you need", "hello world's model"]
PARAMS = {
    "summarization": {"prefix": "summarize: ", "num_beams": 3, "max_length": 12, "min_length": 5,
                      "length_penalty": 2.0, "no_repeat_ngram_size": 2, "early_stopping": True},
    "translation_en_to_de": {"prefix": "translate English to German: ", "num_beams": 2,
                             "max_length": 10, "early_stopping": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.t5(tmp_path_factory.mktemp("write") / "t5", task_specific_params=PARAMS)


def generated(folder: str, text: str, **options) -> list[str]:
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, **options)
    return tokenizer.batch_decode(out, skip_special_tokens=True)


@pytest.mark.parametrize(("task", "key", "params"), [
    ("summarization", "summary_text", "summarization"),
    ("translation_en_to_de", "translation_text", "translation_en_to_de"),
    ("text2text-generation", "generated_text", None), ("translation", "translation_text", None)])
def test_as_generate_and_the_files_have_it(folder, task, key, params):
    pipe = mirada.pipeline(task, folder)
    own = dict(PARAMS.get(params, {"num_beams": 4, "max_new_tokens": 256}))
    if params is None:  # else a tiny model writes 256 tokens
        own["max_new_tokens"] = 8
    told = {} if params else {"max_new_tokens": 8}
    prefix = own.pop("prefix", "")
    wanted = [{key: generated(folder, prefix + text, **own)[0]} for text in TEXTS]
    assert any(one[key] for one in wanted)
    assert pipe(TEXTS, **told) == wanted
    assert pipe(TEXTS[0], **told) == wanted[:1]


def test_the_caller_has_the_last_word(folder):
    pipe = mirada.pipeline("summarization", folder)
    own = {k: v for k, v in PARAMS["summarization"].items() if k not in ("prefix", "max_length")}
    own |= {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "max_new_tokens": 7}
    wanted = generated(folder, "summarize: " + TEXTS[0], **own)
    assert pipe(TEXTS[0], num_beams=1, length_penalty=1.0, early_stopping=False,
                max_new_tokens=7) == [{"summary_text": wanted[0]}]


def test_several_answers_and_tensors(folder):
    pipe = mirada.pipeline("text2text-generation", folder)
    told = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    wanted = generated(folder, TEXTS[0], **told)
    assert pipe(TEXTS[0], **told) == [{"generated_text": text} for text in wanted]
    assert [len(one) for one in pipe(TEXTS, **told)] == [2, 2, 2]
    ids = pipe(TEXTS[0], return_tensors=True, **told)[0]["generated_token_ids"]
    assert pipe.tokenizer.decode(ids) == wanted[0]


def test_languages_by_name(folder):
    pipe = mirada.pipeline("translation", folder)
    by_task = mirada.pipeline("translation_en_to_de", folder)(TEXTS[0])
    assert pipe(TEXTS[0], src_lang="en", tgt_lang="de") == by_task
    assert pipe(TEXTS[0], max_new_tokens=8) != by_task
    with pytest.raises(MiradaError, match="from en to nl.*translation_en_to_de"):
        pipe(TEXTS[0], src_lang="en", tgt_lang="nl")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return mirada.load(tiny.gpt2(tmp_path_factory.mktemp("write") / "gpt2"))


def test_a_prompt_too_long_is_refused_or_cut_with_a_warning(gpt2):
    pipe = mirada.pipeline("text-generation", gpt2, max_new_tokens=8, do_sample=False)
    long = "the cat sat on a mat " * 20
    with pytest.raises(MiradaError, match="context is 64"):
        pipe(long)
    ids = pipe.tokenizer.encode(long).ids
    with pytest.warns(UserWarning, match="oldest"):
        kept = pipe(long, truncation=True, return_tensors=True)[0]["generated_token_ids"]
    assert len(kept) == 64 and kept[:56] == ids[-56:]


def test_max_length_counts_each_prompt(gpt2):
    pipe = mirada.pipeline("text-generation", gpt2, do_sample=False, return_tensors=True)
    for one in pipe(TEXTS, max_length=20, eos_token_id=()):
        assert len(one[0]["generated_token_ids"]) == 20


def test_it_samples_unless_told(gpt2):
    pipe = mirada.pipeline("text-generation", gpt2, max_new_tokens=12)
    assert pipe("the", seed=1) == pipe("the", seed=1) != pipe("the", seed=2)
    assert pipe("the", seed=1) == pipe("the", seed=1, do_sample=True, temperature=0.7)
    greedy = pipe("the", do_sample=False)
    assert greedy == pipe("the", do_sample=False) and greedy == pipe("the", temperature=0)


def test_a_stop_is_part_of_the_answer(gpt2):
    pipe = mirada.pipeline("text-generation", gpt2, max_new_tokens=12, do_sample=False,
                           return_full_text=False)
    whole = pipe("the cat")[0]["generated_text"]
    stop = whole[3:5]
    cut = pipe("the cat", stop_sequence=stop)[0]["generated_text"]
    assert stop in cut and len(cut) < len(whole) and whole.startswith(cut)
