"""What is checked between passes: the graph is a valid canonical model; an exact pass left the outputs as they were."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gatewright.errors import DataError, ModelError, PassError
from gatewright.frontend.canonicalize import check_canonical
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model, TensorInfo
from gatewright.frontend.reference import Reference

from .rewrite import is_quantized

Array = NDArray[Any]
Verify = Literal["structure", "numeric", "none"]

SAMPLES = 8


def verify_structure(model: Model, what: str) -> None:
    """The graph is canonical: valid ONNX, shapes as inferred, names unique, in order. Raises PassError naming ``what`` made it."""
    try:
        check_canonical(model.ir)
    except ModelError as error:
        raise PassError(f"{what} left a broken graph: {error.message}", hint="a bug in the pass: leave it out, or report it") from error


def verify_numeric(before: Model, after: Model, what: str, *, data: Dataset | None = None, seed: int = 0, samples: int = SAMPLES) -> float:
    """Raise PassError unless both models compute the same; gives the largest relative difference.

    Compared are the outputs and every inner tensor whose name both models have: a value that survives a pass keeps its name. A
    quantized graph must give equal values: its meaning is integer. A float graph may differ by rounding only, by ``tolerance``.
    """
    feeds = _feeds(before.inputs, data, samples, seed)
    expected, got = Reference(before), Reference(after)
    allowed = 0.0 if is_quantized(before.graph) else tolerance(before)
    worst = 0.0
    for start in range(samples):
        one = {name: array[start : start + 1] for name, array in feeds.items()}
        if any(info.shape[:1] != (1,) for info in before.inputs):
            one = {info.name: feeds[info.name][start] for info in before.inputs}
        left, right = expected.run(one, trace=True), got.run(one, trace=True)
        missing = [info.name for info in before.outputs if info.name not in right]
        if missing:
            raise PassError(f"{what} dropped the output {missing[0]!r}")
        for name, value in right.items():
            if name not in left:
                continue
            reference = left[name]
            if value.shape != reference.shape or value.dtype != reference.dtype:
                raise PassError(f"{what} made {name!r} {value.dtype}{list(value.shape)}, it was {reference.dtype}{list(reference.shape)}")
            error = relative_error(reference, value)
            worst = max(worst, error)
            if not error <= allowed:
                raise PassError(
                    f"{what} says that it is exact, but {name!r} changed by {error:.2e} of its largest value"
                    f" (at most {allowed:.1e} is rounding)",
                    hint="this is a bug in the pass; leave it out, or report it with the model",
                )
    return worst


def relative_error(reference: Array, got: Array) -> float:
    """max|difference| / max|reference|; infinite where one has NaN or infinities that the other has not."""
    a, b = reference.astype(np.float64), got.astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)) or not np.array_equal(a[np.isinf(a)], b[np.isinf(a)]):
        return math.inf
    finite = np.isfinite(a)
    difference = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    size = float(np.abs(a[finite]).max(initial=0.0))
    return 0.0 if difference == 0 else difference / size if size else math.inf


def tolerance(model: Model) -> float:
    """How far float32 rounding alone may move an output, relative to its largest value.

    A sum of K products in any order is off by about √K·2⁻²⁴ of its terms' size (Higham, Accuracy and Stability, §3.1, the
    statistical estimate), and each of the layers adds its own; 16 is room for cancellation between layers.
    """
    depth, longest = 1, 1
    for node in model.graph:
        weight = node.inputs[1] if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and len(node.inputs) > 1 else None
        if weight is not None and weight.shape is not None and weight.shape.is_static():
            depth += 1
            shape = [int(d) for d in weight.shape.numpy()]
            longest = max(longest, math.prod(shape[1:]) if "Conv" in node.op_type else shape[-2] if len(shape) > 1 else 1)
    return 16 * depth * math.sqrt(longest) * 2.0**-24


def random_feeds(infos: tuple[TensorInfo, ...], samples: int, seed: int) -> dict[str, Array]:
    """``samples`` inputs, stacked on axis 0 (in place of a batch axis of 1, or before the whole shape): normal floats, any integers."""
    random = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for info in infos:
        shape = (samples, *info.shape[1:]) if info.shape[:1] == (1,) else (samples, *info.shape)
        if info.dtype.kind == "f":
            feeds[info.name] = random.standard_normal(shape).astype(info.dtype)
        elif info.dtype.kind == "b":
            feeds[info.name] = random.integers(0, 2, shape).astype(info.dtype)
        else:
            bounds = (-128, 127) if info.dtype.kind == "i" else (0, 255)
            feeds[info.name] = random.integers(*bounds, shape, endpoint=True).astype(info.dtype)
    return feeds


def _feeds(infos: tuple[TensorInfo, ...], data: Dataset | None, samples: int, seed: int) -> Mapping[str, Array]:
    if data is None or len(data) < samples or any(info.shape[:1] != (1,) for info in infos):
        return random_feeds(infos, samples, seed)
    try:
        return data.take(samples).feeds(infos)
    except DataError:
        return random_feeds(infos, samples, seed)
