"""QuantizeLinear and DequantizeLinear in training: the grid's values forwards, straight-through gradients backwards.

    q = clamp(rne(x/s) + z, lo, hi),   x̂ = s·(q − z)

Rounding passes the gradient on as if it were not there (Bengio, Léonard, Courville 2013, arXiv:1308.3432); where the clamp
saturates, x has none. The composition gives the scale the gradient of LSQ (Esser et al. 2020, arXiv:1902.08153):
∂x̂/∂s = q − z − x/s inside, lo − z or hi − z outside. A scale is trained as the octaves t it is away from where it started,
s = s₀·2^t, on a power-of-two grid s = s₀·2^rne(t) (Jain et al. 2020, arXiv:1903.08066), so it never leaves its grid.

Weights are trained as real numbers (latent) and rounded in every forward run. With one bit a weight is sign(w)·s,
and w has a gradient where |w| ≤ s·``BINARY_REACH`` (Courbariaux et al. 2015, arXiv:1511.00363).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from gatewright.frontend.edit import Array
from gatewright.frontend.queries import INTEGER_BOUNDS, constant, integer, shape_of
from gatewright.frontend.recognise import BIAS_TOLERANCE

BINARY_REACH = 4.0
"""Latent binary weights learn up to this many scales from zero; past it they are settled."""


def round_through(x: Tensor) -> Tensor:
    """rne(x), exactly: x + (rne(x) − x) loses nothing in floating point. The gradient is that of x."""
    return x + (torch.round(x) - x).detach()


def sign_through(x: Tensor, reach: Tensor) -> Tensor:
    """+1 where x ≥ 0, else −1. The gradient is 1/reach-sloped inside ±reach, none outside."""
    soft = torch.clamp(x / reach, -1, 1)
    return soft + (torch.where(x >= 0, 1.0, -1.0).to(x.dtype) - soft).detach()


def quantize(x: Tensor, scale: Tensor, zero: Tensor, lo: int, hi: int) -> Tensor:
    """The integers, as floats."""
    return torch.clamp(round_through(x / scale) + zero, lo, hi)


def octaves(start: Tensor, t: Tensor, pow2: bool, factor: float) -> Tensor:
    """s₀·2^t, the gradient of t times ``factor``."""
    t = t * factor + (t - t * factor).detach()
    soft = torch.exp2(t)
    if not pow2:
        return start * soft
    exact = torch.ldexp(torch.ones_like(t), torch.round(t.detach()).to(torch.int32))
    return start * (soft + (exact - soft).detach())


@dataclass(frozen=True)
class WeightGrid:
    """An integer initializer behind a DequantizeLinear: q in lo … hi, or ±1 if ``binary``."""

    name: str
    scale: str
    dtype: ir.DataType
    zero: Array
    """int64, () or per channel."""
    axis: int | None
    lo: int
    hi: int
    shape: tuple[int, ...]
    start: Array
    """The integers as they were, int64."""
    binary: bool = False

    @property
    def along(self) -> tuple[int, ...]:
        """The shape that broadcasts a scale along the weight."""
        return () if self.axis is None else tuple(-1 if i == self.axis else 1 for i in range(len(self.shape)))

    def integers(self, latent: Tensor, scale: Tensor) -> Tensor:
        """What the latent weight rounds to, as floats."""
        scale = scale.reshape(self.along)
        if self.binary:
            return sign_through(latent, scale.detach() * BINARY_REACH)
        return quantize(latent, scale, self._zero(latent), self.lo, self.hi)

    def __call__(self, latent: Tensor, scale: Tensor) -> Tensor:
        """x̂, float."""
        q = self.integers(latent, scale)
        return (q if self.binary else q - self._zero(latent)) * scale.reshape(self.along)

    def _zero(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.zero.reshape(self.along if self.zero.size > 1 else ()), dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class BiasGrid:
    """An int32 bias on the accumulator's scale s_x·s_w: its scale follows those two."""

    name: str
    scale: str
    units: tuple[str, str]
    """The scales s_x and s_w, by name."""
    axis: int | None
    shape: tuple[int, ...]
    start: Array

    @property
    def along(self) -> tuple[int, ...]:
        """The shape that broadcasts a scale per channel along the bias."""
        return tuple(-1 if i == self.axis else 1 for i in range(len(self.shape)))

    def __call__(self, latent: Tensor, s_x: Tensor, s_w: Tensor) -> Tensor:
        unit = (s_x * s_w).detach().reshape(self.along if s_w.ndim else ())
        return round_through(latent / unit) * unit


@dataclass(frozen=True)
class Grids:
    """The quantized constants and the scales of a QDQ graph."""

    weights: dict[str, WeightGrid]
    """By the integer initializer's name, as biases."""
    biases: dict[str, BiasGrid]
    scales: dict[str, float]
    """Scales that may be learned, and the factor that LSQ gives their gradient, 1/√(values·hi)."""

    @classmethod
    def of(cls, graph: ir.Graph) -> Grids:
        dequantized = {n.outputs[0]: n for n in graph if n.op_type == "DequantizeLinear" and constant(n.inputs[0]) is not None}
        biases: dict[str, BiasGrid] = {}
        for node in graph:
            for value, units in _biases_of(node):
                inner = dequantized.get(value)
                if inner is not None and (found := _bias(inner, units)) is not None:
                    biases[found.name] = found
        weights = {w.name: w for n in dequantized.values() if (w := _weight(n)).name not in biases}
        return cls(weights, biases, _scales(graph, weights))


def best_scales(real: Array, grid: WeightGrid) -> Array:
    """For each channel (or the whole) the scale whose rounding has the least squared error; for ±1 the mean magnitude, which has it.

    float64, () or [channels]. Found by trial of 160 scales around and below the one that covers the largest weight.
    """
    rows = real.reshape(1, -1) if grid.axis is None else np.moveaxis(real, grid.axis, 0).reshape(real.shape[grid.axis], -1)
    if grid.binary:
        found = np.abs(rows).mean(axis=1)
    else:
        covering = np.abs(rows).max(axis=1, initial=0.0) / grid.hi
        trials = covering[:, None] * np.geomspace(0.1, 1.2, 160)
        errors = np.stack([_error(rows, scale, grid) for scale in trials.T], axis=1)
        found = trials[np.arange(len(rows)), errors.argmin(axis=1)]
    found = np.where(found > 0, found, 1.0)
    return found.reshape(()) if grid.axis is None else found


def _error(rows: Array, scale: Array, grid: WeightGrid) -> Array:
    s = np.where(scale > 0, scale, 1.0)[:, None]
    return np.asarray(((np.clip(np.rint(rows / s), grid.lo, grid.hi) * s - rows) ** 2).sum(axis=1))


def _scales(graph: ir.Graph, weights: dict[str, WeightGrid]) -> dict[str, float]:
    found: dict[str, float] = {}
    for weight in weights.values():
        rows = math.prod(weight.shape) / (1 if weight.axis is None else weight.shape[weight.axis])
        found[weight.scale] = 1 / math.sqrt(max(rows, 1) * max(weight.hi, 1))
    for node in graph:
        if node.op_type == "QuantizeLinear" and node.inputs[1] is not None and constant(node.inputs[1]) is not None:
            dtype = node.outputs[0].dtype
            hi = INTEGER_BOUNDS[dtype][1] if dtype in INTEGER_BOUNDS else 127
            found.setdefault(node.inputs[1].name or "", 1 / math.sqrt(max(math.prod(shape_of(node.outputs[0])), 1) * hi))
    return found


def _weight(node: ir.Node) -> WeightGrid:
    """Bounds of the integers: those of the narrowest zero-centred width that holds them; with a zero point those of the type."""
    source, scale = node.inputs[0], node.inputs[1]
    assert source is not None
    assert source.dtype is not None
    assert scale is not None
    start = np.asarray(constant(source)).astype(np.int64)
    zero = np.asarray(constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0).astype(np.int64)
    lo, hi = INTEGER_BOUNDS[source.dtype]
    if not zero.any() and lo < 0:
        bits = max(int(np.abs(start).max(initial=1)).bit_length() + 1, 2)
        hi = min(2 ** (bits - 1) - 1, hi)
        lo = max(-hi, lo) if start.min(initial=0) >= -hi else lo
    axis = integer(node, "axis", 1) % max(start.ndim, 1) if shape_of(scale) else None
    return WeightGrid(source.name or "", scale.name or "", source.dtype, zero, axis, lo, hi, start.shape, start)


def _biases_of(node: ir.Node) -> Iterator[tuple[ir.Value, tuple[ir.Value, ir.Value]]]:
    """Values that ``node`` adds to an accumulator, each with the scales of that accumulator's operands."""
    if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 and node.inputs[2] is not None:
        units = _units(node)
        if units is not None:
            yield node.inputs[2], units
    elif node.op_type == "Add":
        for first, second in ((0, 1), (1, 0)):
            inner, other = node.inputs[first], node.inputs[second]
            producer = inner.producer() if inner is not None else None
            if producer is not None and other is not None and producer.op_type in ("MatMul", "Gemm", "Conv"):
                units = _units(producer)
                if units is not None:
                    yield other, units


def _units(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    found = []
    for value in node.inputs[:2]:
        producer = value.producer() if value is not None else None
        if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[1] is None or constant(producer.inputs[1]) is None:
            return None
        found.append(producer.inputs[1])
    return found[0], found[1]


def _bias(node: ir.Node, units: tuple[ir.Value, ir.Value]) -> BiasGrid | None:
    source, scale = node.inputs[0], node.inputs[1]
    if source is None or scale is None or source.dtype != ir.DataType.INT32 or len(scale.uses()) > 1 or len(source.uses()) > 1:
        return None
    s_x, s_w, own = (np.asarray(constant(v)).astype(np.float64) for v in (*units, scale))
    if s_x.size != 1 or own.size != s_w.size or np.any(np.abs(own.reshape(-1) / (s_x.reshape(-1) * s_w.reshape(-1)) - 1) > BIAS_TOLERANCE):
        return None
    start = np.asarray(constant(source)).astype(np.int64)
    axis = integer(node, "axis", 1) % max(start.ndim, 1) if own.ndim else None
    return BiasGrid(source.name or "", scale.name or "", (units[0].name or "", units[1].name or ""), axis, start.shape, start)
