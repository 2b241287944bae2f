"""How outputs and inner tensors differ from those they should equal: per output, per layer, and where it begins.

What is exact must be equal bit for bit: integers, and what a DequantizeLinear makes of them. What is computed in floating
point counts as equal within ``FLOAT_TOLERANCE`` of the tensor's largest magnitude (sums in another order), in a quantized
model, where only edges such as a Softmax are float, within ``EDGE_TOLERANCE``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gatewright.frontend.data import Dataset
from gatewright.frontend.integer import FloatStep, IntegerOp
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.base import Executor, Feeds

from .metrics import top1_changed
from .report import Layer, OutputError

Array = NDArray[Any]

FLOAT_TOLERANCE = 1e-4
EDGE_TOLERANCE = 2e-6

_MOVEMENT = {
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Slice",
    "Gather",
    "Expand",
    "Tile",
    "DepthToSpace",
    "SpaceToDepth",
}
_TRACE_BYTES = 256 << 20


def output_error(
    ours: Mapping[str, Array], theirs: Mapping[str, Array], exact: Collection[str] = (), tolerance: float = FLOAT_TOLERANCE
) -> OutputError | None:
    """Over all outputs of one name, or the first ones where no name is shared; None where shapes do not allow it."""
    pairs = [(name, ours[name], theirs[name]) for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    if not pairs:
        name, first, other = next(iter(ours)), next(iter(ours.values())), next(iter(theirs.values()))
        if first.shape != other.shape or "SUO" in (first.dtype.kind, other.dtype.kind):
            return None
        pairs = [(name, first, other)]
    wrong = [_wrong(a, b, 0.0 if name in exact else tolerance) for name, a, b in pairs]
    samples = max(len(flags) for flags in wrong)
    any_wrong = np.any([np.broadcast_to(flags, samples) for flags in wrong if len(flags) in (1, samples)], axis=0)
    return OutputError(
        max_abs=max(_max_abs(a, b) for _, a, b in pairs),
        mismatching_samples=int(np.count_nonzero(any_wrong)),
        top1_changed=top1_changed(pairs[0][1], pairs[0][2]) if pairs[0][1].ndim else None,
    )


def mismatching(ours: Mapping[str, Array], theirs: Mapping[str, Array], exact: Collection[str], tolerance: float) -> Array:
    """Indices of the samples that ``output_error`` counts."""
    wrong = [_wrong(ours[name], theirs[name], 0.0 if name in exact else tolerance) for name in ours]
    samples = max(len(flags) for flags in wrong)
    return np.flatnonzero(np.any([np.broadcast_to(flags, samples) for flags in wrong if len(flags) in (1, samples)], axis=0))


def exact_outputs(model: Model) -> set[str]:
    """Outputs that must be equal bit for bit: no floating-point arithmetic lies between an integer and them."""
    return {value.name or "" for value in model.graph.outputs if _is_exact(value)}


def tolerance(model: Model) -> float:
    """For the outputs of ``model`` that are not exact."""
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph)
    return EDGE_TOLERANCE if quantized else FLOAT_TOLERANCE


@dataclass(frozen=True)
class Trace:
    """Inner tensors of one model on some samples, as ``ref`` computes them."""

    values: Mapping[str, Array]
    order: tuple[str, ...]
    """Names of the float values that steps give, in execution order."""
    saturated: Mapping[str, int]
    """By the name of the float value that the integers stand for."""


def reference_trace(model: Model, feeds: Feeds) -> Trace:
    """Every inner tensor; a quantized one is there as what its integers stand for, under the float value's name."""
    reference = Reference(model)
    values = reference.run(feeds, trace=True)
    names: dict[str, str] = {}  # float name -> the integer tensor that it stands for
    order: list[str] = []
    for step in reference.plan.steps:
        if isinstance(step, IntegerOp):
            names[step.float_name] = step.output
            order.append(step.float_name)
        elif isinstance(step, FloatStep):
            _add_float_step(step.node, names, order)
    saturated = {name: reference.saturations.get(integer, 0) for name, integer in names.items()}
    return Trace(values, tuple(order), saturated)


def trace_samples(model: Model, at_most: int) -> int:
    """How many samples can be traced at once without holding more than 256 MB of inner tensors."""
    per_run = 0
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None and value.shape.is_static():
                per_run += 4 * int(np.prod([int(d) for d in value.shape.numpy()], dtype=np.int64))
    batch = model.inputs[0].shape[0] if model.inputs and model.inputs[0].shape else 1
    return max(1, min(at_most, _TRACE_BYTES // max(1, per_run // max(1, batch))))


def layers(ours: Trace, baseline: Trace) -> tuple[Layer, ...]:
    """Each float tensor that both have under one name and in one shape, in the order in which ``ours`` computes them."""
    found = []
    for name in ours.order:
        a, b = ours.values.get(name), baseline.values.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype.kind != "f" or b.dtype.kind != "f":
            continue
        found.append(Layer(name, sqnr_db(a, b), _max_abs(a, b), ours.saturated.get(name, 0)))
    return tuple(found)


def first_diverging(executor: Executor, model: Model, data: Dataset, samples: Array) -> str | None:
    """The first inner tensor in which ``executor`` differs from ``ref`` on the given samples; None where it shows none."""
    feeds = data.feeds(executor.inputs)
    if executor.per_sample:
        feeds = {name: array[samples[:8]] for name, array in feeds.items()}
    theirs, ours = reference_trace(model, feeds), executor.trace(feeds)
    limit = tolerance(model)
    for name, expected in theirs.values.items():
        given = ours.get(name)
        if given is None or given.shape != expected.shape:
            continue
        if bool(np.any(_wrong(given, expected, 0.0 if expected.dtype.kind in "iub" else limit))):
            return name
    return None


def sqnr_db(given: Array, wanted: Array) -> float | None:
    """Signal to quantization noise, 10·log10(Σ wanted² / Σ (given − wanted)²); None where there is no noise."""
    signal = float(np.sum(np.square(wanted.astype(np.float64))))
    noise = float(np.sum(np.square(given.astype(np.float64) - wanted.astype(np.float64))))
    if noise == 0:
        return None
    # A tensor of zeros that became something else is all noise.
    return float(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise))


def _wrong(a: Array, b: Array, relative: float) -> Array:
    """Per sample (axis 0): is there a value that differs?"""
    if a.dtype.kind not in "fiub" or b.dtype.kind not in "fiub":
        different = a.astype(str) != b.astype(str)
    elif relative == 0 or "f" not in (a.dtype.kind, b.dtype.kind):
        different = ~((a == b) | ((a != a) & (b != b)))
    else:
        finite = b[np.isfinite(b)]
        limit = relative * max(float(np.max(np.abs(finite))) if finite.size else 0.0, 1e-30)
        with np.errstate(invalid="ignore"):
            near = np.abs(a.astype(np.float64) - b.astype(np.float64)) <= limit
        different = ~(near | (a == b) | ((a != a) & (b != b)))
    return np.asarray(different.reshape(len(different), -1).any(axis=1) if different.ndim else different.reshape(1))


def _max_abs(a: Array, b: Array) -> float:
    if a.dtype.kind not in "fiub" or b.dtype.kind not in "fiub" or not a.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float(np.max(np.where((a == b) | ((a != a) & (b != b)), 0.0, difference)))


def _is_exact(value: ir.Value) -> bool:
    while True:
        if value.dtype is not None and value.dtype.is_integer():
            return True
        node = value.producer()
        if node is None:
            return True
        if node.op_type == "DequantizeLinear":
            return True
        if node.op_type not in _MOVEMENT or node.inputs[0] is None:
            return False
        value = node.inputs[0]


def _add_float_step(node: ir.Node, names: dict[str, str], order: list[str]) -> None:
    source = node.inputs[0].name or "" if node.inputs and node.inputs[0] is not None else ""
    output = node.outputs[0].name or ""
    if node.op_type == "QuantizeLinear":
        names.setdefault(source, output)
        return
    if node.op_type == "DequantizeLinear":
        names.setdefault(output, source)
    order.extend(value.name for value in node.outputs if value.name)
