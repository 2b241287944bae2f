"""Standard nodes in the place of one of ONNX Runtime's fused operators, and how that one is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .edit import Editor, shape_of
from .steps import Steps

DOMAIN = "com.microsoft"


class Fused(Steps):
    def __init__(self, edit: Editor, node: ir.Node) -> None:
        super().__init__(edit, node)
        self.node = node

    def input(self, position: int) -> ir.Value | None:
        """An operand; None where it is left out."""
        return self.node.inputs[position] if position < len(self.node.inputs) else None

    def need(self, position: int) -> ir.Value:
        """An operand that the schema does not let one leave out. Raises ValueError where a damaged file does."""
        value = self.input(position)
        if value is None:
            raise ValueError(f"operand {position} is left out")
        return value

    def shape(self, position: int) -> tuple[int, ...]:
        """Of an operand; () where it is left out."""
        return shape_of(self.input(position)) or ()

    def is_read(self, position: int) -> bool:
        value = self.node.outputs[position]
        return bool(value.uses()) or value.is_graph_output()

    def number(self, value: Any, like: ir.Value) -> ir.Value:
        """A constant, one number or many, of the type of ``like``, which is known where the node's operands are."""
        dtype = like.dtype or next(v.dtype for v in self.node.inputs if v is not None and v.dtype is not None)
        return self.constant(value, dtype.numpy())

    def integers(self, values: Any, dtype: ir.DataType) -> ir.Value:
        """A constant of whole numbers, which for 4 bits numpy has no type of."""
        return self.constant(np.ascontiguousarray(values), dtype.numpy())

    def several(self, op: str, count: int, *inputs: ir.Value | None) -> list[ir.Value]:
        """The outputs of a new node."""
        self.nodes.append(self.edit.node(op, inputs, outputs=("",) * count, name=self.node.name or ""))
        return list(self.nodes[-1].outputs)

    def turned(self, value: ir.Value) -> ir.Value:
        """The last two axes exchanged."""
        rank = len(shape_of(value) or ())
        return self.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])

    def part(self, value: ir.Value, start: int, end: int, axis: int = -1, step: int = 1) -> ir.Value:
        return self.op("Slice", value, *(self.constant([n]) for n in (start, end, axis, step)))

    def joined(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=axis)
