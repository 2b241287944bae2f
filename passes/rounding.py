"""Rounding a weight to integers, three ways. One row of a weight at a time matters, since the output error is a sum over rows.

nearest   each weight to its nearest step
gptq      one input after the other; what its rounding does to the outputs is made up for by the weights still to come
          (Frantar et al. 2022, GPTQ: Accurate Post-Training Quantization, algorithm 1; a fixed order by E[x²], scales known beforehand)
adaround  up or down is learned for all weights together, by gradient descent on a relaxation that ends at 0 or 1
          (Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, §3.3)

Shapes: w [groups, rows, n] float64 (groups of a convolution, one for all else); steps, the scale of each weight, likewise; h = E[x xᵀ]
[groups, n, n]; integers −hi … hi, float64. Both learned ways keep, row by row, nearest rounding where that is better on h: never worse.
"""

from __future__ import annotations

import numpy as np

from .grids import LARGEST_SCALE, SMALLEST_SCALE, GridKind, covering_exponent
from .rewrite import Array

BLOCK = 128
"""Columns whose updates of the rest are gathered into one product."""
ZETA, GAMMA = 1.1, -0.1
"""The sigmoid is stretched to these, so that 0 and 1 are reached."""
WARM_UP, SHARPEST, BLUNTEST = 0.2, 2.0, 20.0
"""The fraction of steps without the pull to 0 and 1, and its exponent at the end and at first (paper, §4)."""
REGULARIZER = 0.3
"""Weight of that pull, where h has a mean diagonal of 1 and weights count in steps. Of 0.01 to 1, 0.3 to 1 gave the least error on the
layers of a keyword spotter; below 0.1 half of the weights had not made up their mind when the steps ran out."""


def error(w: Array, q: Array, steps: Array, h: Array) -> Array:
    """δ h δᵀ of each row: the mean squared error of its output."""
    delta = q * steps - w
    return np.asarray(((delta @ h) * delta).sum(axis=-1))


def row_scales(w: Array, hi: int, kind: GridKind, importance: Array | None = None) -> Array:
    """w [rows, n] → a float32 scale for each row: the one, from covering the largest weight down to 0.3 of that, with the least
    Σ importance·(ŵ − w)². ``importance``: E[x²] of the inputs; None counts all alike."""
    largest = np.abs(w).max(axis=1, initial=0.0)
    covering = np.where(largest > 0, largest / hi, 1.0)
    factors = np.linspace(1.0, 0.3, 36)
    if kind == "pow2":
        covering = np.exp2(np.asarray([covering_exponent(float(x), hi) if x > 0 else 0 for x in largest], np.float64))
        factors = np.asarray([1.0, 0.5, 0.25])
    weights = np.ones(w.shape[1]) if importance is None or not importance.any() else importance
    best, least = covering.astype(np.float32).astype(np.float64), np.full(len(w), np.inf)
    for factor in factors:
        scale = np.clip(covering * factor, SMALLEST_SCALE, LARGEST_SCALE).astype(np.float32).astype(np.float64)
        loss = ((nearest(w, scale[:, None], hi) * scale[:, None] - w) ** 2) @ weights
        best, least = np.where(loss < least, scale, best), np.minimum(loss, least)
    return best.astype(np.float32)


def nearest(w: Array, steps: Array, hi: int) -> Array:
    """Integers, float64."""
    return np.asarray(np.clip(np.rint(w / steps), -hi, hi))


def gptq(w: Array, steps: Array, h: Array, hi: int, damping: float = 0.01) -> Array:
    """``damping``: of the mean of h's diagonal, added to it. Inputs that are always zero are rounded to nearest."""
    steps = np.broadcast_to(steps, w.shape)
    found = np.stack([_gptq(*group, hi, damping) for group in zip(w, steps, h, strict=True)])
    return _better(w, found, steps, h, hi)


def _gptq(w: Array, steps: Array, h: Array, hi: int, damping: float) -> Array:
    dead = np.diag(h) <= 0
    mean = float(np.mean(np.diag(h)[~dead])) if not dead.all() else 1.0
    order = np.argsort(-np.diag(h), kind="stable")
    damped = h + np.diag(np.where(dead, mean, damping * mean))
    # h⁻¹ = UᵀU with U upper triangular: row i of U says how the inputs behind i make up for an error in i.
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left, scale = w[:, order].copy(), steps[:, order]
    q = np.empty_like(left)
    for start in range(0, left.shape[1], BLOCK):
        end = min(start + BLOCK, left.shape[1])
        errors = np.empty((len(w), end - start))
        for i in range(start, end):
            q[:, i] = nearest(left[:, i], scale[:, i], hi)
            errors[:, i - start] = (left[:, i] - q[:, i] * scale[:, i]) / upper[i, i]
            left[:, i + 1 : end] -= np.outer(errors[:, i - start], upper[i, i + 1 : end])
        left[:, end:] -= errors @ upper[start:end, end:]
    found = np.empty_like(q)
    found[:, order] = q
    return found


def adaround(w: Array, steps: Array, h: Array, hi: int, iterations: int = 1000, rate: float = 0.05) -> Array:
    """``rate``: Adam's. The relaxation starts at the real weights."""
    steps = np.broadcast_to(steps, w.shape)
    low = np.floor(w / steps)
    rest = np.clip(w / steps - low, 1e-4, 1 - 1e-4)
    # Each row in units of its mean step, and h with a mean diagonal of 1, so that one rate serves every layer.
    relative = (steps / steps.mean(axis=-1, keepdims=True)).astype(np.float32)
    size = np.maximum(np.trace(h, axis1=-2, axis2=-1) / h.shape[-1], 1e-30)
    moments = (h / size[:, None, None]).astype(np.float32)
    v = (-np.log((ZETA - GAMMA) / (rest - GAMMA) - 1)).astype(np.float32)
    target = (w / steps).astype(np.float32)
    low32 = low.astype(np.float32)
    first, second = np.zeros_like(v), np.zeros_like(v)
    for count in range(iterations):
        sigmoid = 1 / (1 + np.exp(-v))
        stretched = sigmoid * np.float32(ZETA - GAMMA) + np.float32(GAMMA)
        up = np.clip(stretched, 0, 1)
        level = np.clip(low32 + up, -hi, hi)
        gradient = 2 * ((level - target) * relative @ moments) * relative
        done = count / iterations
        if done > WARM_UP:
            sharpness = SHARPEST + (BLUNTEST - SHARPEST) * (1 + np.cos(np.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
            side = 2 * up - 1
            gradient -= np.float32(REGULARIZER * 2 * sharpness) * np.sign(side) * np.abs(side) ** np.float32(sharpness - 1)
        gradient *= sigmoid * (1 - sigmoid) * np.float32(ZETA - GAMMA)
        first = np.float32(0.9) * first + np.float32(0.1) * gradient
        second = np.float32(0.999) * second + np.float32(0.001) * gradient**2
        corrected = first / np.float32(1 - 0.9 ** (count + 1))
        v -= np.float32(rate) * corrected / (np.sqrt(second / np.float32(1 - 0.999 ** (count + 1))) + np.float32(1e-8))
    return _better(w, np.clip(low + (v >= 0), -hi, hi), steps, h, hi)


def _better(w: Array, q: Array, steps: Array, h: Array, hi: int) -> Array:
    """Each row of ``q``, or of nearest rounding where that has the smaller error."""
    plain = nearest(w, steps, hi)
    worse = error(w, q, steps, h) > error(w, plain, steps, h)
    return np.where(worse[..., None], plain, q)
