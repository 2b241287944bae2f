"""What a layer's inputs are like on data: E[x xᵀ], all that the output error of a rounded weight depends on.

Σ ‖(Ŵ − W) x‖² over the data is Σ_rows δ H δᵀ with δ a row of Ŵ − W and H = Σ x xᵀ, so nothing else has to be kept of the data
(Nagel et al. 2020, Up or Down?, §3; Frantar et al. 2022, GPTQ, §3). Streamed; layers are taken in turns where their H don't fit into
memory together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from gatewright.errors import PassError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.frontend.queries import integer
from gatewright.frontend.windows import CHUNK_BYTES, Window
from gatewright.progress import Progress, silent

from .calibrate import traces
from .chains import Linear
from .rewrite import Array, shape_of

MOMENT_BYTES = 1 << 30
"""Of all H of one turn."""
ROWS = 1 << 16
"""So many inputs of a layer (pixels of a convolution's windows, tokens) are enough for one H; of more, every k-th counts."""


def rows_of(layer: Linear, weight: Array) -> Array:
    """The weight as [groups, outputs of a group, inputs that an output sums over], float64."""
    if layer.node.op_type != "Conv":
        return weight.T[None].astype(np.float64)
    group = integer(layer.node, "group", 1)
    return weight.reshape(group, weight.shape[0] // group, -1).astype(np.float64)


def weight_of(layer: Linear, rows: Array, shape: Sequence[int]) -> Array:
    """The inverse of ``rows_of``."""
    return rows.reshape(shape) if layer.node.op_type == "Conv" else np.ascontiguousarray(rows[0].T)


def second_moments(model: Model, layers: Sequence[Linear], data: Dataset, progress: Progress = silent) -> Iterator[tuple[Linear, Array]]:
    """Each layer with its H = E[x xᵀ], float64 [groups, n, n]. Raises PassError where an input is not finite."""
    turn: list[Linear] = []
    for layer in layers:
        if turn and sum(map(_bytes, [*turn, layer])) > MOMENT_BYTES:
            yield from _measured(model, turn, data, progress)
            turn = []
        turn.append(layer)
    if turn:
        yield from _measured(model, turn, data, progress)


def _bytes(layer: Linear) -> int:
    groups, _, n = _sizes(layer)
    return groups * n * n * 8


def _sizes(layer: Linear) -> tuple[int, int, int]:
    shape = layer.weight.shape
    if layer.node.op_type != "Conv":
        return 1, int(shape[1]), int(shape[0])
    group = integer(layer.node, "group", 1)
    return group, int(shape[0]) // group, math.prod(int(d) for d in shape[1:])


def _measured(model: Model, layers: Sequence[Linear], data: Dataset, progress: Progress) -> Iterator[tuple[Linear, Array]]:
    names = {layer.name: layer.node.inputs[0].name or "" for layer in layers if layer.node.inputs[0] is not None}
    total = {layer.name: np.zeros((_sizes(layer)[0], _sizes(layer)[2], _sizes(layer)[2])) for layer in layers}
    count = dict.fromkeys(total, 0)
    given = {info.name for info in model.inputs}
    inner = list(dict.fromkeys(name for name in names.values() if name not in given))
    done = 0
    for feeds, traced in traces(model, inner, data):
        for layer in layers:
            x = traced.get(names[layer.name], feeds.get(names[layer.name]))
            assert x is not None
            if not np.isfinite(x).all():
                raise PassError(f"input {names[layer.name]!r} of layer {layer.name!r} is not finite on the data", hint="look at the data")
            for columns in inputs_of(layer, x, _stride(layer, len(data))):
                total[layer.name] += np.matmul(columns.transpose(0, 2, 1), columns)
                count[layer.name] += columns.shape[1]
        done += len(next(iter(feeds.values())))
        progress("measuring the inputs of layers", done, len(data))
    for layer in layers:
        yield layer, total.pop(layer.name) / max(count[layer.name], 1)


def _stride(layer: Linear, samples: int) -> int:
    """Every so manieth input is taken."""
    shape = shape_of(layer.node.outputs[0])
    positions = math.prod(shape[2:]) if layer.node.op_type == "Conv" else math.prod(shape[1:-1])
    return max(1, math.ceil(samples * positions / ROWS))


def inputs_of(layer: Linear, x: Array, stride: int = 1) -> Iterator[Array]:
    """What the layer's outputs are sums over, [groups, rows, n] float32, a piece at a time; of the rows every ``stride``-th."""
    if layer.node.op_type != "Conv":
        yield x.reshape(1, -1, x.shape[-1])[:, ::stride]
        return
    weight = layer.weight
    group = integer(layer.node, "group", 1)
    window = Window.of(layer.node, weight.shape[2:])
    out = window.output(x.shape[2:])
    step = max(1, CHUNK_BYTES // max(x.shape[1] * math.prod(out) * math.prod(window.kernel) * x.dtype.itemsize, 1))
    spatial = len(out)
    for start in range(0, len(x), step):
        windows = window.view(x[start : start + step], 0)
        columns = windows.reshape(len(windows), group, x.shape[1] // group, *windows.shape[2:])
        order = (1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial))
        yield columns.transpose(order).reshape(group, len(windows) * math.prod(out), -1)[:, ::stride]
