"""Reductions over any axes, ArgMax and its kin, running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from gatewright.frontend.queries import integer, reduce_axes

from . import Lowering, Value

_REDUCERS: dict[str, Callable[..., Value]] = {
    "ReduceSum": lambda x, **o: jnp.sum(x, dtype=x.dtype, **o),
    "ReduceMean": lambda x, **o: jnp.mean(x, dtype=x.dtype, **o) if jnp.issubdtype(x.dtype, jnp.floating) else _whole_mean(x, **o),
    "ReduceMax": jnp.max,
    "ReduceMin": jnp.min,
    "ReduceProd": lambda x, **o: jnp.prod(x, dtype=x.dtype, **o),
    "ReduceSumSquare": lambda x, **o: jnp.sum(x * x, dtype=x.dtype, **o),
    "ReduceL1": lambda x, **o: jnp.sum(jnp.abs(x), dtype=x.dtype, **o),
    "ReduceL2": lambda x, **o: jnp.sqrt(jnp.sum(x * x, dtype=x.dtype, **o)),
    "ReduceLogSum": lambda x, **o: jnp.log(jnp.sum(x, dtype=x.dtype, **o)),
    "ReduceLogSumExp": lambda x, **o: jax.nn.logsumexp(x, **o),
}


def _whole_mean(x: Value, axis: tuple[int, ...], keepdims: bool) -> Value:
    """Of integers: summed in 64 bits, that of 32 do not overflow on the way, and towards zero, as ONNX's Div and Cast round."""
    total = jnp.sum(x, dtype=x.dtype if x.dtype.itemsize == 8 else jnp.int64, axis=axis, keepdims=keepdims)
    count = int(np.prod([x.shape[a] for a in axis]))
    return lax.div(total, jnp.full_like(total, count)).astype(x.dtype)


def _reduce(function: Callable[..., Value]) -> Lowering:
    def lower(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
        axes = reduce_axes(node, inputs[0].ndim)
        assert axes is not None, "support.py refuses computed axes"
        return function(inputs[0], axis=axes, keepdims=integer(node, "keepdims", 1) == 1)

    return lower


def _global(function: Callable[..., Value]) -> Lowering:
    return lambda scope, node, inputs: function(inputs[0], axis=tuple(range(2, inputs[0].ndim)), keepdims=True)


def _arg(function: Callable[..., Value]) -> Lowering:
    def lower(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
        x = inputs[0]
        axis, keep = integer(node, "axis", 0) % x.ndim, integer(node, "keepdims", 1) == 1
        if integer(node, "select_last_index", 0):
            found = x.shape[axis] - 1 - function(jnp.flip(x, axis), axis=axis, keepdims=keep)
        else:
            found = function(x, axis=axis, keepdims=keep)
        return found.astype(jnp.int64)

    return lower


def _running_sum(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x = inputs[0]
    axis = int(np.asarray(scope.known(node, 1)).reshape(-1)[0]) % x.ndim
    backwards = integer(node, "reverse", 0) == 1
    x = jnp.flip(x, axis) if backwards else x
    total = jnp.cumsum(x, axis=axis, dtype=x.dtype)
    total = total - x if integer(node, "exclusive", 0) else total
    return jnp.flip(total, axis) if backwards else total


def _top(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    """TopK: values and positions, of equal values the lower position first."""
    x, count = inputs[0], int(np.asarray(scope.known(node, 1)).reshape(-1)[0])
    axis = integer(node, "axis", -1) % x.ndim
    order = jnp.argsort(x, axis=axis, stable=True, descending=integer(node, "largest", 1) == 1)
    order = jax.lax.slice_in_dim(order, 0, count, axis=axis)
    return jnp.take_along_axis(x, order, axis), order.astype(jnp.int64)


LOWERINGS: dict[str, Lowering] = {
    **{op: _reduce(function) for op, function in _REDUCERS.items()}, "ArgMax": _arg(jnp.argmax), "ArgMin": _arg(jnp.argmin),
    "CumSum": _running_sum, "TopK": _top, "GlobalAveragePool": _global(_REDUCERS["ReduceMean"]), "GlobalMaxPool": _global(jnp.max),
}  # fmt: skip
