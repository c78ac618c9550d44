"""LLaMA in the files it was first published in: params.json beside consolidated.00.pth ..."""

from __future__ import annotations

from dataclasses import dataclass

from mirada.errors import UntrustedInputError
from mirada.weights import config as configs
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import RotaryPairs, Weights

INERT = {"max_batch_size": ANY, "max_seq_len": ANY}  # of the program that ran it
# The axis along which files divide a matrix: its outputs (0) or inputs; norms are in all, whole.
CUT = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1}
# params.json says only that frequencies are scaled. Width of 3.1 and 3.2 -> by how much.
FACTORS = {2048: 32.0, 3072: 32.0, 4096: 8.0, 8192: 8.0, 16384: 8.0}


@dataclass(frozen=True)
class Params:
    """The keys of params.json."""

    d: int = size("dim", 4096)
    layers: int = size("n_layers", 32, high=2048)
    heads: int = size("n_heads", 32)
    kv_heads: int | None = key("n_kv_heads", None, low=1)
    vocab: int = key("vocab_size", -1, low=-1)  # -1: as many as the embedding has
    multiple: int = key("multiple_of", 256, low=1)
    stretch: float | None = key("ffn_dim_multiplier", None, low=1e-3, high=1e3)
    eps: float = key("norm_eps", 1e-5, low=0)
    base: float = key("rope_theta", 1e4, low=2, high=1e15)
    scaled: bool = key("use_scaled_rope", False)
    factor: float | None = key("rope_scaling_factor", None, low=1)


def read(raw, path, ignore=()) -> Params:
    """Raises UntrustedInputError where a key is unknown or cannot be."""
    if not isinstance(raw, dict):
        raise UntrustedInputError(path, "root", "must be an object: dim, n_layers, n_heads ...")
    return configs.read(Params, raw, path, inert=INERT, ignore=ignore).config


def axis(p: Params):
    """(name, shape of a slice) -> the axis along which it was cut, None where it was not."""
    def cut(name: str, shape: tuple[int, ...]) -> int | None:
        part = name.removesuffix(".weight").rpartition(".")[2]
        if part == "tok_embeddings":  # LLaMA 1 and 2 cut its width, 3 its tokens
            return int(shape[-1:] != (p.d,))
        return CUT.get(part)
    return cut


def config(p: Params, reader, path) -> dict:
    """The config in the names of config.json."""
    hidden = int((p.stretch or 1) * int(8 * p.d / 3))
    rows = reader.shape("tok_embeddings.weight")[0]
    if p.vocab not in (-1, rows):
        raise UntrustedInputError(path, "vocab_size", f"{p.vocab}, and the embedding has {rows} "
                                  "rows: is a consolidated file missing?")
    return {
        "model_type": "llama", "vocab_size": rows, "hidden_size": p.d,
        "num_hidden_layers": p.layers, "num_attention_heads": p.heads,
        "num_key_value_heads": p.kv_heads or p.heads, "rms_norm_eps": p.eps,
        "intermediate_size": -(-hidden // p.multiple) * p.multiple,
        "max_position_embeddings": _context(p), "rope_parameters": _rope(p, path),
        "tie_word_embeddings": "output.weight" not in reader.names(),
    }


def _context(p: Params) -> int:
    """Tokens that the models were published for, which no file says: 3.1, 3, CodeLlama, 2 and 1."""
    known = {5e5: 131072 if p.scaled else 8192, 1e6: 16384}
    return known.get(p.base, 2048 if p.eps == 1e-6 else 4096)


def _rope(p: Params, path) -> dict:
    if not p.scaled:
        return {"rope_theta": p.base}
    factor = p.factor or FACTORS.get(p.d)
    if factor is None:
        raise UntrustedInputError(path, "use_scaled_rope", "does not say by how much, and no LLaMA "
                                  f"is {p.d} wide: add rope_scaling_factor (3.1: 8, 3.2: 32)")
    return {"rope_theta": p.base, "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def weights(c) -> Weights:
    """The map of these files; rotation turns neighbouring rows of q and k, as in GGUF."""
    layer, ours = "layers.{i}.", "blocks.{i}."
    return Weights([
        ("tok_embeddings.weight", "embed.token.weight"),
        (layer + "(attention|ffn)_norm.weight", ours + "(attn|mlp).pre.weight"),
        (layer + "attention.wq.weight", ours + "attn.f.q.weight", RotaryPairs(c.heads)),
        (layer + "attention.wk.weight", ours + "attn.f.k.weight", RotaryPairs(c.kv_heads)),
        (layer + "attention.(wv|wo).weight", ours + "attn.f.(v|o).weight"),
        (layer + "feed_forward.(w1|w3|w2).weight", ours + "mlp.f.(gate|up|down).weight"),
        ("norm.weight", "norm.weight"),
        ("output.weight", "head.out.weight"),
    ], carried=("rope.freqs",))
