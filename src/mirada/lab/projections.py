"""Why three different projections? Guide E, line 129. Shared ones: Kitaev et al., 2001.04451."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from mirada.core.attention import Attention
from mirada.core.context import Ctx
from mirada.model import Output

from .bars import pairs
from .learn import learn, right

ROW = "1.19.10"
ASKED = {"en": "Why do we need three different projections?",
         "es": "¿Por qué necesitamos tres proyecciones distintas?"}
TOLD = {
    "en": "Because what a token seeks, what it is found by and what it hands over are three "
          "things. Here each of {tokens} tokens has a name, seeks another's name, and must tell "
          "the color which that one carries. With three projections to {narrow} numbers, "
          "{apart:.0%} are right. With one for q and k, {qk:.0%}, and width does not mend it "
          "({wide_qk:.0%} with {wide}): q·k is then the same both ways, so that whoever seeks a "
          "token is sought by it, and what one seeks cannot differ from what one is. With one for "
          "k and v, {kv:.0%}: the name and the color crowd the same {narrow} numbers. This is a "
          "matter of room: with {wide} it is {wide_kv:.0%}.",
    "es": "Porque lo que un token busca, aquello por lo que se le encuentra y lo que entrega son "
          "tres cosas. Aquí cada uno de {tokens} tokens tiene un nombre, busca el nombre de otro "
          "y debe decir el color que ese lleva. Con tres proyecciones a {narrow} números acierta "
          "el {apart:.0%}. Con una sola para q y k, el {qk:.0%}, y más ancho no lo remedia "
          "({wide_qk:.0%} con {wide}): q·k vale entonces lo mismo en ambos sentidos; quien busca "
          "a un token es buscado por él, y lo que se busca no puede ser distinto de lo que se es. "
          "Con una para k y v, el {kv:.0%}: el nombre y el color se aprietan en los mismos "
          "{narrow} números. Esto es cuestión de espacio: con {wide} es el {wide_kv:.0%}.",
}
WORDS = {"en": {"title": "Which projections may be one?", "across": "", "down": "Right answers",
                "apart": "q, k and v apart", "qk": "q = k", "kv": "k = v", "width": "d_k = {}"},
         "es": {"title": "¿Qué proyecciones pueden ser una?", "across": "", "down": "Aciertos",
                "apart": "q, k y v distintas", "qk": "q = k", "kv": "k = v", "width": "d_k = {}"}}
TOKENS, COLORS, D = 8, 8, 32
NARROW, WIDE = 2, 8


class Ring(nn.Module):
    """One head over tokens that say their name, the name they seek and a color; shared: the
    projections that are one."""

    device = property(lambda self: self.out.weight.device)
    dtype = property(lambda self: self.out.weight.dtype)

    def __init__(self, shared: str, width: int):
        super().__init__()
        self.says = nn.ModuleList(nn.Embedding(n, D) for n in (TOKENS, TOKENS, COLORS))
        self.attention = Attention(D, 1, head_dim=width)
        if shared == "qk":
            self.attention.k = self.attention.q
        if shared == "kv":
            self.attention.v = self.attention.k
        self.out = nn.Linear(D, COLORS)

    def forward(self, ids: Tensor) -> Output:
        """ids (B, T, 3)."""
        x = sum(table(ids[..., n]) for n, table in enumerate(self.says))  # (B, T, D)
        return Output(logits=self.out(self.attention(x, Ctx())))


def run(seed: int = 0) -> dict[str, float | list]:
    """The same ring learned by a head of each kind, of two widths."""
    found: dict[str, float | list] = {"tokens": TOKENS, "narrow": NARROW, "wide": WIDE}
    for shared in ("apart", "qk", "kv"):
        for way, width in (("", NARROW), ("wide_", WIDE)):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = Ring(shared, width)
            learn(model, rings, 160, seed, rate=2e-2)
            found[way + shared] = right(model, *rings(256, Generator().manual_seed(seed)))
    return found


def rings(count: int, chance: Generator) -> tuple[Tensor, Tensor]:
    """ids (count, T, 3) and the color (count, T) that each token must tell. Each seeks the next
    in a ring of all names."""
    order = torch.rand(count, TOKENS, generator=chance).argsort(1)  # of names around the ring
    seeks = torch.empty_like(order).scatter_(1, order, order.roll(-1, 1))  # by name
    color = torch.randint(COLORS, (count, TOKENS), generator=chance)  # by name
    name = torch.rand(count, TOKENS, generator=chance).argsort(1)  # by place
    sought = seeks.gather(1, name)
    return torch.stack([name, sought, color.gather(1, name)], -1), color.gather(1, sought)


def draw(found: dict, axes, words: dict[str, str]) -> None:
    kinds = ("apart", "qk", "kv")
    pairs(axes, [words[kind] for kind in kinds], {
        words["width"].format(found[width]): [found[way + kind] for kind in kinds]
        for way, width in (("", "narrow"), ("wide_", "wide"))})
