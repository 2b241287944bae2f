"""Random quantized graphs: a few layers over small tensors, random grids, zero points, weights, pads and strides."""

from __future__ import annotations

import numpy as np
import onnx
from graphs import Array
from onnx import TensorProto, helper, numpy_helper

from gatewright.frontend.load import load
from gatewright.frontend.model import Model

KINDS = (
    "conv", "matmul", "add", "mul", "concat", "maxpool", "average", "global", "table", "move", "bare", "sub", "clip", "mean",
)  # fmt: skip
_TYPES = {np.int8: TensorProto.INT8, np.uint8: TensorProto.UINT8}


class _Writer:
    """Appends nodes; a value is (ONNX name, shape, scale, zero point, numpy type) of an integer tensor."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, Array] = {}
        self.names = 0

    def name(self) -> str:
        self.names += 1
        return f"v{self.names}"

    def array(self, value: Array) -> str:
        name = self.name()
        self.arrays[name] = np.asarray(value)
        return name

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = self.name()
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{self.names}", **attributes))
        return name

    def grid(self) -> tuple[float, int, type]:
        """Half of them powers of two."""
        pow2 = self.rng.random() < 0.5
        scale = 2.0 ** int(self.rng.integers(-6, 1)) if pow2 else float(self.rng.uniform(0.01, 0.5))
        kind = np.int8 if self.rng.random() < 0.6 else np.uint8
        zero = 0 if self.rng.random() < 0.5 else int(self.rng.integers(-9, 10) if kind is np.int8 else self.rng.integers(0, 20))
        return scale, zero, kind

    def dequantized(self, value: str, grid: tuple[float, int, type]) -> str:
        return self.node("DequantizeLinear", [value, self.array(np.float32(grid[0])), self.array(grid[2](grid[1]))])

    def quantized(self, value: str) -> tuple[str, tuple[float, int, type]]:
        grid = self.grid()
        if self.rng.random() < 0.3:
            value = self.node("Relu", [value])
        name = self.node("QuantizeLinear", [value, self.array(np.float32(grid[0])), self.array(grid[2](grid[1]))])
        if self.rng.random() < 0.3:  # a narrower width: an integer Clip
            low, high = (-8, 7) if grid[2] is np.int8 else (0, 15)
            name = self.node("Clip", [name, self.array(grid[2](low)), self.array(grid[2](high))])
        return name, grid

    def weight(self, shape: tuple[int, ...]) -> str:
        values = self.rng.integers(-8, 8, shape).astype(np.int8)
        values[self.rng.random(shape) < 0.4] = 0
        return self.dequantized(self.array(values), (2.0**-4 if self.rng.random() < 0.5 else 0.07, 0, np.int8))


def random_model(seed: int) -> Model:
    """A canonical model with input ``x`` int8 [1, C, H, W] and an integer output ``y``, of some the index of the largest or the least."""
    w = _Writer(seed)
    shape = tuple(int(n) for n in w.rng.integers(1, 4, 3))
    first, grid = shape, (0.25, int(w.rng.integers(-3, 4)), np.int8)
    value = "x"
    for _ in range(int(w.rng.integers(1, 5))):
        real = w.dequantized(value, grid)
        channels, height, width = shape
        kind = str(w.rng.choice(KINDS))
        if kind == "conv":
            filters, kernel = int(w.rng.integers(1, 4)), int(w.rng.integers(1, 4))
            depthwise = bool(w.rng.random() < 0.3)
            filters = channels if depthwise else filters
            pad, stride = int(w.rng.integers(kernel // 2, kernel)), int(w.rng.integers(1, 3))
            bias = w.array(w.rng.normal(0, 1, filters).astype(np.float32))
            real = w.node(
                "Conv", [real, w.weight((filters, 1 if depthwise else channels, kernel, kernel)), bias], kernel_shape=[kernel] * 2,
                pads=[pad] * 4, strides=[stride] * 2, group=channels if depthwise else 1,
            )  # fmt: skip
            sizes = [(size + 2 * pad - kernel) // stride + 1 for size in (height, width)]
            shape = (filters, sizes[0], sizes[1])
        elif kind == "matmul":
            columns = int(w.rng.integers(1, 4))
            real = w.node("MatMul", [real, w.weight((width, columns))])
            shape = (channels, height, columns)
        elif kind in ("add", "mul", "sub"):
            other, other_grid = w.quantized(w.node("Neg", [real]) if w.rng.random() < 0.3 else real)
            real = w.node({"add": "Add", "mul": "Mul", "sub": "Sub"}[kind], [w.dequantized(value, grid), w.dequantized(other, other_grid)])
        elif kind == "concat":
            other, other_grid = w.quantized(real)
            real = w.node("Concat", [w.dequantized(value, grid), w.dequantized(other, other_grid)], axis=1)
            shape = (2 * channels, height, width)
        elif kind in ("maxpool", "average"):
            op = "MaxPool" if kind == "maxpool" else "AveragePool"
            real = w.node(op, [real], kernel_shape=[2, 2], pads=[0, 0, 1, 1])
        elif kind == "global":
            real = w.node("GlobalAveragePool" if w.rng.random() < 0.5 else "GlobalMaxPool", [real])
            shape = (channels, 1, 1)
        elif kind == "table":
            real = w.node(str(w.rng.choice(["Tanh", "Sigmoid", "Abs", "LeakyRelu", "HardSwish", "Elu"])), [real])
        elif kind == "clip":
            real = w.node("Clip", [real, w.array(np.float32(w.rng.uniform(-2, 0))), w.array(np.float32(w.rng.uniform(0.1, 6)))])
        elif kind == "mean":
            real = w.node("ReduceMean", [real, w.array(np.array([3], np.int64))], keepdims=1)
            shape = (channels, height, 1)
        elif kind == "move":
            real = w.node("Transpose", [real], perm=[0, 1, 3, 2])
            shape = (channels, width, height)
        value, grid = w.quantized(real)
    kind_out = _TYPES[grid[2]]
    if w.rng.random() < 0.2:
        last = {"axis": int(w.rng.integers(1, 4)), "select_last_index": int(w.rng.integers(0, 2))}
        w.node(str(w.rng.choice(["ArgMax", "ArgMin"])), [w.dequantized(value, grid)], keepdims=1, **last)
        sizes = [1, *shape]
        sizes[last["axis"]] = 1
        shape, kind_out = (sizes[1], sizes[2], sizes[3]), TensorProto.INT64
    w.nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        w.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.INT8, ["N", *first])],
        [helper.make_tensor_value_info("y", kind_out, ["N", *shape])],
        [numpy_helper.from_array(array, name) for name, array in w.arrays.items()],
    )  # fmt: skip
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), name=f"random{seed}")


def random_samples(model: Model, seed: int, count: int = 12) -> Array:
    """int8, the ends of the type among them."""
    x = np.random.default_rng(seed).integers(-128, 128, (count, *model.inputs[0].shape[1:])).astype(np.int8)
    x[0], x[1] = -128, 127
    return x
