"""What llama.cpp calls each family: its keys and tensors in GGUF, read and written."""

from __future__ import annotations

from mirada.errors import MiradaError, UntrustedInputError
from mirada.models import gguf, ggufrows, windows
from mirada.models.dialect import Dialect

EPS = "attention.layer_norm_epsilon"
TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate")
GPT = {"block_count": "n_layer", "embedding_length": "n_embd", "context_length": "n_positions",
       "feed_forward_length": "n_inner", "attention.head_count": "n_head",
       EPS: "layer_norm_epsilon"}
HF = {key: name for key, name in gguf.KEYS.items() if "rms" not in key and "key_" not in key}


def find(reader) -> str:
    """The name in DIALECTS of a file's architecture."""
    experts = reader.metadata.get(f"{reader.architecture}.expert_count")
    name = f"{reader.architecture}:experts"
    return name if experts and name in DIALECTS else reader.architecture


def _turns(reader, raw: dict) -> dict:
    """Which layers slide, where a file says it of each: True where one does."""
    each = raw.get("sliding_window_pattern")
    if not isinstance(each, list):
        return {}
    raw.pop("sliding_window_pattern")
    return {"layer_types": [windows.KINDS[bool(slides)] for slides in each]}


def _slides(raw: dict) -> dict:
    return {PATTERN: [kind == windows.KINDS[1] for kind in raw["layer_types"]]}


def _near_and_far(reader, raw: dict) -> dict:
    if reader.metadata.get("modern-bert.rope.scaling.type", "none") != "none":
        raise UntrustedInputError(reader.path, "modern-bert.rope.scaling.type", "the rotation of "
                                  "this architecture has no scaling")
    period = raw.pop("sliding_window_pattern", 3)
    found = _turns(reader, {"sliding_window_pattern": period})
    return found or {"global_attn_every_n_layers": period}


def _segments(reader, raw: dict) -> dict:
    return {"type_vocab_size": reader.shape("token_types.weight")[0]}


def _positions(raw: dict) -> dict:
    """RoBERTa's table begins with rows, to the pad's, that no token reads and GGUF leaves out."""
    unread = raw["pad_token_id"] + 1 if raw["model_type"] in BEHIND else 0
    return {"context_length": raw["max_position_embeddings"] - unread}


def _text_to_text(reader, raw: dict) -> dict:
    """The gate shows in the tensors; a file that names no pad or end means the usual ones."""
    gated = "enc.blk.0.ffn_gate.weight" in reader.names()
    ids = {name: raw.get(name) if raw.get(name) is not None else usual
           for name, usual in (("pad_token_id", 0), ("eos_token_id", 1))}
    return ids | {"feed_forward_proj": "gated-gelu" if gated else "relu"}


def _experts(reader, raw: dict) -> dict:
    """As many as one tensor holds, or nothing is built: a file may claim any number."""
    count, name = raw["num_local_experts"], "blk.0.ffn_gate_exps.weight"
    held = reader.shape(name)[0] if name in reader.names() else 0
    if type(count) is not int or not 0 < count == held <= 512:  # llama.cpp's own most
        raise UntrustedInputError(reader.path, "llama.expert_count", f"{count!r} experts, and "
                                  f"{name} holds {held}, where at most 512 are read")
    return {}


def _depths(raw: dict) -> dict:
    if raw["num_decoder_layers"] > raw["num_layers"]:
        raise MiradaError(f"llama.cpp cannot load {raw['num_decoder_layers']} decoder layers "
                          f"beside {raw['num_layers']} encoder layers, only as many or fewer")
    return {}


BEHIND = ("roberta", "xlm-roberta", "camembert")
PATTERN = "attention.sliding_window_pattern"
WINDOW = {"attention.sliding_window": "sliding_window"}
POOL = {"pooling_type": "pooling_type"}  # no key of config.json, which has no word for it
GEMMA = {"hidden_act": TANH, "attention_bias": (False,), "tie_word_embeddings": (True,)}
DIALECTS = {
    "llama": Dialect("LlamaForCausalLM", "llama", gguf.KEYS, {
        "hidden_act": ("silu", "swish"), "sliding_window": (None,)}, pairs=True,
        also=("MistralForCausalLM",)),
    "llama:experts": Dialect("MixtralForCausalLM", "mixtral", gguf.KEYS | {
        "expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}, {
        "hidden_act": ("silu", "swish"), "sliding_window": (None,)}, pairs=True,
        reads=_experts),
    "qwen2": Dialect("Qwen2ForCausalLM", "qwen2", gguf.KEYS, {
        "hidden_act": ("silu", "swish"), "use_sliding_window": (False,)}),
    "qwen3": Dialect("Qwen3ForCausalLM", "qwen3", gguf.KEYS, {
        "hidden_act": ("silu", "swish"), "use_sliding_window": (False,),
        "attention_bias": (False,)}),
    "gemma": Dialect("GemmaForCausalLM", "gemma", gguf.KEYS, GEMMA, plus=True),
    "gemma2": Dialect("Gemma2ForCausalLM", "gemma2", gguf.KEYS | WINDOW | {
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping"},
        GEMMA | {"sliding_window_pattern": (2,)}, plus=True,
        same={"query_pre_attn_scalar": "head_dim"}),
    "gemma3": Dialect("Gemma3ForCausalLM", "gemma3_text", gguf.KEYS | WINDOW | {
        PATTERN: "sliding_window_pattern", "rope.freq_base_swa": "rope_local_base_freq",
        "final_logit_softcapping": "final_logit_softcapping"},
        GEMMA | {"attn_logit_softcapping": (None,)}, plus=True,
        same={"query_pre_attn_scalar": "head_dim"}, reads=_turns, writes=_slides),
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
    "bert": Dialect("BertModel", "bert", {
        **{key: name for key, name in HF.items() if "kv" not in key}, **POOL,
        EPS: "layer_norm_eps"}, {
        "hidden_act": ("gelu", *TANH)}, rotary=False, rows=ggufrows.encoder, reads=_segments,
        writes=_positions, constant={"attention.causal": False, "pooling_type": 1},  # mean
        also=("RobertaModel", "XLMRobertaModel", "CamembertModel")),
    "modern-bert": Dialect("ModernBertModel", "modernbert", {
        **{key: name for key, name in HF.items() if "kv" not in key}, EPS: "norm_eps",
        **POOL, "attention.sliding_window": "local_attention", PATTERN: "sliding_window_pattern",
        "rope.freq_base": "global_rope_theta", "rope.freq_base_swa": "local_rope_theta"}, {
        "hidden_activation": ("gelu", *TANH), "norm_bias": (False,), "attention_bias": (False,),
        "mlp_bias": (False,)}, rotary=False, rows=ggufrows.near_and_far, reads=_near_and_far,
        writes=_slides, constant={"attention.causal": False, "pooling_type": 1}),
    "t5": Dialect("T5ForConditionalGeneration", "t5", {
        "context_length": "n_positions", "embedding_length": "d_model",
        "feed_forward_length": "d_ff", "block_count": "num_layers",
        "decoder_block_count": "num_decoder_layers", "attention.head_count": "num_heads",
        "attention.key_length": "d_kv", EPS: "layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        "attention.relative_buckets_count": "relative_attention_num_buckets",
        "decoder_start_token_id": "decoder_start_token_id"}, {
        "feed_forward_proj": ("relu", "gated-gelu"), "relative_attention_max_distance": (128,)},
        rotary=False, rows=ggufrows.both, reads=_text_to_text, writes=_depths,
        constant={"context_length": 512},
        # llama.cpp scales no logits; older, tied models mean scaled ones and sample cooler there
        same={"scale_decoder_outputs": "tie_word_embeddings"},
        also=("MT5ForConditionalGeneration", "T5WithLMHeadModel")),
}
