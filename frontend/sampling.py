"""GridSample said with Gather: the value at a place between the samples is a sum of its neighbours, each found by its index."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .edit import Editor, attribute, shape_of
from .steps import Steps


def grid_sample(edit: Editor, node: ir.Node) -> bool:
    """x [N, C, *size], grid [N, *result, axes] with the last axis first, in −1 … 1. Nearest and linear, any number of axes."""
    x, grid = node.inputs[0], node.inputs[1]
    shape, places = shape_of(x), shape_of(grid)
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(attribute(node, "mode", "linear"), attribute(node, "mode", "linear"))
    if x is None or grid is None or shape is None or places is None or x.dtype != ir.DataType.FLOAT or 0 in shape or 0 in places:
        return False
    if mode not in ("linear", "nearest", "cubic") or (mode == "cubic" and len(shape) != 4):
        return False
    return _Sample(edit, node, mode).write()


class _Sample:
    def __init__(self, edit: Editor, node: ir.Node, mode: str) -> None:
        self._new, self._node, self._mode = Steps(edit, node), node, mode
        self._shape, self._places = shape_of(node.inputs[0]) or (), shape_of(node.inputs[1]) or ()
        self._padding = attribute(node, "padding_mode", "zeros")
        self._aligned = attribute(node, "align_corners", 0) == 1

    def write(self) -> bool:
        new, shape, size = self._new, self._shape, self._shape[2:]
        count = math.prod(self._places[1:-1])
        flat = new.reshape(self._node.inputs[0], shape[0], shape[1], math.prod(size))
        grid = new.reshape(self._node.inputs[1], shape[0], count, len(size))
        # The grid names the last axis first.
        where = [self._position(grid, len(size) - 1 - axis, n, count) for axis, n in enumerate(size)]
        taps = [self._taps(place) for place in where]
        total: ir.Value | None = None
        for chosen in itertools.product(*taps):
            index, weight = self._joined(chosen, size)
            wide = new.op("Expand", new.reshape(index, shape[0], 1, count), new.constant((shape[0], shape[1], count)))
            value = new.op("GatherElements", flat, wide, axis=2)
            if weight is not None:
                value = new.op("Mul", value, new.reshape(weight, shape[0], 1, count))
            total = value if total is None else new.op("Add", total, value)
        assert total is not None
        return new.finish(new.reshape(total, shape[0], shape[1], *self._places[1:-1]))

    def _number(self, value: float) -> ir.Value:
        return self._new.constant(value, np.float32)

    def _position(self, grid: ir.Value, column: int, size: int, count: int) -> ir.Value:
        """[N, count]: where on an axis of ``size`` values the grid points."""
        new = self._new
        x = new.reshape(new.op("Gather", grid, new.constant([column]), axis=2), self._shape[0], count)
        if self._aligned:
            place = new.op("Mul", new.op("Add", x, self._number(1)), self._number((size - 1) / 2))
        else:
            wide = new.op("Mul", new.op("Add", x, self._number(1)), self._number(size))
            place = new.op("Div", new.op("Sub", wide, self._number(1)), self._number(2))
        return place if self._mode == "cubic" else self._inside(place, size)

    def _inside(self, place: ir.Value, size: int) -> ir.Value:
        """A place brought inside as ``padding_mode`` says; with zeros it stays where it is."""
        new = self._new
        if self._padding == "zeros":
            return place
        if self._padding == "reflection":
            low, high = (0.0, size - 1.0) if self._aligned else (-0.5, size - 0.5)
            span = high - low
            if span <= 0:
                return new.op("Mul", place, self._number(0))
            # A triangle wave of period 2·span.
            moved = new.op("Abs", new.op("Sub", place, self._number(low)))
            periods = new.op("Floor", new.op("Div", moved, self._number(span)))
            rest = new.op("Sub", moved, new.op("Mul", periods, self._number(span)))
            odd = new.op("Sub", periods, new.op("Mul", new.op("Floor", new.op("Mul", periods, self._number(0.5))), self._number(2)))
            back = new.op("Sub", self._number(span), rest)
            folded = new.op("Where", new.op("Greater", odd, self._number(0.5)), back, rest)
            place = new.op("Add", folded, self._number(low))
        return new.op("Clip", place, self._number(0), self._number(size - 1))

    def _taps(self, place: ir.Value) -> list[tuple[ir.Value, ir.Value | None]]:
        """Whole places around one, and their shares (None: all of it)."""
        new = self._new
        if self._mode == "nearest":
            return [(new.op("Round", place), None)]
        below = new.op("Floor", place)
        share = new.op("Sub", place, below)
        if self._mode == "linear":
            return [(below, new.op("Sub", self._number(1), share)), (new.op("Add", below, self._number(1)), share)]
        return [(new.op("Add", below, self._number(offset)), self._cubic(share, offset)) for offset in (-1, 0, 1, 2)]

    def _cubic(self, share: ir.Value, offset: int) -> ir.Value:
        """Keys' weights with a = −0.75 at a distance of |share − offset|, as a polynomial in it."""
        new, a = self._new, -0.75
        d = new.op("Abs", new.op("Sub", share, self._number(offset)))
        terms = (a + 2, -(a + 3), 0.0, 1.0) if offset in (0, 1) else (a, -5 * a, 8 * a, -4 * a)
        total = self._number(terms[0])
        for term in terms[1:]:
            total = new.op("Add", new.op("Mul", total, d), self._number(term))
        return total

    def _joined(self, chosen: tuple[tuple[ir.Value, ir.Value | None], ...], size: tuple[int, ...]) -> tuple[ir.Value, ir.Value | None]:
        """The place in the flattened axes (int64), and the product of the shares; nothing is outside where zeros are."""
        new, weight = self._new, None
        index: ir.Value | None = None
        for (tap, share), n in zip(chosen, size, strict=True):
            place = tap
            shares = [share] if share is not None else []
            if self._padding == "zeros":
                inside = new.op("And", new.op("GreaterOrEqual", place, self._number(0)), new.op("LessOrEqual", place, self._number(n - 1)))
                shares.append(new.cast(inside, ir.DataType.FLOAT))
            elif self._mode == "cubic":
                place = self._inside(place, n)
            for one in shares:
                weight = one if weight is None else new.op("Mul", weight, one)
            whole = new.op("Clip", place, self._number(0), self._number(n - 1))
            index = whole if index is None else new.op("Add", new.op("Mul", index, self._number(n)), whole)
        assert index is not None
        return new.cast(index, ir.DataType.INT64), weight


RULES: dict[str, Callable[[Editor, ir.Node], bool]] = {"GridSample": grid_sample}
