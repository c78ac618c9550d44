"""A model behind the Explorer: what it is, in the words of the schema, and how it is shared."""

from __future__ import annotations

import copy
import threading

from torch import Tensor

from mirada.core.attention import Attention
from mirada.core.heads import Classifier, LMHead
from mirada.core.linear import KEPT
from mirada.errors import MiradaError
from mirada.look import describe, sites

ROLES = ("bos", "cls", "sep", "pad", "unk", "mask")


class Served:
    """A model behind the Explorer. Passes hold its lock: hooks of two passes must not meet."""

    def __init__(self, id: str, model, name: str):
        if model.kind == "dual-encoder":
            raise MiradaError(f"the Explorer shows one text through a model, and {name} has two "
                              "towers that meet at their ends: look into it with m.record(), or "
                              "load a text tower's own files")
        self.id, self.model, self.name = id, model.eval(), name
        self.lock = threading.RLock()
        self.paths = {module: path for path, module in model.named_modules()}
        self.data = self._data()

    def twin(self):
        """The same weights in modules of their own, so that long work can hook them while calls
        are answered."""
        model, shared = self.model, {}
        for module in model.modules():
            shared |= {id(x): x for x in vars(module).values() if isinstance(x, Tensor)}
        for x in (*model.parameters(), *model.buffers(), model.tokenizer, model.native):
            shared[id(x)] = x
        return copy.deepcopy(model, shared)

    @property
    def loading(self) -> str:
        """Python that loads these very weights."""
        if any(isinstance(m, KEPT) for m in self.model.modules()):
            return f"mirada.load({self.name!r})"
        return f"mirada.load({self.name!r}, dtype={self.model.dtype})"

    @property
    def output(self) -> str:
        """next, mask, labels or none: what the model's answer is."""
        if self.model.generates:
            return "next"
        if isinstance(self.model.head, LMHead):
            return "mask"
        return "labels" if isinstance(self.model.head, Classifier) else "none"

    def _data(self) -> dict:
        """The model's part of the schema."""
        m, tokenizer = self.model, self.model.tokenizer
        stacks = {name: _layers(stack, False) for name, stack in sites.stacks(m).items()}
        first = next((layer for layer in next(iter(stacks.values())) if layer["heads"]), {})
        labels = m.origin.raw.get("id2label") or {}
        data = {
            "id": self.id, "name": self.name, "family": m.family, "kind": m.kind,
            "architecture": m.architecture, "layers": len(m.decoder.order),
            "heads": first.get("heads", 0), "kv_heads": first.get("kv_heads", 0),
            "d": _width(m), "vocab": getattr(m.config, "vocab", 0), "context": m.context,
            "output": self.output, "live": True,
            "chat": bool(getattr(tokenizer, "templates", None)),
            "special": _special(tokenizer),
            "stacks": [{"id": name, "kind": "self", "causal": name == "decoder",
                        "queries": name, "keys": name, "layers": layers}
                       for name, layers in stacks.items()]}
        if m.encoder_decoder:
            data["stacks"].append({
                "id": "cross", "kind": "cross", "causal": False, "queries": "decoder",
                "keys": "encoder", "layers": _layers(m.body.decoder, True)})
        if self.output == "labels":
            data["labels"] = [labels[key] for key in sorted(labels, key=int)]
        return data

    def card(self) -> dict:
        """What the model is, for its card."""
        told = describe.describe(self.model)
        return {"schema": "explorer/1", "model": self.data, "parameters": told.parameters,
                "facts": told.facts, "parts": told.parts, "tree": told.tree, "notes": told.notes,
                "config": {k: v for k, v in vars(self.model.config).items()
                           if isinstance(v, int | float | str | bool | None)}}

    def labels(self, ids) -> dict[str, str]:
        """id -> readable piece, of those that the vocabulary has."""
        ids = list(dict.fromkeys(ids))
        if self.output == "labels":
            names = self.data.get("labels", [])
            return {str(i): names[i] if i < len(names) else f"LABEL_{i}" for i in ids}
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            return {str(i): str(i) for i in ids}
        known = [i for i in ids if i < tokenizer.size]  # some tables have rows beyond
        pieces = dict(zip(known, tokenizer.pieces(known), strict=True))
        return {str(i): pieces.get(i, "") for i in ids}

    def choice(self, id: int, **numbers: float) -> dict:
        """A token with what is said of it."""
        return {"id": id, "s": self.labels([id])[str(id)], **numbers}


def _layers(stack, cross: bool) -> list[dict]:
    """Each layer's attention, in the stack's order."""
    found = []
    for index in stack.order:
        name = "cross" if cross else "self"
        own = [a for kind, a in sites.attentions("self", stack.blocks[index]) if kind == name]
        found.append(_attention(own[0]) if own else {"attn": "none", "heads": 0, "kv_heads": 0})
    return found


def _attention(attention: Attention) -> dict:
    counts = {"heads": attention.heads, "kv_heads": attention.kv_heads}
    window = attention.mask.window
    return {"attn": "window", "w": window, **counts} if window else {"attn": "full", **counts}


def _width(model) -> int:
    attention = next((m for m in model.modules() if isinstance(m, Attention)), None)
    return attention.q.in_features if attention is not None else 0


def _special(tokenizer) -> dict[str, int]:
    if tokenizer is None:
        return {}
    found = {role: getattr(tokenizer, f"{role}_id") for role in ROLES}
    found["eos"] = min(tokenizer.eos_ids, default=None)
    return {role: id for role, id in found.items() if id is not None}
