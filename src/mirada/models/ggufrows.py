"""Which tensor of a GGUF file is which of ours: a table for decoders, one for each other shape."""

from __future__ import annotations

from mirada.models import gguf
from mirada.weights.rows import SAME, Behind, RotaryPairs, Shifted, Split, Stacked, Weights


def decoder(dialect, c) -> Weights:
    """Blocks with norms in front; `dialect` says what differs, `c` is the family's Config."""
    heads, kv = c.heads, getattr(c, "kv_heads", None) or c.heads
    norm = Shifted(1.0) if dialect.plus else SAME
    sizes = None
    if getattr(c, "shared", False):  # one key and value for all heads
        sizes = (c.d, c.d // c.heads, c.d // c.heads)
    turned = [RotaryPairs(heads), RotaryPairs(kv)] if dialect.pairs else [SAME, SAME]
    look = [("blk.{i}.attn_qkv.{p}", "blocks.{i}.attn.f.(q|k|v).{p}", Split(3, sizes))]
    if not dialect.fused:
        look = [(f"blk.{{i}}.attn_{n}.{{p}}", f"blocks.{{i}}.attn.f.{n}.{{p}}", op)
                for n, op in zip("qkv", [*turned, SAME], strict=True)]
    sandwich = dialect.model_type in ("gemma2", "gemma3_text")
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
        *(_experts(c.experts) if hasattr(c, "experts") else _mlp()),
        *[("blk.{i}.post_ffw_norm.{p}", "blocks.{i}.mlp.post.{p}", norm)] * sandwich,
        ("output_norm.{p}", "norm.{p}", norm), ("output.{p}", "head.out.{p}"),
    ], carried=(gguf.FACTORS,))


def _mlp(blocks: str = "blk.{i}.", ours: str = "blocks.{i}.") -> list[tuple]:
    return [(f"{blocks}ffn_{n}.{{p}}", f"{ours}mlp.f.{n}.{{p}}") for n in ("gate", "up", "down")]


def _experts(count: int) -> list[tuple]:
    """All experts of a layer are one tensor there, (E, out, in)."""
    each = "|".join(map(str, range(count)))
    return [("blk.{i}.ffn_gate_inp.weight", "blocks.{i}.mlp.f.router.weight"),
            *((f"blk.{{i}}.ffn_{n}_exps.weight",
               f"blocks.{{i}}.mlp.f.experts.({each}).{n}.weight", Stacked())
              for n in ("gate", "up", "down"))]


def encoder(dialect, c) -> Weights:
    """BERT's blocks, with norms behind; the pooler is what llama.cpp calls a classifier's first
    layer, which it reads only to rank."""
    return Weights([
        ("token_embd.weight", "embed.token.weight"), ("token_embd_norm.{p}", "embed.norm.{p}"),
        ("token_types.weight", "embed.segment.weight"),
        ("position_embd.weight", "embed.position.weight", Behind(getattr(c, "pad", -1) + 1)),
        *((f"blk.{{i}}.attn_{n}.{{p}}", f"blocks.{{i}}.attn.f.{n}.{{p}}") for n in "qkv"),
        ("blk.{i}.attn_output.{p}", "blocks.{i}.attn.f.o.{p}"), *_mlp(),
        ("blk.{i}.attn_output_norm.{p}", "blocks.{i}.attn.out.{p}"),
        ("blk.{i}.layer_output_norm.{p}", "blocks.{i}.mlp.out.{p}"),
        ("cls.{p}", "head.pool.dense.{p}"),
    ])


def near_and_far(dialect, c) -> Weights:
    """ModernBERT's: norms in front, two tensors in one where the MLP is gated."""
    return Weights([
        ("token_embd.weight", "embed.token.weight"), ("token_embd_norm.{p}", "embed.norm.{p}"),
        ("blk.{i}.attn_norm.{p}", "blocks.{i}.attn.pre.{p}"),
        ("blk.{i}.attn_qkv.{p}", "blocks.{i}.attn.f.(q|k|v).{p}", Split(3)),
        ("blk.{i}.attn_output.{p}", "blocks.{i}.attn.f.o.{p}"),
        ("blk.{i}.ffn_norm.{p}", "blocks.{i}.mlp.pre.{p}"),
        ("blk.{i}.ffn_up.{p}", "blocks.{i}.mlp.f.(gate|up).{p}", Split(2)),
        ("blk.{i}.ffn_down.{p}", "blocks.{i}.mlp.f.down.{p}"), ("output_norm.{p}", "norm.{p}"),
    ])


def both(dialect, c) -> Weights:
    """T5's encoder and decoder."""
    rows = [("token_embd.weight", "encoder.embed.token.weight"),
            ("output.weight", "head.out.weight")]
    for short, side in (("enc", "encoder"), ("dec", "decoder")):
        file, ours = f"{short}.blk.{{i}}.", f"{side}.blocks.{{i}}."
        rows += [
            (file + "attn_norm.weight", ours + "attn.pre.weight"),
            *((f"{file}attn_{n}.weight", f"{ours}attn.f.{n}.weight") for n in "qkvo"),
            (file + "attn_rel_b.weight", ours + "attn.f.score_bias.table.weight"),  # of block 0
            *((f"{file}cross_attn_{n}.weight", f"{ours}cross.f.{n}.weight") for n in "qkvo"),
            (file + "cross_attn_norm.weight", ours + "cross.pre.weight"),
            (file + "ffn_norm.weight", ours + "mlp.pre.weight"), *_mlp(file, ours),
            (f"{short}.output_norm.weight", f"{side}.norm.weight"),
        ]
    return Weights(rows, carried=("dec.blk.0.cross_attn_rel_b.weight",))  # nobody reads it
