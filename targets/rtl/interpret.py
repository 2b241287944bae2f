"""Runs a network on numpy arrays, node by node over all samples at once: the target's emulator, and its own definition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .network import Array, Network, Node


def run(network: Network, inputs: Sequence[Array]) -> list[Array]:
    """int64 [n, elements] per input port → int64 [n, elements] per output port."""
    values = evaluate(network, inputs)
    samples = len(inputs[0])
    return [np.stack([np.broadcast_to(values[i], (samples,)) for i in nodes], axis=1) for nodes in network.results]


def evaluate(network: Network, inputs: Sequence[Array]) -> list[Array]:
    """The value of every node, int64 [n] (of a constant: a scalar)."""
    columns = [np.ascontiguousarray(array.T) for array in inputs]
    values: list[Array] = []
    for node in network.nodes:
        values.append(_value(node, values, columns))
    return values


def _value(node: Node, values: list[Array], columns: list[Array]) -> Array:
    args = [values[i] for i in node.args]
    match node.op:
        case "input":
            port, element = node.params
            return np.asarray(columns[port][element])
        case "constant":
            return np.asarray(node.params[0], np.int64)
        case "add":
            i, j, sign = node.params
            a, b = args[0] << i, args[1] << j
            return np.asarray(a + b if sign > 0 else a - b)
        case "multiply":
            return np.asarray(args[0] * args[1])
        case "maximum":
            return np.asarray(np.maximum(args[0], args[1]))
        case "settle":
            k, odd = node.params
            rest, quotient = args[0] & ((1 << k) - 1), args[0] >> k
            tie = rest == ((1 << k) - 1 if odd else 0)
            return np.asarray(np.where(tie, quotient | 1 if odd else quotient & ~1, quotient))
        case "clip":
            return np.asarray(np.clip(args[0], node.params[0], node.params[1]))
        case "table":
            return np.asarray(np.take(np.array(node.params[1:], np.int64), args[0] - node.params[0]))
        case "at_least":
            return np.asarray(args[0] >= args[1]).astype(np.int64)
        case "select":
            return np.asarray(np.where(args[0] == 1, args[1], args[2]))
