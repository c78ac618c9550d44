"""One architecture of llama.cpp: its keys in the words of config.json, and back.

Our paths are the core's, one set for all families, so that one table of rows serves every decoder;
a dialect says what differs. What llama.cpp's own graph takes for granted stands in `fixed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mirada.errors import MiradaError
from mirada.models import gguf, ggufrows
from mirada.weights.rows import Weights

DOUBLE = "attention.value_length"  # as wide as a key here; llama.cpp wants both


@dataclass(frozen=True)
class Dialect:
    """One architecture of llama.cpp.

    head, model_type: what config.json calls it. keys: GGUF's key -> config.json's, dots for
    objects inside. fixed: config key -> the values that mean the same; a read file gets the first.
    fused: q, k, v are one tensor. pairs: q and k turn neighbours. plus: norms are stored + 1.
    rotary: it has rope keys. hidden: feed_forward_length as a multiple of the width, where
    config.json may be silent. constant: GGUF's key -> what every file of it says. same: config keys
    that llama.cpp takes to be equal to others. also: heads that are written alike, and read as
    `head`. rows: the table of tensors. reads(reader, raw): config keys that only the tensors tell,
    or that GGUF says otherwise. writes(raw): GGUF keys of the second kind.
    """

    head: str
    model_type: str
    keys: dict[str, str]
    fixed: dict[str, tuple] = field(default_factory=dict)
    fused: bool = False
    pairs: bool = False
    plus: bool = False
    rotary: bool = True
    hidden: int | None = None
    constant: dict = field(default_factory=dict)
    same: dict = field(default_factory=dict)
    also: tuple[str, ...] = ()
    rows: Callable = ggufrows.decoder
    reads: Callable = lambda reader, raw: {}
    writes: Callable = lambda raw: {}

    def config(self, reader) -> dict:
        """The config of a file in the names of config.json; see gguf.config."""
        found = gguf.config(reader, self.keys, self.rotary, self.constant, self.hidden)
        names, raw = set(reader.names()), {name: values[0] for name, values in self.fixed.items()}
        raw |= {"model_type": self.model_type,
                "tie_word_embeddings": "output.weight" not in names}
        if self.pairs:
            raw |= {"attention_bias": "blk.0.attn_q.bias" in names,
                    "mlp_bias": "blk.0.ffn_up.bias" in names}
        raw |= found
        raw |= self.reads(reader, raw)
        raw |= {name: raw.get(other) for name, other in self.same.items()}
        for name in [n for n in (*self.keys.values(), *self.fixed) if "." in n and n in raw]:
            _put(raw, name, raw.pop(name))
        return raw

    def metadata(self, raw: dict, name: str) -> dict:
        """The inverse: `raw` is a config.json, `name` the architecture in GGUF. Raises MiradaError
        for what llama.cpp cannot be told."""
        for key, allowed in self.fixed.items():
            said = _get(raw, key)
            if said not in allowed and not (said is None and allowed[0] in (None, False)):
                raise MiradaError(f"GGUF has no word for {key} = {said!r}: llama.cpp's {name} "
                                  f"takes {allowed[0]!r} for granted")
        for key, other in self.same.items():
            if raw.get(key) != raw.get(other):
                raise MiradaError(f"GGUF has no word for {key} = {raw.get(key)!r}: llama.cpp's "
                                  f"{name} takes that of {other}, {raw.get(other)!r}")
        width, heads = (raw[self.keys[k]] for k in ("embedding_length", "attention.head_count"))
        said = {key: _get(raw, ours) for key, ours in self.keys.items()}
        said = self.constant | {key: value for key, value in said.items()
                                if value is not None or key not in self.constant}
        if self.hidden:
            said["feed_forward_length"] = said.get("feed_forward_length") or self.hidden * width
        said[DOUBLE] = said.get("attention.key_length")
        if self.rotary:
            said |= gguf.rope(raw, said.get("attention.key_length") or width // heads)
        said |= self.writes(raw)
        return {f"{name}.{key}": gguf.typed(key, value) for key, value in said.items()
                if value is not None} | {f"{name}.vocab_size": raw["vocab_size"]}

    def weights(self, c) -> Weights:
        """The rows; `c` is the family's Config."""
        return self.rows(self, c)


def _get(raw: dict, path: str):
    for part in path.split("."):
        raw = (raw or {}).get(part)
    return raw


def _put(raw: dict, path: str, value) -> None:
    *outer, last = path.split(".")
    for part in outer:
        raw = raw.setdefault(part, {})
    raw[last] = value
