"""The definition of what a compiled model computes. Short on purpose: read it as the specification of the numeric contract.

A float node means what ONNX says (``float_ops.py``). An integer operation means exactly this: an accumulator in integers,
``requantize`` with one rounding half to even (``rounding.py``), the zero point added, clamped to lo … hi. Every target is
held to it bit for bit. All sums run in a dtype that is proven exact for their bounds, so the order does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from gatewright.errors import DataError, UnsupportedOp

from . import float_ops
from .batch import batch_reason
from .integer import Array, FloatStep, Grid, IntegerOp, Plan, plan
from .model import Model, TensorInfo
from .queries import INTEGER_BOUNDS, integer, reduce_axes
from .rounding import exact_float, requantize, round_shift
from .windows import Window, convolve

Values = dict[str, Array]


class Reference:
    """Runs a canonical model. Any number of samples at once where the model treats axis 0 as samples (``per_sample``)."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.plan: Plan = plan(model)
        self.saturations: dict[str, int] = {}
        """Values clamped at the grid's bounds in the last run, by the integer tensor's name; an activation's own bound does not count."""
        self._constants = {
            name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value is not None
        }

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return self.model.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return self.model.outputs

    @cached_property
    def per_sample(self) -> bool:
        """True where axis 0 of every input and output is the samples', so that a batch is many independent runs."""
        return batch_reason(self.model) is None

    def run(self, feeds: Mapping[str, Array], trace: bool = False) -> Values:
        """Outputs by name; with ``trace`` every inner tensor too.

        In a trace an integer operation gives its integers under the integer tensor's name, and what they stand for
        (s·(q − z), float32) under the name of the float value that was quantized, so that a float model's trace compares by name.
        """
        values: Values = {**self._constants, **feeds}
        saturated: Counter[str] = Counter()
        for step in self.plan.steps:
            if isinstance(step, IntegerOp):
                q, outside = compute(step, [values[o.name] for o in step.operands])
                values[step.output] = q.astype(step.grid.dtype.numpy())
                saturated[step.output] += outside
                if trace:
                    values.setdefault(step.float_name, dequantize(q, step.grid))
            else:
                self._float_step(step, values, saturated)
        self.saturations = dict(saturated)
        wanted = [o.name for o in self.outputs]
        missing = [name for name in wanted if name not in values]
        if missing:
            raise DataError(f"the model never computes its output {missing[0]!r}")
        if trace:
            return {name: array for name, array in values.items() if name not in self._constants or name in wanted}
        return {name: values[name] for name in wanted}

    def _float_step(self, step: FloatStep, values: Values, saturated: Counter[str]) -> None:
        node = step.node
        if step.exponentials is not None:
            q = values[step.exponentials.operand.name].astype(np.int64)
            values[node.outputs[0].name or ""] = probabilities(step.exponentials.table, q, integer(node, "axis", -1)).astype(np.float32)
            return
        inputs = [None if v is None else values[v.name or ""] for v in node.inputs]
        if node.op_type == "QuantizeLinear":
            output = node.outputs[0]
            dtype = output.dtype
            if dtype not in INTEGER_BOUNDS:
                rule = f"it quantizes to {dtype}, which is none of the integer types"
                raise UnsupportedOp(node=node.name or "", op=node.op_type, target="ref", rule=rule)
            grid = self.plan.grids.get(_after_clip(output).name or "")
            lo, hi = INTEGER_BOUNDS[dtype]
            values[output.name or ""], outside = float_ops.quantize_linear(node, inputs, np.dtype(dtype.numpy()), lo, hi)
            if grid is not None and (grid.lo, grid.hi) != (lo, hi):
                q = values[output.name or ""].astype(np.int64)
                outside = int(np.count_nonzero((q < grid.lo) | (q > grid.hi)))
            saturated[output.name or ""] += outside
            return
        outputs = float_ops.evaluate(node, inputs, self.model.ir.opset_imports.get("", 21), values)
        for value, array in zip(node.outputs, outputs, strict=False):
            if value.name:
                values[value.name] = array if value.dtype is None else array.astype(value.dtype.numpy(), copy=False)


def dequantize(q: Array, grid: Grid) -> Array:
    """s·(q − z) in float32."""
    return ((q - grid.zero_point).astype(np.float32) * grid.scale).astype(np.float32)


def compute(op: IntegerOp, operands: list[Array]) -> tuple[Array, int]:
    """The integers of one operation (int64), and how many values were saturated by the grid (an activation's bound apart)."""
    q = _unclamped(op, operands)
    low = np.count_nonzero(q < op.lo) if not op.activation_lo else 0
    high = np.count_nonzero(q > op.hi) if not op.activation_hi else 0
    return np.clip(q, op.lo, op.hi), int(low + high)


def _unclamped(op: IntegerOp, operands: list[Array]) -> Array:
    # From here on x are the operands as q − z: real values in units of their scales.
    x = [array.astype(np.int64) - o.grid.zero_point for array, o in zip(operands, op.operands, strict=True)]
    z = op.grid.zero_point
    match op.kind:
        case "conv":
            assert op.node is not None
            assert op.weight is not None
            assert op.bias is not None
            exact = exact_float(_magnitude(op))
            window = Window.of(op.node, op.weight.shape[2:])
            group = integer(op.node, "group", 1)
            acc = convolve(x[0].astype(exact), op.weight.astype(exact), window, group).astype(np.int64)
            channels = (1, -1, *[1] * (acc.ndim - 2))
            m = op.multipliers[0]
            return requantize(acc + op.bias.reshape(channels), _reshaped(m, channels if m.m.ndim else ()), z)
        case "matmul":
            exact = exact_float(_magnitude(op))
            right = x[1] if op.weight is None else op.weight
            acc = np.matmul(x[0].astype(exact), right.astype(exact)).astype(np.int64)
            return requantize(acc if op.bias is None else acc + op.bias, op.multipliers[0], z)
        case "sum":
            k = max(int(m.k) for m in op.multipliers)
            terms = [s * a * (int(m.m) << (k - int(m.k))) for s, a, m in zip(op.signs, x, op.multipliers, strict=True)]
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            return round_shift(total, k) + z
        case "product":
            return requantize(x[0] * x[1], op.multipliers[0], z)
        case "concat":
            assert op.node is not None
            axis = integer(op.node, "axis", 0)
            # Each operand has its own rounding, so each is clamped before it is joined.
            return np.concatenate([requantize(a, m, z) for a, m in zip(x, op.multipliers, strict=True)], axis=axis)
        case "average":
            return requantize(_window_sum(op, x[0]), op.multipliers[0], z)
        case "maximum":
            return requantize(_window_max(op, x[0]), op.multipliers[0], z)
        case "requantize":
            moved = x[0] if op.node is None else _moved(op, x[0])
            return requantize(moved, op.multipliers[0], z)
        case "table":
            assert op.table is not None
            return np.asarray(op.table[operands[0].astype(np.int64) - op.operands[0].grid.lo])
        case "softmax":
            assert op.node is not None
            return softmax(op, operands[0].astype(np.int64), integer(op.node, "axis", -1))


def probabilities(table: Array, q: Array, axis: int) -> Array:
    """Softmax of s·(q − z): e/Σe in float64, with e = table[max(q) − q] and table[d] = rne(2^30·exp(−s·d)).

    The sum is exact in integers and the division is IEEE float64, so every machine gives the same bits. Against a real
    softmax: each e is off by at most 2^-31 of the largest, so a probability by at most (n + 1)·2^-31, below half a step of
    any 16-bit grid for n < 2^14.
    """
    e = table[q.max(axis=axis, keepdims=True) - q]
    return np.asarray(e.astype(np.float64) / e.sum(axis=axis, keepdims=True).astype(np.float64))


def softmax(op: IntegerOp, q: Array, axis: int) -> Array:
    """rint(probability/s_y) + z: a second IEEE division."""
    assert op.table is not None
    steps = np.rint(probabilities(op.table, q, axis) / op.grid.scale.astype(np.float64))
    return np.asarray(steps.astype(np.int64) + op.grid.zero_point)


def _window_sum(op: IntegerOp, x: Array) -> Array:
    assert op.node is not None
    if op.node.op_type == "GlobalAveragePool":
        return np.asarray(x.sum(axis=tuple(range(2, x.ndim)), keepdims=True))
    if op.node.op_type == "ReduceMean":
        return np.asarray(x.sum(axis=reduce_axes(op.node, x.ndim), keepdims=_keepdims(op.node)))
    window = Window.of(op.node)
    return np.asarray(window.view(x, 0).sum(axis=tuple(range(-len(window.kernel), 0))))


def _window_max(op: IntegerOp, x: Array) -> Array:
    assert op.node is not None
    if op.node.op_type == "GlobalMaxPool":
        return np.asarray(x.max(axis=tuple(range(2, x.ndim)), keepdims=True))
    if op.node.op_type == "ReduceMax":
        return np.asarray(x.max(axis=reduce_axes(op.node, x.ndim), keepdims=_keepdims(op.node)))
    return float_ops.max_pool(op.node, x)


def _moved(op: IntegerOp, x: Array) -> Array:
    """A movement op on the operand: its other inputs are constants."""
    assert op.node is not None
    others = [None if v is None or v.const_value is None else v.const_value.numpy() for v in op.node.inputs[1:]]
    return float_ops.evaluate(op.node, [x, *others])[0]


def _keepdims(node: ir.Node) -> bool:
    return integer(node, "keepdims", 1) == 1


def _reshaped(multiplier: Any, shape: tuple[int, ...]) -> Any:
    return type(multiplier)(multiplier.m.reshape(shape), multiplier.k.reshape(shape)) if shape else multiplier


def _magnitude(op: IntegerOp) -> int:
    """The largest magnitude that a partial sum, an operand or a weight can reach."""
    weight = 0 if op.weight is None or not op.weight.size else int(np.abs(op.weight).max())
    operands = max(max(abs(o.lo - int(o.grid.zero_point)), abs(o.hi - int(o.grid.zero_point))) for o in op.operands)
    return max(abs(op.accumulator[0]), abs(op.accumulator[1]), weight, operands)


def _after_clip(value: ir.Value) -> ir.Value:
    readers = value.consumers()
    return readers[0].outputs[0] if len(readers) == 1 and readers[0].op_type == "Clip" else value
