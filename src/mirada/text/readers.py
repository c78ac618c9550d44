"""The files a tokenizer can have, each turned into one description: a tokenizer.json's content.

tokenizer.json; vocab.txt (WordPiece, atoms, residues); vocab.json with merges.txt (byte-level BPE);
SentencePiece models; rank files; GGUF. guard.check judges the result.
"""

import os
from pathlib import Path

from mirada.errors import MiradaError, UntrustedInputError
from mirada.text import guard, metadata, pieces, ranks
from mirada.text.spec import (
    BERT_TEMPLATE,
    LIMIT,
    Settings,
    add,
    alphabet,
    around,
    byte_level,
    content,
    identify,
    letters,
    spaced,
    template,
    word_ends,
    wordpiece,
)
from mirada.weights import ggufhead, jsonfile
from mirada.weights.paths import open_regular

SMALL = 4 << 20
TEMPLATE = metadata.TEMPLATE
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
SPM_FILES = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")

# What a config's tokenizer_class or model_type says about files that do not describe themselves.
BYTE_LEVEL = {
    "gpt2": "gpt2", "gpt_neo": "gpt2", "gptj": "gpt2", "codegen": "gpt2", "opt": "gpt2",
    "roberta": "roberta", "bart": "roberta", "longformer": "roberta", "led": "roberta",
    "deberta": "deberta", "qwen2": "qwen2", "clip": "clip", "clip_text_model": "clip",
}
END = "<|endoftext|>"
NAMED_TOKENS = {
    "gpt2": {"bos": END, "eos": END, "unk": END}, "qwen2": {"eos": END, "pad": END},
    "roberta": pieces.FAIRSEQ,
    "clip": {"bos": "<|startoftext|>", "eos": END, "unk": END, "pad": END},
    "deberta": {**pieces.BERT, "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]", "pad": "[PAD]"},
}


def folder(path: str | os.PathLike) -> tuple[dict, Settings]:
    """The description and settings of the tokenizer files in the folder `path`.

    Raises UntrustedInputError, and MiradaError where no tokenizer is there.
    """
    path = Path(path)
    config = _json(path / "tokenizer_config.json")
    settings = _settings(path, config)
    if (path / "tokenizer.json").exists():
        spec = _json(path / "tokenizer.json", LIMIT)
        add(spec, settings)
        _edges(spec, settings, config)
        spaced(spec)
        return spec, settings
    spec = _described(path, config, settings)
    add(spec, settings)
    return spec, settings


def file(path: str | os.PathLike, encoding: str | None = None) -> tuple[dict, Settings]:
    """The description and settings of a single file, known by its ending.

    encoding: which of ranks.ENCODINGS a .tiktoken file is, where its name does not say.
    """
    path = Path(path)
    settings = Settings(str(path))
    if path.suffix == ".tiktoken":
        return ranks.describe(path, encoding)
    if path.suffix == ".gguf":
        with open_regular(path) as opened:
            return metadata.describe(ggufhead.read(opened, path).metadata, str(path))
    if path.suffix == ".json":
        return _json(path, LIMIT), settings
    if path.suffix == ".txt":
        return _words(path, {}, settings), settings
    if path.suffix in (".model", ".spm"):
        return pieces.describe(path, {}, settings, ""), settings
    raise MiradaError(f"{path}: a tokenizer's file ends in .json, .txt, .model, .tiktoken or .gguf")


def _described(path: Path, config: dict, settings: Settings) -> dict:
    """The description of a folder without tokenizer.json."""
    family = _family(path, config)
    if (path / "source.spm").exists() and (path / "vocab.json").exists():
        return pieces.marian(path, config, settings)
    models = [path / name for name in SPM_FILES if (path / name).exists()]
    if models and content(models[0]).startswith(b"IQ== "):  # LLaMA 3 as it was first published
        return _ranked(models[0], settings, "llama3")
    if models:
        own = {name: name for name in pieces.FAMILIES if name} | pieces.NAMES
        return pieces.describe(models[0], config, settings, _known(family, own, path))
    if (path / "vocab.txt").exists():
        return _words(path / "vocab.txt", config, settings)
    if (path / "vocab.json").exists() and (path / "merges.txt").exists():
        return _byte_level(path, config, settings, _known(family or "gpt2", BYTE_LEVEL, path))
    if len(found := sorted(path.glob("*.tiktoken"))) == 1:
        return _ranked(found[0], settings)
    raise MiradaError(
        f"{path}: no tokenizer here; wanted tokenizer.json, vocab.txt, vocab.json with merges.txt "
        f"or source.spm, a .tiktoken file, or one of {', '.join(SPM_FILES)}"
    )


def _ranked(path: Path, settings: Settings, encoding: str | None = None) -> dict:
    spec, own = ranks.describe(path, encoding)
    settings.tokens = own.tokens | settings.tokens
    settings.end_ids = settings.end_ids or own.end_ids
    return spec


def _json(path: Path, limit: int = SMALL) -> dict:
    value = jsonfile.read(path, limit=limit) if path.exists() else {}
    if not isinstance(value, dict):
        raise UntrustedInputError(path, "root", "must be an object")
    return value


def _text(path: Path, limit: int = LIMIT) -> str:
    try:
        return content(path, limit).decode("utf-8")
    except UnicodeDecodeError:
        raise UntrustedInputError(path, "text", "must be UTF-8") from None


def _family(path: Path, config: dict) -> str:
    """The family that the tokenizer's class, or else the model's type, names; "" if neither."""
    name = config.get("tokenizer_class")
    if isinstance(name, str) and name not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return name.removesuffix("Fast").removesuffix("Tokenizer").lower()
    first = "llama" if (path / "params.json").is_file() else None  # LLaMA's first files
    kind = _json(path / "config.json").get("model_type", first)
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
    settings.added = _added(path, config, named, settings.tokens)
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


def _added(path: Path, config: dict, named: dict, tokens: dict[str, str]) -> list[dict]:
    """The tokens that stand outside the vocabulary: listed with ids, or only named as special."""
    rows = []
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise UntrustedInputError(path, "added_tokens_decoder", "must map ids to tokens")
    for number, token in listed.items():
        if not isinstance(token, dict) or not number.isdecimal() or len(number) > 9:
            raise UntrustedInputError(path, "added_tokens_decoder", "must map ids to tokens")
        rows.append({**token, "id": int(number)})
    for text, number in _json(path / "added_tokens.json").items():
        rows.append({"content": text, "id": number, "special": text in tokens.values()})
    values = [v for v in (named.get(f"{role}_token") for role in ROLES) if isinstance(v, dict)]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(key) or []
        if not isinstance(more, list | dict):
            raise UntrustedInputError(path, key, "must be a list of texts")
        values += more.values() if isinstance(more, dict) else more
    for value in values:
        flags = {k: v for k, v in value.items() if k != "id"} if isinstance(value, dict) else {}
        rows.append({"content": value, **flags, "special": True})
    if not all(isinstance(row.get("content"), str) for row in rows):
        raise UntrustedInputError(path, "added tokens", "must be texts")
    return rows


def _edges(spec: dict, settings: Settings, config: dict) -> None:
    """add_bos_token and add_eos_token, where the config has either, replace the description's."""
    if config.keys() & {"add_bos_token", "add_eos_token"}:
        bos = settings.tokens.get("bos") if config.get("add_bos_token") else None
        eos = settings.tokens.get("eos") if config.get("add_eos_token") else None
        spec["post_processor"] = around(spec, bos, eos)


def _words(path: Path, config: dict, settings: Settings) -> dict:
    """vocab.txt: WordPiece, unless its tokens are letters that continue nothing."""
    lines = _text(path).split("\n")
    lines = [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
    if _family(path.parent, config) == "esm":
        settings.tokens = {r: f"<{r}>" for r in ("cls", "eos", "pad", "unk", "mask")} | (
            settings.tokens)
        spec = letters(lines, settings, path, guard.RESIDUE)
        one, two = "<cls>:0 $A:0 <eos>:0", "<cls>:0 $A:0 <eos>:0 $B:0 <eos>:0"
        return {**spec, "post_processor": template(spec, one, two)}
    if not config.get("tokenizer_class") and (rule := alphabet(lines)):
        return letters(lines, settings, path, rule)
    return wordpiece(
        lines, settings, path, lowercase=config.get("do_lower_case", True),
        chinese=config.get("tokenize_chinese_chars", True), accents=config.get("strip_accents"),
    )


def _byte_level(path: Path, config: dict, settings: Settings, family: str) -> dict:
    vocab = _json(path / "vocab.json", LIMIT)
    lines = _text(path / "merges.txt").split("\n")
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    merges = lines[1:] if lines and lines[0].startswith("#version") else lines
    prefix = bool(config.get("add_prefix_space", False))
    pre = "qwen2" if family == "qwen2" else "gpt-2"
    named = {role: t for role, t in NAMED_TOKENS[family].items() if t in vocab}
    settings.tokens = tokens = named | settings.tokens
    spec = (word_ends(vocab, merges, tokens.get("unk", END)) if family == "clip" else
            byte_level(vocab, merges, pre, prefix))
    add(spec, settings)
    spaced(spec)
    if family in ("roberta", "clip"):
        ends = {"sep": "eos", "cls": "bos"} if family == "clip" else {"sep": "sep", "cls": "cls"}
        pairs = {role: [tokens.get(of), identify(spec, tokens.get(of), path)]
                 for role, of in ends.items()}
        spec["post_processor"] = {
            "type": "RobertaProcessing", **pairs, "trim_offsets": family == "roberta",
            "add_prefix_space": prefix,
        }
    elif family == "deberta":
        spec["post_processor"] = template(spec, *BERT_TEMPLATE, **tokens)
    elif config.get("add_bos_token"):
        spec["post_processor"] = around(spec, tokens.get("bos"), None)
    return spec
