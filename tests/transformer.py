"""A tiny transformer of two layers and four heads, as exporters write it: for tests of what prunes or quantizes attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gatewright.frontend.load import load
from gatewright.frontend.model import Model

SEQUENCE, HIDDEN, HEADS, INNER, WORDS = 6, 32, 4, 48, 11


class _Writer:
    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, *shape: int, about: float = 0.0) -> str:
        scale = shape[0] ** -0.5 if len(shape) > 1 else 0.1
        return self.constant(name, (about + self.random.normal(0, scale, shape)).astype(np.float32))

    def constant(self, name: str, array: Any) -> str:
        if not any(tensor.name == name for tensor in self.weights):
            self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_y"], name, **attributes))
        return f"{name}_y"

    def ints(self, *values: int) -> str:
        return self.constant("ints_" + "_".join(map(str, values)), np.asarray(values, np.int64))

    def linear(self, x: str, rows: int, columns: int, name: str) -> str:
        return self.node("Add", self.node("MatMul", x, self.weight(f"{name}.weight", rows, columns)), self.weight(f"{name}.bias", columns))

    def norm(self, x: str, name: str) -> str:
        return self.node(
            "LayerNormalization", x, self.weight(f"{name}.scale", HIDDEN, about=1.0), self.weight(f"{name}.shift", HIDDEN), axis=-1
        )

    def attention(self, x: str, name: str, shape: str) -> str:
        width = HIDDEN // HEADS
        split = self.ints(1, SEQUENCE, HEADS, width)
        if shape == "bert":
            parts = [self.node("Reshape", self.linear(x, HIDDEN, HIDDEN, f"{name}.{part}"), split) for part in ("query", "key", "value")]
            q, v = (self.node("Transpose", part, perm=[0, 2, 1, 3]) for part in (parts[0], parts[2]))
            k = self.node("Transpose", parts[1], perm=[0, 2, 3, 1])
        elif shape == "gpt":
            joint = self.linear(x, HIDDEN, 3 * HIDDEN, f"{name}.qkv")
            cut = [self.node("Slice", joint, self.ints(i * HIDDEN), self.ints((i + 1) * HIDDEN), self.ints(2)) for i in range(3)]
            parts = [self.node("Reshape", part, split) for part in cut]
            q, v = (self.node("Transpose", part, perm=[0, 2, 1, 3]) for part in (parts[0], parts[2]))
            k = self.node("Transpose", parts[1], perm=[0, 2, 3, 1])
        else:
            joint = self.node("Reshape", self.linear(x, HIDDEN, 3 * HIDDEN, f"{name}.qkv"), self.ints(1, SEQUENCE, 3, HEADS, width))
            turned = self.node("Transpose", joint, perm=[2, 0, 3, 1, 4])
            q, k, v = (self.node("Gather", turned, self.constant(f"part{i}", np.asarray(i, np.int64)), axis=0) for i in range(3))
            k = self.node("Transpose", k, perm=[0, 1, 3, 2])
        scores = self.node("Div", self.node("MatMul", q, k), self.constant("root", np.float32(width**0.5)))
        if shape != "bert":
            mask = np.triu(np.full((SEQUENCE, SEQUENCE), -1e4, np.float32), 1).reshape(1, 1, SEQUENCE, SEQUENCE)
            scores = self.node("Add", scores, self.constant("causal", mask))
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), v)
        joined = self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), self.ints(1, SEQUENCE, HIDDEN))
        return self.linear(joined, HIDDEN, HIDDEN, f"{name}.out")


def transformer(shape: str = "bert", seed: int = 0, samples: int = 1) -> tuple[Model, dict[str, NDArray[Any]]]:
    """The model, and feeds for it. ``shape``: queries, keys and values "bert" apart, "gpt" sliced, "packed" gathered from one product."""
    w = _Writer(seed)
    words = w.constant("words", w.random.normal(size=(WORDS, HIDDEN)).astype(np.float32))
    x = w.node("Add", w.node("Gather", words, "ids"), w.weight("positions", SEQUENCE, HIDDEN))
    for i in range(2):
        x = w.node("Add", x, w.attention(w.norm(x, f"layer{i}.norm1"), f"layer{i}", shape))
        inner = w.node("Relu", w.linear(w.norm(x, f"layer{i}.norm2"), HIDDEN, INNER, f"layer{i}.up"))
        x = w.node("Add", x, w.linear(inner, INNER, HIDDEN, f"layer{i}.down"))
    w.node("MatMul", w.norm(x, "final"), w.weight("head.weight", HIDDEN, WORDS))
    w.nodes[-1].output[0] = "logits"
    given = helper.make_tensor_value_info("ids", TensorProto.INT64, (1, SEQUENCE))
    made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, SEQUENCE, WORDS))
    proto = helper.make_model(helper.make_graph(w.nodes, shape, [given], [made], w.weights), opset_imports=[helper.make_opsetid("", 21)])
    proto.ir_version = 10
    ids = np.random.default_rng(seed + 1).integers(0, WORDS, (samples, SEQUENCE))
    return load(proto, name=shape), {"ids": ids}
