"""Pooling windows, float and integer alike: a sum or a maximum over the window, padding left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from tvm import te, tirx

from gatewright.frontend.queries import integer, reduce_axes
from gatewright.frontend.windows import Window, window_counts

from ..kernel import Kernel
from ..lazy import Expr, Lazy, broadcast_index, compute, constant, element, given, reduce_axis, simplify
from ..schedules.reduction import Reduction
from ..steps import Step
from . import Lowering
from .reduction import Combine, lowest, reduced, without


def window_sum(kernel: Kernel, node: ir.Node, x: Lazy, shape: Sequence[int]) -> Lazy:
    """Σ over the window of AveragePool, GlobalAveragePool or ReduceMean, in x's dtype; padding counts as 0."""
    return _over(kernel, node, x, shape, te.sum, constant(0, x.dtype))


def window_max(kernel: Kernel, node: ir.Node, x: Lazy, shape: Sequence[int]) -> Lazy:
    """The maximum over the window of MaxPool, GlobalMaxPool or ReduceMax; padding never wins."""
    return _over(kernel, node, x, shape, te.max, lowest(x.dtype))


def _over(kernel: Kernel, node: ir.Node, x: Lazy, shape: Sequence[int], combine: Combine, fill: Expr) -> Lazy:
    if node.op_type.startswith("Global"):
        return reduced(kernel, x, tuple(range(2, x.rank)), combine)
    if node.op_type.startswith("Reduce"):
        axes = reduce_axes(node, x.rank)
        assert axes is not None, "only constant axes are recognised"
        return without(reduced(kernel, x, axes, combine), axes, shape)
    return _pooled(kernel, x, Window.of(node), combine, fill)


def _pooled(kernel: Kernel, x: Lazy, window: Window, combine: Combine, fill: Expr) -> Lazy:
    out = window.output(x.shape[2:])
    taps = [reduce_axis(k, f"k{i}") if k > 1 else None for i, k in enumerate(window.kernel)]
    axes = [t for t in taps if t is not None]
    layout, shape = kernel.layout, (*x.shape[:2], *out)

    def body(*index: Expr) -> Expr:
        n, c, *place = layout.to_logical(index)
        own, inside = [], []
        for axis, p in enumerate(place):
            tap = taps[axis]
            where = p * window.strides[axis] + (0 if tap is None else tap.var * window.dilations[axis]) - window.begin[axis]
            last = (out[axis] - 1) * window.strides[axis] + (window.kernel[axis] - 1) * window.dilations[axis] - window.begin[axis]
            inside += [where >= 0] if window.begin[axis] else []
            inside += [where < x.shape[2 + axis]] if last >= x.shape[2 + axis] else []
            own.append(simplify(where))
        value = x.at(n, c, *own)
        value = tirx.if_then_else(tirx.all(*inside), value, fill) if inside else value
        return combine(value, axis=axes) if axes else value

    tensor = compute(layout.buffer_shape(shape), body, "acc")
    kernel.work += math.prod(shape) * math.prod(window.kernel)
    kernel.schedule = Reduction(len(axes), x.dtype, kernel.work)
    return Lazy(shape, x.dtype, lambda *i: element(tensor, layout.to_buffer(i)))


def _max_pool(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    return window_max(kernel, step.node, given(inputs[0]), step.output.shape)


def _average_pool(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, node = given(inputs[0]), step.node
    total = window_sum(kernel, node, x, step.output.shape)
    counts = window_counts(Window.of(node), x.shape[2:], integer(node, "count_include_pad", 0) == 1).astype(x.dtype)
    if np.all(counts == counts.flat[0]):
        counts = counts.reshape(-1)[:1].reshape((1,) * counts.ndim)
    divisor = kernel.parameter(counts)
    return Lazy(total.shape, x.dtype, lambda *i: total.at(*i) / divisor.at(*broadcast_index(i, divisor.shape)))


LOWERINGS: dict[str, Lowering] = {"MaxPool": _max_pool, "AveragePool": _average_pool}
