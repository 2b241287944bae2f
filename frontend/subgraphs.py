"""What nodes that hold graphs of their own mean: If, Loop and Scan in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gatewright.errors import UnsupportedOp

from .queries import integer

Array = NDArray[Any]
Values = dict[str, Array]
Evaluate = Callable[[ir.Node, Sequence["Array | None"], Mapping[str, Array]], Sequence[Array]]
"""One node on its inputs, with the values around it."""


def evaluate(node: ir.Node, inputs: Sequence[Array | None], outer: Mapping[str, Array], each: Evaluate) -> tuple[Array, ...]:
    """The outputs of If, Loop or Scan. ``outer`` has what the graphs capture, by name; ``each`` runs the nodes in them."""
    match node.op_type:
        case "If":
            condition = inputs[0]
            assert condition is not None
            taken = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
            return tuple(_run(node.attributes[taken].as_graph(), (), outer, each))
        case "Loop":
            return _loop(node, inputs, outer, each)
        case "Scan":
            return _scan(node, inputs, outer, each)
        case _:
            rule = "it holds a graph, which only If, Loop and Scan may here"
            raise UnsupportedOp(node=node.name or "", op=node.op_type, target="ref", rule=rule)


def _run(graph: ir.Graph, inputs: Sequence[Array], outer: Mapping[str, Array], each: Evaluate) -> list[Array]:
    values: Values = dict(outer)
    values |= {name: value.const_value.numpy() for name, value in graph.initializers.items() if value.const_value is not None}
    values |= {value.name or "": array for value, array in zip(graph.inputs, inputs, strict=True)}
    for node in graph:
        given = [None if value is None else values[value.name or ""] for value in node.inputs]
        for value, array in zip(node.outputs, each(node, given, values), strict=False):
            values[value.name or ""] = np.asarray(array)
    return [values[value.name or ""] for value in graph.outputs]


def _loop(node: ir.Node, inputs: Sequence[Array | None], outer: Mapping[str, Array], each: Evaluate) -> tuple[Array, ...]:
    body, (most, start, *states) = node.attributes["body"].as_graph(), inputs
    going = start is None or bool(start.reshape(-1)[0])
    slices: list[list[Array]] = [[] for _ in node.outputs[len(states) :]]
    trip = 0
    while going and (most is None or trip < int(most.reshape(-1)[0])):
        given = [np.asarray(trip, np.int64), np.asarray(going), *(s for s in states if s is not None)]
        end, *found = _run(body, given, outer, each)
        going, states, trip = bool(end.reshape(-1)[0]), list(found[: len(states)]), trip + 1
        for kept, array in zip(slices, found[len(states) :], strict=True):
            kept.append(array)
    joined = [np.stack(kept) if kept else _empty(value) for kept, value in zip(slices, body.outputs[1 + len(states) :], strict=True)]
    return (*(s for s in states if s is not None), *joined)


def _empty(value: ir.Value) -> Array:
    """Nothing joined: no element of the slice's shape, as far as that is known."""
    shape = [] if value.shape is None else [d if isinstance(d, int) else 0 for d in value.shape]
    return np.zeros((0, *shape), value.dtype.numpy() if value.dtype is not None else np.float32)


def _scan(node: ir.Node, inputs: Sequence[Array | None], outer: Mapping[str, Array], each: Evaluate) -> tuple[Array, ...]:
    body, count = node.attributes["body"].as_graph(), integer(node, "num_scan_inputs", 1)
    given = [array for array in inputs if array is not None]
    states, scanned = given[: len(given) - count], given[len(given) - count :]
    outputs = len(node.outputs) - len(states)
    axes, backwards = (_ints(node, f"scan_input_{what}", count) for what in ("axes", "directions"))
    out_axes, out_backwards = (_ints(node, f"scan_output_{what}", outputs) for what in ("axes", "directions"))
    length = scanned[0].shape[axes[0]]
    slices: list[list[Array]] = [[] for _ in range(outputs)]
    for trip in range(length):
        parts = [np.take(x, length - 1 - trip if back else trip, axis=a) for x, a, back in zip(scanned, axes, backwards, strict=True)]
        found = _run(body, [*states, *parts], outer, each)
        states = found[: len(states)]
        for kept, array in zip(slices, found[len(states) :], strict=True):
            kept.append(array)
    joined = [np.stack(kept[::-1] if back else kept, axis=a) for kept, a, back in zip(slices, out_axes, out_backwards, strict=True)]
    return (*states, *joined)


def _ints(node: ir.Node, name: str, count: int) -> list[int]:
    return [int(i) for i in node.attributes.get_ints(name, ()) or [0] * count]
