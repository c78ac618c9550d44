"""A tokenizer made from one's own texts: byte-level BPE, WordPiece or Unigram.

Sennrich et al., arXiv 1508.07909; Schuster and Nakajima 2012; Kudo, arXiv 1804.10959. The counting
is the tokenizers library's; what is made here is what it counts, and the folder it becomes.
"""

import io
import json
import os
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
from tokenizers import pre_tokenizers, trainers
from tqdm import tqdm

from mirada.errors import MiradaError, WorkFailed
from mirada.text import guard
from mirada.text.spec import (
    Settings,
    assemble,
    byte_level,
    replace,
    sequence,
    template,
    wordpiece,
)
from mirada.text.tokenizer import Tokenizer
from mirada.weights.paths import open_regular

END = "<|endoftext|>"
SPECIAL = {  # role -> token, in the order of their ids
    "bpe": {"eos": END},
    "wordpiece": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "unigram": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
}
FILLED = 1e-4  # the library's step between letters that no piece explains
DIGITS = 6  # of a Unigram score: what the library's own sums do not change


@dataclass
class Trained:
    """What training made: the folder, the kind, the tokens, and how much text was read."""

    folder: str
    kind: str
    size: int
    lines: int
    characters: int

    def data(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        return (f"{self.folder}: {self.kind}, {self.size:,} tokens from {self.lines:,} lines "
                f"({self.characters:,} characters)")


def train(
    files: list[str], kind: str, size: int, folder: str | os.PathLike, *, special=(),
    lowercase: bool = False,
) -> Trained:
    """Train a tokenizer of at most `size` tokens on UTF-8 text files and write it to `folder`.

    kind: bpe (GPT-2's), wordpiece (BERT's) or unigram (T5's), with the special tokens of each and
    `special` after them. lowercase: of WordPiece, drop case and accents. The same texts give the
    same folder in every process: tokenizer.json and tokenizer_config.json. Raises MiradaError
    before anything is written: for a file that is empty or no UTF-8 (file and line are named), for
    a size that does not hold the text's own characters, for a folder that holds something.
    """
    out = Path(folder)
    if kind not in SPECIAL:
        raise MiradaError(f"no tokenizer is of kind {kind!r}; there are {', '.join(SPECIAL)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MiradaError(f"{out} exists and is not an empty folder: name another with -o")
    if not all(special):
        raise MiradaError("a special token must have a character or more")
    roles = SPECIAL[kind]
    tokens = list(dict.fromkeys([*roles.values(), *special]))
    settings = Settings(str(out), dict(roles))
    if kind == "bpe":
        settings.tokens["bos"] = END
    spec = _untrained(kind, settings, tokens, lowercase)
    spec |= {"version": "1.0", "added_tokens": []}  # the trainer adds the special ones itself
    library = tokenizers.Tokenizer.from_str(json.dumps(spec))
    seen, lines, characters = _survey(files)
    _fits(kind, size, tokens, seen, library)
    with guard.library(out, "training"):
        inner = _inner(files, library) if kind == "wordpiece" else []
        first = list(dict.fromkeys(tokens + inner))
        library.train_from_iterator(_progress(files), _trainer(kind, size, first), length=lines)
    if (made := library.get_vocab_size()) > size:
        raise MiradaError(f"size {size:,} is too small: these texts need at least {made:,}")
    _write(_settled(json.loads(library.to_str()), tokens), settings, out)
    return Trained(str(out), kind, made, lines, characters)


def _untrained(kind: str, settings: Settings, tokens: list[str], lowercase: bool) -> dict:
    """The description around a model that knows its special tokens only."""
    if kind == "bpe":
        return byte_level({}, [], "gpt-2")
    if kind == "wordpiece":
        return wordpiece(tokens, settings, settings.path, lowercase=lowercase)
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    rows = [[token, 0.0] for token in tokens]
    spec = assemble(
        {"type": "Unigram", "vocab": rows, "unk_id": 2, "byte_fallback": False}, [],
        normalizer=sequence("normalizers", [
            {"type": "NFKC"}, replace(" {2,}", " ", "Regex"), replace(guard.SPM_EDGES, "", "Regex"),
        ]),
        pre_tokenizer=space, decoder=space,
    )
    spec["post_processor"] = template(spec, "$A:0 </s>:0", "$A:0 </s>:0 $B:0 </s>:0")
    return spec


def _trainer(kind: str, size: int, tokens: list[str]):
    told: dict = {"vocab_size": size, "special_tokens": tokens}
    told["show_progress"] = sys.stderr.isatty()
    if kind == "bpe":
        return trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **told)
    if kind == "wordpiece":
        return trainers.WordPieceTrainer(limit_alphabet=0x110000, **told)
    return trainers.UnigramTrainer(unk_token="<unk>", **told)


def _inner(files: list[str], library) -> list[str]:
    """The letters of WordPiece inside a word (##a), sorted. Left to itself, the trainer numbers
    them as it meets them in a table that no two processes order alike, and ties between merges go
    by these numbers."""
    words = {word for line, _ in _lines(files) for word in line.split()}
    library.train_from_iterator(sorted(words), _trainer("wordpiece", 0, []))
    return sorted(token for token in library.get_vocab() if token.startswith("##"))


def _settled(spec: dict, tokens: list[str]) -> dict:
    """The description without what differs from process to process: Unigram's sums, taken in any
    order, differ in a last digit, and its letters that no piece explains (each has the lowest score
    and 0, 1, 2 ... FILLED more) come in any order."""
    spec["added_tokens"] = [row for row in spec["added_tokens"] if row["content"] in tokens]
    if spec["model"]["type"] == "Unigram":
        rows = spec["model"]["vocab"]
        scores = dict(map(tuple, rows[len(tokens):]))
        least = min(scores.values())
        filled = [piece for piece, score in scores.items() if len(piece) == 1
                  and abs((score - least) / FILLED - round((score - least) / FILLED)) < 1e-6]
        given = sorted((scores[piece] for piece in filled), reverse=True)
        scores |= dict(zip(sorted(filled), given, strict=True))
        kept = sorted((-round(score, DIGITS), piece) for piece, score in scores.items())
        rows[len(tokens):] = [[piece, -score] for score, piece in kept]
    return spec


def _lines(files: list[str]) -> Iterator[tuple[str, int]]:
    """Each line, its end kept, and how many bytes it has."""
    for name in files:
        with io.BufferedReader(open_regular(name)) as file:  # type: ignore[type-var]
            number = 0
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8"), len(line)
                except UnicodeDecodeError:
                    raise MiradaError(
                        f"{name}, line {number}: is no UTF-8; convert the file first "
                        "(iconv -f latin1 -t utf-8)"
                    ) from None
            if not number:
                raise MiradaError(f"{name} is empty: there is nothing to learn from it")


def _survey(files: list[str]) -> tuple[set[str], int, int]:
    """(the characters of all texts, lines, characters); every file is read to its end."""
    seen: set[str] = set()
    lines = characters = 0
    for line, _ in _lines(files):
        seen.update(line)
        lines, characters = lines + 1, characters + len(line)
    if all(c.isspace() for c in seen):
        raise MiradaError(f"{', '.join(files)}: holds only white space")
    return seen, lines, characters


def _fits(kind: str, size: int, tokens: list[str], seen: set[str], library) -> None:
    """Refuse a size below special tokens and alphabet; `library` knows what case and form do."""
    if kind == "bpe":
        letters = 256
    else:
        kept = library.normalizer.normalize_str("".join(sorted(seen)))
        letters = len({c for c in kept if not c.isspace() and unicodedata.category(c) != "Cc"})
    if size < len(tokens) + letters:
        what = "bytes" if kind == "bpe" else "different characters of these texts"
        raise MiradaError(
            f"size {size:,} is too small: {len(tokens)} special tokens and the {letters:,} {what} "
            f"need {len(tokens) + letters:,}"
        )


def _progress(files: list[str]) -> Iterator[str]:
    total = sum(os.path.getsize(name) for name in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="read", file=sys.stderr,
              disable=None, leave=False) as bar:
        for line, count in _lines(files):
            bar.update(count)
            yield line


def _write(spec: dict, settings: Settings, out: Path) -> None:
    """Written aside, then renamed: a folder that is there is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        made = Path(aside) / "made"
        Tokenizer(spec, settings).save(made)
        try:
            os.replace(made, out)
        except OSError as error:
            raise WorkFailed(f"{out}: {error.strerror}") from None
