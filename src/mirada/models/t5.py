"""T5, T5 v1.1, FLAN-T5 and mT5: text to text, distances in buckets (Raffel et al., 1910.10683)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirada.core.attention import Attention, CrossAttention
from mirada.core.bias import Buckets
from mirada.core.block import Block, EncoderDecoder, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, LastOf, LMHead, Pooled, Pooler, Span, TokenClassifier
from mirada.core.init import scaled
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP, activation
from mirada.core.norm import RMSNorm
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "encoder-decoder"


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 32128)
    d: int = size("d_model", 512)
    head_dim: int = size("d_kv", 64)
    hidden: int = size("d_ff", 2048)
    layers: int = size("num_layers", 6, high=2048)
    decoder_layers: int | None = key("num_decoder_layers", None, low=1, high=2048)  # None: layers
    heads: int = size("num_heads", 8)
    buckets: int = key("relative_attention_num_buckets", 32, low=4)
    farthest: int = key("relative_attention_max_distance", 128, low=1)
    act: str = key("dense_act_fn", "relu", choices={*ACTIVATIONS, *LEARNED})
    gated: bool = key("is_gated_act", False)
    eps: float = key("layer_norm_epsilon", 1e-6, low=0)
    tied: bool = key("tie_word_embeddings", True)
    scaled: bool = key("scale_decoder_outputs", True)  # logits of x / sqrt(d): v1.0 only
    start: int = key("decoder_start_token_id", 0, low=0)
    pad: int | None = key("pad_token_id", 0, low=0)
    eos: int | None = key("eos_token_id", 1, low=0)
    labels: int = 2

    @staticmethod
    def prepare(raw: dict) -> dict:
        """Files say `gated-gelu` for a gated tanh gelu; a key derived from it wins where it stands.
        Untied meant unscaled; today's files say so apart, and mT5 never scales."""
        multilingual = raw.get("model_type") == "mt5"
        form = str(raw.get("feed_forward_proj", "gated-gelu" if multilingual else "relu"))
        name = "gelu_new" if form == "gated-gelu" else form.removeprefix("gated-")
        derived = {"dense_act_fn": name, "is_gated_act": form.startswith("gated-"),
                   "scale_decoder_outputs": raw.get("tie_word_embeddings") is not False}
        mended: dict = {"scale_decoder_outputs": False} if multilingual else {}
        if raw.get("decoder_start_token_id", 0) is None:
            mended["decoder_start_token_id"] = 0
        return derived | raw | mended

    def restore(self, ours: dict) -> dict:
        name = "gelu" if self.gated and self.act == "gelu_new" else self.act
        return ours | {"feed_forward_proj": f"gated-{name}" if self.gated else name,
                       "num_decoder_layers": self.decoder_layers or self.layers}

    def settle(self, names: list[str]) -> Config:
        """Today's files call every model tied: one is not where a head of its own lies beside
        unscaled logits. Older files of v1.0 hold the shared table under the head's name too."""
        apart = {"lm_head.weight", "output.weight"} & set(names)  # the second is GGUF's
        return replace(self, tied=self.scaled or not apart)


def build(c: Config) -> EncoderDecoder:
    tokens = Tokens(c.vocab, c.d)
    return EncoderDecoder(stack(c, tokens), stack(c, tokens, decodes=True))


def stack(c: Config, tokens: Tokens, decodes: bool = False) -> Stack:
    near = Buckets(c.heads, c.buckets, c.farthest, both_ways=not decodes)  # shared by the layers

    def residual(f) -> Residual:
        return Residual(f, pre=RMSNorm(c.d, c.eps))

    def block() -> Block:
        look = Attention(c.d, c.heads, head_dim=c.head_dim, scale=1.0, score_bias=near,
                         mask=Mask(causal=decodes))
        cross = {"cross": residual(CrossAttention(c.d, c.heads, head_dim=c.head_dim, scale=1.0))}
        # differs: in float16 the reference keeps `down` in float32 and clips what overflows
        mlp = MLP(c.d, c.hidden, c.act, gated=c.gated, bias=False)
        return Block(attn=residual(look), **(cross if decodes else {}), mlp=residual(mlp))

    layers = (c.decoder_layers or c.layers) if decodes else c.layers
    return Stack(tokens, [block() for _ in range(layers)], RMSNorm(c.d, c.eps))


def encoder(c: Config) -> Stack:
    return stack(c, Tokens(c.vocab, c.d))


def writer(c: Config, body, scaled: bool) -> LMHead:
    return LMHead(c.d, c.vocab, tied=body.encoder.embed.token.weight if c.tied else None,
                  scale=c.d**-0.5 if scaled else 1.0, shift=False)


T5 = {
    "ForConditionalGeneration": lambda c, body: writer(c, body, c.scaled),
    "Model": lambda c, body: Pooled(),
    "EncoderModel": lambda c, body: Pooled(),
    "ForSequenceClassification": lambda c, body: Classifier(
        c.d, c.labels, Pooler(c.d, activation("tanh"), pick=LastOf(c.eos))),
    "ForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
    "ForQuestionAnswering": lambda c, body: Span(c.d),
}
HEADS = {name + head: make for name in ("T5", "MT5") for head, make in T5.items()}
HEADS["MT5ForConditionalGeneration"] = lambda c, body: writer(c, body, False)  # never scales
HEADS["T5WithLMHeadModel"] = T5["ForConditionalGeneration"]  # its name in the first files
BODIES = {name: encoder for name in HEADS if "Encoder" in name or "TokenClass" in name}
MODEL_TYPES = {name: "mt5" for name in HEADS if name.startswith("MT5")}
BARE = [name for name in HEADS if not name.endswith("Classification")]


def weights(c: Config) -> Weights:
    rows = [("lm_head.weight", "head.out.weight"),
            ("classification_head.dense.{p}", "head.pool.dense.{p}"),
            ("classification_head.out_proj.{p}", "head.score.{p}"),
            ("classifier.{p}", "head.tag.{p}"), ("qa_outputs.{p}", "head.span.{p}"),
            ("transformer.shared.weight", "encoder.embed.token.weight"),
            ("transformer.shared.weight", "embed.token.weight")]  # of an encoder alone
    for side, ours, mlp in (("encoder", "encoder.", 1), ("encoder", "", 1),
                            ("decoder", "decoder.", 2)):
        block = f"transformer.{side}.block.{{i}}.layer"
        look, dense, blocks = f"{block}.0.SelfAttention", f"{block}.{mlp}.DenseReluDense", \
            f"{ours}blocks.{{i}}"
        rows += [
            (look + ".{p}.weight", blocks + ".attn.f.{p}.weight"),
            (look + ".relative_attention_bias.weight",  # of block 0; the others' are its aliases
             blocks + ".attn.f.score_bias.table.weight"),
            (block + ".0.layer_norm.weight", blocks + ".attn.pre.weight"),
            (block + ".1.EncDecAttention.{p}.weight", blocks + ".cross.f.{p}.weight"),
            (block + ".1.layer_norm.weight", blocks + ".cross.pre.weight"),
            (dense + (".(wi_0|wi_1)" if c.gated else ".wi") + ".weight",
             blocks + (".mlp.f.(gate|up)" if c.gated else ".mlp.f.up") + ".weight"),
            (dense + ".act.{p}", blocks + ".mlp.f.act.{p}"),
            (dense + ".wo.weight", blocks + ".mlp.f.down.weight"),
            (f"{block}.{mlp}.layer_norm.weight", blocks + ".mlp.pre.weight"),
            (f"transformer.{side}.final_layer_norm.weight", ours + "norm.weight"),
        ]
    return Weights(
        rows, prefix="transformer.", renames=(("encoder.embed_tokens.weight", "shared.weight"),
                                              ("decoder.embed_tokens.weight", "shared.weight")),
        carried=("transformer.decoder.block.0.layer.1.EncDecAttention.relative_attention_bias."
                 "weight",))  # in the first files; nobody reads it


def init(model, c: Config) -> None:
    scaled(model)  # differs: the reference draws an untied lm_head from N(0, 1), far too wide


INERT = {"feed_forward_proj": ANY, "dropout_rate": ANY, "classifier_dropout": ANY,
         "n_positions": ANY, "output_past": ANY, "is_encoder_decoder": ANY, "is_decoder": False}
LATER = {"small": (512, 64, 1024, 8, 6), "base": (768, 64, 2048, 12, 12),
         "large": (1024, 64, 2816, 24, 16), "xl": (2048, 64, 5120, 24, 32),
         "xxl": (4096, 64, 10240, 24, 64)}  # d, head_dim, hidden, layers, heads


def _size(vocab, d, head_dim, hidden, layers, heads, **more) -> Config:
    return Config(vocab, d, head_dim, hidden, layers, heads=heads, **more)


SIZES = {
    "small": _size(32128, 512, 64, 2048, 6, 8), "base": _size(32128, 768, 64, 3072, 12, 12),
    "large": _size(32128, 1024, 64, 4096, 24, 16), "3b": _size(32128, 1024, 128, 16384, 24, 32),
    "11b": _size(32128, 1024, 128, 65536, 24, 128),
    **{f"{name}-{n}": _size(vocab, *shape, act="gelu_new", gated=True, tied=False, scaled=False)
       for name, vocab in (("v1_1", 32128), ("flan", 32128), ("mt5", 250112))
       for n, shape in LATER.items()},
    "tiny": _size(1024, 64, 16, 128, 2, 4, buckets=8, farthest=32),
}
