"""GGUF metadata in the words of config.json, for every architecture that a family reads from it.

Keys of the architecture that are not named here stay as they are, and are refused as unknown keys.
"""

from __future__ import annotations

from mirada.errors import UntrustedInputError

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
WIDTHS = ("rope.dimension_count", "attention.value_length")  # of a head: all must be one
NEUTRAL = {"rope.scaling.attn_factor": 1.0, "attention.causal": True, "expert_count": 0,
           "expert_used_count": 0}  # other values are refused
INERT = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", *WIDTHS}
IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id",
       "unknown": "unk_token_id"}


def config(reader) -> dict:
    """The file's config under the keys of config.json. Raises UntrustedInputError where the
    metadata contradict themselves or the tensors."""
    start = reader.architecture + "."
    said = {k.removeprefix(start): v for k, v in reader.metadata.items() if k.startswith(start)}
    raw = {KEYS[name]: value for name, value in said.items() if name in KEYS}
    for name in WIDTHS:
        if name in said and raw.setdefault("head_dim", said[name]) != said[name]:
            raise _refuse(reader, start + name, f"is {said[name]}, and a head has "
                          f"{raw['head_dim']} channels; only whole heads of one width can be read")
    unknown = {start + name: value for name, value in said.items()
               if name not in KEYS | ROPE and name not in INERT and NEUTRAL.get(name) != value}
    return raw | unknown | _vocabulary(reader, said) | {"rope_parameters": _rope(reader, said)}


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


def _rope(reader, said: dict) -> dict:
    inner = {ours: said[name] for name, ours in ROPE.items() if name in said}
    kind = inner.setdefault("rope_type", "linear" if "factor" in inner else "default")
    inner["rope_type"] = "default" if kind == "none" else kind
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
