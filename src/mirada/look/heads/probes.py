"""What heads are tried on: sentences with gold links, running text, and random tokens repeated.

A probe is a batch with its facts; the scores and the causal tests read the same ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mirada.look.heads.templates import Sentence

PASSAGE = 64  # tokens of a row of running text
PERIOD, TIMES = 25, 4  # random tokens, and how often they come: 2209.11895's setting


@dataclass(frozen=True, eq=False)
class Probe:
    """Rows of one kind, (B, T), as one stack reads them.

    kind: passages, repeats, sentences, twins or pairs. batch: what the model is called with. real:
    where a token stands; special: tokens that stand for no text; stops: those and punctuation.
    seen (B, T, S): pairs of a query and a key that the mask allows. words: each row's tokens by
    word; keys: the same of the keys, where these are another text's. sentences: what the rows say.
    """

    kind: str
    stack: str
    batch: dict
    ids: Tensor
    real: Tensor
    special: Tensor
    stops: Tensor
    seen: Tensor
    words: list[list[list[int]]] = field(default_factory=list)
    keys: list[list[list[int]]] = field(default_factory=list)
    sentences: list = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)  # of each id in all sentences

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, chosen: list[int], length: int | None = None) -> Probe:
        """Some rows alone, cut to so many tokens."""
        def some(x):
            if torch.is_tensor(x):
                return x[chosen][:, :length] if x.ndim < 3 else x[chosen][:, :length, :length]
            return [x[n] for n in chosen] if isinstance(x, list) and x else x
        parts = {name: some(x) for name, x in vars(self).items() if name != "batch"}
        batch = {name: x[chosen][:, :length] for name, x in self.batch.items()}
        return Probe(**parts, batch=batch)


def _probe(kind: str, model, stack: str, batch: dict, ids: Tensor, **facts) -> Probe:
    tokenizer = model.tokenizer
    if model.encoder_decoder:
        batch = batch | {"decoder_input_ids": torch.full((len(ids), 1), model.config.start)}
    mask = batch.get("attention_mask")
    real = torch.ones_like(ids).bool() if mask is None or mask.shape != ids.shape else mask.bool()
    kinds = tokenizer.special_ids if tokenizer is not None else set()
    special = torch.isin(ids, torch.tensor(sorted(kinds), dtype=ids.dtype)) & real
    marks = {i for i in set(ids.flatten().tolist()) - kinds
             if tokenizer is not None and not any(map(str.isalnum, tokenizer.decode([i]) or "x"))}
    stops = special | (torch.isin(ids, torch.tensor(sorted(marks), dtype=ids.dtype)) & real)
    seen = real[:, :, None] & real[:, None]
    if stack == "decoder":
        seen = seen.tril()
    return Probe(kind, stack, batch, ids, real, special, stops, seen, **facts)


def repeats(model, rows: int, period: int = PERIOD, times: int = TIMES, seed: int = 0) -> Probe:
    """Random tokens, all different, that come again and again in the same order."""
    draw, stack = torch.Generator().manual_seed(seed), _stack(model)
    tokenizer, V = model.tokenizer, model.config.vocab
    special = tokenizer.special_ids if tokenizer is not None else set()
    V = V if tokenizer is None else min(V, tokenizer.size)  # tables are often padded
    among = range(V // 4, 3 * V // 4) if V >= 8 * period else range(V)  # no rarest, no commonest
    usable = torch.tensor([i for i in among if i not in special])
    period = min(period, len(usable), (model.context or 1 << 20) // times - 1)
    made = torch.stack([usable[torch.randperm(len(usable), generator=draw)[:period]]
                        for _ in range(rows)])
    begin = torch.tensor(_around(tokenizer)[0], dtype=made.dtype).expand(rows, -1)
    ids = torch.cat([begin, made.repeat(1, times)], 1)
    return _probe("repeats", model, stack, {"input_ids": ids}, ids)


def passages(model, texts: list[str], rows: int, length: int = PASSAGE) -> Probe:
    """Running text in rows of equal length; random tokens where the model has no tokenizer."""
    length = min(length, model.context or length)
    if model.tokenizer is None:
        ids = torch.randint(model.config.vocab, (rows, length),
                            generator=torch.Generator().manual_seed(1))
        return _probe("passages", model, _stack(model), {"input_ids": ids}, ids)
    begin, end = _around(model.tokenizer)
    inner = length - len(begin) - len(end)
    flow = model.tokenizer.encode(" ".join(texts), special=False).ids
    flow = flow * (1 + inner // max(len(flow), 1))
    cuts = [flow[n : n + inner] for n in range(0, len(flow) - inner + 1, inner)][:rows]
    ids = torch.tensor([[*begin, *cut, *end] for cut in cuts])
    return _probe("passages", model, _stack(model), {"input_ids": ids}, ids)


def sentences(model, given: list[Sentence], kind: str = "sentences") -> Probe:
    """Annotated sentences, one a row, padded on the right."""
    batch = model.tokenizer([s.text for s in given], truncate=model.context)
    words = [placed(model, s) for s in given]
    ids = batch["input_ids"]
    counts = Counter(ids[batch["attention_mask"].bool()].tolist())
    return _probe(kind, model, _stack(model), batch, ids, words=words, keys=words,
                  sentences=given, counts=counts)


def pairs(model, given: list[tuple[Sentence, Sentence]]) -> Probe:
    """Source sentences and their translations, for the cross-attention of an encoder-decoder."""
    source = model.tokenizer([a.text for a, _ in given])
    target = model.tokenizer([b.text for _, b in given])
    start = torch.full((len(given), 1), model.config.start)
    ids = torch.cat([start, target["input_ids"]], 1)
    real = torch.cat([torch.ones_like(start), target["attention_mask"]], 1)
    batch = {"input_ids": source["input_ids"], "attention_mask": source["attention_mask"],
             "decoder_input_ids": ids, "decoder_attention_mask": real}
    seen = real.bool()[:, :, None] & source["attention_mask"].bool()[:, None]
    none = torch.zeros_like(real).bool()
    words = [[[t + 1 for t in w] for w in placed(model, b)] for _, b in given]
    return Probe("pairs", "cross", batch, ids, real.bool(), none, none, seen, words,
                 [placed(model, a) for a, _ in given], given)


def placed(model, sentence: Sentence) -> list[list[int]]:
    """The tokens of each word; none for a word that was cut off."""
    found = model.tokenizer.encode(sentence.text)
    most = model.context or len(found)
    return [[t for t, (x, y) in enumerate(found.offsets[:most]) if x < b and y > a and x < y]
            for a, b in sentence.spans]


def _around(tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that stand before and after a text."""
    ids = tokenizer.encode("").ids if tokenizer is not None else []
    first = [i for i in ids[:1] if i in (tokenizer.cls_id, tokenizer.bos_id)]
    return first, ids[len(first):]


def _stack(model) -> str:
    return "decoder" if model.kind == "decoder" else "encoder"
