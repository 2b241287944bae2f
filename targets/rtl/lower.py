"""From the integer view of a model to a network: tensors become arrays of nodes, movement becomes indexing, weights become additions.

Zero points cost nothing: Σ w·(q − z) = Σ w·q − z·Σ w, and the bias takes the constant. A padded value is q = z, so its
term is left out. The constant also takes the half of rounding and the zero point of the result (``network.settled``), so that a
requantization by a power of two is a few gates. Which kind of operation is lowered by what is the table ``_LOWERINGS``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gatewright.errors import DoesNotFit, UnsupportedOp
from gatewright.frontend import float_ops
from gatewright.frontend.integer import FloatStep, IntegerOp, Operand
from gatewright.frontend.integer import plan as integer_plan
from gatewright.frontend.model import Model
from gatewright.frontend.queries import integer, reduce_axes
from gatewright.frontend.split import Split, is_movement, split
from gatewright.frontend.windows import Window

from . import argmax
from .matrix import DEFAULT, Program, Strategy, solve
from .network import Array, Builder, Network, Port, bits_of

ABSENT = -1
"""Stands for padding in arrays of nodes."""

LARGEST_TABLE = 1 << 12
"""Entries of a table that becomes logic."""

MOST_PRODUCTS = 2_000_000
"""Nonzero weights times positions that are unrolled at all; about twenty times what the largest part here holds."""


def require_room(model: Model) -> None:
    """Raises DoesNotFit for a network far too large for any part, before its layers are unrolled one after the other."""
    products = sum(
        int(np.count_nonzero(op.weight)) * math.prod(op.shape) // op.shape[1 if op.kind == "conv" else -1]
        for op in integer_plan(model).steps if isinstance(op, IntegerOp) and op.kind in ("conv", "matmul") and op.weight is not None
    )  # fmt: skip
    if products > MOST_PRODUCTS:
        raise DoesNotFit(
            f"{model.name} does not fit: unrolled it has {products:,} multiplications, {MOST_PRODUCTS:,} at most are unrolled",
            hint="prune it, or take a target that shares multipliers: hls",
        )


@dataclass
class _RefusalError(Exception):
    """Why one operation cannot be lowered."""

    rule: str
    hint: str | None = None


def lower(model: Model, strategy: Strategy = DEFAULT) -> tuple[Network, Split]:
    """The network of a quantized model. Raises UnsupportedError (a float model) or UnsupportedOp for the first node that is refused."""
    network, parts, problems = attempt(model, strategy)
    if problems:
        raise problems[0]
    return network, parts


def attempt(model: Model, strategy: Strategy = DEFAULT) -> tuple[Network, Split, tuple[UnsupportedOp, ...]]:
    """Like ``lower``, but goes on after a node that is refused, to name them all."""
    parts, problems = split(model, integer_plan(model), "rtl")
    parts = argmax.absorb(parts)
    walk = _Walk(parts, strategy)
    for step in parts.core:
        walk.step(step)
    return walk.network(), parts, (*problems, *walk.problems)


@dataclass
class _Walk:
    """Lowers the core's steps in order and keeps the nodes of each integer tensor, by its ONNX name."""

    parts: Split
    strategy: Strategy
    builder: Builder = field(default_factory=Builder)
    tensors: dict[str, Array] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)
    problems: list[UnsupportedOp] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.builder.layer("input")
        operands: dict[str, Operand] = {}
        for step in self.parts.core:
            for operand in step.operands if isinstance(step, IntegerOp) else ():
                operands.setdefault(operand.name, operand)
        self.inputs: list[Port] = []
        for name in self.parts.inputs:
            # A value that only movement reads has no operand; then its grid is the tensor's.
            grid, found = self.parts.plan.grids.get(name), operands.get(name)
            shape, dtype, lo, hi = _described(self.parts.model, name)
            lo, hi = (found.lo, found.hi) if found else (max(lo, grid.lo), min(hi, grid.hi)) if grid else (lo, hi)
            port = Port(name, shape, dtype, lo, hi)
            nodes = [self.builder.input(len(self.inputs), element, lo, hi) for element in range(port.size)]
            self.tensors[name] = np.array(nodes, np.int64).reshape(shape)
            self.inputs.append(port)

    def step(self, step: IntegerOp | FloatStep) -> None:
        """Lower one step; a refusal becomes a problem, and what depends on it is left out."""
        if isinstance(step, FloatStep):
            name, op_type, output = step.node.name or "", step.node.op_type, step.node.outputs[0].name or ""
            names = [step.node.inputs[0].name or ""] if step.node.inputs[0] is not None else []
        else:
            name, op_type, output = step.name, step.op, step.output
            names = [operand.name for operand in step.operands if operand.constant is None]
        if not all(n in self.tensors for n in names):
            return
        self.builder.layer(name)
        try:
            if isinstance(step, FloatStep):
                found = self._float(step, self.tensors[names[0]])
            else:
                lowering = _LOWERINGS.get(step.kind)
                if lowering is None:
                    rule = f"a {step.kind} inside the network needs a division"
                    raise _RefusalError(rule, "keep it as the last layer: there it runs on the host")
                found = lowering(_Scope(self.builder, step, self.strategy), [self._operand(operand) for operand in step.operands])
        except _RefusalError as refused:
            self.problems.append(UnsupportedOp(node=name, op=op_type, target="rtl", rule=refused.rule, hint=refused.hint))
            return
        self.tensors[output] = found

    def _float(self, step: FloatStep, nodes: Array) -> Array:
        """The steps of the core that are no integer operation: movement, and what ``argmax.absorb`` took in."""
        if step.node.op_type == "DequantizeLinear":
            return nodes
        return argmax.lowered(self.builder, step, nodes) if step.node.op_type in argmax.OPS else _moved(step.node, nodes)

    def network(self) -> Network:
        outputs, results = [], []
        for name in self.parts.outputs:
            if name in self.tensors:
                nodes = self.tensors[name]
                shape, dtype, _, _ = _described(self.parts.model, name)
                bounds = [self.builder.bounds(int(node)) for node in nodes.flat]
                outputs.append(Port(name, shape, dtype, min(lo for lo, _ in bounds), max(hi for _, hi in bounds)))
                results.append(tuple(int(node) for node in nodes.flat))
        floats = {step.node.outputs[0].name for step in self.parts.core if isinstance(step, FloatStep) and not is_movement(step)}
        traced = tuple(
            (name, nodes.shape, tuple(int(node) for node in nodes.flat))
            for name, nodes in self.tensors.items() if name not in self.parts.inputs and name not in floats
        )  # fmt: skip
        whole = Network(tuple(self.inputs), tuple(outputs), tuple(self.builder.nodes), tuple(results), tuple(self.builder.layers), traced)
        return whole.pruned()

    def _operand(self, operand: Operand) -> Array:
        if operand.constant is None:
            return self.tensors[operand.name]
        made = [self.builder.constant(int(v)) for v in operand.constant.flat]
        return np.array(made, np.int64).reshape(operand.constant.shape)


@dataclass
class _Scope:
    """One operation being lowered."""

    builder: Builder
    op: IntegerOp
    strategy: Strategy
    programs: dict[tuple[object, ...], Program] = field(default_factory=dict)
    """By the matrix, its constants and the bounds: a convolution needs one per kind of border."""

    def linear(self, weight: Array, constants: Sequence[int], inputs: Sequence[int]) -> list[int]:
        """Nodes of weight [outputs, inputs] · inputs + constants. Inputs that are ABSENT count as 0."""
        constants, ids = [int(c) for c in constants], np.array(inputs, np.int64).reshape(-1)
        weight = np.asarray(weight, np.int64)
        keep = (ids != ABSENT) & np.any(weight != 0, axis=0)
        for position in np.flatnonzero(keep):
            known = self.builder.known(int(ids[position]))
            if known is not None:
                constants = [c + known * int(w) for c, w in zip(constants, weight[:, position], strict=True)]
                keep[position] = False
        ids, weight = ids[keep], weight[:, keep]
        bounds = tuple(self.builder.bounds(int(node)) for node in ids)
        key = (weight.shape, weight.tobytes(), tuple(constants), bounds)
        program = self.programs.get(key)
        if program is None:
            program = self.programs[key] = solve(weight, constants, bounds, self.strategy)
        return program.apply(self.builder, ids.tolist())

    def requantized(self, weight: Array, constants: Sequence[int], inputs: Sequence[int], m: Array, k: Array) -> list[int]:
        """Clamped nodes of rne((weight·inputs + constants)·m·2^−k) + z, m and k one per row."""
        pairs = [_reduced(int(a), int(b)) for a, b in zip(m, k, strict=True)]
        plain = [a == 1 for a, _ in pairs]
        offsets = [self._offset(b) for _, b in pairs]
        merged = [int(c) + offset if p else int(c) for c, offset, p in zip(constants, offsets, plain, strict=True)]
        # A constant that is multiplied later need not be added before.
        sums = self.linear(weight, [c if p else 0 for c, p in zip(merged, plain, strict=True)], inputs)
        found = []
        for node, constant, offset, (factor, shift) in zip(sums, merged, offsets, pairs, strict=True):
            if factor != 1:
                (node,) = self.linear(np.array([[factor]]), [constant * factor + offset], [node])
            found.append(self._settled(node, offset, shift))
        return found

    def _offset(self, k: int) -> int:
        """What is added before the shift by k: the half of rounding and the zero point (see ``network.settled``)."""
        z = int(self.op.grid.zero_point)
        return z if k == 0 else (z << k) + (1 << (k - 1)) - (z & 1)

    def _settled(self, node: int, offset: int, k: int) -> int:
        z = int(self.op.grid.zero_point)
        return self.builder.clip(self.builder.settle(node, k, z & 1), self.op.lo, self.op.hi)

    def elementwise(self, rows: Iterator[tuple[list[int], list[int], int, int, int]], shape: tuple[int, ...]) -> Array:
        """One requantized sum per element, from (coefficients, nodes, constant, m, k)."""
        found = []
        for coefficients, nodes, constant, m, k in rows:
            found += self.requantized(np.array([coefficients]), [constant], nodes, np.array([m]), np.array([k]))
        return np.array(found, np.int64).reshape(shape)


def _reduced(m: int, k: int) -> tuple[int, int]:
    """m·2^−k with m odd, or k = 0."""
    if m == 0:
        return 0, 0
    zeros = min((m & -m).bit_length() - 1, max(k, 0))
    return (m >> zeros, k - zeros) if k >= 0 else (m << -k, 0)


def _described(model: Model, name: str) -> tuple[tuple[int, ...], str, int, int]:
    """Shape, dtype (numpy's name) and the type's bounds of an integer value of the graph."""
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        if value.name == name and value.shape is not None and value.dtype is not None:
            signed, bits = not value.dtype.name.startswith("U"), int(value.dtype.bitwidth)
            lo, hi = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
            return tuple(int(d) for d in value.shape.numpy()), str(value.dtype.numpy()), lo, hi
    raise KeyError(name)


def _zero(operand: Operand) -> int:
    return int(operand.grid.zero_point)


def _per_row(op: IntegerOp, rows: int) -> tuple[Array, Array]:
    multiplier = op.multipliers[0]
    return np.broadcast_to(multiplier.m, (rows,)), np.broadcast_to(multiplier.k, (rows,))


# ---- the kinds ------------------------------------------------------------------------------------------------------


def _conv(scope: _Scope, operands: list[Array]) -> Array:
    op = scope.op
    assert op.node is not None
    assert op.weight is not None
    assert op.bias is not None
    weight, bias = op.weight, op.bias
    group = integer(op.node, "group", 1)
    windows = Window.of(op.node, weight.shape[2:]).view(operands[0], ABSENT)
    spatial = weight.ndim - 2
    positions = windows.shape[2 : 2 + spatial]
    _within_reason(int(np.count_nonzero(weight)) * int(np.prod(positions)) * len(windows))
    filters, channels = weight.shape[0] // group, weight.shape[1]
    rows = weight.reshape(weight.shape[0], -1)
    m, k = _per_row(op, weight.shape[0])
    found = np.empty((len(windows), weight.shape[0], *positions), np.int64)
    for sample in range(len(windows)):
        for place in np.ndindex(*positions):
            window = windows[(sample, slice(None), *place)]
            for g in range(group):
                part = slice(g * filters, (g + 1) * filters)
                taps = window[g * channels : (g + 1) * channels].reshape(-1)
                constants = bias[part] - _zero(op.operands[0]) * rows[part][:, taps != ABSENT].sum(axis=1)
                found[(sample, part, *place)] = scope.requantized(rows[part], constants.tolist(), taps.tolist(), m[part], k[part])
    return found


def _matmul(scope: _Scope, operands: list[Array]) -> Array:
    op = scope.op
    if op.weight is None:
        return _matmul_of_activations(scope, operands)
    rows = op.weight.T
    bias = op.bias if op.bias is not None else np.zeros(len(rows), np.int64)
    constants = (bias - _zero(op.operands[0]) * rows.sum(axis=1)).tolist()
    m, k = _per_row(op, len(rows))
    x = operands[0].reshape(-1, rows.shape[1])
    _within_reason(int(np.count_nonzero(rows)) * len(x))
    found = [scope.requantized(rows, constants, vector.tolist(), m, k) for vector in x]
    return np.array(found, np.int64).reshape(op.shape)


def _matmul_of_activations(scope: _Scope, operands: list[Array]) -> Array:
    op, b = scope.op, scope.builder
    left, right = (_centred(b, array, _zero(o)) for array, o in zip(operands, op.operands, strict=True))
    left, right = np.broadcast_arrays(left[..., :, None, :], np.swapaxes(right, -1, -2)[..., None, :, :])
    _within_reason(left.size)
    terms = left.shape[-1]
    m, k = int(op.multipliers[0].m), int(op.multipliers[0].k)
    products = np.array([b.multiply(int(x), int(y)) for x, y in zip(left.flat, right.flat, strict=True)], np.int64).reshape(-1, terms)
    return scope.elementwise((([1] * terms, nodes.tolist(), 0, m, k) for nodes in products), op.shape)


def _product(scope: _Scope, operands: list[Array]) -> Array:
    op, b = scope.op, scope.builder
    x, y = np.broadcast_arrays(*(_centred(b, array, _zero(o)) for array, o in zip(operands, op.operands, strict=True)))
    m, k = int(op.multipliers[0].m), int(op.multipliers[0].k)
    return scope.elementwise((([1], [b.multiply(int(i), int(j))], 0, m, k) for i, j in zip(x.flat, y.flat, strict=True)), op.shape)


def _sum(scope: _Scope, operands: list[Array]) -> Array:
    """Σ sign·(q − z)·m·2^(k − k_i): one matrix of one row, the factor that all have in common taken out of it."""
    op = scope.op
    pairs = [(int(m.m), int(m.k)) for m in op.multipliers]
    k = max(max(shift for _, shift in pairs), 0)
    factors = [sign * (m << (k - shift)) for sign, (m, shift) in zip(op.signs, pairs, strict=True)]
    common = min(k, min(((f & -f).bit_length() - 1 for f in factors if f), default=k))
    factors, k = [f >> common for f in factors], k - common
    constant = -sum(f * _zero(o) for f, o in zip(factors, op.operands, strict=True))
    arrays = np.broadcast_arrays(*operands)
    rows = ((factors, [int(i) for i in nodes], constant, 1, k) for nodes in zip(*(a.flat for a in arrays), strict=True))
    return scope.elementwise(rows, op.shape)


def _concat(scope: _Scope, operands: list[Array]) -> Array:
    assert scope.op.node is not None
    parts = [
        _requantized(scope, array, operand, int(m.m), int(m.k))
        for array, operand, m in zip(operands, scope.op.operands, scope.op.multipliers, strict=True)
    ]
    return np.concatenate(parts, axis=integer(scope.op.node, "axis", 0))


def _requantize(scope: _Scope, operands: list[Array]) -> Array:
    op = scope.op
    moved = operands[0] if op.node is None else _moved(op.node, operands[0])
    return _requantized(scope, moved, op.operands[0], int(op.multipliers[0].m), int(op.multipliers[0].k))


def _requantized(scope: _Scope, nodes: Array, operand: Operand, m: int, k: int) -> Array:
    return scope.elementwise((([1], [int(node)], -_zero(operand), m, k) for node in nodes.flat), nodes.shape)


def _average(scope: _Scope, operands: list[Array]) -> Array:
    op = scope.op
    windows = _windows(op, operands[0])
    m, k = (np.broadcast_to(a, op.shape).reshape(-1) for a in (op.multipliers[0].m, op.multipliers[0].k))
    zero = _zero(op.operands[0])
    taps = [[int(t) for t in window if t != ABSENT] for window in windows]
    return scope.elementwise((([1] * len(t), t, -zero * len(t), int(i), int(j)) for t, i, j in zip(taps, m, k, strict=True)), op.shape)


def _maximum(scope: _Scope, operands: list[Array]) -> Array:
    """Rounding keeps the order, so the maximum is taken first."""
    op, b = scope.op, scope.builder
    largest = []
    for window in _windows(op, operands[0]):
        left = [int(node) for node in window if node != ABSENT]
        while len(left) > 1:
            pairs = [b.maximum(x, y) for x, y in zip(left[::2], left[1::2], strict=False)]
            left = pairs + left[len(pairs) * 2 :]
        largest.append(left[0])
    nodes = np.array(largest, np.int64).reshape(op.shape)
    return _requantized(scope, nodes, op.operands[0], int(op.multipliers[0].m), int(op.multipliers[0].k))


def _table(scope: _Scope, operands: list[Array]) -> Array:
    op, b = scope.op, scope.builder
    assert op.table is not None
    operand = op.operands[0]
    if operand.hi - operand.lo >= LARGEST_TABLE:
        wide = bits_of(operand.lo, operand.hi)
        raise _RefusalError(f"a table over {wide} bits is too large to become logic", "quantize its input to 8 bits")
    values = op.table.tolist()
    found = [b.clip(b.table(int(node), operand.grid.lo, values), op.lo, op.hi) for node in operands[0].flat]
    return np.array(found, np.int64).reshape(op.shape)


_LOWERINGS: dict[str, Callable[[_Scope, list[Array]], Array]] = {
    "conv": _conv, "matmul": _matmul, "product": _product, "sum": _sum, "concat": _concat, "requantize": _requantize,
    "average": _average, "maximum": _maximum, "table": _table,
}  # fmt: skip


def _windows(op: IntegerOp, nodes: Array) -> Array:
    """[outputs, taps]: the nodes that each output of a pooling or reduction reads; ABSENT where it reads padding."""
    assert op.node is not None
    if op.node.op_type in ("AveragePool", "MaxPool"):
        window = Window.of(op.node)
        found = window.view(nodes, ABSENT)
        return np.asarray(found).reshape(int(np.prod(found.shape[: -len(window.kernel)])), -1)
    axes = tuple(range(2, nodes.ndim)) if op.node.op_type.startswith("Global") else reduce_axes(op.node, nodes.ndim) or ()
    kept = [axis for axis in range(nodes.ndim) if axis not in axes]
    return nodes.transpose(*kept, *axes).reshape(int(np.prod([nodes.shape[axis] for axis in kept])), -1)


def _moved(node: object, nodes: Array) -> Array:
    """A movement op on the nodes themselves; its other inputs are constants."""
    others = [None if v is None or v.const_value is None else v.const_value.numpy() for v in node.inputs[1:]]  # type: ignore[attr-defined]
    return np.asarray(float_ops.evaluate(node, [nodes, *others])[0], np.int64)  # type: ignore[arg-type]


def _centred(builder: Builder, nodes: Array, zero: int) -> Array:
    """q − z."""
    if not zero:
        return nodes
    constant = builder.constant(zero)
    return np.array([builder.add(int(node), constant, (0, 0), -1) for node in nodes.flat], np.int64).reshape(nodes.shape)


def _within_reason(products: int) -> None:
    if products > MOST_PRODUCTS:
        raise _RefusalError(
            f"unrolled it has {products} multiplications, {MOST_PRODUCTS} at most are unrolled",
            "prune it, or take a target that shares multipliers: hls",
        )


def with_traced(network: Network, names: Sequence[str]) -> Network:
    """``network`` with only those inner tensors kept."""
    return dataclasses.replace(network, traced=tuple(entry for entry in network.traced if entry[0] in names))
