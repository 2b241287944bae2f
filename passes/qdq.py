"""Writes QuantizeLinear, DequantizeLinear and integer constants into a graph, under the names of the numeric contract.

A float value ``X`` stays what QuantizeLinear reads; its integers are ``X_q`` (``X_c`` behind the Clip of a narrower width), their
float values ``X_dq``. A graph output ``y`` is made as ``y_prequant`` and comes out of DequantizeLinear as ``y``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError
from gatewright.frontend.edit import Editor
from gatewright.frontend.integer import Grid
from gatewright.frontend.queries import INTEGER_BOUNDS

from . import rewrite
from .grids import QuantizedConstant
from .rewrite import Array, real_constant


class Writer:
    """Edits one float graph into a QDQ graph."""

    def __init__(self, edit: Editor) -> None:
        self.edit = edit
        self._constants: dict[tuple[object, ...], ir.Value] = {}
        self._parameters: dict[tuple[object, ...], tuple[ir.Value, ir.Value]] = {}

    def activation(self, value: ir.Value, grid: Grid) -> None:
        """Quantize ``value``: every reader of it reads its dequantized integers from now on."""
        graph, name = self.edit.graph, value.name or ""
        scale, zero = self._grid(grid, name)
        shape = rewrite.shape_of(value)
        readers = [node for node, _ in value.uses()]
        made = [self._node("QuantizeLinear", [value, scale, zero], f"{name}_q", shape, grid.dtype, {"axis": 0})]
        if (grid.lo, grid.hi) != INTEGER_BOUNDS[grid.dtype]:
            ends = [self._integers(np.asarray(n), grid.dtype, f"{name}_{w}") for n, w in ((grid.lo, "lo"), (grid.hi, "hi"))]
            made.append(self._node("Clip", [made[-1].outputs[0], *ends], f"{name}_c", shape, grid.dtype))
        made.append(self._node("DequantizeLinear", [made[-1].outputs[0], scale, zero], f"{name}_dq", shape, ir.DataType.FLOAT, {"axis": 0}))
        producer = value.producer()
        if producer is not None:
            graph.insert_after(producer, made)
        elif len(graph):
            graph.insert_before(graph[0], made)
        result = made[-1].outputs[0]
        rewrite.redirect(value, result, readers)
        if value.is_graph_output() and producer is not None:
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = result
            value.name = self.edit.fresh(f"{name}_prequant")
            result.name = name

    def constant(self, node: ir.Node, index: int, constant: QuantizedConstant) -> None:
        """``node`` reads its constant as dequantized integers."""
        value = node.inputs[index]
        assert value is not None
        grid, name = constant.grid, value.name or ""
        key = (value, grid.axis, grid.dtype, grid.scale.tobytes(), constant.values.tobytes())
        if key not in self._constants:
            scale, zero = self._grid(grid, name)
            q = self._integers(constant.values, grid.dtype, f"{name}_q")
            self._constants[key] = self._dequantized(node, q, scale, zero, name, grid.axis)
        node.replace_input_with(index, self._constants[key])

    def bias(self, node: ir.Node, index: int, unit: Array, channel_axis: int | None) -> None:
        """A bias as int32 on the accumulator's scale ``unit`` = s_x·s_w (float32, () or per channel), zero point 0.

        ``channel_axis``: where the constant has the axes of an activation (an Add behind a Conv), counted with the batch axis.
        """
        value = node.inputs[index]
        array = real_constant(value)
        assert value is not None
        assert array is not None
        name = value.name or ""
        axis: int | None = None
        along: tuple[int, ...] = ()
        if unit.ndim:
            if array.size == 1 and unit.size > 1:
                array = np.broadcast_to(array.reshape(-1), unit.shape)
                if channel_axis is not None:
                    array = array.reshape(-1, 1, 1)
            axis = array.ndim - 1 if channel_axis is None else array.ndim - 3
            along = tuple(-1 if i == axis else 1 for i in range(array.ndim))
        q = np.rint(array.astype(np.float64) / unit.astype(np.float64).reshape(along))
        if np.abs(q).max(initial=0.0) >= 2**31:
            raise PassError(f"the bias {name!r} of {node.name!r} does not fit into its 32-bit accumulator", hint="try per=channel")
        scale = self.edit.constant(unit, f"{name}_scale")
        zero = self.edit.constant(np.zeros(unit.shape, np.int32), f"{name}_zero_point")
        integers = self.edit.constant(q.astype(np.int32), f"{name}_q")
        node.replace_input_with(index, self._dequantized(node, integers, scale, zero, name, axis))

    def _dequantized(self, before: ir.Node, q: ir.Value, scale: ir.Value, zero: ir.Value, name: str, axis: int | None) -> ir.Value:
        made = self._node("DequantizeLinear", [q, scale, zero], f"{name}_dq", rewrite.shape_of(q), ir.DataType.FLOAT, {"axis": axis or 0})
        self.edit.graph.insert_before(before, made)
        return made.outputs[0]

    def _node(
        self, op: str, inputs: Sequence[ir.Value], output: str, shape: tuple[int, ...], dtype: ir.DataType,
        attributes: dict[str, int] | None = None,
    ) -> ir.Node:  # fmt: skip
        return rewrite.typed_node(self.edit, op, inputs, output, name=output, shape=shape, dtype=dtype, attributes=attributes)

    def _grid(self, grid: Grid, name: str) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point; values on one grid share them."""
        key = (grid.dtype, grid.scale.tobytes(), grid.zero_point.tobytes(), grid.axis)
        if key not in self._parameters:
            scale = self.edit.constant(grid.scale.astype(np.float32), f"{name}_scale")
            self._parameters[key] = scale, self._integers(grid.zero_point, grid.dtype, f"{name}_zero_point")
        return self._parameters[key]

    def _integers(self, values: Array, dtype: ir.DataType, name: str) -> ir.Value:
        array = np.asarray(values).astype(dtype.numpy())
        return self.edit.constant(ir.Tensor(array, dtype=dtype), name)
