"""Channels in an order of convenience: shuffles that cost nothing, and groups of channels grown to whole vectors.

Between two kernels a value may hold its channels in another order than ONNX's, with unused ones among them, as long as every
reader knows. So a channel shuffle (Reshape, Transpose, Reshape) is no work but another order; depthwise convolutions, pooling
and pointwise steps take their constants in the order of what they read; and a grouped convolution, whose 34 channels a group
fill no vectors, writes 40. What a reader cannot take so is put back in order by a Gather, which a convolution does while it reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from gatewright.frontend.integer import Array, FloatStep
from gatewright.frontend.queries import integer

from .steps import Program, Step, Value

Order = tuple[int, ...]
"""The channel that each place holds; −1: none."""

LANES = 16
"""Channels of one block; half of that where it wastes less (placement.filter_block)."""

_FINITE = frozenset({
    "Add", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mul", "Neg", "Relu", "Sigmoid", "Sub",
    "Sum", "Tanh", "Abs", "Mish", "Softplus", "Softsign",
})  # fmt: skip
"""Pointwise operators of finite results: an unused channel stays finite, so that a weight of 0 silences it."""
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})


@dataclass(frozen=True)
class _Ordered:
    value: Value
    order: Order
    loose: bool
    """Made by a Concat: another order serves as well where the two meet."""


@dataclass
class _Pass:
    program: Program
    steps: list[Step] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    ordered: dict[str, _Ordered] = field(default_factory=dict)
    """Values that do not lie as ONNX has them."""
    values: dict[str, Value] = field(default_factory=dict)
    count: int = 0

    def take(self, step: Step, makers: dict[str, Step], readers: Counter[str]) -> None:
        if isinstance(step.source, FloatStep):
            op = step.source.node.op_type
            if op == "Reshape" and (found := _shuffle(step, makers, readers)) is not None:
                return self._shuffled(step, *found)
            if op == "Conv" and step.inputs[1] in self.constants and len(step.output.shape) > 2:
                return self._convolution(step)
            if any(name in self.ordered for name in step.inputs):
                if op == "BatchNormalization" and all(name in self.constants for name in step.inputs[1:]):
                    return self._normalization(step)
                if op in _FINITE and self._pointwise(step):
                    return None
                if op in _POOLS:
                    first = self.ordered[str(step.inputs[0])]
                    return self._emit(step, (first.value.name,), first.order, loose=first.loose)
                if op == "Concat" and integer(step.node, "axis", 0) % len(step.output.shape) == 1:
                    return self._concat(step)
        inputs = tuple(name if name is None or name not in self.ordered else self._natural(name) for name in step.inputs)
        self.steps.append(replace(step, inputs=inputs))
        return None

    def _shuffled(self, step: Step, source: str, taken: Array) -> None:
        """Channel i of the result is channel ``taken[i]`` of ``source``."""
        known = self.ordered.get(source)
        value, order = (self.values[source], tuple(range(len(taken)))) if known is None else (known.value, known.order)
        place = np.argsort(taken)
        moved = tuple(-1 if c < 0 else int(place[c]) for c in order)
        self.ordered[step.output.name] = _Ordered(value, moved, loose=False)

    def _convolution(self, step: Step) -> None:
        """Depthwise ones keep the order that they find, dense ones take their weights in it, grouped ones put it right as they read."""
        name, node = str(step.inputs[0]), step.node
        weight = self.constants[str(step.inputs[1])]
        bias = self.constants.get(step.inputs[2]) if len(step.inputs) > 2 and step.inputs[2] is not None else None
        groups, filters = integer(node, "group", 1), len(weight)
        known = self.ordered.get(name)
        if groups == filters > 1 and weight.shape[1] == 1:
            if known is None:
                self.steps.append(step)
                return None
            constants = [self._constant(a, known.order) for a in (weight, bias) if a is not None]
            source = replace(step, source=FloatStep(_with(node, group=len(known.order))))
            return self._emit(source, (known.value.name, *constants), known.order)
        order = _grown(filters, groups) if bias is not None or len(step.inputs) < 3 else None
        if known is not None and groups == 1:
            name, weight = known.value.name, _taken(weight, known.order, axis=1)
        elif known is not None:
            name = self._natural(name, again=True)
        if order is not None:
            constants = [self._constant(a, order) for a in (weight, bias) if a is not None]
            return self._emit(step, (name, *constants), order)
        packed = str(step.inputs[1]) if known is None else self._named(weight)
        self.steps.append(replace(step, inputs=(name, packed, *step.inputs[2:])))
        return None

    def _normalization(self, step: Step) -> None:
        known = self.ordered[str(step.inputs[0])]
        fills = (0.0, 0.0, 0.0, 1.0)
        names = [self._constant(self.constants[str(n)], known.order, f) for n, f in zip(step.inputs[1:], fills, strict=True)]
        self._emit(step, (known.value.name, *names), known.order, loose=known.loose)

    def _pointwise(self, step: Step) -> bool:
        """All operands in one order; False where an operand is of a shape that has no channels of its own."""
        shape = step.output.shape
        for name in step.inputs:
            own = None if name is None or name in self.constants else self.values[name].shape
            if own is not None and (len(own) != len(shape) or own[1] not in (1, shape[1])):
                return False
        operands = [n for n in step.inputs if n is not None and n not in self.constants and self.values[n].shape[1] == shape[1]]
        whole = tuple(range(shape[1]))
        found = [self.ordered.get(n) for n in operands]
        strict = [whole if k is None else k.order for k in found if k is None or not k.loose]
        order = strict[0] if strict else next(k.order for k in found if k is not None)
        inputs: list[str | None] = []
        for name in step.inputs:
            if name is None or name in operands:
                inputs.append(name if name is None else self._as(name, order))
                continue
            array = self.constants.get(name)
            axis = -1 if array is None else array.ndim - len(shape) + 1
            per_channel = array is not None and axis >= 0 and array.shape[axis] == shape[1] > 1
            inputs.append(self._constant(array, order, axis=axis) if array is not None and per_channel else name)
        if order == whole:
            self.steps.append(replace(step, inputs=tuple(inputs)))
        else:
            self._emit(step, tuple(inputs), order, loose=not strict)
        return True

    def _concat(self, step: Step) -> None:
        order: list[int] = []
        names: list[str | None] = []
        start = 0
        for name in step.inputs:
            known = self.ordered.get(str(name))
            channels = (self.constants[str(name)] if name in self.constants else self.values[str(name)]).shape[1]
            own = tuple(range(channels)) if known is None else known.order
            order += [c if c < 0 else c + start for c in own]
            names.append(name if known is None else known.value.name)
            start += channels
        self._emit(step, tuple(names), tuple(order), loose=True)

    def _emit(self, step: Step, inputs: Sequence[str | None], order: Order, *, loose: bool = False) -> None:
        """``step`` on ``inputs``, its result's channels in ``order``."""
        shape = step.output.shape
        value = Value(step.output.name + "#", (shape[0], len(order), *shape[2:]), step.output.dtype)
        self.steps.append(replace(step, inputs=tuple(inputs), output=value))
        self.values[value.name] = value
        self.ordered[step.output.name] = _Ordered(value, order, loose)

    def _as(self, name: str, order: Order) -> str:
        """The value ``name`` with its channels in ``order``."""
        known = self.ordered.get(name)
        whole = tuple(range(self.values[name].shape[1]))
        if order == whole:
            return name if known is None else self._natural(name)
        value, own = (self.values[name], whole) if known is None else (known.value, known.order)
        return value.name if own == order else self._gather(value, own, order, f"{name}#{self._next()}")

    def _natural(self, name: str, *, again: bool = False) -> str:
        """The value as ONNX has it; ``again``: under a name of its own, for one reader."""
        known = self.ordered[name]
        whole = tuple(range(self.values[name].shape[1]))
        if again:
            return self._gather(known.value, known.order, whole, f"{name}#{self._next()}")
        if all(step.output.name != name for step in self.steps):
            self._gather(known.value, known.order, whole, name)
        return name

    def _gather(self, value: Value, own: Order, wanted: Order, name: str) -> str:
        places = {channel: place for place, channel in enumerate(own)}
        indices = self._named(np.asarray([places.get(channel, 0) for channel in wanted], np.int64))
        node = ir.Node("", "Gather", inputs=[], attributes=[ir.AttrInt64("axis", 1)], num_outputs=1, name=name)
        result = Value(name, (value.shape[0], len(wanted), *value.shape[2:]), value.dtype)
        self.steps.append(Step(FloatStep(node), 0, (value.name, indices), result, "move"))
        self.values[name] = result
        return name

    def _constant(self, array: Array, order: Order, fill: float = 0.0, axis: int = 0) -> str:
        """``array`` with ``axis`` in ``order``, ``fill`` where there is no channel."""
        return self._named(_taken(array, order, fill, axis))

    def _named(self, array: Array) -> str:
        name = f"#{self._next()}"
        self.constants[name] = array
        return name

    def _next(self) -> int:
        self.count += 1
        return self.count


def _taken(array: Array, order: Order, fill: float = 0.0, axis: int = 0) -> Array:
    taken = np.asarray(order)
    found: Array = np.take(array, np.maximum(taken, 0), axis=axis)
    found[(*(slice(None),) * axis, taken < 0)] = fill
    return found


def ordered(program: Program) -> Program:
    """The program with its channels so ordered that shuffles vanish and grouped convolutions fill their vectors."""
    found = _Pass(program, constants=dict(program.constants))
    found.values = {v.name: v for v in (*program.inputs, *(s.output for s in program.steps))}
    makers = {step.output.name: step for step in program.steps}
    readers = Counter(name for step in program.steps for name in step.inputs if name is not None)
    readers.update(v.name for v in program.outputs)
    for step in program.steps:
        found.take(step, makers, readers)
    for value in program.outputs:
        if value.name in found.ordered:
            found._natural(value.name)
    return replace(program, steps=tuple(_needed(found.steps, program)), constants=found.constants)


def _needed(steps: Sequence[Step], program: Program) -> list[Step]:
    """Without those whose results nobody reads."""
    wanted = {v.name for v in program.outputs}
    kept = []
    for step in reversed(steps):
        if step.output.name in wanted:
            kept.append(step)
            wanted.update(name for name in step.inputs if name is not None)
    return kept[::-1]


def _grown(filters: int, groups: int) -> Order | None:
    """Each group's channels and enough unused ones to fill blocks; None where they fill them anyway, or are too few to bother."""
    own = filters // groups
    if groups in (1, filters) or own < 4 or own % (LANES // 2) == 0:
        return None
    block = LANES if -own % LANES < LANES // 2 else LANES // 2
    pad = (-1,) * (-own % block)
    return tuple(c for g in range(groups) for c in (*range(g * own, (g + 1) * own), *pad))


def _shuffle(step: Step, makers: dict[str, Step], readers: Counter[str]) -> tuple[str, Array] | None:
    """Where ``step`` ends Reshape → Transpose → Reshape that permutes channels: the value it began with, and its channels' places."""
    turn = makers.get(str(step.inputs[0]))
    if turn is None or not _is(turn, "Transpose") or readers[turn.output.name] != 1:
        return None
    cut = makers.get(str(turn.inputs[0]))
    if cut is None or not _is(cut, "Reshape") or readers[cut.output.name] != 1:
        return None
    shape, inner = step.output.shape, cut.output.shape
    order = turn.node.attributes.get_ints("perm", tuple(reversed(range(len(inner))))) or ()
    spatial = len(shape) - 2
    parts = inner[1 : len(inner) - spatial]
    if len(shape) < 3 or inner[0] != shape[0] or inner[len(inner) - spatial :] != shape[2:] or int(np.prod(parts)) != shape[1]:
        return None
    if order[0] != 0 or any(order[-1 - i] != len(inner) - 1 - i for i in range(spatial)):
        return None
    source = cut.inputs[0]
    first = makers.get(str(source))
    if source is None or first is None or first.output.shape != shape:
        return None
    axes = [axis - 1 for axis in order[1 : len(inner) - spatial]]
    return source, np.arange(shape[1]).reshape(parts).transpose(axes).reshape(-1)


def reorders(step: Step) -> bool:
    """Whether the step is a Gather of channels at known places, which a convolution may read through."""
    return _is(step, "Gather") and str(step.inputs[1]).startswith("#")


def _is(step: Step, op: str) -> bool:
    return isinstance(step.source, FloatStep) and step.source.node.op_type == op


def _with(node: ir.Node, **changed: int) -> ir.Node:
    """A node like ``node`` with other integer attributes."""
    attributes = [a for key, a in node.attributes.items() if key not in changed]
    attributes += [ir.AttrInt64(key, value) for key, value in changed.items()]
    return ir.Node(node.domain, node.op_type, inputs=[], attributes=attributes, num_outputs=1, name=node.name)
