"""Resize by nearest neighbour or linear interpolation; the positions are computed at compile time, as ONNX's formulas have them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gatewright.frontend.integer import Array

from ..kernel import Kernel
from ..lazy import Expr, Lazy, given
from ..steps import Step
from . import Lowering


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
            # The centre stays where it is although the result has a whole number of positions.
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


def _scales(node: ir.Node, x: Lazy, inputs: Sequence[Lazy | None], shape: Sequence[int]) -> list[float]:
    """Scale per axis: as given, or the ratio of the sizes."""
    given = inputs[2] if len(inputs) > 2 else None
    axes = node.attributes.get_ints("axes", ()) or tuple(range(x.rank))
    scales = [n / m for n, m in zip(shape, x.shape, strict=True)]
    if given is not None and given.value is not None and given.value.size:
        for axis, scale in zip(axes, given.value.reshape(-1), strict=True):
            scales[int(axis) % x.rank] = float(scale)
    return scales


def _resize(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, node, shape = given(inputs[0]), step.node, step.output.shape
    scales = _scales(node, x, inputs, shape)
    linear = node.attributes.get_string("mode", "nearest") == "linear"
    corners: list[tuple[int, list[Lazy], list[Lazy]]] = []
    for axis in range(x.rank):
        if shape[axis] == x.shape[axis] and scales[axis] == 1.0:
            continue
        last = x.shape[axis] - 1
        place = _source_positions(node, x.shape[axis], shape[axis], scales[axis])
        if not linear:
            index = np.clip(_nearest(node, place), 0, last).astype(np.int32)
            corners.append((axis, [kernel.parameter(index)], []))
            continue
        below = np.floor(np.clip(place, 0, last))
        share = (np.clip(place, 0, last) - below).astype(x.dtype)
        ends = [np.clip(below, 0, last).astype(np.int32), np.clip(below + 1, 0, last).astype(np.int32)]
        shares = [(1 - share).astype(x.dtype), share]
        corners.append((axis, [kernel.parameter(e) for e in ends], [kernel.parameter(s) for s in shares]))

    def at(*index: Expr) -> Expr:
        return _blend(x, index, corners)

    return Lazy(tuple(shape), x.dtype, at)


def _blend(x: Lazy, index: Sequence[Expr], corners: Sequence[tuple[int, list[Lazy], list[Lazy]]]) -> Expr:
    """The element at ``index``, axis by axis: one neighbour, or two with their shares."""
    if not corners:
        return x.at(*index)
    (axis, places, shares), rest = corners[0], corners[1:]

    def neighbour(which: int) -> Expr:
        found = places[which]
        place = found.at(*(index[axis],) if found.rank else ())
        return _blend(x, [*index[:axis], place, *index[axis + 1 :]], rest)

    if not shares:
        return neighbour(0)
    return neighbour(0) * shares[0].at(index[axis]) + neighbour(1) * shares[1].at(index[axis])


LOWERINGS: dict[str, Lowering] = {"Resize": _resize}
