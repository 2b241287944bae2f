"""How much information units carry: entropy of a unit's activation, and its mutual information with the label, by histogram.

One number per sample and unit: the activation behind the layer (its bias, norm and nonlinearity applied), averaged over
positions (Luo and Wu 2017, An Entropy-based Pruning Method for CNN Compression, arXiv:1706.05791). Each unit's numbers are
counted in ``bins`` bins of equal width between its own smallest and largest. Counting N samples in K bins that are not
empty underestimates the entropy by about (K − 1)/2N nats; that is added (Miller 1955, the Miller-Madow correction), also to
each of the three entropies of I(X; Y) = H(X) + H(Y) − H(X, Y), which therefore may come out slightly below zero.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from gatewright.errors import DataError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant, shape_of

from .calibrate import traces
from .rewrite import Array, sole_reader

_PASSED = frozenset({
    "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Gelu", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "Mish", "Softplus",
    "BatchNormalization",
})  # fmt: skip
"""What belongs to a layer's activation beside additions of and multiplications with constants."""


def entropy(values: Array, bins: int) -> Array:
    """Nats of each column of ``values`` [samples, units]; 0 for a unit that never changes."""
    codes = _codes(values, bins)
    return _entropy(_counts(codes, bins), len(values))


def mutual_information(values: Array, labels: Array, bins: int) -> Array:
    """Nats that each column of ``values`` [samples, units] tells about ``labels`` [samples], class numbers."""
    codes = _codes(values, bins)
    classes, y = np.unique(labels, return_inverse=True)
    joint = _counts(codes * len(classes) + y[:, None], bins * len(classes))
    of_labels = _entropy(np.bincount(y, minlength=len(classes))[None, :], len(values))
    return _entropy(_counts(codes, bins), len(values)) + of_labels - _entropy(joint, len(values))


def unit_information(model: Model, layers: Iterable[ir.Node], data: Dataset, kind: str, bins: int) -> dict[str, Array]:
    """By the layer's name, one number per output channel, float64 [channels]. ``kind``: "entropy" or "mutual".

    Raises DataError where mutual information has no class labels to be about.
    """
    ends = {node: activation(node) for node in layers}
    labels = _classes(data) if kind == "mutual" else None
    parts: dict[ir.Node, list[Array]] = {node: [] for node in ends}
    for _, traced in traces(model, list(dict.fromkeys(value.name or "" for value in ends.values())), data, optimize=False):
        for node, value in ends.items():
            array = traced[value.name or ""]
            channels = 1 if node.op_type in ("Conv", "ConvTranspose") else array.ndim - 1
            positions = tuple(i for i in range(1, array.ndim) if i != channels)
            parts[node].append(array.mean(axis=positions, dtype=np.float64))
    found = {}
    for node, held in parts.items():
        values = np.concatenate(held)
        if not np.isfinite(values).all():
            where = f"the activation of {node.name!r} is not finite on {data.name or 'the data'}"
            raise DataError(where, hint="look at the data and its Input preparation")
        found[node.name or ""] = entropy(values, bins) if labels is None else mutual_information(values, labels, bins)
    return found


def activation(node: ir.Node) -> ir.Value:
    """What a layer ends in: its output, followed through what only this output goes through."""
    value = node.outputs[0]
    while (reader := sole_reader(value)) is not None and shape_of(reader.outputs[0]) == shape_of(value):
        simple = reader.op_type in _PASSED and reader.inputs[0] is value
        scaled = reader.op_type in ("Add", "Sub", "Mul", "Div") and all(v is value or constant(v) is not None for v in reader.inputs)
        if not (simple or scaled):
            break
        value = reader.outputs[0]
    return value


def _classes(data: Dataset) -> Array:
    what = f"mutual information is about class labels, {data.name or 'the data'} has"
    if data.labels is None:
        raise DataError(f"{what} none", hint="labels=NAME of their array, or importance=entropy, which needs none")
    if data.labels.ndim != 1 or data.labels.dtype.kind not in "iub":
        raise DataError(f"{what} {data.labels.dtype}{list(data.labels.shape)}", hint="one class number per sample, or importance=entropy")
    return np.asarray(data.labels)


def _codes(values: Array, bins: int) -> Array:
    """The bin of every number, int64 [samples, units]."""
    low, high = values.min(axis=0), values.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    return np.asarray(np.clip(((values - low) / width * bins).astype(np.int64), 0, bins - 1))


def _counts(codes: Array, size: int) -> Array:
    """How often each code comes in each column, [units, size]."""
    units = codes.shape[1]
    flat = codes + np.arange(units) * size
    return np.bincount(flat.reshape(-1), minlength=units * size).reshape(units, size)


def _entropy(counts: Array, samples: int) -> Array:
    """Of each row of counts, corrected."""
    p = counts / samples
    plain = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
    return np.asarray(plain + (np.count_nonzero(counts, axis=1) - 1) / (2 * samples))
