"""``fold``: what can be known now is computed now, what changes nothing is dropped.

The model is brought to canonical form again (constants folded, dead nodes dropped: ``frontend.canonicalize``), pairs of
movements that undo or continue one another become one, operations that do nothing go, equal computations are shared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant, integer

from . import rewrite
from .base import Effect, Pass, PassContext, PassResult


@dataclass(frozen=True)
class Fold(Pass):
    """Exact, and to the bit in a quantized graph."""

    name: ClassVar[str] = "fold"
    effect: ClassVar[Effect] = "exact"

    cse: bool = True
    """Compute equal subexpressions once."""

    def run(self, model: Model, context: PassContext) -> PassResult:
        edited = model.copy_ir()
        graph = edited.graph
        before = graph.num_nodes()
        simplified = 0
        # Between DequantizeLinear and QuantizeLinear even x·1 is an operation with a rounding of its own.
        rules = _MOVEMENT if rewrite.is_quantized(graph) else (*_MOVEMENT, _neutral)
        while found := sum(rule(graph, node) for node in tuple(graph) for rule in rules if node.graph is graph):
            simplified += found
            rewrite.remove_dead(graph)
        if self.cse:
            common.CommonSubexpressionEliminationPass()(edited)
        canonicalize(edited)
        removed = before - graph.num_nodes()
        if not removed and not simplified:
            return PassResult(model, False)
        return PassResult(model.with_ir(edited), True, (f"{removed} of {before} nodes removed",))


# ---- one rule, one function: (graph, node) -> whether it changed something -----------------------------------------


def _no_op(graph: ir.Graph, node: ir.Node) -> bool:
    """Identity, a Transpose that keeps the order, a Reshape, Expand or Cast to what is there already, a Slice of everything …"""
    if node.domain or len(node.outputs) != 1 or not node.inputs or node.inputs[0] is None:
        return False
    x, y = node.inputs[0], node.outputs[0]
    if x.dtype != y.dtype or x.shape is None or y.shape is None or x.shape != y.shape or not _changes_nothing(node):
        return False
    return rewrite.bypass(graph, node)


def _changes_nothing(node: ir.Node) -> bool:
    match node.op_type:
        case "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Cast":
            return True
        case "Transpose":
            rank = len(rewrite.shape_of(node.outputs[0]))
            return rewrite.ints(node, "perm", tuple(reversed(range(rank)))) == tuple(range(rank))
        case "Slice":
            steps = constant(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
            return steps is not None and bool(np.all(steps == 1))
        case "Pad":
            pads = constant(node.inputs[1])
            return pads is not None and not pads.any()
        case "Concat" | "Sum" | "Max" | "Min":
            return len(node.inputs) == 1
        case "Tile":
            repeats = constant(node.inputs[1])
            return repeats is not None and bool(np.all(repeats == 1))
        case "Dropout":
            return True
    return False


def _neutral(graph: ir.Graph, node: ir.Node) -> bool:
    """x·1, x/1, x + 0 and x − 0 (for −0 + 0 = 0: equal as real numbers)."""
    neutral = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0}.get(node.op_type)
    if neutral is None or node.domain or not rewrite.is_float(node.outputs[0]):
        return False
    if not _all_equal(node.inputs[1], neutral) or node.inputs[0] is None or node.inputs[0].shape != node.outputs[0].shape:
        return False
    return rewrite.bypass(graph, node)


def _all_equal(value: ir.Value | None, number: float) -> bool:
    array = constant(value)
    return array is not None and bool(np.all(array == number))


def _two_transposes(graph: ir.Graph, node: ir.Node) -> bool:
    """Transpose(Transpose(x)) is one Transpose."""
    inner = _inner(node, "Transpose")
    if inner is None or inner.inputs[0] is None:
        return False
    rank = len(rewrite.shape_of(node.outputs[0]))
    default = tuple(reversed(range(rank)))
    first, second = rewrite.ints(inner, "perm", default), rewrite.ints(node, "perm", default)
    node.attributes["perm"] = ir.AttrInt64s("perm", [first[axis] for axis in second])
    return _skip(graph, node, inner)


def _two_reshapes(graph: ir.Graph, node: ir.Node) -> bool:
    """Reshape(Reshape(x)) is the outer one, unless its target copies a dimension (0) that x does not have there."""
    inner = _inner(node, "Reshape")
    target = constant(node.inputs[1]) if inner is not None else None
    if inner is None or target is None or inner.inputs[0] is None or integer(node, "allowzero", 0):
        return False
    before, between = rewrite.shape_of(inner.inputs[0]), rewrite.shape_of(inner.outputs[0])
    if any(size == 0 and before[i : i + 1] != between[i : i + 1] for i, size in enumerate(target)):
        return False
    return _skip(graph, node, inner)


def _two_casts(graph: ir.Graph, node: ir.Node) -> bool:
    """Cast(Cast(x)) is the outer one where the inner one loses nothing."""
    inner = _inner(node, "Cast")
    if inner is None or inner.inputs[0] is None:
        return False
    source, between = inner.inputs[0].dtype, inner.outputs[0].dtype
    if source is None or between is None or (source, between) not in _LOSSLESS:
        return False
    return _skip(graph, node, inner)


_T = ir.DataType
_LOSSLESS = {
    (_T.FLOAT, _T.DOUBLE), (_T.FLOAT16, _T.FLOAT), (_T.FLOAT16, _T.DOUBLE), (_T.INT8, _T.INT32), (_T.INT8, _T.INT64), (_T.UINT8, _T.INT32),
    (_T.UINT8, _T.INT64), (_T.INT32, _T.INT64), (_T.INT16, _T.INT32), (_T.INT8, _T.FLOAT), (_T.UINT8, _T.FLOAT), (_T.BOOL, _T.INT64),
    (_T.BOOL, _T.FLOAT),
}  # fmt: skip


def _inner(node: ir.Node, op: str) -> ir.Node | None:
    if node.op_type != op or node.domain or not node.inputs or node.inputs[0] is None:
        return None
    inner = node.inputs[0].producer()
    return inner if inner is not None and inner.op_type == op and not inner.domain else None


def _skip(graph: ir.Graph, node: ir.Node, inner: ir.Node) -> bool:
    """``node`` reads what ``inner`` read."""
    node.replace_input_with(0, inner.inputs[0])
    if not inner.outputs[0].uses() and not inner.outputs[0].is_graph_output():
        graph.remove(inner, safe=True)
    return True


_MOVEMENT: tuple[Callable[[ir.Graph, ir.Node], bool], ...] = (_two_transposes, _two_reshapes, _two_casts, _no_op)
