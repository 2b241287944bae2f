"""Trees and linear models of ai.onnx.ml as tensor operations, so that every target can run them; machines.py has support vectors.

Each rule takes one node and says whether it changed anything; what it cannot say exactly stays what it is, for a target that knows
the operator.

A forest is walked level by level, all trees and samples at once ("tree traversal" of Nakandala et al., OSDI 2020,
"A Tensor Compiler for Unified Machine Learning Prediction Serving"): the state is each tree's node, a leaf leads to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from . import encoders, machines
from .chain import Array, Chain, Rule, classes, text
from .edit import Editor, attribute, shape_of

DEEPEST = 64
"""Levels of a tree that is walked; each is six operations."""
_MODES = {"LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"}
_SMALLEST_NORMAL = np.float32(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Forest:
    """All nodes of all trees as arrays [nodes]: ``x[feature] <= threshold`` leads to ``yes``; a leaf leads to itself."""

    roots: Array
    feature: Array
    threshold: Array
    yes: Array
    no: Array
    nan_is_yes: Array
    values: Array
    """[nodes, outputs] float32: what a leaf adds to each output."""
    depth: int


def forest(node: ir.Node, kind: str, outputs: int, dtype: type) -> Forest | None:
    """The arrays of a TreeEnsemble's attributes; None where they are no forest, or compare in a way that ≤ cannot say."""
    tree, number = (np.asarray(attribute(node, f"nodes_{name}", ()), np.int64) for name in ("treeids", "nodeids"))
    modes = [mode.decode() if isinstance(mode, bytes) else str(mode) for mode in attribute(node, "nodes_modes", ())]
    count = len(tree)
    place = {key: i for i, key in enumerate(zip(tree.tolist(), number.tolist(), strict=False))}
    if not count or len(place) != count or len(modes) != count or set(modes) - _MODES:
        return None
    children = [[place.get((int(t), int(c)), -1) for t, c in zip(tree, attribute(node, f"nodes_{way}nodeids", ()), strict=False)]
                for way in ("true", "false")]  # fmt: skip
    values: Array = np.asarray(_numbers(node, "nodes_values"), dtype)
    features = np.asarray(attribute(node, "nodes_featureids", ()), np.int64)
    if {len(values), len(features), *map(len, children)} != {count}:
        return None
    leaf = np.array([mode == "LEAF" for mode in modes])
    own = np.arange(count)
    yes, no = (np.where(leaf, own, np.asarray(held)) for held in children)
    if min(yes.min(), no.min()) < 0:
        return None
    flipped = np.array([mode in ("BRANCH_GTE", "BRANCH_GT") for mode in modes])
    strict = np.array([mode in ("BRANCH_LT", "BRANCH_GTE") for mode in modes])
    # x < t is x <= the number before t, and x > t is not x <= t: children change places, and so does where a NaN goes.
    if np.any(strict & np.isneginf(values)):
        return None
    threshold: Array = np.where(leaf, dtype(0), np.where(strict, np.nextafter(values, dtype(-np.inf)), values)).astype(dtype)
    tracks = np.asarray(attribute(node, "nodes_missing_value_tracks_true", ()) or np.zeros(count), bool)
    yes, no = np.where(flipped, no, yes), np.where(flipped, yes, no)
    leaves = _leaves(node, kind, place, (count, outputs), leaf)
    roots = _roots(tree, leaf, yes, no)
    depth = None if roots is None else _depth(roots, leaf, yes, no)
    if leaves is None or roots is None or depth is None:
        return None
    return Forest(roots, np.where(leaf, 0, features), threshold, yes, no, np.where(flipped, ~tracks, tracks) & ~leaf, leaves, depth)


def _numbers(node: ir.Node, name: str) -> Any:
    """A list of floats, or the tensor that newer versions have instead."""
    tensor = attribute(node, f"{name}_as_tensor", None)
    return attribute(node, name, ()) if tensor is None else tensor.numpy()


def _leaves(node: ir.Node, kind: str, place: dict[tuple[int, int], int], shape: tuple[int, int], leaf: Array) -> Array | None:
    made = np.zeros(shape, np.float32)
    trees, nodes, ids = (attribute(node, f"{kind}_{name}", ()) for name in ("treeids", "nodeids", "ids"))
    for t, n, column, weight in zip(trees, nodes, ids, _numbers(node, f"{kind}_weights"), strict=False):
        at = place.get((int(t), int(n)), -1)
        if at < 0 or not leaf[at] or not 0 <= column < shape[1]:
            return None
        made[at, column] += np.float32(weight)
    return made


def _roots(tree: Array, leaf: Array, yes: Array, no: Array) -> Array | None:
    """Of each tree the one node that no other leads to; None where there are none or several."""
    led_to = np.zeros(len(tree), int)
    np.add.at(led_to, yes[~leaf], 1)
    np.add.at(led_to, no[~leaf], 1)
    roots = np.flatnonzero(led_to == 0)
    if led_to.max(initial=0) > 1 or sorted(tree[roots]) != sorted(set(tree.tolist())):
        return None
    return roots


def _depth(roots: Array, leaf: Array, yes: Array, no: Array) -> int | None:
    """Comparisons on the longest way from a root to a leaf; None where it is longer than DEEPEST, or some node is never met."""
    level, depth, met = roots, 0, len(roots)
    while len(level := level[~leaf[level]]):
        level, depth = np.concatenate([yes[level], no[level]]), depth + 1
        met += len(level)
        if depth > DEEPEST or met > len(leaf):
            return None
    return depth if met == len(leaf) else None


def _walk(chain: Chain, x: ir.Value, trees: Forest) -> ir.Value:
    """The sum over all trees of what each sample's leaf adds: [N, outputs]."""
    roots = trees.roots
    if not trees.depth:
        # Nothing is asked: every sample ends at the roots.
        everything = np.full(len(roots), np.inf, trees.threshold.dtype)
        first = chain("LessOrEqual", chain("Gather", x, np.zeros(len(roots), np.int64), axis=1), everything)
        state = chain("Where", first, roots, roots)
    else:
        value = chain("Gather", x, trees.feature[roots], axis=1)
        says = _says(chain, value, trees.threshold[roots], trees.nan_is_yes[roots], trees)
        state = chain("Where", says, trees.yes[roots], trees.no[roots])
    for _ in range(trees.depth - 1):
        value = chain("GatherElements", x, chain("Gather", trees.feature, state, axis=0), axis=1)
        nan = chain("Gather", trees.nan_is_yes, state, axis=0) if trees.nan_is_yes.any() else trees.nan_is_yes
        says = _says(chain, value, chain("Gather", trees.threshold, state, axis=0), nan, trees)
        state = chain("Where", says, chain("Gather", trees.yes, state, axis=0), chain("Gather", trees.no, state, axis=0))
    return chain("ReduceSum", chain("Gather", trees.values, state, axis=0), np.array([1], np.int64), keepdims=0)


def _says(chain: Chain, value: ir.Value, threshold: ir.Value | Array, nan: ir.Value | Array, trees: Forest) -> ir.Value:
    says = chain("LessOrEqual", value, threshold)
    if not trees.nan_is_yes.any():
        return says
    return chain("Or", says, chain("And", chain("IsNaN", value), nan))


def tree_classifier(edit: Editor, node: ir.Node) -> bool:
    """TreeEnsembleClassifier: label and scores. Of two classes the attributes may name one only; the other is its complement."""
    chain = Chain(edit, node)
    found, names = chain.floats(), classes(node)
    how = text(node, "post_transform", "NONE")
    ids = set(attribute(node, "class_ids", ()))
    if found is None or len(names) < 2 or (len(names) == 2 and len(ids) > 1):
        # Two classes with scores of their own: which one wins is read in two ways, so it is left to who runs the operator.
        return False
    base = np.asarray(_numbers(node, "base_values") if attribute(node, "base_values", None) is not None else (), np.float32)
    binary = len(names) == 2 and len(ids) == 1
    outputs = max(ids, default=-1) + 1 if binary else len(names)
    trees = forest(node, "class", outputs, found[1])
    if trees is None or len(base) not in ((0, 1) if binary else (0, len(names))):
        return False
    total = _walk(chain, found[0], trees)
    if not binary:
        total = chain("Add", total, base) if base.any() else total
        scores = chain.transformed(total, how)
        if scores is None:
            return False
        return chain.close(chain.labels(chain("ArgMax", total, axis=1, keepdims=0), names), scores)
    weights = np.asarray(_numbers(node, "class_weights"), np.float32)
    if outputs > 1:
        total = chain("Gather", total, np.array([outputs - 1], np.int64), axis=1)
    total = chain("Add", total, base) if base.any() else total
    if weights.min(initial=0) >= 0:
        # A share of votes for the one class.
        if how != "NONE":
            return False
        wins = chain("Greater", total, np.float32(0.5))
        scores = chain("Concat", chain("Sub", np.float32(1), total), total, axis=1)
    else:
        wins = chain("Greater", total, np.float32(0))
        transformed = chain.transformed(chain("Concat", chain("Neg", total), total, axis=1), how)
        if transformed is None:
            return False
        scores = transformed
    winner = chain("Reshape", chain("Cast", wins, to=ir.DataType.INT64.value), np.array([-1], np.int64))
    return chain.close(chain.labels(winner, names), scores)


def tree_regressor(edit: Editor, node: ir.Node) -> bool:
    """TreeEnsembleRegressor: the sum or the average over the trees."""
    chain = Chain(edit, node)
    found, how = chain.floats(), text(node, "aggregate_function", "SUM")
    outputs = int(attribute(node, "n_targets", 1))
    if found is None or how not in ("SUM", "AVERAGE") or text(node, "post_transform", "NONE") != "NONE" or not 1 <= outputs <= 1 << 16:
        return False
    trees = forest(node, "target", outputs, found[1])
    base = np.asarray(_numbers(node, "base_values") if attribute(node, "base_values", None) is not None else (), np.float32)
    if trees is None or len(base) not in (0, 1, outputs):
        return False
    total = _walk(chain, found[0], trees)
    if how == "AVERAGE":
        total = chain("Div", total, np.float32(len(trees.roots)))
    return chain.close(chain("Add", total, base) if base.any() else chain("Identity", total))


def linear_regressor(edit: Editor, node: ir.Node) -> bool:
    """LinearRegressor as a Gemm."""
    chain = Chain(edit, node)
    if text(node, "post_transform", "NONE") != "NONE":
        return False
    scores = _linear_scores(chain, int(attribute(node, "targets", 1)))
    return scores is not None and chain.close(scores)


def linear_classifier(edit: Editor, node: ir.Node) -> bool:
    """LinearClassifier with a row of coefficients for each class."""
    chain, names = Chain(edit, node), classes(node)
    if len(names) < 2:
        return False
    scores = _linear_scores(chain, len(names))
    if scores is None:
        return False
    shown = chain.transformed(scores, text(node, "post_transform", "NONE"))
    if shown is None:
        return False
    return chain.close(chain.labels(chain("ArgMax", scores, axis=1, keepdims=0), names), shown)


def _linear_scores(chain: Chain, rows: int) -> ir.Value | None:
    found = chain.floats()
    coefficients = np.asarray(attribute(chain.node, "coefficients", ()), np.float32)
    width = (shape_of(chain.node.inputs[0]) or (0, 0))[-1]
    intercepts = np.asarray(attribute(chain.node, "intercepts", ()) or np.zeros(rows), np.float32)
    if found is None or found[1] is not np.float32 or rows < 1 or coefficients.size != rows * width or len(intercepts) != rows:
        return None
    return chain("Gemm", found[0], np.ascontiguousarray(coefficients.reshape(rows, width).T), intercepts)


def scaler(edit: Editor, node: ir.Node) -> bool:
    """Scaler: (x − offset) · scale."""
    chain = Chain(edit, node)
    found = chain.floats()
    if found is None or found[1] is not np.float32:
        return False
    offset, scale = (np.asarray(attribute(node, name, ()), np.float32) for name in ("offset", "scale"))
    width = (shape_of(node.inputs[0]) or (0, 0))[-1]
    if len(offset) not in (1, width) or len(scale) not in (1, width):
        return False
    return chain.close(chain("Mul", chain("Sub", found[0], offset), scale))


def normalizer(edit: Editor, node: ir.Node) -> bool:
    """Normalizer by the L1 or L2 norm; a row of zeros stays one."""
    chain = Chain(edit, node)
    found, how = chain.floats(), text(node, "norm", "MAX")
    if found is None or found[1] is not np.float32 or how not in ("L1", "L2"):
        return False
    norm = chain(f"Reduce{how}", found[0], np.array([1], np.int64), keepdims=1)
    return chain.close(chain("Div", found[0], chain("Max", norm, _SMALLEST_NORMAL)))


RULES: dict[str, tuple[Rule, ...]] = {
    "TreeEnsembleClassifier": (tree_classifier,),
    "TreeEnsembleRegressor": (tree_regressor,),
    "LinearClassifier": (linear_classifier,),
    "LinearRegressor": (linear_regressor,),
    "Scaler": (scaler,),
    "Normalizer": (normalizer,),
    **machines.RULES,
    **encoders.RULES,
}
