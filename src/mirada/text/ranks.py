"""OpenAI's rank files (*.tiktoken): a line is a token in base64 and its rank, which is its id."""

import base64
import binascii
from pathlib import Path

from mirada.errors import UntrustedInputError
from mirada.text import guard, spm
from mirada.text.spec import Settings, around, byte_level, content, special
from mirada.text.stream import byte_of

TOKEN = 1_024  # bytes; the longest published token has 128
END = "<|endoftext|>"
FILL_IN = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
LLAMA3 = (
    "<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{n}|>" for n in range(4)),
    "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>",
    *(f"<|reserved_special_token_{n}|>" for n in range(5, 251)),
)
# The file's name -> the rule that splits text first, and the ids of the special tokens, which no
# file of ranks has.
ENCODINGS = {
    **dict.fromkeys(("gpt2", "r50k_base", "p50k_base"), ("gpt-2", {END: 50_256})),
    "p50k_edit": ("gpt-2", {END: 50_256, **{t: 50_281 + i for i, t in enumerate(FILL_IN)}}),
    "multilingual": ("gpt-2", {END: 50_257}),  # Whisper's
    "cl100k_base": ("cl100k", {END: 100_257, **{t: 100_258 + i for i, t in enumerate(FILL_IN)},
                               "<|endofprompt|>": 100_276}),
    "llama3": ("llama-bpe", {t: 128_000 + i for i, t in enumerate(LLAMA3)}),
    "o200k_base": ("gpt-4o", {END: 199_999, "<|endofprompt|>": 200_018}),
}


def describe(path: Path, encoding: str | None = None) -> tuple[dict, Settings]:
    """The description of a rank file; `encoding`: one of ENCODINGS, else the file's name says it.

    A text that is a token is that token; else the pair whose joint rank is lowest merges first.
    Ids that nothing has are filled with tokens that start with a space, which no text becomes.
    Raises UntrustedInputError.
    """
    name = encoding or path.stem
    if name not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        raise UntrustedInputError(path, "encoding", f"{name!r} is not known; name one of {known}")
    pre, specials = ENCODINGS[name]
    ranks = _ranks(path)
    pieces = [(token, -float(rank), spm.NORMAL) for token, rank in ranks.items()]
    merges = spm.merges(pieces)
    if taken := set(ranks.values()) & set(specials.values()):
        limit = f"{min(taken)} belongs to a special token of {name}"
        raise UntrustedInputError(path, "rank", limit)
    free = set(range(max(*ranks.values(), *specials.values()) + 1))
    free -= {*ranks.values(), *specials.values()}
    vocab = ranks | specials | {f" unused {i}": i for i in free}
    spec = byte_level(vocab, merges, pre)
    spec["model"]["ignore_merges"] = True
    spec["added_tokens"] = [special(token, i) for token, i in specials.items()]
    if name != "llama3":
        return spec, Settings(str(path), {"bos": END, "eos": END})
    spec["post_processor"] = around(spec, LLAMA3[0], None)
    return spec, Settings(str(path), {"bos": LLAMA3[0], "eos": LLAMA3[1]}, [specials["<|eot_id|>"]])


def _ranks(path: Path) -> dict[str, int]:
    """Token, as byte-level vocabularies write it, to rank."""
    letter = {b: c for c, b in byte_of().items()}
    ranks: dict[str, int] = {}
    for number, line in enumerate(content(path).splitlines(), 1):
        try:
            coded, rank = line.split()
            token = b"" if coded == b"=" else base64.b64decode(coded, validate=True)
            if len(token) > TOKEN or not rank.isdigit() or int(rank[:10]) >= guard.TOKENS:
                raise ValueError
        except (ValueError, binascii.Error):
            raise UntrustedInputError(
                path, f"line {number}", "must be a token in base64 and its rank"
            ) from None
        text = "".join(letter[b] for b in token)
        if text in ranks:
            raise UntrustedInputError(path, f"line {number}", "its token stood before")
        if text:  # Whisper's file has one that is empty, which nothing becomes
            ranks[text] = int(rank)
    if len(set(ranks.values())) < len(ranks):
        raise UntrustedInputError(path, "ranks", "must differ")
    if not set(letter.values()) <= ranks.keys():
        raise UntrustedInputError(path, "tokens", "must hold each of the 256 bytes")
    return ranks
