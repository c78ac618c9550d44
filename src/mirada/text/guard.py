"""What a tokenizer's description may hold before the library sees it: known, bounded, tried.

A description is the content of a tokenizer.json. Whatever form the file had, it becomes one and
passes here, so every rule stands once.
"""

import base64
import binascii
import json
import math
import subprocess
from contextlib import contextmanager

from mirada.errors import MiradaError, UntrustedInputError
from mirada.text import child

TOKENS = 2_000_000  # ids lie in a dense table: the largest published vocabulary has 262,144
NESTING, PARTS = 4, 32
GROWTH = 16  # by how much all Replace steps together may lengthen a text
TEXT = 64  # characters of a prefix, suffix or replacement
CHARSMAP = 4 << 20
CHARSMAP_ENTRY = 128  # bytes; NFKC's longest has 33
PROBE_SECONDS = 10.0  # the child's own limit is 2 s of processor time; this is for a busy machine

# Published pre-tokenizer patterns, known to need time linear in the text.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
GPT4O = rf"{_CASED}{CONTRACTIONS}?|{_CAPITALS}{CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST}"
TEKKEN = rf"{_CASED}|{_CAPITALS}|\p{{N}}|{_REST}"
QWEN35 = QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}")
CL100K = LLAMA3.replace(r"|\s*[\r\n]+", r"|\s++\z|\s*[\r\n]+")
_CASED_LETTERS = (  # of an old Unicode: no Armenian or Georgian small letters
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
    "Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄ"
    "Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
CJK = "[一-龥ࠀ-一가-퟿]+"
DEEPSEEK = (
    "[\r\n]", rf"\s?[{_CASED_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"(?<!\s)\s+$", CJK
)
SMILES = r"\[[^\[\]]+]|Br?|Cl?|[NOSPFIbcnosp().=#+\-\\/:~@?*$]|>>?|%\d\d|\d"
CLIP = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
LETTER, RESIDUE = ".", r"[A-IK-Z.\-]"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"
FALCON_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
THREE_DIGITS = "[0-9][0-9][0-9]"
SPM_WORDS = "▁*[^▁]+|▁+"
SPM_BYTE = "<(?=0x[0-9A-F]{2}>)"
SPM_EDGES = r"\A | \z"
EDGES = r"\A[\s\x1C-\x1F]+|[\s\x1C-\x1F]+\z"  # what Python's strip takes
KNOWN_REGEXES = {
    GPT2, LLAMA3, QWEN2, QWEN35, CL100K, GPT4O, TEKKEN, BLOOM, PUNCTUATION, FALCON_PUNCTUATION,
    THREE_DIGITS, *DEEPSEEK, SMILES, CLIP, LETTER, RESIDUE,
    SPM_WORDS, SPM_BYTE, SPM_EDGES, EDGES,
    " {2,}", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r"\d", r"\s+",
    r"\d{1,3}", r"\s{2,}|[\n\r\t]", "[\r\n]", r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+",
}

NORMALIZERS = {
    "BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Strip", "StripAccents", "Lowercase", "Nmt",
    "Precompiled", "Replace", "Prepend", "ByteLevel",
}
PRE_TOKENIZERS = {
    "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Metaspace", "Whitespace", "Split",
    "WhitespaceSplit", "Punctuation", "Digits", "UnicodeScripts",
}
POST_PROCESSORS = {"BertProcessing", "RobertaProcessing", "ByteLevel", "TemplateProcessing"}
DECODERS = {
    "ByteLevel", "WordPiece", "Metaspace", "BPEDecoder", "CTC", "Replace", "Fuse", "ByteFallback",
    "Strip",
}
KINDS = {
    "normalizer": ("normalizers", NORMALIZERS),
    "pre_tokenizer": ("pretokenizers", PRE_TOKENIZERS),
    "post_processor": ("processors", POST_PROCESSORS),
    "decoder": ("decoders", DECODERS),
}
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


@contextmanager
def library(path, what: str):
    """Turn what the tokenizers library throws into UntrustedInputError.

    Its Rust panics arrive as PanicException, which is no Exception: a server that catches
    Exception would not catch it.
    """
    try:
        yield
    except MiradaError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = f"the tokenizers library fails: {str(error)[:200]}"
        raise UntrustedInputError(path, what, reason) from None


def check(spec: dict, path) -> dict:
    """The description with its model's type told and padding and truncation dropped.

    Raises UntrustedInputError naming the first thing that is unknown, out of bounds, or slow.
    """
    model = _typed(spec, path)
    clean = {key: spec.get(key) for key in KINDS}
    tokens = _vocabulary(model, path)
    _model(model, tokens, path)
    added = _added(spec.get("added_tokens") or [], tokens, path)
    unknown_regex = False
    for key, (nested, known) in KINDS.items():
        growth = 1.0
        for part in _parts(clean[key], key, nested, known, path, 0):
            growth *= _part(part, key, len(tokens), path)
            unknown_regex |= _regex(part) not in KNOWN_REGEXES | {None}
        if growth > GROWTH:
            raise UntrustedInputError(
                path, key, f"its Replace steps could lengthen a text {growth:.0f} times"
            )
    clean |= {"version": "1.0", "added_tokens": added, "model": model}
    if unknown_regex:
        _probe(clean, path)
    return clean


def ids(spec: dict, path) -> dict[str, int]:
    """Token to id of a description that is not checked yet: the model's and the added ones."""
    tokens = _vocabulary(_typed(spec, path), path)
    added = spec.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) for token in added
    ):
        raise UntrustedInputError(path, "added_tokens", "must be a list of objects with a content")
    return tokens | {token["content"]: token.get("id") for token in added}


def _typed(spec: dict, path) -> dict:
    """The model with its type told; older files leave it out, and the keys tell."""
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise UntrustedInputError(path, "model", "must be an object that describes the model")
    model = spec["model"]
    kind = model.get("type")
    if kind is None:
        kind = (
            "BPE" if "merges" in model else
            "Unigram" if isinstance(model.get("vocab"), list) else
            "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"
        )
    if kind not in ("BPE", "Unigram", "WordPiece", "WordLevel"):
        raise UntrustedInputError(path, "model.type", f"{kind!r} is not known")
    return {**model, "type": kind}


def _vocabulary(model: dict, path) -> dict[str, int]:
    """Token to id of the model itself."""
    vocab = model.get("vocab")
    if model["type"] != "Unigram":
        if not isinstance(vocab, dict):
            raise UntrustedInputError(path, "model.vocab", "must map tokens to ids")
        if set(map(type, vocab.values())) - {int}:
            raise UntrustedInputError(path, "model.vocab", "ids must be integers")
        return dict(vocab)
    good = isinstance(vocab, list) and all(
        isinstance(row, list | tuple) and len(row) == 2 and isinstance(row[0], str)
        and isinstance(row[1], int | float) and math.isfinite(row[1])
        for row in vocab
    )
    if not good or not vocab:
        raise UntrustedInputError(path, "model.vocab", "must be a list of [token, score]")
    tokens = {row[0]: i for i, row in enumerate(vocab)}
    if len(tokens) < len(vocab):
        raise UntrustedInputError(path, "model.vocab", "a token occurs twice")
    return tokens


def _model(model: dict, tokens: dict[str, int], path) -> None:
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        _short(model.get(key), f"model.{key}", path)
    if model["type"] == "Unigram":
        unk = model.get("unk_id")
        if unk is not None and (type(unk) is not int or not 0 <= unk < len(tokens)):
            raise UntrustedInputError(path, "model.unk_id", f"must be below {len(tokens):,}")
    unk = model.get("unk_token")
    known = isinstance(unk, str) and unk in tokens
    if model["type"] in ("WordPiece", "WordLevel") and not known:
        raise UntrustedInputError(path, "model.unk_token", f"{unk!r} is not in the vocabulary")
    longest = model.get("max_input_chars_per_word", 100)
    if type(longest) is not int or not 0 < longest <= 1_000:
        raise UntrustedInputError(path, "model.max_input_chars_per_word", "must be 1 to 1,000")
    if model.get("dropout"):
        raise UntrustedInputError(path, "model.dropout", "must be 0: ids would be random")
    if model["type"] == "BPE":
        _merges(model, tokens, path)


def _merges(model: dict, tokens: dict[str, int], path) -> None:
    merges = model.get("merges")
    if not isinstance(merges, list) or len(merges) > TOKENS:
        raise UntrustedInputError(path, "model.merges", f"must be a list of at most {TOKENS:,}")
    prefix = model.get("continuing_subword_prefix") or ""
    cut = len(prefix)
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not (
            type(pair[0]) is type(pair[1]) is str
        ):
            raise UntrustedInputError(path, f"model.merges[{i}]", "must be two tokens")
        left, right = pair
        if left not in tokens or right not in tokens or left + right[cut:] not in tokens or (
            not right.startswith(prefix)
        ):
            raise UntrustedInputError(
                path, f"model.merges[{i}]", "uses a token outside the vocabulary"
            )


def _added(added: list, tokens: dict[str, int], path) -> list[dict]:
    """The added tokens with every flag told; `tokens` grows by them and must end dense."""
    clean = []
    if not isinstance(added, list):
        raise UntrustedInputError(path, "added_tokens", "must be a list")
    for i, token in enumerate(added):
        field = f"added_tokens[{i}]"
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise UntrustedInputError(path, field, "must be an object with a content")
        content, number = token["content"], token.get("id")
        if not content or type(number) is not int or tokens.get(content, number) != number:
            raise UntrustedInputError(path, field, f"id {number!r} does not fit {content!r}")
        tokens[content] = number
        flags = {flag: token.get(flag, False) for flag in FLAGS}
        if any(type(value) is not bool for value in flags.values()):
            raise UntrustedInputError(path, field, "its flags must be true or false")
        clean.append({"id": number, "content": content, **flags})
    ids = sorted(tokens.values())
    if ids != list(range(len(ids))) or not 0 < len(ids) <= TOKENS:
        raise UntrustedInputError(
            path, "token ids", f"must be 0 to n-1, each once, n at most {TOKENS:,}"
        )
    return sorted(clean, key=lambda token: token["id"])


def _parts(node, key: str, nested: str, known: set[str], path, depth: int) -> list[dict]:
    """The steps of one pipeline, Sequences opened."""
    if node is None:
        return []
    if not isinstance(node, dict):
        raise UntrustedInputError(path, key, "must be an object")
    if node.get("type") != "Sequence":
        if not isinstance(node.get("type"), str) or node["type"] not in known:
            raise UntrustedInputError(path, key, f"the type {node.get('type')!r} is not known")
        return [node]
    steps = node.get(nested)
    if depth >= NESTING or not isinstance(steps, list) or len(steps) > PARTS:
        raise UntrustedInputError(
            path, key, f"a Sequence must list at most {PARTS} steps, {NESTING} deep"
        )
    found = [p for step in steps for p in _parts(step, key, nested, known, path, depth + 1)]
    if len(found) > PARTS:
        raise UntrustedInputError(path, key, f"has more than {PARTS} steps")
    return found


def _part(part: dict, key: str, size: int, path) -> float:
    """Check one step; by how many times it may lengthen a text."""
    kind = part["type"]
    if kind == "Precompiled":
        _charsmap(part.get("precompiled_charsmap"), path)
    elif kind in ("TemplateProcessing", "BertProcessing", "RobertaProcessing"):
        _template(part, size, path)
    for name in ("prepend", "prefix", "suffix", "replacement", "pad_token", "content"):
        _short(part.get(name), f"{key}.{kind}.{name}", path)
    if kind not in ("Replace", "Split"):
        return 1.0
    pattern = part.get("pattern")
    text = next(iter(pattern.values())) if isinstance(pattern, dict) and len(pattern) == 1 else None
    if not isinstance(text, str) or not text or not {"String", "Regex"} & pattern.keys():
        raise UntrustedInputError(path, f"{key}.{kind}", "must have one String or Regex")
    if kind == "Split":
        return 1.0
    content = len(part.get("content") or "")
    if "String" in pattern:
        return max(1.0, content / len(text))
    return max(1.0, content + (text not in KNOWN_REGEXES))  # an unknown one may match nothing


def _short(value, field: str, path) -> None:
    if value is not None and (not isinstance(value, str) or len(value) > TEXT):
        raise UntrustedInputError(path, field, f"must be a text of at most {TEXT} characters")


def _regex(part: dict) -> str | None:
    pattern = part.get("pattern")
    return pattern.get("Regex") if isinstance(pattern, dict) else None


def _template(part: dict, size: int, path) -> None:
    """Each token that a template inserts must have an id below `size`."""
    pairs = [part.get("sep"), part.get("cls")] if part["type"] != "TemplateProcessing" else []
    ids = [pair[1] if isinstance(pair, list | tuple) and len(pair) == 2 else None for pair in pairs]
    specials = part.get("special_tokens", {}) if not pairs else {}
    for form in ("single", "pair") if not pairs else ():
        if not isinstance(part.get(form), list) or len(part[form]) > TEXT:
            raise UntrustedInputError(path, f"post_processor.{form}", "must be a short list")
    if not isinstance(specials, dict) or len(specials) > TEXT:
        raise UntrustedInputError(path, "post_processor.special_tokens", "must be a short object")
    for value in specials.values():
        listed = value.get("ids") if isinstance(value, dict) else None
        ids += listed if isinstance(listed, list) and 0 < len(listed) <= TEXT else [None]
    if any(type(i) is not int or not 0 <= i < size for i in ids):
        raise UntrustedInputError(path, "post_processor", f"ids must be integers below {size:,}")


def _charsmap(text, path) -> None:
    """SentencePiece's character map: a trie, then NUL-ended texts that matches turn into."""
    field = "normalizer.precompiled_charsmap"
    try:
        blob = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise UntrustedInputError(path, field, "must be base64") from None
    start = 4 + int.from_bytes(blob[:4], "little")
    if not 4 <= start <= len(blob) <= CHARSMAP or start % 4:
        raise UntrustedInputError(path, field, f"its size must fit and be at most {CHARSMAP:,}")
    if max(map(len, blob[start:].split(b"\0"))) > CHARSMAP_ENTRY:
        raise UntrustedInputError(path, field, f"an entry has more than {CHARSMAP_ENTRY} bytes")


def _probe(spec: dict, path) -> None:
    """Try a description with a regex we do not know, without its vocabulary, in a child."""
    request = {key: spec[key] for key in ("normalizer", "pre_tokenizer")}
    request |= {"version": "1.0", "added_tokens": [], "post_processor": None, "decoder": None}
    try:
        done = subprocess.run(
            child.command("probe.py", "tokenizers"), input=json.dumps(request).encode(),
            capture_output=True, timeout=PROBE_SECONDS, check=False,
        )
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        limit = "is not one of the published ones, and on hard texts it fails or takes too long"
        raise UntrustedInputError(path, "regex", limit)
