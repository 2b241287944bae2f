"""Two transformers with random weights, as plain ONNX operators: one BERT-shaped (encoder), one GPT-shaped (decoder, causal).

    python bench/transformers.py [FOLDER]       writes bert.onnx and gpt.onnx

Both have 6 layers, hidden size 768, 12 heads, 3072 in the feed-forward part, sequence 128, batch 1. They are written as
exporters write them: bias as an Add behind MatMul, heads by Reshape and Transpose, GELU and (in BERT) LayerNorm spelled out.
The weights are seeded and scaled so that activations keep their size; accuracy means nothing here, speed and shape do.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer."""

    layers: int = 6
    hidden: int = 768
    heads: int = 12
    inner: int = 3072
    sequence: int = 128
    vocabulary: int = 1000


@dataclass
class Builder:
    """Nodes and seeded weights under construction."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def weight(self, array: NDArray[Any], name: str) -> str:
        self.weights[name] = numpy_helper.from_array(array, name)
        return name

    def random(self, shape: tuple[int, ...], scale: float, name: str, offset: float = 0.0) -> str:
        return self.weight((offset + self.rng.normal(0.0, scale, shape)).astype(np.float32), name)

    def scalar(self, value: float) -> str:
        name = f"const_{value}"
        return name if name in self.weights else self.weight(np.float32(value), name)

    def ints(self, *values: int) -> str:
        name = "ints_" + "_".join(map(str, values))
        return name if name in self.weights else self.weight(np.asarray(values, np.int64), name)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name + "_y"], name=name, **attributes))
        return name + "_y"

    def linear(self, x: str, rows: int, columns: int, name: str) -> str:
        """x · W + b; W keeps the variance of x."""
        product = self.node("MatMul", x, self.random((rows, columns), rows**-0.5, name + ".weight"))
        return self.node("Add", product, self.random((columns,), 0.02, name + ".bias"))

    def norm(self, x: str, width: int, name: str) -> str:
        """LayerNormalization as exporters of older opsets spell it."""
        mean = self.node("ReduceMean", x, axes=[-1])
        centred = self.node("Sub", x, mean)
        variance = self.node("ReduceMean", self.node("Pow", centred, self.scalar(2.0)), axes=[-1])
        deviation = self.node("Sqrt", self.node("Add", variance, self.scalar(1e-5)))
        scaled = self.node("Mul", self.node("Div", centred, deviation), self.random((width,), 0.02, name + ".weight", 1.0))
        return self.node("Add", scaled, self.random((width,), 0.02, name + ".bias"))

    def norm_op(self, x: str, width: int, name: str) -> str:
        """LayerNormalization as one operator."""
        scale, bias = self.random((width,), 0.02, name + ".weight", 1.0), self.random((width,), 0.02, name + ".bias")
        return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)

    def gelu_erf(self, x: str) -> str:
        spread = self.node("Add", self.node("Erf", self.node("Div", x, self.scalar(2**0.5))), self.scalar(1.0))
        return self.node("Mul", self.node("Mul", x, spread), self.scalar(0.5))

    def gelu_tanh(self, x: str) -> str:
        cubic = self.node("Mul", self.node("Pow", x, self.scalar(3.0)), self.scalar(0.044715))
        bent = self.node("Tanh", self.node("Mul", self.node("Add", x, cubic), self.scalar((2 / np.pi) ** 0.5)))
        return self.node("Mul", self.node("Mul", x, self.scalar(0.5)), self.node("Add", bent, self.scalar(1.0)))

    def embedded(self, shape: Shape) -> str:
        tokens = self.node("Gather", self.random((shape.vocabulary, shape.hidden), 1.0, "tokens"), "ids")
        return self.node("Add", tokens, self.random((1, shape.sequence, shape.hidden), 0.1, "positions"))

    def attended(self, q: str, k: str, v: str, mask: str, shape: Shape) -> str:
        """softmax(q·kᵀ/√d + mask)·v by heads; q, k, v [1, S, hidden] → [1, S, hidden]."""
        width = shape.hidden // shape.heads
        split = self.ints(1, shape.sequence, shape.heads, width)
        query, value = (self.node("Transpose", self.node("Reshape", t, split), perm=[0, 2, 1, 3]) for t in (q, v))
        key = self.node("Transpose", self.node("Reshape", k, split), perm=[0, 2, 3, 1])
        scores = self.node("Div", self.node("MatMul", query, key), self.scalar(width**0.5))
        shares = self.node("Softmax", self.node("Add", scores, mask), axis=-1)
        joined = self.node("Transpose", self.node("MatMul", shares, value), perm=[0, 2, 1, 3])
        return self.node("Reshape", joined, self.ints(1, shape.sequence, shape.hidden))

    def model(self, inputs: dict[str, int], output: str, sizes: tuple[int, ...], name: str, shape: Shape) -> onnx.ModelProto:
        given = [helper.make_tensor_value_info(key, kind, (1, shape.sequence)) for key, kind in inputs.items()]
        made = helper.make_tensor_value_info(output, TensorProto.FLOAT, (1, *sizes))
        self.nodes[-1].output[0] = output
        graph = helper.make_graph(self.nodes, name, given, [made], list(self.weights.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def bert(shape: Shape = Shape(), seed: int = 0, classes: int | None = None) -> onnx.ModelProto:
    """An encoder: ``ids`` int64 [1, S] and ``attention_mask`` float32 [1, S] (1 where there is a token) → ``hidden`` [1, S, hidden].

    ``classes``: → ``logits`` [1, classes] instead, of the first token through BERT's pooler (a product and a tanh).
    """
    b = Builder(np.random.default_rng(seed))
    absent = b.node("Sub", b.scalar(1.0), b.node("Unsqueeze", "attention_mask", b.ints(1, 2)))
    mask = b.node("Mul", absent, b.scalar(-10000.0))
    x = b.norm(b.embedded(shape), shape.hidden, "embedding.norm")
    for layer in range(shape.layers):
        name = f"layer{layer}"
        q, k, v = (b.linear(x, shape.hidden, shape.hidden, f"{name}.{part}") for part in ("query", "key", "value"))
        attended = b.linear(b.attended(q, k, v, mask, shape), shape.hidden, shape.hidden, f"{name}.out")
        x = b.norm(b.node("Add", attended, x), shape.hidden, f"{name}.norm1")
        grown = b.gelu_erf(b.linear(x, shape.hidden, shape.inner, f"{name}.up"))
        x = b.norm(b.node("Add", b.linear(grown, shape.inner, shape.hidden, f"{name}.down"), x), shape.hidden, f"{name}.norm2")
    inputs = {"ids": TensorProto.INT64, "attention_mask": TensorProto.FLOAT}
    if classes is None:
        return b.model(inputs, "hidden", (shape.sequence, shape.hidden), "bert", shape)
    first = b.node("Gather", x, b.weight(np.asarray(0, np.int64), "first"), axis=1)
    b.linear(b.node("Tanh", b.linear(first, shape.hidden, shape.hidden, "pooler")), shape.hidden, classes, "classifier")
    return b.model(inputs, "logits", (classes,), "bert", shape)


def gpt(shape: Shape = Shape(), seed: int = 0) -> onnx.ModelProto:
    """A decoder: ``ids`` int64 [1, S] → ``logits`` [1, S, vocabulary]; each position sees those before it."""
    b = Builder(np.random.default_rng(seed))
    causal = np.triu(np.full((shape.sequence, shape.sequence), -10000.0, np.float32), 1)
    mask = b.weight(causal.reshape(1, 1, *causal.shape), "causal_mask")
    x = b.embedded(shape)
    for layer in range(shape.layers):
        name = f"layer{layer}"
        joint = b.linear(b.norm_op(x, shape.hidden, f"{name}.norm1"), shape.hidden, 3 * shape.hidden, f"{name}.qkv")
        q, k, v = (
            b.node("Slice", joint, b.ints(i * shape.hidden), b.ints((i + 1) * shape.hidden), b.ints(2)) for i in range(3)
        )  # fmt: skip
        attended = b.linear(b.attended(q, k, v, mask, shape), shape.hidden, shape.hidden, f"{name}.out")
        x = b.node("Add", x, attended)
        grown = b.gelu_tanh(b.linear(b.norm_op(x, shape.hidden, f"{name}.norm2"), shape.hidden, shape.inner, f"{name}.up"))
        x = b.node("Add", x, b.linear(grown, shape.inner, shape.hidden, f"{name}.down"))
    x = b.norm_op(x, shape.hidden, "final.norm")
    b.node("MatMul", x, b.random((shape.hidden, shape.vocabulary), shape.hidden**-0.5, "head.weight"))
    return b.model({"ids": TensorProto.INT64}, "logits", (shape.sequence, shape.vocabulary), "gpt", shape)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in (("bert", bert()), ("gpt", gpt())):
        onnx.save(model, folder / f"{name}.onnx")
        print(folder / f"{name}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("."))
