"""Reading optimized HLO: what multiplies in which types on the matrix unit, and what cores say to one another.

One instruction a line: ``%name = type[shape]{layout} opcode(%operand, …), attribute=…, metadata={op_name="jit(f)/node/…"}``. Operands
are named; their types stand where they are defined.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\w+\[[\d,]*\])\S* ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32,
         "s64": 64, "u64": 64, "f64": 64}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


@dataclass(frozen=True)
class Product:
    """A convolution or dot of the matrix unit; XLA for TPU writes every dot as a convolution."""

    scope: str
    """The node that it came from, by its mangled name."""
    operands: tuple[str, str]
    """HLO types."""
    precise: bool
    """Several passes per product: operand_precision high or highest."""
    macs: int
    """As compiled: with what padding and tiling add."""

    @property
    def unit(self) -> str:
        """int4, int8, bf16, or float32 in several passes."""
        kinds = set(self.operands)
        if kinds <= {"s4", "u4"}:
            return "int4"
        if kinds <= {"s4", "u4", "s8", "u8", "pred"}:
            return "int8"
        if kinds & {"s16", "u16", "s32", "u32", "s64", "u64"}:
            return "int32"
        return "float32" if self.precise or "f64" in kinds else "bf16"


@dataclass(frozen=True)
class Reading:
    """What was found in one module."""

    products: tuple[Product, ...]
    vectors: Mapping[str, str]
    """Scopes of products that became multiplications and sums on the vector unit (a matrix times one vector, as a rule): vector-int
    or vector-float."""
    collectives: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Kind to count and bytes: of the results, on one core, in one run."""

    def units(self) -> dict[str, str]:
        """By scope the unit that its products run on; the widest where there are several."""
        order = ("int4", "int8", "bf16", "float32", "int32")
        found: dict[str, str] = dict(self.vectors)
        for product in self.products:
            known = found.get(product.scope)
            if known is None or known not in order or order.index(product.unit) > order.index(known):
                found[product.scope] = product.unit
        return found


def read(text: str) -> Reading:
    """The whole module's text."""
    types: dict[str, tuple[str, tuple[int, ...]]] = {}
    lines = []
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        name, kind, opcode, rest = found.groups()
        if not kind.startswith("("):
            types[name] = _type(kind)
        lines.append((kind, opcode, rest))
    products: list[Product] = []
    vectors: dict[str, str] = {}
    counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for kind, opcode, rest in lines:
        scope = _scope(rest)
        if opcode in ("convolution", "dot"):
            products.append(_product(kind, opcode, rest, scope, types))
        elif opcode == "reduce" and scope and _is_product(rest):
            vectors[scope] = "vector-int" if _type(kind)[0].startswith(("s", "u")) else "vector-float"
        base = opcode.removesuffix("-start")
        if base in COLLECTIVES:
            count, size = counts[base]
            counts[base] = count + 1, size + _bytes(kind, opcode)
    return Reading(tuple(products), vectors, dict(counts))


def _type(text: str) -> tuple[str, tuple[int, ...]]:
    found = _SHAPE.match(text)
    assert found is not None
    return found[1], tuple(int(d) for d in found[2].split(",") if d)


def _scope(rest: str) -> str:
    """jit(f)/scope/primitive → scope."""
    found = re.search(r'op_name="([^"]*)"', rest)
    parts = found[1].split("/") if found else []
    return parts[1] if len(parts) > 2 else ""


def _is_product(rest: str) -> bool:
    return bool(re.search(r'op_name="[^"]*/(dot_general|conv_general_dilated)', rest))


def _product(kind: str, opcode: str, rest: str, scope: str, types: Mapping[str, tuple[str, tuple[int, ...]]]) -> Product:
    inside = rest.split(")", 1)[0]
    # Older texts repeat an operand's type before its name.
    names = _OPERAND.findall(inside) or [part.strip().split()[-1] for part in inside.split(",")]
    left, right = (types.get(name, ("f32", ())) for name in names[:2])
    _, output = _type(kind)
    macs = math.prod(output) * (_depth_of_convolution(rest, right[1]) if opcode == "convolution" else _depth_of_dot(rest, left[1]))
    precise = bool(re.search(r"operand_precision=\{[^}]*high", rest))
    return Product(scope, (left[0], right[0]), precise and "f32" in (left[0], right[0]), macs)


def _depth_of_convolution(rest: str, kernel: tuple[int, ...]) -> int:
    """Products per output: the kernel's positions and its input features (dim_labels b01f_01io->b01f: "i" of the kernel)."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", rest)
    if labels is None or len(labels[1]) != len(kernel):
        return 1
    return math.prod(size for label, size in zip(labels[1], kernel, strict=True) if label != "o")


def _depth_of_dot(rest: str, left: tuple[int, ...]) -> int:
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    return math.prod(left[int(a)] for a in axes[1].split(",") if a) if axes else 1


def _bytes(kind: str, opcode: str) -> int:
    """Of a collective's result; the -start form of some gives a tuple of operand and result."""
    sizes = [math.ceil(math.prod(int(d) for d in dims.split(",") if d) * _BITS.get(dtype, 32) / 8) for dtype, dims in _SHAPE.findall(kind)]
    if not sizes:
        return 0
    return max(sizes) if opcode.endswith("-start") and opcode != "all-reduce-start" else sum(sizes)
