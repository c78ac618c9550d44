"""A tokenizer as GGUF's metadata: the inverse of `text.metadata`."""

from __future__ import annotations

import base64
import json

from mirada.errors import MiradaError
from mirada.text import guard, spm
from mirada.text.spec import IGNORE_MERGES, PRE

ROLES = {"bos": "bos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask",
         "cls": "cls", "eos": "eos"}  # one of them is misspelt there
START = "tokenizer.ggml."


def metadata(tokenizer, size: int) -> dict:
    """The keys `tokenizer.*` of a mirada tokenizer, for a model of `size` tokens.

    Ids without a token become unused ones. Raises MiradaError for what llama.cpp has no words for.
    """
    if tokenizer.size > size:
        raise MiradaError(f"the tokenizer has {tokenizer.size:,} tokens and the model's table "
                          f"{size:,} rows")
    spec = json.loads(tokenizer._library.to_str())
    tokens, types = _tokens(tokenizer, spec, size)
    model = spec["model"]
    kind = _kind(spec)
    found = {"model": kind, **KINDS[kind](spec, model, tokens, types), "tokens": tokens,
             "token_type": types}
    for role, name in ROLES.items():
        if role in tokenizer.tokens:
            found[f"{name}_token_id"] = tokenizer.id(tokenizer.tokens[role])
    ends = sorted(tokenizer.eos_ids - {found.get("eos_token_id")})
    if ends:
        found["eot_token_id"] = ends[0]
    ids = tokenizer.encode("a").ids
    found["add_bos_token"] = bool(ids) and ids[0] == found.get("bos_token_id")
    found["add_eos_token"] = len(ids) > 1 and ids[-1] == found.get("eos_token_id")
    templates = {"tokenizer.chat_template" + (f".{name}" if name != "default" else ""): text
                 for name, text in tokenizer.templates.items()}
    return {START + key: value for key, value in found.items()} | templates


def _tokens(tokenizer, spec: dict, size: int) -> tuple[list[str], list[int]]:
    by_id = {number: token for token, number in tokenizer._library.get_vocab().items()}
    added = {token["id"]: token for token in spec["added_tokens"]}
    unknown = spec["model"].get("unk_token"), spec["model"].get("unk_id")
    tokens, types = [], []
    for number in range(size):
        token = by_id.get(number)
        tokens.append(f"[PAD{number}]" if token is None else token)
        if token is None:
            types.append(spm.UNUSED)
        elif (token == unknown[0] or number == unknown[1]) and _kind(spec) in ("llama", "t5"):
            types.append(spm.UNKNOWN)
        elif number in added:
            types.append(spm.CONTROL if added[number]["special"] else spm.USER_DEFINED)
        elif spec["model"].get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
            types.append(spm.BYTE)
        else:
            types.append(spm.NORMAL)
    return tokens, types


def _kind(spec: dict) -> str:
    model = spec["model"]
    if model["type"] == "BPE" and "ByteLevel" in json.dumps(spec["pre_tokenizer"]):
        return "gpt2"
    known = {"WordPiece": "bert", "Unigram": "t5"}
    kind = "llama" if model["type"] == "BPE" and model.get("byte_fallback") else known.get(
        model["type"])
    if kind is None:
        raise MiradaError(f"llama.cpp has no tokenizer like this one ({model['type']}): it knows "
                          "byte-level BPE, SentencePiece and WordPiece")
    return kind


def _byte_level(spec: dict, model: dict, tokens: list, types: list) -> dict:
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {"pre": _pre(spec), "merges": merges}


def _pre(spec: dict) -> str:
    """The name of the rule that splits a text first, by its regular expressions."""
    steps, rules = spec["pre_tokenizer"], []
    for step in steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]:
        if step["type"] == "Digits" and step["individual_digits"]:
            rules.append(r"\p{N}")
        elif step["type"] == "Split" and "Regex" in step["pattern"] and (
                step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True)):
            rules.append(step["pattern"]["Regex"])
        elif step["type"] == "ByteLevel":
            rules += [guard.GPT2] * step["use_regex"]
        else:
            rules.append(json.dumps(step))  # no rule has a name like that
    normalizer = (spec["normalizer"] or {}).get("type")
    whole = bool(spec["model"].get("ignore_merges"))
    named = [name for name, (steps, form) in PRE.items() if steps == tuple(rules)
             and (name in IGNORE_MERGES) == whole and form == normalizer]
    if not named:
        raise MiradaError("llama.cpp has no name for the rule that splits this tokenizer's texts: "
                          f"{rules}")
    return named[0]


def _spm(spec: dict, model: dict, tokens: list, types: list) -> dict:
    """Scores that make llama.cpp merge in our order: the earlier a merge, the higher."""
    rank = {}
    for n, merge in enumerate(model["merges"]):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault("".join(pair), -float(n))
    worst = -float(len(model["merges"]))
    scores = [0.0 if kind != spm.NORMAL else rank.get(token, worst)
              for token, kind in zip(tokens, types, strict=True)]
    prefix = '"Prepend"' in json.dumps(spec["normalizer"]) or '"always"' in json.dumps(
        spec["pre_tokenizer"]) or '"first"' in json.dumps(spec["pre_tokenizer"])
    return {"pre": "default", "scores": scores, "add_space_prefix": prefix}


def _unigram(spec: dict, model: dict, tokens: list, types: list) -> dict:
    known = {piece: float(score) for piece, score in model["vocab"]}
    steps = spec["normalizer"] or {}
    steps = steps.get("normalizers", [steps])
    maps = [s["precompiled_charsmap"] for s in steps if s.get("type") == "Precompiled"]
    found = {"pre": "default", "scores": [known.get(token, 0.0) for token in tokens],
             "add_space_prefix": True, "remove_extra_whitespaces": True}
    if maps and maps[0]:
        found["precompiled_charsmap"] = list(base64.b64decode(maps[0]))
    return found


def _wordpiece(spec: dict, model: dict, tokens: list, types: list) -> dict:
    """There a word's first piece is marked, and not those that go on."""
    for n, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == spm.NORMAL and not (token.startswith("[") and token.endswith("]")):
            tokens[n] = token.removeprefix("##") if token.startswith("##") else "▁" + token
    return {"token_type_count": 2}


KINDS = {"gpt2": _byte_level, "llama": _spm, "t5": _unigram, "bert": _wordpiece}
