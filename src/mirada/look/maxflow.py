"""The greatest flow through a network, by Dinic's method (Soviet Math. Doklady 11, 1970).

Networks here are dense and layered, so each phase's blocking flow is found in waves (Tarjan, A simple
version of Karzanov's blocking flow algorithm, 1984): a level at a time, not a path at a time.
"""

from __future__ import annotations

import numpy as np

NOTHING = 1e-12  # less than this is rounding, not flow


def greatest(capacity: np.ndarray, source: int, sink: int) -> np.ndarray:
    """(V, V) flow along each edge of a network, of capacity (V, V) without edges both ways.

    What leaves the source, and reaches the sink, is the most there can be; of every other node, what
    enters leaves.
    """
    left = capacity.astype(np.float64, copy=True)
    while (levels := _levels(left, source, sink)) is not None:
        for above, below, flow in _blocking(left, levels):
            left[np.ix_(above, below)] -= flow
            left[np.ix_(below, above)] += flow.T
    return np.where(capacity > 0, capacity - left, 0.0)


def _levels(left: np.ndarray, source: int, sink: int) -> list[np.ndarray] | None:
    """The nodes by distance from the source, only the sink in the last; None: out of reach."""
    seen = np.zeros(len(left), bool)
    seen[source] = True
    levels = [np.array([source])]
    while len(levels[-1]):
        reached = (left[levels[-1]] > NOTHING).any(0) & ~seen
        if reached[sink]:
            return [*levels, np.array([sink])]
        seen |= reached
        levels.append(reached.nonzero()[0])
    return None


def _blocking(left: np.ndarray, levels: list[np.ndarray]):
    """(nodes, nodes, flow) between neighbouring levels: a flow after which every shortest way from
    the source to the sink has a full edge."""
    room = [left[np.ix_(a, b)] for a, b in zip(levels, levels[1:], strict=False)]
    flow = [np.zeros_like(r) for r in room]
    held = [np.zeros(len(level)) for level in levels]  # what has entered a node and not left it
    shut = [np.zeros(len(level), bool) for level in levels]  # cannot send on all that it held
    held[0][0] = np.inf
    while True:
        for n in range(len(room)):
            sent = _fill(held[n], np.where(shut[n + 1], 0.0, room[n] - flow[n]))
            flow[n] += sent
            held[n] -= sent.sum(1)
            held[n + 1] += sent.sum(0)
            if n:
                shut[n] |= held[n] > NOTHING
        for n in reversed(range(1, len(room))):
            back = _fill(np.where(shut[n], held[n], 0.0), flow[n - 1].T)
            flow[n - 1] -= back.T
            held[n] -= back.sum(1)
            held[n - 1] += back.sum(0)
        if all((h <= NOTHING).all() for h in held[1:-1]):
            return zip(levels, levels[1:], flow, strict=False)


def _fill(amounts: np.ndarray, room: np.ndarray) -> np.ndarray:
    """(n, m): each amount (n,) put into its row of room (n, m), the first places first."""
    before = room.cumsum(1) - room
    return np.clip(amounts[:, None] - before, 0.0, room)
