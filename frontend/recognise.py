"""Finds the integer operations of a canonical QDQ graph: from each QuantizeLinear back to the DequantizeLinears that feed it.

A match needs every float value in between to have one reader and to be no graph output; else somebody else sees the
float value, and the nodes keep their float meaning. Which node makes which ``IntegerOp`` is the table ``_MATCHERS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from gatewright.errors import ModelError

from . import elementwise
from .integer import Array, FloatStep, Grid, IntegerOp, Kind, Multiplier, Operand, Plan
from .model import Model
from .rounding import PRODUCT_LIMIT, quantize, requantize
from .windows import Window, window_counts

BIAS_TOLERANCE = 1e-6
"""A bias scale this close (relative) to s_x·s_w counts as equal: float32 rounding of the product is 6e-8."""

MOVEMENT = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Gather", "Identity"})
"""Ops that only move values: the first input is the tensor, the others say where to."""

SOFTMAX_BITS = 30
"""Fraction bits of softmax's exponentials. 2^23 of them can be summed exactly in float64."""

_BOUNDS = {
    ir.DataType.INT4: (-8, 7), ir.DataType.UINT4: (0, 15), ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-(2**15), 2**15 - 1), ir.DataType.UINT16: (0, 2**16 - 1), ir.DataType.INT32: (-(2**31), 2**31 - 1),
}  # fmt: skip


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
                steps.append(FloatStep(node))
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
        scale, zero = _constant(node.inputs[1]), _constant(node.inputs[2])
        source = node.inputs[0]
        if scale is None or zero is None or source is None or scale.size != 1:
            return None
        output, nodes, dtype = node.outputs[0], [node], node.outputs[0].dtype
        if dtype not in _BOUNDS:
            return None
        lo, hi = _BOUNDS[dtype]
        readers = output.consumers()
        if len(readers) == 1 and readers[0].op_type == "Clip" and not output.is_graph_output():
            bounds = [_constant(v) if v is not None else None for v in readers[0].inputs[1:]]
            lo = max(lo, int(bounds[0])) if len(bounds) > 0 and bounds[0] is not None else lo
            hi = min(hi, int(bounds[1])) if len(bounds) > 1 and bounds[1] is not None else hi
            output, nodes = readers[0].outputs[0], [node, readers[0]]
        grid = Grid(dtype, scale.reshape(()).astype(np.float32), zero.reshape(()).astype(np.int64), lo, hi)
        if not (np.isfinite(grid.scale) and grid.scale > 0):
            raise ModelError(f"node {node.name!r} (QuantizeLinear) has the scale {grid.scale}", hint="a scale is a positive finite number")
        target = _Target(source, output, grid, source.name or "", nodes, lo, hi)
        self._peel_activations(target)
        return target

    def _peel_activations(self, target: _Target) -> None:
        """Relu and Clip before Q become a narrower clamp after it: Q is monotone, so Q(clip(v, a, b)) = clip(Q(v), Q(a), Q(b))."""
        while (node := _sole(target.value)) is not None and node.op_type in ("Relu", "Clip"):
            below, above = (0.0, math.inf) if node.op_type == "Relu" else _clip_bounds(node)
            source = node.inputs[0]
            if below is None or above is None or source is None or source.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
                return
            q_below, q_above = (int(quantize(np.float64(b), target.grid.scale, target.grid.zero_point)) for b in (below, above))
            # The inner clamp acts first, so the outer bounds already found clip the inner ones.
            lo, hi = target.lo, target.hi
            target.lo, target.hi = min(max(q_below, lo), hi), min(max(q_above, lo), hi)
            target.activation_lo |= below > -math.inf and q_below >= lo
            target.activation_hi |= above < math.inf and q_above <= hi
            target.nodes.insert(0, node)
            target.value = source

    def _match(self, target: _Target) -> IntegerOp | None:
        if (direct := self._operand(target.value)) is not None:
            return self._finish(target, "requantize", None, (direct,), multipliers=(_ratio(direct.grid, target.grid),))
        node = _sole(target.value)
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
        constant = _constant(source)
        if constant is not None:
            constant = constant.astype(np.int64)
            lo, hi = (int(constant.min()), int(constant.max())) if constant.size else (0, 0)
        else:
            lo, hi = self.ranges.get(name, (grid.lo, grid.hi))
        return Operand(name, grid, tuple(int(d) for d in source.shape.numpy()), lo, hi, constant)

    def _dequantized(self, value: ir.Value | None) -> tuple[ir.Value, Grid] | None:
        node = value.producer() if value is not None else None
        if node is None or node.op_type != "DequantizeLinear" or node.attributes.get_int("block_size", 0):
            return None
        source, scale, zero = node.inputs[0], _constant(node.inputs[1]), _constant(node.inputs[2])
        if source is None or scale is None or zero is None or source.dtype not in _BOUNDS:
            return None
        if not (np.all(np.isfinite(scale)) and np.all(scale > 0)):
            raise ModelError(f"node {node.name!r} (DequantizeLinear) has a scale that is not a positive finite number")
        lo, hi = self.ranges.get(source.name or "", _BOUNDS[source.dtype])
        axis = None
        if scale.size > 1:
            axis = int(node.attributes.get_int("axis", 1) or 0) % len(source.shape.numpy()) if source.shape is not None else None
            if axis is None:
                return None
            scale, zero = scale.reshape(-1), np.broadcast_to(zero.reshape(-1), (scale.size,))
        else:
            scale, zero = scale.reshape(()), zero.reshape(-1)[:1].reshape(())
        grid = Grid(source.dtype, scale.astype(np.float32), zero.astype(np.int64), lo, hi, axis)
        self.grids.setdefault(source.name or "", grid)
        return source, grid

    def _carry_range(self, node: ir.Node) -> None:
        """Bounds survive movement of integer tensors, and an integer Clip at an edge narrows them."""
        source = node.inputs[0] if node.inputs else None
        if source is None or source.dtype not in _BOUNDS or not node.outputs:
            return
        known = self.ranges.get(source.name or "", _BOUNDS[source.dtype])
        if node.op_type == "Clip" and node not in self.covered:
            bounds = [_constant(v) if v is not None else None for v in node.inputs[1:]]
            lo = max(known[0], int(bounds[0])) if len(bounds) > 0 and bounds[0] is not None else known[0]
            hi = min(known[1], int(bounds[1])) if len(bounds) > 1 and bounds[1] is not None else known[1]
            self.ranges[node.outputs[0].name or ""] = (lo, hi)
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
            for first, second in ((0, 1), (1, 0)):
                inner = _sole(node.inputs[first])
                if inner is not None and inner.op_type in ("MatMul", "Conv", "Gemm") and self._bias_value(node.inputs[second]) is not None:
                    added, extra, node = node.inputs[second], [node], inner
                    break
            else:
                return None
        x = self._operand(node.inputs[0])
        weight = self._dequantized(node.inputs[1])
        if x is None or weight is None:
            return None
        source, grid = weight
        values = _constant(source)
        if values is None:
            return self._matmul_of_activations(target, node, x) if not extra else None
        conv = node.op_type == "Conv"
        out_axis = 0 if conv else values.ndim - 1
        if (not conv and values.ndim != 2) or (grid.axis is not None and grid.axis != out_axis) or x.constant is not None:
            return None
        if node.op_type == "Gemm" and (node.attributes.get_int("transA", 0) or node.attributes.get_int("transB", 0)):
            return None
        channels = values.shape[out_axis]
        along = [1] * values.ndim
        along[out_axis] = -1
        w = values.astype(np.int64) - grid.zero_point.reshape(along if grid.axis is not None else ())
        unit = x.grid.scale.astype(np.float64) * grid.scale.astype(np.float64)
        inside = node.inputs[2] if len(node.inputs) > 2 else None
        bias, notes = np.zeros(channels, np.int64), []
        for value in (inside, added):
            if value is not None:
                found = self._bias(value, unit, channels, 1 if conv and value is added else 0, node.name or "")
                if found is None:
                    return None
                bias = bias + found[0]
                notes += found[1]
        multiplier = Multiplier.of((unit / target.grid.scale.astype(np.float64)).astype(np.float32))
        padded = conv and Window.of(node, values.shape[2:]).padded
        partial, final = _linear_bounds(x, w, bias, out_axis, padded)
        target.nodes[:0] = [node, *extra]
        return self._finish(
            target, "conv" if conv else "matmul", node, (x,), multipliers=(multiplier,), weight=w, weight_grid=grid,
            bias=bias, accumulator=partial, final=final, notes=tuple(notes),
        )  # fmt: skip

    def _bias_value(self, value: ir.Value | None) -> ir.Value | None:
        """``value`` where it is a constant, dequantized or plain."""
        if value is None:
            return None
        found = self._dequantized(value)
        source = found[0] if found else value
        return value if _constant(source) is not None else None

    def _bias(self, value: ir.Value, unit: Array, channels: int, trailing: int, name: str) -> tuple[Array, list[str]] | None:
        """The bias on the accumulator's scale ``unit``, int64 [channels]; ``trailing`` spatial axes follow the channel's if positive."""
        found = self._dequantized(value)
        raw = _constant(found[0] if found else value)
        if raw is None:
            return None
        if trailing and raw.ndim >= 3:
            # An Add behind a Conv broadcasts from the right: [C, 1, 1].
            if any(d != 1 for d in (*raw.shape[:-3], *raw.shape[-2:])):
                return None
        elif trailing or any(d != 1 for d in raw.shape[:-1]):
            if raw.size != 1:
                return None
        if raw.size not in (1, channels):
            return None
        flat = np.broadcast_to(raw.reshape(-1), (channels,))
        if found is None:
            real = flat.astype(np.float64)
            rounded = np.rint(real / unit)
            exact = bool(np.all(rounded * unit == real))
            return rounded.astype(np.int64), [] if exact else [f"the bias of {name} is float; it was rounded to the accumulator's scale"]
        grid = found[1]
        integers = flat.astype(np.int64) - grid.zero_point
        scale = grid.scale.astype(np.float64)
        off = float(np.max(np.abs(scale / unit - 1)))
        if off <= BIAS_TOLERANCE:
            return integers, []
        return np.rint(integers * scale / unit).astype(np.int64), [f"the bias of {name} was rounded again: its scale is {off:.2%} off s_x·s_w"]

    def _matmul_of_activations(self, target: _Target, node: ir.Node, a: Operand) -> IntegerOp | None:
        b = self._operand(node.inputs[1])
        if node.op_type != "MatMul" or b is None:
            return None
        depth = a.shape[-1]
        corners = [x * y for x in _real_range(a) for y in _real_range(b)]
        bounds = (min(0, *corners) * depth, max(0, *corners) * depth)
        target.nodes.insert(0, node)
        return self._finish(target, "matmul", node, (a, b), multipliers=(_product_ratio(a.grid, b.grid, target.grid),), accumulator=bounds)

    def _sum(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        if node.op_type == "Add" and (linear := self._linear(target, node)) is not None:
            return linear
        operands = self._operands(node)
        if operands is None:
            return None
        signs = (1, -1) if node.op_type == "Sub" else (1,) * len(operands)
        multipliers = tuple(_ratio(o.grid, target.grid) for o in operands)
        k = max(int(m.k) for m in multipliers)
        lo = hi = reach = 0
        for operand, multiplier, sign in zip(operands, multipliers, signs, strict=True):
            factor = sign * (int(multiplier.m) << (k - int(multiplier.k)))
            ends = sorted(factor * r for r in _real_range(operand))
            lo, hi = lo + ends[0], hi + ends[1]
            reach += max(abs(e) for e in ends)
        if reach >= PRODUCT_LIMIT:
            raise ModelError(
                f"node {node.name!r} ({node.op_type}) cannot be summed exactly in 62 bits: the scales of its operands are too far apart",
                hint="quantize them with closer scales",
            )
        common = Multiplier(np.int64(1), np.int64(k))
        target.nodes.insert(0, node)
        return self._finish(
            target, "sum", node, operands, multipliers=multipliers, signs=signs, accumulator=(-reach, reach), final=((lo, hi), common)
        )

    def _product(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        operands = self._operands(node)
        if operands is None or len(operands) != 2:
            return None
        a, b = operands
        corners = [x * y for x in _real_range(a) for y in _real_range(b)]
        target.nodes.insert(0, node)
        return self._finish(
            target, "product", node, operands, multipliers=(_product_ratio(a.grid, b.grid, target.grid),), accumulator=(min(corners), max(corners))
        )

    def _concat(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        operands = self._operands(node)
        if operands is None:
            return None
        multipliers = tuple(_ratio(o.grid, target.grid) for o in operands)
        ranges = [_real_range(o) for o in operands]
        ends = [int(requantize(np.int64(e), m, target.grid.zero_point)) for r, m in zip(ranges, multipliers, strict=True) for e in r]
        target.nodes.insert(0, node)
        accumulator = (min(r[0] for r in ranges), max(r[1] for r in ranges))
        return self._finish(target, "concat", node, operands, multipliers=multipliers, accumulator=accumulator, range_=(min(ends), max(ends)))

    def _average(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        x = self._operand(node.inputs[0])
        if x is None:
            return None
        if node.op_type == "GlobalAveragePool":
            counts: Array = np.asarray(math.prod(x.shape[2:]), np.int64)
            values = int(counts)
        elif node.op_type == "ReduceMean":
            axes = reduce_axes(node, len(x.shape))
            if axes is None:
                return None
            counts = np.asarray(math.prod(x.shape[a] for a in axes), np.int64)
            values = int(counts)
        else:
            window = Window.of(node)
            counts = window_counts(window, x.shape[2:], node.attributes.get_int("count_include_pad", 0) == 1)
            values = math.prod(window.kernel)
            if counts.size and np.all(counts == counts.flat[0]):
                counts = counts.reshape(-1)[0]
            if not np.all(counts > 0):
                return None
        multiplier = Multiplier.of((x.grid.scale.astype(np.float64) / (counts * target.grid.scale.astype(np.float64))).astype(np.float32))
        lo, hi = _real_range(x)
        accumulator = (min(0, lo) * values, max(0, hi) * values)
        count = int(np.max(counts))
        # The average lies between the operand's ends; a partial window has its own N, so the ends are the same.
        ends = [requantize(np.int64(e * count), Multiplier.of(np.float32(float(x.grid.scale) / (count * float(target.grid.scale)))), target.grid.zero_point) for e in (lo, hi)]
        target.nodes.insert(0, node)
        range_ = None if multiplier.m.ndim else (int(ends[0]), int(ends[1]))
        return self._finish(target, "average", node, (x,), multipliers=(multiplier,), accumulator=accumulator, range_=range_)

    def _maximum(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        x = self._operand(node.inputs[0])
        if x is None or len([v for v in node.outputs if v.name and (v.consumers() or v.is_graph_output())]) != 1:
            return None
        if node.op_type == "ReduceMax" and reduce_axes(node, len(x.shape)) is None:
            return None
        target.nodes.insert(0, node)
        return self._finish(target, "maximum", node, (x,), multipliers=(_ratio(x.grid, target.grid),))

    def _movement(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        x = self._operand(node.inputs[0])
        if x is None or any(v is not None and _constant(v) is None for v in node.inputs[1:]):
            return None
        target.nodes.insert(0, node)
        return self._finish(target, "requantize", node, (x,), multipliers=(_ratio(x.grid, target.grid),))

    def _softmax(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        x = self._operand(node.inputs[0])
        if x is None or x.grid.hi - x.grid.lo >= 2**16:
            return None
        distance = np.arange(x.grid.hi - x.grid.lo + 1, dtype=np.float64)
        table = np.rint(np.exp(-x.grid.scale.astype(np.float64) * distance) * 2.0**SOFTMAX_BITS).astype(np.int64)
        target.nodes.insert(0, node)
        axis = int(node.attributes.get_int("axis", -1) or 0)
        total = x.shape[axis] << SOFTMAX_BITS
        return self._finish(target, "softmax", node, (x,), table=table, accumulator=(0, total), range_=(target.lo, target.hi))

    def _table(self, target: _Target, node: ir.Node) -> IntegerOp | None:
        """A tree of elementwise functions of one integer tensor and scalar constants, as a table of every input value."""
        chain: list[ir.Node] = []
        leaf = self._elementwise_leaf(node, chain, target)
        if leaf is None or leaf.constant is not None or leaf.grid.hi - leaf.grid.lo >= 2**16:
            return None
        q = np.arange(leaf.grid.lo, leaf.grid.hi + 1, dtype=np.int64)
        real = leaf.grid.scale.astype(np.float64) * (q - leaf.grid.zero_point)
        values = {id(v): real for n in chain for v in n.inputs if (o := self._operand(v)) is not None and o.constant is None}
        for inner in chain:
            arguments = [None if v is None else values[id(v)] if id(v) in values else _scalar(self, v) for v in inner.inputs]
            with np.errstate(all="ignore"):
                values[id(inner.outputs[0])] = elementwise.evaluate(inner, arguments)
        result = values[id(node.outputs[0])]
        if np.isnan(result).any():
            return None
        table = np.clip(quantize(result, target.grid.scale, target.grid.zero_point), target.lo, target.hi)
        inside = table[leaf.lo - leaf.grid.lo : leaf.hi - leaf.grid.lo + 1]
        target.nodes[:0] = chain
        return self._finish(
            target, "table", node, (leaf,), table=table, accumulator=(leaf.lo, leaf.hi), range_=(int(inside.min()), int(inside.max()))
        )

    def _elementwise_leaf(self, node: ir.Node, chain: list[ir.Node], target: _Target) -> Operand | None:
        """The one integer operand below ``node``; fills ``chain`` with the nodes in execution order. None: not a table."""
        leaf: Operand | None = None
        nodes: list[ir.Node] = []

        def visit(value: ir.Value, top: bool) -> bool:
            nonlocal leaf
            operand = self._operand(value)
            if operand is not None and operand.constant is None:
                same = leaf is None or leaf.name == operand.name
                leaf = leaf or operand
                return same
            if _scalar(self, value) is not None:
                return True
            producer = value.producer()
            if producer is None or producer.op_type not in elementwise.FUNCTIONS or value.is_graph_output():
                return False
            if not top and any(reader not in seen for reader in value.consumers()):
                return False
            seen.add(producer)
            if not all(visit(v, False) for v in producer.inputs if v is not None):
                return False
            if producer not in nodes:
                nodes.append(producer)
            return True

        # A value inside the tree may be read twice, but only within the tree (x·sigmoid(x)).
        seen: set[ir.Node] = set()
        if len(node.outputs[0].consumers()) != 1 or not visit(node.outputs[0], True) or leaf is None:
            return None
        chain[:] = nodes
        return leaf if leaf.shape == tuple(int(d) for d in (node.outputs[0].shape or ir.Shape([])).numpy()) else None

    def _operands(self, node: ir.Node) -> tuple[Operand, ...] | None:
        found = [self._operand(v) for v in node.inputs]
        operands = tuple(o for o in found if o is not None)
        return operands if len(operands) == len(node.inputs) and any(o.constant is None for o in operands) else None

    # ---- the result ---------------------------------------------------------------------------------------------

    def _finish(
        self, target: _Target, kind: Kind, node: ir.Node | None, operands: tuple[Operand, ...], *,
        multipliers: tuple[Multiplier, ...] = (), signs: tuple[int, ...] = (), weight: Array | None = None, weight_grid: Grid | None = None,
        bias: Array | None = None, table: Array | None = None, accumulator: tuple[int, int] | None = None,
        final: tuple[tuple[Array | int, Array | int], Multiplier] | tuple[Array, Array] | None = None,
        range_: tuple[int, int] | None = None, notes: tuple[str, ...] = (),
    ) -> IntegerOp:  # fmt: skip
        accumulator = accumulator or _real_range(operands[0])
        name = (node or target.nodes[-1]).name or ""
        if kind not in ("table", "softmax", "sum"):
            largest = max(abs(accumulator[0]), abs(accumulator[1]))
            if any(largest * int(np.max(m.m)) >= PRODUCT_LIMIT or int(np.min(m.k)) < 0 for m in multipliers):
                raise ModelError(
                    f"node {name!r} ({kind}) cannot be requantized exactly in 62 bits: its accumulator reaches {largest}",
                    hint="use fewer bits, or a larger scale at its output",
                )
        if range_ is None:
            low, high, by = accumulator[0], accumulator[1], multipliers[0]
            if kind == "sum" and final is not None:
                (low, high), by = final  # type: ignore[assignment, misc]
            elif final is not None:
                low, high = final  # type: ignore[assignment]
            range_ = (
                int(np.min(requantize(np.asarray(low, np.int64), by, target.grid.zero_point))),
                int(np.max(requantize(np.asarray(high, np.int64), by, target.grid.zero_point))),
            )
        reached = (min(max(range_[0], target.lo), target.hi), min(max(range_[1], target.lo), target.hi))
        shape = tuple(int(d) for d in target.output.shape.numpy()) if target.output.shape is not None else ()
        return IntegerOp(
            kind=kind, name=name, op=node.op_type if node is not None else "Requantize", node=node, nodes=tuple(target.nodes),
            operands=operands, output=target.output.name or "", float_name=target.float_name, shape=shape, grid=target.grid,
            lo=target.lo, hi=target.hi, activation_lo=target.activation_lo, activation_hi=target.activation_hi, multipliers=multipliers,
            signs=signs, weight=weight, weight_grid=weight_grid, bias=bias, table=table, accumulator=accumulator, output_range=reached, notes=notes,
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


# ---- small questions about the graph ----------------------------------------------------------------------------


def _constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer that is no graph input; None for anything computed."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value.numpy()


def _scalar(recogniser: _Recogniser, value: ir.Value) -> Array | None:
    """A constant of one element as float64, dequantized if it is a DequantizeLinear of one."""
    found = recogniser._dequantized(value)
    raw = _constant(found[0] if found else value)
    if raw is None or raw.size != 1:
        return None
    real = raw.reshape(()).astype(np.float64)
    return (real - found[1].zero_point.reshape(())) * found[1].scale.reshape(()).astype(np.float64) if found else real


def _sole(value: ir.Value | None) -> ir.Node | None:
    """The producer of a value that nobody else reads."""
    if value is None or value.is_graph_output() or len(value.consumers()) != 1:
        return None
    return value.producer()


def _clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Min and max of a Clip; None for one that is computed."""
    ends: list[float | None] = [-math.inf, math.inf]
    for index, value in enumerate(node.inputs[1:3]):
        if value is not None:
            constant = _constant(value)
            ends[index] = None if constant is None else float(constant.reshape(-1)[0])
    return ends[0], ends[1]


def reduce_axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """The axes of a Reduce node (opset 18: an input), made positive; all where none are given; None where they are computed."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None:
        return () if node.attributes.get_int("noop_with_empty_axes", 0) else tuple(range(rank))
    constant = _constant(axes)
    return None if constant is None else tuple(sorted(int(a) % rank for a in constant.reshape(-1)))


def _real_range(operand: Operand) -> tuple[int, int]:
    """Bounds of q − z."""
    zero = int(operand.grid.zero_point)
    return operand.lo - zero, operand.hi - zero


def _ratio(source: Grid, target: Grid) -> Multiplier:
    return Multiplier.of((source.scale.astype(np.float64) / target.scale.astype(np.float64)).astype(np.float32))


def _product_ratio(a: Grid, b: Grid, target: Grid) -> Multiplier:
    return Multiplier.of((a.scale.astype(np.float64) * b.scale.astype(np.float64) / target.scale.astype(np.float64)).astype(np.float32))


def _linear_bounds(x: Operand, weight: Array, bias: Array, out_axis: int, padded: bool) -> tuple[tuple[int, int], tuple[Array, Array]]:
    """Bounds of a weighted sum: over every partial sum in any order, and of the whole sum per output channel."""
    low, high = _real_range(x)
    if padded:
        low, high = min(low, 0), max(high, 0)
    rows = np.moveaxis(weight, out_axis, 0).reshape(weight.shape[out_axis], -1)
    # A product lies between these; object-free because |w|·|x| < 2^32 and a row has fewer than 2^30 of them.
    least, most = np.minimum(rows * low, rows * high), np.maximum(rows * low, rows * high)
    final = (least.sum(axis=1) + bias, most.sum(axis=1) + bias)
    partial_low = np.minimum(least, 0).sum(axis=1) + np.minimum(bias, 0)
    partial_high = np.maximum(most, 0).sum(axis=1) + np.maximum(bias, 0)
    return (int(partial_low.min()), int(partial_high.max())), final
