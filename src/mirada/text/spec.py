"""A tokenizer's description, the content of a tokenizer.json, and the blocks it is built from."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from mirada.errors import UntrustedInputError
from mirada.text import guard
from mirada.weights.paths import open_regular

LIMIT = 64 << 20  # bytes of a vocabulary's file
WORD_END = "</w>"
BERT_TOKENS = {
    "unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"
}
BERT_TEMPLATE = ("{cls}:0 $A:0 {sep}:0", "{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1")


@dataclass
class Settings:
    """What belongs to a tokenizer besides its description.

    tokens: role ("bos", "eos" ...) -> token; end_ids: further ids that end a text; templates: name
    -> chat template; inputs: the names a model of this family takes, None where the files are mute;
    added: tokens outside the vocabulary's own file, as rows of a tokenizer.json's added_tokens.
    """

    path: str
    tokens: dict[str, str] = field(default_factory=dict)
    end_ids: list[int] = field(default_factory=list)
    templates: dict[str, str] = field(default_factory=dict)
    max_length: int | None = None
    inputs: list[str] | None = None
    truncation_side: str = "right"
    padding_side: str = "right"
    added: list[dict] = field(default_factory=list)


def content(path: Path, limit: int = LIMIT) -> bytes:
    """What a file holds. Raises UntrustedInputError where that is more than `limit` bytes."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UntrustedInputError(path, "size", f"is more than {limit:,} bytes")
    return data


def assemble(model: dict, added: list[dict], **pipeline) -> dict:
    """The description of a model and the steps around it; those not named do nothing."""
    empty = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    return {**empty, **pipeline, "added_tokens": added, "model": model}


def sequence(kind: str, steps: list[dict]) -> dict | None:
    """Several steps as one; `kind` is the key they stand under."""
    return {"type": "Sequence", kind: steps} if len(steps) > 1 else steps[0] if steps else None


def replace(old: str, new: str, kind: str = "String") -> dict:
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def split(regex: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def special(content: str, number: int, special: bool = True) -> dict:
    return {"id": number, "content": content, "special": special, "normalized": False}


def add(spec: dict, settings: Settings) -> None:
    """Join the added and special tokens that stand outside the description to it."""
    ids = guard.ids(spec, settings.path)
    added = {token["content"]: token for token in spec.get("added_tokens") or []}
    roles = [{"content": token, "special": True} for token in settings.tokens.values()]
    for row in [*settings.added, *roles]:
        content = row["content"]
        if content not in added:
            number = row.get("id", ids.get(content, len(ids)))
            ids[content] = number
            added[content] = {**row, "id": number}
    spec["added_tokens"] = list(added.values())


def identify(spec: dict, token: str | None, path) -> int:
    """The id of a token that the description cannot do without."""
    ids = guard.ids(spec, path)
    if token not in ids:
        raise UntrustedInputError(path, f"token {token!r}", "is needed and not in the vocabulary")
    return ids[token]


def around(spec: dict, bos: str | None, eos: str | None) -> dict:
    """A template that puts bos before and eos after each text."""
    one = [("{bos}:%d", bos), ("$A:%d", True), ("{eos}:%d", eos)]
    single = [word % 0 for word, there in one if there]
    pair = [*single, *(word.replace("$A", "$B") % 1 for word, there in one if there)]
    return template(spec, " ".join(single), " ".join(pair), bos=bos, eos=eos)


def template(spec: dict, single: str, pair: str, **tokens: str) -> dict:
    """TemplateProcessing from forms such as "{cls}:0 $A:0 {sep}:0"; tokens: what the names mean.

    Raises UntrustedInputError for a name that means nothing here.
    """
    ids = guard.ids(spec, "tokenizer")
    specials, forms = {}, []
    for form in (single, pair):
        pieces = []
        for word in form.split():
            name, kind = word.rsplit(":", 1)
            if name in ("$A", "$B"):
                pieces.append({"Sequence": {"id": name[1], "type_id": int(kind)}})
                continue
            name = tokens.get(name[1:-1]) if name.startswith("{") else name
            if name not in ids:
                limit = f"{name!r} is needed and not in the vocabulary"
                raise UntrustedInputError("tokenizer", f"token {word.rsplit(':', 1)[0]}", limit)
            specials[name] = {"id": name, "ids": [ids[name]], "tokens": [name]}
            pieces.append({"SpecialToken": {"id": name, "type_id": int(kind)}})
        forms.append(pieces)
    return {
        "type": "TemplateProcessing", "single": forms[0], "pair": forms[1],
        "special_tokens": specials,
    }


# WordPiece and whole words: a token a line


def _lines(lines: list[str], settings: Settings, path) -> tuple[dict[str, int], list[dict]]:
    """(token to id, special tokens); the roles of BERT's tokens are set where nobody named them."""
    vocab = {token: i for i, token in enumerate(lines)}
    if len(vocab) < len(lines):
        raise UntrustedInputError(path, "vocabulary", "a token occurs twice")
    settings.tokens = {k: t for k, t in BERT_TOKENS.items() if t in vocab} | settings.tokens
    tokens = (settings.tokens.get(role) for role in BERT_TOKENS)
    return vocab, [special(t, vocab[t]) for t in dict.fromkeys(tokens) if t in vocab]


def _enclosed(spec: dict, settings: Settings) -> dict:
    """BERT's template, where both of its tokens are there."""
    if {settings.tokens.get(role) for role in ("cls", "sep")} <= spec["model"]["vocab"].keys():
        spec["post_processor"] = template(spec, *BERT_TEMPLATE, **settings.tokens)
    return spec


def wordpiece(
    lines: list[str], settings: Settings, path, *, lowercase=True, chinese=True, accents=None
) -> dict:
    """BERT's WordPiece from its vocabulary, a token a line (arXiv 1810.04805)."""
    vocab, added = _lines(lines, settings, path)
    model = {
        "type": "WordPiece", "unk_token": settings.tokens.get("unk", "[UNK]"), "vocab": vocab,
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    }
    spec = assemble(
        model, added,
        normalizer={
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": chinese,
            "strip_accents": accents, "lowercase": lowercase,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )
    return _enclosed(spec, settings)


def alphabet(lines: list[str]) -> str | None:
    """The rule that cuts a text into such whole tokens, where no token continues a word.

    Molecules by the atom (Schwaller et al., arXiv 1811.02633), proteins by the residue.
    """
    plain = [token for token in lines if not re.fullmatch(r"\[[A-Z]+\]|\[unused\d+\]", token)]
    if ">>" in plain and all(re.fullmatch(guard.SMILES, token) for token in plain):
        return guard.SMILES
    return guard.LETTER if plain and all(re.fullmatch("[A-Z]", token) for token in plain) else None


def letters(lines: list[str], settings: Settings, path, rule: str) -> dict:
    """Whole tokens cut by `rule`, in [CLS] and [SEP]; decoding joins them without spaces."""
    vocab, added = _lines(lines, settings, path)
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": settings.tokens.get("unk")}
    spec = assemble(
        model, added,
        pre_tokenizer=sequence("pretokenizers", [{"type": "WhitespaceSplit"}, split(rule)]),
        decoder={"type": "Fuse"},
    )
    return _enclosed(spec, settings)


# Byte-level BPE


def byte_level(vocab: dict[str, int], merges: list, pre: str, prefix_space: bool = False) -> dict:
    """GPT-2's byte-level BPE; `pre` names the rule that splits text first (see RULES)."""
    steps, normalizer = RULES[pre]
    regex = {"add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": steps is GPT2}
    splits = [] if steps is GPT2 else [split(step) for step in steps]
    model = {
        "type": "BPE", "vocab": vocab, "merges": merges, "unk_token": None, "fuse_unk": False,
        "byte_fallback": False, "ignore_merges": pre in IGNORE_MERGES,
    }
    return assemble(
        model, [],
        normalizer={"type": normalizer} if normalizer else None,
        pre_tokenizer=sequence("pretokenizers", [*splits, {"type": "ByteLevel", **regex}]),
        post_processor={"type": "ByteLevel", **regex, "trim_offsets": False},
        decoder={"type": "ByteLevel", **regex},
    )


def word_ends(vocab: dict[str, int], merges: list, unk: str) -> dict:
    """CLIP's byte-level BPE: lower case, any white space one space, words marked at their end."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    cut = {"type": "Split", "pattern": {"Regex": guard.CLIP}, "behavior": "Removed", "invert": True}
    model = {
        "type": "BPE", "vocab": vocab, "merges": merges, "unk_token": unk, "fuse_unk": False,
        "byte_fallback": False, "ignore_merges": False, "continuing_subword_prefix": "",
        "end_of_word_suffix": WORD_END,
    }
    return assemble(
        model, [],
        normalizer=sequence("normalizers", [
            {"type": "NFC"}, replace(r"\s+", " ", "Regex"), {"type": "Lowercase"}]),
        pre_tokenizer=sequence("pretokenizers", [cut, {**byte_level, "use_regex": True}]),
        decoder={**byte_level, "use_regex": True},
    )


def spaced(spec: dict) -> None:
    """Word ends become spaces again, where a file's decoder leaves them to its reader."""
    decoder, model = spec.get("decoder") or {}, spec.get("model") or {}
    if decoder.get("type") == "ByteLevel" and model.get("end_of_word_suffix") == WORD_END:
        spec["decoder"] = sequence("decoders", [
            decoder, replace(WORD_END, " "), replace(guard.EDGES, "", "Regex")])


GPT2 = (guard.GPT2,)
_DIGITS = (r"\p{N}", guard.GPT2)
_BLOOM = (guard.BLOOM,)
_DEFAULT = (guard.PUNCTUATION, guard.GPT2, r"\p{N}+", guard.THREE_DIGITS)

# tokenizer.ggml.pre: its regexes, one after another, and the published tokenizer's normalizer.
PRE = {
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "jais", "exaone4"), (GPT2, None)),
    **dict.fromkeys(("jina-v2-es", "jina-v2-de", "mellum"), (GPT2, None)),
    **dict.fromkeys(("mpt", "olmo", "modern-bert"), (GPT2, "NFC")),
    "default": (_DEFAULT, None),
    **dict.fromkeys(
        ("llama-bpe", "llama-v3", "llama3", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
        ((guard.LLAMA3,), None),
    ),
    **dict.fromkeys(("starcoder", "refact", "smollm", "codeshell", "exaone"), (_DIGITS, None)),
    "command-r": (_DIGITS, "NFC"),
    "qwen2": ((guard.QWEN2,), "NFC"),
    "qwen35": ((guard.QWEN35,), "NFC"),
    "stablelm2": ((guard.QWEN2,), None),
    "deepseek-llm": ((*guard.DEEPSEEK, r"\p{N}"), None),
    "deepseek-coder": (("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", guard.CJK, r"\p{N}"), None),
    "falcon": ((guard.FALCON_PUNCTUATION, guard.GPT2, guard.THREE_DIGITS), None),
    **dict.fromkeys(("gpt-4o", "llama4"), ((guard.GPT4O,), None)),
    "tekken": ((guard.TEKKEN,), None),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), (_BLOOM, None)),
    "viking": ((*_BLOOM, r"\p{N}"), None),
}
RULES = {**PRE, "cl100k": ((guard.CL100K,), None)}  # and those that no GGUF file names
IGNORE_MERGES = {"llama-bpe", "llama-v3", "llama3", "tekken", "glm4"}
BEGINS = {"llama-bpe", "llama-v3", "llama3", "tekken"}  # a bos comes first where no file says so
