"""Why is attention alone no model? Guide D, line 22; rank collapse: Dong et al., 2103.03404."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual
from mirada.core.context import Ctx
from mirada.core.init import normal
from mirada.core.mlp import MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import sinusoid
from mirada.edit.residual import NoResidual
from mirada.look.draw import INKS
from mirada.look.experiments import likeness

ROW = "1.19.1"
ASKED = {"en": "Why does attention alone not define a complete model?",
         "es": "¿Por qué la atención por sí sola no define un modelo completo?"}
TOLD = {
    "en": "It lacks three things. It knows no order: the same {tokens} tokens in another order "
          "give the same outputs in that order, to {order:.0e} of their size; with positions added "
          "they differ by {placed:.2f}. It computes nothing new from a token: by itself a token "
          "goes through a linear map (the output of a sum is the sum of the outputs, to "
          "{linear:.0e}; with an MLP behind, the two are {bent:.2f} apart). And it does not stack, "
          "as each layer averages: after {layers} layers of attention alone two tokens have a mean "
          "cosine of {mixed:.4f}, all are one (2103.03404). With residual connections it is "
          "{apart:.2f}, with MLPs as well {full:.2f}. So a model needs positions, MLPs and "
          "residual connections around attention.",
    "es": "Le faltan tres cosas. No conoce el orden: los mismos {tokens} tokens en otro orden dan "
          "las mismas salidas en ese orden, salvo {order:.0e} de su tamaño; si se suman "
          "posiciones, difieren en {placed:.2f}. No calcula nada nuevo con un token: un token "
          "solo pasa por una aplicación lineal (la salida de una suma es la suma de las salidas, "
          "salvo {linear:.0e}; con un MLP detrás, distan {bent:.2f}). Y no se puede apilar, pues "
          "cada capa promedia: tras {layers} capas de pura atención, dos tokens tienen un coseno "
          "medio de {mixed:.4f}, todos son uno (2103.03404). Con conexiones residuales es "
          "{apart:.2f}; además con MLP, {full:.2f}. Por eso un modelo necesita posiciones, MLP y "
          "conexiones residuales alrededor de la atención.",
}
WORDS = {"en": {"title": "Do tokens stay apart?", "across": "Layers", "whole": "and MLPs",
                "down": "Mean cosine of two tokens", "alone": "attention alone",
                "kept": "and residual connections"},
         "es": {"title": "¿Siguen siendo distintos los tokens?", "across": "Capas",
                "down": "Coseno medio de dos tokens", "alone": "solo atención",
                "kept": "más conexiones residuales", "whole": "más MLP"}}
D, HEADS, LAYERS, T = 64, 4, 12, 24
CTX = Ctx(positions=torch.arange(T)[None])


@torch.no_grad()
def run(seed: int = 0) -> dict[str, float | list]:
    """Random tokens (1, T, D) through layers of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x, order, places = torch.randn(1, T, D), torch.randperm(T), sinusoid(torch.arange(T), D)
        attention, mlp = fresh(Attention(D, HEADS)), fresh(MLP(D, 4 * D, "gelu", bias=False))
        stacks = {"alone": stack(NoResidual), "kept": stack(Residual),
                  "whole": stack(Residual, mlp=True)}
    depths = {name: likenesses(x, blocks) for name, blocks in stacks.items()}
    one, other = x[:, :1], x[:, 1:2]  # two rows of one token each
    plain, both = (lambda x: attention(x, CTX)), (lambda x: mlp(attention(x, CTX)))
    return {**depths, "tokens": T, "layers": LAYERS,
            "order": gap(plain(x)[:, order], plain(x[:, order])),
            "placed": gap(plain(x + places)[:, order], plain(x[:, order] + places)),
            "linear": gap(plain(one + other), plain(one) + plain(other)),
            "bent": gap(both(one + other), both(one) + both(other)),
            "mixed": depths["alone"][-1], "apart": depths["kept"][-1], "full": depths["whole"][-1]}


def fresh(module: nn.Module) -> nn.Module:
    """Random weights that keep a vector's size, so that attention is neither even nor on one."""
    normal(module, D**-0.5)
    return module


def stack(way: type[Residual], mlp: bool = False) -> list[Block]:
    """Pre-norm layers: of attention, and perhaps MLPs, within residual connections or without."""
    blocks = []
    for _ in range(LAYERS):
        parts = {"attn": Attention(D, HEADS)} | ({"mlp": MLP(D, 4 * D, "gelu")} if mlp else {})
        blocks.append(fresh(Block(**{n: way(f, pre=LayerNorm(D)) for n, f in parts.items()})))
    return blocks


def likenesses(x: Tensor, blocks: list[Block]) -> list[float]:
    """The mean cosine of two tokens before the first block and after each."""
    found = [likeness(x[0])]
    for block in blocks:
        x = block(x, CTX)
        found.append(likeness(x[0]))
    return found


def gap(one: Tensor, other: Tensor) -> float:
    """How far two outputs are apart, as a share of the first's size."""
    return ((one - other).norm() / one.norm()).item()


def draw(found: dict, axes, words: dict[str, str]) -> None:
    for name, ink in zip(("alone", "kept", "whole"), INKS, strict=False):
        axes.plot(found[name], "o-", color=ink, markersize=4, label=words[name])
    axes.legend(frameon=False, fontsize=8)
