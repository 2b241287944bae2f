"""Finds the integer operations of a canonical QDQ graph: from each QuantizeLinear back to the DequantizeLinears that feed it.

A match needs every float value in between to have one reader and to be no graph output; else somebody else sees the
float value, and the nodes keep their float meaning. Which node makes which ``IntegerOp`` is the table ``_MATCHERS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from gatewright.errors import ModelError

from . import elementwise, intervals
from .integer import Array, Exponentials, FloatStep, Grid, IntegerOp, Kind, Multiplier, Operand, Plan
from .intervals import Bounds, product_ratio, ratio
from .model import Model
from .queries import INTEGER_BOUNDS, clip_bounds, constant, integer, narrowed, reduce_axes, shape_of, sole_producer
from .rounding import PRODUCT_LIMIT, quantize
from .windows import Window, window_counts

BIAS_TOLERANCE = 1e-6
"""A bias scale this close (relative) to s_x·s_w counts as equal: float32 rounding of the product is 6e-8."""

MOVEMENT = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Expand", "Tile", "Gather", "Identity"}
    | {"DepthToSpace", "SpaceToDepth"}
)
"""Ops that only move values: the first input is the tensor, the others say where to."""

SOFTMAX_BITS = 30
"""Fraction bits of softmax's exponentials. 2^23 of them can be summed exactly in float64."""


def recognise(model: Model) -> Plan:
    """See ``integer.plan``."""
    return _Recogniser(model.graph).plan()


@dataclass
class _Target:
    """The QuantizeLinear that ends an operation: where the result goes, and the clamp that activations before it add."""

    value: ir.Value
    """The float value that is still to be explained; moves towards the inputs as activations are peeled off."""
    output: ir.Value
    grid: Grid
    float_name: str
    nodes: list[ir.Node]
    lo: int
    hi: int
    activation_lo: bool = False
    activation_hi: bool = False


@dataclass
class _Recogniser:
    graph: ir.Graph
    ops: dict[ir.Node, IntegerOp] = field(default_factory=dict)
    """By the node at whose place the operation runs: its last one."""
    covered: set[ir.Node] = field(default_factory=set)
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Proven bounds of the integer values seen so far."""
    grids: dict[str, Grid] = field(default_factory=dict)

    def plan(self) -> Plan:
        for node in self.graph:
            if node.op_type == "QuantizeLinear":
                self._quantize_node(node)
            else:
                self._carry_range(node)
        steps: list[IntegerOp | FloatStep] = []
        for node in self.graph:
            if node in self.ops:
                steps.append(self.ops[node])
            elif node not in self.covered and not self._only_read_by_ops(node):
                steps.append(FloatStep(node, self._exponentials(node) if node.op_type == "Softmax" else None))
        return Plan(tuple(steps), self.grids)

    def _only_read_by_ops(self, node: ir.Node) -> bool:
        """True for a DequantizeLinear all of whose readers are inside integer operations."""
        if node.op_type != "DequantizeLinear" or node.outputs[0].is_graph_output():
            return False
        readers = node.outputs[0].consumers()
        return bool(readers) and all(reader in self.covered for reader in readers)

    # ---- one QuantizeLinear -------------------------------------------------------------------------------------

    def _quantize_node(self, node: ir.Node) -> None:
        target = self._target(node)
        if target is None:
            return
        self.grids[target.output.name or ""] = target.grid
        op = self._match(target)
        if op is None:
            self.ranges[target.output.name or ""] = (target.grid.lo, target.grid.hi)
            return
        self.ops[target.nodes[-1]] = op
        self.covered.update(op.nodes)
        self.ranges[op.output] = op.output_range

    def _target(self, node: ir.Node) -> _Target | None:
        if len(node.inputs) < 3:
            # Only blocked scales come without a zero point: no integer operation has those.
            return None
        scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
        source = node.inputs[0]
        if scale is None or zero is None or source is None or scale.size != 1:
            return None
        output, nodes, dtype = node.outputs[0], [node], node.outputs[0].dtype
        if dtype not in INTEGER_BOUNDS:
            return None
        lo, hi = INTEGER_BOUNDS[dtype]
        readers = output.consumers()
        if len(readers) == 1 and readers[0].op_type == "Clip" and not output.is_graph_output():
            lo, hi = narrowed((lo, hi), readers[0])
            output, nodes = readers[0].outputs[0], [node, readers[0]]
        grid = Grid(dtype, scale.reshape(()).astype(np.float32), zero.reshape(()).astype(np.int64), lo, hi)
        if not (np.isfinite(grid.scale) and grid.scale > 0):
            raise ModelError(f"node {node.name!r} (QuantizeLinear) has the scale {grid.scale}", hint="a scale is a positive finite number")
        target = _Target(source, output, grid, source.name or "", nodes, lo, hi)
        self._peel_activations(target)
        return target

    def _peel_activations(self, target: _Target) -> None:
        """Relu and Clip before Q become a narrower clamp after it: Q is monotone, so Q(clip(v, a, b)) = clip(Q(v), Q(a), Q(b))."""
        while (node := sole_producer(target.value)) is not None and node.op_type in ("Relu", "Clip"):
            below, above = (0.0, math.inf) if node.op_type == "Relu" else clip_bounds(node)
            source = node.inputs[0]
            if below is None or above is None or source is None:
                return
            q_below, q_above = (int(quantize(np.asarray(b), target.grid.scale, target.grid.zero_point)) for b in (below, above))
            # The inner clamp acts first, so the outer bounds already found clip the inner ones.
            lo, hi = target.lo, target.hi
            target.lo, target.hi = min(max(q_below, lo), hi), min(max(q_above, lo), hi)
            target.activation_lo |= below > -math.inf and q_below >= lo
            target.activation_hi |= above < math.inf and q_above <= hi
            target.nodes.insert(0, node)
            target.value = source

    def _match(self, target: _Target) -> IntegerOp | None:
        if (direct := self._operand(target.value)) is not None:
            return self._finish(target, "requantize", None, (direct,), intervals.repeated(direct, 1), (ratio(direct.grid, target.grid),))
        node = sole_producer(target.value)
        if node is None:
            return None
        matcher = _MATCHERS.get(node.op_type)
        found = matcher(self, target, node) if matcher else None
        return found or self._table(target, node)

    # ---- operands -----------------------------------------------------------------------------------------------

    def _operand(self, value: ir.Value | None) -> Operand | None:
        """``value`` as the dequantized integer tensor that it is, per tensor; None if it is something else."""
        found = self._dequantized(value)
        if found is None or found[1].axis is not None or found[0].shape is None:
            return None
        source, grid = found
        name = source.name or ""
        values = constant(source)
        if values is not None:
            values = values.astype(np.int64)
            lo, hi = (int(values.min()), int(values.max())) if values.size else (0, 0)
        else:
            lo, hi = self.ranges.get(name, (grid.lo, grid.hi))
        return Operand(name, grid, shape_of(source), lo, hi, values)

    def _dequantized(self, value: ir.Value | None) -> tuple[ir.Value, Grid] | None:
        node = value.producer() if value is not None else None
        if node is None or node.op_type != "DequantizeLinear" or integer(node, "block_size", 0):
            return None
        if len(node.inputs) < 3:
            return None
        source, scale, zero = node.inputs[0], constant(node.inputs[1]), constant(node.inputs[2])
        if source is None or scale is None or zero is None or source.dtype not in INTEGER_BOUNDS:
            return None
        if not (np.all(np.isfinite(scale)) and np.all(scale > 0)):
            raise ModelError(f"node {node.name!r} (DequantizeLinear) has a scale that is not a positive finite number")
        lo, hi = self.ranges.get(source.name or "", INTEGER_BOUNDS[source.dtype])
        axis = None
        if scale.size > 1:
            axis = integer(node, "axis", 1) % len(shape_of(source))
            scale, zero = scale.reshape(-1), np.broadcast_to(zero.reshape(-1), (scale.size,))
        else:
            scale, zero = scale.reshape(()), zero.reshape(-1)[:1].reshape(())
        grid = Grid(source.dtype, scale.astype(np.float32), zero.astype(np.int64), lo, hi, axis)
        self.grids.setdefault(source.name or "", grid)
        return source, grid

    def _carry_range(self, node: ir.Node) -> None:
        """Bounds survive movement of integer tensors, and an integer Clip at an edge narrows them."""
        source = node.inputs[0] if node.inputs else None
        if source is None or source.dtype not in INTEGER_BOUNDS or not node.outputs:
            return
        known = self.ranges.get(source.name or "", INTEGER_BOUNDS[source.dtype])
        if node.op_type == "Clip" and node not in self.covered:
            self.ranges[node.outputs[0].name or ""] = narrowed(known, node)
        elif node.op_type in MOVEMENT:
            self.ranges[node.outputs[0].name or ""] = known
        elif node.op_type == "Split":
            for value in node.outputs:
                self.ranges[value.name or ""] = known

    # ---- the kinds ----------------------------------------------------------------------------------------------

    def _linear(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        """Conv, MatMul and Gemm, with the bias as an input or as an Add behind."""
        added: ir.Value | None = None
        extra: list[ir.Node] = []
        if node.op_type == "Add":
            split = self._bias_add(node)
            if split is None:
                return None
            extra, (node, added) = [node], split
        x, weight = self._operand(node.inputs[0]), self._dequantized(node.inputs[1])
        if x is None or weight is None:
            return None
        source, grid = weight
        values = constant(source)
        if values is None:
            return self._matmul_of_activations(target, node, x) if not extra else None
        conv = node.op_type == "Conv"
        out_axis = 0 if conv else values.ndim - 1
        if (not conv and values.ndim != 2) or (grid.axis is not None and grid.axis != out_axis) or x.constant is not None:
            return None
        if node.op_type == "Gemm" and (integer(node, "transA", 0) or integer(node, "transB", 0)):
            return None
        channels = values.shape[out_axis]
        along = tuple(-1 if axis == out_axis else 1 for axis in range(values.ndim)) if grid.axis is not None else ()
        w = values.astype(np.int64) - grid.zero_point.reshape(along)
        unit = x.grid.scale.astype(np.float64) * grid.scale.astype(np.float64)
        bias, notes = np.zeros(channels, np.int64), []
        inside = node.inputs[2] if len(node.inputs) > 2 else None
        for value, spatial in ((inside, False), (added, conv)):
            if value is not None:
                found = self._bias(value, unit, channels, spatial, node.name or "")
                if found is None:
                    return None
                bias = bias + found[0]
                notes += found[1]
        multiplier = Multiplier.of((unit / target.grid.scale.astype(np.float64)).astype(np.float32))
        bounds = intervals.weighted(x, w, bias, out_axis, conv and Window.of(node, values.shape[2:]).padded)
        target.nodes[:0] = [node, *extra]
        return self._finish(
            target, "conv" if conv else "matmul", node, (x,), bounds, (multiplier,),
            weight=w, weight_grid=grid, bias=bias, notes=tuple(notes),
        )  # fmt: skip

    def _bias_add(self, node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
        """An Add of a constant behind a linear node: that node, and the constant."""
        for first, second in ((0, 1), (1, 0)):
            inner, other = sole_producer(node.inputs[first]), node.inputs[second]
            if inner is not None and other is not None and inner.op_type in ("MatMul", "Conv", "Gemm"):
                found = self._dequantized(other)
                if constant(found[0] if found else other) is not None:
                    return inner, other
        return None

    def _bias(self, value: ir.Value, unit: Array, channels: int, spatial: bool, name: str) -> tuple[Array, list[str]] | None:
        """The bias on the accumulator's scale ``unit``, int64 [channels]. ``spatial``: it broadcasts from the right as [C, 1, 1]."""
        found = self._dequantized(value)
        raw = constant(found[0] if found else value)
        if raw is None or raw.size not in (1, channels):
            return None
        if raw.size > 1 and raw.shape.index(channels) != (raw.ndim - 3 if spatial else raw.ndim - 1):
            return None
        flat = np.broadcast_to(raw.reshape(-1), (channels,))
        if found is None:
            real = flat.astype(np.float64)
            rounded = np.rint(real / unit)
            exact = bool(np.all(rounded * unit == real))
            return rounded.astype(np.int64), [] if exact else [f"the bias of {name} is float; it was rounded to the accumulator's scale"]
        grid = found[1]
        integers, scale = flat.astype(np.int64) - grid.zero_point, grid.scale.astype(np.float64)
        off = float(np.max(np.abs(scale / unit - 1)))
        if off <= BIAS_TOLERANCE:
            return integers, []
        note = f"the bias of {name} was rounded again: its scale is {off:.2%} off s_x·s_w"
        return np.rint(integers * scale / unit).astype(np.int64), [note]

    def _matmul_of_activations(self, target: _Target, node: ir.Node, a: Operand) -> IntegerOp | None:
        b = self._operand(node.inputs[1])
        if node.op_type != "MatMul" or b is None:
            return None
        target.nodes.insert(0, node)
        bounds = intervals.product(a, b, times=a.shape[-1])
        return self._finish(target, "matmul", node, (a, b), bounds, (product_ratio(a.grid, b.grid, target.grid),))

    def _sum(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        if node.op_type == "Add" and (linear := self._linear(target, node)) is not None:
            return linear
        operands = self._operands(node)
        if operands is None:
            return None
        signs = (1, -1) if node.op_type == "Sub" else (1,) * len(operands)
        multipliers = tuple(ratio(o.grid, target.grid) for o in operands)
        k = max(int(m.k) for m in multipliers)
        low = high = reach = 0
        for operand, multiplier, sign in zip(operands, multipliers, signs, strict=True):
            factor = sign * (int(multiplier.m) << (k - int(multiplier.k)))
            ends = sorted(factor * end for end in intervals.centred(operand))
            low, high, reach = low + ends[0], high + ends[1], reach + max(abs(e) for e in ends)
        if reach >= PRODUCT_LIMIT:
            raise ModelError(
                f"node {node.name!r} ({node.op_type}) cannot be summed exactly in 62 bits: the scales of its operands are too far apart",
                hint="quantize them with closer scales",
            )
        target.nodes.insert(0, node)
        bounds = Bounds((-reach, reach), np.asarray(low, np.int64), np.asarray(high, np.int64))
        shift = Multiplier(np.asarray(1, np.int64), np.asarray(k, np.int64))
        result = bounds.requantized(shift, target.grid.zero_point)
        return self._finish(target, "sum", node, operands, bounds, multipliers, result=result, signs=signs)

    def _product(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        operands = self._operands(node)
        if operands is None or len(operands) != 2:
            return None
        target.nodes.insert(0, node)
        a, b = operands
        return self._finish(target, "product", node, operands, intervals.product(a, b), (product_ratio(a.grid, b.grid, target.grid),))

    def _concat(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        operands = self._operands(node)
        if operands is None:
            return None
        multipliers = tuple(ratio(o.grid, target.grid) for o in operands)
        each = [intervals.repeated(o, 1) for o in operands]
        results = [b.requantized(m, target.grid.zero_point) for b, m in zip(each, multipliers, strict=True)]
        partial = min(b.partial[0] for b in each), max(b.partial[1] for b in each)
        target.nodes.insert(0, node)
        result = min(r[0] for r in results), max(r[1] for r in results)
        return self._finish(target, "concat", node, operands, intervals.one(*partial), multipliers, result=result)

    def _average(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        x = self._operand(node.inputs[0])
        if x is None:
            return None
        if node.op_type == "GlobalAveragePool":
            counts: Array = np.asarray(math.prod(x.shape[2:]), np.int64)
        elif node.op_type == "ReduceMean":
            axes = reduce_axes(node, len(x.shape))
            if axes is None:
                return None
            counts = np.asarray(math.prod(x.shape[a] for a in axes), np.int64)
        else:
            counts = window_counts(Window.of(node), x.shape[2:], integer(node, "count_include_pad", 0) == 1)
            if counts.size and np.all(counts == counts.flat[0]):
                counts = counts.reshape(-1)[0]
        if not np.all(counts > 0):
            return None
        multiplier = Multiplier.of((x.grid.scale.astype(np.float64) / (counts * target.grid.scale.astype(np.float64))).astype(np.float32))
        target.nodes.insert(0, node)
        bounds = intervals.repeated(x, int(np.max(counts)))
        # Where windows have different counts (or count padding), the bounds of the largest one do not scale: the grid's own hold.
        whole = not multiplier.m.ndim and not (node.op_type == "AveragePool" and Window.of(node).padded)
        return self._finish(target, "average", node, (x,), bounds, (multiplier,), result=None if whole else (target.lo, target.hi))

    def _maximum(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        x = self._operand(node.inputs[0])
        if x is None or any(v.consumers() or v.is_graph_output() for v in node.outputs[1:]):
            return None
        if node.op_type == "ReduceMax" and reduce_axes(node, len(x.shape)) is None:
            return None
        target.nodes.insert(0, node)
        return self._finish(target, "maximum", node, (x,), intervals.repeated(x, 1), (ratio(x.grid, target.grid),))

    def _movement(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        x = self._operand(node.inputs[0])
        if x is None or any(v is not None and constant(v) is None for v in node.inputs[1:]):
            return None
        target.nodes.insert(0, node)
        return self._finish(target, "requantize", node, (x,), intervals.repeated(x, 1), (ratio(x.grid, target.grid),))

    def _exponentials(self, node: ir.Node) -> Exponentials | None:
        x = self._operand(node.inputs[0])
        if x is None or x.constant is not None or x.grid.hi - x.grid.lo >= 2**16:
            return None
        distance = np.arange(x.grid.hi - x.grid.lo + 1, dtype=np.float64)
        table = np.rint(np.exp(-x.grid.scale.astype(np.float64) * distance) * 2.0**SOFTMAX_BITS).astype(np.int64)
        return Exponentials(x, table)

    def _softmax(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        found = self._exponentials(node)
        if found is None:
            return None
        x = found.operand
        target.nodes.insert(0, node)
        total = x.shape[integer(node, "axis", -1)] << SOFTMAX_BITS
        return self._finish(target, "softmax", node, (x,), intervals.one(0, total), (), result=(target.lo, target.hi), table=found.table)

    def _table(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        """A tree of elementwise functions of one integer tensor and scalar constants, as a table over every input value."""
        found = self._elementwise_tree(node)
        if found is None:
            return None
        leaf, chain = found
        q = np.arange(leaf.grid.lo, leaf.grid.hi + 1, dtype=np.int64)
        real = leaf.grid.scale.astype(np.float64) * (q - leaf.grid.zero_point)
        values: dict[ir.Value, Array] = {}
        for inner in chain:
            arguments: list[Array | None] = []
            for value in inner.inputs:
                known = None if value is None else values.get(value)
                if value is not None and known is None:
                    known = self._scalar(value)
                arguments.append(None if value is None else real if known is None else known)
            with np.errstate(all="ignore"):
                values[inner.outputs[0]] = elementwise.evaluate(inner, arguments)
        result = values[node.outputs[0]]
        if result.shape != q.shape or np.isnan(result).any():
            return None
        table = np.clip(quantize(result, target.grid.scale, target.grid.zero_point), target.lo, target.hi)
        inside = table[leaf.lo - leaf.grid.lo : leaf.hi - leaf.grid.lo + 1]
        target.nodes[:0] = chain
        reach = int(inside.min()), int(inside.max())
        return self._finish(target, "table", node, (leaf,), intervals.one(leaf.lo, leaf.hi), (), result=reach, table=table)

    def _elementwise_tree(self, root: ir.Node) -> tuple[Operand, list[ir.Node]] | None:
        """The one integer operand below ``root`` and the nodes from it up, in execution order; None if it is no such tree.

        A value inside may be read twice, but only inside: x·sigmoid(x) is a function of x.
        """
        leaves: dict[str, Operand] = {}
        chain: list[ir.Node] = []
        pending = {root}
        waiting = [root]
        while waiting:
            node = waiting.pop()
            if node.op_type not in elementwise.FUNCTIONS or len(node.outputs) != 1:
                return None
            for value in node.inputs:
                if value is None or self._scalar(value) is not None:
                    continue
                operand = self._operand(value)
                producer = value.producer()
                if operand is not None:
                    leaves[operand.name] = operand
                elif producer is None or value.is_graph_output():
                    return None
                elif producer not in pending:
                    pending.add(producer)
                    waiting.append(producer)
        chain = [node for node in self.graph if node in pending]
        closed = all(reader in pending for node in chain if node is not root for reader in node.outputs[0].consumers())
        if len(leaves) != 1 or not closed:
            return None
        (leaf,) = leaves.values()
        small = leaf.constant is None and leaf.grid.hi - leaf.grid.lo < 2**16
        return (leaf, chain) if small and leaf.shape == shape_of(root.outputs[0]) else None

    def _operands(self, node: ir.Node) -> tuple[Operand, ...] | None:
        found = [self._operand(v) for v in node.inputs]
        operands = tuple(o for o in found if o is not None)
        return operands if len(operands) == len(node.inputs) and any(o.constant is None for o in operands) else None

    def _scalar(self, value: ir.Value) -> Array | None:
        """A constant of one element as float64, dequantized if it is a DequantizeLinear of one."""
        found = self._dequantized(value)
        raw = constant(found[0] if found else value)
        if raw is None or raw.size != 1:
            return None
        real = raw.reshape(()).astype(np.float64)
        if found is None:
            return np.asarray(real)
        return np.asarray((real - found[1].zero_point.reshape(())) * found[1].scale.reshape(()).astype(np.float64))

    # ---- the result ---------------------------------------------------------------------------------------------

    def _finish(
        self, target: _Target, kind: Kind, node: ir.Node | None, operands: tuple[Operand, ...], bounds: Bounds,
        multipliers: tuple[Multiplier, ...], *, result: tuple[int, int] | None = None, **fields: Any,
    ) -> IntegerOp:  # fmt: skip
        """The operation, once its accumulator is proven to be requantized without overflow. ``result``: bounds before clamping,
        where they are not the requantized ``bounds``."""
        name = (node or target.nodes[-1]).name or ""
        largest = max(abs(end) for end in bounds.partial)
        # A sum's bound was proven against the shifted terms already; tables and softmax have no multiplier.
        if kind != "sum" and any(largest * int(np.max(m.m)) >= PRODUCT_LIMIT or int(np.min(m.k)) < 0 for m in multipliers):
            raise ModelError(
                f"node {name!r} ({kind}) cannot be requantized exactly in 62 bits: its accumulator reaches {largest}",
                hint="use fewer bits, or a larger scale at its output",
            )
        low, high = result or bounds.requantized(multipliers[0], target.grid.zero_point)
        reached = (min(max(low, target.lo), target.hi), min(max(high, target.lo), target.hi))
        return IntegerOp(
            kind=kind, name=name, op=node.op_type if node is not None else "Requantize", node=node, nodes=tuple(target.nodes),
            operands=operands, output=target.output.name or "", float_name=target.float_name, shape=shape_of(target.output),
            grid=target.grid, lo=target.lo, hi=target.hi, activation_lo=target.activation_lo, activation_hi=target.activation_hi,
            multipliers=multipliers,
            accumulator=bounds.partial, output_range=reached, **fields,
        )  # fmt: skip


_Matcher = Callable[[_Recogniser, _Target, ir.Node], IntegerOp | None]
_MATCHERS: dict[str, _Matcher] = {
    "Conv": _Recogniser._linear, "MatMul": _Recogniser._linear, "Gemm": _Recogniser._linear,
    "Add": _Recogniser._sum, "Sub": _Recogniser._sum, "Sum": _Recogniser._sum,
    "Mul": _Recogniser._product, "Concat": _Recogniser._concat,
    "AveragePool": _Recogniser._average, "GlobalAveragePool": _Recogniser._average, "ReduceMean": _Recogniser._average,
    "MaxPool": _Recogniser._maximum, "GlobalMaxPool": _Recogniser._maximum, "ReduceMax": _Recogniser._maximum,
    "Softmax": _Recogniser._softmax, **dict.fromkeys(MOVEMENT, _Recogniser._movement),
}  # fmt: skip
