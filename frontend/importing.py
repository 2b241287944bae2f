"""What every importer shares: the source framework's answers on sample inputs, and the comparison of the canonical model with them.

An importer turns its source into an ``Imported``: ONNX, samples, and what the framework itself makes of them. ``finish`` makes that
canonical and compares. A float output may differ by ``tolerance`` of its largest value, an integer one by ``steps``; a class label
must be the same, but where the framework's own two best scores are that close. How far the model is off is in its history.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from gatewright.errors import MismatchError, ModelError, ToolMissing

from .batch import batch_reason
from .limits import Limits
from .load import from_proto
from .model import Model
from .ortrun import OrtSession
from .reference import Reference

Array = NDArray[Any]

TOLERANCE = 1e-4
"""Largest difference to the source's output, relative to that output's largest value; float32 summed in another order gives 1e-6."""
RARELY = 1e-2
"""Of that largest value; a step of 8 bits is 4e-3."""
SAMPLES = 32
"""Samples that are compared where an importer makes them itself."""


@dataclass(frozen=True)
class Imported:
    """A model of another framework as ONNX, and what the framework computes with it."""

    proto: onnx.ModelProto
    action: str
    """The importer's name, for the history: "sklearn"."""
    text: str
    """Where the model came from: a file's name, or the type of an object."""
    framework: str
    """With its version: "scikit-learn 1.9.1"."""
    samples: Mapping[str, Array]
    """Inputs by name, all of as many samples along axis 0."""
    expected: Sequence[Array]
    """The framework's outputs on them, in the order of the ONNX outputs. One number for each sample may be a column there, or two."""
    tolerance: float = TOLERANCE
    steps: int = 0
    """By how much integers may differ: of a quantized output, whose framework rounds in its own way."""
    why: str = ""
    """Why ``steps`` are allowed."""
    rare: float = 0.0
    """Share of a float output's values that may be off by ``RARELY``: of a model that rounds inside, where a sum in another order falls
    on the other side of a boundary."""
    labels: Mapping[int, int] = field(default_factory=dict)
    """Outputs that are class labels, each with the output that has the scores they were chosen by."""
    per_sample: bool = False
    """The framework is known to take each sample on its own, so that slices can be compared even where the graph does not show it."""
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def finish(imported: Imported, *, dims: Mapping[str, int] | None, name: str | None, limits: Limits | None) -> Model:
    """The canonical model, compared with its source. Raises MismatchError naming the output that is furthest off."""
    title = name or imported.text
    text, action = imported.text, imported.action
    model = from_proto(imported.proto, dims=dims, name=title, text=text, limits=limits or Limits(), action=action)
    return compared(model, imported)


def compared(model: Model, imported: Imported) -> Model:
    """``model`` with the comparison in its history. Raises MismatchError, or ModelError where the samples cannot be run."""
    found = _run(model, imported.samples, imported.per_sample)
    if len(found) != len(imported.expected):
        raise MismatchError(f"{imported.framework} gives {len(imported.expected)} outputs of {model.name!r}, its ONNX form {len(found)}")
    differences: dict[str, float] = {}
    ties = 0
    rare: list[str] = []
    for index, (info, wanted) in enumerate(zip(model.outputs, imported.expected, strict=True)):
        result = found[info.name]
        wanted = _columns(wanted, result)
        if result.shape != wanted.shape:
            shapes = f"{list(result.shape)}, {imported.framework} gives {list(wanted.shape)}"
            raise MismatchError(f"output {info.name!r} of {model.name!r} has shape {shapes}")
        if index in imported.labels:
            close = _close(imported.expected[imported.labels[index]], imported.tolerance)
            other = np.array([str(a) != str(b) for a, b in zip(result.reshape(-1), wanted.reshape(-1), strict=True)])
            ties += int(np.sum(other & close))
            differences[info.name] = float(np.sum(other & ~close))
        else:
            differences[info.name] = difference(result, wanted)
            if imported.rare and imported.tolerance < differences[info.name] <= RARELY:
                off = _relative(result, wanted)
                apart = off > imported.tolerance
                if apart.mean() <= imported.rare:
                    differences[info.name] = float(np.max(off, where=~apart, initial=0.0))
                    some = f"{apart.sum():,} of {apart.size:,} values of {info.name!r}"
                    rare.append(f"{some} differ by up to {off.max():.2g}: on a rounding boundary")
    _judge(model, imported, differences)
    count = len(next(iter(imported.samples.values()), ()))
    worst = max(differences.values(), default=0.0)
    note = f"differs from {imported.framework} by at most {worst:.2g} on {count} samples"
    if ties:
        note += f"; {ties} labels differ where two scores are equal"
    if rare:
        note += f"; {'; '.join(rare)}"
    if imported.steps:
        note += f"; up to {imported.steps} steps are allowed: {imported.why}"
    checked = {"framework": imported.framework, "samples": count, "difference": differences, "tolerance": imported.tolerance}
    if imported.steps:
        checked["steps"] = imported.steps
    last = model.history[-1]
    details = {**last.details, **imported.details, "checked": checked}
    step = replace(last, notes=(*last.notes, *imported.notes, note), details=details)
    return Model(model.ir, model.name, (*model.history[:-1], step))


def difference(result: Array, wanted: Array) -> float:
    """The largest difference: of floats relative to the largest value wanted, of integers in steps, of anything else how many differ."""
    if not wanted.size:
        return 0.0
    if wanted.dtype.kind in "iu" and result.dtype.kind in "iu":
        return float(np.max(np.abs(result.astype(np.float64) - wanted.astype(np.float64))))
    if wanted.dtype.kind != "f":
        return float(sum(str(a) != str(b) for a, b in zip(result.reshape(-1), wanted.reshape(-1), strict=True)))
    return float(np.max(_relative(result, wanted)))


def _relative(result: Array, wanted: Array) -> Array:
    """Of each value its difference over the largest finite value wanted."""
    a, b = result.astype(np.float64), wanted.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    scale = max(float(np.max(np.abs(b[np.isfinite(b)]), initial=0.0)), 1e-6)
    return np.where(same, 0.0, np.nan_to_num(np.abs(a - b), nan=np.inf)) / scale


def need(module: str, extra: str, what: str) -> Any:
    """The imported module. Raises ToolMissing naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        hint = f"pip install 'gatewright[{extra}]'"
        raise ToolMissing(f"loading {what} needs {missing}, which is not installed", hint=hint) from None


def trusted(trust: bool, what: str, why: str) -> None:
    """Raises ModelError unless the user said that the file is trusted."""
    if not trust:
        hint = "if you know where it comes from: trust=True in Python, --trust on the command line"
        raise ModelError(f"{what} is not opened: {why}", hint=hint)


def _columns(wanted: Array, result: Array) -> Array:
    """One number for each sample in the columns that ONNX has: a regressor's [N, 1], a decision between two classes as [−s, s]."""
    if wanted.ndim != 1 or result.ndim != 2:
        return wanted
    return np.stack([-wanted, wanted], axis=1) if result.shape[1] == 2 and wanted.dtype.kind == "f" else wanted[:, None]


def _judge(model: Model, imported: Imported, differences: Mapping[str, float]) -> None:
    worst: tuple[float, str, str] | None = None
    for index, (name, off) in enumerate(differences.items()):
        kind = imported.expected[index].dtype.kind
        if index in imported.labels or kind not in "iuf":
            over, text = off, f"in {off:.0f} of {imported.expected[index].size} values"
        elif kind == "f":
            over, text = off / imported.tolerance, f"by {off:.2g} of its largest value, not at most {imported.tolerance:g}"
        else:
            over, text = off / max(imported.steps, 0.5), f"by {off:.0f} steps, not at most {imported.steps}"
        if over > (0 if text.startswith("in ") else 1) and (worst is None or over > worst[0]):
            worst = (over, name, text)
    if worst is not None:
        what = f"output {worst[1]!r} of {model.name!r} differs from that of {imported.framework} {worst[2]}"
        hint = "does it use randomness, or are the samples outside of what it was made for? give example_inputs="
        raise MismatchError(what, hint=hint)


def _close(scores: Array, tolerance: float) -> NDArray[np.bool_]:
    """Samples whose two best scores are equal within the tolerance: either label is right."""
    values = scores.reshape(len(scores), -1).astype(np.float64)
    scale = tolerance * max(float(np.max(np.abs(values), initial=0.0)), 1e-6)
    if values.shape[1] == 1:
        return np.asarray(np.abs(values[:, 0]) <= scale)
    best = np.sort(values, axis=1)
    return np.asarray(best[:, -1] - best[:, -2] <= scale)


def _engine(model: Model) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """ONNX Runtime without optimizations; the reference where it lacks a kernel (it has none of bfloat16)."""
    try:
        return OrtSession(model, optimize=False).run
    except ModelError:
        return Reference(model).run


def _run(model: Model, samples: Mapping[str, Array], per_sample: bool) -> dict[str, Array]:
    """The model on all samples: at once where they have its shapes, else in slices of its batch, the last one padded."""
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph)
    run = Reference(model).run if quantized else _engine(model)
    shapes = {info.name: info.shape for info in model.inputs}
    stray = sorted(set(shapes) ^ set(samples))
    if stray:
        raise MismatchError(f"the samples are for inputs {', '.join(samples)}, the model {model.name!r} has {', '.join(shapes)}")
    if all(samples[name].shape == shape for name, shape in shapes.items()):
        return run(samples)
    reason = None if per_sample else batch_reason(model)
    if reason is not None:
        held = ", ".join(f"{name} {list(array.shape)}" for name, array in samples.items())
        raise ModelError(f"{model.name!r} does not take the samples {held}: {reason}", hint="give example_inputs= of the model's own batch")
    count, batch = len(next(iter(samples.values()))), next(iter(shapes.values()))[0]
    slices: list[dict[str, Array]] = []
    for start in range(0, count, batch):
        rows = np.minimum(np.arange(start, start + batch), count - 1)
        slices.append(run({name: array[rows] for name, array in samples.items()}))
    return {name: np.concatenate([piece[name] for piece in slices])[:count] for name in slices[0]} if slices else {}
