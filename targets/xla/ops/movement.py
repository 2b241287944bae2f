"""Operators that only move values; where something goes is known when the program is made."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from gatewright.frontend.queries import integer

from . import Lowering, Value


def _reshape(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    return inputs[0].reshape(scope.shape(node))


def _transpose(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    return jnp.transpose(inputs[0], node.attributes.get_ints("perm", None))


def _concat(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    return jnp.concatenate(inputs, axis=integer(node, "axis", 0))


def _expand(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    return jnp.broadcast_to(inputs[0], scope.shape(node))


def _slice(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x = inputs[0]
    starts, ends = scope.known(node, 1), scope.known(node, 2)
    axes, steps = scope.known(node, 3), scope.known(node, 4)
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    parts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        low, _, by = found = slice(int(start), int(end), int(step)).indices(x.shape[int(axis)])
        count = len(range(*found))
        stop = low + count * by
        # Downwards to the first element a slice has no end: −1 would mean the last one.
        parts[int(axis)] = slice(low, stop if stop >= 0 else None, by) if count else slice(0, 0)
    return x[tuple(parts)]


def _split(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    axis = integer(node, "axis", 0)
    sizes = [int(v.shape.numpy()[axis]) for v in node.outputs if v.shape is not None]
    return tuple(jnp.split(inputs[0], np.cumsum(sizes)[:-1].tolist(), axis=axis))


def _gather(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, where = inputs
    axis = integer(node, "axis", 0) % x.ndim
    where = jnp.where(where < 0, where + x.shape[axis], where)
    return jnp.take(x, where, axis=axis, mode="clip")


def _gather_elements(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, where = inputs
    axis = integer(node, "axis", 0) % x.ndim
    # On the other axes the indices may cover less than the data.
    part = x[tuple(slice(None) if i == axis else slice(size) for i, size in enumerate(where.shape))]
    return jnp.take_along_axis(part, jnp.where(where < 0, where + x.shape[axis], where), axis, mode="clip")


def _gather_nd(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, where = inputs
    batch, depth = integer(node, "batch_dims", 0), where.shape[-1]
    sizes = np.asarray(x.shape[batch : batch + depth], where.dtype)
    where = jnp.where(where < 0, where + sizes, where)
    lead = where.shape[:batch]
    own = [np.arange(n).reshape(*[1] * i, n, *[1] * (where.ndim - 2 - i)) for i, n in enumerate(lead)]
    return x[(*own, *(where[..., i] for i in range(depth)))]


def _tile(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    return jnp.tile(inputs[0], [int(n) for n in scope.known(node, 1)])


def _depth_to_space(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, block = inputs[0], integer(node, "blocksize", 1)
    n, c, h, w = x.shape
    if node.attributes.get_string("mode", "DCR") == "DCR":
        parts, order = (n, block, block, c // block**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        parts, order = (n, c // block**2, block, block, h, w), (0, 1, 4, 2, 5, 3)
    return x.reshape(parts).transpose(order).reshape(scope.shape(node))


def _space_to_depth(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, block = inputs[0], integer(node, "blocksize", 1)
    n, c, h, w = x.shape
    return x.reshape(n, c, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4).reshape(scope.shape(node))


def _pad(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, pads, fill, axes = inputs[0], scope.known(node, 1), scope.known(node, 2), scope.known(node, 3)
    axes = range(x.ndim) if axes is None else [int(a) % x.ndim for a in axes]
    begin, end = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(axes):
        begin[axis], end[axis] = int(pads[i]), int(pads[i + len(pads) // 2])
    # A negative pad cuts.
    x = x[tuple(slice(max(0, -b), n - max(0, -e)) for b, e, n in zip(begin, end, x.shape, strict=True))]
    widths = [(max(0, b), max(0, e)) for b, e in zip(begin, end, strict=True)]
    mode = node.attributes.get_string("mode", "constant") or "constant"
    if mode == "constant":
        value = 0 if fill is None or not fill.size else fill.reshape(-1)[0].item()
        return jnp.pad(x, widths, constant_values=np.asarray(value).astype(x.dtype))
    return jnp.pad(x, widths, mode=mode)


def _one_hot(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    where, values = inputs[0], inputs[2]
    depth = int(np.asarray(scope.known(node, 1)).reshape(-1)[0])
    axis = integer(node, "axis", -1)
    axis = axis + where.ndim + 1 if axis < 0 else axis
    where = jnp.expand_dims(jnp.where(where < 0, where + depth, where), axis)
    along = np.arange(depth).reshape(*[1] * axis, depth, *[1] * (where.ndim - 1 - axis))
    return jnp.where(where == along, values[1], values[0])


def _triangle(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, place = inputs[0], scope.known(node, 1)
    k = 0 if place is None else int(np.asarray(place).reshape(-1)[0])
    return jnp.triu(x, k) if integer(node, "upper", 1) else jnp.tril(x, k)


def _reverse_sequence(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, lengths = inputs
    time, batch = integer(node, "time_axis", 0) % x.ndim, integer(node, "batch_axis", 1) % x.ndim
    steps = np.arange(x.shape[time]).reshape([-1 if a == time else 1 for a in range(x.ndim)])
    own = lengths.reshape([-1 if a == batch else 1 for a in range(x.ndim)])
    return jnp.take_along_axis(x, jnp.where(steps < own, own - 1 - steps, steps), time, mode="clip")


def _eye(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    rows, columns = scope.shape(node)
    return np.eye(rows, columns, integer(node, "k", 0))


def _shape(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    start, end = integer(node, "start", 0), integer(node, "end", inputs[0].ndim)
    return np.asarray(inputs[0].shape[start:end], np.int64)


LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape), "Transpose": _transpose, "Concat": _concat,
    "Expand": _expand, "Slice": _slice, "Split": _split, "Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_nd,
    "Tile": _tile, "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth, "Pad": _pad, "OneHot": _one_hot,
    "Trilu": _triangle, "ReverseSequence": _reverse_sequence, "EyeLike": _eye, "Shape": _shape,
    "Size": lambda scope, node, inputs: np.asarray(math.prod(inputs[0].shape), np.int64),
}  # fmt: skip
