"""Pieces of kernels that run several passes over a row: reductions in vectors, values kept for the next pass.

Each adds its stages to the kernel's ``Rows`` schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from ..kernel import Kernel
from ..lazy import Expr, Lazy, compute, element, reduce_axis
from ..schedules.rows import Kind, Rows, Stage

PASS = 4
"""What an element of a pass costs, in multiply-adds of a dense kernel."""

_BINARY: dict[Any, Callable[[Expr, Expr], Expr]] = {te.sum: lambda a, b: a + b, te.max: tirx.Max, te.min: tirx.Min}


def along(kernel: Kernel, x: Lazy, axes: Sequence[int], combine: Any, value: Callable[..., Expr], name: str, *, lanes: bool = True) -> Lazy:
    """``value`` of x's index, reduced over ``axes``; those stay as axes of length 1.

    Where the last axis is long and among them, in ``lanes``: partial results side by side, and those by pairs.
    """
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    last = x.rank - 1
    width = kernel.machine.lanes(_dtype(value, x))
    if lanes and last in axes and x.shape[last] >= 2 * width:
        return _in_lanes(kernel, x, axes, combine, value, name, width)
    over = {a: reduce_axis(x.shape[a], f"{name}{a}") for a in axes if x.shape[a] > 1}
    found = _reduced(shape, over, combine, value, name)
    _staged(kernel, x, axes, (name, "sum" if over else "one"))
    return Lazy(shape, str(found.dtype), lambda *i: element(found, [0 if a in axes else v for a, v in enumerate(i)]))


def row(kernel: Kernel, x: Lazy, axes: Sequence[int], value: Callable[..., Expr], name: str) -> Lazy:
    """``value`` of every index of x, kept for later passes over the row."""
    found = kernel.stage(x.shape, value, name)
    _staged(kernel, x, axes, (name, "row"))
    return found


def once(kernel: Kernel, x: Lazy, axes: Sequence[int], name: str) -> Lazy:
    """x, which has one value for each row along ``axes``, computed once and not at each of the row's positions."""
    found = kernel.stage(x.shape, lambda *i: x.at(*i), name)
    _staged(kernel, x, axes, (name, "one"))
    return Lazy(x.shape, found.dtype, lambda *i: found.at(*(0 if a in axes else v for a, v in enumerate(i))))


def kept(kernel: Kernel, x: Lazy) -> Lazy:
    """A value of a kernel with rows, stored for its later passes: all of a row, or the one that a row has."""
    if all(x.shape[axis] == 1 for axis in kernel.rows):
        return once(kernel, x, kernel.rows, named(kernel, "row"))
    return row(kernel, x, kernel.rows, x.at, named(kernel, "all"))


def named(kernel: Kernel, kind: str) -> str:
    """A name for the kernel's next stage."""
    return f"{kind}{len(kernel.schedule.stages) if isinstance(kernel.schedule, Rows) else 0}"


def _in_lanes(kernel: Kernel, x: Lazy, axes: Sequence[int], combine: Any, value: Callable[..., Expr], name: str, lanes: int) -> Lazy:
    shape, length = tuple(1 if a in axes else n for a, n in enumerate(x.shape)), x.shape[-1]
    width = next((w for w in (4 * lanes, 2 * lanes) if length % w == 0 and length > w), lanes)
    whole = length // width
    others = {a: reduce_axis(x.shape[a], f"{name}{a}") for a in axes if x.shape[a] > 1 and a != x.rank - 1}
    blocks = {x.rank - 1: reduce_axis(whole, f"{name}b")} if whole > 1 else {}
    step = blocks[x.rank - 1].var if blocks else 0

    def own(index: Sequence[Expr], place: Expr) -> list[Expr]:
        return [*(others[a].var if a in others else i for a, i in enumerate(index[:-1])), place]

    def partial(*index: Expr) -> Expr:
        term = value(*own(index, step * width + index[-1]))
        over = [*others.values(), *blocks.values()]
        return combine(term, axis=over) if over else term

    parts = compute((*shape[:-1], width), partial, f"{name}_lanes")
    _staged(kernel, x, axes, (f"{name}_lanes", "lanes"))
    rest = length - whole * width
    tail = None
    if rest:
        ends = {**others, x.rank - 1: reduce_axis(rest, f"{name}r")} if rest > 1 else others
        place = whole * width + (ends[x.rank - 1].var if rest > 1 else 0)

        def remaining(*index: Expr) -> Expr:
            term = value(*own(index, place))
            return combine(term, axis=list(ends.values())) if ends else term

        tail = compute(shape, remaining, f"{name}_rest")
        _staged(kernel, x, axes, (f"{name}_rest", "sum" if ends else "one"))

    def total(*index: Expr) -> Expr:
        terms = [element(parts, (*index[:-1], lane)) for lane in range(width)]
        while len(terms) > 1:
            # The second half onto the first, as vectors would be added.
            half = len(terms) // 2
            terms = [_BINARY[combine](terms[i], terms[i + half]) for i in range(half)]
        return terms[0] if tail is None else _BINARY[combine](terms[0], element(tail, index))

    found = kernel.stage(shape, total, name)
    _staged(kernel, x, axes, (name, "one"))
    return Lazy(shape, found.dtype, lambda *i: found.at(*(0 if a in axes else v for a, v in enumerate(i))))


def _reduced(shape: tuple[int, ...], over: dict[int, Any], combine: Any, value: Callable[..., Expr], name: str) -> Any:
    def body(*index: Expr) -> Expr:
        own = [over[a].var if a in over else i for a, i in enumerate(index)]
        return combine(value(*own), axis=list(over.values())) if over else value(*own)

    return compute(shape, body, name)


def _dtype(value: Callable[..., Expr], x: Lazy) -> str:
    return str(value(*(tirx.const(0, "int32") for _ in x.shape)).ty)


def _staged(kernel: Kernel, x: Lazy, axes: Sequence[int], stage: tuple[str, Kind]) -> None:
    before = kernel.schedule.stages if isinstance(kernel.schedule, Rows) else ()
    kernel.work += math.prod(x.shape) * PASS
    kernel.schedule = Rows(tuple(axes), (*before, Stage(*stage)), kernel.work)
