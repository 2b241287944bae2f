"""Small tools to edit an onnx-ir graph: constants in and out, nodes made and replaced, names kept unique.

edit = Editor(model)
target = edit.constant(np.array([0, 64]), "shape")
edit.replace(node, [edit.node("Reshape", [x, target])])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]

_LARGE_BYTES = 16 << 20


class Editor:
    """Edits one model in place. Every name it gives is new in the model, subgraphs included."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.unrolled = 0
        """Nodes that loops written out have become."""
        self.unfit: dict[ir.Node, object] = {}
        """Ifs that were looked into in vain, and what was known around them then."""
        self.notes: list[str] = []
        """What whoever runs the model should know of what was made of it."""
        self.graph = model.graph
        self._names = {value.name for graph in model.graphs() for value in values(graph) if value.name}
        self._names |= {node.name for graph in model.graphs() for node in graph if node.name}

    def fresh(self, base: str) -> str:
        """``base``, or ``base_1``, ``base_2`` … if it is taken."""
        name, count = base, 0
        while not name or name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    def constant(self, array: Array | ir.TensorProtocol, name: str) -> ir.Value:
        """A new initializer of the main graph."""
        name = self.fresh(name)
        if isinstance(array, np.ndarray | np.generic | int | float | list):
            array = np.asarray(array)
            text = array.dtype.kind in "OSU"
            tensor: ir.TensorProtocol = _strings(array, name) if text else ir.tensor(array, name=name)
        else:
            tensor = array
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: Sequence[str] = ("",),
        name: str = "",
    ) -> ir.Node:
        """A node that belongs to no graph yet; ``outputs`` are the wished names of its outputs (made unique)."""
        made = [ir.Value(name=self.fresh(wish or op)) for wish in outputs]
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in (attributes or {}).items()]
        return ir.Node("", op, inputs, attrs, outputs=made, name=self.fresh(name or op))

    def replace(self, node: ir.Node, new: Sequence[ir.Node], outputs: Sequence[ir.Value] | None = None) -> None:
        """``new`` nodes take the place of ``node``, ``outputs`` (default: those of the last one) that of its outputs, names included."""
        graph = node.graph
        assert graph is not None
        graph.insert_before(node, new)
        for old, value in zip(node.outputs, new[-1].outputs if outputs is None else outputs, strict=False):
            self.substitute(old, value)
        graph.remove(node, safe=True)

    def substitute(self, old: ir.Value, value: ir.Value) -> None:
        """Every use of ``old``, as a graph's output too, becomes one of ``value``, which takes over its name unless it is a constant."""
        name = old.name
        value.shape = value.shape or old.shape
        value.type = value.type or old.type
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        if value.producer() is not None and not value.is_initializer():
            old.name = self.fresh(f"{name}_old")
            value.name = name

    def remove(self, node: ir.Node) -> None:
        """Take a node whose outputs nobody uses out of its graph."""
        assert node.graph is not None
        node.graph.remove(node, safe=True)


def values(graph: ir.Graph | ir.Function) -> Iterator[ir.Value]:
    """Inputs, initializers and node outputs of one graph, its subgraphs not included. An input with a default value comes once."""
    seen = set()
    initializers: Iterable[ir.Value] = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
    for value in (*graph.inputs, *initializers, *(out for node in graph for out in node.outputs)):
        if value not in seen:
            seen.add(value)
            yield value


def _strings(array: Array, name: str) -> ir.StringTensor:
    encoded = np.array([item if isinstance(item, bytes) else str(item).encode() for item in array.flat], object).reshape(array.shape)
    return ir.StringTensor(encoded, shape=ir.Shape(array.shape), name=name)


def constant_of(value: ir.Value | None) -> Array | None:
    """The values of an initializer, or None for anything else. Large ones are memory-mapped where they came from a file."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def derived(value: ir.Value, change: Callable[[Array], Array], shape: Sequence[int]) -> ir.TensorProtocol:
    """The tensor of a constant, changed. A large one is changed when it is read, so that a mapped weight stays on disk."""
    tensor = value.const_value
    assert tensor is not None

    def compute() -> ir.TensorProtocol:
        return ir.tensor(np.array(change(np.asarray(tensor.numpy())), order="C"), dtype=tensor.dtype)

    if tensor.nbytes <= _LARGE_BYTES:
        return compute()
    return ir.LazyTensor(compute, dtype=tensor.dtype, shape=ir.Shape(list(shape)))


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer (that is not a graph input with a default), without reading it."""
    return value is not None and value.const_value is not None and value.is_initializer() and not value.is_graph_input()


def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """The static shape, or None where it is not known."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(d) for d in value.shape.numpy())


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value as Python has it (str, int, float, tuple, tensor, graph), or ``default``."""
    found = node.attributes.get(name)
    if found is None:
        return default
    return tuple(found.value) if isinstance(found.value, list) else found.value


def set_attribute(node: ir.Node, name: str, value: Any) -> bool:
    """Set an attribute. True if that changed anything."""
    new = ir.convenience.convert_attribute(name, value)
    old = node.attributes.get(name)
    if old is not None and old.type == new.type and old.value == new.value:
        return False
    node.attributes[name] = new
    return True


def drop_attribute(node: ir.Node, name: str) -> bool:
    """Remove an attribute. True if it was there."""
    return node.attributes.pop(name, None) is not None


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """The input, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Set an input, growing the list of inputs as needed."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def label(node: ir.Node) -> str:
    """How messages name a node: its name, or what it makes where it has none."""
    return node.name or next((f"the one that makes {out.name}" for out in node.outputs if out.name), "without a name")
