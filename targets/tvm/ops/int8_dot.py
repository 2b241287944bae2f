"""Dot-product instructions in expressions: 32-bit lanes that each take the products of four bytes or two 16-bit integers.

A *word* is an int32 whose bits are four 8-bit or two 16-bit integers. ``Dot.sum`` reduces dot(activations' word, weights' word);
once its lanes are vectors, LowerIntrin turns each step into the instruction (TVM would not find it in products of bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import tvm
from tvm import te, tirx

from ..lazy import Expr, Lazy, cast, constant, dtype_of
from ..machine import Machine

_PURE = 1
"""TCallEffectKind: reads nothing, writes nothing."""


@dataclass(frozen=True)
class Dot:
    """An instruction. Bytes: activations unsigned (x86) or signed (Arm), weights signed. Otherwise both are int16."""

    name: str
    intrinsic: str
    lanes: int
    """int32 lanes of one register."""
    group: int
    """Products per lane: 4 of bytes or 2 of int16."""
    signed: bool = True
    """Whether the activations are read as signed."""
    accumulates: bool = True
    """False where the instruction gives the sum of products and an addition has to follow."""

    @property
    def stored(self) -> str:
        """The type that activations are read as."""
        return "int16" if self.group == 2 else "int8" if self.signed else "uint8"

    def sum(self, activations: Expr, weights: Expr, axes: Sequence[Any]) -> Expr:
        """The te reduction of dot(activations, weights), both int32 words, over ``axes`` (none: the one product)."""
        product = tirx.call_intrin("int32", f"gatewright.{self.name}", activations, weights)
        if not axes:
            return tirx.call_intrin("int32", f"gatewright.{self.name}.into", constant(0, "int32"), product)
        return _reducer(self.name)(product, axis=list(axes))


DOTS = (
    Dot("vpdpbusd512", "llvm.x86.avx512.vpdpbusd.512", 16, 4, signed=False),
    Dot("vpdpbusd256", "llvm.x86.avx512.vpdpbusd.256", 8, 4, signed=False),
    Dot("sdot", "llvm.aarch64.neon.sdot", 4, 4),
    Dot("vpdpwssd512", "llvm.x86.avx512.vpdpwssd.512", 16, 2),
    Dot("vpdpwssd256", "llvm.x86.avx512.vpdpwssd.256", 8, 2),
    Dot("vpmaddwd512", "llvm.x86.avx512.pmaddw.d.512", 16, 2, accumulates=False),
    Dot("vpmaddwd256", "llvm.x86.avx2.pmadd.wd", 8, 2, accumulates=False),
    Dot("pmaddwd128", "llvm.x86.sse2.pmadd.wd", 4, 2, accumulates=False),
)

_NEEDS: dict[str, frozenset[str]] = {
    "vpdpbusd512": frozenset({"avx512vnni", "avx512f"}), "vpdpbusd256": frozenset({"avx512vnni", "avx512vl"}),
    "vpdpwssd512": frozenset({"avx512vnni", "avx512f"}), "vpdpwssd256": frozenset({"avx512vnni", "avx512vl"}),
    "vpmaddwd512": frozenset({"avx512bw"}), "vpmaddwd256": frozenset({"avx2"}), "pmaddwd128": frozenset({"x86_64"}),
    "sdot": frozenset({"dotprod", "aarch64"}),
}  # fmt: skip
_ALSO = {"vpdpbusd256": frozenset({"avxvnni"}), "vpdpwssd256": frozenset({"avxvnni"})}
"""Another set of features that has the instruction."""


def dot_of(machine: Machine, lanes: int, group: int | None = None) -> Dot | None:
    """The device's best instruction whose registers divide a block of ``lanes`` outputs, of ``group`` products if that is given."""
    register = machine.lanes("int32")
    for dot in DOTS:
        has = _NEEDS[dot.name] <= machine.isa or _ALSO.get(dot.name, frozenset({"?"})) <= machine.isa
        if has and dot.lanes <= register and lanes % dot.lanes == 0 and group in (None, dot.group):
            register_operators()
            return dot
    return None


def word(first: Expr, last: Expr) -> Expr:
    """The int32 that starts at the element ``first`` of a buffer and ends with ``last``, four bytes or two 16-bit integers further."""
    return tirx.call_intrin("int32", "gatewright.word", first, last)


def widened(pair: Expr) -> Expr:
    """Two int8 in an int16 → two int16 in an int32."""
    return tirx.call_intrin("int32", "gatewright.widened", pair)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a·b + c, rounded once; the device has the instruction."""
    return tirx.call_intrin(dtype_of(c), "gatewright.fma", a, b, c)


def lookup(machine: Machine, table: Lazy, index: Expr) -> Expr:
    """table[index] for a table of 256 bytes in memory and an index of 8 bits, in registers where the device can permute so many."""
    if "avx512vbmi" not in machine.isa:
        return table.at(cast(index, "int32"))
    register_operators()
    return tirx.call_intrin(table.dtype, "gatewright.lookup", table.at(constant(0, "int32")), table.at(constant(255, "int32")), index)


@cache
def register_operators() -> None:
    """Make the operators of this file known to TVM; idempotent."""
    from tvm.ir import _ffi_api

    def register(name: str, inputs: int, lower: Callable[[Any], Expr] | None, vectors: bool = True) -> None:
        _ffi_api.RegisterOp(name, "")
        operator = tvm.ir.Op.get(name)
        operator.set_num_inputs(inputs)
        operator.set_attr("TCallEffectKind", _PURE)
        if vectors:
            operator.set_attr("TVectorizable", True)
        if lower is not None:
            tirx.register_intrin_lowering(name, target="llvm", f=lower, level=99)

    # Activations that all lanes share stay one scalar load that is broadcast.
    register("gatewright.word", 2, _lower_word, vectors=False)
    register("gatewright.widened", 1, _lower_widened)
    register("gatewright.fma", 3, lambda call: tirx.call_llvm_pure_intrin(dtype_of(call), "llvm.fma", *call.args))
    register("gatewright.lookup", 3, _lower_lookup)
    for dot in DOTS:
        register(f"gatewright.{dot.name}", 2, None)
        register(f"gatewright.{dot.name}.into", 2, partial(_lower_into, dot))


@cache
def _reducer(name: str) -> Callable[..., Expr]:
    reducer: Callable[..., Expr] = te.comm_reducer(
        lambda total, product: tirx.call_intrin("int32", f"gatewright.{name}.into", total, product), lambda dtype: constant(0, dtype)
    )
    return reducer


def _lower_word(call: Any) -> Expr:
    first = call.args[0]
    *lead, position = first.indices
    count = 32 // int("".join(filter(str.isdigit, dtype_of(first))))
    return tirx.reinterpret("int32", tirx.BufferLoad(first.source, [*lead, tirx.Ramp(position, 1, count)]))


def _lower_widened(call: Any) -> Expr:
    (pair,) = call.args
    lanes = _lanes(pair)
    return tirx.reinterpret(dtype_of(call), tirx.Cast(f"int16x{2 * lanes}", tirx.reinterpret(f"int8x{2 * lanes}", pair)))


def _lower_into(dot: Dot, call: Any) -> Expr:
    total, product = call.args
    assert _lanes(call) == dot.lanes, "the schedule cuts lanes into registers"
    kind = f"int{32 // dot.group}x{dot.group * dot.lanes}"
    operands = [tirx.reinterpret(kind, operand) for operand in product.args]
    result = dtype_of(call)
    if dot.accumulates:
        return tirx.call_llvm_pure_intrin(result, dot.intrinsic, total, *operands)
    return total + tirx.call_llvm_pure_intrin(result, dot.intrinsic, *operands)


def _lower_lookup(call: Any) -> Expr:
    """Four registers of 64 entries: two permutations of 128 entries by the low seven bits, and the choice between them by the eighth."""
    first, _, index = call.args
    lanes, kind = _lanes(index), dtype_of(call).split("x")[0]
    source = (first.value if isinstance(first, tirx.Broadcast) else first).source
    if lanes not in (4, 8, 16, 32, 64):
        return tirx.BufferLoad(source, [cast(index, "int32" if lanes == 1 else f"int32x{lanes}")])
    bits = tirx.reinterpret(f"int8x{lanes}", index)
    wide = bits if lanes == 64 else tirx.Shuffle([bits] * (64 // lanes), list(range(64)))
    parts = [tirx.reinterpret("int8x64", tirx.BufferLoad(source, [tirx.Ramp(64 * i, 1, 64)])) for i in range(4)]
    low, high = (tirx.call_llvm_pure_intrin("int8x64", "llvm.x86.avx512.vpermi2var.qi.512", a, wide, b) for a, b in (parts[:2], parts[2:]))
    found = tirx.Select(wide < tirx.Broadcast(constant(0, "int8"), 64), high, low)
    return tirx.reinterpret(f"{kind}x{lanes}", found if lanes == 64 else tirx.Shuffle([found], list(range(lanes))))


def _lanes(value: Expr) -> int:
    _, _, lanes = dtype_of(value).partition("x")
    return int(lanes or 1)


def stored(dot: Dot, x: Expr, zero: int) -> Expr:
    """An 8-bit activation as the instruction reads it: the byte, its sign bit flipped where it wants the other kind; or int16, less z."""
    if dot.group == 2:
        return cast(x, "int16") - constant(zero, "int16") if zero else cast(x, "int16")
    if dtype_of(x) == dot.stored:
        return x
    return tirx.bitwise_xor(cast(x, dot.stored), constant(-128 if dot.signed else 128, dot.stored))


def stored_zero(dot: Dot, dtype: str, zero: int) -> int:
    """What ``stored`` makes of the zero point: what padding holds, and the sum of weights is multiplied by to correct a sum."""
    if dot.group == 2:
        return 0
    if dtype == dot.stored:
        return zero
    return zero - 128 if dot.signed else zero + 128
