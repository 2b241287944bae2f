"""The constants of a model on their grids: weights, biases and constant operands, each proven to keep its accumulator in 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError
from gatewright.frontend.integer import Grid
from gatewright.frontend.queries import INTEGER_BOUNDS, constant, integer

from . import rewrite
from .grids import QuantizedConstant, quantize_weight
from .placement import Layer, Placement
from .qdq import Writer
from .rewrite import Array

if TYPE_CHECKING:
    from .quantize import Quantize

ACCUMULATOR = 2**31
"""Integer kernels accumulate in 32 bits: |acc| stays below this, proven."""

BIAS_LIMIT = 2**30
"""A bias on the accumulator's scale stays below this; where weights are tiny beside the bias, their scale is raised."""


class Weights:
    """Weights, biases and constant operands of one model."""

    def __init__(
        self,
        options: Quantize,
        placement: Placement,
        grids: dict[ir.Value, Grid],
        wide: set[ir.Value],
        bits: Callable[[ir.Node], int | None],
    ) -> None:
        """``bits``: those asked for one layer's weights by name."""
        self.options, self.placement, self.grids, self.wide, self.bits = options, placement, grids, wide, bits
        self.notes: list[str] = []

    def write(self, writer: Writer) -> None:
        too_wide: dict[str, tuple[int, int]] = {}
        """Layer name to the bits of its input and the most bits of its weights that are safe."""
        for layer in self.placement.layers:
            weight, fits = self._weight(layer)
            source = layer.node.inputs[0]
            assert source is not None
            if fits is not None:
                too_wide[layer.node.name or ""] = self.grids[source].bits, fits
                continue
            writer.constant(layer.node, 1, weight)
            unit = self.grids[source].scale.astype(np.float32) * weight.grid.scale
            for node, index in layer.biases:
                writer.bias(node, index, unit, 1 if node.op_type == "Add" and layer.node.op_type == "Conv" else None)
        if too_wide:
            first, (bits, _) = next(iter(too_wide.items()))
            smallest = min(fits for _, fits in too_wide.values())
            raise PassError(
                f"layer {first!r} could overflow its 32-bit accumulator with weights of {self.options.weights} bits"
                f" and inputs of {bits}" + (f", {len(too_wide) - 1} more layers too" if len(too_wide) > 1 else ""),
                hint=f"weight_bits={smallest} is proven safe" if smallest >= 2 else "use fewer bits",
            )
        for node, index in self.placement.constants:
            value = node.inputs[index]
            array = rewrite.real_constant(value)
            assert array is not None
            # Not a weight but an activation that never changes.
            bits = self.options.wide_bits if self._is_wide(node) else self.options.bits
            writer.constant(node, index, quantize_weight(array, self.options.grid, bits, None))

    def _is_wide(self, node: ir.Node) -> bool:
        return any(node in self.placement.inside.get(v, ()) for v in self.wide)

    def _weight(self, layer: Layer) -> tuple[QuantizedConstant, int | None]:
        """The weight at its width; or, where the accumulator could overflow, the most bits that are proven safe (0: none).

        A layer that is kept wide, or that reads one, takes those bits by itself.
        """
        node = layer.node
        array, source = rewrite.real_constant(node.inputs[1]), node.inputs[0]
        assert array is not None
        assert source is not None
        grid = self.grids[source]
        axis = layer.axis if self.options.per == "channel" else None
        bias = sum((bias_of(n, i, array.shape[layer.axis]) for n, i in layer.biases), np.zeros(array.shape[layer.axis]))
        floor = np.abs(bias) / (float(grid.scale) * BIAS_LIMIT)
        asked = self.bits(node)
        wanted = asked or (self.options.wide_bits if layer.output in self.wide else self.options.weights)
        wide = layer.output in self.wide or source in self.wide or asked is not None
        if (kept := self._kept(layer, wanted, floor, bias, grid)) is not None:
            return kept, None
        for bits in range(wanted, 1, -1):
            found = quantize_weight(array, self.options.grid, bits, axis, floor, self.options.range != "minmax")
            if _reach(found, grid, bias, layer.axis) < ACCUMULATOR:
                if bits == wanted or wide:
                    if bits < wanted:
                        self.notes.append(f"{node.name}: weights take {bits} bits instead of {wanted}, so that the accumulator stays in 32")
                    return found, None
                return found, bits
        return found, 0

    def _kept(self, layer: Layer, wanted: int, floor: Array, bias: Array, grid: Grid) -> QuantizedConstant | None:
        """A weight that comes as integers (rounded by adaround, gptq …) keeps them, where they fit what was asked for."""
        found = stored_weight(layer.node.inputs[1], layer.axis)
        if found is None or found.grid.bits > wanted:
            return None
        why = None
        if self.options.grid == "pow2" and not found.grid.is_pow2:
            why = "its scales are no powers of two"
        elif np.any(found.grid.scale < floor):
            why = "its bias would not fit beside it"
        elif _reach(found, grid, bias, layer.axis) >= ACCUMULATOR:
            why = "its accumulator could overflow"
        if why is not None:
            self.notes.append(f"{layer.node.name}: the stored integers of its weight are rounded again, {why}")
        return None if why else found


def stored_weight(value: ir.Value | None, axis: int) -> QuantizedConstant | None:
    """The integers of a weight that is a DequantizeLinear of a constant with zero point 0, one scale or one for each index of ``axis``."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or integer(node, "block_size", 0) or len(node.inputs) < 3:
        return None
    q, scale, zero = (constant(v) for v in node.inputs[:3])
    source = node.inputs[0]
    if q is None or scale is None or zero is None or zero.any() or source is None or source.dtype not in INTEGER_BOUNDS:
        return None
    if not np.all(np.isfinite(scale) & (scale > 0)) or (scale.size > 1 and integer(node, "axis", 1) % q.ndim != axis):
        return None
    whole = scale.size == 1
    scale, reach = scale.reshape(() if whole else -1).astype(np.float32), int(np.abs(q.astype(np.int64)).max(initial=1))
    # A weight's grid leaves the most negative integer out (grids.py): 2^b − 1 of them.
    hi = max(2 ** int(reach).bit_length() - 1, 1)
    lo = -hi if int(q.astype(np.int64).min(initial=0)) >= -hi else -hi - 1
    grid = Grid(source.dtype, scale, np.zeros(scale.shape, np.int64), lo, hi, None if whole else axis)
    return QuantizedConstant(q.astype(np.int64), grid)


def bias_of(node: ir.Node, index: int, channels: int) -> Array:
    """A constant bias, float64 [channels]."""
    array = rewrite.real_constant(node.inputs[index])
    assert array is not None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (channels,))


def _reach(weight: QuantizedConstant, grid: Grid, bias: Array, axis: int) -> float:
    """The largest magnitude that any partial sum can have: Σ|w|·max|q − z| + |bias|."""
    rows = np.abs(np.moveaxis(weight.values, axis, 0).reshape(weight.values.shape[axis], -1)).sum(axis=1).astype(np.float64)
    zero = int(grid.zero_point)
    unit = float(grid.scale) * weight.grid.scale.astype(np.float64)
    return float((rows * max(abs(grid.lo - zero), abs(grid.hi - zero)) + np.abs(bias) / unit + 1).max(initial=0.0))
