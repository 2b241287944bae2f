"""The design under construction: tensors, layouts, and how an exact accumulator becomes a rounded, clamped result.

Rounding by type: where the multiplier is one power of two, q·2^e is the accumulator's value on a coarser grid, and
assigning it to fixed<…,RND_CONV,SAT> rounds half to even and saturates: the numeric contract, for free. Everything else
is one ``Requantize`` layer (templates/nnet_gatewright.h) behind an exact accumulator.

Layout: channels last. Reshape and Transpose are orders of elements (``Tensor.order``) that the next layer takes into its
weights, so they cost nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from gatewright.frontend.integer import Grid, IntegerOp, Multiplier
from gatewright.frontend.rounding import requantize

from .network import Array, Fixed, Layer, Tool


class Refused(Exception):
    """Why one operation cannot be lowered exactly, and what to do; legalize.py adds the node's name."""

    def __init__(self, rule: str, hint: str | None = None) -> None:
        super().__init__(rule)
        self.rule, self.hint = rule, hint


@dataclass(frozen=True)
class Tensor:
    """An integer value of the graph inside the design: v = q − z times 2^exponent."""

    layer: str
    type: Fixed
    shape: tuple[int, ...]
    """ONNX's, without the samples' axis."""
    laid: tuple[int, ...]
    """The design's."""
    order: Array
    """order[i]: the ONNX flat index of the element at flat position i of the design."""
    lo: int
    hi: int
    """Proven bounds of v."""

    @property
    def exponent(self) -> int:
        return self.type.exponent


@dataclass(frozen=True)
class Result:
    """What an accumulator layer must give as its output, and what follows it."""

    type: Fixed
    finish: Callable[[str], Tensor]
    """Given the accumulator layer's name: the operation's tensor, after appending what is still needed."""


@dataclass
class Builder:
    """Layers so far. ``node`` names the ONNX node being lowered."""

    tool: Tool
    layers: list[Layer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    node: str = ""

    def append(
        self, what: str, kind: str, inputs: Sequence[str], laid: tuple[int, ...], types: dict[str, Fixed],
        attributes: dict[str, object] | None = None, arrays: dict[str, Array] | None = None,
    ) -> str:  # fmt: skip
        """A layer named layer_<number>_<what>."""
        name = f"layer_{len(self.layers)}_{what}"
        self.layers.append(Layer(name, kind, tuple(inputs), laid, types, attributes or {}, arrays or {}, self.node))
        return name

    # ---- layout -------------------------------------------------------------------------------------------------

    def laid_out(self, x: Tensor, order: Array, laid: tuple[int, ...]) -> str:
        """A layer that gives x in this order and shape."""
        return self.reshaped(x, laid) if np.array_equal(x.order, order) else self.gathered(x, order, laid)

    def gathered(self, x: Tensor, wanted: Array, laid: tuple[int, ...]) -> str:
        """A layer that gives the elements of x with these ONNX flat indices: wires where tensors lie in registers, a buffer streamed."""
        place = np.empty(x.order.size, np.int64)
        place[x.order] = np.arange(x.order.size)
        source = place[wanted]
        types = {"source": Fixed.holding(0, x.order.size - 1, 0), "result": wrapping(x.type)}
        return self.append("gather", "Gather", [x.layer], laid, types, {"target_shape": list(laid)}, {"source": source.astype(np.float64)})

    def reshaped(self, x: Tensor, laid: tuple[int, ...]) -> str:
        """A layer that gives x's elements as they lie, under another shape."""
        if x.laid == laid:
            return x.layer
        return self.append("reshape", "Reshape", [x.layer], laid, {"result": wrapping(x.type)}, {"target_shape": list(laid)})

    # ---- results ------------------------------------------------------------------------------------------------

    def result(self, op: IntegerOp, multiplier: Multiplier, accumulator: Tensor) -> Result:
        """How ``accumulator`` (a tensor of a layer not yet named) becomes the operation's result.

        ``multiplier``: per result step; its channels are axis 0 of a convolution's result, else the last.
        """
        x = accumulator
        zero = int(op.grid.zero_point)
        lo, hi = op.lo - zero, op.hi - zero
        least = int(np.min(requantize(np.asarray(x.lo, np.int64), multiplier, 0)))
        most = int(np.max(requantize(np.asarray(x.hi, np.int64), multiplier, 0)))
        shift = uniform_shift(multiplier)
        if shift is not None:
            reached = (min(max(least, lo), hi), max(min(most, hi), lo))
            type_ = Fixed.holding(*reached, x.exponent - shift).saturated()
            # Saturation is the clamp where the type ends at the clamp's bound, and does nothing where that is never reached.
            if (type_.bounds[0] == lo or least >= lo) and (type_.bounds[1] == hi or most <= hi):
                return Result(type_, lambda name: dataclasses.replace(x, layer=name, type=type_, lo=reached[0], hi=reached[1]))
        unit = natural_exponent(op.grid)
        real = np.ldexp(multiplier.m.astype(np.float64), unit - x.exponent - multiplier.k)
        if real.ndim == 1:
            real = real.reshape(-1, *[1] * (len(x.shape) - 1)) if op.kind == "conv" else real
        elif real.ndim > 1:
            real = real[0]
        scale = periodic(np.broadcast_to(real, x.shape).reshape(-1)[x.order], x.laid[-1])
        exact = wrapping(x.type)

        def finish(name: str) -> Tensor:
            return self.clamped(op, dataclasses.replace(x, layer=name, type=exact), scale, np.zeros(1), (least, most))

        return Result(exact, finish)

    def requantized(self, op: IntegerOp, multiplier: Multiplier, x: Tensor) -> Tensor:
        """x·M rounded and clamped; nothing is added where that changes no value."""
        zero = int(op.grid.zero_point)
        if uniform_shift(multiplier) == 0 and op.lo - zero <= x.lo and x.hi <= op.hi - zero:
            return x
        found = self.result(op, multiplier, x)
        return found.finish(self.rounded(x, found.type) if found.type.saturating else x.layer)

    def rounded(self, x: Tensor, type_: Fixed) -> str:
        """A layer that assigns x to ``type_`` and does nothing else."""
        return self._scale("round", x, np.ones(1), np.zeros(1), type_, type_, type_.bounds)

    def scaled(self, x: Tensor, multiplier: Multiplier, unit: int) -> Tensor:
        """x·M in units of 2^unit with nothing rounded: x itself where its binary point already lies right."""
        m, k = int(multiplier.m), int(multiplier.k)
        if m == 0:
            raise Refused("the scale of one operand vanishes beside the result's", "quantize them with closer scales")
        trailing = (m & -m).bit_length() - 1
        factor, exponent = m >> trailing, unit - k + trailing
        if factor == 1 and exponent == x.exponent:
            return x
        lo, hi = x.lo * factor, x.hi * factor
        type_ = Fixed.holding(lo, hi, exponent)
        name = self._scale("scale", x, np.array([math.ldexp(factor, exponent - x.exponent)]), np.zeros(1), type_, type_, (lo, hi))
        return dataclasses.replace(x, layer=name, type=type_, lo=lo, hi=hi)

    def clamped(self, op: IntegerOp, x: Tensor, scale: Array, bias: Array, wide: tuple[int, int]) -> Tensor:
        """The Requantize layer: x·scale + bias (reals) rounded to the result's step, where it lies within ``wide``, then clamped."""
        zero, unit = int(op.grid.zero_point), natural_exponent(op.grid)
        lo, hi = op.lo - zero, op.hi - zero
        reached = (min(max(wide[0], lo), hi), max(min(wide[1], hi), lo))
        rounds = Fixed.holding(min(wide[0], lo), max(wide[1], hi), unit).saturated()
        type_ = Fixed.holding(*reached, unit)
        name = self._scale("requantize", x, scale, bias, rounds, type_, (lo, hi))
        return dataclasses.replace(x, layer=name, type=type_, lo=reached[0], hi=reached[1])

    def _scale(self, what: str, x: Tensor, scale: Array, bias: Array, wide: Fixed, type_: Fixed, clamp: tuple[int, int]) -> str:
        # Both arrays are used in turn, so they need one common length.
        length = math.lcm(scale.size, bias.size)
        arrays = {"scale": np.resize(scale, length), "bias": np.resize(bias, length)}
        types = {"wide": wide, "scale": exact_type(scale), "bias": exact_type(bias), "result": type_}
        attributes: dict[str, object] = {"lowest": math.ldexp(clamp[0], wide.exponent), "highest": math.ldexp(clamp[1], wide.exponent)}
        return self.append(what, "Requantize", [x.layer], x.laid, types, attributes, arrays)


# ---- numbers ----------------------------------------------------------------------------------------------------


def natural_exponent(grid: Grid | None) -> int:
    """log2 of the scale where that is one power of two: the design then holds the real values. Else 0: it holds the integers."""
    if grid is None or grid.scale.size != 1:
        return 0
    mantissa, exponent = math.frexp(float(grid.scale.reshape(())))
    return exponent - 1 if mantissa == 0.5 else 0


def uniform_shift(multiplier: Multiplier) -> int | None:
    """log2 M where every M is the same power of two."""
    m, k = np.broadcast_arrays(multiplier.m, multiplier.k)
    first_m, first_k = int(m.flat[0]), int(k.flat[0])
    if first_m <= 0 or first_m & (first_m - 1) or np.any(m != first_m) or np.any(k != first_k):
        return None
    return first_m.bit_length() - 1 - first_k


def wrapping(type_: Fixed) -> Fixed:
    """The same values without rounding or saturation, for a layer that only passes them on."""
    return dataclasses.replace(type_, saturating=False)


def exact_type(values: Array) -> Fixed:
    """The narrowest type that holds every one of these float64 values exactly."""
    nonzero = values[values != 0]
    if not nonzero.size:
        return Fixed.holding(0, 0, 0)
    mantissa, exponent = np.frexp(nonzero)
    whole = np.rint(np.ldexp(mantissa, 53)).astype(np.int64)
    lowest_bit = np.log2((whole & -whole).astype(np.float64)).astype(np.int64)
    least = int(np.min(exponent - 53 + lowest_bit))
    integers = [int(Fraction(float(value)) / Fraction(2) ** least) for value in nonzero]
    return Fixed.holding(min(0, *integers), max(0, *integers), least)


def periodic(values: Array, channels: int) -> Array:
    """The shortest of one value, one per channel, or all that repeats to ``values`` (flat, channels last)."""
    if np.all(values == values[0]):
        return values[:1]
    rows = values.reshape(-1, channels)
    return rows[0] if np.all(rows == rows[0]) else values


def channels_last(shape: Sequence[int]) -> Array:
    """The order of a (C, …) tensor laid out (…, C)."""
    axes = (*range(1, len(shape)), 0)
    return np.arange(math.prod(shape)).reshape(tuple(shape)).transpose(axes).reshape(-1)


def image(shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W), (C, W) or (C,) as (height, width, channels)."""
    channels, *spatial = shape
    height, width = [1] * (2 - len(spatial)) + list(spatial)
    return height, width, channels
