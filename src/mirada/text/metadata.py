"""The tokenizer in a GGUF file's metadata."""

import re

from mirada.errors import UntrustedInputError
from mirada.text import guard, spm
from mirada.text.pieces import pieces
from mirada.text.spec import BEGINS, PRE, Settings, add, around, byte_level, special, wordpiece

TEMPLATE = 1 << 20  # characters of a chat template


def describe(metadata: dict, path: str = "GGUF metadata") -> tuple[dict, Settings]:
    """The description and settings in a GGUF file's metadata (keys `tokenizer.*`).

    Raises UntrustedInputError; an unknown tokenizer.ggml.model or .pre is named, never guessed.
    """
    tokens = list(_array(metadata, "tokens", str, path))
    types = _array(metadata, "token_type", int, path, len(tokens)) or [spm.NORMAL] * len(tokens)
    kind = metadata.get("tokenizer.ggml.model")
    settings = Settings(path)
    if kind == "gpt2":
        spec = _bpe(metadata, tokens, types, path)
    elif kind == "bert":
        spec = _bert(tokens, types, settings, path)
    elif kind in ("llama", "t5", "gemma4"):
        spec = _spm(metadata, kind, tokens, types, path)
    else:
        known = "gpt2, llama, bert, t5, gemma4"
        raise UntrustedInputError(path, "tokenizer.ggml.model", f"{kind!r} is not known ({known})")
    _specials(metadata, tokens, settings, path)
    add(spec, settings)
    if kind != "bert":
        usual = kind == "llama" or (kind == "gpt2" and metadata.get("tokenizer.ggml.pre") in BEGINS)
        begins = metadata.get("tokenizer.ggml.add_bos_token", usual)
        ends = metadata.get("tokenizer.ggml.add_eos_token", kind == "t5")
        bos = settings.tokens.get("bos") if begins else None
        eos = settings.tokens.get("eos") if ends else None
        if bos or eos:
            spec["post_processor"] = around(spec, bos, eos)
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
    if set(map(type, value)) != {kind}:
        raise UntrustedInputError(path, key, f"must hold {kind.__name__} entries only")
    return value


def _specials(metadata: dict, tokens: list[str], settings: Settings, path: str) -> None:
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


def _bpe(metadata: dict, tokens: list[str], types: list[int], path: str) -> dict:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in PRE:
        raise UntrustedInputError(
            path, "tokenizer.ggml.pre", f"{pre!r} is not known (known: {', '.join(PRE)})"
        )
    vocab = _unique(tokens, path)
    spec = byte_level(vocab, _merges(metadata, path), pre)
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (spm.CONTROL, spm.USER_DEFINED):
            spec["added_tokens"].append(special(token, i, kind == spm.CONTROL))
    return spec


def _merges(metadata: dict, path: str) -> list[tuple[str, str]]:
    """Pairs; a file's space between them is the first one."""
    pairs = [line.partition(" ") for line in _array(metadata, "merges", str, path)]
    return [(left, right) for left, _, right in pairs]


def _unique(tokens: list[str], path: str) -> dict[str, int]:
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise UntrustedInputError(path, "tokenizer.ggml.tokens", "a token occurs twice")
    return vocab


def _bert(tokens: list[str], types: list[int], settings: Settings, path: str) -> dict:
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


def _spm(metadata: dict, kind: str, tokens: list[str], types: list[int], path: str) -> dict:
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
        kind=spm.UNIGRAM if kind == "t5" else spm.BPE,
        merges=_merges(metadata, path) if kind == "gemma4" else [],
        unk_id=unk,
        charsmap=bytes(v & 255 for v in charsmap),
        dummy_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        trim=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", kind == "t5")),
    )
    return pieces(model, path)
