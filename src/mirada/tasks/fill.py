"""What stood where the mask is (Devlin et al., 1810.04805)."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from mirada.errors import MiradaError
from mirada.model import Output

from . import evidence, inputs
from .inputs import Row
from .task import Task


class FillMask(Task):
    """Text with the mask token -> [{"score", "token", "token_str", "sequence"}, ...], best first;
    a list of such lists where a text has several masks.

    top_k: how many, 5 unless told. targets: words to choose among, a text or a list.
    evidence=True: the best has "evidence", what evidence.Look gives of the mask.
    """

    HEADS = ("ForMaskedLM", "ForPreTraining")
    DOES = "names hidden words"
    OPTIONS = ("top_k", "targets", "evidence")

    def fits(self) -> bool:
        return super().fits() and hasattr(self.model.head, "out")  # some pretrain a detector

    def __call__(self, inputs: Any, **options) -> Any:
        found = super().__call__(inputs, **options)
        return found[0] if isinstance(inputs, list) and len(inputs) == 1 else found

    def run(self, items: list, told: dict) -> list:
        mask = self.tokenizer.mask_id
        if mask is None:
            raise MiradaError("fill-mask needs a mask token, and this tokenizer has none")
        rows = [inputs.row(self.model, text, None, told) for text in items]
        for text, row in zip(items, rows, strict=True):
            if mask not in row.ids:
                raise MiradaError(f"the text {text[:40]!r} has no mask: write "
                                  f"{self.tokenizer.token(mask)} where a word is wanted")
        targets = None if told.get("targets") is None else self._ids(told["targets"])

        def take(out: Output, b: int, row: Row) -> Tensor:
            logits = out["logits"] if "logits" in out else out["prediction_logits"]
            return logits[b, _masks(row, mask)].float().softmax(-1).cpu()

        chances = inputs.forward(self.model, rows, self.batch_size, take)
        found = [self._result(row, some, targets, told.get("top_k", 5))
                 for row, some in zip(rows, chances, strict=True)]
        for row, one in zip(rows, found, strict=True) if told.get("evidence") else ():
            look = evidence.Look(self.model, row)
            several = one if isinstance(one[0], list) else [one]
            for place, some in zip(_masks(row, mask), several, strict=True):
                some[0]["evidence"] = look([place], "the mask")
        return found

    def _result(self, row: Row, chances: Tensor, targets: list[int] | None, top_k: int) -> list:
        """chances: (masks, V). differs: ids that are no token (a table larger than the vocabulary)
        are not offered."""
        chances = chances[:, : self.tokenizer.size]
        if targets is not None:
            chances = chances[:, targets]
        best = chances.topk(min(top_k, chances.shape[-1]))
        places, alone = _masks(row, self.tokenizer.mask_id), len(chances) == 1
        found = []
        for place, scores, picks in zip(places, best.values.tolist(), best.indices.tolist(),
                                        strict=True):
            picks = picks if targets is None else [targets[i] for i in picks]
            found.append([self._filled(row, place, pick, score, alone)
                          for pick, score in zip(picks, scores, strict=True)])
        return found[0] if alone else found

    def _filled(self, row: Row, place: int, pick: int, score: float, alone: bool) -> dict:
        ids = [*row.ids[:place], pick, *row.ids[place + 1 :]]
        ids = [i for i in ids if i != self.tokenizer.pad_id]
        # with other masks around, they are left to be seen
        return {"score": score, "token": pick, "token_str": self._text([pick]),
                "sequence": self.tokenizer.decode(ids, skip_special=alone)}

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special=False)

    def _ids(self, targets: str | list[str]) -> list[int]:
        """The ids of words to choose among; of one that is several tokens the first, said so."""
        found = []
        for word in [targets] if isinstance(targets, str) else targets:
            try:
                found.append(self.tokenizer.id(word))
            except MiradaError:
                ids = self.tokenizer.encode(word, special=False).ids
                if not ids:
                    continue
                warnings.warn(f"the target {word!r} is not in the vocabulary: "
                              f"{self.tokenizer.token(ids[0])!r} takes its place", stacklevel=2)
                found.append(ids[0])
        if not found:
            raise MiradaError("targets must be one or more words to choose among")
        return list(dict.fromkeys(found))


def _masks(row: Row, mask: int) -> list[int]:
    return [i for i, token in enumerate(row.ids) if token == mask]
