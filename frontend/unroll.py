"""Scan and Loop of a known number of trips, written out: the body once for each trip, in the place of the node.

Kept as they are where the trips depend on data (a Loop that its own condition ends), or where written out they would be longer
than ``UNROLLED_NODES``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gatewright.errors import ModelError

from .edit import Editor, attribute, constant_of, input_of, label, shape_of
from .edit import values as values_of

UNROLLED_NODES = 4096
"""Of one Scan or Loop, all trips together."""
UNROLLED_IN_ALL = 4 * UNROLLED_NODES
"""Of one model: loops within loops multiply."""


def scan(edit: Editor, node: ir.Node) -> bool:
    """Scan: state values go from trip to trip, slices of the scanned inputs come in, and slices of the outputs are joined."""
    body, count = node.attributes["body"].as_graph(), attribute(node, "num_scan_inputs")
    states = len(node.inputs) - count
    scanned = list(node.inputs[states:])
    shapes = [shape_of(value) for value in scanned]
    if any(not shape for shape in shapes) or len(body.inputs) != len(node.inputs):
        return False
    axes = [axis % len(shape or ()) for axis, shape in zip(attribute(node, "scan_input_axes", (0,) * count), shapes, strict=True)]
    trips = {(shape or ())[axis] for axis, shape in zip(axes, shapes, strict=True)}
    if len(trips) != 1 or not _is_short(edit, body, length := trips.pop()):
        return False
    backwards = attribute(node, "scan_input_directions", (0,) * count)
    out = _Unrolled(edit, node, body, states)
    carried = list(node.inputs[:states])
    for trip in range(length):
        slices = [
            out.slice(value, axis, length - 1 - trip if back else trip) for value, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        carried = out.trip([*carried, *slices])
    outputs = len(node.outputs) - states
    joined = attribute(node, "scan_output_axes", (0,) * outputs)
    out.finish(carried, joined, attribute(node, "scan_output_directions", (0,) * outputs))
    return True


def loop(edit: Editor, node: ir.Node) -> bool:
    """Loop of a constant number of trips whose condition starts true and stays so."""
    body, trips, condition = node.attributes["body"].as_graph(), constant_of(input_of(node, 0)), input_of(node, 1)
    if len(body.inputs) != len(node.inputs) or len(body.outputs) != len(node.outputs) + 1 or (trips is not None and not trips.size):
        hint = "the file is damaged, export it again"
        raise ModelError(f"node {label(node)!r} (Loop): its body does not take what it is given", hint=hint)
    if trips is None or not _stays_true(body, condition) or not _is_short(edit, body, length := max(0, int(trips.reshape(-1)[0]))):
        return False
    carried: list[ir.Value | None] = list(node.inputs[2:])
    out = _Unrolled(edit, node, body, len(carried), first_output=1)
    if not length and len(node.outputs) > len(carried):
        return False  # nothing to join: its shape is the body's to say
    true = edit.constant(np.asarray(True), f"{node.name}_condition")
    for trip in range(length):
        carried = out.trip([edit.constant(np.asarray(trip, np.int64), f"{node.name}_trip"), true, *carried])
    scans = len(node.outputs) - len(carried)
    out.finish(carried, (0,) * scans, (0,) * scans)
    return True


def _stays_true(body: ir.Graph, condition: ir.Value | None) -> bool:
    if condition is not None:
        start = constant_of(condition)
        if start is None or not bool(start.reshape(-1)[0]):
            return False
    ends: ir.Value | None = body.outputs[0]
    while ends is not None and (producer := ends.producer()) is not None and producer.op_type == "Identity":
        ends = producer.inputs[0]
    if ends is body.inputs[1]:
        return True
    held = None if ends is None or ends.const_value is None or ends.is_graph_input() else ends.const_value.numpy()
    return held is not None and bool(np.all(held))


def _is_short(edit: Editor, body: ir.Graph, trips: int) -> bool:
    """Whether it may be written out; it then counts towards what the model may have written out in all."""
    count = trips * (len(body) + len(body.inputs) + len(body.outputs))
    if count > UNROLLED_NODES or edit.unrolled + trips * _size(body) > UNROLLED_IN_ALL:
        return False
    edit.unrolled += count
    return True


def _size(graph: ir.Graph) -> int:
    """Nodes of a graph once every loop in it is written out."""
    return sum(1 + _trips(node) * _size(node.attributes["body"].as_graph()) if "body" in node.attributes else 1 for node in graph)


def _trips(node: ir.Node) -> int:
    """Of a Scan or Loop within a body; 1 where that is not known yet."""
    if node.op_type == "Loop":
        count = constant_of(input_of(node, 0))
        return 1 if count is None or not count.size else max(1, int(count.reshape(-1)[0]))
    scanned = node.inputs[len(node.inputs) - attribute(node, "num_scan_inputs", 1) :]
    return max((shape[0] for value in scanned if (shape := shape_of(value))), default=1)


class _Unrolled:
    """The nodes that take a Scan's or Loop's place, as they are made."""

    def __init__(self, edit: Editor, node: ir.Node, body: ir.Graph, states: int, first_output: int = 0) -> None:
        self._edit, self._node, self._body, self._states, self._first = edit, node, body, states, first_output
        self._nodes: list[ir.Node] = []
        self._slices: list[list[ir.Value]] = [[] for _ in node.outputs[states:]]

    def slice(self, value: ir.Value | None, axis: int, index: int) -> ir.Value:
        where = self._edit.constant(np.asarray(index, np.int64), f"{self._node.name}_index")
        self._nodes.append(self._edit.node("Gather", [value, where], {"axis": axis}))
        return self._nodes[-1].outputs[0]

    def trip(self, given: Sequence[ir.Value | None]) -> list[ir.Value | None]:
        """One copy of the body on ``given``; the state values that come out of it."""
        edit, copy = self._edit, self._body.clone(allow_outer_scope_values=True)
        for value in values_of(copy):
            value.name = edit.fresh(f"{self._node.name}_{value.name}") if value.name else None
        for value in list(copy.initializers.values()):
            copy.initializers.pop(value.name or "")
            edit.graph.register_initializer(value)
        for inner in copy:
            inner.name = edit.fresh(f"{self._node.name}_{inner.name or inner.op_type}")
        for formal, actual in zip(copy.inputs, given, strict=True):
            assert actual is not None
            ir.convenience.replace_all_uses_with(formal, actual, replace_graph_outputs=True)
        found, nodes = list(copy.outputs), list(copy)
        copy.outputs.clear()
        copy.remove(nodes)
        self._nodes += nodes
        for pieces, value in zip(self._slices, found[self._first + self._states :], strict=True):
            pieces.append(value)
        return list(found[self._first : self._first + self._states])

    def finish(self, carried: Sequence[ir.Value | None], axes: Sequence[int], backwards: Sequence[int]) -> None:
        edit, node = self._edit, self._node
        ends: list[ir.Value] = []
        for value in carried:
            # A state may be an input, a constant, or the same value twice: an Identity gives each its own node.
            self._nodes.append(edit.node("Identity", [value]))
            ends.append(self._nodes[-1].outputs[0])
        for pieces, axis, back in zip(self._slices, axes, backwards, strict=True):
            where = edit.constant(np.asarray([axis], np.int64), f"{node.name}_axes")
            raised = [edit.node("Unsqueeze", [value, where]) for value in (pieces[::-1] if back else pieces)]
            self._nodes += raised
            self._nodes.append(edit.node("Concat", [one.outputs[0] for one in raised], {"axis": axis}))
            ends.append(self._nodes[-1].outputs[0])
        edit.replace(node, self._nodes, ends)
