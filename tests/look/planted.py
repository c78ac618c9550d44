"""Models whose weights are written by hand, so that what each head does is known.

The stream has a place for each thing: the token, its position, the token before, and what the
output says. A head reads one place by its query, another by its keys, and writes into a third.
"""

import torch
import torch.nn.functional as F

from mirada.core.attention import Attention, CrossAttention
from mirada.core.block import Block, EncoderDecoder, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import LMHead
from mirada.core.mask import Mask
from mirada.core.position import Learned
from mirada.look.heads import templates
from mirada.model import Model
from mirada.models import bart, gpt2
from mirada.text import spec
from mirada.text.tokenizer import Tokenizer

CONTEXT, HEADS, CODE, SHARP = 104, 8, 64, 40.0
VERB, SUBJECT, PRONOUN, NOUN = slice(0, 2), slice(2, 4), slice(4, 8), slice(8, 12)  # marks
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
    """Which words are verbs and their subjects (by number), pronouns and what they mean (by number
    and gender): (V, 2) and (V, 4) each."""
    at = {w: n for n, w in enumerate(words)}
    found = {name: torch.zeros(len(words), n) for name, n in (
        ("verb", 2), ("subject", 2), ("pronoun", 4), ("noun", 4))}

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
    verbs = [row[4:8] for row in templates._rows(templates.ACTS)]
    verbs += [row[2:4] for row in templates._rows(templates.MOVES)]
    for row in [*verbs, *(forms[2:] for forms in templates.FIXED.values())]:
        for place, word in enumerate(row):
            mark("verb", word, place % 2)
    return found


def build(seed: int = 0) -> Model:
    """Two layers of eight heads; those that are not planted are noise."""
    words, draw = vocabulary(), torch.Generator().manual_seed(seed)
    codes = F.normalize(torch.randn(len(words), CODE, generator=draw), dim=-1)
    stops = torch.tensor([float(w in (".", ",")) for w in words])[:, None]
    codes = codes * (1 - stops)  # a separator carries nothing, so that a head can rest on it
    marks = torch.cat([*classes(words).values(), stops], 1)
    widths = {"code": CODE, "mark": marks.shape[1], "place": CONTEXT, "before": CODE, "said": CODE}
    d, K = sum(widths.values()), CODE + CONTEXT
    starts = dict(zip(widths, [0, *torch.tensor(list(widths.values())).cumsum(0).tolist()],
                      strict=False))
    where = {name: slice(starts[name], starts[name] + widths[name]) for name in widths}
    layers = []
    for _ in range(2):
        a = Attention(d, HEADS, head_dim=K, mask=Mask(causal=True), scale=1.0)
        for p in a.parameters():
            p.data = torch.zeros_like(p)
        layers.append(a)

    def head(layer: int, h: int, **parts):
        """Writes q, k, v (K, d) and o (d, K) of a head."""
        a, rows = layers[layer], slice(h * K, (h + 1) * K)
        for name, w in parts.items():
            if name == "o":
                a.o.weight.data[:, rows] = w
            else:
                getattr(a, name).weight.data[rows] = w

    def reads(name: str, matrix: torch.Tensor | None = None, start: int = 0) -> torch.Tensor:
        """(K, d): slots from `start` on take matrix (slots, width) of a place of the stream."""
        w = torch.zeros(K, d)
        matrix = torch.eye(widths[name]) if matrix is None else matrix
        w[start : start + len(matrix), where[name]] = matrix
        return w

    def says(name: str, strength: float, turned: bool = True) -> torch.Tensor:
        """(d, K): the code that was looked at, or another that stands for it, is written."""
        turn = torch.randn(CODE, CODE, generator=draw) / CODE**0.5 if turned else torch.eye(CODE)
        w = torch.zeros(d, K)
        w[where[name], :CODE] = strength * turn
        return w

    def by_class(query: slice, key: slice) -> dict:
        """The nearest key of the query's class; a slot more is for nearness."""
        n = query.stop - query.start
        marked = torch.eye(widths["mark"])
        q = reads("mark", torch.cat([marked[query], marked[query].sum(0, keepdim=True)]))
        late = torch.arange(CONTEXT)[None] / CONTEXT
        return {"q": SHARP * q, "k": reads("mark", marked[key]) + reads("place", late, n)}

    copy, equal = reads("code"), SHARP * reads("code")
    at, after = reads("place"), torch.eye(CONTEXT).roll(1, 0).tril()
    near = sum(torch.eye(CONTEXT).roll(n, 0).tril() for n in range(5))
    own = reads("place", start=CODE)  # a duplicate is not the token itself
    head(0, 0, q=SHARP * at, k=reads("place", after), v=copy, o=says("before", 1.0, turned=False))
    head(0, 1, q=equal - SHARP * own, k=copy + own, v=copy, o=says("said", 2.0))
    head(0, 2, q=SHARP * at, k=reads("place", near), v=copy, o=says("said", 2.0))
    head(0, 3, **by_class(VERB, SUBJECT), v=copy, o=says("said", 6.0))
    head(1, 0, q=equal, k=reads("before"), v=copy, o=says("said", 8.0, turned=False))
    one = torch.full((1, widths["place"]), SHARP)  # every query looks for separators
    head(1, 1, q=reads("place", one), k=reads("mark", torch.eye(widths["mark"])[-1:]), v=copy,
         o=says("said", 3.0))
    head(1, 2, **by_class(PRONOUN, NOUN), v=copy, o=says("said", 3.0))
    head(*DECOY, q=equal, k=reads("before"), v=copy)
    for layer in range(2):
        for h in range(4, HEADS):
            q, k = (torch.randn(K, d, generator=draw) * 0.3 for _ in range(2))
            head(layer, h, q=q, k=k, v=copy, o=says("said", 1.0))
    embed = Tokens(len(words), d, positions=Learned(CONTEXT, d))
    embed.token.weight.data.zero_()[:, where["code"]] = codes
    embed.token.weight.data[:, where["mark"]] = marks
    embed.position.weight.data = torch.eye(d)[where["place"]]
    body = Stack(embed, [Block(attn=Residual(a)) for a in layers])
    config = gpt2.Config(vocab=len(words), context=CONTEXT, d=d, layers=2, heads=HEADS)
    model = Model("gpt2", config, body, LMHead(d, len(words)), "GPT2LMHeadModel")
    model.head.out.weight.data.zero_()[:, where["said"]] = 2 * codes
    model.tokenizer = tokenizer(words)
    return model.eval()


TRANSLATES = 1  # head of the cross-attention


def translator(seed: int = 0) -> Model:
    """An encoder-decoder of a layer each. Of its cross-attention head 1 looks at the word that it
    translates, the nearest where there are several; head 2 at the word of the same place; the other
    six are noise."""
    draw, pairs, room = torch.Generator().manual_seed(seed), templates.pairs(400), 32
    spoken = {w.lower() for pair in pairs for s in pair for w in s.words}
    words = ["[UNK]", "[S]", *sorted(spoken)]
    at = {w: n for n, w in enumerate(words)}
    codes = F.normalize(torch.randn(len(words), CODE, generator=draw), dim=-1)
    for source, target in pairs:
        for name in target.names.keys() & source.names.keys():
            said, meant = target.words[target.names[name]], source.words[source.names[name]]
            codes[at[said.lower()]] = codes[at[meant.lower()]]
    d, K = 2 * CODE + room, CODE + room
    code, place, out = torch.eye(d).split([CODE, room, CODE])
    cross = CrossAttention(d, HEADS, head_dim=K, scale=1.0)
    blank = [Attention(d, HEADS, mask=Mask(causal=True)), Attention(d, HEADS)]
    for a in (cross, *blank):
        for p in a.parameters():
            p.data = torch.zeros_like(p)

    def head(h: int, q, k) -> None:
        rows = slice(h * K, (h + 1) * K)
        cross.q.weight.data[rows], cross.k.weight.data[rows] = q, k
        cross.v.weight.data[rows][:CODE] = code
        turn = torch.randn(CODE, CODE, generator=draw) / CODE**0.5
        cross.o.weight.data[:, rows][:, :CODE] = 3 * out.T @ turn

    here = torch.arange(room)
    apart = -(here[:, None] - (here - 1)).abs().float()  # the decoder begins with a token more
    head(TRANSLATES, torch.cat([SHARP * code, place]), torch.cat([code, apart.T @ place]))
    head(2, torch.cat([0 * code, SHARP * place]), torch.cat([0 * code, apart.T @ place]))
    for h in {*range(HEADS)} - {TRANSLATES, 2}:
        head(h, *(torch.randn(K, d, generator=draw) * 0.3 for _ in range(2)))
    embed = Tokens(len(words), d, positions=Learned(room, d))
    embed.token.weight.data = codes @ code
    embed.position.weight.data = place.clone()
    body = EncoderDecoder(
        Stack(embed, [Block(attn=Residual(blank[1]))]),
        Stack(embed, [Block(attn=Residual(blank[0]), cross=Residual(cross))]))
    config = bart.Config(vocab=len(words), context=room, d=d, start=at["[S]"])
    model = Model("bart", config, body, LMHead(d, len(words)), "BartForConditionalGeneration")
    model.head.out.weight.data = 2 * codes @ out
    model.tokenizer = tokenizer(words)
    return model.eval()
