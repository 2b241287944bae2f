"""Matrix products: a packed constant on the right (Gemm, dense MatMul), or two computed operands (attention).

The right-hand side lies in panels of ``width`` columns, [N/width, K, width], so that the inner loop reads it in order.
A constant is packed at compile time, a computed one by a loop of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import te, tirx

from gatewright.frontend.integer import Array

from ..few_bits import FewBits, stays
from ..kernel import Choice, Kernel
from ..lazy import Expr, Lazy, cast, compute, constant, element, given, reduce_axis, simplify
from ..machine import Machine
from ..schedules.common import largest_divisor
from ..schedules.matmul import GroupedMatmul, PackedMatmul
from ..steps import Step
from . import Lowering
from .movement import reshaped

Panel = Callable[[Sequence[Expr], Expr, Expr, Expr], Expr]
"""The right-hand side's element: batch index, panel, k, column in the panel."""

PANELS = (64, 32, 16, 8, 4, 2)


def panel_width(rows: int, columns: int, lanes: int) -> int:
    """Columns per panel: wide where there is one row and so one panel's columns are all the parallelism there is within a core."""
    widest = 4 * lanes if rows < 4 else 2 * lanes
    fitting = [w for w in PANELS if w <= widest]
    for width in fitting:
        if columns % width == 0 and width >= lanes:
            return width
    # Padded: the smallest panel that holds a narrow matrix, else two registers.
    return next((w for w in reversed(fitting) if w >= columns), fitting[0] if rows < 4 else min(fitting[0], 2 * lanes))


def blocks(rows: int, columns: int, dtype: str, machine: Machine) -> tuple[Choice, ...]:
    """Rows and columns of the register block: what fits the registers, the most useful first, then those that measuring may prefer."""
    lanes = machine.lanes(dtype)
    width = panel_width(rows, columns, lanes)
    found = [(row_tile(rows, width, lanes, machine), width)]
    if rows >= 4 and width == 2 * lanes:
        wider = (w for w in (3 * lanes, 4 * lanes, lanes) if columns % w == 0)
        found += [(tile, w) for w in wider if rows % (tile := row_tile(rows, w, lanes, machine)) == 0]
        found += [(tile, width) for tile in (machine.vector_registers // 2 - 2, 6) if rows % tile == 0]
    return tuple(Choice("packed panels", block) for block in dict.fromkeys(found))


def row_tile(rows: int, width: int, lanes: int, machine: Machine) -> int:
    """Rows of a register block ``width`` wide: the most that divide all rows, or as many as there are registers."""
    most = max(1, (machine.vector_registers - 4) // max(1, width // lanes))
    tile = largest_divisor(rows, most)
    return tile if tile >= 3 or rows < 3 else min(rows, most)


def by_constant(kernel: Kernel, x: Lazy, weight: Array, dtype: str) -> Lazy:
    """x [..., K] · weight [K, N] → [..., N], summed in ``dtype``. Integer weights stay as narrow as they are where rows are few."""
    if kernel.products is not None:
        return kernel.products.multiply(kernel, x, kernel.buffer(weight.astype(dtype)))
    depth, columns = weight.shape
    rows = math.prod(x.shape[:-1])
    text = f"product {dtype} of {rows}x{depth} by {weight.dtype} {depth}x{columns}, left {'as it lies' if x.plain else 'copied'}"
    tile, width = kernel.policy.choose(text, blocks(rows, columns, dtype, kernel.machine)).blocks
    panel = kernel.buffer(_panels(weight, width, _stored(weight, dtype, rows)))
    shape = (*x.shape[:-1], columns)
    return _product(kernel, x, lambda batch, p, k, i: cast(panel.at(p, k, i), dtype), shape, depth, (tile, width), dtype)


def by_few_bits(kernel: Kernel, x: Lazy, weight: FewBits, dtype: str) -> Lazy:
    """x [..., K] · what ``weight`` [K, N] stands for → [..., N]: the integers stay packed in memory and become floats in registers.

    Two inputs of an output share a byte where 4 bits hold them, the first one low, each larger by 8 than it is. The products of a group
    are summed before their scale multiplies them once.
    """
    depth, columns = weight.integers.shape
    rows = math.prod(x.shape[:-1])
    left = "as it lies" if x.plain else "copied"
    text = f"product {dtype} of {rows}x{depth} by {weight.bits} bits {depth}x{columns}, a scale for {weight.group}, left {left}"
    _, width = kernel.policy.choose(text, blocks(rows, columns, dtype, kernel.machine)).blocks
    scales = kernel.buffer(_panels(weight.scales.astype(dtype), width, dtype))
    whole = _panels(weight.integers, width, "int8")
    half = weight.bits == 4
    stored = kernel.buffer(((whole[:, 0::2] + 8) | ((whole[:, 1::2] + 8) << 4)).astype(np.uint8) if half else whole)

    shift = 8 if half else 0
    copied = not x.plain
    if copied:
        source = x
        x = kernel.stage(source.shape, lambda *i: source.at(*i), "left")

    def integer(p: Expr, k: Expr, i: Expr) -> Expr:
        """In 4 bits larger by 8, so that unpacking it is one mask or shift; ``total`` makes up for it."""
        q = cast(stored.at(p, simplify(tirx.floordiv(k, 2)) if half else k, i), "int32")
        return cast(tirx.shift_right(q, 4 * simplify(tirx.floormod(k, 2))) & 15 if half else q, dtype)

    lead, group, count, panels = x.shape[:-1], weight.group, depth // weight.group, -(-columns // width)
    inner, outer = reduce_axis(group, "k"), reduce_axis(count, "g") if count > 1 else None

    def term(*index: Expr) -> Expr:
        *own, p, g, i = index
        k = simplify(g * group + inner.var)
        return te.sum(x.at(*own, k) * integer(p, k, i), axis=inner)

    sums = compute((*lead, panels, count, width), term, "sums")
    each = reduce_axis(group, "k")
    totals = compute((*lead, count), lambda *i: te.sum(x.at(*i[:-1], simplify(i[-1] * group + each.var)), axis=each), "totals")

    def scaled(*index: Expr) -> Expr:
        *own, p, i = index
        g = 0 if outer is None else outer.var
        product = element(sums, (*own, p, g, i))
        if shift:
            product = product - element(totals, (*own, g)) * constant(shift, dtype)
        product = product * scales.at(p, g, i)
        return product if outer is None else te.sum(product, axis=outer)

    tensor = compute((*lead, panels, width), scaled, "acc")
    whole = panels * width == columns
    if not whole:
        narrow = tensor
        tensor = compute((*lead, panels, width), lambda *i: element(narrow, i), "full")
    kernel.work += rows * columns * depth
    kernel.schedule = GroupedMatmul(
        lead, panels, width, group, count, dtype, copied=copied, shifted=bool(shift), whole=whole, work=kernel.work
    )  # fmt: skip

    def at(*index: Expr) -> Expr:
        *own, column = index
        return element(tensor, (*own, simplify(tirx.floordiv(column, width)), simplify(tirx.floormod(column, width))))

    return Lazy((*lead, columns), dtype, at)


def _panels(weight: Array, width: int, dtype: str) -> Array:
    """[K, N] → [N / width, K, width], zeros behind the last column."""
    depth, columns = weight.shape
    panels = -(-columns // width)
    wide = np.zeros((depth, panels * width), dtype)
    wide[:, :columns] = weight
    return np.ascontiguousarray(wide.reshape(depth, panels, width).transpose(1, 0, 2))


def _stored(weight: Array, dtype: str, rows: int) -> str:
    """Few rows read each weight once or twice, so the bytes count; many rows reuse it, so converting it counts."""
    if np.issubdtype(weight.dtype, np.integer) and rows < 4:
        for narrow in ("int8", "int16"):
            if np.can_cast(np.min_scalar_type(int(weight.min(initial=0))), narrow) and weight.max(initial=0) <= np.iinfo(narrow).max:
                return narrow
    return dtype


def of_two(kernel: Kernel, a: Lazy, b: Lazy) -> Lazy:
    """a [..., M, K] · b [..., K, N] as numpy.matmul has it: batch axes broadcast."""
    if kernel.products is not None:
        return kernel.products.multiply(kernel, a, b)
    dtype = a.dtype
    left = a if a.rank > 1 else reshaped(a, (1, *a.shape))
    right = b if b.rank > 1 else reshaped(b, (*b.shape, 1))
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    rows, depth, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    text = f"product {dtype} of {'x'.join(map(str, left.shape))} by {'x'.join(map(str, right.shape))}, both computed"
    tile, width = kernel.policy.choose(text, blocks(rows, columns, dtype, kernel.machine)).blocks
    panels = -(-columns // width)

    def pack(*index: Expr) -> Expr:
        *lead, p, k, i = index
        column = simplify(p * width + i)
        value = right.at(*lead, k, column)
        if panels * width == columns:
            return value
        return tirx.if_then_else(column < columns, right.at(*lead, k, tirx.Min(column, columns - 1)), constant(0, dtype))

    packed = kernel.stage((*right.shape[:-2], panels, depth, width), pack, "pack")

    def panel(lead: Sequence[Expr], p: Expr, k: Expr, i: Expr) -> Expr:
        own = lead[len(lead) - (right.rank - 2) :] if right.rank > 2 else []
        return packed.at(*(0 if n == 1 else v for v, n in zip(own, right.shape[:-2], strict=True)), p, k, i)

    spread = Lazy((*batch, rows, depth), dtype, lambda *i: left.at(*_spread(i[:-2], left.shape[:-2]), *i[-2:]), plain=left.plain)
    product = _product(kernel, spread, panel, (*batch, rows, columns), depth, (tile, width), dtype, packs=True)
    shape = (*batch, *((rows,) if a.rank > 1 else ()), *((columns,) if b.rank > 1 else ()))
    return product if shape == product.shape else reshaped(product, shape)


def _spread(index: Sequence[Expr], shape: Sequence[int]) -> list[Expr]:
    own = index[len(index) - len(shape) :]
    return [0 if n == 1 else i for i, n in zip(own, shape, strict=True)]


def _product(
    kernel: Kernel, x: Lazy, panel: Panel, shape: tuple[int, ...], depth: int, block: tuple[int, int], dtype: str, packs: bool = False
) -> Lazy:
    """The sum over ``depth``; the result's last axis is cut into panels while it is summed. ``block``: rows, and columns of a panel."""
    columns, (tile, width) = shape[-1], block
    copied = not x.plain
    if copied:
        source = x
        x = kernel.stage(source.shape, lambda *i: source.at(*i), "left")
    # A sum of one term is no sum: TVM's schedules lose axes of length 1.
    k = reduce_axis(depth, "k") if depth > 1 else None
    step = 0 if k is None else k.var
    lead, panels = shape[:-1], -(-columns // width)

    def term(*index: Expr) -> Expr:
        *rows, p, i = index
        product = x.at(*rows, step) * panel(rows[:-1], p, step, i)
        return product if k is None else te.sum(product, axis=k)

    tensor = compute((*lead, panels, width), term, "acc")
    whole = panels * width == columns
    if not whole:
        inner = tensor
        tensor = compute((*lead, panels, width), lambda *i: element(inner, i), "full")
    rows = math.prod(lead)
    kernel.work += rows * columns * depth
    kernel.schedule = PackedMatmul(lead, panels, tile, width, depth, dtype, copied=copied, packs=packs, whole=whole, work=kernel.work)

    def at(*index: Expr) -> Expr:
        *own, column = index
        return element(tensor, (*own, simplify(tirx.floordiv(column, width)), simplify(tirx.floormod(column, width))))

    return Lazy(shape, dtype, at)


def _matmul(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    a, b = map(given, inputs[:2])
    return _by_weight(kernel, a, b) if b.value is not None and b.rank == 2 and a.rank >= 2 else of_two(kernel, a, b)


def _by_weight(kernel: Kernel, x: Lazy, weight: Lazy) -> Lazy:
    """``weight``: a constant matrix."""
    assert weight.value is not None
    if kernel.products is None and weight.few_bits is not None and stays(math.prod(x.shape[:-1]), weight.shape):
        return by_few_bits(kernel, x, weight.few_bits, x.dtype)
    return by_constant(kernel, x, weight.value, x.dtype)


def _gemm(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    a, b, node = given(inputs[0]), given(inputs[1]), step.node
    c = inputs[2] if len(inputs) > 2 else None
    alpha, beta = (float(node.attributes.get_float(name, 1.0) or 0.0) for name in ("alpha", "beta"))
    if node.attributes.get_int("transA", 0):
        left = a
        a = Lazy(left.shape[::-1], left.dtype, lambda i, j: left.at(j, i))
    if node.attributes.get_int("transB", 0):
        right = b
        b = Lazy(right.shape[::-1], right.dtype, lambda i, j: right.at(j, i), value=None if right.value is None else right.value.T)
    product = _by_weight(kernel, a, b) if b.value is not None else of_two(kernel, a, b)

    def at(*index: Expr) -> Expr:
        total = product.at(*index) if alpha == 1 else product.at(*index) * constant(alpha, product.dtype)
        if c is None:
            return total
        bias = c.at(*(0 if n == 1 else i for i, n in zip(index[len(index) - c.rank :], c.shape, strict=True)))
        return total + (bias if beta == 1 else bias * constant(beta, product.dtype))

    return Lazy(product.shape, product.dtype, at)


LOWERINGS: dict[str, Lowering] = {"MatMul": _matmul, "Gemm": _gemm}
