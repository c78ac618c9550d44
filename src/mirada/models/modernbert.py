"""ModernBERT: a pre-norm encoder that rotates, looks near by turns and has few biases (Warner et
al., 2412.13663)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, First, LMHead, Mean, Pooled, Span, TokenClassifier
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP, activation
from mirada.core.norm import LayerNorm
from mirada.core.position import Rotary
from mirada.models import windows
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Split, Weights

KIND = "encoder"
NAMES = {*ACTIVATIONS, *LEARNED}
FAR, NEAR = (f"rope_parameters.{kind}." for kind in windows.KINDS)


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 50368)
    context: int = size("max_position_embeddings", 8192)
    d: int = size("hidden_size", 768)
    layers: int = size("num_hidden_layers", 22, high=2048)
    heads: int = size("num_attention_heads", 12)
    hidden: int = size("intermediate_size", 1152)
    act: str = key("hidden_activation", "gelu", choices=NAMES)
    eps: float = key("norm_eps", 1e-5, low=0)
    norm_bias: bool = key("norm_bias", False)
    attention_bias: bool = key("attention_bias", False)
    mlp_bias: bool = key("mlp_bias", False)
    local: int = key("local_attention", 128, low=0)  # tokens a near layer sees, half on each side
    period: int = key("global_attn_every_n_layers", 3, low=1)  # each period's first sees all
    kinds: tuple[str, ...] | None = key("layer_types", None)  # what `period` says when None
    far_base: float = key("global_rope_theta", 160000.0, low=2, high=1e15)
    near_base: float = key("local_rope_theta", 10000.0, low=2, high=1e15)
    head_act: str = key("classifier_activation", "gelu", choices=NAMES)
    head_bias: bool = key("classifier_bias", False)
    word_bias: bool = key("decoder_bias", True)
    pooling: str = key("classifier_pooling", "cls", choices={"cls", "mean"})
    tied: bool = key("tie_word_embeddings", True)
    pad: int | None = key("pad_token_id", 50283, low=0)
    labels: int = 2

    def __post_init__(self):
        self.sights()

    def sights(self) -> list[int | None]:
        """The window of each layer, None where it looks at everything."""
        turns = tuple(windows.KINDS[n % self.period > 0] for n in range(self.layers))
        return windows.each(self.kinds or turns, self.layers, self.local // 2 + 1)

    @staticmethod
    def prepare(raw: dict) -> dict:
        raw, rotary = dict(raw), raw.get("rope_parameters") or {}
        if isinstance(rotary, dict):
            raw.pop("rope_parameters", None)
            for kind, of in rotary.items():
                said = of if isinstance(of, dict) else {"": of} if of else {}
                raw |= {f"rope_parameters.{kind}.{name}": value for name, value in said.items()}
        for name, kind in (("global_rope_theta", FAR), ("local_rope_theta", NEAR)):
            base = raw.pop(kind + "rope_theta", None)
            raw |= {name: base} if base else {}
        return raw

    def restore(self, ours: dict) -> dict:
        bases = zip(windows.KINDS, (self.far_base, self.near_base), strict=True)
        return ours | {"layer_types": [windows.KINDS[w is not None] for w in self.sights()],
                       "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base}
                                           for kind, base in bases}}


def build(c: Config) -> Stack:
    norm = partial(LayerNorm, c.d, c.eps, bias=c.norm_bias)
    far, near = (Rotary(c.d // c.heads, base) for base in (c.far_base, c.near_base))

    def block(n: int, window: int | None) -> Block:
        attn = Attention(c.d, c.heads, bias="qkvo" if c.attention_bias else "",
                         rotary=near if window else far, mask=Mask(window=window))
        mlp = MLP(c.d, c.hidden, c.act, gated=True, bias=c.mlp_bias)
        return Block(attn=Residual(attn, pre=norm() if n else None),  # the embedding is normed
                     mlp=Residual(mlp, pre=norm()))

    blocks = [block(n, window) for n, window in enumerate(c.sights())]
    return Stack(Tokens(c.vocab, c.d, norm=norm()), blocks, norm())


def transform(c: Config) -> nn.Module:
    """What every head does first, or after pooling."""
    return nn.Sequential(OrderedDict(
        dense=nn.Linear(c.d, c.d, bias=c.head_bias), act=activation(c.head_act),
        norm=LayerNorm(c.d, c.eps, bias=c.norm_bias)))


class Pool(nn.Module):
    """transform(x of the first token, or of all of them on average)."""

    def __init__(self, c: Config):
        super().__init__()
        self.pick, self.transform = Mean() if c.pooling == "mean" else First(), transform(c)

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> Tensor:
        return self.transform(self.pick(x, inputs, ctx))


class Transformed(nn.Module):
    """A head on transform(x)."""

    def __init__(self, c: Config, on: nn.Module):
        super().__init__()
        self.transform, self.on, self.loss = transform(c), on, on.loss

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        return self.on(self.transform(x), inputs, ctx)


HEADS = {
    "ModernBertForMaskedLM": lambda c, body: LMHead(
        c.d, c.vocab, tied=body.embed.token.weight if c.tied else None, bias=c.word_bias,
        transform=transform(c), shift=False),
    "ModernBertModel": lambda c, body: Pooled(),
    "ModernBertForSequenceClassification": lambda c, body: Classifier(c.d, c.labels, Pool(c)),
    "ModernBertForTokenClassification": lambda c, body: Transformed(
        c, TokenClassifier(c.d, c.labels)),
    "ModernBertForQuestionAnswering": lambda c, body: Transformed(c, Span(c.d)),
}


def weights(c: Config) -> Weights:
    layer = "model.layers.{i}."
    return Weights([
        ("model.embeddings.tok_embeddings.weight", "embed.token.weight"),
        ("model.embeddings.norm.{p}", "embed.norm.{p}"),
        (layer + "attn_norm.{p}", "blocks.{i}.attn.pre.{p}"),
        (layer + "attn.Wqkv.{p}", "blocks.{i}.attn.f.(q|k|v).{p}", Split(3)),
        (layer + "attn.Wo.{p}", "blocks.{i}.attn.f.o.{p}"),
        (layer + "mlp_norm.{p}", "blocks.{i}.mlp.pre.{p}"),
        (layer + "mlp.Wi.{p}", "blocks.{i}.mlp.f.(gate|up).{p}", Split(2)),
        (layer + "mlp.act.{p}", "blocks.{i}.mlp.f.act.{p}"),
        (layer + "mlp.Wo.{p}", "blocks.{i}.mlp.f.down.{p}"),
        ("model.final_norm.{p}", "norm.{p}"),
        ("head.{part}.{p}", "head.transform.{part}.{p}"),
        ("head.{part}.{p}", "head.pool.transform.{part}.{p}"),
        ("decoder.{p}", "head.out.{p}"), ("classifier.{p}", "head.score.{p}"),
        ("classifier.{p}", "head.on.tag.{p}"), ("classifier.{p}", "head.on.span.{p}"),
    ], prefix="model.")


def init(model, c: Config) -> None:
    normal(model, 0.02, residual=2 * c.layers)  # differs: the reference cuts the tails off


INERT = {"attention_dropout": ANY, "embedding_dropout": ANY, "mlp_dropout": ANY,
         "classifier_dropout": ANY, "initializer_cutoff_factor": ANY, "layer_norm_eps": ANY,
         "position_embedding_type": ANY, "deterministic_flash_attn": ANY, "reference_compile": ANY,
         "repad_logits_with_grad": ANY, "sparse_prediction": ANY,  # fewer logits, the same loss
         "sparse_pred_ignore_index": -100, "rope_scaling": None, "pooling_type": ANY,
         FAR + "rope_type": "default", NEAR + "rope_type": "default"}
SIZES = {
    "base": Config(), "large": Config(d=1024, layers=28, heads=16, hidden=2624),
    "tiny": Config(vocab=1024, context=256, d=64, layers=3, heads=4, hidden=96, local=16,
                   pad=0),
}
