"""The tokenizer: text to ids and back, over the `tokenizers` library, for every form of file."""

import json
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers

from mirada.errors import MiradaError, UntrustedInputError
from mirada.text import chat, guard, readers
from mirada.text import metadata as gguf
from mirada.text.chat import Control
from mirada.text.spec import Settings
from mirada.text.stream import Stream, bytes_of
from mirada.weights import ggufhead, jsonfile
from mirada.weights.paths import open_regular

NAMES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model",
         "spm.model", "sentencepiece.bpe.model")
EMPTY_BPE = {"type": "BPE", "vocab": {}, "merges": []}
BPE_KEYS = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
            "byte_fallback", "ignore_merges")
SIGNS = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


@dataclass
class Encoding:
    """One encoded text, or pair of texts: lists with an entry a token, made when first asked for.

    ids; type_ids; tokens; offsets: (start, end) in characters of the text the token came from;
    special_mask: 1 for tokens that stand for no text ([CLS] ...); sequence: 0 or 1 for the text
    the token came from, None where it stands for none.
    """

    found: tokenizers.Encoding

    def __len__(self) -> int:
        return len(self.found)

    ids = cached_property(lambda self: self.found.ids)
    type_ids = cached_property(lambda self: self.found.type_ids)
    tokens = cached_property(lambda self: self.found.tokens)
    offsets = cached_property(lambda self: self.found.offsets)
    special_mask = cached_property(lambda self: self.found.special_tokens_mask)

    @cached_property
    def sequence(self) -> list[int | None]:
        mask = self.special_mask
        return [None if mask[i] else s for i, s in enumerate(self.found.sequence_ids)]


class Tokenizer:
    """A tokenizer with its special tokens and chat templates.

    bos_id, unk_id, pad_id, cls_id, sep_id, mask_id: int or None. eos_ids: the set of ids that end
    a text; a loader may add to it. special_ids: ids that decoding leaves out. size: the number
    of ids. max_length: tokens the model takes, or None. templates: chat templates by name.
    """

    def __init__(self, spec: dict, settings: Settings | None = None):
        """From a tokenizer.json's content. Raises UntrustedInputError, as all ways to load do."""
        settings = settings or Settings("tokenizer")
        self.path, self.max_length = settings.path, settings.max_length
        self.tokens, self.templates = dict(settings.tokens), dict(settings.templates)
        self.truncation_side = settings.truncation_side
        self.padding_side = settings.padding_side
        spec = guard.check(spec, self.path)
        self.decoder = spec["decoder"]
        self._added = spec["added_tokens"]
        self._library = _build(spec, self.path)
        for token in self._added:
            if self.id(token["content"]) != token["id"]:
                limit = f"must be {self._library.token_to_id(token['content'])}"
                raise UntrustedInputError(self.path, f"id of {token['content']!r}", limit)
        self.size = self._library.get_vocab_size()
        self.special_ids = {token["id"] for token in self._added if token["special"]}
        self._set_ids(settings.end_ids)
        types = '"type_id": 1' in json.dumps(spec["post_processor"])
        inputs = ["input_ids", "attention_mask", *["token_type_ids"] * types]
        self.inputs = settings.inputs or inputs

    def _set_ids(self, ends: list) -> None:
        ids = {role: self._library.token_to_id(token) for role, token in self.tokens.items()}
        for role, number in ids.items():
            if number is None:
                limit = "is not in the vocabulary"
                raise UntrustedInputError(self.path, f"{role}_token {self.tokens[role]!r}", limit)
        self.bos_id, self.pad_id, self.unk_id = ids.get("bos"), ids.get("pad"), ids.get("unk")
        self.cls_id, self.sep_id, self.mask_id = ids.get("cls"), ids.get("sep"), ids.get("mask")
        if any(type(i) is not int or not 0 <= i < self.size for i in ends):
            raise UntrustedInputError(self.path, "eos_token_id", f"must be below {self.size:,}")
        self.eos_ids = {*ends, *([ids["eos"]] if "eos" in ids else [])}

    @classmethod
    def from_folder(cls, path: str | os.PathLike) -> "Tokenizer":
        """From a model's folder: tokenizer.json, or the older files it was made from."""
        return cls(*readers.folder(path))

    @classmethod
    def from_file(cls, path: str | os.PathLike, encoding: str | None = None) -> "Tokenizer":
        """From one file: tokenizer.json, vocab.txt, a SentencePiece .model, .tiktoken, .gguf.

        encoding: how a .tiktoken file splits text, where its name does not say (cl100k_base ...).
        """
        return cls(*readers.file(path, encoding))

    @classmethod
    def from_gguf(cls, metadata: dict, path: str = "GGUF metadata") -> "Tokenizer":
        """From a GGUF file's metadata; `path` is for messages."""
        return cls(*gguf.describe(metadata, str(path)))

    @classmethod
    def beside(cls, path: str | os.PathLike) -> "Tokenizer | None":
        """The one that lies in a model's folder or GGUF file, or None: both may hold a model
        alone."""
        path = Path(path)
        if path.is_dir():
            return cls.from_folder(path) if any((path / n).is_file() for n in NAMES) else None
        with open_regular(path) as file:
            found = ggufhead.read(file, path).metadata
        known = found.get("tokenizer.ggml.model", "no_vocab") != "no_vocab"
        return cls.from_gguf(found) if known else None

    def id(self, token: str) -> int:
        """The id of `token`. Raises MiradaError where there is none."""
        number = self._library.token_to_id(token)
        if number is None:
            raise MiradaError(f"the vocabulary has no token {token!r}")
        return number

    def token(self, id: int) -> str:
        """The token with this id, as the vocabulary writes it. Raises MiradaError."""
        token = self._library.id_to_token(id) if 0 <= id < self.size else None
        if token is None:
            raise MiradaError(f"token id {id} is out of range: the tokenizer has {self.size:,}")
        return token

    def __getattr__(self, name: str):
        """The reference's names: mask_token, mask_token_id and so on of each role; None where the
        vocabulary has none."""
        role, of, kind = name.partition("_token")
        if not of or kind not in ("", "_id") or role not in readers.ROLES:
            raise AttributeError(f"a Tokenizer has no {name!r}")
        token = self.tokens.get(role)
        return token if not kind or token is None else self.id(token)

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """The id of a token, or of each of a list, by the reference's name of this."""
        return self.id(tokens) if isinstance(tokens, str) else [self.id(t) for t in tokens]

    def apply_chat_template(self, messages: list[dict], *, tokenize: bool = True,
                            add_generation_prompt: bool = False, **variables) -> str | list[int]:
        """`chat`, or `render` with tokenize=False, by the reference's name of both."""
        make = self.chat if tokenize else self.render
        return make(messages, add_generation_prompt=add_generation_prompt, **variables)

    # Text to ids

    def encode(
        self, text: str, pair: str | None = None, *, special: bool = True,
        parse_special: bool = True,
    ) -> Encoding:
        """Encode one text, or a pair as the family joins them ([CLS] text [SEP] pair [SEP]).

        special: add the tokens the family puts around a text. parse_special: the text of a
        special token becomes that token, as in the reference; with False it is ordinary text.
        Time is linear in the text. Raises MiradaError for half a surrogate pair, which is no text.
        """
        library = self._library if parse_special else self._plain[0]
        for part in (text, pair):
            if part is not None:
                _check_text(part)
        with guard.library(self.path, "encode"):
            return Encoding(library.encode(text, pair, add_special_tokens=special))

    def __call__(
        self, texts, pairs=None, *, padding: str | None = "right", truncate: int | None = None,
        special: bool = True,
    ) -> dict:
        """A batch for a model: dict of int64 tensors (B, T) input_ids, attention_mask and, where
        the family uses them, token_type_ids.

        texts, pairs: a text or a list of them. padding: the side of pads, or None for texts of
        equal length. truncate: at most so many tokens a row, special ones kept; of a pair the
        longer loses first. Pads are pad_id, else an end token: the mask hides them.
        """
        import torch

        if padding not in ("left", "right", None):
            raise MiradaError(f"padding must be 'left', 'right' or None, not {padding!r}")
        texts = [texts] if isinstance(texts, str) else list(texts)
        pairs = [pairs] if isinstance(pairs, str) else pairs or [None] * len(texts)
        if not texts or len(pairs) != len(texts):
            raise MiradaError(f"{len(texts)} texts and {len(pairs)} pairs: wanted 1 or more, alike")
        rows = [self._row(t, p, truncate, special) for t, p in zip(texts, pairs, strict=True)]
        width = max(len(ids) for ids, _ in rows)
        if padding is None and any(len(ids) != width for ids, _ in rows):
            raise MiradaError("the texts have different lengths; pass padding='right' or 'left'")
        pad = self.pad_id if self.pad_id is not None else min(self.eos_ids, default=0)
        columns = {"input_ids": [], "attention_mask": [], "token_type_ids": []}
        for ids, kinds in rows:
            made = ((ids, pad), ([1] * len(ids), 0), (kinds, 0))
            for column, (row, fill) in zip(columns.values(), made, strict=True):
                gap = [fill] * (width - len(ids))
                column.append(gap + row if padding == "left" else row + gap)
        if "token_type_ids" not in self.inputs:
            del columns["token_type_ids"]
        return {name: torch.tensor(rows, dtype=torch.int64) for name, rows in columns.items()}

    def _row(self, text, pair, limit: int | None, special: bool) -> tuple[list, list]:
        """(ids, type ids) of one text or pair, cut to `limit` tokens."""
        row = self.encode(text, pair, special=special)
        if limit is None or len(row) <= limit:
            return row.ids, row.type_ids
        whose = row.sequence
        parts = [[i for i, s in enumerate(whose) if s == which] for which in (0, 1)]
        kept = _longest_first(len(parts[0]), len(parts[1]), limit - whose.count(None))
        keep = {i for i, s in enumerate(whose) if s is None}
        for part, count in zip(parts, kept, strict=True):
            start = len(part) - count if self.truncation_side == "left" else 0
            keep |= set(part[start : start + count])
        order = sorted(keep)
        return [row.ids[i] for i in order], [row.type_ids[i] for i in order]

    # Ids to text

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises MiradaError."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.size:
                self.token(i)
        with guard.library(self.path, "decode"):
            return self._library.decode(ids, skip_special_tokens=skip_special)

    def decode_tokens(self, tokens: list[str]) -> str:
        """The text of tokens as the vocabulary writes them."""
        return self._library.decoder.decode(tokens)

    def stream(self, *, skip_special: bool = True) -> Stream:
        """A decoder for ids that come one at a time: push(id) -> str, end() -> str."""
        return Stream(self, skip_special)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """A short readable label for each id, for pictures.

        A space is ·, a line end ⏎, a tab ⇥, WordPiece's continuation ##ing is -ing, bytes that
        are no whole character are <E2 80>.
        """
        kind = _kind(self.decoder)
        labels = []
        for token in (self.token(int(i)) for i in ids):
            if kind == "WordPiece" and token.startswith("##"):
                token = "-" + token[2:]
            elif kind == "ByteLevel":
                raw = bytes_of(token)
                token = raw.decode(errors="replace")
                if "\ufffd" in token:
                    labels.append(f"<{raw.hex(' ').upper()}>")
                    continue
            elif kind == "▁":
                token = token.lstrip(" ").replace("▁", " ")
                if re.fullmatch("<0x[0-7][0-9A-F]>", token):
                    token = chr(int(token[3:5], 16))
            labels.append(token.translate(SIGNS))
        return labels

    # Chat

    def render(
        self, messages: list[dict], *, add_generation_prompt: bool = True, tools=None,
        documents=None, template: str | None = None, **variables,
    ) -> str:
        """The text that the chat template makes of `messages` (dicts with role and content).

        template: a template's name or its source. Further keywords reach the template. Raises
        MiradaError where there is no template, or it refuses or fails.
        """
        draw = self._drawer(
            messages, tools, template,
            {"add_generation_prompt": add_generation_prompt, "documents": documents, **variables},
        )
        return draw(messages, tools)

    def chat(
        self, messages: list[dict], *, add_generation_prompt: bool = True, tools=None,
        documents=None, template: str | None = None, special_in_text: bool = False, **variables,
    ) -> list[int]:
        """The ids of a conversation, ready for the model.

        Control tokens that the template writes are control tokens; the same text inside a message
        or a tool is ordinary text (see chat.plan), unless special_in_text. Where no content
        holds such text, the ids are those of the rendered text.
        """
        draw = self._drawer(
            messages, tools, template,
            {"add_generation_prompt": add_generation_prompt, "documents": documents, **variables},
        )
        if special_in_text:
            return self.encode(draw(messages, tools), special=False).ids
        text, spans = chat.plan(draw, messages, tools, self._control)
        if spans == self._control.spans(text):
            return self.encode(text, special=False).ids
        library, names = self._plain
        parts, at = [], 0
        for start, end in spans:
            parts += [text[at:start], names[text[start:end]]]
            at = end
        with guard.library(self.path, "chat"):
            return library.encode("".join([*parts, text[at:]]), add_special_tokens=False).ids

    def _drawer(self, messages, tools, template: str | None, variables: dict):
        """The function that renders (messages, tools), after checking that they can be."""
        if not isinstance(messages, list) or not messages or not all(
            isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages
        ):
            raise MiradaError("messages must be a list of 1 or more dicts with a role and content")
        name = template or ("tool_use" if tools and "tool_use" in self.templates else "default")
        source = self.templates.get(name, template)
        if source is None:
            raise MiradaError(
                f"{self.path}: this model has no chat template; use a chat model, or pass template="
            )
        if template and template not in self.templates and "{" not in template:
            known = ", ".join(self.templates) or "none"
            raise MiradaError(f"{self.path}: no chat template is called {template!r} ({known})")
        names = {f"{role}_token": token for role, token in self.tokens.items()}

        def draw(messages, tools) -> str:
            told = {**names, **variables, "messages": messages, "tools": tools}
            return chat.render(source, told, self.path)

        return draw

    @cached_property
    def _control(self) -> Control:
        special = [t["content"] for t in self._added if t["special"]]
        return Control(special, [t["content"] for t in self._added if not t["special"]])

    @cached_property
    def _plain(self) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
        """(library, names): a twin in which no text parses as a control token.

        Its control tokens have the same ids under secret names, in the vocabulary too, as a
        Unigram model would match `</s>` in text; names maps each to its secret one.
        """
        nonce = secrets.token_hex(8)
        names = {t: f"\U000F0000{nonce}:{i}\U000F0001" for i, t in enumerate(self._control.all)}
        library = _build(_renamed(json.loads(self._library.to_str()), names), self.path)
        for token, name in names.items():
            if library.token_to_id(name) != self.id(token):
                raise UntrustedInputError(self.path, f"token {token!r}", "cannot be set apart")
        return library, names

    # Saving

    def save(self, folder: str | os.PathLike) -> None:
        """Write tokenizer.json and tokenizer_config.json, as transformers and others read them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        jsonfile.write(folder / "tokenizer.json", json.loads(self._library.to_str()))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": self.inputs,
            "model_max_length": self.max_length or int(1e30),
            "padding_side": self.padding_side, "truncation_side": self.truncation_side,
            "clean_up_tokenization_spaces": False,
        }
        config |= {f"{role}_token": token for role, token in self.tokens.items()}
        if self.templates.keys() == {"default"}:
            config["chat_template"] = self.templates["default"]
        elif self.templates:
            named = [{"name": n, "template": t} for n, t in self.templates.items()]
            config["chat_template"] = named
        jsonfile.write(folder / "tokenizer_config.json", config)


def _build(spec: dict, path) -> tokenizers.Tokenizer:
    with guard.library(path, "tokenizer"):
        if spec["model"]["type"] == "BPE":
            return _bpe(spec)
        return tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))


def _bpe(spec: dict) -> tokenizers.Tokenizer:
    """The same, with the vocabulary and merges handed over as they are: through JSON, the 98,000
    of SmolLM2 take four times as long."""
    model = spec["model"]
    rest = json.dumps(spec | {"added_tokens": [], "model": EMPTY_BPE}, ensure_ascii=False)
    frame = tokenizers.Tokenizer.from_str(rest)
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    known = {key: model[key] for key in BPE_KEYS if model.get(key) is not None}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(model["vocab"], merges, **known))
    for part in guard.KINDS:
        if getattr(frame, part) is not None:
            setattr(library, part, getattr(frame, part))
    library.add_tokens([
        tokenizers.AddedToken(token["content"], **{flag: token[flag] for flag in guard.FLAGS})
        for token in spec["added_tokens"]])
    return library


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise MiradaError(f"a text must be a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MiradaError(
            f"character {error.start} of the text is half of a surrogate pair; it is no text"
        ) from None


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text stay when `room` do; the longer gives first, as the library."""
    if room < 0:
        raise MiradaError("truncate is smaller than the special tokens alone")
    if first + second <= room:
        return first, second
    if second == 0:
        return room, 0
    short = min(first, second)
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)


def _kind(decoder: dict | None) -> str:
    """How tokens are written: "ByteLevel", "WordPiece", "▁" or "" for plain."""
    text = json.dumps(decoder, ensure_ascii=False)
    return next((kind for kind in ("ByteLevel", "WordPiece", "▁") if f'"{kind}"' in text), "")


def _renamed(spec: dict, names: dict[str, str]) -> dict:
    """The description with tokens under other names, and no merge that makes or uses them."""
    model = spec["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [
            m for m in model["merges"] if not {m[0], m[1], m[0] + m[1]} & names.keys()
        ]
    for token in spec["added_tokens"]:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "normalized": False}
    return spec
