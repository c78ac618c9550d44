"""Pictures and their texts, each told from all others of a batch (CLIP, 2103.00020, figure 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError

from .language import padded
from .loss import wide

HIGHEST = 100.0  # what cosines are multiplied with at most; more made training unstable (sec. 2.5)


class Contrast:
    """Pairs of a picture and its text: the mean of both cross-entropies, of each text's picture and
    of each picture's text, over cosines times a learnt factor.

    pictures: tensors (C, Y, X) as the model reads them, or what its processor makes such of. texts:
    one each; of one longer than the model's context the end is cut off, but for its last token.
    changes: functions of (picture, draw), see pictures.changes. A batch read in parts, or by
    several processes, has the negatives of each part only. Two equal texts count as strangers.
    """

    def __init__(self, pictures: Sequence[Any] | Tensor, texts: Sequence[str], model, *,
                 changes: Sequence[Callable] = ()):
        if model.kind != "dual-encoder" or not hasattr(model.head, "scale"):
            raise MiradaError(f"{model.architecture} does not match texts with pictures: "
                              "take a CLIPModel")
        if len(pictures) != len(texts):
            raise MiradaError(f"there are {len(pictures)} pictures and {len(texts)} texts: each "
                              "picture has one")
        if model.tokenizer is None:
            raise MiradaError("texts are read with a tokenizer, and this model has none: go on "
                              "from a folder that holds one beside the weights")
        self.pictures, self.changes, self.count = pictures, tuple(changes), len(texts)
        ready = torch.is_tensor(pictures[0]) and pictures[0].is_floating_point()
        self.processor = None if ready else model.processor
        self.pad = model.tokenizer.pad_id or 0
        self.ids = [_cut(model.tokenizer.encode(text).ids, model.context) for text in texts]
        rows, columns = model.body.vision.embed.grid
        self.places = 1 + rows * columns + max(map(len, self.ids), default=0)  # tokens of a pair

    def sample(self, index: int, draw) -> tuple[Tensor, list[int]]:
        """draw: None for a picture as it is."""
        picture = self.pictures[index]
        if self.processor is not None:
            picture = self.processor(picture)["pixel_values"][0]
        for change in self.changes if draw is not None else ():
            picture = change(picture, draw)
        return picture, self.ids[index]

    def batch(self, samples: list[tuple[Tensor, list[int]]]) -> dict[str, Tensor]:
        texts = padded({"input_ids": ([ids for _, ids in samples], self.pad)})
        return texts | {"pixel_values": torch.stack([picture for picture, _ in samples])}

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float(len(batch["input_ids"]))

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():  # what the step before made of it is cut back
            model.head.scale.clamp_(max=math.log(HIGHEST))
        out = model(**{name: value.to(model.device) for name, value in batch.items()})
        scores = wide(out.logits_per_image)  # (B, B)
        own = torch.arange(len(scores), device=scores.device)
        loss = sum(F.cross_entropy(s, own, reduction="sum") for s in (scores, scores.T)) / 2
        right = float((scores.argmax(1) == own).float().mean())
        return loss, {"pairs right": right, "factor": float(model.head.scale.detach().exp())}


def _cut(ids: list[int], most: int | None) -> list[int]:
    """At most so many tokens; the last, which ends a text, stays."""
    return ids if most is None or len(ids) <= most else ids[: most - 1] + ids[-1:]
