"""New nodes in the place of one of ai.onnx.ml, and how those are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .edit import Editor, attribute, shape_of
from .steps import Steps

Array = NDArray[Any]
Rule = Callable[[Editor, ir.Node], bool]

_FLOATS = {ir.DataType.FLOAT: np.float32, ir.DataType.DOUBLE: np.float64}


class Chain(Steps):
    """Steps named after what they do, whose operands may be arrays; with what ai.onnx.ml's operators have in common."""

    def __call__(self, op: str, *inputs: ir.Value | Array | np.generic, **attributes: Any) -> ir.Value:
        base = self.node.name or self.node.op_type
        given = [i if isinstance(i, ir.Value) else self.edit.constant(np.asarray(i), f"{base}_{op.lower()}") for i in inputs]
        self.nodes.append(self.edit.node(op, given, attributes, outputs=[f"{base}_{op.lower()}_out"], name=f"{base}_{op.lower()}"))
        return self.nodes[-1].outputs[0]

    def close(self, *results: ir.Value) -> bool:
        """The new nodes take the node's place, their results that of its outputs. Always True."""
        self.edit.replace(self.node, self.nodes, results)
        return True

    def floats(self) -> tuple[ir.Value, type] | None:
        """The input as floats and their numpy type; None where its rank or type is not known."""
        x = self.node.inputs[0]
        shape = shape_of(x)
        if x is None or shape is None or len(shape) != 2 or x.dtype is None:
            return None
        if x.dtype in _FLOATS:
            return x, _FLOATS[x.dtype]
        if x.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            return None
        return self("Cast", x, to=ir.DataType.FLOAT.value), np.float32

    def labels(self, winner: ir.Value, names: Sequence[Any]) -> ir.Value:
        """What the classes are called, for the number of each sample's class."""
        if all(isinstance(name, int) for name in names):
            if list(names) == list(range(len(names))):
                return self("Identity", winner)
            return self("Gather", np.asarray(names, np.int64), winner, axis=0)
        texts = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
        return self("Gather", np.asarray(texts, object), winner, axis=0)

    def transformed(self, scores: ir.Value, how: str) -> ir.Value | None:
        """Scores [N, K] after the post transform; None for one that has no operator."""
        if how == "NONE":
            return scores
        if how == "LOGISTIC":
            return self("Sigmoid", scores)
        return self("Softmax", scores, axis=1) if how == "SOFTMAX" else None


def classes(node: ir.Node) -> list[Any]:
    for name in ("classlabels_strings", "classlabels_int64s", "classlabels_ints"):
        found = attribute(node, name, ())
        if found:
            return list(found)
    return []


def text(node: ir.Node, name: str, default: str) -> str:
    value = attribute(node, name, default)
    return value.decode() if isinstance(value, bytes) else str(value)
