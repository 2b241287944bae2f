"""ONNX nodes under construction, for what is read from a jaxpr."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from gatewright.errors import ModelError

Array = NDArray[Any]


class Graph:
    """Nodes and constants. ``outer``: of a branch, the graph that it is in, whose values it may read and whose names it does not take."""

    def __init__(self, outer: Graph | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._numbers: Iterator[int] = itertools.count() if outer is None else outer._numbers

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.several(op, inputs, 1, **attributes)[0]

    def several(self, op: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """A node of ``count`` outputs."""
        name = f"{op.lower()}_{next(self._numbers)}"
        outputs = [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=name, **attributes))
        return outputs

    def constant(self, array: Any) -> str:
        name = f"constant_{next(self._numbers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def whole(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def reshaped(self, value: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", [value, self.whole(*shape)])

    def cast(self, value: str, dtype: Any) -> str:
        return self.node("Cast", [value], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def turned(self, value: str, perm: Sequence[int]) -> str:
        return value if list(perm) == sorted(perm) else self.node("Transpose", [value], perm=list(perm))

    def proto(self, title: str, inputs: Mapping[str, Array], outputs: Sequence[str], expected: Sequence[Array]) -> onnx.ModelProto:
        def info(name: str, array: Array) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

        names = ["y"] if len(outputs) == 1 else [f"y{i}" for i in range(len(outputs))]
        self.nodes.extend(helper.make_node("Identity", [old], [new], name=f"output_{new}") for old, new in zip(outputs, names, strict=True))
        shown = [info(name, array) for name, array in zip(names, expected, strict=True)]
        graph = helper.make_graph(self.nodes, title, [info(*item) for item in inputs.items()], shown, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="jax")

    def branch(self, title: str, outputs: Sequence[str], shapes: Sequence[Any]) -> onnx.GraphProto:
        """As a branch of an If, whose results are its own. ``shapes``: of each what has dtype and shape."""
        shown = [self.node("Identity", [value]) for value in outputs]
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind.dtype)), kind.shape)
            for name, kind in zip(shown, shapes, strict=True)
        ]
        return helper.make_graph(self.nodes, title, [], infos, self.initializers)


Primitive = Callable[..., "str | list[str]"]
"""From names of operands to the name of the result, or the names of several."""


def refuse(equation: Any, why: str) -> ModelError:
    return ModelError(f"JAX's {equation.primitive.name} at {place(equation)}: {why}", hint="write it with other operations")


def place(equation: Any) -> str:
    """Where in the user's program an equation comes from, and what it gives."""
    from jax.extend import source_info_util

    shown = ", ".join(str(variable.aval) for variable in equation.outvars)
    return f"{source_info_util.summarize(equation.source_info)}, which gives {shown}"
