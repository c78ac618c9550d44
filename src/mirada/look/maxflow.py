"""The greatest flow through a network, by Dinic's method (Soviet Math. Doklady 11, 1970).

Networks here are dense and layered, so each phase's blocking flow is found in waves (Tarjan, A
simple version of Karzanov's blocking flow algorithm, 1984): a level at a time, not a path.
"""

from __future__ import annotations

import numpy as np

NOTHING = 1e-12  # less than this is rounding, not flow


def greatest(capacity: np.ndarray, source: int, sink: int) -> np.ndarray:
    """(V, V) flow along each edge of a network, of capacity (V, V) without edges both ways.

    What leaves the source and reaches the sink is the most there can be; what enters any other node
    leaves it.
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
    shut = [np.zeros(len(level), bool) for level in levels]  # could not send on all that it held
    held[0][0] = np.inf
    while True:
        free = [np.where(s, 0.0, (r - f).clip(0)) for r, f, s in
                zip(room, flow, shut[1:], strict=True)]
        most = np.full(1, np.inf)  # that could reach the sink from each node, each edge on its own
        for n in reversed(range(len(room))):
            free[n] = np.minimum(free[n], most)
            most = free[n].sum(1)
        stuck = 0
        for n in range(len(room)):
            sent = _spread(held[n], free[n])
            flow[n] += sent
            held[n] -= sent.sum(1)
            held[n + 1] += sent.sum(0)
            if n:
                fresh = (held[n] > NOTHING) & ~shut[n]
                shut[n] |= fresh
                stuck += fresh.sum()
        if not stuck:
            return zip(levels, levels[1:], flow, strict=False)
        for n in reversed(range(1, len(room))):
            back = _spread(np.where(shut[n], held[n], 0.0), flow[n - 1].T)
            flow[n - 1] -= back.T
            held[n] -= back.sum(1)
            held[n - 1] += back.sum(0)


def _spread(amounts: np.ndarray, room: np.ndarray) -> np.ndarray:
    """(n, m): each amount (n,) over its row of room (n, m), in proportion; at most the room."""
    whole = room.sum(1)
    part = np.divide(amounts, whole, out=np.zeros_like(whole), where=whole > 0)
    return room * part.clip(0, 1)[:, None]  # rounding may leave an amount below nothing
