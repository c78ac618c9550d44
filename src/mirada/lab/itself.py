"""What does a token gain by self-attention, and by the look at itself? Guide E, line 162;
Vaswani et al., 1706.03762, section 4."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import mirada
from mirada.core.attention import Attention
from mirada.core.block import Block, Residual
from mirada.core.mask import Mask
from mirada.core.norm import LayerNorm
from mirada.edit.residual import NoResidual
from mirada.look.embeddings import last_stream

from .bars import pairs
from .learn import UNASKED, learn, right

ROW = "1.19.12"
ASKED = {"en": "What does a token gain by attending to itself?",
         "es": "¿Qué gana un token al auto-atenderse?"}
TOLD = {
    "en": "From self-attention, its context. Each of {words} words has two senses, and another "
          "token of the text says which is meant. A word that sees itself alone tells {alone:.0%} "
          "of its senses, one that sees the text {all:.0%}; its vectors in two contexts, one "
          "before, have a cosine of {likeness:.2f} after. From the look at itself, only what the "
          "residual connection gives it anyway: hide each word from itself, and {others:.0%} are "
          "right. Without that connection they are {bare_others:.0%}, as a word then knows its "
          "context and hardly itself; and {bare_all:.0%} when it may see itself again.",
    "es": "De la auto-atención, su contexto. Cada una de {words} palabras tiene dos sentidos, y "
          "otro token del texto dice cuál vale. Una palabra que solo se ve a sí misma acierta el "
          "{alone:.0%}; una que ve el texto, el {all:.0%}; sus vectores en dos contextos, antes "
          "uno solo, tienen después un coseno de {likeness:.2f}. De mirarse a sí misma, solo lo "
          "que ya le da la conexión residual: si cada palabra se oculta a sí misma, acierta el "
          "{others:.0%}. Sin esa conexión es el {bare_others:.0%}, pues la palabra conoce su "
          "contexto y apenas a sí misma; y el {bare_all:.0%} cuando puede verse de nuevo.",
}
WORDS = {"en": {"title": "Senses told, by what a word sees", "across": "", "down": "Right answers",
                "alone": "itself", "all": "all", "others": "the others",
                "kept": "with residual connection", "bare": "without"},
         "es": {"title": "Sentidos acertados, según lo que ve una palabra", "across": "",
                "down": "Aciertos", "alone": "a sí misma", "all": "todo", "others": "los demás",
                "kept": "con conexión residual", "bare": "sin ella"}}
COUNT, TEXT = 32, 4  # words that there are, and that a text has
D = 32


@dataclass(frozen=True)
class Itself:
    """A pattern of looks: each place sees itself, or with alone=False all but itself."""

    alone: bool = True

    def __call__(self, q: Tensor, k: Tensor) -> Tensor:
        return (q == k) == self.alone


SEES = {"alone": (Itself(),), "all": (), "others": (Itself(False),)}


def run(seed: int = 0) -> dict[str, float | list]:
    """One attention layer, with each pattern of looks, with its residual connection and without."""
    found: dict[str, float | list] = {"words": COUNT}
    for name, sees, way in (("alone", "alone", Residual), ("all", "all", Residual),
                            ("others", "others", Residual), ("bare_all", "all", NoResidual),
                            ("bare_others", "others", NoResidual)):
        model = learn(build(seed, SEES[sees], way), texts, 140, seed)
        ids, labels = texts(256, Generator().manual_seed(seed))
        found[name] = right(model, ids, labels)
        if name == "all":
            found["likeness"] = likeness(model, ids)
    return found


def build(seed: int, patterns: tuple, way: type[Residual]):
    """One layer of attention and no MLP, on words without positions."""
    model = mirada.build("gpt2:tiny", seed=seed, vocab=2 * COUNT, d=D, layers=1, heads=1,
                         context=TEXT + 1, tied=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.body.embed.position = None
        nn.init.normal_(model.body.embed.token.weight)
        attention = Attention(D, 1, mask=Mask(patterns=patterns))
        model.body.blocks = nn.ModuleList([Block(attn=way(attention, pre=LayerNorm(D)))])
    return model


def texts(count: int, chance: Generator) -> tuple[Tensor, Tensor]:
    """ids and labels (count, 1 + TEXT): a topic, 0 or 1, and words; each word's label is its sense,
    one of two that no other word has."""
    words = torch.rand(count, COUNT, generator=chance).argsort(1)[:, :TEXT]
    topic = torch.randint(2, (count, 1), generator=chance)
    labels = torch.cat([torch.full_like(topic, UNASKED), 2 * words + topic], 1)
    return torch.cat([COUNT + topic, words], 1), labels


@torch.no_grad()
def likeness(model, ids: Tensor) -> float:
    """The mean cosine of a word's vector with its own under the other topic."""
    turned = ids.clone()
    turned[:, 0] = 2 * COUNT + 1 - ids[:, 0]
    one, other = (last_stream(model, {"input_ids": x})[:, 1:] for x in (ids, turned))
    return F.cosine_similarity(one, other, dim=-1).mean().item()


def draw(found: dict, axes, words: dict[str, str]) -> None:
    pairs(axes, [words[name] for name in SEES], {
        words["kept"]: [found[name] for name in SEES],
        words["bare"]: [None, found["bare_all"], found["bare_others"]]})
