"""Convolutions and matrix products of 8-bit integers with dot-product instructions; exact, since sums are modulo 2^32 and end below 2^31.

Activations are read as the instruction wants them (``int8_dot.stored``). What that adds to a sum, and the zero point, is a
multiple of the filter's sum of weights and goes into the bias: acc = Σ (x − z)·w + b = Σ x·w + (b − z·Σw), padding being z.

Three ways to find the products of a lane, the *group*: neighbouring channels (``_by_channel``), of which the buffer of the
producer has blocks already; neighbouring taps of the kernel's last axis where there are one or two channels, and for
depthwise convolutions (``_by_tap``), whose lanes are channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
from tvm import tirx

from gatewright.frontend.integer import Array, IntegerOp
from gatewright.frontend.queries import integer
from gatewright.frontend.windows import Window

from ..kernel import Kernel
from ..lazy import Expr, Lazy, cast, compute, constant, element, reduce_axis, simplify
from ..placement import filter_block
from ..schedules.int8 import DotConvolution, DotMatmul, PlaneConvolution, Tile
from .int8_dot import Dot, dot_of, stored, stored_zero, widened, word
from .movement import reshaped

Finish = Callable[[Expr, Expr], Expr]
"""The stored result from a sum and its output channel."""

NARROW = (-128, 127)
FLIPS = int(np.uint32(0x80808080).astype(np.int32))
"""Inverts the sign bits of four bytes."""


def fits(op: IntegerOp, x: Lazy, bound: int) -> bool:
    """Whether the products are of bytes and the sums of 32 bits."""
    if op.weight is None or x.dtype not in ("int8", "uint8") or bound >= 2**31:
        return False
    return int(op.weight.min(initial=0)) >= NARROW[0] and int(op.weight.max(initial=0)) <= NARROW[1]


@dataclass(frozen=True)
class _Source:
    """Where the words of activations come from."""

    word: Callable[..., Expr]
    """Of (n, group, reduction indices, place, lane)."""
    axes: list[Any]
    """Reduction axes in the panel's order; None where an axis has length 1."""
    panel: Array
    """int32 words of weights [M/block, *axes, block]."""
    before: tuple[str, ...]
    """Stages of copies."""


def convolve(
    kernel: Kernel, op: IntegerOp, x: Lazy, bias: Array, finish: Callable[[Array], tuple[Finish, str]], tile: Tile | None = None
) -> Lazy | None:
    """x, stored integers [N, C, *spatial] → [N, M, *out]; None where there is no instruction for it.

    ``finish`` is given the bias with all corrections, int64 [M], and says how to end a sum, and the type that this gives.
    ``tile``: the register block, where it is not the analytically best.
    """
    assert op.node is not None
    assert op.weight is not None
    weight, groups = op.weight, integer(op.node, "group", 1)
    filters, per_group = weight.shape[:2]
    window = Window.of(op.node, weight.shape[2:])
    out = window.output(x.shape[2:])
    depthwise = per_group == 1 and groups == filters == x.shape[1]
    block = filter_block(filters, groups, kernel.machine)
    if not block or ((filters // groups) % block and not depthwise and not kernel.layout.block and not reads_blocks(kernel, x)):
        planes = _planes(kernel, op, x, window, groups, bias, finish)
        if planes is not None:
            return planes
    dot = dot_of(kernel.machine, block) if block else None
    if dot is None or (groups == filters > 1 and not depthwise):
        return None
    zero = int(op.operands[0].grid.zero_point)
    per_block = filters if depthwise else filters // groups
    row = -(-per_block // block)
    blocks = row * (filters // per_block)
    form = _Form(kernel, dot, x, zero, weight, window, out, groups, block, depthwise)
    source = form.by_tap() if depthwise or (per_group < 3 and weight.shape[-1] > 1) else form.by_channel()
    panel = kernel.buffer(source.panel)
    axes = [a for a in source.axes if a is not None]
    taken = [0 if a is None else a.var for a in source.axes]

    def body(n: Expr, b: Expr, *rest: Expr) -> Expr:
        *place, i = rest
        group = b if depthwise else simplify(tirx.floordiv(b, row))
        return dot.sum(source.word(n, group, taken, place, i), panel.at(b, *taken, i), axes)

    kernel.work += x.shape[0] * filters * prod(out) * per_group * prod(window.kernel) // dot.group
    acc = compute((x.shape[0], blocks, *out, block), body, "acc")
    end, dtype = finish(bias - stored_zero(dot, x.dtype, zero) * weight.reshape(filters, -1).sum(axis=1))

    def channel(b: Expr, i: Expr) -> Expr:
        """A filter's index; past a group's last one that of the last, whose constants are as good as any."""
        if per_block % block == 0:
            return simplify(b * block + i)
        inside = tirx.Min(simplify(tirx.floormod(b, row) * block + i), per_block - 1)
        return simplify(tirx.floordiv(b, row) * per_block) + inside

    whole = per_block % block == 0 and kernel.layout.block == block
    result = acc
    if not whole:
        # Requantized where the lanes are vectors; what remains is to move bytes.
        result = compute(acc.shape, lambda n, b, *rest: end(element(acc, (n, b, *rest)), channel(b, rest[-1])), "full")
    tile = tile or Tile.ranked(kernel.machine, dot, out, block, row if not depthwise else 1, broadcast=not depthwise)[0]
    kernel.schedule = DotConvolution(
        spatial=len(out), block=block, lanes=dot.lanes, tile=tile, reduced=len(axes), before=source.before,
        whole=whole, dtype=dtype, work=kernel.work,
    )  # fmt: skip

    def at(n: Expr, c: Expr, *place: Expr) -> Expr:
        if per_block % block == 0:
            found, lane = tirx.floordiv(c, block), tirx.floormod(c, block)
        else:
            inside = tirx.floormod(c, per_block)
            found, lane = tirx.floordiv(c, per_block) * row + tirx.floordiv(inside, block), tirx.floormod(inside, block)
        value = element(result, (n, simplify(found), *place, simplify(lane)))
        return end(value, c) if whole else value

    return Lazy((x.shape[0], filters, *out), dtype, at)


def reads_blocks(kernel: Kernel, x: Lazy) -> bool:
    """Whether x, or what it is computed from, lies in blocks of channels."""
    return any(len(t.shape) > x.rank for t in kernel.reads.values())


def _planes(
    kernel: Kernel, op: IntegerOp, x: Lazy, window: Window, groups: int, bias: Array, finish: Callable[[Array], tuple[Finish, str]]
) -> Lazy | None:
    """Few filters, or groups that fill no blocks: vectors of positions, one filter's word of weights broadcast to all of them."""
    assert op.weight is not None
    weight, lanes = op.weight, kernel.machine.lanes("int32")
    filters, per_group = weight.shape[:2]
    dot = dot_of(kernel.machine, lanes)
    shape = window.output(x.shape[2:])
    if prod(window.kernel) == 1 and prod(window.strides) == 1 and not window.padded:
        # Nothing knows of rows.
        x, window = reshaped(x, (*x.shape[:2], prod(x.shape[2:]))), Window((1,), (1,), (1,), (0,), (0,))
    out = window.output(x.shape[2:])
    if dot is None or window.strides[-1] != 1 or out[-1] < lanes // 2 or kernel.layout.block:
        return None
    vectors = -(-out[-1] // lanes)
    grown = (*out[:-1], vectors * lanes)
    zero = int(op.operands[0].grid.zero_point)
    form = _Form(kernel, dot, x, zero, weight.reshape(filters, per_group, *window.kernel), window, grown, groups, 1, False)
    source = form.by_plane(form.taps(len(window.kernel)))
    panel = kernel.buffer(source.panel)
    axes = [a for a in source.axes if a is not None]
    taken = [0 if a is None else a.var for a in source.axes]

    def body(n: Expr, m: Expr, *rest: Expr) -> Expr:
        *rows, v, i = rest
        group = 0 if groups == 1 else simplify(tirx.floordiv(m, filters // groups))
        return dot.sum(source.word(n, group, taken, [*rows, simplify(v * lanes + i)], 0), panel.at(m, *taken, 0), axes)

    kernel.work += x.shape[0] * filters * prod(out) * per_group * prod(window.kernel) // dot.group
    acc = compute((x.shape[0], filters, *out[:-1], vectors, lanes), body, "acc")
    end, dtype = finish(bias - stored_zero(dot, x.dtype, zero) * weight.reshape(filters, -1).sum(axis=1))
    full = compute(acc.shape, lambda n, m, *rest: end(element(acc, (n, m, *rest)), m), "full")
    kernel.schedule = PlaneConvolution(len(out), lanes, len(axes), filters // groups, dtype, kernel.work)

    def at(n: Expr, m: Expr, *place: Expr) -> Expr:
        return element(full, (n, m, *place[:-1], simplify(tirx.floordiv(place[-1], lanes)), simplify(tirx.floormod(place[-1], lanes))))

    result = Lazy((x.shape[0], filters, *out), dtype, at)
    return result if tuple(out) == tuple(shape) else reshaped(result, (*result.shape[:2], *shape))


@dataclass(frozen=True)
class _Form:
    """One convolution's shapes."""

    kernel: Kernel
    dot: Dot
    x: Lazy
    zero: int
    weight: Array
    window: Window
    out: Sequence[int]
    groups: int
    block: int
    depthwise: bool

    @property
    def fill(self) -> Expr:
        return constant(stored_zero(self.dot, self.x.dtype, self.zero), self.dot.stored)

    def reach(self) -> list[int]:
        """Extents of the padded input that are read."""
        w = self.window
        return [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(self.out, w.strides, w.kernel, w.dilations, strict=True)]

    def grown(self, n: Expr, c: Expr, place: Sequence[Expr], inside: Sequence[Expr] = ()) -> Expr:
        """The padded input as the instruction reads it."""
        holds, own = list(inside), []
        for p, first, extent, size in zip(place, self.window.begin, self.x.shape[2:], self.reach(), strict=True):
            holds += [p >= first] if first else []
            holds += [p < first + extent] if first + extent < size else []
            own.append(simplify(p - first))
        value = stored(self.dot, self.x.at(n, c, *own), self.zero)
        return tirx.if_then_else(tirx.all(*holds), value, self.fill) if holds else value

    def taps(self, count: int) -> list[Any]:
        return [reduce_axis(k, f"k{i}") if k > 1 else None for i, k in enumerate(self.window.kernel[:count])]

    def where(self, place: Sequence[Expr], taps: Sequence[Expr]) -> list[Expr]:
        w = self.window
        return [simplify(p * s + t * d) for p, s, t, d in zip(place, w.strides, taps, w.dilations, strict=False)]

    def by_channel(self) -> _Source:
        per_group, group = self.weight.shape[1], self.dot.group
        layout = self.x.layout
        block = gcd(per_group, layout.block) if layout is not None and layout.block else 0
        taps = self.taps(len(self.window.kernel))
        if not block and (per_group <= group or not reads_blocks(self.kernel, self.x)):
            return self.by_plane(taps)
        direct = not self.window.padded and group == 4 and block and block % 4 == 0
        inner = block if direct else next((b for b in (16, 8) if per_group % b == 0), 4)
        chunks = -(-per_group // inner)
        chunk, within = (reduce_axis(n, name) if n > 1 else None for n, name in ((chunks, "co"), (inner // group, "ci")))
        flips = bool(direct) and self.x.dtype != self.dot.stored
        read = self._direct(per_group, inner) if direct else self._staged(per_group, inner, chunks)

        def at(n: Expr, g: Expr, taken: Sequence[Expr], place: Sequence[Expr], lane: Expr) -> Expr:
            first = read(n, g, taken[0], taken[-1] * group, self.where(place, taken[1:-1]))
            last = read(n, g, taken[0], taken[-1] * group + group - 1, self.where(place, taken[1:-1]))
            found = word(first, last)
            return tirx.bitwise_xor(found, constant(FLIPS, "int32")) if flips else found

        panel = _packed(self._blocked(), inner, group)
        return _Source(at, [chunk, *taps, within], panel, () if direct else ("pad",))

    def by_plane(self, taps: list[Any]) -> _Source:
        """Channels lie in planes: words of them are made for whole rows at a time."""
        per_group, group = self.weight.shape[1], self.dot.group
        words = -(-per_group // group)

        def body(n: Expr, q: Expr, *place: Expr) -> Expr:
            start, own = simplify(tirx.floordiv(q, words) * per_group), simplify(tirx.floormod(q, words) * group)
            return self.joined([self._channel(n, start + own + i, own + i, place) for i in range(min(group, per_group))])

        stage = self.kernel.stage((self.x.shape[0], self.groups * words, *self.reach()), body, "words")
        chunk = reduce_axis(words, "co") if words > 1 else None

        def at(n: Expr, g: Expr, taken: Sequence[Expr], place: Sequence[Expr], lane: Expr) -> Expr:
            return stage.at(n, simplify(g * words + taken[0]), *self.where(place, taken[1:]))

        panel = _packed(self._blocked(), group, group)
        # The one word of its blocks is no axis.
        return _Source(at, [chunk, *taps], panel.reshape(*panel.shape[:-2], panel.shape[-1]), ("words",))

    def _channel(self, n: Expr, c: Expr, own: Expr, place: Sequence[Expr]) -> Expr:
        per_group = self.weight.shape[1]
        past = per_group % self.dot.group != 0 and per_group > self.dot.group
        value = self.grown(n, tirx.Min(c, self.x.shape[1] - 1) if past else simplify(c), place)
        return tirx.Select(own < per_group, value, constant(0, self.dot.stored)) if past else value

    def joined(self, parts: Sequence[Expr]) -> Expr:
        """The word of some bytes or 16-bit integers, the first in the lowest bits."""
        bits, total = 32 // self.dot.group, None
        for position, part in enumerate(parts):
            own = cast(cast(part, f"uint{bits}"), "uint32")
            shifted = own << constant(position * bits, "uint32") if position else own
            total = shifted if total is None else tirx.bitwise_or(total, shifted)
        return cast(total, "int32")

    def _direct(self, per_group: int, inner: int) -> Callable[..., Expr]:
        return lambda n, g, co, i, place: self.x.at(n, simplify(g * per_group + co * inner + i), *place)

    def _staged(self, per_group: int, inner: int, chunks: int) -> Callable[..., Expr]:
        def body(n: Expr, q: Expr, *rest: Expr) -> Expr:
            *place, i = rest
            own = simplify(tirx.floormod(q, chunks) * inner + i)
            c = simplify(tirx.floordiv(q, chunks) * per_group + own)
            past = per_group % inner != 0
            return self.grown(n, tirx.Min(c, self.x.shape[1] - 1) if past else c, place, [own < per_group] if past else [])

        shape = (self.x.shape[0], self.groups * chunks, *self.reach(), inner)
        stage = self.kernel.stage(shape, body, "pad")
        return lambda n, g, co, i, place: stage.at(n, simplify(g * chunks + co), *place, simplify(i))

    def by_tap(self) -> _Source:
        per_group, group, width = self.weight.shape[1], self.dot.group, self.window.kernel[-1]
        stride, dilation = self.window.strides[-1], self.window.dilations[-1]
        words = -(-width // group)
        # One word a place holds all taps: only the places that are read get one.
        step = stride if words == 1 else 1
        places = self.out[-1] if words == 1 else (self.out[-1] - 1) * stride + (words - 1) * group * dilation + 1
        lanes = (self.block,) if self.depthwise else ()
        size, channels = self.reach(), self.x.shape[1] // self.block if lanes else self.x.shape[1]
        # What has to be computed, or to be gathered from planes, is copied first: each element is in several words.
        copied = self.x.layout is None or bool(lanes and not self.x.layout.block)

        def element_of(n: Expr, c: Expr, *rest: Expr) -> Expr:
            place, channel = (rest[:-1], simplify(c * self.block + rest[-1])) if lanes else (rest, c)
            return self.grown(n, channel, place)

        pad = self.kernel.stage((self.x.shape[0], channels, *size, *lanes), element_of, "pad") if copied else None

        def body(n: Expr, c: Expr, *rest: Expr) -> Expr:
            (*rows, p), lane = (rest[:-1], rest[-1:]) if lanes else (rest, ())
            parts = []
            for tap in range(min(group, width)):
                position = simplify(p * step + tap * dilation)
                if (places - 1) * step + tap * dilation >= size[-1]:
                    # Past the last tap the weight is 0.
                    position = tirx.Min(position, size[-1] - 1)
                parts.append((element_of if pad is None else pad.at)(n, c, *rows, position, *lane))
            return self.joined(parts)

        stage = self.kernel.stage((self.x.shape[0], channels, *size[:-1], places, *lanes), body, "words")
        taps = self.taps(len(self.window.kernel) - 1)
        last = reduce_axis(words, "kw") if words > 1 else None
        channel = reduce_axis(per_group, "c") if per_group > 1 else None

        def at(n: Expr, g: Expr, taken: Sequence[Expr], place: Sequence[Expr], lane: Expr) -> Expr:
            rows = self.where(place[:-1], taken[1:-1])
            column = place[-1] if words == 1 else simplify(place[-1] * stride + taken[-1] * (group * dilation))
            c = g if self.depthwise else simplify(g * per_group + taken[0])
            return stage.at(n, c, *rows, column, *((lane,) if lanes else ()))

        grown = np.zeros((*self.weight.shape[:-1], words * group), np.int64)
        grown[..., :width] = self.weight
        # [M', C, *rows, words, group] → the group innermost.
        tapped = self._blocked(grown.reshape(*self.weight.shape[:-1], words, group))
        panel = np.ascontiguousarray(np.moveaxis(tapped, 1, -2))
        return _Source(at, [channel, *taps, last], _words(panel), ("pad", "words") if copied else ("words",))

    def _blocked(self, weight: Array | None = None) -> Array:
        """[M, …] → [M'/block, block, …], each group's filters grown with zeros to whole blocks."""
        w = self.weight if weight is None else weight
        parts = 1 if self.depthwise else self.groups
        own = w.shape[0] // parts
        blocks = -(-own // self.block)
        grown = np.zeros((parts, blocks * self.block, *w.shape[1:]), np.int64)
        grown[:, :own] = w.reshape(parts, own, *w.shape[1:])
        return grown.reshape(parts * blocks, self.block, *w.shape[1:])


def _packed(blocked: Array, inner: int, group: int) -> Array:
    """[B, block, C, *k] → words [B, C'/inner, *k, inner/group, block]."""
    count, block, channels, *taps = blocked.shape
    chunks = -(-channels // inner)
    grown = np.zeros((count, block, chunks * inner, *taps), np.int64)
    grown[:, :, :channels] = blocked
    split = grown.reshape(count, block, chunks, inner // group, group, *taps)
    rank = len(taps)
    return _words(split.transpose(0, 2, *range(5, 5 + rank), 3, 1, 4))


def _words(values: Array) -> Array:
    """[…, group] → int32 words […]; 4 bytes or 2 int16."""
    kind = np.int8 if values.shape[-1] == 4 else np.int16
    words: Array = np.ascontiguousarray(values.astype(kind)).view(np.int32)[..., 0]
    return words


def multiply(kernel: Kernel, op: IntegerOp, x: Lazy, bias: Array, finish: Callable[[Array], tuple[Finish, str]]) -> Lazy | None:
    """x, stored integers [..., K], times the constant weight [K, N] → [..., N]; see ``convolve``."""
    assert op.weight is not None
    depth, columns = op.weight.shape
    rows = math.prod(x.shape[:-1])
    lanes = kernel.machine.lanes("int32")
    dot = dot_of(kernel.machine, lanes)
    if dot is None or columns < lanes or depth < 4:
        return None
    width = DotMatmul.panel_width(rows, columns, kernel.machine, dot)
    panels, words = -(-columns // width), -(-depth // dot.group)
    zero = int(op.operands[0].grid.zero_point)
    grown = np.zeros((words * dot.group, panels * width), np.int64)
    grown[:depth, :columns] = op.weight
    values = grown.reshape(words, dot.group, panels, width).transpose(2, 0, 3, 1)
    # One row reads each weight once, so the bytes count: int16 is made of them on the way.
    narrow = dot.group == 2 and rows < 4
    panel = kernel.buffer(np.ascontiguousarray(values.astype(np.int8)).view(np.int16)[..., 0] if narrow else _words(values))
    direct = x.plain and dot.group == 4 and depth % 4 == 0
    flips = direct and x.dtype != dot.stored
    left = x if direct else _left(kernel, dot, x, zero, words)
    k = reduce_axis(words, "k") if words > 1 else None
    step = 0 if k is None else k.var

    def body(*index: Expr) -> Expr:
        *row, p, i = index
        first, last = (left.at(*row, simplify(step * dot.group + j)) for j in (0, dot.group - 1))
        found = word(first, last)
        weights = panel.at(p, step, i)
        return dot.sum(
            tirx.bitwise_xor(found, constant(FLIPS, "int32")) if flips else found, widened(weights) if narrow else weights,
            [] if k is None else [k],
        )  # fmt: skip

    kernel.work += rows * columns * depth // dot.group
    acc = compute((*x.shape[:-1], panels, width), body, "acc")
    end, dtype = finish(bias - stored_zero(dot, x.dtype, zero) * op.weight.sum(axis=0))
    whole = panels * width == columns
    result = acc
    if not whole:
        result = compute(
            acc.shape, lambda *i: end(element(acc, i), tirx.Min(simplify(i[-2] * width + i[-1]), columns - 1)), "full"
        )  # fmt: skip
    kernel.schedule = DotMatmul(
        x.shape[:-1], panels, width, words, dot.lanes, dot.group == 4, copied=not direct, whole=whole, dtype=dtype, work=kernel.work
    )

    def at(*index: Expr) -> Expr:
        *row, column = index
        value = element(result, (*row, simplify(tirx.floordiv(column, width)), simplify(tirx.floormod(column, width))))
        return end(value, column) if whole else value

    return Lazy((*x.shape[:-1], columns), dtype, at)


def _left(kernel: Kernel, dot: Dot, x: Lazy, zero: int, words: int) -> Lazy:
    """The rows as the instruction reads them, grown to whole words."""
    depth = x.shape[-1]

    def body(*index: Expr) -> Expr:
        *row, i = index
        if words * dot.group == depth:
            return stored(dot, x.at(*index), zero)
        value = stored(dot, x.at(*row, tirx.Min(i, depth - 1)), zero)
        return tirx.if_then_else(i < depth, value, constant(0, dot.stored))

    return kernel.stage((*x.shape[:-1], words * dot.group), body, "left")
