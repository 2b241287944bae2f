"""QuantizeLinear and DequantizeLinear at the float edges, as ONNX and ``frontend/float_ops.py`` define them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from gatewright.frontend.queries import INTEGER_BOUNDS, integer

from . import Lowering, Value
from .division import steps_of


def _along(node: ir.Node, scale: Value, x: Value) -> Value:
    """A scale or zero point so that it broadcasts with x: one value, one per index of the axis, or one per block along it."""
    if scale.size == 1:
        return scale.reshape(())
    axis = integer(node, "axis", 1) % x.ndim
    if block := integer(node, "block_size", 0):
        library: Any = np if isinstance(scale, np.ndarray) else jnp
        return library.take(library.repeat(scale, block, axis=axis), np.arange(x.shape[axis]), axis=axis)
    return scale.reshape([-1 if a == axis else 1 for a in range(x.ndim)])


def _quantize(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, scale = inputs[0], inputs[1]
    zero = inputs[2] if len(inputs) > 2 else None
    dtype = node.outputs[0].dtype
    assert dtype is not None
    lo, hi = INTEGER_BOUNDS[dtype]
    steps = _steps(x, node, scale)
    steps = steps if zero is None else steps + _along(node, zero.astype(np.int32), x)
    return jnp.clip(steps, lo, hi)


def _steps(x: Value, node: ir.Node, scale: Value) -> Value:
    """rne(x/scale), int32: a product where the reciprocal is exact, else a division in integers, which no compiler rewrites."""
    if isinstance(scale, np.ndarray) and x.dtype == np.float32 and np.all(np.isfinite(scale) & (scale > 0)):
        if not np.all(np.frexp(scale)[0] == 0.5):
            return steps_of(x, np.asarray(_along(node, scale.astype(np.float32), x)))
        quotient = x * _along(node, (1 / scale).astype(np.float32), x)
    else:
        quotient = x / _along(node, scale.astype(x.dtype), x)
    # Not-a-number becomes the zero point. Past ±2^24 every 16-bit grid ends, so that int32 holds the rest.
    steps = jnp.rint(quotient)
    return jnp.clip(jnp.where(jnp.isnan(steps), 0, steps), -(2.0**24), 2.0**24).astype(jnp.int32)


def _dequantize(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, scale = inputs[0], inputs[1]
    zero = inputs[2] if len(inputs) > 2 else None
    wide = np.int64 if x.dtype == np.int32 and zero is not None and _is_set(zero) else np.int32
    q = x.astype(wide)
    if zero is not None and _is_set(zero):
        q = q - _along(node, zero.astype(wide), x)
    return q.astype(scale.dtype) * _along(node, scale, x)


def _is_set(zero: Value) -> bool:
    return not isinstance(zero, np.ndarray) or bool(np.any(zero))


LOWERINGS: dict[str, Lowering] = {"QuantizeLinear": _quantize, "DequantizeLinear": _dequantize}
