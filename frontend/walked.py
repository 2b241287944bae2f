"""Finds the forests of a canonical graph again: the walk that ``classical.py`` writes for a TreeEnsemble, read back as trees.

A walk keeps one node number per tree. The first level compares with constants, one column per tree; every further level looks the
feature, the threshold and the two successors up by the number; the last Gather is what each leaf adds, summed over the trees:

    Gather(x, feature) <= threshold → Where(·, yes, no) → … → Gather(values, number) → ReduceSum over the trees
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .queries import constant, integer

Array = NDArray[Any]


@dataclass(frozen=True)
class Tree:
    """One tree with I comparisons and L leaves."""

    feature: Array
    """[I] column of x."""
    threshold: Array
    """[I] float: the answer is yes where x[feature] <= threshold."""
    path: Array
    """[I, L] int8: +1 where the leaf asks for yes, −1 where it asks for no, 0 where the comparison is not on its way."""
    values: Array
    """[L, outputs] float: what the leaf adds."""


@dataclass(frozen=True)
class Walk:
    """A forest in a graph."""

    x: ir.Value
    """[N, features]"""
    node: ir.Node
    """The ReduceSum that makes [N, outputs]."""
    trees: tuple[Tree, ...]
    asks_nan: bool
    """Whether some comparison says yes to a missing value."""


def walks(graph: ir.Graph) -> Iterator[Walk]:
    """Every forest, in the order of the graph."""
    for node in graph:
        found = read(node) if node.op_type == "ReduceSum" else None
        if found is not None:
            yield found


@dataclass(frozen=True)
class _Level:
    """One comparison of every tree, and what is looked up by: None for the first, whose columns are the trees."""

    feature: Array
    threshold: Array
    yes: Array
    no: Array
    nan: bool
    x: ir.Value
    state: ir.Value | None


def read(node: ir.Node) -> Walk | None:
    """The walk that ends at this ReduceSum; None for any other sum."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    last = _made_by(node.inputs[0], "Gather")
    values = constant(last.inputs[0]) if last is not None else None
    if axes is None or axes.tolist() != [1] or integer(node, "keepdims", 1) or last is None or values is None or values.ndim != 2:
        return None
    levels: list[_Level] = []
    state = last.inputs[1]
    while state is not None:
        level = _level(state)
        if level is None:
            return None
        levels.append(level)
        state = level.state
    first, rest = levels[-1], levels[:-1]
    if any(level.x is not first.x for level in rest):
        return None
    table = rest[0] if rest else None
    trees = tuple(_tree(first, table, tree, values) for tree in range(len(first.yes)))
    return Walk(first.x, node, trees, any(level.nan for level in levels))


def _level(state: ir.Value) -> _Level | None:
    chosen = _made_by(state, "Where")
    if chosen is None:
        return None
    compare, nan = _comparison(chosen.inputs[0])
    if compare is None:
        return None
    yes, no = constant(chosen.inputs[1]), constant(chosen.inputs[2])
    if yes is not None and no is not None:
        picked = _made_by(compare.inputs[0], "Gather")
        feature, threshold = (None if picked is None else constant(picked.inputs[1])), constant(compare.inputs[1])
        if picked is None or picked.inputs[0] is None or feature is None or threshold is None or integer(picked, "axis", 0) != 1:
            return None
        return _Level(feature, threshold, yes, no, nan, picked.inputs[0], None)
    ways = [_looked_up(value) for value in chosen.inputs[1:3]]
    picked, limit = _made_by(compare.inputs[0], "GatherElements"), _looked_up(compare.inputs[1])
    index = _looked_up(picked.inputs[1]) if picked is not None else None
    if picked is None or picked.inputs[0] is None or integer(picked, "axis", 0) != 1 or index is None or limit is None or None in ways:
        return None
    (yes, before), (no, other) = (way for way in ways if way is not None)
    if not before is other is index[1] is limit[1]:
        return None
    return _Level(index[0], limit[0], yes, no, nan, picked.inputs[0], before)


def _comparison(value: ir.Value | None) -> tuple[ir.Node | None, bool]:
    """The LessOrEqual, and whether missing values are asked for as well: Or(x <= t, And(IsNaN(x), …))."""
    both = _made_by(value, "Or")
    return (_made_by(value, "LessOrEqual"), False) if both is None else (_made_by(both.inputs[0], "LessOrEqual"), True)


def _looked_up(value: ir.Value | None) -> tuple[Array, ir.Value] | None:
    """The table and the node numbers of a Gather from a constant list."""
    node = _made_by(value, "Gather")
    table = constant(node.inputs[0]) if node is not None else None
    if node is None or table is None or table.ndim != 1 or node.inputs[1] is None:
        return None
    return table, node.inputs[1]


def _made_by(value: ir.Value | None, op: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op and not node.domain else None


def _tree(first: _Level, table: _Level | None, tree: int, values: Array) -> Tree:
    features, thresholds = [int(first.feature[tree])], [first.threshold[tree]]
    leaves: list[tuple[int, list[tuple[int, int]]]] = []
    """Node number, and (comparison, answer) on the way."""
    yes, no = int(first.yes[tree]), int(first.no[tree])
    waiting = [(no, [(0, -1)]), (yes, [(0, 1)])]
    if yes == no:
        features, thresholds, waiting = [], [], [(yes, [])]
    while waiting:
        number, way = waiting.pop()
        if table is None or table.yes[number] == table.no[number]:
            leaves.append((number, way))
            continue
        asked = len(features)
        features.append(int(table.feature[number]))
        thresholds.append(table.threshold[number])
        waiting += [(int(table.no[number]), [*way, (asked, -1)]), (int(table.yes[number]), [*way, (asked, 1)])]
    path = np.zeros((len(features), len(leaves)), np.int8)
    for leaf, (_, way) in enumerate(leaves):
        for asked, answer in way:
            path[asked, leaf] = answer
    return Tree(np.asarray(features, np.int64), np.asarray(thresholds, np.float64), path, values[[number for number, _ in leaves]])
