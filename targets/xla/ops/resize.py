"""Resize by nearest neighbour, linear or cubic interpolation, axis by axis; the positions are computed when the program is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from gatewright.frontend.integer import Array
from gatewright.frontend.queries import real

from . import Lowering, Value


def _source_positions(node: ir.Node, extent: int, result: int, scale: float) -> Array:
    """Where each of the result's positions lies in the input, float64 (operator specification, Resize)."""
    place = np.arange(result, dtype=np.float64)
    match node.attributes.get_string("coordinate_transformation_mode", "half_pixel"):
        case "asymmetric":
            return place / scale
        case "align_corners":
            # The specification's resized length is scale·extent, whole or not.
            return place * (extent - 1) / (scale * extent - 1) if result > 1 else np.zeros(1)
        case "pytorch_half_pixel":
            return (place + 0.5) / scale - 0.5 if result > 1 else np.zeros(1)
        case "half_pixel_symmetric":
            adjustment = result / (scale * extent)
            return extent / 2 * (1 - adjustment) + (place + 0.5) / scale - 0.5
        case _:
            return (place + 0.5) / scale - 0.5


def _nearest(node: ir.Node, place: Array) -> Array:
    match node.attributes.get_string("nearest_mode", "round_prefer_floor"):
        case "floor":
            return np.floor(place)
        case "ceil":
            return np.ceil(place)
        case "round_prefer_ceil":
            return np.floor(place + 0.5)
        case _:
            return np.ceil(place - 0.5)


def _neighbours(node: ir.Node, extent: int, place: Array) -> list[tuple[Array, Array]]:
    """Positions and their shares, each [result]."""
    last = extent - 1
    mode = node.attributes.get_string("mode", "nearest")
    if mode == "nearest":
        return [(np.clip(_nearest(node, place), 0, last), np.ones_like(place))]
    if mode == "linear":
        inside = np.clip(place, 0, last)
        below = np.floor(inside)
        return [(below, 1 - (inside - below)), (np.clip(below + 1, 0, last), inside - below)]
    a = real(node, "cubic_coeff_a", -0.75)
    below = np.floor(place)
    found = []
    for step in range(-1, 3):
        distance = np.abs(place - (below + step))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        share = np.where(distance <= 1, near, far)
        where = below + step
        if node.attributes.get_int("exclude_outside", 0):
            share = np.where((where < 0) | (where > last), 0.0, share)
        found.append((np.clip(where, 0, last), share))
    total = np.sum([share for _, share in found], axis=0)
    return [(where, share / total) for where, share in found]


def _scales(node: ir.Node, given: Array | None, x: Value, shape: Sequence[int]) -> list[float]:
    """Scale per axis: as given, or the ratio of the sizes."""
    axes = node.attributes.get_ints("axes", ()) or tuple(range(x.ndim))
    scales = [n / m for n, m in zip(shape, x.shape, strict=True)]
    if given is not None and given.size:
        for axis, scale in zip(axes, given.reshape(-1), strict=True):
            scales[int(axis) % x.ndim] = float(scale)
    return scales


def _resize(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, shape = inputs[0], scope.shape(node)
    scales = _scales(node, scope.known(node, 2), x, shape)
    for axis in range(x.ndim):
        if shape[axis] == x.shape[axis] and scales[axis] == 1.0:
            continue
        place = _source_positions(node, x.shape[axis], shape[axis], scales[axis])
        found = _neighbours(node, x.shape[axis], place)
        along = [-1 if a == axis else 1 for a in range(x.ndim)]
        parts = [jnp.take(x, where.astype(np.int32), axis=axis) for where, _ in found]
        if len(parts) == 1:
            x = parts[0]
            continue
        terms = [part * share.astype(x.dtype).reshape(along) for part, (_, share) in zip(parts, found, strict=True)]
        x = sum(terms[1:], terms[0])
    return x


LOWERINGS: dict[str, Lowering] = {"Resize": _resize}
