"""GGUF metadata in the words of config.json, and back, for every dialect of models.dialects.

Keys of an architecture that nobody names stay as they are, and are refused as unknown keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mirada.core.position import frequencies
from mirada.errors import MiradaError, UntrustedInputError
from mirada.models.rope import scaling

FACTORS = "rope_freqs.weight"  # one divisor for each rotary wave: how converters keep LLaMA 3.1's
KEYS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.key_length": "head_dim",
}
ROPE = {
    "rope.freq_base": "rope_theta", "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor", "rope.scale_linear": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast", "rope.scaling.yarn_beta_slow": "beta_slow",
}
HEADS = "attention.head_count"
WHOLE = ("attention.max_alibi_bias",)  # whole numbers that GGUF has as floats
WIDTHS = ("rope.dimension_count", "attention.value_length")  # of a head: all must be one
NEUTRAL = {"rope.scaling.attn_factor": 1.0, "attention.causal": True, "expert_count": 0,
           "expert_used_count": 0}  # other values are refused
INERT = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", *WIDTHS}
IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id",
       "unknown": "unk_token_id"}


def config(reader, keys=KEYS, rotary=True, constant=None, hidden=None) -> dict:
    """The file's config under the keys of config.json. Raises UntrustedInputError where the
    metadata contradict themselves or the tensors. For the arguments see dialects.Dialect."""
    start = reader.architecture + "."
    said = {k.removeprefix(start): v for k, v in reader.metadata.items() if k.startswith(start)}
    raw = {keys[name]: int(value) if name in WHOLE else value
           for name, value in said.items() if name in keys}
    width = keys.get("attention.key_length")
    for name in WIDTHS if width else ():
        if name in said and raw.setdefault(width, said[name]) != said[name]:
            raise _refuse(reader, start + name, f"is {said[name]}, and a head has {raw[width]} "
                          "channels; only whole heads of one width can be read")
    usual = NEUTRAL | {"attention.head_count_kv": said.get(HEADS)} | (constant or {})
    usual |= {"feed_forward_length": hidden * said.get("embedding_length", 0)} if hidden else {}
    unknown = {start + name: value for name, value in said.items()
               if name not in keys | ROPE and name not in INERT and usual.get(name) != value}
    raw |= unknown | _vocabulary(reader, said)
    return raw | ({"rope_parameters": _rope(reader, said, keys)} if rotary else {})


def rope(raw: dict, width: int) -> dict:
    """The rope keys of a config.json, for heads `width` wide. Raises MiradaError for a scaling
    that GGUF has no keys for. `factors` has what keys cannot say."""
    inner = raw["rope_parameters"]
    inner = inner.get("full_attention", inner)  # of layers that slide, another key says it
    kind, part = inner.get("rope_type", "default"), inner.get("partial_rotary_factor", 1.0)
    if kind not in ("default", "linear", "yarn", "llama3", "longrope"):
        raise MiradaError(f"GGUF has no keys for rotary positions of type {kind!r}")
    found = {"rope.freq_base": inner["rope_theta"], "rope.dimension_count": int(width * part)}
    if kind in ("linear", "yarn"):
        names = {ours: name for name, ours in ROPE.items() if "scale_linear" not in name}
        found |= {names[ours]: value for ours, value in inner.items() if ours in names}
    return found


def factors(c, width: int) -> Tensor | None:
    """The divisor of each rotary wave, where `rope.scaling` keys cannot say the scaling."""
    if getattr(c, "rope", None) == "longrope":
        if c.rope_short != c.rope_long or c.rope_temperature != 1.0:
            raise MiradaError("GGUF has one factor a wave, and this model's differ with the length")
        return torch.tensor(c.rope_long)
    if getattr(c, "rope", None) != "llama3":
        return None
    plain = frequencies(width, c.rope_base, torch.empty(0, dtype=torch.float64))
    slowed, _ = scaling(c, width, c.context)(plain, None, None)
    return (plain / slowed).float()


def typed(key: str, value):
    """A number as llama.cpp wants it: some are never whole."""
    words = ("epsilon", "freq_base", "factor", "beta", "clamp", "alibi", "softcapping")
    return float(value) if any(w in key for w in words) else value


def _vocabulary(reader, said: dict) -> dict:
    """The embedding's rows are the vocabulary; whatever else speaks of it must agree."""
    rows = reader.shape("token_embd.weight")[0]
    tokens = reader.metadata.get("tokenizer.ggml.tokens")
    count = rows if tokens is None else len(tokens) if isinstance(tokens, list) else None
    for name, n in (("vocab_size", said.get("vocab_size", rows)), ("tokenizer.ggml.tokens", count)):
        if n != rows:
            raise _refuse(reader, name, f"{n} tokens, and the embedding has {rows} rows")
    raw = {}
    for name, ours in IDS.items():
        field = f"tokenizer.ggml.{name}_token_id"
        raw[ours] = value = reader.metadata.get(field)
        if value is not None and (type(value) is not int or not 0 <= value < rows):
            raise _refuse(reader, field, f"{value!r} is not one of the {rows} tokens")
    return raw | {"vocab_size": rows}


def _rope(reader, said: dict, keys: dict) -> dict:
    inner = {ours: said[name] for name, ours in ROPE.items() if name in said}
    kind = inner.setdefault("rope_type", "linear" if "factor" in inner else "default")
    inner["rope_type"] = "default" if kind == "none" else kind
    if "attention.key_length" not in keys and WIDTHS[0] in said:
        inner["partial_rotary_factor"] = said[WIDTHS[0]] / (said["embedding_length"] // said[HEADS])
    if FACTORS not in reader.names():
        return inner
    shape = reader.shape(FACTORS)
    if kind not in ("none", "default") or len(shape) != 1 or shape[0] > 4096:
        raise _refuse(reader, FACTORS, "must be one factor a wave, with no rope.scaling beside it")
    factors = reader.get(FACTORS).tolist()
    return inner | {"rope_type": "longrope", "short_factor": factors, "long_factor": factors,
                    "attention_factor": 1.0}


def _refuse(reader, field: str, limit: str) -> UntrustedInputError:
    return UntrustedInputError(reader.path, field, limit)
