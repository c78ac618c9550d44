"""`mirada look`: a text through a model, the strongest links said and one layer drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mirada.look import draw
from mirada.look.figures import Link, attention_map, links
from mirada.look.patterns import listed
from mirada.look.stages import read
from mirada.look.views import heads


@dataclass(frozen=True)
class Looked:
    """What was found: where the picture lies, whose head it shows, and the strongest links."""

    out: str
    stack: str
    layer: int
    head: int
    queries: list[str]
    keys: list[str]
    links: list[Link]
    selfcheck: float

    def data(self) -> dict:
        """For programs."""
        named = [{**vars(n), "from": self.queries[n.query], "to": self.keys[n.key]}
                 for n in self.links]
        return {**vars(self), "links": named}

    def __str__(self) -> str:
        width = max((len(self.queries[n.query]) for n in self.links), default=0)
        lines = ["strongest links (the first token, the token itself and its neighbours left out):"]
        lines += [f"  {self.queries[n.query]:>{width}} → {self.keys[n.key]:{width}}  "
                  f"{n.weight:4.0%}   layer {n.layer}, head {n.head}" for n in self.links]
        return "\n".join([*lines, f"{self.out}: {self.stack} layer {self.layer}, head {self.head} "
                          f"(weights checked against what ran: {self.selfcheck:.0e})",
                          "Attention shows where a head looks, not why the model answers."])


def look(model, text: str, *, to: str | None = None, layer: int | None = None,
         head: int | None = None, stack: str | None = None, out="attention.png") -> Looked:
    """Record one pass over `text` and draw a layer into `out`: a picture, or a page (.html).

    to: the decoder's text, for encoder-decoders (its start token alone when None). layer, head:
    the strongest link's when None. stack: encoder, decoder or cross. Raises MiradaError.
    """
    out = draw.place(out, (*draw.PICTURES, ".html"))
    batch, labels, _ = read(model, text, to)
    with model.record() as tape, torch.inference_mode():
        model(**batch)
    stack = stack or tape.stacks[-1]
    found = links(tape, stack=stack, near=stack == "cross")
    best = next((n for n in found if layer is None or n.layer == layer), None)
    layer = layer if layer is not None else (best.layer if best else 0)
    head = head if head is not None else (best.head if best else 0)
    queries, keys = (labels[name] for name in (("decoder", "encoder") if stack == "cross"
                                               else (stack, stack)))
    weights = tape.pattern(layer, stack=stack)[0]
    (head,) = listed(head, len(weights), "head")
    if out.suffix == ".html":
        heads.head_view(tape, layer=layer, heads=[head], stack=stack).save_html(out)
    else:
        draw.save(attention_map(weights, queries, keys, head=head,
                                title=f"{stack} layer {layer}, head {head}"), out)
    return Looked(str(out), stack, layer, head, queries, keys, found, tape.selfcheck)
