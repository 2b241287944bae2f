"""Where quantization puts its grids: which float values become integers, which of them share one grid, what stays float.

Every operation that has an exact integer form (``frontend/recognise.py``) gets integer operands and an integer result. A Relu or
Clip right behind one is its clamp, so nothing is quantized in between. A tree of elementwise functions of one value is one
table, so nothing inside it is quantized either. Movement and maxima change no value, so both sides share a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from gatewright.frontend.queries import constant, integer, reduce_axes
from gatewright.frontend.recognise import MOVEMENT

from . import rewrite
from .rewrite import Array, scalar, shape_of, sole_reader

LINEAR = frozenset({"Conv", "Gemm", "MatMul"})
MAXIMA = frozenset({"MaxPool", "GlobalMaxPool", "ReduceMax"})
CLAMPS = frozenset({"Relu", "Clip"})
TABLES = frozenset({
    "Abs", "Add", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mish",
    "Mul", "Neg", "PRelu", "Pow", "Relu", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh",
    "ThresholdedRelu",
})  # fmt: skip
"""Functions that a table of integers represents well. Log and Reciprocal are left out: near zero one step is the whole range."""
EDGES = frozenset({"Softmax", "LogSoftmax"})
"""What follows the last of these, with no matrix product behind it, is the float edge of a classifier."""


@dataclass
class Layer:
    """A linear operation with a constant weight."""

    node: ir.Node
    axis: int
    """Of the weight's output channels."""
    biases: list[tuple[ir.Node, int]]
    """Node and input index of each constant bias: the layer's own, or the one of an Add right behind."""
    output: ir.Value
    """Where its accumulator is requantized: behind the bias and the clamps."""


@dataclass
class Placement:
    points: list[ir.Value] = field(default_factory=list)
    """The float values to be quantized, in execution order."""
    layers: list[Layer] = field(default_factory=list)
    constants: list[tuple[ir.Node, int]] = field(default_factory=list)
    """Constant operands (node, input index) of sums, products and joins."""
    ties: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)
    """Pairs that must share a grid."""
    joins: list[ir.Node] = field(default_factory=list)
    """Concat nodes: their operands had better share a grid."""
    inside: dict[ir.Value, list[ir.Node]] = field(default_factory=dict)
    """Every node that a point stands for: a layer with its bias and clamps, a table's tree."""
    floats: dict[ir.Node, str] = field(default_factory=dict)
    """Nodes that compute in float, and why."""


def place(graph: ir.Graph, excluded: Callable[[ir.Node], bool]) -> Placement:
    """The placement for a float graph without BatchNormalization and Split. ``excluded`` nodes stay float."""
    return _Placer(graph, excluded).run()


_Tree = tuple[ir.Value, list[ir.Node], bool]


class _Placer:
    def __init__(self, graph: ir.Graph, excluded: Callable[[ir.Node], bool]) -> None:
        self.graph = graph
        self.out = Placement()
        self.excluded = {node for node in graph if excluded(node)}
        self.tail = _float_tail(graph)
        self.wanted: set[ir.Value] = set()
        self.covered: set[ir.Node] = set()
        """Nodes that an operation has taken: layers with their bias and clamps."""
        self.trees: dict[ir.Node, _Tree] = {}

    def run(self) -> Placement:
        for node in self.graph:
            self._layer(node)
        self.trees = self._trees()
        for node in self.graph:
            if node not in self.covered:
                self._node(node)
        self._movement()
        order = [v for v in self.graph.inputs if v in self.wanted]
        order += [v for node in self.graph for v in node.outputs if v in self.wanted]
        self.out.points = order
        for value in order:
            producer = value.producer()
            if producer is not None:
                self.out.inside.setdefault(value, [producer])
        return self.out

    def _plain(self, node: ir.Node) -> bool:
        """Whether the node may become part of an integer operation at all."""
        return (
            not node.domain and node not in self.excluded and node not in self.tail
            and len(node.outputs) >= 1 and node.outputs[0].dtype == ir.DataType.FLOAT
        )  # fmt: skip

    def _integer(self, nodes: list[ir.Node], operands: Iterable[ir.Value | None]) -> ir.Value:
        """``nodes`` compute on integers: their operands and their result, behind the clamps that follow, are points."""
        for value in operands:
            if value is not None and rewrite.real_constant(value) is None:
                self.wanted.add(value)
        result = nodes[-1].outputs[0]
        while (clamp := self._clamp_behind(result)) is not None:
            nodes.append(clamp)
            result = clamp.outputs[0]
        self.wanted.add(result)
        self.covered.update(nodes)
        self.out.inside[result] = nodes
        return result

    def _clamp_behind(self, value: ir.Value) -> ir.Node | None:
        clamp = sole_reader(value)
        found = clamp is not None and clamp.op_type in CLAMPS and self._plain(clamp) and rewrite.bounds_of(clamp) is not None
        return clamp if found and clamp is not None and clamp.inputs[0] is value else None

    # ---- layers with weights ------------------------------------------------------------------------------------

    def _layer(self, node: ir.Node) -> None:
        weight = rewrite.real_constant(node.inputs[1]) if node.op_type in LINEAR and len(node.inputs) > 1 else None
        if weight is None or not self._plain(node) or not _standard(node, weight):
            return
        biases = [(node, 2)] if len(node.inputs) > 2 and node.inputs[2] is not None else []
        nodes, value = [node], node.outputs[0]
        add = sole_reader(value)
        if add is not None and add.op_type == "Add" and self._plain(add) and _is_bias(add, value, node.op_type == "Conv"):
            biases.append((add, 1 if add.inputs[0] is value else 0))
            nodes.append(add)
        result = self._integer(nodes, [node.inputs[0]])
        self.out.layers.append(Layer(node, 0 if node.op_type == "Conv" else 1, biases, result))

    # ---- trees of elementwise functions -------------------------------------------------------------------------

    def _trees(self) -> dict[ir.Node, _Tree]:
        """Trees, cut where a clamp belongs to the operation before it. A cut never makes a tree of what was none."""
        cut = set(self.graph.outputs) | {layer.output for layer in self.out.layers}
        while True:
            trees = _table_trees(self.graph, lambda node: self._plain(node) and node not in self.covered, cut)
            clamps = {
                clamp.outputs[0] for node in self.graph
                if node not in trees and self._plain(node) and self._operands(node) is not None and node.op_type not in MAXIMA
                and (clamp := self._clamp_behind(node.outputs[0])) is not None
            }  # fmt: skip
            if clamps <= cut:
                return trees
            cut |= clamps

    # ---- everything else ----------------------------------------------------------------------------------------

    def _node(self, node: ir.Node) -> None:
        if not node.outputs or not rewrite.is_float(node.outputs[0]):
            return
        if not self._plain(node):
            if node.op_type not in MOVEMENT | {"DequantizeLinear"}:
                self.out.floats[node] = self._why(node)
            return
        if node in self.trees:
            self._tree(node)
            return
        if (operands := self._operands(node)) is None:
            if node.op_type not in MOVEMENT | {"DequantizeLinear", "Pad"}:
                self.out.floats[node] = self._why(node)
            return
        if node.op_type in MAXIMA:
            self._maximum(node)
        else:
            self._integer([node], operands)
        for index, value in enumerate(node.inputs):
            if value in operands and rewrite.real_constant(value) is not None:
                self.out.constants.append((node, index))
        if node.op_type == "Concat":
            self.out.joins.append(node)

    def _operands(self, node: ir.Node) -> list[ir.Value] | None:
        """The tensors that an integer form of ``node`` computes with; None where there is none."""
        values = [v for v in node.inputs if v is not None]
        computed = [v for v in values if rewrite.real_constant(v) is None]
        if not computed or any(v.dtype != ir.DataType.FLOAT for v in computed):
            return None
        x = values[0]
        match node.op_type:
            case "Add" | "Sub" | "Sum" | "Concat":
                return values
            case "Mul" if len(values) == 2:
                return values
            case "MatMul" if rewrite.real_constant(values[1]) is None:
                return values
            case "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool":
                return [x]
            case "MaxPool":
                return [x] if len([v for v in node.outputs if v.name and (v.uses() or v.is_graph_output())]) == 1 else None
            case "ReduceMean" | "ReduceMax":
                return [x] if reduce_axes(node, len(shape_of(x))) else None
            case "Softmax":
                return [x]
        return None

    def _maximum(self, node: ir.Node) -> None:
        """A maximum changes no value: its two sides share a grid, so no clamp is pulled into it."""
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        self.wanted |= {source, result}
        self.out.inside[result] = [node]
        self.out.ties.append((source, result))

    def _tree(self, node: ir.Node) -> None:
        root, nodes, top = self.trees[node]
        if not top:
            return
        self.wanted.add(node.outputs[0])
        self.out.inside[node.outputs[0]] = nodes
        # A clamp behind a float operation stays with it: quantizing in between would only round twice.
        if all(n.op_type in CLAMPS for n in nodes) and root.producer() in self.out.floats:
            self.out.floats[node] = "clamp of a float operation"
        else:
            self.wanted.add(root)

    def _movement(self) -> None:
        """A movement between points carries the grid from one side to the other, as far as movements reach."""
        moves = [n for n in self.graph if self._plain(n) and _moves(n)]
        changed = True
        while changed:
            changed = False
            for node in moves:
                source, result = node.inputs[0], node.outputs[0]
                assert source is not None
                if (source in self.wanted) != (result in self.wanted):
                    self.wanted |= {source, result}
                    changed = True
        for node in moves:
            source, result = node.inputs[0], node.outputs[0]
            if source in self.wanted and source is not None:
                self.out.ties.append((source, result))

    def _why(self, node: ir.Node) -> str:
        if node in self.excluded:
            return "excluded"
        if node in self.tail:
            return "float edge behind the last layer"
        if node.domain or node.outputs[0].dtype != ir.DataType.FLOAT:
            return "not a float32 operator of ONNX's own domain"
        return "no integer form"


def _standard(node: ir.Node, weight: Array) -> bool:
    if node.op_type == "Conv":
        value = node.inputs[2] if len(node.inputs) > 2 else None
        return value is None or rewrite.real_constant(value) is not None
    if node.op_type == "Gemm":
        if any(integer(node, k, 0) for k in ("transA", "transB")):
            return False
        if any(_factor(node, k) != 1.0 for k in ("alpha", "beta")):
            return False
        value = node.inputs[2] if len(node.inputs) > 2 else None
        bias = rewrite.real_constant(value)
        if value is not None and (bias is None or bias.size not in (1, weight.shape[1]) or (bias.ndim > 1 and bias.shape[0] != 1)):
            return False
    return weight.ndim == 2 and rewrite.real_constant(node.inputs[0]) is None


def _factor(node: ir.Node, name: str) -> float:
    found = node.attributes.get(name)
    return 1.0 if found is None else float(found.as_float())


def _is_bias(add: ir.Node, value: ir.Value, conv: bool) -> bool:
    """Whether the Add behind a layer adds one constant per output channel."""
    other = add.inputs[1] if add.inputs[0] is value else add.inputs[0]
    array = rewrite.real_constant(other)
    if array is None or add.outputs[0].shape != value.shape:
        return False
    shape = shape_of(value)
    channels = shape[1 if conv else -1]
    if array.size == 1:
        return array.ndim <= 1 or not conv
    if conv:
        return array.ndim >= 3 and array.size == channels and array.shape[-(len(shape) - 1)] == channels and len(shape) == 4
    return array.size == channels and array.shape[-1] == channels


def _moves(node: ir.Node) -> bool:
    """A movement of one computed float tensor by constant amounts; Pad counts where it pads with zero, which every grid holds."""
    if not node.inputs or node.inputs[0] is None or rewrite.real_constant(node.inputs[0]) is not None:
        return False
    if any(v is not None and constant(v) is None for v in node.inputs[1:]):
        return False
    if node.op_type == "Pad":
        mode = node.attributes.get("mode")
        fill = scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0
        return (mode is not None and mode.as_string() != "constant") or fill == 0.0
    return node.op_type in MOVEMENT


def _float_tail(graph: ir.Graph) -> set[ir.Node]:
    """Softmax nodes with no matrix product behind them, and everything behind those."""
    leads: set[ir.Node] = set()
    """Nodes from which a product with weights or of activations can be reached."""
    for node in reversed(tuple(graph)):
        if node.op_type in LINEAR or any(reader in leads for v in node.outputs for reader in v.consumers()):
            leads.add(node)
    tail: set[ir.Node] = set()
    for node in graph:
        if node in leads:
            continue
        before = [v.producer() for v in node.inputs if v is not None]
        if node.op_type in EDGES or any(p in tail for p in before if p is not None):
            tail.add(node)
    return tail


def _table_trees(graph: ir.Graph, allowed: Callable[[ir.Node], bool], cut: set[ir.Value]) -> dict[ir.Node, _Tree]:
    """Every node of a tree of elementwise functions of one value: its root, the tree's nodes so far, and whether it is the top.

    No tree reaches over a value in ``cut``; more are added to it.

    A value may be inside a tree only if everybody who reads it is in the same tree. Cutting at one that is not may leave
    others without their tree, so this is repeated until nothing changes.
    """
    while True:
        root: dict[ir.Value, ir.Value] = {}
        nodes: dict[ir.Value, list[ir.Node]] = {}
        for node in graph:
            found = _root(node, root, cut) if node.op_type in TABLES and allowed(node) else None
            if found is not None:
                result = node.outputs[0]
                root[result] = found
                inner = [n for v in node.inputs if v in nodes and v not in cut for n in nodes[v]]
                nodes[result] = [*dict.fromkeys(inner), node]
        fresh = {
            v for v in root if v not in cut
            and not all(reader.outputs and root.get(reader.outputs[0]) is root[v] for reader in v.consumers())
        }  # fmt: skip
        if not fresh:
            return {v.producer(): (r, nodes[v], v in cut) for v, r in root.items() if v.producer() is not None}  # type: ignore[misc]
        cut |= fresh


def _root(node: ir.Node, root: dict[ir.Value, ir.Value], cut: set[ir.Value]) -> ir.Value | None:
    found: set[ir.Value] = set()
    for value in node.inputs:
        if value is not None and scalar(value) is None:
            found.add(value if value in cut else root.get(value, value))
    if len(found) != 1 or not node.outputs:
        return None
    one = found.pop()
    bad = one.dtype != ir.DataType.FLOAT or rewrite.real_constant(one) is not None or one.shape != node.outputs[0].shape
    return None if bad or _explodes(node) else one


def _explodes(node: ir.Node) -> bool:
    """Division by the tensor, a negative or fractional power: unbounded near zero, or not a number."""
    if node.op_type == "Div":
        return scalar(node.inputs[1]) is None
    if node.op_type == "Pow":
        power = scalar(node.inputs[1])
        return power is None or power < 0 or not float(power).is_integer()
    return node.op_type == "Sqrt"


def strongly_tied(placement: Placement) -> list[list[ir.Value]]:
    """Groups of points that share a grid, each in execution order; a point alone is a group of one."""
    parent: dict[ir.Value, ir.Value] = {v: v for v in placement.points}

    def find(v: ir.Value) -> ir.Value:
        while parent[v] is not v:
            parent[v] = parent[parent[v]]
            v = parent[v]
        return v

    for a, b in placement.ties:
        if a in parent and b in parent:
            parent[find(b)] = find(a)
    groups: dict[ir.Value, list[ir.Value]] = {}
    for v in placement.points:
        groups.setdefault(find(v), []).append(v)
    return list(groups.values())
