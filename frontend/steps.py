"""Nodes that take the place of one node, made one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from .edit import Editor


class Steps:
    """x = Steps(edit, node); y = x.op("Add", a, x.number(1)); x.finish(y)"""

    def __init__(self, edit: Editor, node: ir.Node) -> None:
        self.edit, self.node = edit, node
        self.nodes: list[ir.Node] = []

    def op(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """The first output of a new node."""
        self.nodes.append(self.edit.node(op, inputs, attributes, name=self.node.name or ""))
        return self.nodes[-1].outputs[0]

    def constant(self, array: Any, dtype: Any = np.int64) -> ir.Value:
        return self.edit.constant(np.asarray(array, dtype), f"{self.node.name}_constant")

    def reshape(self, value: ir.Value | None, *shape: int) -> ir.Value:
        return self.op("Reshape", value, self.constant(shape))

    def cast(self, value: ir.Value | None, dtype: ir.DataType) -> ir.Value:
        return self.op("Cast", value, to=int(dtype))

    def finish(self, *outputs: ir.Value) -> bool:
        """The new nodes take the node's place. Always True."""
        kept = []
        for value in outputs:
            # A result may be an input or a constant: an Identity gives each a node of its own.
            kept.append(self.op("Identity", value))
        self.edit.replace(self.node, self.nodes, kept)
        return True
