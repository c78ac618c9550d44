"""A tiny LLaMA as llama.cpp's converter writes it, by the `gguf` package's own writer."""

import gguf
import numpy as np
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

KEYS = {"context_length": 32, "embedding_length": 32, "feed_forward_length": 64, "block_count": 2,
        "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 8,
        "attention.layer_norm_rms_epsilon": 2.0**-16, "rope.freq_base": 10000.0, "vocab_size": 61}
NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """The converter's order of the rows of q and k: a head's two halves, alternating."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def tensors(model: torch.nn.Module, heads: int = 4, kv_heads: int = 2) -> dict[str, np.ndarray]:
    """The reference's LlamaForCausalLM under GGUF's names, float32."""
    found = {}
    for name, tensor in model.state_dict().items():
        value = tensor.detach().float().numpy()
        parts = name.removeprefix("model.").split(".")
        if parts[0] != "layers":
            short = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
            found[f"{short[parts[0]]}.{parts[-1]}"] = value
            continue
        short = NAMES[".".join(parts[2:-1])]
        count = {"attn_q": heads, "attn_k": kv_heads}.get(short)
        found[f"blk.{parts[1]}.{short}.{parts[-1]}"] = paired(value, count) if count else value
    if model.config.tie_word_embeddings:
        del found["output.weight"]
    return found


def read_reference(path) -> transformers.LlamaForCausalLM:
    """The reference's own reading of a GGUF file (its from_pretrained asks for another package)."""
    config = transformers.LlamaConfig(**load_gguf_checkpoint(str(path))["config"])
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config)
    found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unused = model.load_state_dict(found, strict=False)
    assert not unused and missing == ["lm_head.weight"] * config.tie_word_embeddings
    model.tie_weights()
    return model.eval()


def write(path, named: dict[str, np.ndarray], keys: dict | None = None, tokenizer=None, kind=None):
    """keys: llama.* that differ from KEYS, None to leave one out. kind: a quantized type for all
    matrices. tokenizer: tokenizer.ggml.* keys."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (KEYS | (keys or {})).items():
        _add(writer, f"llama.{name}", value)
    for name, value in (tokenizer or {}).items():
        _add(writer, f"tokenizer.ggml.{name}", value)
    for name, value in named.items():
        if kind is not None and value.ndim == 2:
            value = gguf.quants.quantize(value, kind)
            writer.add_tensor(name, value, raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, value) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif value is not None:
        writer.add_array(name, value)
