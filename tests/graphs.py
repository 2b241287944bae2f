"""Small quantized graphs for tests, written as ONNX text with their weights given as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from gatewright.frontend.load import load
from gatewright.frontend.model import Model

Array = NDArray[Any]


def graph(text: str, **initializers: Array) -> Model:
    """The canonical Model of a graph in ONNX's text syntax: ``graph("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }")``.

    ``initializers`` are weights by name; numpy's dtype is the tensor's.
    """
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}')
    for name, array in initializers.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return load(proto, name="g")


def scale(value: float) -> Array:
    return np.asarray(value, np.float32)
