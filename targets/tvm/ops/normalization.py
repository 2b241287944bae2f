"""Softmax (float and integer), layer and instance normalization: several passes over a row, each a loop of the same task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import te, tirx

from gatewright.frontend.integer import Array, FloatStep, IntegerOp
from gatewright.frontend.queries import integer, real

from ..kernel import Kernel
from ..lazy import Expr, Lazy, cast, constant, given, let, reduce_axis, simplify
from ..schedules.reduction import Reduction
from ..schedules.rows import Passes
from ..steps import Step, tvm_dtype
from . import Lowering
from .functions import exp
from .movement import reshaped
from .rounding import saturate
from .rows import along, once, row


def _softmax(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, node = given(inputs[0]), step.node
    axis = integer(node, "axis", -1) % x.rank
    if isinstance(step.source, FloatStep) and step.source.exponentials is not None:
        share = _probabilities(kernel, step.source.exponentials.table, x, axis)
        return Lazy(x.shape, step.output.dtype, lambda *i: cast(share(*i), step.output.dtype))
    if not x.plain:
        source = x
        x = row(kernel, x, (axis,), lambda *i: source.at(*i), "taken")
    peak = along(kernel, x, (axis,), te.max, x.at, "peak")
    if node.op_type == "LogSoftmax":
        total = along(kernel, x, (axis,), te.sum, lambda *i: exp(x.at(*i) - peak.at(*i)), "total")
        return Lazy(x.shape, x.dtype, lambda *i: x.at(*i) - peak.at(*i) - tirx.log(total.at(*i)))
    raised = row(kernel, x, (axis,), lambda *i: exp(x.at(*i) - peak.at(*i)), "raised")
    total = along(kernel, x, (axis,), te.sum, raised.at, "total")
    return Lazy(x.shape, x.dtype, lambda *i: raised.at(*i) / total.at(*i))


def _probabilities(kernel: Kernel, table: Array, q: Lazy, axis: int) -> Callable[..., Expr]:
    """e/Σe in float64 with e = table[max(q) − q]: see ``reference.probabilities``. A division, no reciprocal."""
    # The table's 31-bit entries: their sum is exact in int64.
    exponentials = kernel.buffer(table.astype(np.int64))
    peak = along(kernel, q, (axis,), te.max, lambda *i: cast(q.at(*i), "int32"), "peak")
    raised = row(kernel, q, (axis,), lambda *i: exponentials.at(peak.at(*i) - cast(q.at(*i), "int32")), "raised")
    total = along(kernel, q, (axis,), te.sum, raised.at, "total")
    return lambda *i: cast(raised.at(*i), "float64") / cast(total.at(*i), "float64")


def integer_softmax(kernel: Kernel, op: IntegerOp, q: Lazy, axis: int) -> Lazy:
    """rint(probability/s_y) + z: see ``reference.softmax``."""
    assert op.table is not None
    scale = kernel.buffer(np.asarray(op.grid.scale, np.float64))
    share = _probabilities(kernel, op.table, q, axis)
    dtype = tvm_dtype(op.grid.dtype)
    return Lazy(op.shape, dtype, lambda *i: saturate(tirx.round(share(*i) / scale.at()), op, dtype))


def _moments(kernel: Kernel, x: Lazy, axes: Sequence[int], epsilon: float, *, lanes: bool = True) -> tuple[Lazy, Lazy]:
    """Mean and 1/√(variance + ε) over ``axes``; two passes, since the squares of a one-pass variance cancel."""
    count = constant(math.prod(x.shape[a] for a in axes), x.dtype)
    total = along(kernel, x, axes, te.sum, x.at, "total", lanes=lanes)

    def squared(*index: Expr) -> Expr:
        d = x.at(*index) - total.at(*index) / count
        return d * d

    spread = along(kernel, x, axes, te.sum, squared, "spread", lanes=lanes)
    mean = Lazy(total.shape, x.dtype, lambda *i: total.at(*i) / count)
    one = constant(1, x.dtype)
    least = constant(epsilon, x.dtype)
    inverse = Lazy(total.shape, x.dtype, lambda *i: one / tirx.sqrt(spread.at(*i) / count + least))
    if lanes:
        mean, inverse = (once(kernel, v, axes, name) for v, name in ((mean, "mean"), (inverse, "inverse")))
    return mean, inverse


def _layer_normalization(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, scale, node = given(inputs[0]), given(inputs[1]), step.node
    bias = inputs[2] if len(inputs) > 2 else None
    axes = tuple(range(integer(node, "axis", -1) % x.rank, x.rank))
    mean, inverse = _moments(kernel, x, axes, real(node, "epsilon", 1e-5))

    def at(*index: Expr) -> Expr:
        value = (x.at(*index) - mean.at(*index)) * inverse.at(*index)
        value = value * scale.at(*_last(index, scale.shape))
        return value if bias is None else value + bias.at(*_last(index, bias.shape))

    return Lazy(x.shape, x.dtype, at)


def _last(index: Sequence[Expr], shape: Sequence[int]) -> list[Expr]:
    return [0 if n == 1 else i for i, n in zip(index[len(index) - len(shape) :], shape, strict=True)]


def _instance_normalization(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, scale, bias = map(given, inputs)
    mean, inverse = _moments(kernel, x, tuple(range(2, x.rank)), real(step.node, "epsilon", 1e-5))
    one = scale.shape == (1,)

    def at(*index: Expr) -> Expr:
        channel = 0 if one else index[1]
        return (x.at(*index) - mean.at(*index)) * inverse.at(*index) * scale.at(channel) + bias.at(channel)

    return Lazy(x.shape, x.dtype, at)


def _group_normalization(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, scale, bias = map(given, inputs)
    groups = integer(step.node, "num_groups", 1)
    size = x.shape[1] // groups
    rows = reshaped(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    mean, inverse = _moments(kernel, rows, (2,), real(step.node, "epsilon", 1e-5), lanes=False)
    kernel.schedule = Passes(("total", "spread"), x.dtype, kernel.work)

    def at(*index: Expr) -> Expr:
        row = (index[0], simplify(tirx.floordiv(index[1], size)), 0)
        return (x.at(*index) - mean.at(*row)) * inverse.at(*row) * scale.at(index[1]) + bias.at(index[1])

    return Lazy(x.shape, x.dtype, at)


def _mean_variance(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x = given(inputs[0])
    axes = tuple(int(a) % x.rank for a in step.node.attributes.get_ints("axes", (0, 2, 3)) or ())
    mean, inverse = _moments(kernel, x, axes, 1e-18, lanes=False)
    kernel.schedule = Passes(("total", "spread"), x.dtype, kernel.work)
    return Lazy(x.shape, x.dtype, lambda *i: (x.at(*i) - mean.at(*i)) * inverse.at(*i))


def _unit_norm(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    """x over its L1 or L2 norm along an axis; a norm of 0 leaves zeros."""
    x = given(inputs[0])
    axis, power = integer(step.node, "axis", -1) % x.rank, integer(step.node, "p", 2)

    def term(*index: Expr) -> Expr:
        return let(x.at(*index), lambda v: tirx.abs(v) if power == 1 else v * v)

    total = along(kernel, x, (axis,), te.sum, term, "total")
    zero, one = constant(0, x.dtype), constant(1, x.dtype)

    def at(*index: Expr) -> Expr:
        norm = total.at(*index) if power == 1 else tirx.sqrt(total.at(*index))
        return x.at(*index) / let(norm, lambda n: tirx.Select(tirx.EQ(n, zero), one, n))

    return Lazy(x.shape, x.dtype, at)


def _local_response(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    """x / (bias + alpha/size·Σ x²)^beta, the sum over ``size`` neighbouring channels."""
    x, node = given(inputs[0]), step.node
    size, channels = integer(node, "size", 1), x.shape[1]
    alpha, beta, bias = (real(node, name, default) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    over, before = reduce_axis(size, "w"), (size - 1) // 2

    def squares(*index: Expr) -> Expr:
        c = simplify(index[1] + (over.var if size > 1 else 0) - before)
        value = x.at(index[0], c, *index[2:])
        inside = tirx.if_then_else(tirx.all(c >= 0, c < channels), value * value, constant(0, x.dtype))
        return te.sum(inside, axis=over) if size > 1 else inside

    total = kernel.stage(x.shape, squares, "acc")
    kernel.work += math.prod(x.shape) * size
    kernel.schedule = Reduction(int(size > 1), x.dtype, kernel.work)

    def at(*index: Expr) -> Expr:
        scale = constant(bias, x.dtype) + constant(alpha / size, x.dtype) * total.at(*index)
        return x.at(*index) / tirx.pow(scale, constant(beta, x.dtype))

    return Lazy(x.shape, x.dtype, at)


LOWERINGS: dict[str, Lowering] = {
    "Softmax": _softmax, "LogSoftmax": _softmax, "LayerNormalization": _layer_normalization,
    "InstanceNormalization": _instance_normalization, "LRN": _local_response, "GroupNormalization": _group_normalization,
    "LpNormalization": _unit_norm, "MeanVarianceNormalization": _mean_variance,
}  # fmt: skip
