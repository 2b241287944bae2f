"""Operators that only move values: each is a map from the result's index to the input's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
from tvm import tirx

from gatewright.frontend.integer import Array
from gatewright.frontend.queries import integer

from ..kernel import Kernel
from ..lazy import Expr, Lazy, broadcast_index, cast, constant, given, let, quotient, remainder, simplify
from ..steps import Step
from . import Lowering

Index = tuple[Expr, ...]


def moved(x: Lazy, shape: Sequence[int], index: Callable[..., Sequence[Expr]]) -> Lazy:
    """The lazy tensor whose element i is x's element ``index(i)``."""
    return Lazy(tuple(shape), x.dtype, lambda *i: x.at(*(simplify(e) for e in index(*i))))


def known(x: Lazy | None) -> Array | None:
    """The elements of a constant input; None where it is absent."""
    if x is None:
        return None
    assert x.value is not None, "support.py refuses a computed value here"
    return x.value


def reshaped(x: Lazy, shape: Sequence[int]) -> Lazy:
    """x in another shape, row-major order kept."""

    def index(*i: Expr) -> Sequence[Expr]:
        # Leading axes that both shapes share keep their index: no division for a simplifier to undo.
        same = 0
        while same < min(len(shape), x.rank) and shape[same] == x.shape[same] and same < len(i):
            same += 1
        rest_out, rest_in = tuple(shape[same:]), x.shape[same:]
        flat: Expr = tirx.const(0, "int32")
        for position, extent in zip(i[same:], rest_out, strict=True):
            flat = flat * extent + position
        return (*i[:same], *_unflattened(flat, rest_in))

    return moved(x, shape, index)


def _unflattened(flat: Expr, shape: Sequence[int]) -> tuple[Expr, ...]:
    found: list[Expr] = []
    step = math.prod(shape)
    for position, extent in enumerate(shape):
        step //= max(extent, 1)
        place = flat if step == 1 else quotient(flat, step)
        if extent == 1:
            found.append(tirx.const(0, "int32"))
        else:
            found.append(place if position == 0 else remainder(place, extent))
    return tuple(found)


def joined(parts: Sequence[Lazy], axis: int, shape: Sequence[int]) -> Lazy:
    """The parts one after the other along ``axis``."""

    def at(*index: Expr) -> Expr:
        position = index[axis]
        ends = np.cumsum([p.shape[axis] for p in parts])
        value = None
        for part, end in reversed(list(zip(parts, ends, strict=True))):
            if not part.shape[axis]:
                continue
            start = int(end) - part.shape[axis]
            own = part.at(*index[:axis], simplify(position - start), *index[axis + 1 :])
            value = own if value is None else tirx.if_then_else(position < int(end), own, value)
        return value

    return Lazy(tuple(shape), parts[0].dtype, at)


def _reshape(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    return reshaped(given(inputs[0]), step.output.shape)


def _transpose(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x = given(inputs[0])
    order = step.node.attributes.get_ints("perm", tuple(reversed(range(x.rank)))) or tuple(range(x.rank))
    back = [list(order).index(axis) for axis in range(x.rank)]
    return moved(x, step.output.shape, lambda *i: [i[b] for b in back])


def _concat(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    shape = step.output.shape
    return joined([x for x in inputs if x is not None], integer(step.node, "axis", 0) % len(shape), shape)


def _expand(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x = given(inputs[0])
    return moved(x, step.output.shape, lambda *i: broadcast_index(i, x.shape))


def _constant_of_shape(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    value = step.node.attributes.get("value")
    fill = 0 if value is None else value.as_tensor().numpy().reshape(-1)[0].item()
    return Lazy(step.output.shape, step.output.dtype, lambda *i: constant(fill, step.output.dtype))


def _slice(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x = given(inputs[0])
    starts, ends, axes, steps = (known(v) for v in (*inputs[1:], None, None, None, None)[:4])
    assert starts is not None
    assert ends is not None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    first, stride = [0] * x.rank, [1] * x.rank
    for start, end, axis, by in zip(starts, ends, axes, steps, strict=True):
        a = int(axis) % x.rank
        first[a], _, stride[a] = slice(int(start), int(end), int(by)).indices(x.shape[a])
    return moved(x, step.output.shape, lambda *i: [f + p * s for f, p, s in zip(first, i, stride, strict=True)])


def _split(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, node = given(inputs[0]), step.node
    axis = integer(node, "axis", 0) % x.rank
    extents = [int(v.shape[axis]) if v.shape is not None else 0 for v in node.outputs]  # type: ignore[arg-type]
    start = sum(extents[: step.index])
    return moved(x, step.output.shape, lambda *i: (*i[:axis], i[axis] + start, *i[axis + 1 :]))


def _gather(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, where = map(given, inputs)
    axis = integer(step.node, "axis", 0) % x.rank
    rank = where.rank
    if where.value is not None and rank == 1:
        places = kernel.parameter(np.mod(where.value, x.shape[axis]).astype(np.int32))
        # One load still, if at a place that is looked up: a convolution need not copy it.
        layout = x.layout if axis == 1 else None
        return Lazy(step.output.shape, x.dtype, lambda *i: x.at(*i[:axis], places.at(i[axis]), *i[axis + 1 :]), layout=layout)

    def at(*i: Expr) -> Expr:
        found = _position(where.at(*i[axis : axis + rank]), x.shape[axis])
        return x.at(*i[:axis], found, *i[axis + rank :])

    return Lazy(step.output.shape, x.dtype, at)


def _gather_elements(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, where = map(given, inputs)
    axis = integer(step.node, "axis", 0) % x.rank

    def at(*i: Expr) -> Expr:
        return x.at(*i[:axis], _position(where.at(*i), x.shape[axis]), *i[axis + 1 :])

    return Lazy(step.output.shape, x.dtype, at)


def _position(index: Expr, extent: int) -> Expr:
    """An index read from a tensor: negative ones count from the end; one outside is brought inside, never read past the buffer."""
    zero, size = constant(0, "int64"), constant(extent, "int64")
    counted = let(cast(index, "int64"), lambda i: tirx.Select(i < zero, i + size, i))
    return cast(tirx.Max(tirx.Min(counted, constant(extent - 1, "int64")), zero), "int32")


def _gather_nd(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    """The last axis of the indices holds a position of as many axes of x as it is long."""
    x, where = map(given, inputs)
    batch, depth, rank = integer(step.node, "batch_dims", 0), where.shape[-1], where.rank

    def at(*i: Expr) -> Expr:
        tuple_of = i[: rank - 1]
        found = [_position(where.at(*tuple_of, k), x.shape[batch + k]) for k in range(depth)]
        return x.at(*i[:batch], *found, *i[rank - 1 :])

    return Lazy(step.output.shape, x.dtype, at)


def _one_hot(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    where, _, values = map(given, inputs)
    shape = step.output.shape
    axis = integer(step.node, "axis", -1) % len(shape)

    def at(*i: Expr) -> Expr:
        found = cast(where.at(*i[:axis], *i[axis + 1 :]), "int64")
        size = constant(shape[axis], "int64")
        counted = let(found, lambda v: tirx.Select(v < constant(0, "int64"), v + size, v))
        return tirx.if_then_else(tirx.EQ(counted, cast(i[axis], "int64")), values.at(1), values.at(0))

    return Lazy(shape, values.dtype, at)


def _triangle(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, shift = given(inputs[0]), inputs[1] if len(inputs) > 1 else None
    upper = integer(step.node, "upper", 1) == 1
    zero = constant(0, x.dtype)

    def at(*i: Expr) -> Expr:
        k = constant(0, "int64") if shift is None else cast(shift.at(*(0,) * shift.rank), "int64")
        row, column = cast(i[-2], "int64"), cast(i[-1], "int64")
        kept = column >= row + k if upper else column <= row + k
        return tirx.Select(kept, x.at(*i), zero)

    return Lazy(x.shape, x.dtype, at)


def _tile(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x = given(inputs[0])
    shape = step.output.shape
    return moved(x, shape, lambda *i: [p if n == m else remainder(p, n) for p, n, m in zip(i, x.shape, shape, strict=True)])


def _depth_to_space(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, node = given(inputs[0]), step.node
    block, (_, channels, _, _) = integer(node, "blocksize", 1), x.shape
    depth = channels // block**2
    by_column = node.attributes.get_string("mode", "DCR") == "CRD"

    def index(n: Expr, c: Expr, h: Expr, w: Expr) -> Sequence[Expr]:
        row, column = remainder(h, block), remainder(w, block)
        channel = c * block**2 + row * block + column if by_column else (row * block + column) * depth + c
        return n, channel, quotient(h, block), quotient(w, block)

    return moved(x, step.output.shape, index)


def _space_to_depth(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x = given(inputs[0])
    block, depth = integer(step.node, "blocksize", 1), x.shape[1]

    def index(n: Expr, c: Expr, h: Expr, w: Expr) -> Sequence[Expr]:
        place = quotient(c, depth)
        return n, remainder(c, depth), h * block + quotient(place, block), w * block + remainder(place, block)

    return moved(x, step.output.shape, index)


def _pad(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, node = given(inputs[0]), step.node
    amounts, fill, axes = (known(v) for v in (*inputs[1:], None, None, None)[:3])
    assert amounts is not None
    chosen = list(range(x.rank)) if axes is None else [int(a) % x.rank for a in axes]
    begin = [0] * x.rank
    for position, axis in enumerate(chosen):
        begin[axis] = int(amounts[position])
    mode = node.attributes.get_string("mode", "constant") or "constant"
    if mode == "constant":
        return padded(x, step.output.shape, begin, 0 if fill is None else fill.reshape(-1)[0].item())
    return moved(x, step.output.shape, lambda *i: [_mirrored(p - b, n, mode) for p, b, n in zip(i, begin, x.shape, strict=True)])


def _mirrored(position: Expr, extent: int, mode: str) -> Expr:
    """Where a position outside 0 … extent − 1 is taken from."""
    if mode == "edge" or extent == 1:
        return tirx.Max(tirx.Min(position, extent - 1), 0)
    if mode == "wrap":
        return remainder(position, extent)
    # reflect: period 2(extent − 1), the edge itself not repeated.
    period = 2 * (extent - 1)
    place = remainder(position, period)
    return tirx.Min(place, period - place)


def padded(x: Lazy, shape: Sequence[int], begin: Sequence[int], fill: Any) -> Lazy:
    """x with its origin at ``begin`` in a tensor of ``shape`` that is ``fill`` elsewhere."""
    value = constant(fill, x.dtype)

    def at(*index: Expr) -> Expr:
        inside, own = [], []
        for position, first, extent, whole in zip(index, begin, x.shape, shape, strict=True):
            if first > 0:
                inside.append(position >= first)
            if first + extent < whole:
                inside.append(position < first + extent)
            own.append(simplify(position - first))
        return x.at(*own) if not inside else tirx.if_then_else(reduce(tirx.And, inside), x.at(*own), value)

    return Lazy(tuple(shape), x.dtype, at)


LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape), "Transpose": _transpose, "Concat": _concat,
    "Expand": _expand, "ConstantOfShape": _constant_of_shape,
    "Slice": _slice, "Split": _split, "Gather": _gather, "GatherElements": _gather_elements, "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth, "GatherND": _gather_nd, "OneHot": _one_hot, "Trilu": _triangle, "Pad": _pad,
}  # fmt: skip
