"""RNN, LSTM and GRU in numpy, after the text of the ONNX operator specification: any direction, lengths, peepholes, any activation.

Gates lie as ONNX stacks them: LSTM input, output, forget, cell; GRU update, reset, hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gatewright.errors import UnsupportedOp

from .queries import integer

Array = NDArray[Any]
Activation = Callable[[Array], Array]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_PARAMETERS = {
    "Affine": (1.0, 0.0), "LeakyRelu": (0.01, 0.0), "ThresholdedRelu": (1.0, 0.0), "ScaledTanh": (1.0, 1.0), "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, 0.0),
}  # fmt: skip
"""alpha and beta where the node gives none, of the functions that have any."""
_FUNCTIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "Relu": lambda x, a, b: np.maximum(x, 0), "Tanh": lambda x, a, b: np.tanh(x), "Sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "Affine": lambda x, a, b: a * x + b, "LeakyRelu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "ThresholdedRelu": lambda x, a, b: np.where(x > a, x, 0), "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1), "Elu": lambda x, a, b: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0))),
    "Softsign": lambda x, a, b: x / (1 + np.abs(x)), "Softplus": lambda x, a, b: np.logaddexp(x, 0),
}  # fmt: skip


def recurrent(node: ir.Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """All outputs of the node. x [steps, batch, in]; with ``layout`` 1 the batch comes first, in the results too."""
    x, w, r, bias, lengths, h0, c0, peepholes = [*inputs, *[None] * 8][:8]
    assert x is not None
    assert w is not None
    assert r is not None
    batch_first = integer(node, "layout", 0) == 1
    if batch_first:
        x = x.transpose(1, 0, 2)
        h0, c0 = (None if s is None else s.transpose(1, 0, 2) for s in (h0, c0))
    steps, batch, hidden = x.shape[0], x.shape[1], r.shape[2]
    counts = np.full(batch, steps) if lengths is None else lengths.astype(np.int64)
    ways = w.shape[0]
    y = np.zeros((steps, ways, batch, hidden), x.dtype)
    ends = [np.zeros((ways, batch, hidden), x.dtype) for _ in range(2)]
    for way in range(ways):
        backwards = way == 1 or node.attributes.get_string("direction", "forward") == "reverse"
        cell = _Cell(node, way, w[way], r[way], None if bias is None else bias[way], None if peepholes is None else peepholes[way])
        state = np.zeros((batch, hidden), x.dtype) if h0 is None else h0[way]
        memory = np.zeros((batch, hidden), x.dtype) if c0 is None else c0[way]
        for step in range(steps):
            alive = step < counts
            # A shorter sequence is turned about its own end.
            place = np.where(alive, counts - 1 - step, step) if backwards else np.full(batch, step)
            h, c = cell.step(x[place, np.arange(batch)], state, memory)
            state, memory = (np.where(alive[:, None], new, old).astype(x.dtype) for new, old in ((h, state), (c, memory)))
            y[place, way, np.arange(batch)] = np.where(alive[:, None], state, 0)
        ends[0][way], ends[1][way] = state, memory
    if batch_first:
        y, ends = y.transpose(2, 0, 1, 3), [end.transpose(1, 0, 2) for end in ends]
    return (y, *ends)[: len(node.outputs)]


class _Cell:
    """One direction of the node. Raises UnsupportedOp for an activation that ONNX does not name."""

    def __init__(self, node: ir.Node, way: int, w: Array, r: Array, bias: Array | None, peepholes: Array | None) -> None:
        self._node, self._w, self._r, self._peepholes = node, w.T, r.T, peepholes
        gates = GATES[node.op_type]
        zeros = np.zeros(w.shape[0], w.dtype)
        self._wb, self._rb = (zeros, zeros) if bias is None else (bias[: w.shape[0]], bias[w.shape[0] :])
        self._gates, self._f = gates, self._functions(way)

    def _functions(self, way: int) -> list[Activation]:
        node = self._node
        names = node.attributes.get_strings("activations", ()) or _DEFAULTS[node.op_type] * 2
        values = [list(node.attributes.get_floats(key, ()) or ()) for key in ("activation_alpha", "activation_beta")]
        found: list[Activation] = []
        for name in names:
            if name not in _FUNCTIONS:
                rule = f"it has the activation {name!r}"
                raise UnsupportedOp(node=node.name or "", op=node.op_type, target="ref", rule=rule)
            defaults = _PARAMETERS.get(name, (0, 0))
            given = [values[i].pop(0) if values[i] and name in _PARAMETERS else default for i, default in enumerate(defaults)]
            found.append(lambda x, f=_FUNCTIONS[name], a=given[0], b=given[1]: f(x, a, b))  # type: ignore[misc]
        count = len(_DEFAULTS[node.op_type])
        return found[way * count : (way + 1) * count]

    def _clipped(self, x: Array) -> Array:
        bound = self._node.attributes.get_float("clip", None)
        return x if bound is None else np.clip(x, -bound, bound)

    def step(self, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        """The next hidden state and cell (which only an LSTM has)."""
        match self._node.op_type:
            case "LSTM":
                return self._lstm(x, h, c)
            case "GRU":
                return self._gru(x, h), c
            case _:
                return self._f[0](self._clipped(x @ self._w + self._wb + h @ self._r + self._rb)), c

    def _lstm(self, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, o, f, g = np.split(x @ self._w + self._wb + h @ self._r + self._rb, 4, axis=1)
        p = (0, 0, 0) if self._peepholes is None else np.split(self._peepholes, 3)
        i = self._f[0](self._clipped(i + p[0] * c))
        f = 1 - i if integer(self._node, "input_forget", 0) else self._f[0](self._clipped(f + p[2] * c))
        c = f * c + i * self._f[1](self._clipped(g))
        return self._f[0](self._clipped(o + p[1] * c)) * self._f[2](c), c

    def _gru(self, x: Array, h: Array) -> Array:
        xz, xr, xh = np.split(x @ self._w + self._wb, 3, axis=1)
        rz, rr, rh = np.split(self._r, 3, axis=1)
        bz, br, bh = np.split(self._rb, 3)
        z = self._f[0](self._clipped(xz + h @ rz + bz))
        r = self._f[0](self._clipped(xr + h @ rr + br))
        inner = r * (h @ rh + bh) if integer(self._node, "linear_before_reset", 0) else (r * h) @ rh + bh
        return np.asarray((1 - z) * self._f[1](self._clipped(xh + inner)) + z * h)
