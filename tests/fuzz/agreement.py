"""When two engines agree on a graph: how far rounding alone may move each of its values.

The reference is run again with noise of a few roundings' size on what every operator reads and writes that rounds (stochastic
arithmetic: D. Stott Parker, Monte Carlo Arithmetic, 1997). How far a value then moves, cancellation, steep functions and jumps at
a threshold included, is what the order of sums or another exp may do to it. What does not move (movement, comparisons, integer
operations) has to be equal, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gatewright.frontend.integer import FloatStep
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference

Array = NDArray[Any]
Values = dict[str, Array]

NOISE = {"float16": 2.0**-9, "float32": 2.0**-21, "float64": 2.0**-50}
"""Relative: a few roundings of each type."""
SINGLE = frozenset({"Erf", "Gelu", "GroupNormalization", "HardSwish", "InstanceNormalization", "LayerNormalization", "Shrink"})
"""Operators of which other engines take a stage or a constant in float32 even where the values are double (stash_type, √2, onnx's Erf)."""
FACTOR = 8.0
"""A value may differ by so many times what the noise moved it."""
EXACT = frozenset(
    [
        "Abs",
        "And",
        "ArgMax",
        "ArgMin",
        "Ceil",
        "Clip",
        "Compress",
        "Concat",
        "DepthToSpace",
        "DequantizeLinear",
        "Dropout",
        "DynamicQuantizeLinear",
        "Equal",
        "Expand",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalMaxPool",
        "Greater",
        "GreaterOrEqual",
        "Hardmax",
        "Identity",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "Max",
        "MaxPool",
        "Min",
        "Neg",
        "Not",
        "OneHot",
        "Or",
        "Pad",
        "QuantizeLinear",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "ReverseSequence",
        "Round",
        "Sign",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Where",
        "Xor",
    ]
)
"""Operators without a rounding of their own."""

BOUNDED = frozenset(
    [
        "Celu",
        "Cos",
        "Elu",
        "Erf",
        "GRU",
        "Gelu",
        "HardSigmoid",
        "If",
        "LSTM",
        "LogSoftmax",
        "Mish",
        "RNN",
        "Selu",
        "Sigmoid",
        "Sin",
        "Softmax",
        "Softplus",
        "Tanh",
    ]
)
"""Operators whose approximations are good to a part of 1, not of the value."""


COMPARISONS = frozenset({"ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "TopK"})


class Noisy(Reference):
    """The reference with noise. ``as_float``: a quantized graph node by node, as an engine without integer meaning runs it;
    ``single``: what is ``SINGLE`` rounds as float32 does; ``wide``: between operators a float16 may be left unrounded, so that one
    that is read twice is two that differ."""

    def __init__(self, model: Model, as_float: bool = False, size: float = 1.0, single: bool = False, wide: bool = False) -> None:
        super().__init__(model)
        self._size = size
        self._wide = wide
        self._of_single = SINGLE if single else frozenset()
        # In float the product with a scale rounds; of what has an integer meaning only the result is float.
        self._exact = EXACT - {"DequantizeLinear"} if as_float else EXACT
        if as_float:
            self.plan = replace(self.plan, steps=tuple(FloatStep(node) for node in self.model.graph))

    def disturbed(self, feeds: Values, seed: int) -> Values:
        self._random = np.random.default_rng(seed)
        return self.run(feeds)

    def _float_step(self, step: FloatStep, values: Values, saturated: Counter[str]) -> None:
        node = step.node
        half = self._wide and node.op_type in COMPARISONS and any(v is not None and v.dtype == ir.DataType.FLOAT16 for v in node.inputs)
        if node.op_type in self._exact and step.exponentials is None and not half:
            super()._float_step(step, values, saturated)
            return
        # ONNX Runtime takes a variance as the mean of squares less the square of the mean, which cancels.
        self._coarse = 32.0 if node.op_type == "InstanceNormalization" else 1.0
        self._single = node.op_type in self._of_single
        # Constants stay: an exponent, a scale or an axis means what it is.
        kept = {
            v.name or "": values[v.name or ""] for v in node.inputs if v is not None and v.const_value is None and not step.exponentials
        }
        values.update({name: self._moved(array) for name, array in kept.items()})
        super()._float_step(step, values, saturated)
        values.update(kept)
        for output in node.outputs:
            if output.name:
                values[output.name] = self._moved(values[output.name], node.op_type in BOUNDED)
        if node.op_type in ("BatchNormalization", "InstanceNormalization"):
            output = node.outputs[0].name or ""
            values[output] = self._moved(values[output], within=_terms(node, values))
        elif node.op_type in ("GroupNormalization", "LayerNormalization") and len(node.inputs) > 2 and node.inputs[2] is not None:
            output, bias = node.outputs[0].name or "", np.abs(values[node.inputs[2].name or ""]).max(initial=0.0)
            values[output] = self._moved(values[output], within=np.abs(values[output]) + 2 * bias)

    def _moved(self, array: Array, absolute: bool = False, within: Array | None = None) -> Array:
        """``within``: the magnitude of what was added to give the array, where that is not its own."""
        if array.dtype.kind != "f":
            return array
        kind = "float32" if self._single and array.dtype == np.float64 else array.dtype.name
        noise = self._random.uniform(-1, 1, array.shape) * (self._size * self._coarse * NOISE[kind])
        if within is not None:
            return np.asarray(array + noise * within, array.dtype)
        return np.asarray(array + noise if absolute else array * (1 + noise), array.dtype)


def _terms(node: ir.Node, values: Values) -> Array:
    """|a·x| + |b − a·mean|: engines normalize as a·x + c, whose terms may be far larger than their sum."""
    x, scale, bias, *known = (values[v.name or ""].astype(np.float64) for v in node.inputs if v is not None)
    along = (1, -1, *[1] * (x.ndim - 2))
    inner = tuple(range(2, x.ndim))
    mean, variance = (a.reshape(along) for a in known) if known else (x.mean(axis=inner, keepdims=True), x.var(axis=inner, keepdims=True))
    factor = scale.reshape(along) / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return np.asarray(np.abs(factor) * (np.abs(x) + np.abs(mean)) + np.abs(bias.reshape(along)))


@dataclass(frozen=True)
class Difference:
    """The first output that is not what it should be."""

    output: str
    what: str

    def __str__(self) -> str:
        return f"{self.output}: {self.what}"


class Judge:
    """Holds one graph's reference values and says of others whether rounding explains how they differ."""

    def __init__(self, model: Model, feeds: Values) -> None:
        self._model, self._feeds = model, feeds
        self.wanted = Reference(model).run(feeds)
        self._moved: dict[tuple[bool, int, bool, bool], list[Values]] = {}

    def compare(
        self, got: Values, *, as_float: bool = False, folded: bool = False, single: bool = False, wide: bool = False
    ) -> Difference | None:
        """None where ``got`` agrees. ``as_float``: of an engine that runs a quantized graph in float; ``folded``: ``got`` is of the
        graph as it was before what is constant was computed, where noise has nothing to move; ``single``: of one that takes stages
        of what is double in float32; ``wide``: of one that does not round every float16."""
        for name, wanted in self.wanted.items():
            if name not in got:
                return Difference(name, "missing")
            value = got[name]
            if value.shape != wanted.shape or value.dtype != wanted.dtype:
                return Difference(name, f"{value.dtype}{list(value.shape)}, not {wanted.dtype}{list(wanted.shape)}")
            if same(value, wanted):
                continue
            # Noise seldom happens to cross a threshold, so what looks wrong after a few runs is judged again by many.
            for runs in (4, 32):
                bad = self._beyond(name, value, runs, folded, (as_float, single, wide))
                if not bad.any():
                    break
            else:
                place = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(bad)))
                found, right = (np.atleast_1d(array)[place] for array in (value, wanted))
                return Difference(name, f"{int(bad.sum())} of {bad.size} differ, at {list(place)} {found!r}, not {right!r}")
        return None

    def _beyond(self, name: str, value: Array, runs: int, folded: bool, kind: tuple[bool, bool, bool]) -> NDArray[np.bool_]:
        single = kind[1]
        a, b = (array.astype(np.float64) for array in (value, self.wanted[name]))
        reached = np.stack([b, *(run[name].astype(np.float64) for run in self._runs(runs, *kind))])
        with np.errstate(invalid="ignore"):
            # Noise that leads out of a function's domain (a root of almost zero) says that any value may come.
            moved = np.nan_to_num(np.abs(reached - b), nan=0.0, posinf=0.0)
            lost = (np.isfinite(b) & ~np.isfinite(reached)).any(axis=0)
        spread = moved.max(axis=0)
        if self.wanted[name].dtype.kind == "f":
            # Where one value happened to move little, others of its size tell how far it can.
            largest = float(np.abs(b).max(initial=0.0))
            relative = float(spread.max(initial=0.0)) / largest if largest else 0.0
            smallest = float(np.finfo(self.wanted[name].dtype).smallest_normal)
            spread = FACTOR * np.maximum(spread, relative * np.nan_to_num(np.abs(b))) + smallest
            if folded:
                spread = (
                    spread
                    + FACTOR
                    * NOISE["float32" if single and self.wanted[name].dtype == np.float64 else self.wanted[name].dtype.name]
                    * largest
                )
        with np.errstate(invalid="ignore"):
            return ~((np.abs(a - b) <= spread) | lost | (a == b) | (np.isnan(a) & np.isnan(b)))

    def _runs(self, runs: int, as_float: bool, single: bool, wide: bool) -> list[Values]:
        key = (as_float, runs, single, wide)
        if key not in self._moved:
            sizes = (1.0, 4.0)
            noisy = [Noisy(self._model, as_float, size, single, wide) for size in sizes]
            self._moved[key] = [noisy[i % 2].disturbed(self._feeds, i) for i in range(runs)]
        return self._moved[key]


def same(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
