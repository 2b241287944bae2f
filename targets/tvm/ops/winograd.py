"""Winograd's minimal filtering F(m×m, 3×3) for float32 convolutions of stride 1 (Lavin & Gray 2015, arXiv:1509.09308).

A tile of m×m results is Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A: the products of its (m+2)² transformed inputs, summed over the channels,
are matrix products over all tiles; m = 4 has 4 times fewer multiply-adds than the plain sum, m = 2 has 2.25 times fewer.
The filters are transformed at compile time, in float64.

The sums cancel, so rounding weighs more. max|err|/max|ref| measured against float64 with normally distributed inputs and He
weights, 16 to 512 channels: F(4×4) up to 7e-6, F(2×2) up to 7e-7, the plain sum up to 3e-7. tests/targets/tvm/test_tvm_winograd.py
holds them to ``ERROR``.
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
from ..layout import Layout
from ..lazy import Expr, Lazy, compute, constant, element, reduce_axis, simplify
from ..placement import channel_block
from ..schedules.winograd import Plan, Winograd
from .movement import padded

ERROR = {2: 2e-6, 4: 2e-5}
"""Bound of max|err|/max|ref| by m."""


def transformed(weight: Array, m: int) -> Array:
    """G g Gᵀ: [M, C, 3, 3] → [m+2, m+2, M, C], float64."""
    g = _G[m]
    result: Array = np.einsum("xi,mcij,yj->xymc", g, weight.astype(np.float64), g)
    return result


_G = {
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    4: np.array(
        [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
    ),
}  # fmt: skip


def _inputs(m: int, d: Sequence[Expr]) -> list[Expr]:
    """Bᵀd for m + 2 numbers. Sums that two results share are written alike, so that they are computed once."""
    if m == 2:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    four, five, two = (constant(c, "float32") for c in (4.0, 5.0, 2.0))
    even, odd = d[4] - four * d[2], d[3] - four * d[1]
    near, far = d[4] - d[2], two * (d[3] - d[1])
    return [four * d[0] - five * d[2] + d[4], even + odd, even - odd, near + far, near - far, four * d[1] - five * d[3] + d[5]]


def _outputs(m: int, t: Sequence[Expr]) -> list[Expr]:
    """Aᵀt for m + 2 numbers."""
    if m == 2:
        return [t[0] + t[1] + t[2], t[1] - t[2] - t[3]]
    two, four, eight = (constant(c, "float32") for c in (2.0, 4.0, 8.0))
    plus, minus, far_plus, far_minus = t[1] + t[2], t[1] - t[2], t[3] + t[4], t[3] - t[4]
    return [t[0] + plus + far_plus, minus + two * far_minus, plus + four * far_plus, minus + eight * far_minus + t[5]]


def _chosen(index: Expr, values: Sequence[Expr]) -> Expr:
    """values[index]; the loop over ``index`` is unrolled, so that one of them is left."""
    found = values[-1]
    for i in range(len(values) - 2, -1, -1):
        found = tirx.Select(tirx.EQ(index, i), values[i], found)
    return found


@dataclass(frozen=True)
class Tiling:
    """The tiles of a result [batch, M, *out] in the order of a plan, and the stages of both transforms: the same for all types."""

    plan: Plan
    batch: int
    out: tuple[int, ...]

    @property
    def size(self) -> int:
        """Inputs of a tile along an axis."""
        return self.plan.m + 2

    @property
    def wide(self) -> int:
        return -(-self.out[1] // self.plan.m)

    @property
    def parts(self) -> int:
        """Chunks of ``plan.rows`` rows of tiles."""
        high = -(-self.out[0] // self.plan.m)
        return -(-high // self.plan.rows)

    @property
    def blocks(self) -> int:
        """Register blocks of a chunk."""
        return -(-self.plan.rows * self.wide // self.plan.positions)

    def padded(self, x: Lazy, window: Window) -> Lazy:
        """All that the tiles read. Past the last row of tiles the last part sums what lies below, which is zeros."""
        most = zip((self.parts * self.plan.rows + 1, self.wide), window.begin, x.shape[2:], strict=True)
        reach = [max(b + n, (tiles - 1) * self.plan.m + self.size) for tiles, b, n in most]
        return padded(x, (*x.shape[:2], *reach), [0, 0, *window.begin], 0)

    def data(self, source: Lazy, channels: int, inner: int, *, flat: bool = False) -> Any:
        """Bᵀ d B: stages "tile", "half" and "data" [N, part, u, v, block, C/inner, position, inner].

        ``flat``: [N, part, u, v, block, position, C/inner, inner], all channels of a tile side by side.
        """
        m, size, positions = self.plan.m, self.size, self.plan.positions

        def tile(n: Expr, part: Expr, q: Expr, t: Expr, c: Expr, i: Expr, j: Expr, lane: Expr) -> Expr:
            index = simplify(q * positions + t)
            row, column = tirx.floordiv(index, self.wide), tirx.floormod(index, self.wide)
            return source.at(n, simplify(c * inner + lane), simplify((part * self.plan.rows + row) * m + i), simplify(column * m + j))

        places = (self.batch, self.parts, self.blocks, positions, channels // inner)
        d = compute((*places, size, size, inner), tile, "tile")

        def down(*at: Expr) -> Expr:
            return _chosen(at[5], _inputs(m, [element(d, (*at[:5], i, *at[6:])) for i in range(size)]))

        halfway = compute((*places, size, size, inner), down, "half")

        def across(n: Expr, part: Expr, u: Expr, v: Expr, q: Expr, c: Expr, t: Expr, lane: Expr) -> Expr:
            c, t = (t, c) if flat else (c, t)
            return _chosen(v, _inputs(m, [element(halfway, (n, part, q, t, c, u, j, lane)) for j in range(size)]))

        last = (positions, channels // inner) if flat else (channels // inner, positions)
        return compute((self.batch, self.parts, size, size, self.blocks, *last, inner), across, "data")

    def products(self, filters: int, block: int) -> tuple[int, ...]:
        """The shape of the sums of products, [N, part, M/block, u, v, block of tiles, position, lane]."""
        return (self.batch, self.parts, filters // block, self.size, self.size, self.blocks, self.plan.positions, block)

    def results(self, kept: Any, end: Callable[[Expr, Expr], Expr]) -> Any:
        """Aᵀ(kept)A: stages "upright" and "result" [N, part, M/block, row, column, y, x, lane].

        ``end`` is given a result and its filter.
        """
        m, size, positions = self.plan.m, self.size, self.plan.positions
        filters, block = int(kept.shape[2]), int(kept.shape[-1])

        def back(n: Expr, part: Expr, b: Expr, row: Expr, column: Expr, y: Expr, v: Expr, lane: Expr) -> Expr:
            index = simplify(row * self.wide + column)
            q, t = simplify(tirx.floordiv(index, positions)), simplify(tirx.floormod(index, positions))
            return _chosen(y, _outputs(m, [element(kept, (n, part, b, u, v, q, t, lane)) for u in range(size)]))

        lead = (self.batch, self.parts, filters, self.plan.rows, self.wide)
        upright = compute((*lead, m, size, block), back, "upright")

        def back_across(*at: Expr) -> Expr:
            sums = _outputs(m, [element(upright, (*at[:6], v, at[7])) for v in range(size)])
            return end(_chosen(at[6], sums), simplify(at[2] * block + at[7]))

        return compute((*lead, m, m, block), back_across, "result")

    def at(self, result: Any, n: Expr, c: Expr, oy: Expr, ox: Expr) -> Expr:
        """One element of ``results`` by its logical index."""
        m, rows, block = self.plan.m, self.plan.rows, int(result.shape[-1])
        row = tirx.floordiv(oy, m)
        index = (
            n, tirx.floordiv(row, rows), tirx.floordiv(c, block), tirx.floormod(row, rows), tirx.floordiv(ox, m),
            tirx.floormod(oy, m), tirx.floormod(ox, m), tirx.floormod(c, block),
        )  # fmt: skip
        return element(result, tuple(simplify(i) for i in index))


def correlate(kernel: Kernel, x: Lazy, weight: Array, window: Window, block: int, plan: Plan) -> Lazy:
    """x [N, C, H, W] with weight [M, C, 3, 3] → [N, M, *out]; ``block`` divides M, and C is made of blocks.

    x is copied first where it does not lie in blocks of channels or has to be computed.
    """
    batch, channels = x.shape[:2]
    filters, out = weight.shape[0], window.output(x.shape[2:])
    copied = x.layout is None or not x.layout.block
    m, inner = plan.m, channel_block(channels, kernel.machine) if copied else x.layout.block
    if copied:
        x = _blocked(kernel, x, inner)
    tiling = Tiling(plan, batch, tuple(out))
    size = tiling.size
    data = tiling.data(tiling.padded(x, window), channels, inner)
    packed = transformed(weight, m).reshape(size, size, filters // block, block, channels).swapaxes(3, 4)
    panel = kernel.buffer(np.ascontiguousarray(packed, np.float32))
    depth = reduce_axis(channels, "c")

    def product(n: Expr, part: Expr, b: Expr, u: Expr, v: Expr, q: Expr, t: Expr, lane: Expr) -> Expr:
        c = depth.var
        left = element(data, (n, part, u, v, q, simplify(tirx.floordiv(c, inner)), t, simplify(tirx.floormod(c, inner))))
        return te.sum(left * panel.at(u, v, b, c, lane), axis=[depth])

    products = tiling.products(filters, block)
    sums = compute(products, product, "acc")
    result = tiling.results(compute(products, lambda *at: element(sums, at), "kept"), lambda total, c: total)
    kernel.work += math.prod(products) * channels
    kernel.schedule = Winograd(
        m=m, rows=plan.rows, wide=tiling.wide, parts=tiling.parts, block=block, inner=inner, shared=plan.shared,
        copied=copied, blocked=kernel.layout.block == block, work=kernel.work,
    )  # fmt: skip
    return Lazy((batch, filters, *out), "float32", lambda *index: tiling.at(result, *index))


def _blocked(kernel: Kernel, x: Lazy, block: int) -> Lazy:
    """x in a buffer of the kernel, channels in blocks."""
    shape, layout = Layout(block).buffer_shape(x.shape), Layout(block)
    stage = kernel.stage(shape, lambda *at: x.at(*layout.to_logical(at)), "copy")
    return Lazy(x.shape, x.dtype, lambda *index: stage.at(*layout.to_buffer(index)))
