"""Each form a tokenizer's file can have, turned into one: a tokenizer.json's content.

tokenizer.json; vocab.txt (WordPiece); vocab.json with merges.txt (byte-level BPE); SentencePiece
models; GGUF metadata. The result is a description and its `Settings`; guard.check judges it.
"""

import base64
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from mirada.errors import MiradaError, UntrustedInputError
from mirada.text import guard, spm
from mirada.weights import jsonfile
from mirada.weights.paths import open_regular

LIMIT = 64 << 20
SMALL = 4 << 20
TEMPLATE = 1 << 20
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
SPM_FILES = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")

# What a config's tokenizer_class or model_type says about files that do not describe themselves.
BYTE_LEVEL = {
    "gpt2": "gpt2", "gpt_neo": "gpt2", "gptj": "gpt2", "codegen": "gpt2", "opt": "gpt2",
    "roberta": "roberta", "bart": "roberta", "longformer": "roberta", "led": "roberta",
    "deberta": "deberta", "qwen2": "qwen2",
}
PIECES = {
    "t5": "t5", "mt5": "t5", "umt5": "t5", "llama": "llama", "mistral": "llama",
    "gemma": "llama", "debertav2": "deberta", "deberta-v2": "deberta",
}
BERT_TOKENS = {
    "unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"
}
ROBERTA_TOKENS = {
    "bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>",
    "mask": "<mask>",
}
DEBERTA_TOKENS = {**BERT_TOKENS, "bos": "[CLS]", "eos": "[SEP]"}
END = "<|endoftext|>"
NAMED_TOKENS = {
    "gpt2": {"bos": END, "eos": END, "unk": END}, "qwen2": {"eos": END, "pad": END},
    "roberta": ROBERTA_TOKENS, "deberta": DEBERTA_TOKENS,
    "t5": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
    "llama": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
}
BERT_TEMPLATE = ("[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1")


@dataclass
class Settings:
    """What belongs to a tokenizer besides its description.

    tokens: role ("bos", "eos" ...) -> token; end_ids: further ids that end a text; templates: name
    -> chat template; inputs: the names a model of this family takes, None where the files are mute.
    """

    path: str
    tokens: dict[str, str] = field(default_factory=dict)
    end_ids: list[int] = field(default_factory=list)
    templates: dict[str, str] = field(default_factory=dict)
    max_length: int | None = None
    inputs: list[str] | None = None
    truncation_side: str = "right"
    padding_side: str = "right"


def folder(path: str | os.PathLike) -> tuple[dict, Settings]:
    """The description and settings of the tokenizer files in the folder `path`.

    Raises UntrustedInputError, and MiradaError where no tokenizer is there.
    """
    path = Path(path)
    config = _json(path / "tokenizer_config.json")
    settings = _settings(path, config)
    family = _family(path, config)
    if (path / "tokenizer.json").exists():
        spec = _json(path / "tokenizer.json", LIMIT)
        _add(spec, settings.tokens, config, path)
        _edges(spec, settings, config)
        return spec, settings
    spec = _described(path, config, settings, family)
    _add(spec, settings.tokens, config, path)
    return spec, settings


def _described(path: Path, config: dict, settings: Settings, family: str) -> dict:
    """The description of a folder without tokenizer.json."""
    models = [path / name for name in SPM_FILES if (path / name).exists()]
    if models:
        return _sentencepiece(models[0], config, settings, _known(family, PIECES, path))
    if (path / "vocab.txt").exists():
        return _wordpiece(path / "vocab.txt", config, settings)
    if (path / "vocab.json").exists() and (path / "merges.txt").exists():
        return _byte_level(path, config, settings, _known(family or "gpt2", BYTE_LEVEL, path))
    raise MiradaError(
        f"{path}: no tokenizer here; wanted tokenizer.json, vocab.txt, vocab.json with merges.txt, "
        f"or one of {', '.join(SPM_FILES)}"
    )


def _json(path: Path, limit: int = SMALL) -> dict:
    value = jsonfile.read(path, limit=limit) if path.exists() else {}
    if not isinstance(value, dict):
        raise UntrustedInputError(path, "root", "must be an object")
    return value


def _text(path: Path, limit: int = LIMIT) -> str:
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UntrustedInputError(path, "size", f"is more than {limit:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UntrustedInputError(path, "text", "must be UTF-8") from None


def _family(path: Path, config: dict) -> str:
    """The family that the tokenizer's class, or else the model's type, names; "" if neither."""
    name = config.get("tokenizer_class")
    if isinstance(name, str) and name not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return name.removesuffix("Fast").removesuffix("Tokenizer").lower()
    kind = _json(path / "config.json").get("model_type")
    return kind if isinstance(kind, str) else ""


def _known(family: str, known: dict[str, str], path: Path) -> str:
    if family and family not in known:
        raise MiradaError(
            f"{path}: the {family!r} tokenizer's own rules are not known for these files; put its "
            f"tokenizer.json beside them (known: {', '.join(sorted(known))})"
        )
    return known.get(family, "")


def _settings(path: Path, config: dict) -> Settings:
    named = _json(path / "special_tokens_map.json") | config
    settings = Settings(str(path))
    for role in ROLES:
        value = named.get(f"{role}_token")
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None and not (isinstance(value, str) and value):
            raise UntrustedInputError(path, f"{role}_token", "must be a text")
        if value:
            settings.tokens[role] = value
    length = config.get("model_max_length")
    if isinstance(length, int | float) and 0 < length < 1e9:  # the files' "no limit" is 1e30
        settings.max_length = int(length)
    inputs = config.get("model_input_names")
    if isinstance(inputs, list) and all(isinstance(name, str) for name in inputs):
        settings.inputs = inputs
    for side in ("truncation_side", "padding_side"):
        if config.get(side, "right") not in ("left", "right"):
            raise UntrustedInputError(path, side, "must be left or right")
        setattr(settings, side, config.get(side, "right"))
    ends = _json(path / "generation_config.json").get("eos_token_id")
    settings.end_ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    settings.templates = _templates(path, config.get("chat_template"))
    return settings


def _templates(path: Path, value) -> dict[str, str]:
    """The chat templates by name: the config's one or several, and the .jinja files over them."""
    named = {"default": value} if isinstance(value, str) else {}
    if isinstance(value, list):
        for row in value:
            if not isinstance(row, dict) or not isinstance(row.get("name"), str):
                raise UntrustedInputError(path, "chat_template", "must be texts with names")
            named[row["name"]] = row.get("template")
    elif value is not None and not isinstance(value, str):
        raise UntrustedInputError(path, "chat_template", "must be a text, or texts with names")
    if (path / "chat_template.jinja").exists():
        named["default"] = _text(path / "chat_template.jinja", TEMPLATE)
    more = path / "additional_chat_templates"
    for file in sorted(more.glob("*.jinja"))[:64] if more.is_dir() else ():
        named[file.stem] = _text(file, TEMPLATE)
    for name, text in named.items():
        if not isinstance(text, str) or len(text) > TEMPLATE:
            limit = f"must be a text of at most {TEMPLATE:,} characters"
            raise UntrustedInputError(path, f"chat template {name!r}", limit)
    return named


def _add(spec: dict, tokens: dict[str, str], config: dict, path: Path) -> None:
    """Join the added and special tokens that stand outside the description to it."""
    ids = guard.ids(spec, path)
    added = {token["content"]: token for token in spec.get("added_tokens") or []}
    rows = []
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise UntrustedInputError(path, "added_tokens_decoder", "must map ids to tokens")
    for number, token in listed.items():
        if not isinstance(token, dict) or not number.isdecimal() or len(number) > 9:
            raise UntrustedInputError(path, "added_tokens_decoder", "must map ids to tokens")
        rows.append({**token, "id": int(number)})
    for content, number in _json(path / "added_tokens.json").items():
        rows.append({"content": content, "id": number, "special": content in tokens.values()})
    extra = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        named = config.get(key) or []
        if not isinstance(named, list | dict):
            raise UntrustedInputError(path, key, "must be a list of texts")
        extra += named.values() if isinstance(named, dict) else named
    for value in [*tokens.values(), *extra]:
        content = value.get("content") if isinstance(value, dict) else value
        rows.append({"content": content, "special": True})
    for row in rows:
        content = row.get("content")
        if not isinstance(content, str):
            raise UntrustedInputError(path, "added tokens", "must be texts")
        if content in added:
            continue
        row.setdefault("id", ids.get(content, len(ids)))
        ids[content] = row["id"]
        added[content] = row
    spec["added_tokens"] = list(added.values())


def _edges(spec: dict, settings: Settings, config: dict) -> None:
    """add_bos_token and add_eos_token, where the config has either, replace the description's."""
    if config.keys() & {"add_bos_token", "add_eos_token"}:
        bos = settings.tokens.get("bos") if config.get("add_bos_token") else None
        eos = settings.tokens.get("eos") if config.get("add_eos_token") else None
        spec["post_processor"] = _around(spec, bos, eos)


def _around(spec: dict, bos: str | None, eos: str | None) -> dict:
    """A template that puts bos before and eos after each text."""
    one = [[bos, 0], ["$A", 0], [eos, 0]]
    two = [*one, [bos, 1], ["$B", 1], [eos, 1]]
    joined = (" ".join(f"{t}:{k}" for t, k in form if t) for form in (one, two))
    return template(spec, *joined)


def template(spec: dict, single: str, pair: str) -> dict:
    """TemplateProcessing from forms such as "[CLS]:0 $A:0 [SEP]:0"."""
    ids = guard.ids(spec, "tokenizer")
    specials, forms = {}, []
    for form in (single, pair):
        pieces = []
        for word in form.split():
            name, kind = word.rsplit(":", 1)
            if name in ("$A", "$B"):
                pieces.append({"Sequence": {"id": name[1], "type_id": int(kind)}})
            else:
                specials[name] = {"id": name, "ids": [ids.get(name)], "tokens": [name]}
                pieces.append({"SpecialToken": {"id": name, "type_id": int(kind)}})
        forms.append(pieces)
    return {
        "type": "TemplateProcessing", "single": forms[0], "pair": forms[1],
        "special_tokens": specials,
    }


def _spec(model: dict, added: list[dict], **pipeline) -> dict:
    empty = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    return {**empty, **pipeline, "added_tokens": added, "model": model}


def _sequence(kind: str, parts: list[dict]) -> dict | None:
    return {"type": "Sequence", kind: parts} if len(parts) != 1 else parts[0]


def _replace(old: str, new: str, kind: str = "String") -> dict:
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def _special(content: str, number: int, special: bool = True) -> dict:
    return {"id": number, "content": content, "special": special, "normalized": False}


# WordPiece: vocab.txt


def _wordpiece(path: Path, config: dict, settings: Settings) -> dict:
    lines = _text(path).split("\n")
    lines = [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
    return wordpiece(
        lines, settings, path, lowercase=config.get("do_lower_case", True),
        chinese=config.get("tokenize_chinese_chars", True), accents=config.get("strip_accents"),
    )


def wordpiece(
    lines: list[str], settings: Settings, path, *, lowercase=True, chinese=True, accents=None
) -> dict:
    """BERT's WordPiece from its vocabulary, a token a line (arXiv 1810.04805)."""
    vocab = {token: i for i, token in enumerate(lines)}
    if len(vocab) < len(lines):
        raise UntrustedInputError(path, "vocabulary", "a token occurs twice")
    settings.tokens = {k: t for k, t in BERT_TOKENS.items() if t in vocab} | settings.tokens
    tokens = {role: settings.tokens.get(role) for role in BERT_TOKENS}
    model = {
        "type": "WordPiece", "unk_token": tokens["unk"] or "[UNK]", "vocab": vocab,
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    }
    added = [_special(t, vocab[t]) for t in dict.fromkeys(tokens.values()) if t in vocab]
    spec = _spec(
        model, added,
        normalizer={
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": chinese,
            "strip_accents": accents, "lowercase": lowercase,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )
    if tokens["cls"] in vocab and tokens["sep"] in vocab:
        forms = (f.replace("[CLS]", tokens["cls"]).replace("[SEP]", tokens["sep"])
                 for f in BERT_TEMPLATE)
        spec["post_processor"] = template(spec, *forms)
    return spec


# Byte-level BPE: vocab.json and merges.txt


def _byte_level(path: Path, config: dict, settings: Settings, family: str) -> dict:
    vocab = _json(path / "vocab.json", LIMIT)
    lines = _text(path / "merges.txt").split("\n")
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    merges = lines[1:] if lines and lines[0].startswith("#version") else lines
    prefix = bool(config.get("add_prefix_space", False))
    pre = "qwen2" if family == "qwen2" else "gpt-2"
    spec = byte_level(vocab, merges, pre, prefix)
    named = {role: t for role, t in NAMED_TOKENS[family].items() if t in vocab}
    settings.tokens = tokens = named | settings.tokens
    _add(spec, tokens, config, path)
    if family == "roberta":
        pairs = {r: [tokens.get(r), _id(spec, tokens.get(r), path)] for r in ("sep", "cls")}
        spec["post_processor"] = {
            "type": "RobertaProcessing", **pairs, "trim_offsets": True, "add_prefix_space": prefix
        }
    elif family == "deberta":
        spec["post_processor"] = template(spec, *BERT_TEMPLATE)
    elif config.get("add_bos_token"):
        spec["post_processor"] = _around(spec, tokens.get("bos"), None)
    return spec


def _id(spec: dict, token: str | None, path) -> int:
    ids = guard.ids(spec, path)
    if token not in ids:
        raise UntrustedInputError(path, f"token {token!r}", "is needed and not in the vocabulary")
    return ids[token]


def byte_level(vocab: dict[str, int], merges: list, pre: str, prefix_space: bool = False) -> dict:
    """GPT-2's byte-level BPE; `pre` names the rule that splits text first (see PRE)."""
    steps, normalizer = PRE[pre]
    regex = {"add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": steps is GPT2}
    splits = [] if steps is GPT2 else [_split(step) for step in steps]
    model = {
        "type": "BPE", "vocab": vocab, "merges": merges, "unk_token": None, "fuse_unk": False,
        "byte_fallback": False, "ignore_merges": pre in IGNORE_MERGES,
    }
    return _spec(
        model, [],
        normalizer={"type": normalizer} if normalizer else None,
        pre_tokenizer=_sequence("pretokenizers", [*splits, {"type": "ByteLevel", **regex}]),
        post_processor={"type": "ByteLevel", **regex, "trim_offsets": False},
        decoder={"type": "ByteLevel", **regex},
    )


def _split(regex: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


GPT2 = (guard.GPT2,)
_DIGITS = (r"\p{N}", guard.GPT2)
_BLOOM = (guard.BLOOM,)
_DEFAULT = (guard.PUNCTUATION, guard.GPT2, r"\p{N}+", guard.THREE_DIGITS)

# tokenizer.ggml.pre: its regexes, one after another, and the published tokenizer's normalizer.
PRE = {
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "jais", "exaone4"), (GPT2, None)),
    **dict.fromkeys(("mpt", "olmo"), (GPT2, "NFC")),
    "default": (_DEFAULT, None),
    **dict.fromkeys(
        ("llama-bpe", "llama-v3", "llama3", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
        ((guard.LLAMA3,), None),
    ),
    **dict.fromkeys(("starcoder", "refact", "smollm", "codeshell", "exaone"), (_DIGITS, None)),
    "command-r": (_DIGITS, "NFC"),
    "qwen2": ((guard.QWEN2,), "NFC"),
    "stablelm2": ((guard.QWEN2,), None),
    "falcon": ((guard.FALCON_PUNCTUATION, guard.GPT2, guard.THREE_DIGITS), None),
    "gpt-4o": ((guard.GPT4O,), None),
    "tekken": ((guard.TEKKEN,), None),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), (_BLOOM, None)),
    "viking": ((*_BLOOM, r"\p{N}"), None),
}
IGNORE_MERGES = {"llama-bpe", "llama-v3", "llama3", "tekken"}
BEGINS = IGNORE_MERGES  # these begin a text with bos where the file does not say


# SentencePiece


def _sentencepiece(path: Path, config: dict, settings: Settings, family: str) -> dict:
    with open_regular(path) as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise UntrustedInputError(path, "size", f"is more than {LIMIT:,} bytes")
    model = spm.parse(data, path)
    if model.kind not in (spm.UNIGRAM, spm.BPE) or model.suffix_space or not model.escape:
        raise UntrustedInputError(
            path, "trainer_spec", "only unigram and BPE models that mark spaces in front are known"
        )
    if any(kind == spm.UNUSED for _, _, kind in model.pieces):
        raise UntrustedInputError(path, "pieces", "unused pieces are not known")
    found = {"bos": model.bos_id, "eos": model.eos_id, "unk": model.unk_id, "pad": model.pad_id}
    for role, number in found.items():
        if number >= len(model.pieces):
            raise UntrustedInputError(path, f"{role}_id", f"must be below {len(model.pieces):,}")
        if number >= 0:
            settings.tokens.setdefault(role, model.pieces[number][0])
    wanted = {} if not family else NAMED_TOKENS[family]
    present = {text for text, _, _ in model.pieces}
    settings.tokens = {r: t for r, t in wanted.items() if t in present} | settings.tokens
    first = family == "llama" and config.get("legacy") is False and model.dummy_prefix
    spec = pieces(model, path, first=first, metaspace=family in ("t5", "deberta"))
    if family == "t5":
        _sentinels(spec, config, path)
    if family == "deberta":
        settings.tokens = DEBERTA_TOKENS | settings.tokens
        if config.get("do_lower_case"):
            steps = [{"type": "Lowercase"}, *_steps(spec["normalizer"], "normalizers")]
            spec["normalizer"] = _sequence("normalizers", steps)
        if config.get("split_by_punct"):
            raise UntrustedInputError(path, "split_by_punct", "true is not known")
    _add(spec, settings.tokens, config, path.parent)
    bos = settings.tokens.get("bos") if config.get("add_bos_token", family == "llama") else None
    eos = settings.tokens.get("eos") if config.get("add_eos_token", family == "t5") else None
    spec["post_processor"] = (
        template(spec, *BERT_TEMPLATE) if family == "deberta" else
        _t5_template(spec, eos) if family == "t5" and eos else _around(spec, bos, eos)
    )
    return spec


def _t5_template(spec: dict, eos: str) -> dict:
    return template(spec, f"$A:0 {eos}:0", f"$A:0 {eos}:0 $B:0 {eos}:0")


def _steps(node: dict | None, nested: str) -> list[dict]:
    return [] if node is None else node[nested] if node["type"] == "Sequence" else [node]


def _sentinels(spec: dict, config: dict, path: Path) -> None:
    """T5's span sentinels come after the pieces, the highest number first."""
    count = config.get("extra_ids", 100)
    if type(count) is not int or not 0 <= count <= 10_000:
        raise UntrustedInputError(path, "extra_ids", "must be 0 to 10,000")
    vocab = spec["model"]["vocab"]
    for i in reversed(range(count)):
        spec["added_tokens"].append(_special(f"<extra_id_{i}>", len(vocab)))
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
            added.append(_special(text, i))
        elif kind == spm.USER_DEFINED and " " not in text and not ("▁" in text and prefix):
            marked = _special(text, i, special=False)  # found after spaces became ▁, whole
            added.append({**marked, "normalized": "▁" in text})
    fallback = model.byte_fallback or any(kind == spm.BYTE for _, _, kind in model.pieces)
    vocab = {text: i for i, (text, _, _) in enumerate(model.pieces)}
    if len(vocab) < len(model.pieces):
        raise UntrustedInputError(path, "pieces", "a piece occurs twice")
    unk = model.pieces[model.unk_id][0] if 0 <= model.unk_id < len(model.pieces) else None
    if model.kind == spm.BPE:
        made = {
            "type": "BPE", "vocab": vocab, "merges": [list(m) for m in spm.merges(model.pieces)],
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
        normalizer += [_replace(" {2,}", " ", "Regex"), _replace(guard.SPM_EDGES, "", "Regex")]
    if prefix:
        normalizer.append({"type": "Prepend", "prepend": "▁"})
    if not first:
        normalizer.append(_replace(" ", "▁"))
    decoder = [_replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.dummy_prefix:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    split = [{**space, "prepend_scheme": "first", "split": False}] if first else []
    if fallback and model.kind == spm.UNIGRAM:
        split.append(_split(guard.SPM_BYTE))  # "<0x41>" in a text is no byte
    if not first and "▁" in vocab and not any(re.search("[^▁]▁", text) for text in vocab):
        split.append(_split(guard.SPM_WORDS))  # no piece crosses: words apart give the same ids
    return _spec(
        made, added,
        normalizer=_sequence("normalizers", normalizer) if normalizer else None,
        pre_tokenizer=_sequence("pretokenizers", split) if split else None,
        decoder=space if metaspace else _sequence("decoders", decoder),
    )


# GGUF


def gguf(metadata: dict, path: str = "GGUF metadata") -> tuple[dict, Settings]:
    """The description and settings in a GGUF file's metadata (keys `tokenizer.*`).

    Raises UntrustedInputError; an unknown tokenizer.ggml.model or .pre is named, never guessed.
    """
    tokens = _array(metadata, "tokens", str, path)
    types = _array(metadata, "token_type", int, path, len(tokens)) or [spm.NORMAL] * len(tokens)
    kind = metadata.get("tokenizer.ggml.model")
    settings = Settings(path)
    if kind == "gpt2":
        spec = _gguf_bpe(metadata, tokens, types, path)
    elif kind == "bert":
        spec = _gguf_bert(tokens, types, settings, path)
    elif kind in ("llama", "t5"):
        spec = _gguf_spm(metadata, kind, tokens, types, path)
    else:
        known = "gpt2, llama, bert, t5"
        raise UntrustedInputError(path, "tokenizer.ggml.model", f"{kind!r} is not known ({known})")
    _gguf_specials(metadata, tokens, settings, path)
    marked = {token["content"] for token in spec["added_tokens"]}
    for content in settings.tokens.values():
        if content not in marked:
            spec["added_tokens"].append(_special(content, tokens.index(content)))
            marked.add(content)
    if kind != "bert":
        usual = kind == "llama" or (kind == "gpt2" and metadata.get("tokenizer.ggml.pre") in BEGINS)
        begins = metadata.get("tokenizer.ggml.add_bos_token", usual)
        ends = metadata.get("tokenizer.ggml.add_eos_token", kind == "t5")
        bos = settings.tokens.get("bos") if begins else None
        eos = settings.tokens.get("eos") if ends else None
        if bos or eos:
            spec["post_processor"] = _around(spec, bos, eos)
    return spec, settings


def _array(metadata: dict, name: str, kind: type, path: str, size: int | None = None) -> list:
    key = f"tokenizer.ggml.{name}"
    value = metadata.get(key)
    if value is None and size is not None:
        return []
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list) or not value or len(value) > guard.TOKENS:
        raise UntrustedInputError(path, key, f"must be a list of 1 to {guard.TOKENS:,} entries")
    if size is not None and len(value) != size:
        raise UntrustedInputError(path, key, f"must have {size:,} entries, as the tokens")
    if any(type(entry) is not kind for entry in value):
        raise UntrustedInputError(path, key, f"must hold {kind.__name__} entries only")
    return value


def _gguf_specials(metadata: dict, tokens: list[str], settings: Settings, path: str) -> None:
    names = {
        "bos": ["bos"], "eos": ["eos"], "unk": ["unknown"], "pad": ["padding"], "cls": ["cls"],
        "sep": ["separator", "seperator"], "mask": ["mask"],
    }
    found = {}
    for role, keys in [*names.items(), ("eot", ["eot"]), ("eom", ["eom"])]:
        for key in (f"tokenizer.ggml.{k}_token_id" for k in keys):
            if (number := metadata.get(key)) is None:
                continue
            if type(number) is not int or not 0 <= number < len(tokens):
                raise UntrustedInputError(path, key, f"must be 0 to {len(tokens) - 1:,}")
            found[role] = number
    settings.end_ids = [found.pop(role) for role in ("eot", "eom") if role in found]
    settings.tokens |= {role: tokens[number] for role, number in found.items()}
    for key, text in metadata.items():
        if key.startswith("tokenizer.chat_template") and isinstance(text, str):
            name = key.removeprefix("tokenizer.chat_template").lstrip(".") or "default"
            settings.templates[name] = text
            if len(text) > TEMPLATE:
                limit = f"must have at most {TEMPLATE:,} characters"
                raise UntrustedInputError(path, key, limit)


def _gguf_bpe(metadata: dict, tokens: list[str], types: list[int], path: str) -> dict:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in PRE:
        raise UntrustedInputError(
            path, "tokenizer.ggml.pre", f"{pre!r} is not known (known: {', '.join(PRE)})"
        )
    vocab = _unique(tokens, path)
    merges = _array(metadata, "merges", str, path)
    spec = byte_level(vocab, merges, pre)
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (spm.CONTROL, spm.USER_DEFINED):
            spec["added_tokens"].append(_special(token, i, kind == spm.CONTROL))
    return spec


def _unique(tokens: list[str], path: str) -> dict[str, int]:
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise UntrustedInputError(path, "tokenizer.ggml.tokens", "a token occurs twice")
    return vocab


def _gguf_bert(tokens: list[str], types: list[int], settings: Settings, path: str) -> dict:
    """WordPiece; files mark words with ▁ instead of continuations with ##."""
    _unique(tokens, path)
    if any(token.startswith("▁") for token in tokens):
        plain = []
        for token, kind in zip(tokens, types, strict=True):
            if kind == spm.NORMAL and not re.fullmatch(r"\[.+\]", token):
                token = token[1:] if token.startswith("▁") else "##" + token
            plain.append(token)
        tokens[:] = plain
    return wordpiece(tokens, settings, path)


def _gguf_spm(metadata: dict, kind: str, tokens: list[str], types: list[int], path: str) -> dict:
    _unique(tokens, path)
    scores = _array(metadata, "scores", float, path, len(tokens))
    if not scores:
        raise UntrustedInputError(path, "tokenizer.ggml.scores", "are missing")
    unk = metadata.get("tokenizer.ggml.unknown_token_id", 2 if kind == "t5" else 0)
    if type(unk) is not int or not 0 <= unk < len(tokens):
        raise UntrustedInputError(path, "tokenizer.ggml.unknown_token_id", "must be a token's id")
    charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap")
    empty = charsmap is None or (hasattr(charsmap, "__len__") and len(charsmap) == 0)
    charsmap = [] if empty else _array(metadata, "precompiled_charsmap", int, path)
    model = spm.Model(
        pieces=list(zip(tokens, scores, types, strict=True)),
        kind=spm.BPE if kind == "llama" else spm.UNIGRAM,
        unk_id=unk,
        charsmap=bytes(v & 255 for v in charsmap),
        dummy_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        trim=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", kind == "t5")),
    )
    return pieces(model, path)
