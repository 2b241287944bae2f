"""The probabilities of a support vector classifier: pairwise decisions coupled by iteration, as LIBSVM does.

Chang and Lin, "LIBSVM", ACM TIST 2011, section 8; the second method of Wu, Lin and Weng, JMLR 5, 2004. Written here because
onnx's reference implementation couples three classes or more with a wrong matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .chain import text
from .edit import attribute

Array = NDArray[Any]

LEAST = 1e-7
"""Pairwise probabilities stay this far from 0 and 1."""
ITERATIONS = 100
STOP = 0.005
"""A sample is near enough where its error is below this, divided by the number of classes."""


def has_probabilities(node: ir.Node) -> bool:
    """Whether ``classify`` is meant: an SVMClassifier with support vectors, Platt's parameters and no post transform."""
    if node.domain != "ai.onnx.ml" or node.op_type != "SVMClassifier" or not attribute(node, "prob_a", ()):
        return False
    return bool(attribute(node, "vectors_per_class", ())) and text(node, "post_transform", "NONE") == "NONE" and len(classes(node)) > 2


def classes(node: ir.Node) -> list[Any]:
    """The classes' names: numbers or texts."""
    names = attribute(node, "classlabels_strings", ()) or attribute(node, "classlabels_ints", ())
    return [name.decode() if isinstance(name, bytes) else name for name in names]


def classify(node: ir.Node, x: Array) -> tuple[Array, Array]:
    """Labels [N] by votes of the pairs, probabilities [N, classes] float32, of samples ``x`` [N, features]."""
    names, counts = classes(node), np.asarray(attribute(node, "vectors_per_class", ()), np.int64)
    ends = np.concatenate([[0], np.cumsum(counts)])
    rows = np.asarray(attribute(node, "coefficients", ()), np.float32).reshape(len(names) - 1, ends[-1])
    vectors = np.asarray(attribute(node, "support_vectors", ()), np.float32).reshape(ends[-1], -1)
    rho, a, b = (np.asarray(attribute(node, key, ()), np.float32) for key in ("rho", "prob_a", "prob_b"))
    kernel = _kernel(node, x.astype(np.float32), vectors)
    votes, pairwise = np.zeros((len(x), len(names))), np.zeros((len(x), len(names), len(names)))
    pair = 0
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            one, other = slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1])
            score = kernel[:, one] @ rows[j - 1, one] + kernel[:, other] @ rows[i, other] + rho[pair]
            votes[:, i] += score > 0
            votes[:, j] += score <= 0
            # Platt: 1 / (1 + e^(a s + b)), in the form that cannot overflow.
            exponent = score.astype(np.float64) * a[pair] + b[pair]
            share = np.exp(-np.logaddexp(0.0, exponent))
            pairwise[:, i, j] = np.clip(share, LEAST, 1 - LEAST)
            pairwise[:, j, i] = 1 - pairwise[:, i, j]
            pair += 1
    labels = np.asarray(names)[votes.argmax(axis=1)]
    return labels, coupled(pairwise).astype(np.float32)


def coupled(r: Array, most: int = ITERATIONS) -> Array:
    """p [N, k] that fits the pairwise probabilities r [N, k, k] best; each sample stops when it is near enough."""
    k = r.shape[1]
    q = -r.transpose(0, 2, 1) * r
    diagonal = np.arange(k)
    q[:, diagonal, diagonal] = (r**2).sum(axis=1) - r[:, diagonal, diagonal] ** 2
    p = np.full((len(r), k), 1 / k)
    going = np.ones(len(r), bool)
    for _ in range(most):
        qp = np.einsum("nij,nj->ni", q, p)
        total = (p * qp).sum(axis=1)
        going &= np.abs(qp - total[:, None]).max(axis=1) >= STOP / k
        if not going.any():
            break
        for t in range(k):
            step = np.where(going, (total - qp[:, t]) / q[:, t, t], 0.0)
            p[:, t] += step
            total = (total + step * (step * q[:, t, t] + 2 * qp[:, t])) / (1 + step) ** 2
            qp = (qp + step[:, None] * q[:, t]) / (1 + step)[:, None]
            p /= (1 + step)[:, None]
    return p


def _kernel(node: ir.Node, x: Array, vectors: Array) -> Array:
    gamma, offset, degree = (*attribute(node, "kernel_params", (0.0, 0.0, 0.0)), 0.0, 0.0, 0.0)[:3]
    kind = text(node, "kernel_type", "LINEAR")
    if kind == "RBF":
        return np.asarray(np.exp(-gamma * np.stack([((row - vectors) ** 2).sum(axis=1) for row in x])), np.float32)
    inner = x @ vectors.T
    if kind == "LINEAR":
        return inner
    inner = inner * np.float32(gamma) + np.float32(offset)
    return np.tanh(inner) if kind == "SIGMOID" else inner ** int(degree)
