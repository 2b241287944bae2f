"""A model as the list of steps that kernels are made of: the integer plan, with everything computed from constants folded.

A step makes exactly one value (a Split is several steps), so that fusion (``fusion.py``) can reason value by value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from gatewright.frontend import float_ops
from gatewright.frontend.integer import Array, FloatStep, Grid, IntegerOp, plan
from gatewright.frontend.model import Model
from gatewright.frontend.queries import shape_of

from . import few_bits
from .few_bits import FewBits, Origin
from .support import Role, role_of

FOLD_LIMIT = 1 << 26
"""Elements of a constant that is computed at compile time; a larger one (an Expand of nothing to everything) stays an operation."""

_TVM_NAMES = {"bool": "bool", "int4": "int8", "uint4": "uint8"}


def tvm_dtype(dtype: ir.DataType) -> str:
    """TVM's name for how a tensor of this type lies in memory."""
    name = str(dtype.numpy())
    return _TVM_NAMES.get(name, name)


@dataclass(frozen=True)
class Value:
    """A tensor that a step makes or a graph input."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """TVM's name."""


@dataclass(frozen=True)
class Step:
    """One operation with one result."""

    source: IntegerOp | FloatStep
    index: int
    """Which of the node's outputs it makes."""
    inputs: tuple[str | None, ...]
    """Value names in the node's order; None where an optional input is absent."""
    output: Value
    role: Role
    float_name: str | None = None
    grid: Grid | None = None

    @property
    def node(self) -> ir.Node:
        """The node whose attributes matter."""
        assert self.source.node is not None, "only a bare requantization has none"
        return self.source.node

    @property
    def label(self) -> str:
        """For messages: the node's name and operator."""
        if isinstance(self.source, IntegerOp):
            return f"{self.source.name} (integer {self.source.kind})"
        return f"{self.source.node.name} ({self.source.node.op_type})"

    @property
    def operator(self) -> str:
        """An identifier-safe word for what it does."""
        return self.source.kind if isinstance(self.source, IntegerOp) else self.source.node.op_type.lower()


@dataclass(frozen=True)
class Program:
    """A model ready to be made into kernels."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    steps: tuple[Step, ...]
    constants: dict[str, Array]
    few_bits: dict[str, tuple[Array, FewBits | None]] = field(default_factory=dict)
    """Of constants that were dequantized: the constant itself, and what it came from (None: in no form that a kernel reads)."""

    def few_bits_of(self, name: str) -> FewBits | None:
        """Of a constant, unless a pass over the program put another array in its place."""
        dense, few = self.few_bits.get(name, (None, None))
        return few if dense is self.constants[name] else None

    @property
    def notes(self) -> tuple[str, ...]:
        """For the report."""
        kept = opened = 0
        for step in self.steps:
            if isinstance(step.source, FloatStep) and step.node.op_type in ("MatMul", "Gemm") and step.inputs[1] in self.few_bits:
                weight = str(step.inputs[1])
                rows, shape = math.prod(step.output.shape[:-1]), self.constants[weight].shape
                held = self.few_bits_of(weight) is not None and few_bits.stays(rows, shape)
                kept, opened = kept + held, opened + (not held)
        return few_bits.note(kept, opened)


def program(model: Model) -> Program:
    """The steps of a canonical model whose operators are all supported (``support.problems`` is empty)."""
    constants = {
        name: _stored(value.const_value.numpy()) for name, value in model.graph.initializers.items() if value.const_value is not None
    }
    steps: list[Step] = []
    origins: dict[str, Origin] = {}
    for source in plan(model).steps:
        if isinstance(source, IntegerOp):
            for operand in source.operands:
                if operand.constant is not None:
                    constants[operand.name] = operand.constant
            steps += [_integer_step(one) for one in _apart(source)]
        elif not _fold(source.node, constants, origins, model):
            steps += _float_steps(source)
    inputs = tuple(_value(v) for v in model.graph.inputs if v.name not in model.graph.initializers)
    found = {name: (origin.dense, FewBits.of(origin)) for name, origin in origins.items()}
    return Program(inputs, tuple(_value(v) for v in model.graph.outputs), tuple(steps), constants, found)


def _integer_step(op: IntegerOp) -> Step:
    value = Value(op.output, op.shape, tvm_dtype(op.grid.dtype))
    return Step(op, 0, tuple(o.name for o in op.operands), value, role_of(op), op.float_name or None, op.grid)


def _apart(op: IntegerOp) -> list[IntegerOp]:
    """A Concat's requantizations as steps of their own, which can be fused behind what makes the operands, and a plain join of them."""
    if op.kind != "concat" or len(op.multipliers) != len(op.operands):
        return [op]
    parts, operands = [], []
    for position, (operand, multiplier) in enumerate(zip(op.operands, op.multipliers, strict=True)):
        if operand.constant is not None or operand.grid.same_as(op.grid):
            operands.append(operand)
            continue
        name = f"{op.output}/{position}"
        operands.append(replace(operand, name=name, grid=op.grid, lo=op.lo, hi=op.hi))
        change = {"kind": "requantize", "node": None, "operands": (operand,), "multipliers": (multiplier,), "shape": operand.shape}
        parts.append(replace(op, output=name, float_name="", **change))  # type: ignore[arg-type]
    return [*parts, replace(op, operands=tuple(operands))]


def _value(value: ir.Value) -> Value:
    assert value.dtype is not None
    return Value(value.name or "", shape_of(value), tvm_dtype(value.dtype))


def _float_steps(source: FloatStep) -> list[Step]:
    inputs = tuple(None if v is None else v.name for v in source.node.inputs)
    if source.exponentials is not None:
        # It looks the integers up in a table, so it reads those and not what DequantizeLinear makes of them.
        inputs = (source.exponentials.operand.name,)
    return [
        Step(source, index, inputs, _value(output), role_of(source))
        for index, output in enumerate(source.node.outputs)
        if output.name and (output.consumers() or output.is_graph_output())
    ]


def _fold(node: ir.Node, constants: dict[str, Array], origins: dict[str, Origin], model: Model) -> bool:
    """Compute ``node`` now if all its inputs are known; True if that was done. ``origins``: of dequantized constants."""
    names = [None if v is None else v.name or "" for v in node.inputs]
    sizes = [int(np.prod(shape_of(v))) for v in node.outputs]
    if node.op_type == "QuantizeLinear" or any(n is not None and n not in constants for n in names) or max(sizes) > FOLD_LIMIT:
        return False
    if any(v.is_graph_output() for v in node.outputs):
        return False
    opset, inputs = model.ir.opset_imports.get("", 21), [None if n is None else constants[n] for n in names]
    results = float_ops.evaluate(node, inputs, opset)
    for value, array in zip(node.outputs, results, strict=False):
        if value.name and value.dtype is not None:
            constants[value.name] = _stored(np.asarray(array, value.dtype.numpy()))
    made, source = node.outputs[0].name or "", names[0] if names else None
    if node.op_type == "DequantizeLinear" and (origin := Origin.of(node, inputs, constants[made])) is not None:
        origins[made] = origin
    elif node.op_type in ("Reshape", "Transpose") and source in origins:
        origins[made] = origins[source].moved(node, inputs, opset, constants[made])
    return True


def _stored(array: Array) -> Array:
    """As it lies in memory: 4-bit integers one to a byte."""
    name = _TVM_NAMES.get(str(array.dtype), str(array.dtype))
    return np.asarray(array).astype(name) if name != str(array.dtype) else np.asarray(array)


def needed(steps: Sequence[Step], outputs: Sequence[Value]) -> list[Step]:
    """The steps without those whose results nobody reads."""
    wanted = {v.name for v in outputs}
    kept = []
    for step in reversed(steps):
        if step.output.name in wanted:
            kept.append(step)
            wanted.update(name for name in step.inputs if name is not None)
    return kept[::-1]


def changed(node: ir.Node, **attributes: int) -> ir.Node:
    """A node of the same operator, without inputs, and with other integer attributes: what a rewritten step is made from."""
    kept = [a for key, a in node.attributes.items() if key not in attributes]
    made = [ir.AttrInt64(key, value) for key, value in attributes.items()]
    return ir.Node(node.domain, node.op_type, inputs=[], attributes=[*kept, *made], num_outputs=1, name=node.name)
