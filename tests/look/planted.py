"""Models whose weights are written by hand, so that what each head does is known.

The stream has a place for each thing: the token, its position, the token before, and what the
output says. A head reads one place by its query, another by its keys, and writes into a third.
"""

import torch

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import LMHead
from mirada.core.mask import Mask
from mirada.core.position import Learned
from mirada.look.heads import templates
from mirada.model import Model
from mirada.models import gpt2
from mirada.text import spec
from mirada.text.tokenizer import Tokenizer

CONTEXT, HEADS, SHARP, CLASSES = 112, 8, 30.0, 12
PLANTED = {  # (layer, head) -> role
    (0, 0): "previous", (0, 1): "duplicate", (0, 2): "window", (0, 3): "syntactic",
    (1, 0): "induction", (1, 1): "delimiter", (1, 2): "coreference",
}
DECOY = (1, 3)  # looks as an induction head does, and writes nothing


def vocabulary() -> list[str]:
    words = {w.lower() for s in templates.sentences("es", 2000) for w in s.words}
    words |= {w.lower() for pair in templates.twins("es", 300) for s in pair for w in s.words}
    return ["[UNK]", *sorted(words)]


def tokenizer(words: list[str]) -> Tokenizer:
    model = {"type": "WordLevel", "vocab": {w: n for n, w in enumerate(words)},
             "unk_token": "[UNK]"}
    return Tokenizer(spec.assemble(model, [], normalizer={"type": "Lowercase"},
                                   pre_tokenizer={"type": "Whitespace"}))


def classes(words: list[str]) -> dict[str, torch.Tensor]:
    """Which words are nouns, verbs and pronouns of a number and a gender: (V, CLASSES) each."""
    at = {w: n for n, w in enumerate(words)}
    found = {name: torch.zeros(len(words), CLASSES) for name in ("verb", "subject", "pronoun",
                                                                  "noun")}
    def mark(name, word, where):
        if word in at:
            found[name][at[word], where] = 1
    for kind, gender, *forms in templates._rows(templates.NOUNS):
        for number, word in enumerate(forms[2:]):
            mark("noun", word, 2 * number + (gender == "f"))
            if kind in ("person", "animal"):
                mark("subject", word, number)
    for number, pair in enumerate((("él", "ella"), ("ellos", "ellas"))):
        for f, word in enumerate(pair):
            mark("pronoun", word, 2 * number + f)
            mark("subject", word, number)
    for row in templates._rows(templates.ACTS):
        for place, word in enumerate(row[4:8]):
            mark("verb", word, place % 2)
    for row in templates._rows(templates.MOVES):
        for number, word in enumerate(row[2:4]):
            mark("verb", word, number)
    for forms in templates.FIXED.values():
        for number, word in enumerate(forms[2:]):
            mark("verb", word, number)
    return found


def build(seed: int = 0) -> Model:
    """Two layers of eight heads; those that are not planted are noise."""
    words = vocabulary()
    V, P = len(words), CONTEXT
    d, K = 3 * V + P, V + P
    token, place = slice(0, V), slice(V, V + P)
    before, said = slice(V + P, 2 * V + P), slice(2 * V + P, d)
    draw = torch.Generator().manual_seed(seed)
    layers = []
    for _ in range(2):
        a = Attention(d, HEADS, head_dim=K, mask=Mask(causal=True))
        for p in a.parameters():
            p.data = torch.zeros_like(p)
        layers.append(a)

    def head(layer: int, h: int, **parts):
        """Writes q, k, v (K, d) and o (d, K) of a head."""
        a, rows = layers[layer], slice(h * K, (h + 1) * K)
        a.scale = 1.0
        for name, w in parts.items():
            if name == "o":
                a.o.weight.data[:, rows] = w
            else:
                getattr(a, name).weight.data[rows] = w

    def reads(where: slice, matrix: torch.Tensor | None = None, start: int = 0) -> torch.Tensor:
        """(K, d): slots from `start` on take matrix (slots, places) of a part of the stream."""
        w = torch.zeros(K, d)
        matrix = torch.eye(where.stop - where.start) if matrix is None else matrix
        w[start : start + len(matrix), where] = matrix
        return w

    def says(where: slice, strength: float, mixed: bool = True) -> torch.Tensor:
        """(d, K): the token that was looked at, or another that stands for it, is written."""
        order = torch.randperm(V, generator=draw) if mixed else torch.arange(V)
        w = torch.zeros(d, K)
        w[where, :V] = strength * torch.eye(V)[order]
        return w

    copy, steps = reads(token), torch.eye(P)
    shift = torch.eye(P).roll(1, 0)  # slot j + 1 of key j
    shift[0] = 0
    near = sum(torch.eye(P).roll(n, 0).tril() for n in range(5))
    head(0, 0, q=SHARP * reads(place), k=reads(place, shift), v=copy,
         o=says(before, 1.0, mixed=False))
    head(0, 1, q=SHARP * (reads(token) - reads(place, steps, V)),
         k=reads(token) + reads(place, steps, V), v=copy, o=says(said, 2.0))
    head(0, 2, q=SHARP * reads(place), k=reads(place, near), v=copy, o=says(said, 2.0))
    kinds, late = classes(words), torch.arange(P)[None] / P

    def by_class(query: str, key: str) -> dict:
        """The nearest of the keys of the query's class; classes stand in slots, the last of them
        for nearness."""
        q = reads(token, kinds[query].T)
        q[CLASSES, token] = kinds[query].any(1).float()
        return {"q": SHARP * q, "k": reads(token, kinds[key].T) + reads(place, late, CLASSES)}
    head(0, 3, **by_class("verb", "subject"), v=copy, o=says(said, 3.0))
    head(1, 0, q=SHARP * reads(token), k=reads(before), v=copy, o=says(said, 8.0, mixed=False))
    stops = torch.zeros(1, V)
    stops[0, [words.index(w) for w in (".", ",")]] = 1
    empty = torch.eye(V) * (1 - stops[0])
    always = torch.zeros(K, d)
    always[0, token] = SHARP
    head(1, 1, q=always, k=reads(token, stops), v=reads(token, empty), o=says(said, 3.0))
    head(1, 2, **by_class("pronoun", "noun"), v=copy, o=says(said, 3.0))
    head(1, 3, q=SHARP * reads(token), k=reads(before), v=copy)
    for layer in range(2):
        for h in range(4, HEADS):
            q, k, v = (torch.randn(K, d, generator=draw) * 0.2 for _ in range(3))
            v = v * (torch.arange(d) < V)
            o = torch.zeros(d, K)
            o[said] = torch.randn(V, K, generator=draw) * 0.02
            head(layer, h, q=q, k=k, v=v, o=o)
    return _model(words, layers, d, token, place, said)


def _model(words, layers, d, token, place, said) -> Model:
    V = len(words)
    embed = Tokens(V, d, positions=Learned(CONTEXT, d))
    embed.token.weight.data = torch.eye(d)[token]
    embed.position.weight.data = torch.eye(d)[place]
    body = Stack(embed, [Block(attn=Residual(a)) for a in layers])
    config = gpt2.Config(vocab=V, context=CONTEXT, d=d, layers=len(layers), heads=HEADS)
    model = Model("gpt2", config, body, LMHead(d, V), "GPT2LMHeadModel")
    model.head.out.weight.data = torch.eye(d)[said]
    model.tokenizer = tokenizer(words)
    return model.eval()
