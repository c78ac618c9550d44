"""What llama.cpp calls each family: its keys and tensors in GGUF, read and written.

Our paths are the core's, one set for all families, so that one table of rows serves every decoder;
a dialect says what differs. What llama.cpp's own graph takes for granted stands in `fixed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mirada.errors import MiradaError
from mirada.models import gguf
from mirada.weights.rows import SAME, RotaryPairs, Shifted, Split, Weights

EPS = "attention.layer_norm_epsilon"
TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate")
GPT = {"block_count": "n_layer", "embedding_length": "n_embd", "context_length": "n_positions",
       "feed_forward_length": "n_inner", "attention.head_count": "n_head",
       EPS: "layer_norm_epsilon"}
HF = {key: name for key, name in gguf.KEYS.items() if "rms" not in key and "key_" not in key}
DOUBLE = "attention.value_length"  # as wide as a key here; llama.cpp wants both


@dataclass(frozen=True)
class Dialect:
    """One architecture of llama.cpp.

    head, model_type: what config.json calls it. keys: GGUF's key -> config.json's, dots for
    objects inside. fixed: config key -> the values that mean the same; a read file gets the first.
    fused: q, k, v are one tensor. pairs: q and k turn neighbours. plus: norms are stored + 1.
    rotary: it has rope keys. hidden: feed_forward_length as a multiple of the width, where
    config.json may be silent. constant: GGUF's key -> what every file of it says. same: config keys
    that llama.cpp takes to be equal to others.
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

    def config(self, reader) -> dict:
        """The config of a file in the names of config.json; see gguf.config."""
        found = gguf.config(reader, self.keys, self.rotary, self.constant, self.hidden)
        names, raw = set(reader.names()), {name: values[0] for name, values in self.fixed.items()}
        raw |= {"model_type": self.model_type,
                "tie_word_embeddings": "output.weight" not in names}
        if self.pairs:
            raw |= {"attention_bias": "blk.0.attn_q.bias" in names,
                    "mlp_bias": "blk.0.ffn_up.bias" in names}
        raw |= found | {name: found.get(other) for name, other in self.same.items()}
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
        said = self.constant | {key: _get(raw, ours) for key, ours in self.keys.items()}
        if self.hidden:
            said["feed_forward_length"] = said.get("feed_forward_length") or self.hidden * width
        said[DOUBLE] = said.get("attention.key_length")
        if self.rotary:
            said |= gguf.rope(raw, said.get("attention.key_length") or width // heads)
        return {f"{name}.{key}": gguf.typed(key, value) for key, value in said.items()
                if value is not None} | {f"{name}.vocab_size": raw["vocab_size"]}

    def weights(self, c) -> Weights:
        """The rows; `c` is the family's Config."""
        heads, kv = c.heads, getattr(c, "kv_heads", None) or c.heads
        norm = Shifted(1.0) if self.plus else SAME
        sizes = None
        if getattr(c, "shared", False):  # one key and value for all heads
            sizes = (c.d, c.d // c.heads, c.d // c.heads)
        turned = [RotaryPairs(heads), RotaryPairs(kv)] if self.pairs else [SAME, SAME]
        look = [("blk.{i}.attn_qkv.{p}", "blocks.{i}.attn.f.(q|k|v).{p}", Split(3, sizes))]
        if not self.fused:
            look = [(f"blk.{{i}}.attn_{n}.{{p}}", f"blocks.{{i}}.attn.f.{n}.{{p}}", op)
                    for n, op in zip("qkv", [*turned, SAME], strict=True)]
        sandwich = self.model_type in ("gemma2", "gemma3_text")
        return Weights([
            ("token_embd.weight", "embed.token.weight"),
            ("position_embd.weight", "embed.position.weight"),
            ("token_embd_norm.{p}", "embed.norm.{p}"),
            ("blk.{i}.attn_norm.{p}", "blocks.{i}.attn.pre.{p}", norm), *look,
            ("blk.{i}.attn_q_norm.{p}", "blocks.{i}.attn.f.qk_norm.q.{p}", norm),
            ("blk.{i}.attn_k_norm.{p}", "blocks.{i}.attn.f.qk_norm.k.{p}", norm),
            ("blk.{i}.attn_output.{p}", "blocks.{i}.attn.f.o.{p}"),
            ("blk.{i}.post_attention_norm.{p}", "blocks.{i}.attn.post.{p}", norm),
            ("blk.{i}.ffn_norm.{p}", "blocks.{i}.mlp.pre.{p}", norm),
            *((f"blk.{{i}}.ffn_{n}.{{p}}", f"blocks.{{i}}.mlp.f.{n}.{{p}}")
              for n in ("gate", "up", "down")),
            *[("blk.{i}.post_ffw_norm.{p}", "blocks.{i}.mlp.post.{p}", norm)] * sandwich,
            ("output_norm.{p}", "norm.{p}", norm),
            ("output.{p}", "head.out.{p}"),
        ], carried=(gguf.FACTORS,))


def _get(raw: dict, path: str):
    for part in path.split("."):
        raw = (raw or {}).get(part)
    return raw


def _put(raw: dict, path: str, value) -> None:
    *outer, last = path.split(".")
    for part in outer:
        raw = raw.setdefault(part, {})
    raw[last] = value


GEMMA = {"hidden_act": TANH, "attention_bias": (False,), "tie_word_embeddings": (True,)}
DIALECTS = {
    "llama": Dialect("LlamaForCausalLM", "llama", gguf.KEYS, {"hidden_act": ("silu", "swish")},
                     pairs=True),
    "qwen2": Dialect("Qwen2ForCausalLM", "qwen2", gguf.KEYS, {
        "hidden_act": ("silu", "swish"), "use_sliding_window": (False,)}),
    "qwen3": Dialect("Qwen3ForCausalLM", "qwen3", gguf.KEYS, {
        "hidden_act": ("silu", "swish"), "use_sliding_window": (False,),
        "attention_bias": (False,)}),
    "gemma": Dialect("GemmaForCausalLM", "gemma", gguf.KEYS, GEMMA, plus=True),
    "gemma2": Dialect("Gemma2ForCausalLM", "gemma2", gguf.KEYS | {
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping"},
        GEMMA | {"sliding_window_pattern": (2,)}, plus=True,
        same={"query_pre_attn_scalar": "head_dim"}),
    "gpt2": Dialect("GPT2LMHeadModel", "gpt2", GPT, {
        "activation_function": ("gelu_new", *TANH), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,)}, fused=True, rotary=False, hidden=4),
    "starcoder": Dialect("GPTBigCodeForCausalLM", "gpt_bigcode", GPT, {
        "activation_function": TANH, "scale_attn_weights": (True,), "multi_query": (True,)},
        fused=True, rotary=False, hidden=4, constant={"attention.head_count_kv": 1}),
    "starcoder2": Dialect("Starcoder2ForCausalLM", "starcoder2", HF | {EPS: "norm_epsilon"}, {
        "hidden_act": TANH, "use_bias": (True,), "sliding_window": (None,)}),
    "gptneox": Dialect("GPTNeoXForCausalLM", "gpt_neox", {
        **{key: name for key, name in HF.items() if "kv" not in key},
        EPS: "layer_norm_eps", "use_parallel_residual": "use_parallel_residual"}, {
        "hidden_act": ("gelu", *TANH), "attention_bias": (True,)}, fused=True),
    "bloom": Dialect("BloomForCausalLM", "bloom", {
        "block_count": "n_layer", "embedding_length": "hidden_size",
        "attention.head_count": "n_head", EPS: "layer_norm_epsilon"}, {
        "apply_residual_connection_post_layernorm": (False,)},
        fused=True, rotary=False, hidden=4, constant={"context_length": 2048}),
    "mpt": Dialect("MptForCausalLM", "mpt", {
        "block_count": "n_layers", "embedding_length": "d_model", "context_length": "max_seq_len",
        "attention.head_count": "n_heads", EPS: "layer_norm_epsilon",
        "attention.clamp_kqv": "attn_config.clip_qkv",
        "attention.max_alibi_bias": "attn_config.alibi_bias_max"}, {
        "attn_config.softmax_scale": (None,)}, fused=True, rotary=False, hidden=4),
}
