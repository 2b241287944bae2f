"""Weights rounded to few bits and stored as integers: what ``nearest``, ``gptq``, ``adaround`` and ``awq`` have in common.

What comes out is a float model whose weights are integers behind a DequantizeLinear (4 bits and less as INT4). ``quantize`` behind one
of these keeps the integers of weights with one scale per channel, and makes the layer integer throughout; with groups (``group=32``: one
scale for 32 inputs of an output) the product stays float, which is what large language models are run with.

A weight with groups is stored in one of two forms, equal in value:
rows    [outputs·inputs/group, group] with one scale per row, reshaped and transposed behind: standard operators, every target takes it
blocks  [inputs, outputs] with DequantizeLinear's block_size, which ONNX Runtime fuses with the product (MatMulNBits)
"""

from __future__ import annotations

import fnmatch
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError, UsageError
from gatewright.errors import nearest as nearest_names
from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.edit import Editor
from gatewright.frontend.integer import Grid
from gatewright.frontend.model import Model

from . import rewrite, rounding
from .base import Effect, Pass, PassContext, PassResult
from .chains import Linear, linear_of
from .grids import QuantizedConstant
from .moments import rows_of, second_moments, weight_of
from .qdq import Writer
from .rewrite import Array


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Lossy. Every Conv, Gemm and MatMul with a constant weight, but for those in ``exclude`` (names or patterns)."""

    effect: ClassVar[Effect] = "lossy"

    bits: int = 4
    """2 to 8."""
    group: int | None = None
    """Inputs of an output that share a scale, in Gemm and MatMul; None: all of them. Where it doesn't divide them, all of them too."""
    grid: Literal["symmetric", "pow2"] = "symmetric"
    """pow2 for what is to run on a pow2 grid."""
    store: Literal["rows", "blocks"] = "rows"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"option 'bits' of pass {self.name!r} is {self.bits}; it takes 2 to 8")
        if self.group is not None and (self.group < 16 or self.group & (self.group - 1)):
            raise UsageError(f"option 'group' of pass {self.name!r} is {self.group}; it takes a power of two from 16 (32, 128)")

    @abstractmethod
    def integers(self, w: Array, steps: Array, h: Array) -> Array:
        """The rounded weight: see ``rounding`` for the shapes."""

    @property
    def hi(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def run(self, model: Model, context: PassContext) -> PassResult:
        edited = model.copy_ir()
        layers = self.layers(edited.graph)
        edit = Editor(edited)
        writer, errors, notes = Writer(edit), dict[str, list[float]](), list[str]()
        for layer, h in self._moments(model, layers, context):
            rows = rows_of(layer, layer.weight)
            group = self._group_of(layer)
            if self.group is not None and group is None and layer.node.op_type != "Conv":
                notes.append(f"{layer.name}: one scale per output, since {rows.shape[-1]} inputs are no multiple of {self.group}")
            scales = self.scales(rows, group, h)
            steps = np.repeat(scales.astype(np.float64), rows.shape[-1] // scales.shape[-1], axis=-1)
            moments = np.broadcast_to(np.eye(rows.shape[-1]), (len(rows), *[rows.shape[-1]] * 2)) if h is None else h
            q = self.integers(rows, steps, moments)
            power = max(float(rounding.error(rows, np.zeros_like(rows), steps, moments).sum()), 1e-300)
            plain = rounding.error(rows, rounding.nearest(rows, steps, self.hi), steps, moments).sum()
            errors[layer.name] = [float(plain / power), float(rounding.error(rows, q, steps, moments).sum() / power)]
            self._store(edit, writer, layer, q, scales, group)
        rewrite.remove_dead(edited.graph)
        canonicalize(edited)
        before, after = (float(np.mean([pair[i] for pair in errors.values()])) for i in (0, 1))
        of = "outputs'" if self.needs_data else "weights'"
        notes.insert(0, f"{len(errors)} layers, {self.bits}-bit weights: squared error {before:.3g} of the {of} power by nearest rounding")
        if after != before:
            notes[0] += f", {after:.3g} as rounded"
        details: dict[str, object] = {"error": errors}
        if context.data is not None and self.needs_data:
            details |= {"samples": len(context.data), "dataset": context.data.digest}
        return PassResult(model.with_ir(edited), True, tuple(notes), details)

    def layers(self, graph: ir.Graph) -> list[Linear]:
        """Those to be rounded, in order. Raises PassError where there are none, UsageError for an ``exclude`` that names nothing."""
        if rewrite.is_quantized(graph):
            raise PassError(f"{self.name} rounds weights of a float model, this one is quantized", hint=f"{self.name}{{…}},quantize{{…}}")
        found = [layer for node in graph if (layer := linear_of(node)) is not None]
        for pattern in self.exclude:
            names = [layer.name for layer in found]
            if not any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names):
                raise UsageError(f"exclude={pattern} names no layer with weights", hint=nearest_names(pattern, names[:200], "layers"))
        found = [x for x in found if not any(x.name == p or fnmatch.fnmatchcase(x.name, p) for p in self.exclude)]
        if not found:
            raise PassError("the model has no Conv, Gemm or MatMul with float32 weights to round", hint="check exclude=")
        return found

    def _moments(self, model: Model, layers: list[Linear], context: PassContext) -> Iterator[tuple[Linear, Array | None]]:
        if not self.needs_data:
            yield from ((layer, None) for layer in layers)
            return
        if context.data is None:
            raise PassError(f"{self.name} needs data to measure on", hint="give data=Dataset.load(…), or --data FILE")
        yield from second_moments(model, layers, context.data, context.progress)

    def _group_of(self, layer: Linear) -> int | None:
        whole = self.group is None or layer.node.op_type == "Conv" or layer.weight.shape[0] % self.group
        return None if whole else self.group

    def scales(self, rows: Array, group: int | None, h: Array | None) -> Array:
        """float32 [groups of the convolution, outputs, inputs / group]."""
        size = group or rows.shape[-1]
        parts = []
        for index, row in enumerate(rows):
            importance = np.ones(row.shape[-1]) if h is None else np.diag(h[index])
            blocks = [slice(start, start + size) for start in range(0, row.shape[-1], size)]
            parts.append([rounding.row_scales(row[:, block], self.hi, self.grid, importance[block]) for block in blocks])
        return np.asarray(parts, np.float32).transpose(0, 2, 1)

    def _store(self, edit: Editor, writer: Writer, layer: Linear, q: Array, scales: Array, group: int | None) -> None:
        dtype = ir.DataType.INT4 if self.bits <= 4 else ir.DataType.INT8
        if group is None:
            values = weight_of(layer, q, layer.weight.shape).astype(np.int64)
            scale = scales.reshape(-1)
            grid = Grid(dtype, scale, np.zeros(scale.shape, np.int64), -self.hi, self.hi, layer.output_axis)
            writer.constant(layer.node, 1, QuantizedConstant(values, grid))
        elif self.store == "blocks":
            by_blocks(edit, layer, q[0].T, scales[0].T, group, dtype)
        else:
            by_rows(edit, layer, q[0], scales[0], group, dtype)


def by_rows(edit: Editor, layer: Linear, q: Array, scales: Array, group: int, dtype: ir.DataType) -> None:
    """q [outputs, inputs], scales [outputs, inputs / group] → [outputs·inputs/group, group], one scale per row."""
    outputs, inputs = q.shape
    name = _name(layer)
    made = _dequantized(edit, layer, q.reshape(-1, group), scales.reshape(-1), name, {"axis": 0}, dtype)
    flat = rewrite.typed_node(
        edit, "Reshape", [made, edit.constant(np.asarray([outputs, inputs], np.int64), f"{name}_shape")], f"{name}_rows",
        name=f"{name}_rows", shape=(outputs, inputs), dtype=ir.DataType.FLOAT,
    )  # fmt: skip
    turned = rewrite.typed_node(
        edit, "Transpose", [flat.outputs[0]], f"{name}_float", name=f"{name}_float", shape=(inputs, outputs), dtype=ir.DataType.FLOAT,
        attributes={"perm": [1, 0]},
    )  # fmt: skip
    edit.graph.insert_before(layer.node, [flat, turned])
    layer.node.replace_input_with(1, turned.outputs[0])


def by_blocks(edit: Editor, layer: Linear, q: Array, scales: Array, group: int, dtype: ir.DataType) -> None:
    """q [inputs, outputs], scales [inputs / group, outputs], as DequantizeLinear's block_size has them."""
    made = _dequantized(edit, layer, q, scales, _name(layer), {"axis": 0, "block_size": group}, dtype)
    layer.node.replace_input_with(1, made)


def _name(layer: Linear) -> str:
    value = layer.node.inputs[1]
    return (value.name if value is not None else None) or f"{layer.name}_weight"


def _dequantized(
    edit: Editor, layer: Linear, q: Array, scales: Array, name: str, attributes: dict[str, int], dtype: ir.DataType
) -> ir.Value:
    integers = edit.constant(ir.Tensor(np.ascontiguousarray(q).astype(dtype.numpy()), dtype=dtype), f"{name}_q")
    scale = edit.constant(np.ascontiguousarray(scales, np.float32), f"{name}_scale")
    zero = edit.constant(ir.Tensor(np.zeros(scales.shape).astype(dtype.numpy()), dtype=dtype), f"{name}_zero_point")
    made = rewrite.typed_node(
        edit, "DequantizeLinear", [integers, scale, zero], f"{name}_dq", name=f"{name}_dq", shape=q.shape, dtype=ir.DataType.FLOAT,
        attributes=attributes,
    )  # fmt: skip
    edit.graph.insert_before(layer.node, made)
    return made.outputs[0]


@dataclass(frozen=True)
class Nearest(WeightOnly):
    """Each weight to its nearest step: needs no data, and is what the others are measured against."""

    name: ClassVar[str] = "nearest"

    def integers(self, w: Array, steps: Array, h: Array) -> Array:
        return rounding.nearest(w, steps, self.hi)
