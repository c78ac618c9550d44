"""Replaced tokens: a small generator fills hidden places, and a discriminator tells at every token
whether it is the text's own (ELECTRA, 2003.10555, sec. 2)."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada import registry
from mirada.errors import MiradaError

from .corpus import Corpus
from .language import HiddenToken, row_means, token_losses
from .loss import IGNORED, wide


class Joint(nn.Module):
    """Both models, trained as one; the tables of tokens, positions and segments are shared."""

    generates = False

    def __init__(self, generator, discriminator):
        super().__init__()
        small, large = generator.body.embed, discriminator.body.embed
        if small.token.weight.shape != large.token.weight.shape:
            raise MiradaError("generator and discriminator share their token table, and theirs are "
                              f"{tuple(small.token.weight.shape)} and "
                              f"{tuple(large.token.weight.shape)}: build both with one vocab and "
                              "embedding")
        small.token, small.position, small.segment = large.token, large.position, large.segment
        generator.head.out.weight = large.token.weight
        self.generator, self.discriminator = generator, discriminator

    device = property(lambda self: self.discriminator.device)
    dtype = property(lambda self: self.discriminator.dtype)
    config = property(lambda self: self.discriminator.config)
    context = property(lambda self: self.discriminator.context)
    architecture = property(lambda self: self.discriminator.architecture)
    tokenizer = property(lambda self: self.discriminator.tokenizer)


def joint(discriminator, share: int = 4, seed: int | None = None) -> Joint:
    """With a new generator, `share` times narrower (sec. 3.2: a quarter to a half is best)."""
    c = discriminator.config
    small = replace(c, d=c.d // share, hidden=c.hidden // share, heads=max(1, c.heads // share))
    generator = registry.build(discriminator.family, architecture="ElectraForMaskedLM", seed=seed,
                               **asdict(small))
    return Joint(generator, discriminator)


class ReplacedToken(HiddenToken):
    """The mean over rows of the generator's loss at hidden places plus `found` times the
    discriminator's at all real tokens. Every chosen token is hidden behind the mask; what the
    generator draws there counts as replaced unless it is the text's own."""

    def __init__(self, corpus: Corpus, length: int, model: Joint, share: float = 0.15,
                 found: float = 50.0):
        super().__init__(corpus, length, model.tokenizer, share)
        self.found, self.fates = found, (1.0, 0.0)

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float(len(batch["input_ids"]))

    def loss(self, model: Joint, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {k: v.to(model.device) for k, v in batch.items()}
        labels, real = given.pop("labels"), given["attention_mask"] == 1
        hidden = labels != IGNORED
        logits = model.generator(**given).logits  # (B, T, V)
        own = torch.where(hidden, labels, given["input_ids"])
        drawn = own.masked_scatter(hidden, drawn_from(logits[hidden]))
        replaced = drawn != own
        found = wide(model.discriminator(drawn, given["attention_mask"]).logits)  # (B, T)
        told = row_means(token_losses(logits, labels), hidden)
        losses = F.binary_cross_entropy_with_logits(found, replaced.to(found), reduction="none")
        caught = row_means(losses, real)
        right = ((found > 0) == replaced)[real].float().mean()
        rows = len(real)
        return told + self.found * caught, {
            "generator": float(told.detach()) / rows, "found": float(caught.detach()) / rows,
            "right": float(right), "replaced": float(replaced[real].float().mean())}


@torch.no_grad()
def drawn_from(logits: Tensor) -> Tensor:
    """One token of each row's distribution; no gradient goes through the draw (sec. 2)."""
    return torch.multinomial(wide(logits).softmax(-1), 1).flatten()
