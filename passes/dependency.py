"""Which channels stand and fall together: a unit for every index along every axis of every tensor, united where one cannot go alone.

Walking the graph, each operator says how the indices of its inputs and outputs correspond: an Add unites channel i of both
operands, a Conv its input channels with one axis of its weight and its output channels with the other, a Reshape to Gemm one
channel with a block of rows. What cannot lose an index (an image's width, a graph output, a channel that a Softmax normalizes
over) is united with unit 0, the frozen one, with the reason. Removing a class of united units then cuts every initializer and
every shape consistently; what this file does not know is frozen, never guessed.

Related: Fang et al. 2023, DepGraph: Towards Any Structural Pruning (the same idea, on modules instead of indices).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from gatewright.frontend.queries import constant, integer, reduce_axes

from . import rewrite
from .rewrite import Array, real_constant, shape_of
from .units import FROZEN, Units

Axes = tuple[Array, ...]
"""One int64 array of units per axis of a tensor."""

UNARY = frozenset({
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus",
    "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
})  # fmt: skip
BROADCAST = frozenset({
    "Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum", "Where", "Equal", "Greater", "Less", "And", "Or",
})  # fmt: skip
POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"})
REDUCTIONS = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare"})
PRODUCERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass
class Group:
    """Layers whose output channels must be chosen together."""

    layers: list[ir.Node]
    classes: list[int]
    """Roots of the removable classes of units, in order of the first layer's channels."""


@dataclass
class Dependencies:
    """The analysis of one graph; ``shrink.py`` edits that graph by it."""

    graph: ir.Graph
    units: Units = field(default_factory=Units)
    axes: dict[ir.Value, Axes] = field(default_factory=dict)
    produced: dict[ir.Node, Array] = field(default_factory=dict)
    """Units of each layer's output channels."""
    stacked: list[Array] = field(default_factory=list)
    """Units of the leading axes of products of two computed tensors: attention heads."""

    @classmethod
    def of(cls, graph: ir.Graph, excluded: Iterable[ir.Node] = ()) -> Dependencies:
        found = cls(graph)
        for value in graph.inputs:
            found.axes[value] = found._frozen(value)
        for node in graph:
            found._walk(node)
        for value in graph.outputs:
            for axis in found.axes.get(value, ()):
                found.units.freeze(axis, f"it is the graph output {value.name!r}")
        for node in excluded:
            found.units.freeze(found.produced.get(node, np.zeros(0, np.int64)), "it is excluded")
        for value, axes in found.axes.items():
            for axis in axes:
                if len(set(found.units.roots(axis).tolist())) == 1:
                    found.units.freeze(axis[:1], f"it is all that {value.name!r} has")
        return found

    # ---- what there is to remove --------------------------------------------------------------------------------

    def groups(self) -> tuple[list[Group], dict[str, str]]:
        """The groups that can lose channels, and for each layer that cannot the reason."""
        frozen: dict[str, str] = {}
        homes: dict[int, Group] = {}
        groups: list[Group] = []
        for node, units in self.produced.items():
            roots = list(dict.fromkeys(r for r in self.units.roots(units).tolist() if r != FROZEN))
            if not roots:
                frozen[node.name or ""] = self.units.reason(units)
                continue
            touched = list({id(homes[r]): homes[r] for r in roots if r in homes}.values())
            if touched:
                group = touched[0]
                for other in touched[1:]:
                    group.layers += other.layers
                    group.classes += other.classes
                    groups = [g for g in groups if g is not other]
            else:
                group = Group([], [])
                groups.append(group)
            group.layers.append(node)
            group.classes += [r for r in roots if r not in group.classes]
            homes.update(dict.fromkeys(group.classes, group))
        return groups, frozen

    def heads(self) -> set[int]:
        """The classes that are attention heads."""
        return {r for units in self.stacked for r in self.units.roots(units).tolist()} - {FROZEN}

    def slices(self, value: ir.Value, axis: int) -> Array:
        """Root of each index along an axis."""
        return self.units.roots(self.axes[value][axis])

    def emptied(self, removed: set[int]) -> Iterator[list[int]]:
        """The classes along each axis that would be left without any index: a part of a Split may be small."""
        yield from (sorted(present) for present in self._lines if present <= removed)

    @cached_property
    def _lines(self) -> list[frozenset[int]]:
        """The classes along every axis that can be left empty, each set of them once."""
        found = {frozenset(self.units.roots(axis).tolist()) for axes in self.axes.values() for axis in axes}
        return sorted((present for present in found if present and FROZEN not in present), key=sorted)

    # ---- operators ----------------------------------------------------------------------------------------------

    def _frozen(self, value: ir.Value) -> Axes:
        return tuple(np.zeros(size, np.int64) for size in shape_of(value))

    def _of(self, value: ir.Value | None) -> Axes:
        """Units of a tensor; an initializer gets its own on first sight."""
        assert value is not None
        if value not in self.axes:
            self.axes[value] = tuple(self.units.fresh(size) for size in shape_of(value))
        return self.axes[value]

    def _give_up(self, node: ir.Node) -> None:
        """An operator that nobody taught this file: everything it touches keeps its size."""
        for value in _reads(node):
            if value.shape is not None and value.shape.is_static():
                for axis in self._of(value):
                    self.units.freeze(axis, f"{node.name} ({node.op_type}) reads it")
        for value in node.outputs:
            if value.shape is not None and value.shape.is_static():
                self.axes[value] = self._frozen(value)

    def _walk(self, node: ir.Node) -> None:
        x = node.inputs[0] if node.inputs else None
        result = None
        if not node.domain and x is not None and all(v.shape is not None and v.shape.is_static() for v in node.outputs):
            result = self._operator(node, x, shape_of(node.outputs[0]))
        if result is None:
            self._give_up(node)
        else:
            self.axes[node.outputs[0]] = result

    def _operator(self, node: ir.Node, x: ir.Value, out: tuple[int, ...]) -> Axes | None:
        match node.op_type:
            case op if op in UNARY:
                return self._of(x) if len([v for v in node.outputs if v.uses()]) <= 1 else None
            case op if op in BROADCAST:
                return self._broadcast(node, out)
            case op if op in POOLS:
                return (*self._of(x)[:2], *self._sizes(out[2:])) if len([v for v in node.outputs if v.uses()]) <= 1 else None
            case "Conv":
                return self._conv(node, x, out)
            case "ConvTranspose":
                return self._conv_transpose(node, x, out)
            case "Gemm":
                return self._gemm(node, x)
            case "MatMul":
                return self._matmul(node, x, out)
            case "BatchNormalization" | "InstanceNormalization":
                if len(node.outputs) > 1 and any(v.uses() for v in node.outputs[1:]):
                    return None
                for value in node.inputs[1:]:
                    self._unite(node, self._of(x)[1], self._of(value)[0])
                return self._of(x)
            case "DequantizeLinear":
                return self._dequantize(node, x)
            case "Concat":
                return self._concat(node)
            case "Split":
                return self._split(node, x)
            case "Slice":
                return self._slice(node, x, out)
            case "Transpose":
                axes = self._of(x)
                return tuple(axes[i] for i in rewrite.ints(node, "perm", tuple(reversed(range(len(axes))))))
            case "Reshape":
                return self._reshape(node, x, out)
            case "Gather":
                return self._gather(node, x)
            case op if op in REDUCTIONS:
                return self._reduce(node, x)
            case "Softmax" | "LogSoftmax":
                axes = self._of(x)
                self.units.freeze(axes[integer(node, "axis", -1)], f"{node.name} ({node.op_type}) normalizes over it")
                return axes
            case "Pad" | "Resize" | "Tile" | "Expand":
                return self._resized(node, x, out)
        return None

    def _unite(self, node: ir.Node, first: Array, second: Array) -> None:
        self.units.unite(first, second, f"{node.name} ({node.op_type})")

    def _sizes(self, shape: Sequence[int]) -> Axes:
        return tuple(np.zeros(size, np.int64) for size in shape)

    def _fixed(self, axes: Sequence[Array], node: ir.Node, why: str) -> None:
        for axis in axes:
            self.units.freeze(axis, f"{node.name} ({node.op_type}) {why}")

    def _broadcast(self, node: ir.Node, out: tuple[int, ...]) -> Axes:
        """Axes of equal size correspond, counted from the right; an axis of 1 that is spread over many cannot be removed."""
        result: list[Array | None] = [None] * len(out)
        for value in node.inputs:
            if value is None:
                continue
            axes = self._of(value)
            offset = len(out) - len(axes)
            for i, units in enumerate(axes):
                known = result[offset + i]
                if len(units) != out[offset + i]:
                    self._fixed([units], node, "spreads it")
                elif known is None:
                    result[offset + i] = units
                else:
                    self._unite(node, known, units)
        return tuple(np.zeros(size, np.int64) if units is None else units for size, units in zip(out, result, strict=True))

    def _conv(self, node: ir.Node, x: ir.Value, out: tuple[int, ...]) -> Axes:
        inputs, weight = self._of(x), self._of(node.inputs[1])
        self._fixed(weight[2:], node, "has it as its kernel")
        self._fixed(inputs[2:], node, "slides over it")
        group, channels = integer(node, "group", 1), len(inputs[1])
        if group == 1:
            self._unite(node, inputs[1], weight[1])
        elif group == channels:
            # Depthwise: channel i makes outputs i·m … i·m + m − 1, and all go with it.
            self._fixed([weight[1]], node, "is depthwise")
            self._unite(node, np.repeat(inputs[1], len(weight[0]) // channels), weight[0])
        else:
            # Groups stay equally large if each loses the same positions.
            for units, per_group in ((inputs[1], channels // group), (weight[0], len(weight[0]) // group)):
                first = units[:per_group]
                for start in range(per_group, len(units), per_group):
                    self._unite(node, first, units[start : start + per_group])
            self._unite(node, inputs[1][: len(weight[1])], weight[1])
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            self._unite(node, self._of(node.inputs[2])[0], weight[0])
        self._produces(node, weight[0])
        return (inputs[0], weight[0], *self._sizes(out[2:]))

    def _conv_transpose(self, node: ir.Node, x: ir.Value, out: tuple[int, ...]) -> Axes | None:
        if integer(node, "group", 1) != 1:
            return None
        inputs, weight = self._of(x), self._of(node.inputs[1])
        self._fixed(weight[2:], node, "has it as its kernel")
        self._fixed(inputs[2:], node, "slides over it")
        self._unite(node, inputs[1], weight[0])
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            self._unite(node, self._of(node.inputs[2])[0], weight[1])
        self._produces(node, weight[1])
        return (inputs[0], weight[1], *self._sizes(out[2:]))

    def _gemm(self, node: ir.Node, x: ir.Value) -> Axes:
        a, b = self._of(x), self._of(node.inputs[1])
        a = a[::-1] if integer(node, "transA", 0) else a
        b = b[::-1] if integer(node, "transB", 0) else b
        self._unite(node, a[1], b[0])
        result = (a[0], b[1])
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            for units, own in zip(reversed(self._of(node.inputs[2])), reversed(result), strict=False):
                if len(units) == len(own):
                    self._unite(node, units, own)
                else:
                    self._fixed([units], node, "spreads it")
        self._produces(node, b[1])
        return result

    def _matmul(self, node: ir.Node, x: ir.Value, out: tuple[int, ...]) -> Axes | None:
        a, b = self._of(x), self._of(node.inputs[1])
        if len(a) < 2 or len(b) < 2:
            return None
        self._unite(node, a[-1], b[-2])
        leading: list[Array] = []
        for i, size in enumerate(out[:-2]):
            known: Array | None = None
            for axes in (a, b):
                position = i - (len(out) - len(axes))
                if position < 0:
                    continue
                if len(axes[position]) != size:
                    self._fixed([axes[position]], node, "spreads it")
                elif known is None:
                    known = axes[position]
                else:
                    self._unite(node, known, axes[position])
            leading.append(np.zeros(size, np.int64) if known is None else known)
        if real_constant(node.inputs[1]) is not None:
            self._produces(node, b[-1])
        elif constant(x) is None:
            self.stacked += leading
        return (*leading, a[-2], b[-1])

    def _produces(self, node: ir.Node, units: Array) -> None:
        if real_constant(node.inputs[1]) is not None:
            self.produced[node] = units

    def _dequantize(self, node: ir.Node, x: ir.Value) -> Axes | None:
        if constant(x) is None:
            return None
        axes = self._of(x)
        for value in node.inputs[1:]:
            own = self._of(value)
            if len(own) == 1 and len(own[0]) == len(axes[integer(node, "axis", 1) % len(axes)]):
                self._unite(node, own[0], axes[integer(node, "axis", 1) % len(axes)])
        return axes

    def _concat(self, node: ir.Node) -> Axes:
        axis = integer(node, "axis", 0)
        parts = [self._of(v) for v in node.inputs]
        axis %= len(parts[0])
        for other in parts[1:]:
            for i, units in enumerate(other):
                if i != axis:
                    self._unite(node, parts[0][i], units)
        return tuple(np.concatenate([p[i] for p in parts]) if i == axis else units for i, units in enumerate(parts[0]))

    def _split(self, node: ir.Node, x: ir.Value) -> Axes:
        axis, axes, start = integer(node, "axis", 0), self._of(x), 0
        if len(node.inputs) < 2 or node.inputs[1] is None:
            self._fixed([axes[axis]], node, "cuts it into equal parts")
        for value in node.outputs:
            size = shape_of(value)[axis]
            self.axes[value] = (*axes[:axis], axes[axis][start : start + size], *axes[axis + 1 :])
            start += size
        return self.axes[node.outputs[0]]

    def _slice(self, node: ir.Node, x: ir.Value, out: tuple[int, ...]) -> Axes | None:
        found = [constant(v) for v in node.inputs[1:5]]
        if len(found) < 4 or any(f is None for f in found):
            return None
        result = list(self._of(x))
        for begin, end, axis, step in zip(*(f.tolist() for f in found if f is not None), strict=True):
            if step != 1 or begin < 0 or end < 0:
                self._fixed([result[axis]], node, "takes every other of it")
                result[axis] = np.zeros(out[axis], np.int64)
            else:
                result[axis] = result[axis][begin:end]
        return tuple(result)

    def _reshape(self, node: ir.Node, x: ir.Value, out: tuple[int, ...]) -> Axes | None:
        """The one axis that can shrink goes to one axis of the result: in blocks (channels of an image into rows of a Gemm) or alone."""
        axes = self._of(x)
        free = [i for i, units in enumerate(axes) if self.units.roots(units).any()]
        if not free:
            return self._sizes(out)
        if len(free) > 1 or constant(node.inputs[1]) is None:
            return None
        axis, shape = free[0], shape_of(x)
        spread = np.broadcast_to(axes[axis].reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape).reshape(out)
        for i in range(len(out)):
            line = spread[tuple(slice(None) if j == i else 0 for j in range(len(out)))]
            if np.array_equal(np.broadcast_to(line.reshape([-1 if j == i else 1 for j in range(len(out))]), out), spread):
                return tuple(line if j == i else np.zeros(size, np.int64) for j, size in enumerate(out))
        return self._factored(node, axis, out)

    def _factored(self, node: ir.Node, axis: int, out: tuple[int, ...]) -> Axes | None:
        """An axis that is cut into several: [.., 768] to [.., 12, 64]. Blocks of the outermost factor stay whole: attention heads.

        Where queries, keys and values come packed, [.., 3, 12, 64], a head is its part of all three.
        """
        assert node.inputs[0] is not None
        shape, units = shape_of(node.inputs[0]), self._of(node.inputs[0])[axis]
        first = next((i for i in range(len(out)) if math.prod(out[:i]) == math.prod(shape[:axis]) and out[i] > 1), len(out))
        last = next((i for i in range(first, len(out) + 1) if math.prod(out[first:i]) == shape[axis]), first)
        factors = [i for i in range(first, last) if out[i] > 1]
        if len(factors) < 2:
            return None
        kept = factors[1] if len(factors) > 2 and out[factors[0]] in (2, 3) else factors[0]
        blocks = np.moveaxis(units.reshape(out[first:last]), kept - first, 0).reshape(out[kept], -1)
        for column in blocks.T[1:]:
            self._unite(node, blocks[:, 0], column)
        return tuple(blocks[:, 0] if i == kept else np.zeros(size, np.int64) for i, size in enumerate(out))

    def _gather(self, node: ir.Node, x: ir.Value) -> Axes:
        """The axis that is looked up keeps its size, the others pass."""
        axes = self._of(x)
        axis = integer(node, "axis", 0) % len(axes)
        indices = node.inputs[1]
        self._fixed([axes[axis], *self._of(indices)], node, "looks up in it")
        assert indices is not None
        return (*axes[:axis], *self._sizes(shape_of(indices)), *axes[axis + 1 :])

    def _reduce(self, node: ir.Node, x: ir.Value) -> Axes | None:
        axes = self._of(x)
        over = reduce_axes(node, len(axes))
        if over is None:
            return None
        self._fixed([axes[i] for i in over], node, "reduces over it")
        keep = integer(node, "keepdims", 1)
        return tuple(np.zeros(1, np.int64) if i in over else units for i, units in enumerate(axes) if keep or i not in over)

    def _resized(self, node: ir.Node, x: ir.Value, out: tuple[int, ...]) -> Axes | None:
        """Axes that keep their size correspond; a node that states sizes, not factors, states the channels' too."""
        axes = self._of(x)
        if len(out) != len(axes) or any(v is not None and constant(v) is None for v in node.inputs[1:]):
            return None
        stated = {"Expand": 1, "Resize": 3}.get(node.op_type, len(node.inputs))
        sizes = constant(node.inputs[stated]) if stated < len(node.inputs) else None
        result = []
        for i, units in enumerate(axes):
            same = len(units) == out[i] and (sizes is None or (node.op_type == "Expand" and sizes[i - len(out)] == 1))
            if not same:
                self._fixed([units], node, "changes its size")
            result.append(units if same else np.zeros(out[i], np.int64))
        return tuple(result)


def _reads(node: ir.Node) -> Iterable[ir.Value]:
    """Inputs, and what the node's subgraphs read from outside."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from (v for v in inner.inputs if v is not None and v.graph is node.graph)
