"""Pooling windows: maximum, average, norm; ceil_mode as extra padding at the end."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from gatewright.frontend.queries import integer
from gatewright.frontend.windows import Window, window_counts

from . import Lowering, Value
from .elementwise import is_float, like


def _pads(window: Window, spatial: tuple[int, ...]) -> list[tuple[int, int]]:
    """Padding of every axis so that the windows are those that ONNX counts: none is lost, none too many."""
    out = window.output(spatial)
    pads = [(0, 0), (0, 0)]
    for axis, size in enumerate(spatial):
        reach = (out[axis] - 1) * window.strides[axis] + (window.kernel[axis] - 1) * window.dilations[axis] + 1
        pads.append((window.begin[axis], reach - size - window.begin[axis]))
    return pads


def windowed(x: Value, window: Window, start: Value, combine: Any) -> Value:
    """x [N, C, *spatial] reduced over its windows; padding counts as ``start``, the identity of ``combine``."""
    return lax.reduce_window(
        x, start, combine, (1, 1, *window.kernel), (1, 1, *window.strides), _pads(window, x.shape[2:]),
        window_dilation=(1, 1, *window.dilations),
    )  # fmt: skip


def lowest(x: Value) -> Value:
    """The identity of max."""
    return np.asarray(-np.inf if is_float(x) else jnp.iinfo(x.dtype).min, x.dtype)


def max_pool(node: ir.Node, x: Value) -> Value:
    return windowed(x, Window.of(node), lowest(x), lax.max)


def window_sum(node: ir.Node, x: Value) -> Value:
    return windowed(x, Window.of(node), np.zeros((), x.dtype), lax.add)


def _max_pool(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    return max_pool(node, inputs[0])


def _average_pool(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x = inputs[0]
    counts = window_counts(Window.of(node), x.shape[2:], integer(node, "count_include_pad", 0) == 1)
    return window_sum(node, x) / counts.astype(x.dtype)


def _lp_pool(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, p = inputs[0], integer(node, "p", 2)
    powers = jnp.abs(x) ** p
    return window_sum(node, powers) ** like(1 / p, x)


LOWERINGS: dict[str, Lowering] = {"MaxPool": _max_pool, "AveragePool": _average_pool, "LpPool": _lp_pool}
