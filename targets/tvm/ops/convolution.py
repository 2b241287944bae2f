"""Convolutions: direct, with weights packed by output channel; grouped, depthwise, dilated, strided, transposed; 1 to 3 spatial axes.

The sum runs over [N, M/block, *out, block]: a vector of output channels at a time. Where the input is padded (or has to be
converted, as integers are) it is copied once into a buffer of the kernel's own, zeros around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from tvm import te, tirx

from gatewright.frontend.integer import Array
from gatewright.frontend.queries import integer
from gatewright.frontend.windows import Window

from ..kernel import Choice, Kernel
from ..layout import Layout
from ..lazy import Expr, Lazy, compute, constant, element, given, of_tensor, reduce_axis, simplify
from ..placement import channel_block, filter_block
from ..schedules.convolution import DirectConvolution, Dots, PlanarConvolution, Tile, near_rows
from ..schedules.depthwise import Depthwise, Strip, strips
from ..schedules.winograd import Plan, Problem, direct_cycles
from ..schedules.winograd import candidates as winograd_candidates
from ..steps import Step
from . import Lowering, winograd
from .movement import padded

CANDIDATES = 5
"""Of one kernel, for a search to measure."""


def convolve(kernel: Kernel, node: ir.Node, x: Lazy, weight: Array) -> Lazy:
    """x [N, C, *spatial] with weight [M, C/group, *k] → [N, M, *out], summed in the weight's dtype; no bias."""
    return correlate(kernel, x, weight, Window.of(node, weight.shape[2:]), integer(node, "group", 1))


def correlate(kernel: Kernel, x: Lazy, weight: Array, window: Window, groups: int, *, stored: bool = False) -> Lazy:
    """The sum itself; see ``convolve``. ``stored``: it is read in another order than it is made in."""
    if kernel.products is not None:
        return kernel.products.correlate(kernel, x, weight, window, groups)
    out = window.output(x.shape[2:])
    filters, per_group = weight.shape[0], weight.shape[1]
    copied = window.padded or not (x.plain or x.layout is not None)
    block = filter_block(filters, groups, kernel.machine)
    depthwise = per_group == 1 and groups == filters == x.shape[1]
    if copied:
        x, inner = _copied(kernel, x, window, out, depthwise, block)
    else:
        inner = x.layout.block if x.layout is not None else 0
    kernel.work += x.shape[0] * filters * math.prod(out) * per_group * math.prod(window.kernel)
    axes = [reduce_axis(k, f"k{i}") if k > 1 else None for i, k in enumerate(window.kernel)]
    channel = reduce_axis(per_group, "c") if per_group > 1 else None
    reduced = [axis for axis in (channel, *axes) if axis is not None]
    taps = [0 if axis is None else axis.var for axis in axes]

    def source(n: Expr, group: Expr, place: Sequence[Expr]) -> Expr:
        c = group * per_group + (0 if channel is None else channel.var)
        where = [simplify(p * s + t * d) for p, s, t, d in zip(place, window.strides, taps, window.dilations, strict=True)]
        return x.at(n, simplify(c), *where)

    dtype = str(weight.dtype)
    depth = 0 if channel is None else channel.var
    if not block and groups == 1 and inner and per_group % inner == 0:
        return _dots(kernel, x, weight, window, out, inner, copied)
    if not block:
        panel = kernel.buffer(weight)
        rows = compute(
            (x.shape[0], filters, *out),
            lambda n, m, *p: _sum(source(n, _group(m, filters, groups), p) * panel.at(m, depth, *taps), reduced),
            "acc",
        )
        kernel.schedule = PlanarConvolution(len(out), len(reduced), dtype, copied, kernel.work)
        return Lazy((x.shape[0], filters, *out), dtype, lambda *i: element(rows, i))

    # A depthwise block holds a channel of each of ``block`` groups; any other lies within one group.
    per_block = filters if depthwise else filters // groups
    row = -(-per_block // block)
    panel = kernel.buffer(_packed(weight, block, filters // per_block))
    shape = (x.shape[0], row * (filters // per_block), *out, block)

    def body(n: Expr, b: Expr, *rest: Expr) -> Expr:
        *place, i = rest
        group = simplify(b * block + i) if depthwise else simplify(tirx.floordiv(b, row))
        return _sum(source(n, group, place) * panel.at(b, depth, *taps, i), reduced)

    tensor = compute(shape, body, "acc")
    if depthwise and len(out) == 2 and (not copied or inner) and not stored:
        kernel.schedule = _depthwise(kernel, window, shape, dtype, x.layout, copied)
        return _unblocked(of_tensor(tensor), block)
    whole = per_block % block == 0 and not stored
    if not whole:
        sums = tensor
        tensor = compute(shape, lambda *i: element(sums, i), "full")
    tiles = [tile.choice for tile in Tile.candidates(kernel.machine, out, block, dtype)[:CANDIDATES]]
    text = f"conv {dtype} {x.shape} {weight.shape} {window} groups {groups} from {x.layout} to {kernel.layout} stored {stored}"
    tile = Tile(*kernel.policy.choose(text, tiles).blocks)
    near = 0
    if copied and len(out) == 2 and groups == 1:
        near = near_rows(kernel.machine, tile, x.shape[0], per_group, out, window.kernel, window.strides, filters)
    split = inner if channel is not None and inner and per_group > inner and per_group % inner == 0 else 0
    kernel.schedule = DirectConvolution(
        spatial=len(out), block=block, tile=tile, channel_split=split, has_channel=channel is not None,
        taps=sum(a is not None for a in axes), dtype=dtype, copied=copied, whole=whole, blocked=kernel.layout.block == block,
        work=kernel.work, near=near,
    )  # fmt: skip

    def at(n: Expr, c: Expr, *place: Expr) -> Expr:
        if whole:
            found, lane = tirx.floordiv(c, block), tirx.floormod(c, block)
        else:
            inside = tirx.floormod(c, per_block)
            found, lane = tirx.floordiv(c, per_block) * row + tirx.floordiv(inside, block), tirx.floormod(inside, block)
        return element(tensor, (n, simplify(found), *place, simplify(lane)))

    return Lazy((x.shape[0], filters, *out), dtype, at)


def _depthwise(kernel: Kernel, window: Window, shape: Sequence[int], dtype: str, source: Layout | None, copied: bool) -> Depthwise:
    """The schedule of sums [N, M/b, H, W, b], one channel each."""
    found = strips(shape, window.kernel, window.strides, dtype, kernel.machine)
    text = f"depthwise {dtype} {shape} {window} from {source} to {kernel.layout}"
    choice = kernel.policy.choose(text, [strip.choice for strip in found[:CANDIDATES]])
    taps = tuple(k for k in window.kernel if k > 1)
    return Depthwise(Strip(*choice.blocks), shape[-1], taps, dtype, copied, kernel.layout.block == shape[-1], kernel.work)


def _dots(kernel: Kernel, x: Lazy, weight: Array, window: Window, out: Sequence[int], inner: int, copied: bool) -> Lazy:
    """Few filters: vectors run over the input's channels, whose ``inner`` partial sums are added up at the end."""
    filters, channels, taps = weight.shape[0], weight.shape[1], window.kernel
    panel = kernel.buffer(_packed(np.moveaxis(weight, 1, 0), inner, 1))
    axes = [reduce_axis(k, f"k{i}") if k > 1 else None for i, k in enumerate(taps)]
    depth = reduce_axis(channels // inner, "c") if channels > inner else None
    reduced = [axis for axis in (depth, *axes) if axis is not None]
    c = 0 if depth is None else depth.var
    where = [0 if axis is None else axis.var for axis in axes]

    def product(n: Expr, m: Expr, *rest: Expr) -> Expr:
        *place, lane = rest
        source = [simplify(p * s + t * d) for p, s, t, d in zip(place, window.strides, where, window.dilations, strict=True)]
        return _sum(x.at(n, simplify(c * inner + lane), *source) * panel.at(c, m, *where, lane), reduced)

    shape = (x.shape[0], filters, *out)
    sums = compute((*shape, inner), product, "acc")
    kept = compute((*shape, inner), lambda *at: element(sums, at), "kept")

    def total(*at: Expr) -> Expr:
        terms = [element(kept, (*at, lane)) for lane in range(inner)]
        while len(terms) > 1:
            terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)]
        return terms[0]

    result = of_tensor(compute(shape, total, "total"))
    kernel.schedule = Dots(inner, len(reduced), str(weight.dtype), copied, kernel.work)
    return result


def _unblocked(x: Lazy, block: int) -> Lazy:
    """[N, M/b, *out, b] as [N, M, *out]."""

    def at(n: Expr, c: Expr, *place: Expr) -> Expr:
        return x.at(n, simplify(tirx.floordiv(c, block)), *place, simplify(tirx.floormod(c, block)))

    return Lazy((x.shape[0], x.shape[1] * block, *x.shape[2:-1]), x.dtype, at)


def _sum(term: Expr, axes: list[object]) -> Expr:
    return te.sum(term, axis=axes) if axes else term


def _group(filter_index: Expr, filters: int, groups: int) -> Expr:
    return 0 if groups == 1 else simplify(tirx.floordiv(filter_index, filters // groups))


def _packed(weight: Array, block: int, groups: int) -> Array:
    """[M, C, *k] → [M'/block, C, *k, block], each group's filters grown with zeros to whole blocks."""
    own = weight.shape[0] // groups
    blocks = -(-own // block)
    grown = np.zeros((groups, blocks * block, *weight.shape[1:]), weight.dtype)
    grown[:, :own] = weight.reshape(groups, own, *weight.shape[1:])
    return np.ascontiguousarray(np.moveaxis(grown.reshape(groups * blocks, block, *weight.shape[1:]), 1, -1))


def _copied(kernel: Kernel, x: Lazy, window: Window, out: Sequence[int], depthwise: bool, block: int) -> tuple[Lazy, int]:
    """x with its padding in a buffer of the kernel, channels in blocks where they divide; and the block."""
    reach = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(out, window.strides, window.kernel, window.dilations, strict=True)]
    spatial = [max(r, b + n) for r, b, n in zip(reach, window.begin, x.shape[2:], strict=True)]
    channels = x.shape[1]
    inner = block if depthwise else channel_block(channels, kernel.machine)
    grown = padded(x, (x.shape[0], channels, *spatial), [0, 0, *window.begin], 0)
    if not inner:
        return kernel.stage(grown.shape, grown.at, "pad"), 0

    def blocked(n: Expr, c: Expr, *rest: Expr) -> Expr:
        return grown.at(n, simplify(c * inner + rest[-1]), *rest[:-1])

    stage = kernel.stage((x.shape[0], channels // inner, *spatial, inner), blocked, "pad")

    def at(n: Expr, c: Expr, *place: Expr) -> Expr:
        return stage.at(n, simplify(tirx.floordiv(c, inner)), *place, simplify(tirx.floormod(c, inner)))

    return Lazy(grown.shape, x.dtype, at), inner


def _conv(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, weight, bias = (*inputs, None)[:3]
    return _biased(_filtered(kernel, step.node, given(x), _array(weight)), bias)


def _filtered(kernel: Kernel, node: ir.Node, x: Lazy, weight: Array) -> Lazy:
    """The sum by the algorithm that the kernel's policy picks."""
    window, groups = Window.of(node, weight.shape[2:]), integer(node, "group", 1)
    problem = _winograd_problem(kernel, x, weight, window, groups)
    if problem is None:
        return convolve(kernel, node, x, weight)
    direct, machine = Choice("direct"), kernel.machine
    ways = [(plan.cycles(problem, machine), plan.choice) for plan in winograd_candidates(problem, machine)]
    ways = sorted([*ways, (direct_cycles(problem, machine), direct)], key=lambda way: way[0])
    text = f"conv3x3 {x.shape} {weight.shape} pads {window.begin} {window.end} from {x.layout} to {kernel.layout}"
    choice = kernel.policy.choose(text, [way for _, way in ways])
    if choice == direct:
        return convolve(kernel, node, x, weight)
    return winograd.correlate(kernel, x, weight, window, problem.block, Plan.of(choice))


def _winograd_problem(kernel: Kernel, x: Lazy, weight: Array, window: Window, groups: int) -> Problem | None:
    """Where Winograd's algorithm may be used at all: 3×3 in steps of one over channels in blocks, in float32."""
    filters, channels = weight.shape[:2]
    block = filter_block(filters, groups, kernel.machine)
    fits = window.kernel == (3, 3) and window.strides == (1, 1) == window.dilations and groups == 1 and weight.dtype == np.float32
    if kernel.products is not None:
        return None
    if kernel.policy.strict or not fits or not block or filters % block or not channel_block(channels, kernel.machine):
        return None
    return Problem(x.shape[0], channels, filters, window.output(x.shape[2:]), block)


def _array(weight: Lazy | None) -> Array:
    found = given(weight).value
    assert found is not None, "support.py refuses a computed weight"
    return found


def _biased(acc: Lazy, bias: Lazy | None) -> Lazy:
    if bias is None:
        return acc
    one = bias.shape == (1,)
    return Lazy(acc.shape, acc.dtype, lambda *i: acc.at(*i) + bias.at(0 if one else i[1]))


def _conv_transpose(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    """As convolutions in steps of one, one for each phase of the stride, all of them together: their filters lie side by side.

    Result o on an axis takes inputs i and taps k with i·s + k = o + b: those taps that leave the rest r = (o + b) mod s.
    """
    first, weight, bias = (*inputs, None)[:3]
    x, w, node = given(first), _array(weight), step.node
    groups = integer(node, "group", 1)
    window, out = Window.of(node, w.shape[2:]), step.output.shape[2:]
    taps = [-(-k // s) for k, s in zip(window.kernel, window.strides, strict=True)]
    skipped = [b // s for b, s in zip(window.begin, window.strides, strict=True)]
    begin = [t - 1 - q for t, q in zip(taps, skipped, strict=True)]
    if any(d > 1 for d in window.dilations) or min(begin) < 0:
        return _biased(_spread(kernel, x, w, window, out, groups), bias)
    count = [(o - 1 + b) // s - q + 1 for o, b, s, q in zip(out, window.begin, window.strides, skipped, strict=True)]
    end = [c + t - 1 - n - b for c, t, n, b in zip(count, taps, x.shape[2:], begin, strict=True)]
    ones = (1,) * len(taps)
    plain = Window(tuple(taps), ones, ones, tuple(begin), tuple(end))
    phases, own = math.prod(window.strides), w.shape[1]
    if phases == 1 and not any(window.begin):
        return _biased(correlate(kernel, x, _phases(w, window, groups), plain, groups), bias)
    sums = correlate(kernel, x, _phases(w, window, groups), plain, groups, stored=True)

    def at(n: Expr, c: Expr, *place: Expr) -> Expr:
        phase: Expr = 0
        where = []
        for o, b, s, q in zip(place, window.begin, window.strides, skipped, strict=True):
            phase = phase * s + tirx.floormod(o + b, s)
            where.append(simplify(tirx.floordiv(o + b, s) - q))
        filters = (tirx.floordiv(c, own) * phases + phase) * own + tirx.floormod(c, own)
        return sums.at(n, simplify(filters), *where)

    return _biased(Lazy((x.shape[0], groups * own, *out), x.dtype, at), bias)


def _phases(w: Array, window: Window, groups: int) -> Array:
    """[C, M/g, *k] → [g·s·M/g, C/g, *ceil(k/s)]: per group the filters phase by phase, taps in the order of a convolution."""
    taps = [-(-k // s) for k, s in zip(window.kernel, window.strides, strict=True)]
    grown = np.zeros((*w.shape[:2], *(t * s for t, s in zip(taps, window.strides, strict=True))), w.dtype)
    grown[(slice(None), slice(None), *(slice(k) for k in window.kernel))] = w
    # Each axis in taps × phases, then [g, C/g, M/g, taps…, phases…] → [g, phases…, M/g, C/g, taps…].
    cut = grown.reshape(groups, -1, w.shape[1], *(n for t, s in zip(taps, window.strides, strict=True) for n in (t, s)))
    axes = len(taps)
    order = (0, *range(4, 4 + 2 * axes, 2), 2, 1, *range(3, 3 + 2 * axes, 2))
    turned = np.flip(cut.transpose(order), axis=tuple(range(-axes, 0)))
    return np.ascontiguousarray(turned.reshape(-1, w.shape[0] // groups, *taps))


def _spread(kernel: Kernel, x: Lazy, w: Array, window: Window, out: Sequence[int], groups: int) -> Lazy:
    """As the convolution that it is the transpose of: zeros between the input's elements, the filter turned round."""
    per_group, spatial = w.shape[1], w.ndim - 2
    # [C, M/g, *k] → [M, C/g, *k], flipped.
    turned = w.reshape(groups, w.shape[0] // groups, per_group, *w.shape[2:]).swapaxes(1, 2)
    turned = turned.reshape(groups * per_group, -1, *w.shape[2:])
    turned = np.ascontiguousarray(np.flip(turned, axis=tuple(range(2, 2 + spatial))))
    spread = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], window.strides, strict=True)]
    begin = [(k - 1) * d - b for k, d, b in zip(window.kernel, window.dilations, window.begin, strict=True)]
    whole = [o + (k - 1) * d for o, k, d in zip(out, window.kernel, window.dilations, strict=True)]

    def at(n: Expr, c: Expr, *place: Expr) -> Expr:
        own, holds = [], []
        for p, b, s, extent in zip(place, begin, window.strides, spread, strict=True):
            q = p - b
            holds += [q >= 0, q < extent] + ([tirx.EQ(tirx.floormod(q, s), 0)] if s > 1 else [])
            own.append(simplify(tirx.floordiv(q, s)) if s > 1 else q)
        return tirx.if_then_else(tirx.all(*holds), x.at(n, c, *own), constant(0, x.dtype))

    # Not plain and without a layout: ``correlate`` copies it, so the zeros are written once.
    grown = Lazy((x.shape[0], x.shape[1], *whole), x.dtype, at)
    ones = (1,) * spatial
    plain = Window(window.kernel, ones, window.dilations, (0,) * spatial, (0,) * spatial)
    return correlate(kernel, grown, turned, plain, groups)


LOWERINGS: dict[str, Lowering] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
