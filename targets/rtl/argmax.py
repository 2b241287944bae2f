"""ArgMax at the end of a network: on integers it is the same as on what they stand for, so it need not be left to the host.

A scale is positive and dequantization keeps the order and every tie, so the float DequantizeLinear before it falls away. What leaves
the design is then an index of a few bits and not all scores. Where somebody else reads the scores too, they leave, and the
host compares them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gatewright.frontend.integer import FloatStep
from gatewright.frontend.queries import integer
from gatewright.frontend.split import Split, Step, reads, written

from .network import Array, Builder

OPS = ("ArgMax", "ArgMin")


def absorb(parts: Split) -> Split:
    """``parts`` with every ArgMax that the core can take, and the DequantizeLinear before it, moved from the host into the core."""
    ends = {value.name for value in parts.model.graph.outputs}
    maker = {name: step for step in (*parts.core, *parts.post) for name in written(step)}
    made_in_core = {name for step in parts.core for name in written(step)}
    taken: list[Step] = []
    for step in parts.post:
        if not isinstance(step, FloatStep) or step.node.op_type not in OPS:
            continue
        (scores,) = reads(step)
        before = maker.get(scores)
        if not isinstance(before, FloatStep) or before.node.op_type != "DequantizeLinear" or scores in ends:
            continue
        readers = [other for other in parts.post if scores in reads(other)]
        scale = before.node.inputs[1]
        per_tensor = scale is not None and scale.const_value is not None and scale.const_value.numpy().size == 1
        if readers == [step] and per_tensor and reads(before)[0] in made_in_core:
            taken += [before, step]
    if not taken:
        return parts
    left = tuple(step for step in parts.post if not any(step is one for one in taken))
    return dataclasses.replace(parts, core=(*parts.core, *taken), post=left)


def lowered(builder: Builder, step: FloatStep, scores: Array) -> Array:
    """Nodes of the indices: a tournament, in which the earlier one wins a tie (the later one with select_last_index)."""
    node = step.node
    axis, last = integer(node, "axis", 0), bool(integer(node, "select_last_index", 0))
    moved = np.moveaxis(scores, axis, -1)
    rows = moved.reshape(-1, moved.shape[-1]).tolist()
    found = np.array([_winner(builder, row, node.op_type == "ArgMin", last) for row in rows], np.int64)
    shape = list(scores.shape)
    shape[axis] = 1
    return found.reshape(shape if integer(node, "keepdims", 1) else moved.shape[:-1])


def _winner(builder: Builder, scores: list[int], least: bool, last: bool) -> int:
    left = [(score, builder.constant(index)) for index, score in enumerate(scores)]
    while len(left) > 1:
        pairs = []
        for (a, i), (b, j) in zip(left[::2], left[1::2], strict=False):
            flag = builder.at_least(*((b, a) if least != last else (a, b)))  # 1 where the one that ties go to wins
            tied, other = ((b, j), (a, i)) if last else ((a, i), (b, j))
            pairs.append((builder.select(flag, tied[0], other[0]), builder.select(flag, tied[1], other[1])))
        left = pairs + left[len(pairs) * 2 :]
    return left[0][1]
