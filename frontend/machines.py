"""Support vector machines of ai.onnx.ml as tensor operations: decisions, votes and probabilities.

Probabilities are what ONNX Runtime and LIBSVM iterate for (svm.py has the sources): sweeps over the classes until a sample's error is
below a bound. Written out, every sample takes SWEEPS sweeps, and one that is near enough stays as it is from there on. No pairwise
probabilities were found that need more than 5 sweeps, in random search and in search for the worst, for 2 to 20 classes. Where a
sample's error is within rounding of the bound, an engine may stop one sweep sooner or later than another: then they differ by about
that error, 0.005 / classes.

What the specification leaves open, and ONNX Runtime and onnx's reference evaluator read differently, stays the operator that it is: the
labels of two classes where no coefficient is negative or without support vectors, and other post transforms of one decision.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from .chain import Array, Chain, Rule, classes, text
from .edit import Editor, attribute, shape_of
from .svm import LEAST, STOP

SWEEPS = 8
MOST_CLASSES = 20
"""With probabilities: a sweep is ten operations for each class."""
MOST_ELEMENTS = 1 << 26
"""Of the matrix of what each vector adds to each decision."""
_FAR = 100.0
"""γ·|v|² beyond which |x − v|² is not summed from |x|², x·v and |v|²: what would be left of a float32 is too little."""


def svm_classifier(edit: Editor, node: ir.Node) -> bool:
    """SVMClassifier: a decision for each pair of classes, the class with most of them, and probabilities where it has them."""
    chain, names, how = Chain(edit, node), classes(node), text(node, "post_transform", "NONE")
    if not attribute(node, "vectors_per_class", ()):
        return _linear_machine(chain)
    decisions, rho = _pairs(node, len(names)), np.asarray(attribute(node, "rho", ()), np.float32)
    platt = [np.asarray(attribute(node, f"prob_{which}", ()), np.float32) for which in "ab"]
    if decisions is None or len(rho) != decisions.shape[1] or any(len(found) not in (0, len(rho)) for found in platt):
        return False
    likely = len(platt[0]) > 0
    if len(platt[0]) != len(platt[1]) or (likely and len(names) > MOST_CLASSES):
        return False
    if len(names) == 2 and not likely and (decisions.min() >= 0 or how not in ("NONE", "LOGISTIC")):
        return False
    scores = _decisions(chain, decisions, rho)
    if scores is None:
        return False
    winner = _most_votes(chain, scores, len(names))
    if likely:
        shown = _probabilities(chain, scores, platt[0], platt[1], len(names))
    else:
        shown = chain("Concat", chain("Neg", scores), scores, axis=1) if len(names) == 2 else scores
    transformed = chain.transformed(shown, how)
    return transformed is not None and chain.close(chain.labels(winner, names), transformed)


def svm_regressor(edit: Editor, node: ir.Node) -> bool:
    """SVMRegressor with support vectors."""
    chain, count = Chain(edit, node), int(attribute(node, "n_supports", 0))
    coefficients = np.asarray(attribute(node, "coefficients", ()), np.float32)
    rho = np.asarray(attribute(node, "rho", ()), np.float32)
    plain = text(node, "post_transform", "NONE") == "NONE" and not attribute(node, "one_class", 0)
    if not plain or count < 1 or coefficients.size != count or len(rho) != 1:
        return False
    scores = _decisions(chain, coefficients.reshape(count, 1), rho)
    return scores is not None and chain.close(scores)


def _linear_machine(chain: Chain) -> bool:
    """Without support vectors: a row of coefficients for each class of three or more, and the largest score."""
    node, names = chain.node, classes(chain.node)
    coefficients, rho = (np.asarray(attribute(node, name, ()), np.float32) for name in ("coefficients", "rho"))
    x, width = _floats(chain), (shape_of(node.inputs[0]) or (0, 0))[-1]
    if x is None or len(names) < 3 or coefficients.size != len(names) * width or not len(rho) or attribute(node, "prob_a", ()):
        return False
    scores = chain("Gemm", x, np.ascontiguousarray(coefficients.reshape(len(names), width).T), np.full(len(names), rho[0]))
    shown = chain.transformed(scores, text(node, "post_transform", "NONE"))
    return shown is not None and chain.close(chain.labels(chain("ArgMax", scores, axis=1, keepdims=0), names), shown)


def _pairs(node: ir.Node, count: int) -> Array | None:
    """[vectors, pairs]: what each support vector adds to the decision of each pair of classes; None where the sizes contradict."""
    vectors = list(attribute(node, "vectors_per_class", ()))
    coefficients = np.asarray(attribute(node, "coefficients", ()), np.float32)
    if count < 2 or len(vectors) != count or min(vectors) < 0 or not coefficients.size or coefficients.size != (count - 1) * sum(vectors):
        return None
    if sum(vectors) * count * (count - 1) // 2 > MOST_ELEMENTS:
        return None
    rows = coefficients.reshape(count - 1, sum(vectors))
    own = [slice(start, end) for start, end in pairwise(np.cumsum([0, *vectors]))]
    decisions = np.zeros((sum(vectors), count * (count - 1) // 2), np.float32)
    for pair, (i, j) in enumerate(_two_of(count)):
        decisions[own[i], pair] = rows[j - 1, own[i]]
        decisions[own[j], pair] = rows[i, own[j]]
    return decisions


def _two_of(count: int) -> list[tuple[int, int]]:
    """The pairs of classes in the order of their decisions."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def _most_votes(chain: Chain, scores: ir.Value, count: int) -> ir.Value:
    """The number of each sample's class: a pair's vote goes to the first of the two where its score is positive, else to the second."""
    won = chain("Cast", chain("Greater", scores, np.float32(0)), to=ir.DataType.FLOAT.value)
    gain, start = np.zeros((count * (count - 1) // 2, count), np.float32), np.zeros(count, np.float32)
    for pair, (i, j) in enumerate(_two_of(count)):
        gain[pair, i], gain[pair, j] = 1, -1
        start[j] += 1
    return chain("ArgMax", chain("Gemm", won, gain, start), axis=1, keepdims=0)


def _probabilities(chain: Chain, scores: ir.Value, a: Array, b: Array, count: int) -> ir.Value:
    """Platt's sigmoid of every decision [N, pairs], and the probabilities [N, classes] that fit those of all pairs best.

    With r_ij the probability of i against j, Q_tt = Σ r_jt² and Q_tj = −r_jt·r_tj: the p that makes pᵀQp least among those of sum 1.
    Steps and stop are LIBSVM's, but within a sweep p is not divided by its sum after each class: that is done once, at the end.
    """
    one = np.float32(1)
    likely = chain("Sub", one, chain("Sigmoid", chain("Add", chain("Mul", scores, a), b)))
    first = chain("Clip", likely, np.float32(LEAST), one - np.float32(LEAST))
    other = chain("Sub", one, first)
    pairs = {two: pair for pair, two in enumerate(_two_of(count))}
    lost = np.zeros((2 * len(pairs), count), np.float32)  # which of r_ij, then of r_ji, make Q_tt
    for (i, j), pair in pairs.items():
        lost[pair, j] = lost[len(pairs) + pair, i] = 1
    every = chain("Concat", first, other, axis=1)
    diagonal = chain("MatMul", chain("Mul", every, every), lost)
    held = chain("Concat", chain("Neg", chain("Mul", first, other)), diagonal, axis=1)
    place = np.array([[len(pairs) + i if i == j else pairs[min(i, j), max(i, j)] for j in range(count)] for i in range(count)])
    matrix = chain("Gather", held, place, axis=1)
    columns = [chain("Gather", held, place[t], axis=1) for t in range(count)]
    corners = [chain("Gather", held, place[t, t : t + 1], axis=1) for t in range(count)]
    p: ir.Value | Array = np.full((1, count), 1 / count, np.float32)
    for _ in range(SWEEPS if count > 2 else SWEEPS // 2):
        p = _sweep(chain, p, matrix, columns, corners)
    assert isinstance(p, ir.Value)
    return p


def _sweep(chain: Chain, p: ir.Value | Array, matrix: ir.Value, columns: list[ir.Value], corners: list[ir.Value]) -> ir.Value:
    """p after one step for each class; as it was where its error is below the bound already."""
    classes_axis, count = np.array([1], np.int64), len(columns)
    row = chain("Reshape", p, np.array([0, 1, count], np.int64)) if isinstance(p, ir.Value) else p[:, None]
    qp = chain("ReduceSum", chain("Mul", matrix, row), np.array([2], np.int64), keepdims=0)
    energy = chain("ReduceSum", chain("Mul", qp, p), classes_axis, keepdims=1)
    error = chain("ReduceMax", chain("Abs", chain("Sub", qp, energy)), classes_axis, keepdims=1)
    # Of a sample that is no number no error is large: its probabilities stay equal, as ONNX Runtime leaves them.
    far = chain("GreaterOrEqual", error, np.float32(STOP / count))
    total: ir.Value | None = None
    steps = []
    for t in range(count):
        own = chain("Gather", qp, np.array([t], np.int64), axis=1)
        mean = energy if total is None else chain("Div", energy, total)
        step = chain("Div", chain("Sub", mean, own), corners[t])
        steps.append(step)
        total = chain("Add", step, np.float32(1) if total is None else total)
        if t < count - 1:
            energy = chain("Add", energy, chain("Mul", step, chain("Add", mean, own)))
            qp = chain("Add", qp, chain("Mul", step, columns[t]))
    assert total is not None
    moved = chain("Div", chain("Add", chain("Concat", *steps, axis=1), p), total)
    return chain("Where", far, moved, p)


def _decisions(chain: Chain, weights: Array, rho: Array) -> ir.Value | None:
    """Σ weights [vectors, outputs] · kernel + rho. A linear kernel needs no vectors: one product, summed here in float64."""
    if text(chain.node, "kernel_type", "LINEAR") != "LINEAR":
        kernel = _kernel(chain, len(weights))
        return None if kernel is None else chain("Gemm", kernel, weights, rho)
    given = _vectors(chain, len(weights))
    if given is None:
        return None
    x, vectors = given
    return chain("Gemm", x, (vectors.astype(np.float64).T @ weights.astype(np.float64)).astype(np.float32), rho)


def _floats(chain: Chain) -> ir.Value | None:
    """The input in float32, in which these operators count whatever they are given."""
    found = chain.floats()
    return found and (found[0] if found[1] is np.float32 else chain("Cast", found[0], to=ir.DataType.FLOAT.value))


def _vectors(chain: Chain, count: int) -> tuple[ir.Value, Array] | None:
    """The input and the support vectors [count, features]."""
    x = _floats(chain)
    vectors = np.asarray(attribute(chain.node, "support_vectors", ()), np.float32)
    width = (shape_of(chain.node.inputs[0]) or (0, 0))[-1]
    if x is None or count < 1 or vectors.size != count * width:
        return None
    return x, vectors.reshape(count, width)


def _kernel(chain: Chain, count: int) -> ir.Value | None:
    """The kernel of every sample with every support vector: [N, count]; not of the linear one."""
    given = _vectors(chain, count)
    if given is None:
        return None
    x, vectors = given
    gamma, offset, degree = (*attribute(chain.node, "kernel_params", (0.0, 0.0, 0.0)), 0.0, 0.0, 0.0)[:3]
    kind = text(chain.node, "kernel_type", "LINEAR")
    if kind == "RBF":
        return chain("Exp", chain("Mul", _distances(chain, x, vectors, gamma), np.float32(-gamma)))
    inner = chain("Add", chain("Mul", chain("MatMul", x, np.ascontiguousarray(vectors.T)), np.float32(gamma)), np.float32(offset))
    if kind == "SIGMOID":
        return chain("Tanh", inner)
    return chain("Pow", inner, np.float32(int(degree))) if kind == "POLY" else None


def _distances(chain: Chain, x: ir.Value, vectors: Array, gamma: float) -> ir.Value:
    """|x − v|² of every sample with every support vector: [N, count]."""
    norms = (vectors.astype(np.float64) ** 2).sum(axis=1)
    if gamma * norms.max() > _FAR:
        apart = chain("Sub", chain("Reshape", x, np.array([0, 1, vectors.shape[1]], np.int64)), vectors)
        return chain("ReduceSum", chain("Mul", apart, apart), np.array([2], np.int64), keepdims=0)
    # |x|² − 2 x·v + |v|²: what cancels is small beside |v|², which scaled data keeps small.
    products = chain("MatMul", x, np.ascontiguousarray(vectors.T))
    own = chain("ReduceSum", chain("Mul", x, x), np.array([1], np.int64), keepdims=1)
    distance = chain("Add", chain("Sub", own, chain("Mul", products, np.float32(2))), norms.astype(np.float32))
    return chain("Max", distance, np.float32(0))


RULES: dict[str, tuple[Rule, ...]] = {"SVMClassifier": (svm_classifier,), "SVMRegressor": (svm_regressor,)}
