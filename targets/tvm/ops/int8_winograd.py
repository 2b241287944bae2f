"""Winograd's F(2×2, 3×3) in integers, exact: 2.25 times fewer multiply-adds than the plain sum, of 16 bits instead of 8.

With 2G for G the transformed filters (2G)w(2G)ᵀ are whole numbers, up to 9·128 and so of 16 bits, and the sums come out as four
times the convolution: a shift by two is exact. Bᵀ(x − z)B adds and subtracts four activations, up to 4·255: 16 bits as well.
Products and sums are those of vpmaddwd or vpdpwssd; ``fits`` proves that none of them leaves its type.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import tirx

from gatewright.frontend.integer import Array, IntegerOp
from gatewright.frontend.queries import integer
from gatewright.frontend.windows import Window

from ..kernel import Choice, Kernel
from ..lazy import Expr, Lazy, compute, constant, element, reduce_axis, simplify
from ..placement import channel_block, filter_block
from ..schedules.int8 import Tile
from ..schedules.int8_winograd import IntegerWinograd, direct_cycles, problem, ranked
from ..schedules.winograd import Plan
from . import int8
from .int8_dot import Dot, dot_of, stored, word
from .winograd import Tiling

DIRECT = "direct"
SHIFT = 2
"""log2 of what the transformed filters are too large by: 2 for each G."""
LEAST_CHANNELS = 8
"""Fewer are a copy and a transform for next to no products."""
TILES = 3
"""Register blocks of the plain sum that a search may choose from."""
_G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
_B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_INT16 = np.iinfo(np.int16)


def transformed(weight: Array) -> Array:
    """(2G) w (2G)ᵀ: [M, C, 3, 3] → [4, 4, M, C], int64."""
    # One axis after the other: half of the time, and a network has millions of weights.
    result: Array = np.einsum("yj,xmcj->xymc", _G, np.einsum("xi,mcij->xmcj", _G, weight.astype(np.int64)))
    return result


def reach(lo: int, hi: int) -> Array:
    """The largest magnitudes of Bᵀ d B, [4, 4], for d within lo … hi or 0. Halfway there are sums of two, which are no larger."""
    lo, hi = min(lo, 0), max(hi, 0)
    signs = np.einsum("ui,vj->uvij", _B, _B).reshape(4, 4, -1)
    plus, minus = (signs > 0).sum(axis=2), (signs < 0).sum(axis=2)
    result: Array = np.maximum(plus * hi - minus * lo, minus * hi - plus * lo)
    return result


def fits(filters: Array, lo: int, hi: int) -> bool:
    """Whether nothing can overflow, for ``transformed`` filters and activations x − z within lo … hi, of which padding's 0 is one.

    Filters and transformed inputs have to fit 16 bits, and the partial sums 32: over the channels at each of the 16 points, and
    of those over each result's points, in any order.
    """
    bounds = reach(lo, hi)
    if filters.min(initial=0) < _INT16.min or filters.max(initial=0) > _INT16.max or bounds.max() > _INT16.max:
        return False
    points = np.abs(filters).sum(axis=3) * bounds[:, :, None]
    sums = np.einsum("yu,xv,uvm->yxm", np.abs(_A), np.abs(_A), points)
    return bool(max(points.max(initial=0), sums.max(initial=0)) < 2**31)


def convolve(kernel: Kernel, op: IntegerOp, x: Lazy, bias: Array, finish: Callable[[Array], tuple[int8.Finish, str]]) -> Lazy | None:
    """As ``int8.convolve``, by the algorithm and in the blocks that the kernel's policy picks where there is a choice."""
    found = _filters(kernel, op, x)
    if found is None:
        return int8.convolve(kernel, op, x, bias, finish)
    assert op.node is not None
    assert op.weight is not None
    filters, dot = found
    window, machine = Window.of(op.node, op.weight.shape[2:]), kernel.machine
    block, out = filter_block(filters.shape[2], 1, machine), window.output(x.shape[2:])
    plain = dot_of(machine, block)
    assert plain is not None, "where there is an instruction for 16 bits there is one"
    asked = problem(x.shape[0], _grown(x.shape[1], _inner(kernel, x)), filters.shape[2], tuple(out), block, machine, dot)
    direct = direct_cycles(asked, machine, plain)
    ways = [(plan.cycles(asked, machine), plan.choice) for plan in ranked(asked, machine)]
    for i, tile in enumerate(Tile.ranked(machine, plain, out, block, filters.shape[2] // block, broadcast=True)[:TILES]):
        ways.append((direct * (1 + i * 1e-3), Choice(DIRECT, (tile.blocks, tile.rows, tile.columns))))
    zero = int(op.operands[0].grid.zero_point)
    text = f"conv3x3 {x.dtype} {x.shape} {op.weight.shape} pads {window.begin} {window.end} zero {zero} from {x.layout} to {kernel.layout}"
    choice = kernel.policy.choose(text, [way for _, way in sorted(ways, key=lambda way: way[0])])
    if choice.algorithm == DIRECT:
        return int8.convolve(kernel, op, x, bias, finish, Tile(*choice.blocks))
    return _correlate(kernel, op, x, filters, window, block, dot, Plan.of(choice), finish(bias))


def _filters(kernel: Kernel, op: IntegerOp, x: Lazy) -> tuple[Array, Dot] | None:
    """The transformed filters and the instruction, where the algorithm may be used at all: 3×3 in steps of one, whole blocks of filters."""
    assert op.node is not None
    assert op.weight is not None
    window, operand = Window.of(op.node, op.weight.shape[2:]), op.operands[0]
    if window.kernel != (3, 3) or window.strides != (1, 1) or window.dilations != (1, 1) or integer(op.node, "group", 1) != 1:
        return None
    block = filter_block(op.weight.shape[0], 1, kernel.machine)
    dot = dot_of(kernel.machine, block, 2) if block else None
    if dot is None or op.weight.shape[0] % block or op.weight.shape[1] < LEAST_CHANNELS:
        return None
    filters, zero = transformed(op.weight), int(operand.grid.zero_point)
    return (filters, dot) if fits(filters, operand.lo - zero, operand.hi - zero) else None


def _is_copied(x: Lazy) -> bool:
    return x.layout is None or not x.layout.block


def _inner(kernel: Kernel, x: Lazy) -> int:
    """Channels of a vector."""
    return (channel_block(x.shape[1], kernel.machine) or max(16, kernel.machine.lanes("int32"))) if _is_copied(x) else int(x.layout.block)


def _grown(channels: int, inner: int) -> int:
    return -(-channels // inner) * inner


def _correlate(
    kernel: Kernel, op: IntegerOp, x: Lazy, filters: Array, window: Window, block: int, dot: Dot, plan: Plan, end: tuple[int8.Finish, str]
) -> Lazy:
    batch, inner, out = x.shape[0], _inner(kernel, x), window.output(x.shape[2:])
    copied, channels, count = _is_copied(x), _grown(x.shape[1], _inner(kernel, x)), filters.shape[2]
    if copied:
        x = _blocked(kernel, x, channels, inner)
    zero, bytes_ = int(op.operands[0].grid.zero_point), x
    centred = Lazy(x.shape, dot.stored, lambda *index: stored(dot, bytes_.at(*index), zero))
    tiling = Tiling(plan, batch, tuple(out))
    data = tiling.data(tiling.padded(centred, window), channels, inner, flat=True)
    panel = kernel.buffer(_packed(filters, channels, block))
    words = reduce_axis(channels // 2, "c")

    def product(n: Expr, part: Expr, b: Expr, u: Expr, v: Expr, q: Expr, t: Expr, lane: Expr) -> Expr:
        pair = [simplify(words.var * 2 + i) for i in range(2)]
        first, last = (
            element(data, (n, part, u, v, q, t, simplify(tirx.floordiv(c, inner)), simplify(tirx.floormod(c, inner)))) for c in pair
        )  # fmt: skip
        return dot.sum(word(first, last), panel.at(u, v, b, words.var, lane), [words])

    shape = tiling.products(count, block)
    sums = compute(shape, product, "acc")
    kept = compute(shape, lambda *at: element(sums, at), "kept")
    finished, dtype = end
    # Requantized where the lanes are vectors; where the result lies in planes, what remains is to move bytes.
    blocked = kernel.layout.block == block

    def last(total: Expr, c: Expr) -> Expr:
        quarter = total >> constant(SHIFT, "int32")
        return quarter if blocked else finished(quarter, c)

    result = tiling.results(kept, last)
    kernel.work += math.prod(shape) * channels // dot.group
    kernel.schedule = IntegerWinograd(
        m=plan.m, rows=plan.rows, wide=tiling.wide, parts=tiling.parts, block=block, inner=inner, shared=plan.shared,
        copied=copied, blocked=blocked, work=kernel.work, lanes=dot.lanes,
    )  # fmt: skip

    def at(n: Expr, c: Expr, oy: Expr, ox: Expr) -> Expr:
        value = tiling.at(result, n, c, oy, ox)
        return finished(value, c) if blocked else value

    return Lazy((batch, count, *out), dtype, at)


def _packed(filters: Array, channels: int, block: int) -> Array:
    """[4, 4, M, C] → words of two channels, int32 [4, 4, M/block, channels/2, block]; what is past C is zeros."""
    size, _, count, own = filters.shape
    grown = np.zeros((size, size, count, channels), np.int16)
    grown[..., :own] = filters
    pairs = grown.reshape(size, size, count // block, block, channels // 2, 2).swapaxes(3, 4)
    words: Array = np.ascontiguousarray(pairs).view(np.int32)[..., 0]
    return words


def _blocked(kernel: Kernel, x: Lazy, channels: int, inner: int) -> Lazy:
    """x in a buffer of the kernel, ``channels`` in blocks of ``inner``; those past the last are the last again, whose weights are zeros."""
    own = x.shape[1]

    def body(n: Expr, c: Expr, i: Expr, j: Expr, lane: Expr) -> Expr:
        channel = simplify(c * inner + lane)
        return x.at(n, channel if channels == own else tirx.Min(channel, own - 1), i, j)

    stage = kernel.stage((x.shape[0], channels // inner, *x.shape[2:], inner), body, "copy")

    def at(n: Expr, c: Expr, i: Expr, j: Expr) -> Expr:
        return stage.at(n, simplify(tirx.floordiv(c, inner)), i, j, simplify(tirx.floormod(c, inner)))

    return Lazy((x.shape[0], channels, *x.shape[2:]), x.dtype, at)
