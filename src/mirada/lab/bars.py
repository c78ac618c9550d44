"""Shares as bars, two kinds beside each other: what several questions' pictures are."""

from __future__ import annotations

from mirada.look.draw import EDGE, INKS


def pairs(axes, groups: list[str], kinds: dict[str, list[float | None]]) -> None:
    """A bar for each group and kind: kinds holds by label a share for each group, None for none."""
    for n, (label, shares) in enumerate(kinds.items()):
        there = {g + 0.38 * n: share for g, share in enumerate(shares) if share is not None}
        drawn = axes.bar(list(there), list(there.values()), 0.34, color=INKS[n], label=label)
        axes.bar_label(drawn, fmt="{:.0%}", fontsize=8)
    axes.set_xticks([g + 0.19 for g in range(len(groups))], groups)
    axes.set_ylim(0, 1.35)  # room for the legend
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.grid(axis="y", color=EDGE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, ncols=2)
