"""Resize: the neighbours and their shares are computed at compile time (frontend/resampling.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from tvm import tirx

from gatewright.frontend.resampling import taps

from ..kernel import Kernel
from ..lazy import Expr, Lazy, cast, constant, given
from ..steps import Step
from . import Lowering

Neighbours = tuple[int, list[Lazy], list[Lazy]]
"""An axis, and for each neighbour its places and (where there are several) its shares."""


def _resize(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, shape = given(inputs[0]), step.output.shape
    known = [None, *(None if v is None else v.value for v in inputs[1:])]
    # Between integers the shares are fractions all the same.
    dtype = x.dtype if x.dtype.startswith("float") else "float32"
    corners: list[Neighbours] = []
    outside: list[tuple[int, Lazy]] = []
    for axis, one in taps(step.node, x.shape, shape, known).items():
        places = [kernel.parameter(column.astype(np.int32)) for column in one.index.T]
        shares = [] if one.is_copy else [kernel.parameter(column.astype(dtype)) for column in one.weight.T]
        corners.append((axis, places, shares))
        if one.outside.any():
            outside.append((axis, kernel.parameter(one.outside.astype(np.int8))))
    fill = constant(step.node.attributes.get_float("extrapolation_value", 0.0) or 0.0, x.dtype)

    def at(*index: Expr) -> Expr:
        value = cast(_blend(x, index, corners, dtype), x.dtype)
        if not outside:
            return value
        beyond = [beyond_axis.at(index[axis]) != constant(0, "int8") for axis, beyond_axis in outside]
        return tirx.Select(reduce(tirx.Or, beyond), fill, value)

    return Lazy(tuple(shape), x.dtype, at)


def _blend(x: Lazy, index: Sequence[Expr], corners: Sequence[Neighbours], dtype: str) -> Expr:
    """The element at ``index``, axis by axis: one neighbour, or several with their shares."""
    if not corners:
        return x.at(*index)
    (axis, places, shares), rest = corners[0], corners[1:]

    def neighbour(which: int) -> Expr:
        found = places[which]
        place = found.at(*(index[axis],) if found.rank else ())
        return _blend(x, [*index[:axis], place, *index[axis + 1 :]], rest, dtype)

    if not shares:
        return neighbour(0)
    return reduce(lambda a, b: a + b, [cast(neighbour(i), dtype) * share.at(index[axis]) for i, share in enumerate(shares)])


LOWERINGS: dict[str, Lowering] = {"Resize": _resize}
