"""Sums of products on a GPU: matrix products, and convolutions as products with the matrix of their windows (implicit GEMM).

Every product is C[b, m, n] = Σ_k A[b, m, k]·B[b, k, n]. A convolution has its filters for A, [M, C·taps], and for B the matrix of
windows, [C·taps, positions], which exists only tile by tile in shared memory. Three ways, by shape:

tiles    a block of threads sums a tile of C, its operands' tiles in shared memory; on tensor cores where the type allows it
rows     few rows or columns: the threads of a block share one sum
direct   a channel at a time (depthwise): one thread, one sum

Where C has too few tiles for the GPU's multiprocessors, the sum over k is split: each part is a batch entry of its own, and the
kernel that stores the result adds the parts up in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from gatewright.frontend.integer import Array
from gatewright.frontend.windows import Window

from ..kernel import Kernel
from ..lazy import Expr, Lazy, cast, compute, constant, element, reduce_axis, simplify
from .machine import Gpu
from .schedules import Direct, Shared, TensorTile, ThreadTile, Tile, Tiled
from .tensor_cores import STAND_IN, TF32
from .tiles import Shape, tensor_tile, thread_tile

Entry = Callable[[Expr, Expr, Expr], Expr]
"""An operand's element: batch entry, row, column."""


@dataclass
class Product:
    """C of a kernel, before what follows it is known."""

    shape: Shape
    sums: Any
    """te.Tensor [batch·parts, m, n], grown to whole tiles."""
    parts: int
    logical: tuple[int, ...]
    """The shape under which the kernel's steps know it."""
    unfold: Callable[[Expr, Expr, Expr], Sequence[Expr]]
    """Logical index of an element of C."""
    stored: Any = None
    """C as a buffer in memory, where what follows it is a kernel of its own."""

    def at(self, b: Expr, m: Expr, n: Expr) -> Expr:
        source = self.sums if self.stored is None else self.stored
        if self.parts == 1:
            return element(source, (b, m, n))
        terms = [element(source, (simplify(b * self.parts + part), m, n)) for part in range(self.parts)]
        while len(terms) > 1:
            terms = [sum(pair[1:], pair[0]) for pair in (terms[i : i + 2] for i in range(0, len(terms), 2))]
        return terms[0]

    def store(self) -> None:
        """Put C into memory before it is read."""
        shape = (self.shape.batch * self.parts, self.shape.rows, self.shape.columns)
        self.stored = compute(shape, lambda *i: element(self.sums, i), "tile")


@dataclass(frozen=True)
class Products:
    """Lowers every sum of products of a program (``Kernel.products``)."""

    precision: str = "float32"
    """What tensor cores multiply where a float32 product may be rounded; "float32": they are not used for floats."""

    def multiply(self, kernel: Kernel, a: Lazy, b: Lazy) -> Lazy:
        """a [..., M, K] · b [..., K, N] as numpy.matmul has it; bytes are summed in int32, all else in a's type."""
        left = a if a.rank > 1 else Lazy((1, *a.shape), a.dtype, lambda *i: a.at(*i[1:]), value=None if a.value is None else a.value[None])
        right = b if b.rank > 1 else Lazy((*b.shape, 1), b.dtype, lambda *i: b.at(*i[:-1]))
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        if right.rank == 2 and len(batch):
            # One matrix for all: the rows of every batch entry are rows of one product.
            return self._flat(kernel, a, left, right)
        shape = Shape(math.prod(batch), left.shape[-2], right.shape[-1], left.shape[-1])

        def spread(x: Lazy, entry: Expr, row: Expr, column: Expr) -> Expr:
            own = unflatten(entry, batch)[len(batch) - (x.rank - 2) :]
            return x.at(*(0 if n == 1 else i for i, n in zip(own, x.shape[:-2], strict=True)), row, column)

        lead, rows, columns = (*batch,), (shape.rows,) if a.rank > 1 else (), (shape.columns,) if b.rank > 1 else ()

        def unfold(e: Expr, m: Expr, n: Expr) -> Sequence[Expr]:
            return (*unflatten(e, batch), *((m,) if rows else ()), *((n,) if columns else ()))

        constants = [x.value if x.value is not None and x.rank == 2 else None for x in (left, right)]
        product = self._product(
            kernel, shape, a.dtype, lambda e, m, k: spread(left, e, m, k), lambda e, k, n: spread(right, e, k, n), constants,
            (*lead, *rows, *columns), unfold,
        )  # fmt: skip

        def at(*index: Expr) -> Expr:
            own = list(index)
            n = own.pop() if columns else 0
            m = own.pop() if rows else 0
            return product.at(flatten(own, batch), m, n)

        return Lazy((*lead, *rows, *columns), _sum_type(a.dtype), at)

    def _flat(self, kernel: Kernel, a: Lazy, left: Lazy, right: Lazy) -> Lazy:
        lead = left.shape[:-1]
        shape = Shape(1, math.prod(lead), right.shape[1], left.shape[-1])
        logical = (*lead, right.shape[1])
        product = self._product(
            kernel, shape, a.dtype, lambda e, m, k: left.at(*unflatten(m, lead), k), lambda e, k, n: right.at(k, n), [None, right.value],
            logical, lambda e, m, n: (*unflatten(m, lead), n),
        )  # fmt: skip
        return Lazy(logical, _sum_type(a.dtype), lambda *i: product.at(0, flatten(i[:-1], lead), i[-1]))

    def correlate(self, kernel: Kernel, x: Lazy, weight: Array, window: Window, groups: int, fill: int = 0) -> Lazy:
        """x [N, C, *spatial] with weight [M, C/group, *k] → [N, M, *out]. ``fill``: what the padding holds."""
        out, taps = window.output(x.shape[2:]), window.kernel
        filters, channels = weight.shape[:2]
        own, size = filters // groups, math.prod(taps)
        logical = (x.shape[0], filters, *out)
        source = _windows(x, window, out, fill)
        if own == 1 and groups > 1:
            return self._direct(kernel, weight, groups, logical, source)
        shape = Shape(x.shape[0] * groups, own, math.prod(out), channels * size)

        def right(e: Expr, k: Expr, n: Expr) -> Expr:
            image, group = (e, 0) if groups == 1 else (simplify(tirx.floordiv(e, groups)), simplify(tirx.floormod(e, groups)))
            channel, tap = simplify(tirx.floordiv(k, size)), simplify(tirx.floormod(k, size))
            return source(image, simplify(group * channels + channel), unflatten(tap, taps), unflatten(n, out))

        matrix = weight.reshape(groups, own, channels * size)
        stored = kernel.buffer(np.ascontiguousarray(matrix))

        def left(e: Expr, m: Expr, k: Expr) -> Expr:
            return stored.at(0 if groups == 1 else simplify(tirx.floormod(e, groups)), m, k)

        def unfold(e: Expr, m: Expr, n: Expr) -> Sequence[Expr]:
            if groups == 1:
                return (e, m, *unflatten(n, out))
            channel = simplify(tirx.floormod(e, groups) * own + m)
            return (simplify(tirx.floordiv(e, groups)), channel, *unflatten(n, out))

        constants = [matrix[0] if groups == 1 else None, None]
        product = self._product(kernel, shape, str(weight.dtype), left, right, constants, logical, unfold)

        def at(n: Expr, c: Expr, *place: Expr) -> Expr:
            if groups == 1:
                return product.at(n, c, flatten(place, out))
            entry = simplify(n * groups + tirx.floordiv(c, own))
            return product.at(entry, simplify(tirx.floormod(c, own)), flatten(place, out))

        return Lazy(logical, _sum_type(str(weight.dtype)), at)

    def _direct(
        self, kernel: Kernel, weight: Array, groups: int, logical: tuple[int, ...], source: Callable[..., Expr]
    ) -> Lazy:  # fmt: skip
        """Groups of one filter: as many sums as threads, each over its own window."""
        channels, *taps = weight.shape[1:]
        axes = [reduce_axis(n, f"k{i}") if n > 1 else None for i, n in enumerate((channels, *taps))]
        c, *place = [0 if axis is None else axis.var for axis in axes]
        stored, over = kernel.buffer(weight), [axis for axis in axes if axis is not None]
        dtype = _sum_type(str(weight.dtype))

        def body(n: Expr, m: Expr, *where: Expr) -> Expr:
            term = cast(source(n, simplify(m * channels + c), place, where), dtype) * cast(stored.at(m, c, *place), dtype)
            return te.sum(term, axis=over) if over else term

        sums = compute(logical, body, "acc")
        kernel.work += math.prod(logical) * weight[0].size
        kernel.schedule = Direct(len(over))
        return Lazy(logical, dtype, lambda *i: element(sums, i))

    def _product(
        self, kernel: Kernel, shape: Shape, dtype: str, left: Entry, right: Entry, constants: Sequence[Array | None],
        logical: tuple[int, ...], unfold: Callable[[Expr, Expr, Expr], Sequence[Expr]],
    ) -> Product:  # fmt: skip
        kernel.work += shape.batch * shape.rows * shape.columns * shape.depth
        machine = kernel.machine
        assert isinstance(machine, Gpu)
        least = min(shape.rows, shape.columns)
        # A tile's result with one row is not known to be one row of the tile: all of its threads would store it.
        if least == 1 or (least <= FEW and shape.depth >= 2 * FEW):
            return _by_rows(kernel, shape, dtype, left, right, constants, logical, unfold)
        core = self._core_type(machine, dtype)
        if core is not None and min(shape.rows, shape.columns) >= 8:
            return _tiled(kernel, shape, tensor_tile(machine, shape, core), core, left, right, constants, logical, unfold)
        return _tiled(kernel, shape, thread_tile(machine, shape, dtype), dtype, left, right, constants, logical, unfold)

    def _core_type(self, machine: Gpu, dtype: str) -> str | None:
        """What tensor cores take for operands of this type; None where they are not for it."""
        if dtype == "int8":
            return "int8"
        if dtype != "float32" or self.precision == "float32":
            return None
        return self.precision


FEW = 4
"""Rows or columns up to which a tile would be mostly empty."""


def _sum_type(dtype: str) -> str:
    return "int32" if dtype == "int8" else dtype


def _tiled(
    kernel: Kernel, shape: Shape, tile: Tile, dtype: str, left: Entry, right: Entry, constants: Sequence[Array | None],
    logical: tuple[int, ...], unfold: Callable[[Expr, Expr, Expr], Sequence[Expr]],
) -> Product:  # fmt: skip
    """C in tiles; ``dtype`` is that of the operands in shared memory."""
    parts = tile.parts
    rows, columns = _whole(shape.rows, tile.rows), _whole(shape.columns, tile.columns)
    own = _whole(-(-shape.depth // parts), tile.depth)
    """k of one part."""
    total = "float32" if isinstance(tile, TensorTile) and dtype != "int8" else _sum_type(dtype)
    stored = "float32" if dtype == TF32 else dtype
    """In memory."""
    buffers = [None if c is None else kernel.buffer(_grown(c, stored, size)) for c, size in zip(
        constants, ((rows, own * parts), (own * parts, columns)), strict=True)]  # fmt: skip

    def place(b: Expr, k: Expr) -> tuple[Expr, Expr]:
        """Batch entry and k of the whole product."""
        if parts == 1:
            return b, k
        return simplify(tirx.floordiv(b, parts)), simplify(tirx.floormod(b, parts) * own + k)

    def operand(source: Entry, buffer: Lazy | None, inner: bool) -> Callable[..., Expr]:
        def at(b: Expr, *index: Expr) -> Expr:
            """index: (m, k) of A, (k, n) of B."""
            entry, k = place(b, index[0 if inner else 1])
            row, column = (k, index[1]) if inner else (index[0], k)
            if buffer is not None:
                return _narrowed(buffer.at(row, column), dtype)
            bounds = (shape.depth, shape.columns) if inner else (shape.rows, shape.depth)
            grown = (own * parts, columns) if inner else (rows, own * parts)
            inside = [i < n for i, n, g in zip((row, column), bounds, grown, strict=True) if g > n]
            value = _narrowed(source(entry, row, column), dtype)
            return tirx.if_then_else(tirx.all(*inside), value, constant(0, stored)) if inside else value

        return at

    at_a, at_b = operand(left, buffers[0], False), operand(right, buffers[1], True)
    transposed = isinstance(tile, ThreadTile)
    a_shape = (shape.batch * parts, own, rows) if transposed else (shape.batch * parts, rows, own)
    a = compute(a_shape, (lambda b, k, m: at_a(b, m, k)) if transposed else at_a, "a")
    b = compute((shape.batch * parts, own, columns), at_b, "b")
    if dtype == TF32:
        a, b = (_as_tf32(x, name) for x, name in ((a, "a"), (b, "b")))
    k = reduce_axis(own, "k")

    def term(e: Expr, m: Expr, n: Expr) -> Expr:
        x = element(a, (e, k.var, m) if transposed else (e, m, k.var))
        return te.sum(cast(x, total) * cast(element(b, (e, k.var, n)), total), axis=k)

    sums = compute((shape.batch * parts, rows, columns), term, "acc")
    kernel.schedule = Tiled(tile, dtype)
    kernel.product = product = Product(shape, sums, parts, logical, unfold)
    if parts > 1:
        product.store()
    return product


def _by_rows(
    kernel: Kernel, shape: Shape, dtype: str, left: Entry, right: Entry, constants: Sequence[Array | None],
    logical: tuple[int, ...], unfold: Callable[[Expr, Expr, Expr], Sequence[Expr]],
) -> Product:  # fmt: skip
    """The threads of a block share a sum, and read both operands along k: a constant on the right is stored with k innermost."""
    turned = None if constants[1] is None else kernel.buffer(np.ascontiguousarray(constants[1].T))
    total = _sum_type(dtype)
    k = reduce_axis(shape.depth, "k")

    def term(e: Expr, m: Expr, n: Expr) -> Expr:
        step = 0 if shape.depth == 1 else k.var
        other = right(e, step, n) if turned is None else turned.at(n, step)
        product = cast(left(e, m, step), total) * cast(other, total)
        return product if shape.depth == 1 else te.sum(product, axis=k)

    sums = compute((shape.batch, shape.rows, shape.columns), term, "acc")
    product = Product(shape, sums, 1, logical, unfold)
    if shape.depth == 1:
        kernel.schedule = Direct(0)
        return product
    kernel.schedule, kernel.product = Shared(), product
    return product


def _windows(x: Lazy, window: Window, out: Sequence[int], fill: int) -> Callable[..., Expr]:
    """(image, channel, tap, place) → the input's element there."""

    def at(n: Expr, c: Expr, taps: Sequence[Expr], place: Sequence[Expr]) -> Expr:
        own, inside = [], []
        for axis, (tap, p) in enumerate(zip(taps, place, strict=True)):
            stride, dilation, begin, size = window.strides[axis], window.dilations[axis], window.begin[axis], x.shape[2 + axis]
            where = simplify(p * stride + tap * dilation - begin)
            last = (out[axis] - 1) * stride + (window.kernel[axis] - 1) * dilation - begin
            inside += ([where >= 0] if begin else []) + ([where < size] if last >= size else [])
            own.append(where)
        value = x.at(n, c, *own)
        return tirx.if_then_else(tirx.all(*inside), value, constant(fill, x.dtype)) if inside else value

    return at


def _narrowed(value: Expr, dtype: str) -> Expr:
    """As tensor cores take it. Those of tf32 read ten bits behind the point: the rest is rounded away first, to the nearest."""
    return tirx.call_pure_extern("float32", "nvcuda::wmma::__float_to_tf32", value) if dtype == TF32 else cast(value, dtype)


def _as_tf32(operand: Any, name: str) -> Any:
    """An operand of floats as the fragments that it is read into, see ``tensor_cores.STAND_IN``."""
    return compute(tuple(int(n) for n in operand.shape), lambda *i: cast(element(operand, i), STAND_IN), f"{name}_{TF32}")


def _grown(matrix: Array, dtype: str, size: tuple[int, int]) -> Array:
    """The matrix with zeros behind its last row and column."""
    grown = np.zeros(size, _numpy(dtype))
    grown[: matrix.shape[0], : matrix.shape[1]] = matrix
    return grown


def _numpy(dtype: str) -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


def _whole(length: int, tile: int) -> int:
    return -(-length // tile) * tile


def unflatten(index: Expr, shape: Sequence[int]) -> list[Expr]:
    """The indices of a row-major tensor of ``shape`` at a flat index."""
    found: list[Expr] = []
    for extent in reversed(shape[1:]):
        found.append(simplify(tirx.floormod(index, extent)))
        index = simplify(tirx.floordiv(index, extent))
    return [index, *reversed(found)] if len(shape) else []


def flatten(index: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """The flat index into a row-major tensor of ``shape``."""
    flat: Expr = 0
    for i, extent in zip(index, shape, strict=True):
        flat = flat * extent + i
    return simplify(flat)
