"""Whole residual branches: of Add(x, f(x)) the branch f goes and x passes on (Huang et al. 2016, arXiv:1603.09382).

A branch is what one operand of an Add alone is made of, with at least one layer in it; where both operands are such, as in
a residual block whose shortcut is a convolution, the one with more layers. The model is then equal to one whose branch is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError
from gatewright.frontend.edit import Editor
from gatewright.frontend.queries import constant

from . import rewrite
from .importance import layers
from .rewrite import real_constant, shape_of


@dataclass(frozen=True)
class Branch:
    """``add`` = kept + dropped."""

    add: ir.Node
    kept: ir.Value
    dropped: ir.Value
    nodes: frozenset[ir.Node]
    """What is there for ``dropped`` alone."""
    layers: tuple[ir.Node, ...]
    """Those with weights."""


def branches(graph: ir.Graph) -> tuple[list[Branch], dict[str, str]]:
    """The branches that can go, in order, and for each other Add of two computed tensors the reason why not."""
    found: list[Branch] = []
    reasons: dict[str, str] = {}
    weighty = layers(graph)
    for node in graph:
        if node.op_type != "Add" or any(v is None or real_constant(v) is not None for v in node.inputs):
            continue
        candidates = [b for i in (0, 1) if (b := _branch(node, i, weighty)) is not None]
        if candidates:
            found.append(max(candidates, key=lambda b: (len(b.layers), sum(_size(n) for n in b.layers))))
        else:
            reasons[node.name or ""] = "neither operand is a branch of the other's source, in the result's shape, with layers of its own"
    return found, reasons


def drop(graph: ir.Graph, gone: list[Branch]) -> None:
    """Take the branches out. One inside another goes with it. Raises PassError where nothing but the input would be left."""
    for branch in gone:
        if branch.add.graph is not graph:
            continue
        index = 0 if branch.add.inputs[1] is branch.dropped else 1
        branch.add.replace_input_with(0, branch.add.inputs[index])
        branch.add.replace_input_with(1, None)
        if not rewrite.bypass(graph, branch.add):
            told = f"without the branch that {branch.add.name!r} adds, output {branch.add.outputs[0].name!r} would be an input unchanged"
            raise PassError(told, hint="lower amount, or exclude= it")
    rewrite.remove_dead(graph)


def silence(edit: Editor, gone: list[Branch]) -> None:
    """Multiply the branches with zero and leave them there: what dropping them must equal."""
    for branch in gone:
        assert branch.dropped.dtype is not None
        zero = edit.constant(np.zeros((), branch.dropped.dtype.numpy()), "zero")
        product = edit.node("Mul", [branch.dropped, zero], outputs=(f"{branch.dropped.name}_silent",))
        product.outputs[0].shape, product.outputs[0].type = branch.dropped.shape, branch.dropped.type
        edit.graph.insert_before(branch.add, product)
        branch.add.replace_input_with(0 if branch.add.inputs[0] is branch.dropped else 1, product.outputs[0])


def _branch(add: ir.Node, index: int, weighty: list[ir.Node]) -> Branch | None:
    dropped, kept = add.inputs[index], add.inputs[1 - index]
    assert dropped is not None
    assert kept is not None
    if dropped is kept or not shape_of(dropped) == shape_of(kept) == shape_of(add.outputs[0]):
        return None
    own = _own(dropped, add)
    entries = {v for node in own for v in node.inputs if v is not None and constant(v) is None and v.producer() not in own}
    inside = tuple(n for n in weighty if n in own)
    return Branch(add, kept, dropped, frozenset(own), inside) if inside and entries & _ancestors(kept) else None


def _own(value: ir.Value, reader: ir.Node) -> set[ir.Node]:
    """The nodes that only serve ``value``, which only ``reader`` reads."""
    own: set[ir.Node] = set()
    ahead = [value]
    while ahead:
        at = ahead.pop()
        node = at.producer()
        if node is None or node in own or any(v.is_graph_output() for v in node.outputs):
            continue
        if all(use in own or (use is reader and at is value) for v in node.outputs for use in v.consumers()):
            own.add(node)
            # A node with several readers is looked at again from each of them, the last time when all are known.
            ahead += [v for v in node.inputs if v is not None]
    return own


def _ancestors(value: ir.Value) -> set[ir.Value]:
    """``value`` and all it is computed from."""
    seen: set[ir.Value] = set()
    ahead = [value]
    while ahead:
        at = ahead.pop()
        if at not in seen:
            seen.add(at)
            producer = at.producer()
            ahead += [v for v in producer.inputs if v is not None] if producer is not None else []
    return seen


def _size(node: ir.Node) -> int:
    value = node.inputs[1]
    assert value is not None
    return math.prod(shape_of(value))
