"""Why scale by √d_k? Guide E, line 147; Vaswani et al., 1706.03762, section 3.2.1."""

from __future__ import annotations

from mirada.look.draw import EDGE, INKS
from mirada.look.product import scaling

ROW = "1.19.11"
ASKED = {"en": "Why scale by √d_k?", "es": "¿Por qué escalamos por √d_k?"}
TOLD = {
    "en": "A dot product of d_k random numbers has a variance of d_k: {variance:.0f} was found "
          "for {width}. Softmax of such large numbers gives nearly all to one key (its entropy is "
          "{entropy:.0%} of an even look's), and then hardly any gradient comes back: "
          "{gradient:.2f}, where {narrow} numbers let {narrow_gradient:.2f} through. Divided by "
          "√d_k, the variance is {scaled_variance:.2f} and the gradient {scaled_gradient:.2f}, at "
          "this width as at any other.",
    "es": "Un producto punto de d_k números al azar tiene varianza d_k: con {width} se midió "
          "{variance:.0f}. El softmax de números tan grandes da casi todo a una sola clave (su "
          "entropía es el {entropy:.0%} de la de una mirada pareja), y entonces apenas vuelve "
          "gradiente: {gradient:.2f}, cuando con {narrow} números pasaban {narrow_gradient:.2f}. "
          "Dividida por √d_k, la varianza es {scaled_variance:.2f} y el gradiente "
          "{scaled_gradient:.2f}, con este ancho como con cualquier otro.",
}
WORDS = {"en": {"title": "Gradient through softmax", "across": "d_k",
                "down": "Σ ∂weight / ∂score", "without": "without the scale",
                "with": "with 1 / √d_k"},
         "es": {"title": "Gradiente a través del softmax", "across": "d_k",
                "down": "Σ ∂peso / ∂puntaje", "without": "sin escala", "with": "con 1 / √d_k"}}


def run(seed: int = 0) -> dict[str, float | list]:
    """Scores of random q and k of several widths, 64 keys a query, without the scale and with."""
    rows = scaling(4, 16, 64, 256, 1024, rows=512, seed=seed).rows
    found = {f"{way}{name}": [getattr(row, name)[n] for row in rows]
             for n, way in enumerate(("", "scaled_")) for name in ("variance", "gradient")}
    widest = {name: values[-1] for name, values in found.items()}
    return {**{f"{name}s": values for name, values in found.items()}, **widest,
            "widths": [row.width for row in rows], "width": rows[-1].width,
            "entropy": rows[-1].entropy[0], "narrow": rows[0].width,
            "narrow_gradient": rows[0].gradient[0]}


def draw(found: dict, axes, words: dict[str, str]) -> None:
    for name, label, ink in (("gradients", "without", 1), ("scaled_gradients", "with", 0)):
        axes.plot(found["widths"], found[name], "o-", color=INKS[ink], markersize=4,
                  label=words[label])
    axes.set_xscale("log", base=2)
    axes.set_xticks(found["widths"], [str(width) for width in found["widths"]])
    axes.minorticks_off()
    axes.set_ylim(0, 1.05)
    axes.grid(color=EDGE, linewidth=0.5)
    axes.legend(frameon=False, fontsize=8)
