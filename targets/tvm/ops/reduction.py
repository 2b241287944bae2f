"""Reductions over any axes, ArgMax and its kin, running sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from gatewright.frontend.queries import integer, reduce_axes

from ..kernel import Kernel
from ..lazy import Expr, Lazy, cast, compute, constant, converted, dtype_of, element, given, reduce_axis, simplify
from ..schedules.reduction import Reduction
from ..steps import Step
from . import Lowering
from .elementwise import absolute
from .functions import exp
from .rows import along, named
from .wholes import multiply, signed, unsigned

Combine = Callable[..., Any]


def lowest(dtype: str) -> Expr:
    """The identity of max."""
    return constant(-math.inf, dtype) if dtype.startswith("float") else tirx.min_value(dtype)


def highest(dtype: str) -> Expr:
    """The identity of min."""
    return constant(math.inf, dtype) if dtype.startswith("float") else tirx.max_value(dtype)


def reduced(kernel: Kernel, x: Lazy, axes: Sequence[int], combine: Combine, name: str = "acc") -> Lazy:
    """x reduced over ``axes``, which stay as axes of length 1; stored in the layout of the kernel's result."""
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    over = {a: reduce_axis(x.shape[a], f"r{a}") for a in axes if x.shape[a] > 1}
    layout = kernel.layout

    def body(*index: Expr) -> Expr:
        own = [over[a].var if a in over else i for a, i in enumerate(layout.to_logical(index))]
        value = x.at(*own)
        return combine(value, axis=list(over.values())) if over else value

    tensor = compute(layout.buffer_shape(shape), body, name)
    kernel.work += math.prod(x.shape)
    kernel.schedule = Reduction(len(over), x.dtype, kernel.work)
    return Lazy(shape, x.dtype, lambda *i: element(tensor, layout.to_buffer(i)))


def without(x: Lazy, axes: Sequence[int], shape: Sequence[int]) -> Lazy:
    """The same values without the reduced axes (or with them, if ``shape`` has them)."""
    if len(shape) == x.rank:
        return x
    kept = [a for a in range(x.rank) if a not in axes]

    def at(*index: Expr) -> Expr:
        full: list[Expr] = [0] * x.rank
        for axis, i in zip(kept, index, strict=True):
            full[axis] = i
        return x.at(*full)

    return Lazy(tuple(shape), x.dtype, at)


def mapped(x: Lazy, function: Callable[[Expr], Expr]) -> Lazy:
    return Lazy(x.shape, x.dtype, lambda *i: function(x.at(*i)))


_REDUCERS: dict[str, tuple[Callable[[Expr], Expr], Combine, Callable[[Expr, int], Expr]]] = {
    # before, the reduction, after (of the result and the number of values)
    "ReduceSum": (lambda v: v, te.sum, lambda v, n: v),
    "ReduceMean": (lambda v: v, te.sum, lambda v, n: tirx.Div(v, constant(n, dtype_of(v)))),
    "ReduceMax": (lambda v: v, te.max, lambda v, n: v),
    "ReduceMin": (lambda v: v, te.min, lambda v, n: v),
    "ReduceSumSquare": (lambda v: multiply(v, v), te.sum, lambda v, n: v),
    "ReduceL1": (absolute, te.sum, lambda v, n: v),
    "ReduceL2": (lambda v: v * v, te.sum, lambda v, n: tirx.sqrt(v)),
    "ReduceLogSum": (lambda v: v, te.sum, lambda v, n: tirx.log(v)),
}

_WIDE = {"ReduceMean": "int64", "ReduceL2": "float64", "ReduceLogSum": "float64", "ReduceLogSumExp": "float64"}
"""What whole numbers are reduced in, where that is not their own type: nothing overflows on the way, the result is cut towards zero."""


def _reduce(op: str) -> Lowering:
    def lower(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
        x, node = given(inputs[0]), step.node
        axes = reduce_axes(node, x.rank)
        assert axes is not None, "support.py refuses computed axes"
        if (wide := _WIDE.get(op)) and x.dtype in ("int32", "uint32", "int64", "uint64") and not x.dtype.endswith(wide):
            return converted(lower(kernel, step, [converted(x, wide), *inputs[1:]]), x.dtype)
        if op == "ReduceLogSumExp":
            peak = reduced(kernel, x, axes, te.max, "peak")
            shifted = Lazy(x.shape, x.dtype, lambda *i: exp(x.at(*i) - peak.at(*(0 if a in axes else v for a, v in enumerate(i)))))
            total = reduced(kernel, shifted, axes, te.sum)
            kernel.schedule = Reduction(sum(x.shape[a] > 1 for a in axes), x.dtype, kernel.work, ("peak",))
            result = Lazy(total.shape, x.dtype, lambda *i: tirx.log(total.at(*i)) + peak.at(*i))
            return without(result, axes, step.output.shape)
        count = math.prod(x.shape[a] for a in axes)
        if op == "ReduceProd":
            product = te.comm_reducer(lambda a, b: a * b, lambda dtype: constant(1, str(dtype)), name="prod")
            return without(signed(reduced(kernel, unsigned(x), axes, product), x.dtype), axes, step.output.shape)
        before, combine, after = _REDUCERS[op]
        if x.dtype == "bool":
            # Max of booleans is "any", min is "all"; TVM reduces integers.
            flags = Lazy(x.shape, "int8", lambda *i: cast(x.at(*i), "int8"))
            found = reduced(kernel, flags, axes, combine)
            return without(Lazy(found.shape, "bool", lambda *i: found.at(*i) != constant(0, "int8")), axes, step.output.shape)
        if kernel.rows:
            return mapped(along(kernel, x, axes, combine, mapped(x, before).at, named(kernel, "sum")), lambda v: after(v, count))
        if combine is te.sum:
            total = signed(reduced(kernel, unsigned(mapped(x, before)), axes, combine), x.dtype)
        else:
            total = reduced(kernel, mapped(x, before), axes, combine)
        return without(mapped(total, lambda v: after(v, count)), axes, step.output.shape)

    return lower


def _global(combine: Combine, mean: bool) -> Lowering:
    def lower(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
        x = given(inputs[0])
        axes = tuple(range(2, x.rank))
        total = reduced(kernel, x, axes, combine)
        count = math.prod(x.shape[2:])
        return mapped(total, lambda v: tirx.Div(v, constant(count, x.dtype))) if mean else total

    return lower


def _arg(largest: bool) -> Lowering:
    def lower(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
        x, node = given(inputs[0]), step.node
        axis = integer(node, "axis", 0) % x.rank
        last = integer(node, "select_last_index", 0) == 1
        return without(arg_extreme(kernel, x, axis, largest, last), (axis,), step.output.shape)

    return lower


def arg_extreme(kernel: Kernel, x: Lazy, axis: int, largest: bool, last: bool) -> Lazy:
    """Position of the extreme along ``axis`` (kept, length 1), int64; of equal ones the first, or the ``last``."""
    over = reduce_axis(x.shape[axis], "r")
    ends = lowest(x.dtype) if largest else highest(x.dtype)

    def better(a: Any, b: Any) -> Any:
        # (position, value) pairs; a comes first unless lanes are combined in another order, so positions decide ties.
        beats = a[1] > b[1] if largest else a[1] < b[1]
        earlier = a[0] > b[0] if last else a[0] < b[0]
        keep = tirx.Or(beats, tirx.And(tirx.EQ(a[1], b[1]), earlier))
        return tirx.Select(keep, a[0], b[0]), tirx.Select(keep, a[1], b[1])

    start = constant(-1 if last else x.shape[axis], "int64")
    reducer = te.comm_reducer(better, lambda *types: (start, ends), name="arg")
    shape = tuple(1 if a == axis else n for a, n in enumerate(x.shape))

    def body(*index: Any) -> Any:
        own = [over.var if a == axis else getattr(i, "var", i) for a, i in enumerate(index)]
        return reducer((cast(over.var, "int64"), x.at(*own)), axis=over)

    found = te.compute(shape, body, name="acc")[0]
    kernel.work += math.prod(x.shape)
    kernel.schedule = Reduction(1, x.dtype, kernel.work, decomposed=False)
    first, end = constant(0, "int64"), constant(x.shape[axis] - 1, "int64")
    # A row of nothing but not-a-number never beats the start, which lies outside.
    return Lazy(shape, "int64", lambda *i: tirx.Max(tirx.Min(element(found, i), end), first))


def _running_sum(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, axes, node = given(inputs[0]), given(inputs[1]).value, step.node
    assert axes is not None, "support.py refuses a computed axis"
    axis = int(axes.reshape(-1)[0]) % x.rank
    exclusive, backwards = integer(node, "exclusive", 0), integer(node, "reverse", 0)
    over = reduce_axis(x.shape[axis], "r")

    terms = unsigned(x)

    def body(*index: Expr) -> Expr:
        place = index[axis]
        ahead, behind = (over.var, place) if backwards else (place, over.var)
        counted = ahead > behind if exclusive else ahead >= behind
        own = [over.var if a == axis else i for a, i in enumerate(index)]
        return te.sum(tirx.if_then_else(counted, terms.at(*own), constant(0, terms.dtype)), axis=over)

    if x.shape[axis] == 1:
        return mapped(x, lambda v: constant(0, x.dtype)) if exclusive else x
    tensor = compute(x.shape, body, "acc")
    kernel.work += math.prod(x.shape) * x.shape[axis]
    kernel.schedule = Reduction(1, x.dtype, kernel.work)
    return signed(Lazy(x.shape, terms.dtype, lambda *i: element(tensor, tuple(simplify(v) for v in i))), x.dtype)


LOWERINGS: dict[str, Lowering] = {
    **{op: _reduce(op) for op in (*_REDUCERS, "ReduceLogSumExp", "ReduceProd")}, "ArgMax": _arg(True), "ArgMin": _arg(False),
    "CumSum": _running_sum, "GlobalAveragePool": _global(te.sum, True), "GlobalMaxPool": _global(te.max, False),
}  # fmt: skip
