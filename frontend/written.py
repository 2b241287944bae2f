"""Operators written out as tensor operations that every engine has, for targets without kernels of their own.

``written_out`` is no part of canonicalization: an engine with a kernel for one of these is better off with one node. Recurrent nodes
(recurrent.py), what finds values by an index or a position (gathered.py), sampling (sampling.py, regions.py), and, for those who ask for
it, operators that hold integers of their own (integers.py) and Fourier transforms (spectra.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir

from . import gathered, integers, recurrent, regions, sampling, spectra
from .batch import batch_reason
from .canonicalize import canonicalize
from .edit import Editor
from .model import Model

Rule = Callable[[Editor, ir.Node], bool]
"""Writes the node out if it can; True if it did."""

ALWAYS: dict[str, Rule] = {
    **dict.fromkeys(recurrent.OPERATORS, recurrent.write), **gathered.RULES, **sampling.RULES, **regions.RULES,
}  # fmt: skip
ALONE: dict[str, Rule] = {**integers.RULES, **spectra.RULES}
"""Slower than other engines' kernels: only where there is no other engine."""


RECURRENT = frozenset(recurrent.OPERATORS)


def written_out(model: Model, operators: Collection[str] = frozenset(ALWAYS)) -> Model:
    """``model`` without those nodes of ``operators`` that can be written out; itself where there are none."""
    rules = {op: rule for op, rule in (ALWAYS | ALONE).items() if op in operators}
    if not any(node.domain == "" and node.op_type in rules for node in model.graph):
        return model
    edited = model.copy_ir()
    edit = Editor(edited)
    found = [node for node in edited.graph if node.domain == "" and node.op_type in rules]
    done = {op for node in found if rules[op := node.op_type](edit, node)}
    if not done:
        return model
    canonicalize(edited)
    made = model.with_ir(edited)
    before, after = batch_reason(model) is None, batch_reason(made) is None
    # With one sample, axes of one beside one another may change which of them looks like the samples': then it is not the same model.
    same = before == after if done & RECURRENT else after or not before
    return made if same else model
