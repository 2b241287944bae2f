"""What is left of a pruned layer, fitted to what the whole layer gave: least squares on data that needs no labels.

After units are removed a layer sums over fewer inputs. In the order of the graph, every layer that lost inputs gets the weights
(and the bias, where it has one) with which it comes nearest to the channels that it gave before, from what its inputs are now:
the regression step of He, Zhang, Sun 2017, Channel Pruning for Accelerating Very Deep Neural Networks (arXiv:1707.06168). It
is drawn towards the weights that the layer has; how strongly is chosen, and whether it is done at all, on a fifth of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant, integer, shape_of
from gatewright.frontend.windows import Window
from gatewright.progress import Progress, silent

from .calibrate import traces
from .importance import input_axis, layers
from .rewrite import Array

_ROWS = 1 << 14
"""Equations of one layer: positions of an image or a sequence are drawn until there are so many."""
_BYTES = 256 << 20
"""Of one layer's equations, in float64."""
_UNKNOWNS = 4096
"""A layer with more inputs per output is left as it is: its normal equations grow with the cube."""
_PULLS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Weight of the distance to the weights that are there, against the mean square of an input."""
_HELD_OUT = 5
"""Every fifth sample chooses."""


@dataclass(frozen=True)
class Places:
    """The positions that are looked at, [samples, positions] for each axis of them."""

    index: tuple[Array, ...]

    @classmethod
    def drawn(cls, samples: int, shape: tuple[int, ...], rows: int, seed: int) -> Places:
        random = np.random.default_rng(seed)
        count = max(1, min(math.prod(shape), rows // samples))
        flat = np.stack([random.permutation(math.prod(shape))[:count] for _ in range(samples)])
        return cls(tuple(np.asarray(i) for i in np.unravel_index(flat, shape)) if shape else (flat,))

    def of(self, array: Array, start: int) -> Array:
        """``array`` [n, C, *shape, …] of the samples from ``start`` on → [n, positions, C, …]."""
        n = len(array)
        index: tuple[Any, ...] = (np.arange(n)[:, None], slice(None), *(i[start : start + n] for i in self.index))
        return np.asarray(array[index])


def reconstructed(
    before: Model, after: Model, kept: Mapping[str, Array], data: Dataset, seed: int, progress: Progress = silent
) -> tuple[Model, dict[str, list[float]]]:
    """``after`` with its layers fitted, and by the layer's name its relative error on held-out samples before and after.

    ``kept``: by the layer's name, which of the output channels of ``before`` there still are.
    """
    whole = {node.name: node for node in layers(before.graph)}
    todo = [n.name for n in layers(after.graph) if n.name in kept and _lost_inputs(whole.get(n.name), n)]
    errors: dict[str, list[float]] = {}
    for done, name in enumerate(todo):
        progress("fitting what is left", done, len(todo))
        edited = after.copy_ir()
        node = next(n for n in layers(edited.graph) if n.name == name)
        rows = _rows(after, node, data, seed)
        wanted = _outputs(before, whole[name], data, seed, rows)[..., kept[name or ""]]
        found = _fit(node, rows, wanted)
        if found is not None:
            errors[name or ""] = found
            after = after.with_ir(edited)
    return after, errors


def _lost_inputs(whole: ir.Node | None, node: ir.Node) -> bool:
    """Whether a layer sums over fewer inputs than it did, and is one that this file can fit."""
    value = node.inputs[1]
    if whole is None or whole.inputs[1] is None or value is None or constant(value) is None or len(value.uses()) > 1:
        return False
    if node.op_type not in ("Conv", "Gemm", "MatMul") or integer(node, "transA", 0) or len(shape_of(value)) < 2:
        return False
    if node.op_type == "MatMul" and len(shape_of(value)) != 2:
        return False
    axis = input_axis(node)
    return shape_of(value)[axis] < shape_of(whole.inputs[1])[axis] and _unknowns(node) <= _UNKNOWNS


def _unknowns(node: ir.Node) -> int:
    """Of one output channel, bias included."""
    assert node.inputs[1] is not None
    shape = shape_of(node.inputs[1])
    return 1 + (math.prod(shape[1:]) if node.op_type == "Conv" else shape[input_axis(node)])


def _places(node: ir.Node, data: Dataset, seed: int, unknowns: int) -> Places:
    """The same for the pruned layer and the whole one: they give as many positions."""
    shape = shape_of(node.outputs[0])
    positions = shape[2:] if node.op_type == "Conv" else shape[1:-1]
    return Places.drawn(len(data), positions, min(_ROWS, _BYTES // (8 * unknowns)), seed)


def _rows(model: Model, node: ir.Node, data: Dataset, seed: int) -> Array:
    """What each looked-at output is summed over, [samples, positions, groups, inputs], float64."""
    x, weight = node.inputs[:2]
    assert x is not None
    assert weight is not None
    places = _places(node, data, seed, _unknowns(node))
    inner = [] if x.producer() is None else [x.name or ""]
    found, start = [], 0
    for feeds, traced in traces(model, inner, data, optimize=False):
        array = traced[x.name or ""] if inner else feeds[x.name or ""]
        if node.op_type == "Conv":
            picked = places.of(Window.of(node, shape_of(weight)[2:]).view(array, 0), start)
            group = integer(node, "group", 1)
            found.append(picked.reshape(*picked.shape[:2], group, -1).astype(np.float64))
        else:
            found.append(places.of(_channels_second(array), start)[:, :, None, :].astype(np.float64))
        start += len(array)
    return np.concatenate(found)


def _outputs(model: Model, node: ir.Node, data: Dataset, seed: int, rows: Array) -> Array:
    """What the layer gave there, [samples, positions, channels], float64."""
    name = node.outputs[0].name or ""
    shape = shape_of(node.outputs[0])
    positions = shape[2:] if node.op_type == "Conv" else shape[1:-1]
    places = Places.drawn(len(data), positions, rows.shape[0] * rows.shape[1], seed)
    found, start = [], 0
    for _, traced in traces(model, [name], data, optimize=False):
        array = traced[name] if node.op_type == "Conv" else _channels_second(traced[name])
        found.append(places.of(array, start).astype(np.float64))
        start += len(array)
    return np.concatenate(found)


def _channels_second(array: Array) -> Array:
    """[n, *positions, C] → [n, C, *positions], with one position where there is none."""
    return np.moveaxis(array[:, None, :] if array.ndim == 2 else array, -1, 1)


def _fit(node: ir.Node, rows: Array, wanted: Array) -> list[float] | None:
    """New weights for the node; its relative error before and after. None where no fit is better on the held-out samples."""
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    array, shift = constant(weight), constant(bias)
    assert array is not None
    assert weight is not None
    turned = node.op_type != "Conv" and input_axis(node) == 0
    matrix = (array.T if turned else array.reshape(array.shape[0], -1)).astype(np.float64)
    fits_bias = bias is not None and shift is not None and shift.shape == (len(matrix),) and len(bias.uses()) == 1
    offset = np.zeros(len(matrix)) if shift is None else np.broadcast_to(shift.astype(np.float64).reshape(-1), (len(matrix),)).copy()
    held = np.arange(len(rows)) % _HELD_OUT == 0
    groups, per_group = rows.shape[2], len(matrix) // rows.shape[2]
    new, moved = matrix.copy(), offset.copy()
    errors = np.zeros(2)
    for g in range(groups):
        own = slice(g * per_group, (g + 1) * per_group)
        x = rows[:, :, g].reshape(len(rows), -1, rows.shape[-1])
        if fits_bias:
            x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=-1)
        start = np.concatenate([matrix[own], offset[own, None]], axis=1) if fits_bias else matrix[own]
        y = wanted[..., own] - (0 if fits_bias else offset[own])
        found, before, after = _solved(x, y, start, held)
        errors += before, after
        new[own] = found[:, : matrix.shape[1]]
        if fits_bias:
            moved[own] = found[:, -1]
    if not errors[1] < errors[0]:
        return None
    stored = new.T if turned else new.reshape(array.shape)
    weight.const_value = ir.Tensor(np.ascontiguousarray(stored, array.dtype), name=weight.name)
    if fits_bias and bias is not None and shift is not None:
        bias.const_value = ir.Tensor(moved.astype(shift.dtype), name=bias.name)
    scale = float((wanted[held] ** 2).sum()) or 1.0
    return [round(math.sqrt(e / scale), 6) for e in errors.tolist()]


def _solved(x: Array, y: Array, start: Array, held: Array) -> tuple[Array, float, float]:
    """The best weights [channels, inputs], and the held-out squared error before and after. ``start`` where nothing is better."""
    learned, residual = x[~held].reshape(-1, x.shape[-1]), (y - x @ start.T)
    gram, right = learned.T @ learned, learned.T @ residual[~held].reshape(-1, y.shape[-1])
    best, before = start, float((residual[held] ** 2).sum())
    least = before
    for pull in _PULLS:
        strength = pull * max(float(np.trace(gram)) / len(gram), 1e-12)
        found = start + np.linalg.solve(gram + strength * np.eye(len(gram)), right).T
        error = float(((y[held] - x[held] @ found.T) ** 2).sum())
        if error < least:
            best, least = found, error
    return best, before, least
