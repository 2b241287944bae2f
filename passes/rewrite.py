"""What the rewriting passes share on top of ``frontend.edit`` and ``frontend.queries``.

Names matter here: a value that survives a pass keeps its name, so that the inner tensors of the model before and after
compare by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gatewright.errors import PassError
from gatewright.frontend.edit import Editor
from gatewright.frontend.queries import clip_bounds, constant, integer

Array = NDArray[Any]

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def real_constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer, or of the DequantizeLinear of one (its float value); None for anything computed."""
    plain = constant(value)
    if plain is not None or value is None:
        return plain
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or integer(node, "block_size", 0):
        return None
    q, scale = constant(node.inputs[0]), constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.int64)
    if q is None or scale is None or zero is None:
        return None
    along: tuple[int, ...] = ()
    if scale.size > 1:
        axis = integer(node, "axis", 1) % q.ndim
        along = tuple(-1 if i == axis else 1 for i in range(q.ndim))
    difference = q.astype(np.int64) - zero.astype(np.int64).reshape(along if zero.size > 1 else ())
    return np.asarray((difference.astype(np.float32) * scale.astype(np.float32).reshape(along)).astype(scale.dtype))


def from_constants(value: ir.Value | None) -> bool:
    """Whether a value is a constant or computed from constants alone (a dequantized weight)."""
    producer = value.producer() if value is not None else None
    return value is None or constant(value) is not None or (producer is not None and all(map(from_constants, producer.inputs)))


def scalar(value: ir.Value | None) -> float | None:
    """A constant of one element, as a Python number."""
    array = real_constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of a value of a canonical graph. Raises PassError naming the value."""
    if value.shape is None or not value.shape.is_static():
        raise PassError(f"value {value.name!r} has no static shape", hint="load the model with gatewright.load, which infers shapes")
    return tuple(int(d) for d in value.shape.numpy())


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in FLOATS


def is_quantized(graph: ir.Graph) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in graph)


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value`` (once or more), where nobody else does and it is no graph output."""
    readers = value.consumers()
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def ints(node: ir.Node, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    found = node.attributes.get(name)
    return tuple(int(i) for i in (found.as_ints() if found is not None else default))


def bounds_of(node: ir.Node) -> tuple[float, float] | None:
    """What a float Relu or Clip clamps to; None where a bound is computed."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    low, high = clip_bounds(node)
    return None if low is None or high is None else (low, high)


def typed_node(
    edit: Editor, op: str, inputs: Sequence[ir.Value | None], output: str, *, name: str, shape: Sequence[int], dtype: ir.DataType,
    attributes: Mapping[str, Any] | None = None,
) -> ir.Node:  # fmt: skip
    """A new node with one output whose shape and dtype are known."""
    node = edit.node(op, inputs, attributes, outputs=(output,), name=name)
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), ir.TensorType(dtype)
    return node


def redirect(old: ir.Value, new: ir.Value, readers: Iterable[ir.Node] | None = None) -> None:
    """Every reader of ``old`` (or the given ones) reads ``new`` instead. Graph outputs are left alone."""
    chosen = None if readers is None else set(readers)
    for node, index in tuple(old.uses()):
        if chosen is None or node in chosen:
            node.replace_input_with(index, new)


def give_output(graph: ir.Graph, maker: ir.Node, old: ir.Node) -> None:
    """``maker`` makes what ``old`` made, under its name; ``old`` is removed."""
    mine, replaced = maker.outputs[0], old.outputs[0]
    for index, value in enumerate(old.inputs):
        if value is mine:
            old.replace_input_with(index, None)
    mine.shape, mine.type = replaced.shape, replaced.type
    adopt(graph, mine, replaced)
    graph.remove(old, safe=True)


def adopt(graph: ir.Graph, mine: ir.Value, replaced: ir.Value) -> None:
    """``mine`` takes the name, the readers and the graph-output slots of ``replaced``."""
    redirect(replaced, mine)
    for index, output in enumerate(graph.outputs):
        if output is replaced:
            graph.outputs[index] = mine
    name = replaced.name
    replaced.name = None
    mine.name = name


def bypass(graph: ir.Graph, node: ir.Node) -> bool:
    """Remove a node that passes its first input on unchanged. False where that would rename a graph input or output."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None:
        return False
    if result.is_graph_output():
        if source.producer() is None or source.is_graph_output():
            return False
        node.replace_input_with(0, None)
        adopt(graph, source, result)
    else:
        redirect(result, source)
    graph.remove(node, safe=True)
    return True


def replace_constant(edit: Editor, node: ir.Node, index: int, array: Array) -> None:
    """A changed weight; it keeps its name if nobody else reads it."""
    value = node.inputs[index]
    assert value is not None
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=value.name)
    if len(value.uses()) == 1 and not value.is_graph_output() and constant(value) is not None:
        value.const_value = tensor
        value.shape, value.dtype = ir.Shape(array.shape), tensor.dtype
    else:
        node.replace_input_with(index, edit.constant(tensor, f"{value.name}_{node.name}"))


def remove_dead(graph: ir.Graph) -> None:
    """Drop nodes nobody reads and initializers nobody reads, in this graph."""
    for node in reversed(tuple(graph)):
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)
    for name, value in tuple(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


def nodes_of(graph: ir.Graph, *ops: str) -> Iterator[ir.Node]:
    """Nodes of these op types, of a snapshot, so that the graph may change meanwhile (removed nodes are skipped)."""
    for node in tuple(graph):
        if node.graph is graph and node.op_type in ops and node.domain == "":
            yield node
