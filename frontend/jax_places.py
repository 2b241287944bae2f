"""JAX's primitives that look for places: sort, top_k, dynamic slices, gather and scatter, as ONNX nodes.

A gather is GatherND, and a scatter ScatterND, over the axes that are indexed, which come first; where a window is wider than one
element, each of its elements gets a place of its own. A place that is out of range is what JAX's ``mode`` says: filled or dropped, or
the nearest that is in range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from .jax_graph import Array, Graph, Primitive, refuse

INT64 = onnx.TensorProto.INT64


def _sort(graph: Graph, equation: Any, *given: str) -> list[str]:
    """By the first operand, stable; the others follow it."""
    p, key = equation.params, equation.invars[0].aval
    if p["num_keys"] != 1 or key.dtype == bool:
        raise refuse(equation, "sorts by several keys, or by truth values")
    axis = p["dimension"]
    ordered, order = graph.several("TopK", [given[0], graph.whole(key.shape[axis])], 2, axis=axis, largest=0, sorted=1)
    return [ordered, *(graph.node("GatherElements", [other, order], axis=axis) for other in given[1:])]


def _top_k(graph: Graph, equation: Any, value: str) -> list[str]:
    axis = equation.params.get("axis", len(equation.invars[0].aval.shape) - 1)
    found, places = graph.several("TopK", [value, graph.whole(equation.params["k"])], 2, axis=axis, largest=1, sorted=1)
    return [found, graph.cast(places, equation.outvars[1].aval.dtype)]


def _dynamic_slice(graph: Graph, equation: Any, value: str, *starts: str) -> str:
    for axis, (size, length) in enumerate(zip(equation.params["slice_sizes"], equation.invars[0].aval.shape, strict=True)):
        if size == length:
            continue  # wherever it is to start, it starts at 0
        first = _clipped(graph, graph.cast(starts[axis], np.int64), length - size)
        value = graph.node("Gather", [value, graph.node("Add", [first, graph.constant(np.arange(size))])], axis=axis)
    return value


def _dynamic_update_slice(graph: Graph, equation: Any, value: str, update: str, *starts: str) -> str:
    """Along each axis, every place of the operand reads the one of the update that would lie there; a mask says whether one does."""
    shape, sizes = (v.aval.shape for v in equation.invars[:2])
    mask = None
    for axis, (size, length) in enumerate(zip(sizes, shape, strict=True)):
        if size == length:
            continue
        first = _clipped(graph, graph.cast(starts[axis], np.int64), length - size)
        place = graph.node("Sub", [graph.constant(np.arange(length)), first])
        within = _clipped(graph, place, size - 1)
        update = graph.node("Gather", [update, within], axis=axis)
        lies = graph.reshaped(graph.node("Equal", [place, within]), [length if i == axis else 1 for i in range(len(shape))])
        mask = lies if mask is None else graph.node("And", [mask, lies])
    return update if mask is None else graph.node("Where", [mask, update, value])


class _Windows:
    """Where a gather reads or a scatter writes: of each operand axis the window's size, and the place of each of its elements."""

    def __init__(self, graph: Graph, equation: Any, indices: str, sizes: Sequence[int], names: tuple[str, str, str]) -> None:
        """``names``: what the dimension numbers call the indexed axes, the batched ones, and those of the indices that go with them."""
        numbers = equation.params["dimension_numbers"]
        along, batched, beside = (list(getattr(numbers, name, ())) for name in names)
        shape = equation.invars[0].aval.shape
        self.graph, self.sizes = graph, sizes
        self.mode = str(equation.params["mode"]).rpartition(".")[2]
        self.batch = tuple(equation.invars[1].aval.shape[:-1])
        # A window that is narrower than its axis, and not indexed, starts at 0.
        narrow = [d for d in range(len(shape)) if d not in (*along, *batched) and sizes[d] != shape[d]]
        self.axes = [*batched, *along, *narrow]
        self.rest = [d for d in range(len(shape)) if d not in self.axes]
        self.order = [*self.axes, *self.rest]
        self._starts = graph.cast(indices, np.int64)
        self._limits = np.array([shape[d] - sizes[d] for d in along], np.int64)
        coordinates = [np.indices(self.batch)[axis][..., None] for axis in beside]
        self._before = [graph.constant(array.astype(np.int64)) for array in coordinates]
        self._after = [graph.constant(np.zeros((*self.batch, len(narrow)), np.int64))] if narrow else []

    def places(self) -> str:
        """int64 [batch…, the windows of ``axes``…, number of axes]."""
        starts = self._starts if self.mode == "PROMISE_IN_BOUNDS" else _clipped(self.graph, self._starts, self._limits)
        parts = [*self._before, starts, *self._after]
        starts = parts[0] if len(parts) == 1 else self.graph.node("Concat", parts, axis=-1)
        widths = [self.sizes[d] for d in self.axes]
        starts = self.graph.reshaped(starts, (*self.batch, *[1] * len(widths), len(widths)))
        if set(widths) <= {1}:
            return starts
        return self.graph.node("Add", [starts, self.graph.constant(np.moveaxis(np.indices(widths), 0, -1).astype(np.int64))])

    def inside(self, shape: Sequence[int]) -> str | None:
        """Whether each window lies within the operand, as ``shape`` (batch axes and ones); None where it always does."""
        if self.mode != "FILL_OR_DROP":
            return None
        same = self.graph.node("Equal", [self._starts, _clipped(self.graph, self._starts, self._limits)])
        whole = self.graph.node("ReduceMin", [self.graph.cast(same, np.int32), self.graph.whole(-1)], keepdims=0)
        return self.graph.reshaped(self.graph.cast(whole, np.bool_), shape)


def _gather(graph: Graph, equation: Any, value: str, indices: str) -> str:
    p, numbers = equation.params, equation.params["dimension_numbers"]
    windows = _Windows(
        graph, equation, indices, p["slice_sizes"], ("start_index_map", "operand_batching_dims", "start_indices_batching_dims")
    )
    sizes, batch, out = p["slice_sizes"], windows.batch, equation.outvars[0].aval
    if len(windows.axes) == 1 and sizes[windows.axes[0]] == 1:
        # Whole slices along one axis, as x[i] and jnp.take make them.
        (axis,) = windows.axes
        found = graph.turned(graph.node("Gather", [value, graph.reshaped(windows.places(), batch)], axis=axis), [
            *range(axis, axis + len(batch)), *range(axis), *range(axis + len(batch), len(windows.rest) + len(batch))
        ])  # fmt: skip
    else:
        found = graph.node("GatherND", [graph.turned(value, windows.order), windows.places()])
    gone = {*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ())}
    kept = [d for d in windows.order if d not in gone]
    found = graph.reshaped(found, [*batch, *(sizes[d] for d in kept)])
    offsets = list(numbers.offset_dims)
    others = [i for i in range(len(out.shape)) if i not in offsets]
    perm = [0] * len(out.shape)
    for i, place in enumerate(others):
        perm[place] = i
    for place, d in zip(offsets, sorted(kept), strict=True):
        perm[place] = len(batch) + kept.index(d)
    found = graph.turned(found, perm)
    inside = windows.inside([out.shape[i] if i in others else 1 for i in range(len(out.shape))])
    return found if inside is None else graph.node("Where", [inside, found, graph.constant(_filler(p["fill_value"], out.dtype))])


def _scatter(reduction: str) -> Primitive:
    def apply(graph: Graph, equation: Any, value: str, indices: str, updates: str) -> str:
        numbers, operand, given = equation.params["dimension_numbers"], equation.invars[0].aval, equation.invars[2].aval
        gone = {*numbers.inserted_window_dims, *getattr(numbers, "operand_batching_dims", ())}
        windowed = [d for d in range(len(operand.shape)) if d not in gone]
        at = dict(zip(windowed, numbers.update_window_dims, strict=True))
        sizes = [given.shape[at[d]] if d in at else 1 for d in range(len(operand.shape))]
        names = ("scatter_dims_to_operand_dims", "operand_batching_dims", "scatter_indices_batching_dims")
        windows = _Windows(graph, equation, indices, sizes, names)
        batch_axes = [i for i in range(len(given.shape)) if i not in numbers.update_window_dims]
        updates = graph.turned(updates, [*batch_axes, *(at[d] for d in windows.order if d in at)])
        shape = [*windows.batch, *(sizes[d] for d in windows.order)]
        updates = graph.reshaped(updates, shape)
        turned, places = graph.turned(value, windows.order), windows.places()
        inside = windows.inside([*windows.batch, *[1] * len(windows.order)])
        if inside is not None:
            # What is dropped leaves what is there.
            still = graph.node("GatherND", [turned, places]) if reduction == "none" else graph.constant(_neutral(reduction, operand.dtype))
            updates = graph.node("Where", [inside, updates, still])
        made = graph.node("ScatterND", [turned, places, updates], reduction=reduction)
        return graph.turned(made, [windows.order.index(d) for d in range(len(windows.order))])

    return apply


def _clipped(graph: Graph, value: str, highest: int | Array) -> str:
    """Of int64: not below 0 and not above ``highest``."""
    lower = graph.node("Max", [value, graph.constant(np.asarray(0, np.int64))])
    return graph.node("Min", [lower, graph.constant(np.asarray(highest, np.int64))])


def _filler(given: Any, dtype: Any) -> Array:
    """JAX's: NaN, the lowest of a signed type, the highest of an unsigned one, True."""
    if given is not None:
        return np.asarray(given, dtype)
    kind = np.dtype(dtype).kind
    return np.asarray(
        {"i": lambda: np.iinfo(dtype).min, "u": lambda: np.iinfo(dtype).max, "b": lambda: True}.get(kind, lambda: np.nan)(), dtype
    )


def _neutral(reduction: str, dtype: Any) -> Array:
    limits: Any = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    return np.asarray({"add": 0, "mul": 1, "min": limits.max, "max": limits.min}[reduction], dtype)


PRIMITIVES: dict[str, Primitive] = {
    "sort": _sort, "top_k": _top_k, "dynamic_slice": _dynamic_slice, "dynamic_update_slice": _dynamic_update_slice, "gather": _gather,
    "scatter": _scatter("none"),
    **{f"scatter{dash}{name}": _scatter(name) for name in ("add", "mul", "min", "max") for dash in "-_"},
}  # fmt: skip
