"""``dynamic``: 8-bit products whose activations are quantized as they come, each tensor on the range that it has then and there.

For transformers, whose activations have no range that calibration could know: no data is needed. x → DynamicQuantizeLinear →
MatMulInteger with 8-bit weights → times s_x·s_w → bias. Scales of weights per output channel or one.

The weights are stored as uint8 with zero point 128, not as int8: an x86 processor without VNNI multiplies uint8 by int8 in pairs that
saturate at 16 bits (vpmaddubsw), and runs uint8 by uint8 exactly.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError, UsageError, nearest
from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model

from . import rewrite
from .base import Effect, Pass, PassContext, PassResult
from .chains import Linear, linear_of
from .grids import quantize_weight

ZERO = 128


@dataclass(frozen=True)
class Dynamic(Pass):
    """Lossy. MatMul and Gemm with constant weights. Runs where DynamicQuantizeLinear and MatMulInteger do: ``ref`` and ``ort``.

    One scale stands for the whole tensor, so the outputs of a sample depend on those it shares a batch with: models run at their own
    batch size.
    """

    name: ClassVar[str] = "dynamic"
    effect: ClassVar[Effect] = "lossy"

    per: Literal["tensor", "channel"] = "channel"
    exclude: tuple[str, ...] = ()
    """Names or patterns of layers that stay float."""

    def run(self, model: Model, context: PassContext) -> PassResult:
        edited = model.copy_ir()
        if rewrite.is_quantized(edited.graph):
            raise PassError("dynamic quantizes a float model, this one is quantized", hint="give it the float model")
        found = [x for node in edited.graph if node.op_type != "Conv" and (x := linear_of(node)) is not None]
        names = [layer.name for layer in found]
        for pattern in self.exclude:
            if not any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names):
                raise UsageError(f"exclude={pattern} names no MatMul or Gemm with weights", hint=nearest(pattern, names[:200], "layers"))
        found = [x for x in found if not any(x.name == p or fnmatch.fnmatchcase(x.name, p) for p in self.exclude)]
        if not found:
            raise PassError(f"{model.name} has no MatMul or Gemm with constant weights", hint="quantize{…} is for convolutions")
        edit = Editor(edited)
        quantized: dict[ir.Value, ir.Node] = {}
        for layer in found:
            self._replace(edit, layer, quantized)
        rewrite.remove_dead(edited.graph)
        canonicalize(edited)
        note = f"{len(found)} products with 8-bit weights, activations quantized as they come ({len(quantized)} tensors)"
        return PassResult(model.with_ir(edited), True, (note,), {"layers": [layer.name for layer in found]})

    def _replace(self, edit: Editor, layer: Linear, quantized: dict[ir.Value, ir.Node]) -> None:
        node, graph = layer.node, edit.graph
        x, y = node.inputs[0], node.outputs[0]
        assert x is not None
        if x not in quantized:
            made = edit.node("DynamicQuantizeLinear", [x], outputs=[f"{x.name}_q", f"{x.name}_scale", f"{x.name}_zero"], name=f"{x.name}_q")
            shapes = (rewrite.shape_of(x), (), ())
            for value, shape, dtype in zip(made.outputs, shapes, (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8), strict=True):
                value.shape, value.type = ir.Shape(shape), ir.TensorType(dtype)
            producer = x.producer()
            if producer is None:
                graph.insert_before(graph[0], made)
            else:
                graph.insert_after(producer, made)
            quantized[x] = made
        q, scale, zero = quantized[x].outputs
        weight = quantize_weight(layer.weight, "symmetric", 8, 1 if self.per == "channel" else None)
        stored = edit.constant((weight.values + ZERO).astype(np.uint8), f"{layer.name}_weight_q")
        shift = edit.constant(np.asarray(ZERO, np.uint8), f"{layer.name}_weight_zero")
        unit = edit.constant(weight.grid.scale, f"{layer.name}_weight_scale")
        shape, made_as = rewrite.shape_of(y), y.name
        product = rewrite.typed_node(
            edit, "MatMulInteger", [q, stored, zero, shift], f"{made_as}_int", name=node.name or "", shape=shape, dtype=ir.DataType.INT32
        )
        wide = rewrite.typed_node(
            edit, "Cast", [product.outputs[0]], f"{made_as}_real", name=f"{made_as}_real", shape=shape, dtype=ir.DataType.FLOAT,
            attributes={"to": int(ir.DataType.FLOAT)},
        )  # fmt: skip
        both = rewrite.typed_node(
            edit, "Mul", [scale, unit], f"{made_as}_unit", name=f"{made_as}_unit", shape=weight.grid.scale.shape, dtype=ir.DataType.FLOAT
        )
        last = rewrite.typed_node(
            edit, "Mul", [wide.outputs[0], both.outputs[0]], f"{made_as}_scaled", name=f"{made_as}_scaled", shape=shape,
            dtype=ir.DataType.FLOAT,
        )  # fmt: skip
        new = [product, wide, both, last]
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            inputs = [last.outputs[0], node.inputs[2]]
            name = f"{made_as}_biased"
            new.append(rewrite.typed_node(edit, "Add", inputs, name, name=name, shape=shape, dtype=ir.DataType.FLOAT))
        edit.replace(node, new)
