"""Reshapes moved to where they are nothing: merged, cancelled, and below the pointwise steps that they would cut off.

A Reshape that only adds or drops axes of length 1 changes no index, but pointwise steps behind it would no longer have the shape
of the convolution or reduction whose kernel they belong to. So such a Reshape sinks below them; a reduction that drops its axes
keeps them and a Reshape drops them. Exact: no value is computed otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from gatewright.frontend.integer import Array, FloatStep
from gatewright.frontend.queries import integer, reduce_axes

from .steps import Program, Step, Value, needed

RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators whose result is their input's elements in the same order."""

_NOT_SUNK = frozenset({"BatchNormalization", "QuantizeLinear", "DequantizeLinear", "CastLike"})
"""Pointwise operators whose parameters belong to an axis by its number."""


def without_units(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes that are longer than 1."""
    return tuple(n for n in shape if n != 1)


def same_channels(step: Step, shape: Sequence[int]) -> bool:
    """Whether ``step`` is a Reshape of a tensor of ``shape`` that leaves batch and channels and moves only unit axes behind them."""
    own = step.output.shape
    return adds_units(step, shape) and len(own) > 2 < len(shape) and own[:2] == tuple(shape[:2])


def adds_units(step: Step, shape: Sequence[int]) -> bool:
    """Whether ``step`` is a Reshape of a tensor of ``shape`` that only adds or drops axes of length 1."""
    return is_float(step, *RESHAPES) and without_units(step.output.shape) == without_units(shape)


def is_float(step: Step, *operators: str) -> bool:
    """Whether it is a float step of one of these operators."""
    return isinstance(step.source, FloatStep) and step.source.node.op_type in operators


@dataclass
class _Pass:
    values: dict[str, Value]
    outputs: frozenset[str]
    constants: dict[str, Array]
    steps: list[Step] = field(default_factory=list)
    sources: dict[str, Value] = field(default_factory=dict)
    """What a reshaped value is a Reshape of."""

    def take(self, step: Step) -> None:
        if not isinstance(step.source, FloatStep):
            self.steps.append(step)
        elif is_float(step, *RESHAPES) and step.inputs[0] in self.values:
            self._reshape(step)
        elif step.source.node.op_type.startswith("Reduce") and integer(step.node, "keepdims", 1) == 0:
            self._reduction(step)
        elif step.role != "pointwise" or is_float(step, *_NOT_SUNK) or not self._sink(step):
            self.steps.append(step)

    def _reshape(self, step: Step) -> None:
        source = self.sources.get(str(step.inputs[0]), self.values[str(step.inputs[0])])
        if is_float(step, "Identity") and source.shape != step.output.shape:
            # The Identity of a Reshape, now read past that: it is what reshapes.
            step = replace(step, source=FloatStep(ir.Node("", "Reshape", inputs=[], num_outputs=1, name=step.node.name)), role="move")
        self.steps.append(replace(step, inputs=(source.name, *step.inputs[1:])))
        self.sources[step.output.name] = source

    def _reduction(self, step: Step) -> None:
        """A reduction that keeps its axes, and a Reshape."""
        shape = self.values[str(step.inputs[0])].shape if step.inputs[0] in self.values else None
        axes = None if shape is None else reduce_axes(step.node, len(shape))
        if shape is None or axes is None or step.output.name in self.outputs:
            self.steps.append(step)
            return
        kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
        # Lowerings go by the result's shape, not by the attribute.
        self._reshaped(step, step.inputs, kept)

    def _sink(self, step: Step) -> bool:
        """Do ``step`` before the Reshapes that made its operands, and one Reshape behind it."""
        computed = [name for name in step.inputs if name is not None and name not in self.constants]
        found = [self.sources.get(name) for name in computed]
        shapes = {source.shape for source in found if source is not None}
        shape = step.output.shape
        if step.output.name in self.outputs or None in found or len(shapes) != 1 or any(self.values[n].shape != shape for n in computed):
            return False
        (base,) = shapes
        if without_units(base) != without_units(shape) or base == shape:
            return False
        inputs: list[str | None] = []
        for name in step.inputs:
            if name is None or name not in self.constants:
                inputs.append(name if name is None else self.sources[name].name)
                continue
            array = self.constants[name]
            own = f"{name}~{'x'.join(map(str, base))}"
            self.constants[own] = array.reshape(_spread(array.shape, shape, base))
            inputs.append(own)
        self._reshaped(step, inputs, base)
        return True

    def _reshaped(self, step: Step, inputs: Sequence[str | None], shape: tuple[int, ...]) -> None:
        """``step`` with a result of ``shape``, and a Reshape to the one that it had."""
        name = step.output.name
        value = Value(name + "~", shape, step.output.dtype)
        self.steps.append(replace(step, inputs=tuple(inputs), output=value))
        node = ir.Node("", "Reshape", inputs=[], num_outputs=1, name=step.node.name)
        self.steps.append(Step(FloatStep(node), 0, (value.name,), step.output, "move"))
        self.values[value.name] = value
        self.sources[name] = value


def _spread(constant: Sequence[int], shape: Sequence[int], base: Sequence[int]) -> tuple[int, ...]:
    """The shape that broadcasts to ``base`` as a constant's shape does to ``shape``; those two differ in unit axes only."""
    if math.prod(constant) == 1:
        return ()
    padded = (1,) * (len(shape) - len(constant)) + tuple(constant)
    own = iter([n for n, whole in zip(padded, shape, strict=True) if whole != 1])
    return tuple(1 if n == 1 else next(own) for n in base)


def settled(program: Program) -> Program:
    """The program with its Reshapes merged and sunk."""
    values = {v.name: v for v in (*program.inputs, *(s.output for s in program.steps))}
    found = _Pass(values, frozenset(v.name for v in program.outputs), dict(program.constants))
    for step in program.steps:
        found.take(step)
    same = {name: source.name for name, source in found.sources.items() if source.shape == values[name].shape}
    aliases = {name: source for name, source in same.items() if name not in found.outputs}
    steps = [replace(s, inputs=tuple(n if n is None else aliases.get(n, n) for n in s.inputs)) for s in found.steps]
    return replace(program, steps=tuple(needed(steps, program.outputs)), constants=found.constants)


def looked_up(program: Program) -> Program:
    """The program with products of a one-hot matrix by a constant as what they are: rows of the constant.

    Recognised: MatMul(Cast(Equal(ids, 0 … n−1)), weight) where ids has a last axis of 1 and the weight is finite.
    A position whose id is not among them takes a row of zeros, as the product has it.
    """
    makers = {step.output.name: step for step in program.steps}
    values = {v.name: v for v in (*program.inputs, *(s.output for s in program.steps))}
    constants = dict(program.constants)
    steps: list[Step] = []
    for step in program.steps:
        found = _one_hot(step, makers, values, constants)
        if found is None:
            steps.append(step)
            continue
        ids, weight = found
        name = step.output.name
        depth = len(weight)
        grown, bounds = f"{name}~rows", [f"{name}~{end}" for end in ("first", "last")]
        dtype = np.dtype(ids.dtype)
        constants |= {grown: np.concatenate([weight, np.zeros_like(weight[:1])]), bounds[0]: np.zeros((), dtype)}
        constants[bounds[1]] = np.full((), depth, dtype)
        # Negative ids, and those past the last row, become the row of zeros behind it.
        outside, place = Value(f"{name}~outside", ids.shape, "bool"), Value(f"{name}~place", ids.shape, ids.dtype)
        flat = Value(f"{name}~ids", ids.shape[:-1], ids.dtype)
        steps += [
            _new("Less", step, (ids.name, bounds[0]), outside, "pointwise"),
            _new("Where", step, (outside.name, bounds[1], ids.name), Value(f"{name}~known", ids.shape, ids.dtype), "pointwise"),
            _new("Min", step, (f"{name}~known", bounds[1]), place, "pointwise"),
            _new("Reshape", step, (place.name,), flat, "move"),
            _new("Gather", step, (grown, flat.name), step.output, "move"),
        ]
    return replace(program, steps=tuple(needed(steps, program.outputs)), constants=constants)


def _new(op: str, like: Step, inputs: tuple[str, ...], output: Value, role: str) -> Step:
    node = ir.Node("", op, inputs=[], num_outputs=1, name=like.node.name)
    return replace(like, source=FloatStep(node), index=0, inputs=inputs, output=output, role=role)  # type: ignore[arg-type]


def _one_hot(step: Step, makers: dict[str, Step], values: dict[str, Value], constants: dict[str, Array]) -> tuple[Value, Array] | None:
    """The ids and the constant, where ``step`` is a product of one-hot rows."""
    if not is_float(step, "MatMul") or step.inputs[1] not in constants:
        return None
    weight = constants[str(step.inputs[1])]
    cast = makers.get(str(step.inputs[0]))
    equal = makers.get(str(cast.inputs[0])) if cast is not None and is_float(cast, "Cast") else None
    if equal is None or not is_float(equal, "Equal") or weight.ndim != 2 or not np.all(np.isfinite(weight)):
        return None
    for ids, classes in (equal.inputs, equal.inputs[::-1]):
        counted = constants.get(str(classes))
        if ids not in values or counted is None or values[str(ids)].shape != (*equal.output.shape[:-1], 1):
            continue
        if counted.dtype.kind in "iu" and np.array_equal(counted.reshape(-1), np.arange(len(weight))) and counted.shape[-1] == len(weight):
            return values[str(ids)], weight
    return None
