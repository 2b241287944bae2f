"""LSTM, GRU and RNN written out: a matrix product of all inputs at once, then a few tensor operations for each step in time.

Not part of canonicalization: engines with kernels of their own are better off with one node. Targets that have none ask for it.
Gates lie as ONNX stacks them: LSTM input, output, forget, cell; GRU update, reset, hidden.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .edit import Editor, attribute, constant_of, input_of, shape_of
from .model import Model

WRITTEN_NODES = 4096
"""Of one node, all steps together: a longer sequence stays one node."""
_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
OPERATORS = tuple(_GATES)
_KNOWN = frozenset({"Sigmoid", "Tanh", "Relu", "Softsign", "Softplus"})
_STEP_NODES = 16


def written_out(model: Model) -> Model:
    """``model`` without the recurrent nodes that can be written out; itself where there are none. (written.py has the other operators.)"""
    from .written import RECURRENT
    from .written import written_out as written

    return written(model, RECURRENT)


def write(edit: Editor, node: ir.Node) -> bool:
    """Write the node out if it is in a form that is handled, and short enough; True if it was."""
    if _fits(node):
        _Recurrence(edit, node).write()
        return True
    return False


def _fits(node: ir.Node) -> bool:
    """Whether a node is one of them, in a form that is handled, and short enough."""
    if node.domain != "" or node.op_type not in _GATES:
        return False
    x, lengths = shape_of(input_of(node, 0)), constant_of(input_of(node, 4))
    steps = None if x is None else x[1 if attribute(node, "layout", 0) else 0]
    # Lengths that are all the whole one say nothing.
    if x is None or steps is None or (input_of(node, 4) is not None and (lengths is None or np.any(lengths != steps))):
        return False
    if attribute(node, "clip") is not None or attribute(node, "input_forget", 0):
        return False
    scaled = attribute(node, "activation_alpha") or attribute(node, "activation_beta")
    return not scaled and set(_functions(node)) <= _KNOWN and steps * _directions(node) * _STEP_NODES <= WRITTEN_NODES


def _directions(node: ir.Node) -> int:
    return 2 if attribute(node, "direction", "forward") == "bidirectional" else 1


def _functions(node: ir.Node) -> tuple[str, ...]:
    return tuple(attribute(node, "activations", _ACTIVATIONS[node.op_type] * _directions(node)))


class _Recurrence:
    """One recurrent node, being written out. Shapes: x [seq, batch, in], states [batch, hidden]."""

    def __init__(self, edit: Editor, node: ir.Node) -> None:
        self._edit, self._node, self._gates = edit, node, _GATES[node.op_type]
        self._nodes: list[ir.Node] = []
        recurrent = shape_of(input_of(node, 2))
        assert recurrent is not None
        self._hidden = recurrent[2]
        x = node.inputs[0]
        self._dtype = np.float32 if x is None or x.dtype is None else x.dtype.numpy()

    def write(self) -> None:
        node, batch_first = self._node, attribute(self._node, "layout", 0)
        x = node.inputs[0]
        assert x is not None
        if batch_first:
            x = self._op("Transpose", x, perm=[1, 0, 2])
        steps = (shape_of(node.inputs[0]) or ())[1 if batch_first else 0]
        assert x is not None
        sequences: list[list[ir.Value]] = []
        last: list[list[ir.Value]] = [[], []]
        for direction in range(_directions(node)):
            backwards = direction == 1 or attribute(node, "direction", "forward") == "reverse"
            hidden, states = self._direction(x, direction, steps, backwards)
            sequences.append(hidden)
            for kept, state in zip(last, states, strict=False):
                kept.append(state)
        # Y [seq, directions, batch, hidden], its last axes in another order where the batch comes first.
        rows = [self._stacked([sequence[t] for sequence in sequences], 0) for t in range(steps)]
        y = self._stacked(rows, 0)
        ends = [self._stacked(kept, 0) for kept in last if kept]
        if batch_first:
            y = self._op("Transpose", y, perm=[2, 0, 1, 3])
            ends = [self._op("Transpose", end, perm=[1, 0, 2]) for end in ends]
        self._edit.replace(node, self._nodes, [y, *ends][: len(node.outputs)])

    def _direction(self, x: ir.Value, direction: int, steps: int, backwards: bool) -> tuple[list[ir.Value], list[ir.Value]]:
        """The hidden state after each step, in the order of time, and the last states."""
        count = len(_ACTIVATIONS[self._node.op_type])
        functions = _functions(self._node)[direction * count : (direction + 1) * count]
        weight, recurrent = (self._op("Transpose", self._part(index, direction), perm=[1, 0]) for index in (1, 2))
        inner = self._op("MatMul", x, weight)
        bias = None if input_of(self._node, 3) is None else self._split(self._part(3, direction), 2, 0)
        states = [self._state(index, direction) for index in ((5, 6) if self._node.op_type == "LSTM" else (5,))]
        found: dict[int, ir.Value] = {}
        for t in reversed(range(steps)) if backwards else range(steps):
            now = self._op("Gather", inner, self._constant(t), axis=0)
            if self._node.op_type == "LSTM":
                states = self._lstm(now, recurrent, bias, states, functions, direction)
            elif self._node.op_type == "GRU":
                states = self._gru(now, recurrent, bias, states[0], functions)
            else:
                states = [self._op(functions[0], self._sum(now, self._op("MatMul", states[0], recurrent), *(bias or [])))]
            found[t] = states[0]
        return [found[t] for t in range(steps)], states

    def _lstm(
        self, now: ir.Value, recurrent: ir.Value, bias: list[ir.Value] | None, states: list[ir.Value], f: tuple[str, ...], direction: int
    ) -> list[ir.Value]:
        hidden, cell = states
        i, o, forget, c = self._split(self._sum(now, self._op("MatMul", hidden, recurrent), *(bias or [])), 4, 1)
        peepholes = None if input_of(self._node, 7) is None else self._split(self._part(7, direction), 3, 0)
        if peepholes:
            i, forget = (self._sum(gate, self._op("Mul", p, cell)) for gate, p in ((i, peepholes[0]), (forget, peepholes[2])))
        kept = self._op("Mul", self._op(f[0], forget), cell)
        cell = self._sum(kept, self._op("Mul", self._op(f[0], i), self._op(f[1], c)))
        if peepholes:
            o = self._sum(o, self._op("Mul", peepholes[1], cell))
        return [self._op("Mul", self._op(f[0], o), self._op(f[2], cell)), cell]

    def _gru(self, now: ir.Value, recurrent: ir.Value, bias: list[ir.Value] | None, hidden: ir.Value, f: tuple[str, ...]) -> list[ir.Value]:
        zx, rx, hx = self._split(now if not bias else self._sum(now, bias[0]), 3, 1)
        if attribute(self._node, "linear_before_reset", 0):
            product = self._op("MatMul", hidden, recurrent)
            zh, rh, hh = self._split(product if not bias else self._sum(product, bias[1]), 3, 1)
            update, reset = (self._op(f[0], self._sum(a, b)) for a, b in ((zx, zh), (rx, rh)))
            candidate = self._op(f[1], self._sum(hx, self._op("Mul", reset, hh)))
        else:
            rz, rr, rh = self._split(recurrent, 3, 1)
            bz, br, bh = self._split(bias[1], 3, 0) if bias else (None, None, None)
            update, reset = (
                self._op(f[0], self._sum(a, self._op("MatMul", hidden, r), *([b] if b else []))) for a, r, b in ((zx, rz, bz), (rx, rr, br))
            )
            turned = self._op("MatMul", self._op("Mul", reset, hidden), rh)
            candidate = self._op(f[1], self._sum(hx, turned, *([bh] if bh else [])))
        one = self._edit.constant(np.asarray(1, self._dtype), f"{self._node.name}_one")
        fresh = self._op("Mul", self._op("Sub", one, update), candidate)
        return [self._sum(fresh, self._op("Mul", update, hidden))]

    def _state(self, index: int, direction: int) -> ir.Value:
        """The initial state of a direction; zeros where it is left out."""
        if input_of(self._node, index) is None:
            # Of any batch, by broadcasting.
            return self._edit.constant(np.zeros((1, self._hidden), self._dtype), f"{self._node.name}_zero")
        given = self._node.inputs[index]
        assert given is not None
        return self._op("Gather", given, self._constant(direction), axis=1 if attribute(self._node, "layout", 0) else 0)

    def _part(self, index: int, direction: int) -> ir.Value:
        given = self._node.inputs[index]
        assert given is not None
        return self._op("Gather", given, self._constant(direction), axis=0)

    def _split(self, value: ir.Value, parts: int, axis: int) -> list[ir.Value]:
        node = self._edit.node("Split", [value], {"axis": axis, "num_outputs": parts}, outputs=("",) * parts, name=self._node.name or "")
        self._nodes.append(node)
        return list(node.outputs)

    def _sum(self, first: ir.Value, *others: ir.Value) -> ir.Value:
        for other in others:
            first = self._op("Add", first, other)
        return first

    def _stacked(self, values: list[ir.Value], axis: int) -> ir.Value:
        where = self._edit.constant(np.array([axis], np.int64), f"{self._node.name}_axes")
        raised = [self._op("Unsqueeze", value, where) for value in values]
        return self._op("Concat", *raised, axis=axis)

    def _constant(self, number: int) -> ir.Value:
        return self._edit.constant(np.asarray(number, np.int64), f"{self._node.name}_index")

    def _op(self, op: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        self._nodes.append(self._edit.node(op, inputs, attributes, name=self._node.name or ""))
        return self._nodes[-1].outputs[0]
