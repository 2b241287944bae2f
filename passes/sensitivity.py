"""What the outputs lose when one layer's weights alone are narrow: measured on data, layer by layer, width by width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from gatewright.errors import DataError, PassError
from gatewright.frontend.data import Dataset
from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model
from gatewright.progress import Progress, silent

from . import rewrite
from .calibrate import traces
from .rewrite import Array

Measure = Literal["kl", "mse", "accuracy"]
"""kl        Σ p·log(p/q) of a sample in nats, averaged; p and q are the softmax over the last axis, or the outputs where they are one
mse       squared difference of the outputs, relative to their variance
accuracy  fraction of labels that were met before and are not now (needs labels)"""

SMALLEST = 1e-9
"""Probabilities count as no less."""


def outputs_of(model: Model, data: Dataset) -> dict[str, Array]:
    """Every output on all of ``data``."""
    names = [info.name for info in model.outputs]
    parts: dict[str, list[Array]] = {name: [] for name in names}
    for _, traced in traces(model, [], data, outputs=True):
        for name in names:
            parts[name].append(traced[name])
    return {name: np.concatenate(found) for name, found in parts.items()}


def sensitivities(
    model: Model,
    narrowed: Sequence[tuple[str, int]],
    weight: Callable[[str, int], Array],
    data: Dataset,
    measure: Measure,
    progress: Progress = silent,
) -> dict[tuple[str, int], float]:
    """The loss of the outputs for each (name of a node, bits), with ``weight(node, bits)`` in the place of that node's weight alone."""
    if measure == "accuracy" and data.labels is None:
        raise DataError("measure=accuracy needs labels, the data has none", hint="take measure=kl or mse")
    before = outputs_of(model, data)
    for name, array in before.items():
        if not np.isfinite(array).all():
            raise PassError(f"output {name!r} is not finite on the data", hint="look at the data and its Input preparation")
    probable = {v.name for v in model.graph.outputs if (n := v.producer()) is not None and n.op_type == "Softmax"}
    found = {}
    for count, (name, bits) in enumerate(narrowed):
        progress("measuring the sensitivity of layers", count, len(narrowed))
        edited = model.copy_ir()
        node = next(node for node in edited.graph if node.name == name)
        rewrite.replace_constant(Editor(edited), node, 1, weight(name, bits).astype(np.float32))
        rewrite.remove_dead(edited.graph)
        after = outputs_of(model.with_ir(edited), data)
        found[name, bits] = loss(before, after, measure, probable, data.labels)
    return found


def loss(before: dict[str, Array], after: dict[str, Array], measure: Measure, probable: set[str | None], labels: Array | None) -> float:
    """See ``Measure``; summed over outputs (accuracy looks at the first)."""
    if measure == "accuracy":
        assert labels is not None
        name = next(iter(before))
        right = [float(np.mean(scores[name].reshape(len(labels), -1).argmax(axis=1) == np.asarray(labels))) for scores in (before, after)]
        return right[0] - right[1]
    total = 0.0
    for name, wanted in before.items():
        got = after[name].astype(np.float64)
        wanted = wanted.astype(np.float64)
        if measure == "mse":
            total += float(np.mean((got - wanted) ** 2) / max(float(wanted.var()), 1e-30))
            continue
        p, q = (x if name in probable else _softmax(x) for x in (wanted, got))
        total += float(np.mean(np.sum(p * (np.log(np.maximum(p, SMALLEST)) - np.log(np.maximum(q, SMALLEST))), axis=-1)))
    return total


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))
