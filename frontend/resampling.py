"""Resize as a few weighted neighbours along each axis: for each place of the result, which of the input's values and how much of each.

After the ONNX operator specification (Resize, opset 19) and the text of its reference implementation, computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Taps:
    """Along one axis: ``index`` and ``weight`` [result's size, neighbours]; ``outside``: where the result lies beyond the input."""

    index: Array
    weight: Array
    outside: Array

    @property
    def is_copy(self) -> bool:
        """Whether each value of the result is one of the input."""
        return int(self.index.shape[1]) == 1


def taps(node: ir.Node, before: Sequence[int], after: Sequence[int], inputs: Sequence[Array | None]) -> dict[int, Taps]:
    """By axis that changes or is cropped. ``inputs``: those of the node, constants (the first is not looked at)."""
    given = [*inputs, None, None, None, None][:4]
    region, scales, sizes = (a if a is not None and a.size else None for a in given[1:])
    rank = len(before)
    axes = [int(a) % rank for a in node.attributes.get_ints("axes", ()) or range(rank)]
    transform = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") or ""
    factors = _factors(node, [before[a] for a in axes], scales, sizes)
    found = {}
    for position, (axis, factor) in enumerate(zip(axes, factors, strict=True)):
        ends = (0.0, 1.0)
        if transform == "tf_crop_and_resize" and region is not None:
            ends = float(region[position]), float(region[position + len(axes)])
        if before[axis] != after[axis] or factor != 1 or ends != (0.0, 1.0):
            places = _places(transform, before[axis], after[axis], factor, ends)
            found[axis] = _taps(node, places, before[axis], factor, transform == "tf_crop_and_resize")
    return found


def resize(node: ir.Node, inputs: Sequence[Array | None], after: Sequence[int]) -> Array:
    """The node's output, of shape ``after``."""
    x = inputs[0]
    assert x is not None
    found = taps(node, x.shape, after, inputs)
    y = x if all(one.is_copy for one in found.values()) else x.astype(np.float64)
    for axis, one in found.items():
        along = [-1 if i == axis else 1 for i in range(x.ndim)]
        parts = [np.take(y, one.index[:, k], axis=axis) for k in range(one.index.shape[1])]
        weighted = (part * one.weight[:, k].reshape(along) for k, part in enumerate(parts))
        y = parts[0] if one.is_copy else np.asarray(sum(weighted))
    for axis, one in found.items():
        if one.outside.any():
            along = [-1 if i == axis else 1 for i in range(x.ndim)]
            y = np.where(one.outside.reshape(along), node.attributes.get_float("extrapolation_value", 0.0), y)
    return np.asarray(y.astype(x.dtype))


def _policy(node: ir.Node) -> str:
    return node.attributes.get_string("keep_aspect_ratio_policy", "stretch") or "stretch"


def _factors(node: ir.Node, before: Sequence[int], scales: Array | None, sizes: Array | None) -> list[float]:
    if scales is not None:
        return [float(s) for s in scales]
    assert sizes is not None
    factors = [int(size) / n for size, n in zip(sizes, before, strict=True)]
    if _policy(node) == "stretch":
        return factors
    return [min(factors) if _policy(node) == "not_larger" else max(factors)] * len(factors)


def _places(transform: str, before: int, after: int, factor: float, ends: tuple[float, float]) -> Array:
    """Where each value of the result lies on the input's axis."""
    i = np.arange(after, dtype=np.float64)
    match transform:
        case "half_pixel":
            return (i + 0.5) / factor - 0.5
        case "half_pixel_symmetric":
            return before / 2 * (1 - after / (factor * before)) + (i + 0.5) / factor - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / factor - 0.5 if after > 1 else np.zeros(after)
        case "align_corners":
            # ONNX aligns those of the scaled size, which need not be a whole number.
            length = factor * before
            return np.zeros(after) if length == 1 else i * (before - 1) / (length - 1)
        case "tf_crop_and_resize":
            start, end = ends
            if after > 1:
                return start * (before - 1) + i * (end - start) * (before - 1) / (after - 1)
            return np.full(after, 0.5 * (start + end) * (before - 1))
        case _:
            return i / factor


def _taps(node: ir.Node, places: Array, size: int, factor: float, cropped: bool) -> Taps:
    mode = node.attributes.get_string("mode", "nearest")
    outside = (places < 0) | (places > size - 1) if cropped else np.zeros(places.shape, bool)
    if mode == "nearest":
        roundings: dict[str, Callable[[Array], Array]] = {
            "floor": np.floor, "ceil": np.ceil, "round_prefer_ceil": lambda p: np.floor(p + 0.5),
            "round_prefer_floor": lambda p: np.ceil(p - 0.5),
        }  # fmt: skip
        rounding = roundings[node.attributes.get_string("nearest_mode", "round_prefer_floor") or ""]
        index = np.clip(rounding(places), 0, size - 1).astype(np.int64)[:, None]
        return Taps(index, np.ones(index.shape), outside)
    # Spread over more neighbours where the result is smaller and antialias asks for it.
    shrink = min(factor, 1.0) if node.attributes.get_int("antialias", 0) else 1.0
    reach = 1 if mode == "linear" else 2
    first = math.floor(-reach / shrink) + 1
    offsets = np.arange(first, 2 - first)
    base = np.ceil(places) - 1
    ratio = places - base
    distance = np.abs(offsets[None, :] - ratio[:, None]) * shrink
    weight = np.clip(1 - distance, 0, 1) if mode == "linear" else _cubic(distance, node.attributes.get_float("cubic_coeff_a", -0.75) or 0.0)
    index = (base[:, None] + offsets[None, :]).astype(np.int64)
    if node.attributes.get_int("antialias", 0):
        weight = weight / weight.sum(axis=1, keepdims=True)
    if node.attributes.get_int("exclude_outside", 0):
        weight = np.where((index < 0) | (index >= size), 0.0, weight)
        weight = weight / weight.sum(axis=1, keepdims=True)
    return Taps(np.clip(index, 0, size - 1), weight, outside)


def _cubic(distance: Array, a: float) -> Array:
    """Keys' cubic convolution (Cubic convolution interpolation for digital image processing, 1981)."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
