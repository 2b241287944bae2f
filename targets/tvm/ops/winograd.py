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
from collections.abc import Sequence

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


def correlate(kernel: Kernel, x: Lazy, weight: Array, window: Window, block: int, plan: Plan) -> Lazy:
    """x [N, C, H, W] with weight [M, C, 3, 3] → [N, M, *out]; ``block`` divides M, and C is made of blocks.

    x is copied first where it does not lie in blocks of channels or has to be computed.
    """
    batch, channels = x.shape[:2]
    filters, out = weight.shape[0], window.output(x.shape[2:])
    copied = x.layout is None or not x.layout.block
    m, size, inner = plan.m, plan.m + 2, channel_block(channels, kernel.machine) if copied else x.layout.block
    if copied:
        x = _blocked(kernel, x, inner)
    high, wide = (-(-extent // m) for extent in out)
    rows, positions = plan.rows, plan.positions
    parts, blocks = -(-high // rows), -(-rows * wide // positions)
    # Past the last row of tiles the last part sums what lies below, which is zeros.
    reach = [max(b + n, (tiles - 1) * m + size) for tiles, b, n in zip((parts * rows + 1, wide), window.begin, x.shape[2:], strict=True)]
    source = padded(x, (batch, channels, *reach), [0, 0, *window.begin], 0)

    def tile(n: Expr, part: Expr, q: Expr, t: Expr, c: Expr, i: Expr, j: Expr, lane: Expr) -> Expr:
        flat = simplify(q * positions + t)
        row, column = tirx.floordiv(flat, wide), tirx.floormod(flat, wide)
        return source.at(n, simplify(c * inner + lane), simplify((part * rows + row) * m + i), simplify(column * m + j))

    places = (batch, parts, blocks, positions, channels // inner)
    d = compute((*places, size, size, inner), tile, "tile")

    def down(*at: Expr) -> Expr:
        return _chosen(at[5], _inputs(m, [element(d, (*at[:5], i, *at[6:])) for i in range(size)]))

    halfway = compute((*places, size, size, inner), down, "half")

    def across(n: Expr, part: Expr, u: Expr, v: Expr, q: Expr, c: Expr, t: Expr, lane: Expr) -> Expr:
        return _chosen(v, _inputs(m, [element(halfway, (n, part, q, t, c, u, j, lane)) for j in range(size)]))

    data = compute((batch, parts, size, size, blocks, channels // inner, positions, inner), across, "data")

    packed = transformed(weight, m).reshape(size, size, filters // block, block, channels).swapaxes(3, 4)
    panel = kernel.buffer(np.ascontiguousarray(packed, np.float32))
    depth = reduce_axis(channels, "c")

    def product(n: Expr, part: Expr, b: Expr, u: Expr, v: Expr, q: Expr, t: Expr, lane: Expr) -> Expr:
        c = depth.var
        left = element(data, (n, part, u, v, q, simplify(tirx.floordiv(c, inner)), t, simplify(tirx.floormod(c, inner))))
        return te.sum(left * panel.at(u, v, b, c, lane), axis=[depth])

    products = (batch, parts, filters // block, size, size, blocks, positions, block)
    sums = compute(products, product, "acc")
    kept = compute(products, lambda *at: element(sums, at), "kept")

    def back(n: Expr, part: Expr, b: Expr, row: Expr, column: Expr, y: Expr, v: Expr, lane: Expr) -> Expr:
        flat = simplify(row * wide + column)
        q, t = simplify(tirx.floordiv(flat, positions)), simplify(tirx.floormod(flat, positions))
        return _chosen(y, _outputs(m, [element(kept, (n, part, b, u, v, q, t, lane)) for u in range(size)]))

    lead = (batch, parts, filters // block, rows, wide)
    upright = compute((*lead, m, size, block), back, "upright")

    def back_across(*at: Expr) -> Expr:
        return _chosen(at[6], _outputs(m, [element(upright, (*at[:6], v, at[7])) for v in range(size)]))

    result = compute((*lead, m, m, block), back_across, "result")
    kernel.work += math.prod(products) * channels
    kernel.schedule = Winograd(
        m=m, rows=rows, wide=wide, parts=parts, block=block, inner=inner, channels=channels, shared=plan.shared,
        copied=copied,
        blocked=kernel.layout.block == block, work=kernel.work,
    )  # fmt: skip

    def at(n: Expr, c: Expr, oy: Expr, ox: Expr) -> Expr:
        row = tirx.floordiv(oy, m)
        index = (
            n, tirx.floordiv(row, rows), tirx.floordiv(c, block), tirx.floormod(row, rows), tirx.floordiv(ox, m),
            tirx.floormod(oy, m), tirx.floormod(ox, m), tirx.floormod(c, block),
        )  # fmt: skip
        return element(result, tuple(simplify(i) for i in index))

    return Lazy((batch, filters, *out), "float32", at)


def _blocked(kernel: Kernel, x: Lazy, block: int) -> Lazy:
    """x in a buffer of the kernel, channels in blocks."""
    shape, layout = Layout(block).buffer_shape(x.shape), Layout(block)
    stage = kernel.stage(shape, lambda *at: x.at(*layout.to_logical(at)), "copy")
    return Lazy(x.shape, x.dtype, lambda *index: stage.at(*layout.to_buffer(index)))
