"""Which part of an activation's range its grid covers: what is cut off against how fine the rest becomes, by what was seen.

mse      the grid with the least squared error Σ count·(x̂ − x)² over the histogram (Banner et al. 2019, Post-training 4-bit
         quantization, without its assumption of a distribution)
entropy  the grid that loses the least information: KL(P ‖ Q), P the histogram with what is cut off piled onto its ends, Q the same
         values once they cannot be told apart within one level (Migacz 2017, 8-bit Inference with TensorRT)

Both search the ends of the range first together, then each alone, in quarter octaves and then finer, and never do worse on their own
measure than the whole range does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from gatewright.frontend.integer import Grid

from .calibrate import Observed
from .grids import GridKind, activation_grid
from .rewrite import Array

RangeKind = Literal["minmax", "percentile", "mse", "entropy"]

COARSE = np.exp2(-np.arange(0, 41) / 4)
"""Fractions of the range to try: one down to 2^-10, which is as far as the histogram resolves."""
FINE = np.exp2(np.linspace(-0.25, 0.25, 17))
"""Around the best of those."""
MOST_CUT = 0.01
"""Entropy never cuts off more of the values than this: P's own ends grow with it, and a range of two levels loses nothing of a P that
is all ends."""
RESOLVED_BITS = 10
"""Beyond it a level is about as fine as a bin: there is nothing left to tell apart, and entropy keeps the whole range."""


def best_grid(method: Literal["mse", "entropy"], kind: GridKind, bits: int, seen: Observed, non_negative: bool) -> Grid:
    """The grid of an activation that was seen with a histogram. ``non_negative``: its values are never below zero."""
    whole = Observed(seen.low, seen.high)

    def grid_of(low: float, high: float) -> Grid:
        # Without the histogram a pow2 grid takes the exponent of the range it is given.
        return activation_grid(kind, bits, whole, non_negative, (low, high))

    histogram = seen.histogram
    if histogram is None or histogram.exponent is None or (method == "entropy" and bits > RESOLVED_BITS):
        return grid_of(seen.low, seen.high)
    values, counts = histogram.centres()
    # Bins know their middle only: the ends of the range are known exactly, and no value lies outside.
    values = np.clip(values, seen.low, seen.high)
    loss = squared_error if method == "mse" else divergence
    return _search(seen, grid_of, lambda grid: loss(grid, values, counts))


def _search(seen: Observed, grid_of: Callable[[float, float], Grid], loss: Callable[[Grid], float]) -> Grid:
    known: dict[tuple[bytes, int], float] = {}

    def measured(ends: tuple[float, float]) -> float:
        grid = grid_of(seen.low * ends[0], seen.high * ends[1])
        key = (grid.scale.tobytes(), int(grid.zero_point))
        if key not in known:
            known[key] = loss(grid)
        return known[key]

    best = (1.0, 1.0)
    moves: list[Callable[[tuple[float, float], float], tuple[float, float]]] = [lambda ends, f: (ends[0] * f, ends[1] * f)]
    if seen.low < 0 < seen.high:
        moves += [lambda ends, f: (ends[0], ends[1] * f), lambda ends, f: (ends[0] * f, ends[1])]
    for move in moves:
        for factors in (COARSE, FINE):
            tried = [best, *(tuple(min(end, 1.0) for end in move(best, float(f))) for f in factors)]
            best = min(tried, key=lambda ends: measured((ends[0], ends[1])))  # type: ignore[assignment]
    return grid_of(seen.low * best[0], seen.high * best[1])


def levels(grid: Grid, values: Array) -> Array:
    """The integer of each value before it is clamped, float64."""
    return np.asarray(np.rint(values / float(grid.scale)) + int(grid.zero_point))


def squared_error(grid: Grid, values: Array, counts: Array) -> float:
    """Σ count·(x̂ − x)²."""
    q = np.clip(levels(grid, values), grid.lo, grid.hi)
    return float(np.dot(counts, ((q - int(grid.zero_point)) * float(grid.scale) - values) ** 2))


def divergence(grid: Grid, values: Array, counts: Array) -> float:
    """KL(P ‖ Q) in nats. Exact zeros (what a Relu cut off) are on every grid and don't count."""
    q = levels(grid, values)
    inside = np.flatnonzero((q >= grid.lo) & (q <= grid.hi) & (values != 0))
    cut = counts[(q < grid.lo) | (q > grid.hi)].sum()
    if cut > MOST_CUT * counts.sum() or not inside.size:
        return float("inf")
    kept, level = counts[inside], q[inside].astype(np.int64) - grid.lo
    piled = kept.copy()
    piled[0] += counts[q < grid.lo].sum()
    piled[-1] += counts[q > grid.hi].sum()
    total, bins = np.bincount(level, kept), np.bincount(level)
    spread = (total / np.maximum(bins, 1))[level]
    p, s = piled / piled.sum(), spread / spread.sum()
    return float(np.sum(p * np.log(p / s)))
