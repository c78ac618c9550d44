"""SentencePiece models as descriptions, with the ids and the frame that each family gives them."""

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path

from mirada.errors import UntrustedInputError
from mirada.text import guard, spm
from mirada.text.spec import (
    BERT_TEMPLATE,
    LIMIT,
    Settings,
    add,
    around,
    assemble,
    content,
    replace,
    sequence,
    special,
    split,
    template,
)
from mirada.weights import jsonfile

FAIRSEQ = {
    "bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>",
    "mask": "<mask>",
}
BERT = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
# The languages of mBART (arXiv 2001.08210), then those that mBART-50 added (2008.00401).
LANGUAGES = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT "
    "lv_LV my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
).split()
LANGUAGES_50 = LANGUAGES + (
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF "
    "pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
).split()


@dataclass(frozen=True)
class Family:
    """How a family uses its SentencePiece model.

    front, skip, after: the tokens before the model's pieces, how many of these they replace, and
    the tokens after them. tokens: roles. forms: the template of one text and of two; {lang}: the
    config's src_lang. begins, ends: a bos before, an eos after, where the config does not say.
    metaspace: the reference decodes by words.
    """

    tokens: dict[str, str] = field(default_factory=dict)
    front: tuple[str, ...] = ()
    skip: int = 0
    after: tuple[str, ...] = ()
    forms: tuple[str, str] | None = None
    begins: bool = False
    metaspace: bool = True


ROBERTA = ("<s>:0 $A:0 </s>:0", "<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0")
ONE_END = ("$A:0 {eos}:0", "$A:0 $B:0 {eos}:0")
FIRST = ("<s>", "<pad>", "</s>", "<unk>")
FAMILIES = {
    "": Family(metaspace=False),
    "llama": Family({"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, begins=True, metaspace=False),
    "t5": Family({"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
                 forms=("$A:0 {eos}:0", "$A:0 {eos}:0 $B:0 {eos}:0")),
    "deberta": Family({**BERT, "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]", "pad": "[PAD]"},
                      forms=BERT_TEMPLATE),
    "albert": Family({**BERT, "bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "pad": "<pad>"},
                     forms=BERT_TEMPLATE),
    "bigbird": Family({**FAIRSEQ, **BERT}, forms=BERT_TEMPLATE),
    "xlm-roberta": Family(FAIRSEQ, FIRST, 3, ("<mask>",), ROBERTA),
    "camembert": Family(
        FAIRSEQ, ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"), 1, ("<mask>",),
        ROBERTA),
    "mbart": Family(FAIRSEQ, FIRST, 3, (*LANGUAGES, "<mask>"),
                    ("$A:0 </s>:0 {lang}:0", "$A:0 $B:0 </s>:0 {lang}:0")),
    "mbart50": Family(FAIRSEQ, FIRST, 3, (*LANGUAGES_50, "<mask>"),
                      ("{lang}:0 $A:0 </s>:0", "{lang}:0 $A:0 $B:0 </s>:0")),
    "pegasus": Family({"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"},
                      ("<pad>", "</s>", "<mask_1>", "<mask_2>",
                       *(f"<unk_{n}>" for n in range(2, 103))), 2, (), ONE_END),
}
NAMES = {  # of a tokenizer's class or a model's type, where it is not the family's own
    "mt5": "t5", "umt5": "t5", "mistral": "llama", "gemma": "llama", "codellama": "llama",
    "debertav2": "deberta", "deberta-v2": "deberta", "xlmroberta": "xlm-roberta",
    "big_bird": "bigbird",
}


def read(path: Path) -> spm.Model:
    """The model in a file, if it is of a kind that is known here. Raises UntrustedInputError."""
    model = spm.parse(content(path), path)
    if model.kind not in (spm.UNIGRAM, spm.BPE) or model.suffix_space or not model.escape:
        raise UntrustedInputError(
            path, "trainer_spec", "only unigram and BPE models that mark spaces in front are known"
        )
    if any(kind == spm.UNUSED for _, _, kind in model.pieces):
        raise UntrustedInputError(path, "pieces", "unused pieces are not known")
    return model


def describe(path: Path, config: dict, settings: Settings, name: str) -> dict:
    """The description of the model in `path` as the family `name` uses it."""
    model, family = read(path), FAMILIES[name]
    found = {"bos": model.bos_id, "eos": model.eos_id, "unk": model.unk_id, "pad": model.pad_id}
    for role, number in found.items():
        if number >= len(model.pieces):
            raise UntrustedInputError(path, f"{role}_id", f"must be below {len(model.pieces):,}")
        if number >= 0 and not family.front:
            settings.tokens.setdefault(role, model.pieces[number][0])
    if family.front:
        _arrange(model, family, path)
    present = {text for text, _, _ in model.pieces}
    roles = {r: t for r, t in family.tokens.items() if t in present}
    settings.tokens = roles | settings.tokens
    if name == "deberta":
        settings.tokens = family.tokens | settings.tokens  # [MASK] may stand in added_tokens.json
    if name == "albert":
        model.pieces = [
            (text, score - 100 * bool(re.search(r"\d,$", text)), kind)  # "9," is not used whole
            for text, score, kind in model.pieces
        ]
    first = name == "llama" and config.get("legacy") is False and model.dummy_prefix
    spec = pieces(model, path, first=first, metaspace=family.metaspace)
    if name == "t5":
        _sentinels(spec, config, path)
    steps = [*_cleaning(name, config, path), *_steps(spec["normalizer"])]
    spec["normalizer"] = sequence("normalizers", steps)
    add(spec, settings)
    bos = settings.tokens.get("bos") if config.get("add_bos_token", family.begins) else None
    eos = settings.tokens.get("eos") if config.get("add_eos_token", False) else None
    spec["post_processor"] = around(spec, bos, eos)
    if family.forms and config.get("add_eos_token", True):
        lang = config.get("src_lang") or "en_XX"
        if not isinstance(lang, str) or "{lang}" in family.forms[0] and lang not in family.after:
            raise UntrustedInputError(path, "src_lang", f"{lang!r} is no language of this model")
        spec["post_processor"] = template(spec, *family.forms, lang=lang, **settings.tokens)
    return spec


def _arrange(model: spm.Model, family: Family, path) -> None:
    """Give the pieces the family's ids."""
    front = [(text, 0.0, spm.CONTROL) for text in family.front]
    after = [(text, 0.0, spm.CONTROL) for text in family.after]
    model.pieces = [*front, *model.pieces[family.skip:], *after]
    unk = [i for i, (text, _, _) in enumerate(model.pieces) if text == "<unk>"]
    if not unk:
        raise UntrustedInputError(path, "pieces", "have no <unk>")
    model.unk_id = unk[0]


def _cleaning(name: str, config: dict, path) -> list[dict]:
    """What is done to a text before the model's own normalization."""
    steps: list[dict] = []
    if name == "albert":
        steps = [replace("``", '"'), replace("''", '"')]
        if not config.get("keep_accents"):
            steps += [{"type": "NFKD"}, {"type": "StripAccents"}]
    if name in ("albert", "deberta") and config.get("do_lower_case", name == "albert"):
        steps.append({"type": "Lowercase"})
    if name == "deberta" and config.get("split_by_punct"):
        raise UntrustedInputError(path, "split_by_punct", "true is not known")
    return steps


def _steps(node: dict | None) -> list[dict]:
    return [] if node is None else node.get("normalizers", [node])


def _sentinels(spec: dict, config: dict, path: Path) -> None:
    """T5's span sentinels come after the pieces, the highest number first."""
    count = config.get("extra_ids", 100)
    if type(count) is not int or not 0 <= count <= 10_000:
        raise UntrustedInputError(path, "extra_ids", "must be 0 to 10,000")
    vocab = spec["model"]["vocab"]
    for i in reversed(range(count)):
        spec["added_tokens"].append(special(f"<extra_id_{i}>", len(vocab)))
        vocab.append([f"<extra_id_{i}>", 0.0])


def pieces(model: spm.Model, path, *, first: bool = False, metaspace: bool = False) -> dict:
    """The description of a SentencePiece model.

    first: the space that SentencePiece puts before a text goes before its beginning only (LLaMA's
    `legacy: false`), not before what follows each special token as well. metaspace: the decoder
    that the reference uses for T5 and DeBERTa.
    """
    prefix = model.dummy_prefix and not first
    added = []
    for i, (text, _, kind) in enumerate(model.pieces):
        if kind == spm.BYTE and not re.fullmatch("<0x[0-9A-F]{2}>", text):
            raise UntrustedInputError(path, f"byte token {text!r}", "must be <0x00> to <0xFF>")
        if kind in (spm.UNKNOWN, spm.CONTROL) and text:
            added.append(special(text, i))
        elif kind == spm.USER_DEFINED and " " not in text and not ("▁" in text and prefix):
            marked = special(text, i, special=False)  # found after spaces became ▁, whole
            added.append({**marked, "normalized": "▁" in text})
    fallback = model.byte_fallback or any(kind == spm.BYTE for _, _, kind in model.pieces)
    vocab = {text: i for i, (text, _, _) in enumerate(model.pieces)}
    if len(vocab) < len(model.pieces):
        raise UntrustedInputError(path, "pieces", "a piece occurs twice")
    unk = model.pieces[model.unk_id][0] if 0 <= model.unk_id < len(model.pieces) else None
    if model.kind == spm.BPE:
        made = {
            "type": "BPE", "vocab": vocab,
            "merges": [list(pair) for pair in model.merges or spm.merges(model.pieces)],
            "unk_token": unk, "fuse_unk": True, "byte_fallback": fallback,
        }
    else:
        rows = [[text, score] for text, score, _ in model.pieces]
        made = {
            "type": "Unigram", "vocab": rows, "byte_fallback": fallback,
            "unk_id": model.unk_id if unk is not None else None,
        }
    normalizer = []
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode()
        normalizer.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.trim:
        normalizer += [replace(" {2,}", " ", "Regex"), replace(guard.SPM_EDGES, "", "Regex")]
    if prefix:
        normalizer.append({"type": "Prepend", "prepend": "▁"})
    if not first:
        normalizer.append(replace(" ", "▁"))
    decoder = [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.dummy_prefix:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    words = [{**space, "prepend_scheme": "first", "split": False}] if first else []
    if fallback and model.kind == spm.UNIGRAM:
        words.append(split(guard.SPM_BYTE))  # "<0x41>" in a text is no byte
    if not first and "▁" in vocab and not any(re.search("[^▁ ]▁", text) for text in vocab):
        words.append(split(guard.SPM_WORDS))  # no piece crosses: words apart give the same ids
    return assemble(
        made, added,
        normalizer=sequence("normalizers", normalizer),
        pre_tokenizer=sequence("pretokenizers", words),
        decoder=space if metaspace else sequence("decoders", decoder),
    )


def marian(path: Path, config: dict, settings: Settings) -> dict:
    """Marian's pair: source.spm cuts a text, vocab.json numbers the pieces of both languages.

    A piece of the target alone stands behind a space, which no cleaned text holds: encoding never
    meets it, and decoding drops the space. A piece of the source that vocab.json lacks is spelled
    by smaller ones, where the reference has <unk>.
    """
    if config.get("separate_vocabs"):
        raise UntrustedInputError(path, "separate_vocabs", "true is not known")
    model, vocab = read(path / "source.spm"), jsonfile.read(path / "vocab.json", limit=LIMIT)
    if not isinstance(vocab, dict) or any(type(number) is not int for number in vocab.values()):
        raise UntrustedInputError(path / "vocab.json", "root", "must map tokens to ids")
    if not {"</s>", "<unk>", "<pad>"} <= vocab.keys():
        raise UntrustedInputError(path / "vocab.json", "root", "must have </s>, <unk> and <pad>")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise UntrustedInputError(path / "vocab.json", "token ids", "must be 0 to n-1, each once")
    own = {text: (text, score, kind) for text, score, kind in model.pieces}
    own |= {text: (text, 0.0, spm.CONTROL) for text in ("</s>", "<unk>", "<pad>")}
    lowest = min(score for _, score, _ in model.pieces)
    model.pieces = []
    for text in sorted(vocab, key=vocab.get):
        language = (text, 0.0, spm.USER_DEFINED) if re.fullmatch(">>.+<<", text) else None
        model.pieces.append(own.get(text) or language or (" " + text, lowest, spm.NORMAL))
    model.unk_id = vocab["<unk>"]
    spec = pieces(model, path)
    spec["decoder"]["decoders"].insert(0, replace(" ", ""))
    settings.tokens = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"} | settings.tokens
    add(spec, settings)
    spec["post_processor"] = template(spec, *ONE_END, **settings.tokens)
    return spec
