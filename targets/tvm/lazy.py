"""Lazy tensors: a value as a function from its index to an expression. What fuses, fuses by calling one inside another.

An elementwise or a data-moving operator on lazy tensors gives a lazy tensor and no loop. Loops appear only where a
kernel stores something (``kernel.py``). Index expressions are simplified at once under the known ranges of the loop
variables, so that ``(c·16 + i) // 16`` is ``c`` before any schedule looks at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from tvm import te, tirx
from tvm.ir import Range
from tvm.sym import Analyzer

from .few_bits import FewBits

Array = NDArray[Any]
Expr = Any
"""A TVM expression (tvm is untyped)."""

_analyzer = Analyzer()


def simplify(index: Expr) -> Expr:
    """An index expression, simplified under the ranges of all loop variables made by ``compute``."""
    if isinstance(index, int):
        return index
    try:
        return _analyzer.simplify(index)
    except TypeError:
        # An index that was itself read from a tensor (Gather): the analyzer cannot compare such reads.
        return index


def quotient(index: Expr, divisor: int) -> Expr:
    """``index // divisor``, of an index that may be shifted or run backwards; see ``remainder``."""
    up, down, shift = _terms(index)
    if down is None and not shift % divisor:
        return tirx.floordiv(index, divisor)
    whole = shift // divisor
    if up is not None:
        whole = tirx.floordiv(up, divisor) + whole
    if down is not None:
        whole = whole - tirx.floordiv(down, divisor)
    return whole + _carry(up, down, shift, divisor)[0]


def remainder(index: Expr, divisor: int) -> Expr:
    """``index % divisor``, of an index that may be shifted or run backwards.

    A choice between values, because of two defects of TVM's. When it flattens a buffer's indices and one of them is the remainder of a
    shifted loop, ``x[f // 12 % 3, (f % 12 + 3) % 6]``, it shifts the loop for all of them, and reads ``x[(f + 3) // 12 % 3, (f + 3) % 6]``.
    And of a loop that runs backwards it forgets the start: ``x[(2 - i) % 3]`` reads ``x[-i % 3]``.
    """
    up, down, shift = _terms(index)
    if down is None and not shift % divisor:
        return tirx.floormod(index, divisor)
    return _carry(up, down, shift, divisor)[1]


def _carry(up: Expr | None, down: Expr | None, shift: int, divisor: int) -> tuple[Expr, Expr]:
    """What the remainders of the terms carry over to their quotients, and the remainder of their sum: no division but of what ascends."""
    place = shift % divisor
    if up is not None:
        place = tirx.floormod(up, divisor) + place
    if down is not None:
        place = place - tirx.floormod(down, divisor)
    carry: Expr = tirx.const(0, "int32")
    found = place
    if up is not None:
        carry, found = tirx.Select(place >= divisor, 1, carry), tirx.Select(place >= divisor, place - divisor, found)
    if down is not None:
        carry, found = tirx.Select(place < 0, -1, carry), tirx.Select(place < 0, place + divisor, found)
    return carry, found


def _terms(index: Expr) -> tuple[Expr | None, Expr | None, int]:
    """An index as what is added to it, what is taken off, and a number."""
    up: list[Expr] = []
    down: list[Expr] = []
    shift = 0
    waiting = [(simplify(index), True)]
    while waiting:
        term, is_added = waiting.pop()
        if isinstance(term, int | tirx.IntImm):
            shift += int(term) if is_added else -int(term)
        elif isinstance(term, tirx.Add | tirx.Sub):
            waiting += [(term.b, is_added == isinstance(term, tirx.Add)), (term.a, is_added)]
        elif isinstance(term, tirx.Mul) and isinstance(term.b, tirx.IntImm) and int(term.b) < 0:
            waiting.append((term.a * -int(term.b), not is_added))
        else:
            (up if is_added else down).append(term)
    return _sum(up), _sum(down), shift


def _sum(terms: list[Expr]) -> Expr | None:
    if not terms:
        return None
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@dataclass(frozen=True)
class Lazy:
    """A tensor of ``shape`` and TVM ``dtype``; ``at(*index)`` is the expression of one element."""

    shape: tuple[int, ...]
    dtype: str
    at: Callable[..., Expr]
    plain: bool = False
    """True where ``at`` is one load from a row-major buffer at the same index."""
    layout: Any = None
    """The Layout of the buffer that ``at`` loads from; None where it computes."""
    value: Array | None = None
    """The elements where they are constant."""
    few_bits: FewBits | None = None
    """What a constant was dequantized from."""

    @property
    def rank(self) -> int:
        return len(self.shape)


def compute(shape: Sequence[int], body: Callable[..., Expr], name: str) -> Any:
    """``te.compute`` over ``shape``, whose index ranges are known to ``simplify``; the index of a unit axis is 0."""

    def bound(*axes: Any) -> Expr:
        index: list[Expr] = []
        for axis, extent in zip(axes, shape, strict=True):
            variable = getattr(axis, "var", axis)
            if extent == 1:
                index.append(tirx.const(0, "int32"))
                continue
            _analyzer.bind(variable, Range(0, extent))
            index.append(variable)
        return body(*index)

    return te.compute(tuple(shape), bound, name=name)


def reduce_axis(extent: int, name: str) -> Any:
    """A reduction axis whose range is known to ``simplify``."""
    axis = te.reduce_axis((0, extent), name=name)
    _analyzer.bind(axis.var, Range(0, extent))
    return axis


def of_tensor(tensor: Any, dtype: str | None = None) -> Lazy:
    """A te.Tensor as a lazy tensor of its own shape."""
    shape = tuple(int(d) for d in tensor.shape)
    return Lazy(shape, dtype or str(tensor.dtype), lambda *index: element(tensor, index), plain=True)


def broadcast_index(index: Sequence[Expr], shape: Sequence[int]) -> tuple[Expr, ...]:
    """The index into a tensor of ``shape`` that numpy's broadcasting gives for an index of the result."""
    own = index[len(index) - len(shape) :]
    return tuple(tirx.const(0, "int32") if extent == 1 else i for i, extent in zip(own, shape, strict=True))


def elementwise(body: Callable[..., Expr], inputs: Sequence[Lazy], shape: Sequence[int], dtype: str) -> Lazy:
    """``body`` of the inputs' elements, broadcast to ``shape``."""
    return Lazy(tuple(shape), dtype, lambda *index: body(*(x.at(*broadcast_index(index, x.shape)) for x in inputs)))


def converted(x: Lazy, dtype: str) -> Lazy:
    """x in another type; no longer plain, so that who reads it often copies it once."""
    return Lazy(x.shape, dtype, lambda *index: cast(x.at(*index), dtype), value=None if x.value is None else x.value.astype(dtype))


def given(x: Lazy | None) -> Lazy:
    """An input that the operator requires."""
    assert x is not None, "the ONNX checker refuses a node without it"
    return x


def dtype_of(value: Expr) -> str:
    """TVM's name of an expression's type."""
    return str(value.ty)


def cast(value: Expr, dtype: str) -> Expr:
    """A conversion, left out where nothing changes."""
    return value if dtype_of(value) == dtype else tirx.Cast(dtype, value)


MASK = 0x5EED5EED
"""Laid over bits before they are read as another type, and taken off after it: TVM has no code for the bits of what turns out to be the
constant 0. LLVM takes both away."""


def let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """``body`` of ``value`` computed once.

    An expression used twice is otherwise two copies, copies of copies grow without end, and TVM refuses a copy that holds a
    ``let`` of its own: whoever uses an argument more than once takes it through here.
    """
    if isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm):
        return body(value)
    dtype = dtype_of(value)
    if dtype.startswith("float"):
        variable = tirx.Var("t", dtype)
        return tirx.Let(variable, value, body(variable))
    # TVM infers the bounds of an integer variable, and fails where two copies of an unrolled loop give it two bounds; of the
    # same bits under a float type it infers none.
    wide, carrier = (dtype, "float64") if dtype in ("int64", "uint64") else ("int32", "float32")
    variable, mask = tirx.Var("t", carrier), constant(MASK, wide)
    held = tirx.reinterpret(carrier, tirx.bitwise_xor(cast(value, wide), mask))
    return tirx.Let(variable, held, body(cast(tirx.bitwise_xor(tirx.reinterpret(wide, variable), mask), dtype)))


def clamp(x: Expr, low: Expr | None, high: Expr | None) -> Expr:
    """x within low … high; not-a-number stays what it is (TVM's own max and min would make it the bound)."""
    if not dtype_of(x).startswith("float"):
        x = x if low is None else tirx.Max(x, low)
        return x if high is None else tirx.Min(x, high)

    if low is not None:
        x = let(low, lambda bound: let(x, lambda v: tirx.Select(v < bound, bound, v)))
    return x if high is None else let(high, lambda bound: let(x, lambda v: tirx.Select(v > bound, bound, v)))


def element(tensor: Any, index: Sequence[Expr]) -> Expr:
    """One element of a te.Tensor as an expression."""
    return tensor[tuple(index)].asobject()


def constant(value: float | int | bool, dtype: str) -> Expr:
    return tirx.const(value, dtype)
