"""``cast``: a float32 model computed in float16 or bfloat16; inputs and outputs stay float32.

A node stays float32 where ONNX has no 16-bit form of it (its schema says which), where one of its constants does not fit the type, where
a value it reads or makes left the type's range on the data (if there is any), and where ``exclude`` names it. Casts stand where the
two meet. bfloat16 has float32's range and never overflows, but 8 bits of precision.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError, UsageError, nearest
from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant

from . import rewrite
from .base import Effect, Pass, PassContext, PassResult
from .calibrate import calibrate

TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38}
MARGIN = 2.0
"""What was seen on the data stays below the type's largest value by this factor."""
KEPT = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Operators between types, whose meaning is one of precision."""


@dataclass(frozen=True)
class CastTo(Pass):
    """Lossy. Without data nothing is known about overflow of activations, and that is noted."""

    name: ClassVar[str] = "cast"
    effect: ClassVar[Effect] = "lossy"

    to: Literal["float16", "bfloat16"] = "float16"
    exclude: tuple[str, ...] = ()
    """Names or patterns of nodes or outputs that stay float32."""

    def run(self, model: Model, context: PassContext) -> PassResult:
        edited = model.copy_ir()
        graph = edited.graph
        if rewrite.is_quantized(graph):
            raise PassError("cast works on float models, this one is quantized", hint="cast instead of quantize")
        self._check_exclude(graph)
        too_large = self._too_large(model, context)
        reasons = {node: why for node in graph if _floats(node) and (why := self._keeps(node, too_large)) is not None}
        chosen = [node for node in graph if _floats(node) and node not in reasons]
        if not chosen:
            listed = "; ".join(f"{node.name}: {why}" for node, why in list(reasons.items())[:4])
            raise PassError(f"{model.name} has nothing to compute in {self.to} ({listed or 'no float32 nodes'})")
        _Caster(Editor(edited), TYPES[self.to]).run(chosen)
        canonicalize(edited)
        notes = [f"{len(chosen)} nodes compute in {self.to}, {len(reasons)} stay in float32"]
        by_reason: dict[str, list[str]] = {}
        for node, why in reasons.items():
            if node.op_type not in KEPT:
                by_reason.setdefault(why, []).append(node.name or "")
        for why, names in by_reason.items():
            notes.append(f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''} stay in float32: {why}")
        if context.data is None and self.to == "float16":
            notes.append("no data was given, so an activation may overflow unseen")
        return PassResult(model.with_ir(edited), True, tuple(notes), {"float32": [node.name for node in reasons]})

    def _too_large(self, model: Model, context: PassContext) -> dict[str, float]:
        """Values that leave the type's range on the data, and how far they went."""
        if context.data is None or self.to == "bfloat16":
            return {}
        made = [v for node in model.graph for v in node.outputs if v.dtype == ir.DataType.FLOAT and v.name]
        names = [v.name or "" for v in made if not rewrite.from_constants(v)]
        names += [info.name for info in model.inputs if info.dtype == np.float32]
        seen = calibrate(model, names, context.data, histograms=False, progress=context.progress)
        reach = {name: max(-o.low, o.high) for name, o in seen.items()}
        return {name: size for name, size in reach.items() if size * MARGIN > LARGEST[self.to]}

    def _keeps(self, node: ir.Node, too_large: dict[str, float]) -> str | None:
        """Why a node stays in float32; None where it needn't."""
        names = [n for n in (node.name, *(v.name for v in node.outputs)) if n]
        if any(name == p or fnmatch.fnmatchcase(name, p) for p in self.exclude for name in names):
            return "excluded"
        subgraphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        if node.domain or node.op_type in KEPT or any(a.type in subgraphs for a in node.attributes.values()):
            return "it has no 16-bit form"
        if not _has_form(node, f"tensor({self.to})"):
            return f"ONNX has no {self.to} form of {node.op_type}"
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name in too_large:
                return f"{value.name!r} reaches {too_large[value.name]:.3g} on the data, {self.to} ends at {LARGEST[self.to]:.5g}"
            array = constant(value)
            if array is not None and array.dtype == np.float32 and array.size:
                finite = np.abs(array[np.isfinite(array)])
                if finite.size and float(finite.max()) > LARGEST[self.to]:
                    return f"its constant {value.name!r} reaches {float(finite.max()):.3g}" if value is not None else None
        return None

    def _check_exclude(self, graph: ir.Graph) -> None:
        """Raises UsageError for a pattern that names nothing."""
        known = [n for node in graph for n in (node.name, *(v.name for v in node.outputs)) if n]
        for pattern in self.exclude:
            if not any(n == pattern or fnmatch.fnmatchcase(n, pattern) for n in known):
                raise UsageError(f"exclude={pattern} names no node or output of the model", hint=nearest(pattern, known[:200], "names"))


def _floats(node: ir.Node) -> bool:
    return any(v is not None and v.dtype == ir.DataType.FLOAT for v in (*node.inputs, *node.outputs))


def _has_form(node: ir.Node, wanted: str) -> bool:
    """Whether ONNX's schema allows the type for every float32 input and output of the node."""
    allowed = _schema(node.op_type)
    if allowed is None:
        return False
    inputs, outputs = allowed
    for values, formal in ((node.inputs, inputs), (node.outputs, outputs)):
        for index, value in enumerate(values):
            # The last formal parameter of Concat, Sum and the like stands for all further ones.
            if value is not None and value.dtype == ir.DataType.FLOAT and wanted not in formal[min(index, len(formal) - 1)]:
                return False
    return True


@lru_cache(maxsize=256)
def _schema(op: str) -> tuple[list[frozenset[str]], list[frozenset[str]]] | None:
    """Types that each input and output of an operator of opset 21 may have."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op, 21)
    except onnx.defs.SchemaError:
        return None
    types = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    return tuple(  # type: ignore[return-value]
        [types.get(p.type_str, frozenset({p.type_str})) for p in parameters] for parameters in (schema.inputs, schema.outputs)
    )


class _Caster:
    def __init__(self, edit: Editor, dtype: ir.DataType) -> None:
        self.edit, self.dtype = edit, dtype
        self.narrow: dict[ir.Value, ir.Value] = {}
        """float32 values, and what stands for them in 16 bits."""

    def run(self, nodes: list[ir.Node]) -> None:
        inside = set(nodes)
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == ir.DataType.FLOAT:
                    node.replace_input_with(index, self._narrow(value, inside))
        for node in nodes:
            for value in node.outputs:
                if value.dtype == ir.DataType.FLOAT and value.name:
                    self._widen(value, inside)

    def _narrow(self, value: ir.Value, inside: set[ir.Node]) -> ir.Value:
        producer = value.producer()
        if producer in inside:
            return value
        if value not in self.narrow:
            array = constant(value)
            name = f"{value.name}_{self.dtype.name.lower()}"
            if array is not None:
                self.narrow[value] = self.edit.constant(ir.Tensor(array.astype(self.dtype.numpy()), dtype=self.dtype), name)
            else:
                made = self._cast(value, name, self.dtype)
                if producer is None:
                    self.edit.graph.insert_before(self.edit.graph[0], made)
                else:
                    self.edit.graph.insert_after(producer, made)
                self.narrow[value] = made.outputs[0]
        return self.narrow[value]

    def _widen(self, value: ir.Value, inside: set[ir.Node]) -> None:
        """A value made in 16 bits; who reads it in float32, and whoever runs the model, gets it cast back."""
        value.type = ir.TensorType(self.dtype)
        outside = [node for node, _ in value.uses() if node not in inside]
        producer = value.producer()
        assert producer is not None
        if not outside and not value.is_graph_output():
            return
        made = self._cast(value, f"{value.name}_float32", ir.DataType.FLOAT)
        self.edit.graph.insert_after(producer, made)
        result = made.outputs[0]
        rewrite.redirect(value, result, outside)
        if value.is_graph_output():
            for index, output in enumerate(self.edit.graph.outputs):
                if output is value:
                    self.edit.graph.outputs[index] = result
            name = value.name
            value.name = self.edit.fresh(f"{name}_{self.dtype.name.lower()}")
            result.name = name

    def _cast(self, value: ir.Value, name: str, dtype: ir.DataType) -> ir.Node:
        return rewrite.typed_node(
            self.edit, "Cast", [value], name, name=name, shape=rewrite.shape_of(value), dtype=dtype, attributes={"to": int(dtype)}
        )
