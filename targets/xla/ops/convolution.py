"""Convolutions in float: grouped, depthwise, dilated, strided, transposed; 1 to 3 spatial axes, channels second as in ONNX."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import onnx_ir as ir
from jax import lax

from gatewright.frontend.queries import integer
from gatewright.frontend.windows import Window

from . import Lowering, Value

_LETTERS = "DHW"


def dimensions(spatial: int) -> tuple[str, str, str]:
    """Axes of data [N, C, *spatial], weight [M, C/group, *k] and result, as lax names them."""
    letters = _LETTERS[-spatial:] if spatial <= 3 else "".join(chr(ord("a") + i) for i in range(spatial))
    return f"NC{letters}", f"OI{letters}", f"NC{letters}"


def convolve(x: Value, weight: Value, window: Window, groups: int, **options: Any) -> Value:
    """x [N, C, *spatial] with weight [M, C/group, *k] → [N, M, *out]; zero padding. ``options``: lax's own (precision, result type)."""
    return lax.conv_general_dilated(
        x, weight, window.strides, list(zip(window.begin, window.end, strict=True)), rhs_dilation=window.dilations,
        dimension_numbers=dimensions(len(window.kernel)), feature_group_count=groups, **options,
    )  # fmt: skip


def _with_bias(y: Value, inputs: list[Any]) -> Value:
    bias = inputs[2] if len(inputs) > 2 else None
    return y if bias is None else y + bias.reshape(1, -1, *[1] * (y.ndim - 2))


def _conv(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, weight = scope.factors(inputs[0], inputs[1])
    window = Window.of(node, weight.shape[2:])
    y = convolve(x, weight, window, integer(node, "group", 1), precision=scope.precision, preferred_element_type=scope.sums(inputs[0]))
    return _with_bias(y.astype(inputs[0].dtype), inputs)


def _transposed(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    """ConvTranspose: the input spread by its strides, convolved with the flipped kernel; weight [C, M/group, *k]."""
    x, weight = scope.factors(inputs[0], inputs[1])
    groups, window = integer(node, "group", 1), Window.of(node, weight.shape[2:])
    spatial = len(window.kernel)
    wanted = tuple(int(n) for n in node.outputs[0].shape.numpy()[2:])  # type: ignore[union-attr]
    reach = [(k - 1) * d for k, d in zip(window.kernel, window.dilations, strict=True)]
    pads = []
    for axis in range(spatial):
        before = reach[axis] - window.begin[axis]
        spread = (x.shape[2 + axis] - 1) * window.strides[axis] + 1
        # What the result lacks at its end, whether by pads, output_padding or output_shape.
        pads.append((before, wanted[axis] - (spread + before - reach[axis])))
    channels, per_group = weight.shape[:2]
    w = weight.reshape(groups, channels // groups, per_group, *window.kernel)
    w = jnp.swapaxes(w, 1, 2).reshape(groups * per_group, channels // groups, *window.kernel)
    w = jnp.flip(w, tuple(range(2, 2 + spatial)))
    y = lax.conv_general_dilated(
        x, w, [1] * spatial, pads, lhs_dilation=window.strides, rhs_dilation=window.dilations,
        dimension_numbers=dimensions(spatial), feature_group_count=groups, precision=scope.precision,
        preferred_element_type=scope.sums(inputs[0]),
    )  # fmt: skip
    return _with_bias(y.astype(inputs[0].dtype), inputs)


LOWERINGS: dict[str, Lowering] = {"Conv": _conv, "ConvTranspose": _transposed}
