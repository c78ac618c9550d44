"""Models of several languages or tasks, told which by a token or by a prefix."""

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, pre_tokenizers, processors

import mirada
from mirada.errors import MiradaError
from tasks import tiny

TEXT = "the cat sat"
PIECES = [("▁", -2.0), ("▁the", -1.0), ("▁c", -1.5), ("at", -1.2), ("▁s", -1.5),
          *((letter, -3.0) for letter in "abcdehilmnorstuv")]
ROLES = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
SMALL = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
             decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
             max_position_embeddings=40, forced_eos_token_id=None, decoder_start_token_id=2)


def mbart():
    languages = [(code, 0.0) for code in ("en_XX", "de_DE", "es_XX")]
    return transformers.MBartTokenizer(vocab=[
        *((token, 0.0) for token in ROLES.values()), *PIECES, *languages, ("<mask>", 0.0)])


def mbart50():
    return transformers.MBart50Tokenizer(vocab=[
        *((token, 0.0) for token in ("<unk>", "<s>", "</s>")), *PIECES])


def nllb():
    vocab = [*ROLES.values(), *(piece for piece, _ in PIECES)]
    return transformers.NllbTokenizer(vocab={token: i for i, token in enumerate(vocab)}, merges=[])


class M2M(transformers.PreTrainedTokenizerFast):
    """The reference's own needs a library that is not here; the form of its ids is this one."""

    @property
    def src_lang(self):
        return self._src

    @src_lang.setter
    def src_lang(self, language):
        self._src, token = language, f"__{language}__"
        self._tokenizer.post_processor = processors.TemplateProcessing(
            f"{token} $A </s>", special_tokens=[
                (t, self.convert_tokens_to_ids(t)) for t in (token, "</s>")])


def m2m():
    library = tokenizers.Tokenizer(tokenizers.models.Unigram(
        [*((token, 0.0) for token in ROLES.values()), *PIECES], unk_id=3))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    made = M2M(tokenizer_object=library, **ROLES,
               additional_special_tokens=["__en__", "__de__", "__es__"])
    made.src_lang = "en"
    return made


CODES = {"en": ("en_XX", "eng_Latn"), "de": ("de_DE", "deu_Latn"), "es": ("es_XX", "spa_Latn")}
KINDS = {"mbart": (mbart, "MBart", 0), "mbart-50": (mbart50, "MBart", 0),
         "nllb": (nllb, "M2M100", 1), "m2m-100": (m2m, "M2M100", None)}


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """(the reference's tokenizer and model, ours, language -> its name there)."""
    maker, family, which = KINDS[request.param]
    tokenizer = maker()
    config = getattr(transformers, family + "Config")(vocab_size=len(tokenizer), **SMALL)
    torch.manual_seed(6)
    model = getattr(transformers, family + "ForConditionalGeneration")(config)
    folder = tiny.saved(tmp_path_factory.mktemp("languages") / request.param, model, tokenizer)

    def name(language: str) -> str:
        return language if which is None else CODES[language][which]

    return tokenizer, model, mirada.load(folder), name


@pytest.mark.parametrize("source, target", [("en", "de"), ("es", "en"), ("de", "es")])
@pytest.mark.parametrize("beams", [1, 3])
def test_each_pair_of_languages(both, source, target, beams):
    tokenizer, theirs, ours, name = both
    tokenizer.src_lang = name(source)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    mark = name(target) if name(target) in tokenizer.get_vocab() else f"__{target}__"
    with torch.no_grad():
        wanted = theirs.generate(
            ids, forced_bos_token_id=tokenizer.convert_tokens_to_ids(mark), num_beams=beams,
            max_new_tokens=9, do_sample=False)
    read: list = []
    hook = ours.body.encoder.embed.register_forward_pre_hook(
        lambda module, given: read.append(given[0].input_ids))
    pipe = mirada.pipeline(f"translation_{source}_to_{target}", ours, num_beams=beams,
                           max_new_tokens=9, src_lang=name(source), tgt_lang=name(target))
    found = pipe(TEXT, return_tensors=True)[0]["translation_token_ids"]
    hook.remove()
    assert read[0].tolist() == ids.tolist()
    assert found == wanted[0].tolist()
    assert pipe(TEXT) == [{"translation_text": tokenizer.decode(
        wanted[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)}]


def test_the_target_matters(both):
    _, _, ours, name = both
    pipe = mirada.pipeline("translation", ours, max_new_tokens=9, src_lang=name("en"),
                           return_tensors=True)
    ids = [pipe(TEXT, tgt_lang=name(to))[0]["translation_token_ids"][1] for to in ("de", "es")]
    assert ids[0] != ids[1]


def test_a_language_that_the_model_does_not_know(both):
    _, _, ours, name = both
    with pytest.raises(MiradaError, match=f"they name .*{name('de')}"):
        mirada.pipeline("translation", ours, src_lang=name("en"), tgt_lang="xx_XX")(TEXT)


# T5 is told its task by words

T5_TASKS = {  # of the published files
    "summarization": {"early_stopping": True, "length_penalty": 2.0, "max_length": 12,
                      "min_length": 4, "no_repeat_ngram_size": 3, "num_beams": 4,
                      "prefix": "summarize: "},
    **{f"translation_en_to_{code}": {
        "early_stopping": True, "max_length": 10, "num_beams": 4,
        "prefix": f"translate English to {name}: "}
        for code, name in (("de", "German"), ("fr", "French"), ("ro", "Romanian"))}}
GENERATIONS = {"v1.0": {}, "v1.1": {"feed_forward_proj": "gated-gelu",
                                    "tie_word_embeddings": False}}


@pytest.fixture(scope="module", params=GENERATIONS)
def t5(request, tmp_path_factory):
    folder = tiny.t5(tmp_path_factory.mktemp("prefixes") / request.param,
                     task_specific_params=T5_TASKS, **GENERATIONS[request.param])
    return (transformers.T5ForConditionalGeneration.from_pretrained(folder).eval(),
            transformers.AutoTokenizer.from_pretrained(folder), mirada.load(folder))


@pytest.mark.scope("1.7.1")
@pytest.mark.parametrize("task, key, prefix, options", [
    *((name, "translation_text", params["prefix"], {}) for name, params in T5_TASKS.items()
      if "translation" in name),
    ("summarization", "summary_text", "summarize: ", {}),
    ("text2text-generation", "generated_text", "sst2 sentence: ",
     {"num_beams": 1, "max_new_tokens": 4})])
def test_t5_is_told_its_task_by_a_prefix(t5, task, key, prefix, options):
    """Both generations, with the published options: the reference's answer to the prefixed text,
    which is not its answer to the bare text."""
    theirs, tokenizer, ours = t5
    told = T5_TASKS.get(task, {}) | options
    told = {name: value for name, value in told.items() if name != "prefix"}

    def answered(text: str) -> str:
        with torch.no_grad():
            ids = theirs.generate(tokenizer(text, return_tensors="pt")["input_ids"], **told)
        return tokenizer.decode(ids[0], skip_special_tokens=True)

    given = {} if task in T5_TASKS else {"prefix": prefix, **options}
    found = mirada.pipeline(task, ours, **given)(TEXT)
    assert found == [{key: answered(prefix + TEXT)}]
    batch = {"input_ids": torch.tensor([ours.tokenizer.encode(prefix + TEXT).ids]),
             "decoder_input_ids": torch.tensor([[0, 5, 6]])}
    with torch.no_grad():
        assert (ours(**batch).logits - theirs(**batch).logits).abs().max() < 1e-4
    bare = batch | {"input_ids": torch.tensor([ours.tokenizer.encode(TEXT).ids])}
    assert (ours(**batch).logits - ours(**bare).logits).abs().max() > 1e-2
