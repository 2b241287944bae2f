"""A kernel under construction: what it reads, the loops (stages) it has so far, its constants and its schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from tvm import te

from gatewright.frontend.integer import Array
from gatewright.frontend.windows import Window

from .layout import ROW_MAJOR, Layout
from .lazy import Expr, Lazy, compute, constant, element
from .machine import Machine
from .steps import Value


class Schedule(Protocol):
    """How the loops of a kernel are ordered. A frozen dataclass, so that equal kernels with equal schedules are one."""

    def __call__(self, schedule: Any, machine: Machine) -> None:
        """Transform ``schedule`` (a tvm.s_tir.Schedule) in place. Blocks go by the names that ``stage`` gave; the result is "out"."""
        ...


@dataclass(frozen=True)
class Choice:
    """One way to make a kernel: an algorithm, and the sizes of its blocks in an order of the algorithm's own."""

    algorithm: str
    blocks: tuple[int, ...] = ()


Choose = Callable[[str, Sequence[Choice]], Choice]
"""Picks one of the candidates, the analytically best first, for a problem.

The problem's text holds all that decides speed: operator, shapes, dtypes, layout. Candidates may differ in speed, never in
what they read and write, nor in its layout.
"""


def first(problem: str, candidates: Sequence[Choice]) -> Choice:
    """The analytic choice."""
    return candidates[0]


@dataclass(frozen=True)
class Policy:
    """What the user asked of all kernels."""

    strict: bool = False
    """Only algorithms whose rounding error is that of the plain sum (no Winograd in floating point)."""
    choose: Choose = first


class Products(Protocol):
    """Sums of products, made for another kind of machine than a CPU."""

    def multiply(self, kernel: Kernel, a: Lazy, b: Lazy) -> Lazy:
        """a [..., M, K] · b [..., K, N] as numpy.matmul has it; int8 is summed in int32, all else in a's type."""
        ...

    def correlate(self, kernel: Kernel, x: Lazy, weight: Array, window: Window, groups: int, fill: int = 0) -> Lazy:
        """x [N, C, *spatial] with weight [M, C/group, *k] → [N, M, *out]; ``fill``: what the padding holds."""
        ...


@dataclass
class Kernel:
    """Built step by step by the lowerings in ``ops/``; ``codegen.py`` closes it with the store of its result."""

    machine: Machine
    layout: Layout = ROW_MAJOR
    """Of the result."""
    reads: dict[str, Any] = field(default_factory=dict)
    """Placeholders of the values that it reads, by value name."""
    parameters: list[tuple[Any, Array]] = field(default_factory=list)
    """Placeholders of its constants, and what they hold."""
    schedule: Schedule | None = None
    """Set by an anchor; None: elementwise loops."""
    work: int = 0
    """Multiply-adds or comparisons of its anchor: decides whether it is worth several cores."""
    policy: Policy = field(default_factory=Policy)
    rows: tuple[int, ...] = ()
    """Axes of a row, where its steps are passes over rows (fusion.py)."""
    products: Products | None = None
    """Who sums products where that is not done in panels and blocks of vectors: a GPU."""
    product: Any = None
    """What it made, for whoever closes the kernel."""

    def read(self, value: Value, layout: Layout) -> Lazy:
        """A value from memory."""
        if value.name not in self.reads:
            self.reads[value.name] = te.placeholder(layout.buffer_shape(value.shape), value.dtype, name=f"x{len(self.reads)}")
        tensor = self.reads[value.name]

        def at(*index: Expr) -> Expr:
            return element(tensor, layout.to_buffer(index))

        return Lazy(value.shape, value.dtype, at, plain=not layout.block, layout=layout)

    def parameter(self, array: Array) -> Lazy:
        """A constant tensor; one element becomes an immediate."""
        array = np.asarray(array)
        dtype = str(array.dtype)
        if array.size == 1:
            value = constant(array.reshape(-1)[0].item(), dtype)
            return Lazy(array.shape, dtype, lambda *index: value, value=array)
        return self.buffer(array)

    def buffer(self, array: Array) -> Lazy:
        """A constant that lies in memory even where it is one element: TVM cannot fold what it does not see.

        It becomes an argument of the kernel with its first use, so a weight that is only read to be packed is none.
        """
        array = np.asarray(array)

        def at(*index: Expr) -> Expr:
            return element(self._placeholder(array), index if array.shape else (0,))

        return Lazy(array.shape, str(array.dtype), at, plain=True, value=array)

    def _placeholder(self, array: Array) -> Any:
        for tensor, known in self.parameters:
            if known is array:
                return tensor
        tensor = te.placeholder(array.shape or (1,), str(array.dtype), name=f"p{len(self.parameters)}")
        self.parameters.append((tensor, array))
        return tensor

    def stage(self, shape: Sequence[int], body: Callable[..., Expr], name: str) -> Lazy:
        """Loops that fill a buffer of the kernel's own, called ``name`` for the schedule."""
        tensor = compute(shape, body, name)
        return Lazy(tuple(shape), str(tensor.dtype), lambda *index: element(tensor, index), plain=True)
