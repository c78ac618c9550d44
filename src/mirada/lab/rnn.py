"""What advantage over an RNN? Guide E, line 197; Vaswani et al., 1706.03762, table 1; vanishing
gradients: Pascanu et al., 1211.5063."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

import mirada
from mirada.look.draw import INKS
from mirada.train import baselines

from .learn import UNASKED, learn, right

ROW = "1.19.14"
ASKED = {"en": "What advantage does this bring over an RNN?",
         "es": "¿Qué ventaja aporta esto frente a un RNN?"}
TOLD = {
    "en": "What is far is as near as what is next. In a new RNN the gradient from {far} places "
          "back is {rnn_far:.0e} of that from the place before; in a new Transformer {far_too:.1f} "
          "times it. So both learned for {steps} steps to tell, at the end of {far} noisy tokens, "
          "the letter before them: the RNN is right in {rnn_right:.0%} (chance: {chance:.0%}), the "
          "Transformer in {right:.0%}. And nothing waits: for the last of {far} tokens the RNN "
          "needs {rnn_chain} operations one after another, for twice as many {rnn_twice}; the "
          "Transformer {chain} and {twice}. The price: {pairs} scores a head instead of {far} "
          "steps, and it grows with the square. (recipes/distance.py asks LSTM and GRU too.)",
    "es": "Lo lejano queda tan cerca como lo contiguo. En un RNN nuevo el gradiente que llega de "
          "{far} lugares atrás es {rnn_far:.0e} del que llega del lugar anterior; en un "
          "Transformer nuevo, {far_too:.1f} veces este. Por eso, tras aprender durante {steps} "
          "pasos a decir, al cabo de {far} tokens de ruido, la letra que los precede, el RNN "
          "acierta {rnn_right:.0%} (azar: {chance:.0%}) y el Transformer {right:.0%}. Y nada "
          "espera: para el último de {far} tokens el RNN necesita {rnn_chain} operaciones una tras "
          "otra, para el doble {rnn_twice}; el Transformer {chain} y {twice}. El precio: {pairs} "
          "puntuaciones por cabeza en vez de {far} pasos, y crece con el cuadrado. "
          "(recipes/distance.py pregunta también a LSTM y GRU.)",
}
WORDS = {"en": {"title": "What arrives from far away, before training", "across": "Places back",
                "down": "Gradient, of that one place back"},
         "es": {"title": "Qué llega de lejos, antes de entrenar", "across": "Lugares atrás",
                "down": "Gradiente, del de un lugar atrás"}}
LETTERS, FAR = 4, 32
STEPS, RATE = 120, 5e-3


def run(seed: int = 0) -> dict[str, float | list]:
    """Both new, read for gradients and for their longest chain; then both trained."""
    ids, labels = rows(128, Generator().manual_seed(seed + 1))
    found: dict[str, list] = {}
    chains, rights = {}, {}
    for name, make in (("rnn", rnn), ("transformer", transformer)):
        norms = baselines.reach(make(seed), ids[:32]).flip(0)[1:]  # by places back
        found[name] = (norms / norms[0]).tolist()
        chains[name] = [chain(make(seed), tokens) for tokens in (FAR, 2 * FAR)]
        rights[name] = right(learn(make(seed), rows, STEPS, seed, RATE), ids, labels)
    return {**found, "far": FAR, "steps": STEPS, "chance": 1 / LETTERS, "pairs": FAR * FAR,
            "rnn_far": found["rnn"][-1], "far_too": found["transformer"][-1],
            "rnn_right": rights["rnn"], "right": rights["transformer"],
            "rnn_chain": chains["rnn"][0], "rnn_twice": chains["rnn"][1],
            "chain": chains["transformer"][0], "twice": chains["transformer"][1]}


def rnn(seed: int):
    return baselines.build("rnn", seed, vocab=2 * LETTERS, d=32)


def transformer(seed: int):
    return mirada.build("gpt2:tiny", seed=seed, vocab=2 * LETTERS, context=2 * FAR, d=32, heads=4,
                        layers=1, tied=False)


def rows(count: int, chance: Generator) -> tuple[Tensor, Tensor]:
    """A letter and FAR tokens of noise (B, T); at the end the letter must be told."""
    ids = LETTERS + torch.randint(LETTERS, (count, FAR + 1), generator=chance)
    ids[:, 0] -= LETTERS
    labels = torch.full_like(ids, UNASKED)
    labels[:, -1] = ids[:, 0]
    return ids, labels


def chain(model, tokens: int) -> int:
    """The longest chain of operations that wait for each other, to the last token's logits: read
    from the graph that torch keeps for gradients."""
    end = model(torch.zeros(1, tokens, dtype=torch.long)).logits[0, -1].sum().grad_fn
    longest: dict = {}
    waiting = [end]
    while waiting:
        node = waiting[-1]
        before = [n for n, _ in node.next_functions if n is not None]
        unknown = [n for n in before if n not in longest]
        if unknown:
            waiting += unknown
        else:
            longest[waiting.pop()] = 1 + max((longest[n] for n in before), default=0)
    return longest[end]


def draw(found: dict, axes, words: dict[str, str]) -> None:
    for name, shown, ink in (("transformer", "Transformer", INKS[2]), ("rnn", "RNN", INKS[0])):
        axes.plot(range(1, len(found[name]) + 1), found[name], color=ink, label=shown)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
