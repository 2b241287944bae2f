"""``quantize``: static quantization to QDQ ONNX, calibrated on data.

The steps, in order: where (``placement``), what range (``calibrate``), which grid (``grids``), then QuantizeLinear and
DequantizeLinear are written into the graph (``qdq``) and the integer view proves that every accumulator stays in 32 bits.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from gatewright.errors import ModelError, PassError, UsageError, nearest
from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.edit import Editor
from gatewright.frontend.integer import FloatStep, Grid, plan
from gatewright.frontend.model import Model
from gatewright.frontend.queries import integer

from . import rewrite
from .base import Effect, Pass, PassContext, PassResult
from .calibrate import Observed, calibrate
from .grids import GridKind, QuantizedConstant, activation_grid, quantize_weight
from .placement import Layer, Placement, place, strongly_tied
from .qdq import Writer
from .ranges import range_of
from .rewrite import Array

ACCUMULATOR = 2**31
"""Integer kernels accumulate in 32 bits: |acc| stays below this, proven."""

BIAS_LIMIT = 2**30
"""A bias on the accumulator's scale stays below this; where weights are tiny beside the bias, their scale is raised."""

CLOSE = 2.0
"""Operands of a Concat whose ranges differ by less than this factor share one grid: the join is then a plain copy."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Lossy. Widths are 2 to 16 bits. Layers in ``wide`` (names or patterns of nodes or outputs) take ``wide_bits``, those in ``exclude``
    stay float.

    Weights of a wide layer, and of one that reads it, are narrowed, and that is noted, where an accumulator would leave 32 bits.
    """

    name: ClassVar[str] = "quantize"
    effect: ClassVar[Effect] = "lossy"
    needs_data: ClassVar[bool] = True

    bits: int = 8
    weight_bits: int | None = None
    """None: as ``bits``."""
    grid: GridKind = "affine"
    per: Literal["tensor", "channel"] = "tensor"
    """Scales of weights: one, or one per output channel. Activations have one."""
    range: Literal["minmax", "percentile"] = "minmax"
    percentile: float = 99.99
    """Per cent of an activation's values that the grid covers at least. With range=percentile weights are clipped too, where that lowers
    their squared error."""
    wide: tuple[str, ...] = ()
    wide_bits: int = 16
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in ("bits", "weight_bits", "wide_bits"):
            value = getattr(self, option)
            if value is not None and not 2 <= value <= 16:
                raise UsageError(f"option {option!r} of pass 'quantize' is {value}; it takes 2 to 16")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"option 'percentile' of pass 'quantize' is {self.percentile:g}; it takes more than 50, up to 100")

    def run(self, model: Model, context: PassContext) -> PassResult:
        if context.data is None:
            raise PassError("quantize needs data to calibrate on", hint="give data=Dataset.load(…), or --data FILE")
        edited = model.copy_ir()
        edit = Editor(edited)
        _refuse(edited.graph)
        _splits_to_slices(edit)
        prepared = model.with_ir(edited)
        excluded, wide = _matcher(edited.graph, self.exclude, "exclude"), _matcher(edited.graph, self.wide, "wide")
        placement = place(edited.graph, lambda node: any(map(excluded, _names(node))))
        if not placement.points:
            raise PassError(f"{model.name} has no float32 operation with an integer form", hint="check exclude=")
        names = [v.name or "" for v in placement.points]
        seen = calibrate(prepared, names, context.data, histograms=self.range == "percentile", progress=context.progress)
        chooser = _Grids(self, placement, seen, wide)
        grids = chooser.choose()
        written = _Weights(self, edit, placement, grids, chooser.wide_values)
        writer = Writer(edit)
        written.write(writer)
        for value in placement.points:
            writer.activation(value, grids[value])
        canonicalize(edited)
        result = model.with_ir(edited)
        notes = [*chooser.notes, *written.notes, *proof(result)]
        details = {
            "samples": len(context.data), "dataset": context.data.digest, "points": len(names),
            "ranges": {name: [seen[name].low, seen[name].high] for name in names},
            "inputs": [given.text(name) for name, given in context.data.preparation.items()],
        }  # fmt: skip
        return PassResult(result, True, tuple(notes), details)

    @property
    def weights(self) -> int:
        return self.bits if self.weight_bits is None else self.weight_bits


def _refuse(graph: ir.Graph) -> None:
    for node in graph:
        if node.op_type == "QuantizeLinear":
            raise PassError(f"the model is quantized already (node {node.name!r})", hint="quantize the float model")
        if node.op_type == "BatchNormalization":
            raise PassError(f"node {node.name!r} (BatchNormalization) has no integer form", hint="run fuse first: fuse,quantize{…}")


def _splits_to_slices(edit: Editor) -> None:
    """Split by constant amounts: one Slice for each output, which moves integers like any movement."""
    for node in rewrite.nodes_of(edit.graph, "Split"):
        x = node.inputs[0]
        if x is None or not rewrite.is_float(x):
            continue
        axis, start = integer(node, "axis", 0), 0
        for value in tuple(node.outputs):
            size = rewrite.shape_of(value)[axis]
            assert value.dtype is not None
            name, shape = f"{value.name}_slice", rewrite.shape_of(value)
            amounts = {"start": start, "end": start + size, "axis": axis, "step": 1}
            inputs = [x, *(edit.constant(np.asarray([n], np.int64), f"{value.name}_{word}") for word, n in amounts.items())]
            made = rewrite.typed_node(edit, "Slice", inputs, name, name=name, shape=shape, dtype=value.dtype)
            edit.graph.insert_before(node, made)
            rewrite.adopt(edit.graph, made.outputs[0], value)
            start += size
        edit.graph.remove(node, safe=True)


def _names(node: ir.Node) -> list[str]:
    return [n for n in (node.name, *(v.name for v in node.outputs)) if n]


def _matcher(graph: ir.Graph, patterns: tuple[str, ...], option: str) -> Callable[[str], bool]:
    """Whether a name matches one of the patterns. Raises UsageError for a pattern that matches nothing."""
    known = [name for node in graph for name in _names(node)] + [v.name for v in graph.inputs if v.name]
    for pattern in patterns:
        if pattern not in known and not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise UsageError(f"{option}={pattern} names no node or output of the model", hint=nearest(pattern, known[:200], "names"))
    return lambda name: any(name == p or fnmatch.fnmatchcase(name, p) for p in patterns)


class _Grids:
    """The grid of every point."""

    def __init__(self, options: Quantize, placement: Placement, seen: dict[str, Observed], wide: Callable[[str], bool]) -> None:
        self.options, self.placement, self.seen, self.notes = options, placement, seen, list[str]()
        self.wide_values = {
            v for v in placement.points
            if wide(v.name or "") or any(wide(name) for node in placement.inside.get(v, []) for name in _names(node))
        }  # fmt: skip

    def choose(self) -> dict[ir.Value, Grid]:
        groups = self._joined(strongly_tied(self.placement))
        grids: dict[ir.Value, Grid] = {}
        for group in groups:
            observed = self._observed(group)
            if observed.high == observed.low == 0:
                self.notes.append(f"{group[0].name} is zero on all of the data; its scale is 1")
            bits = self.options.wide_bits if any(v in self.wide_values for v in group) else self.options.bits
            percentile = self.options.percentile if self.options.range == "percentile" else None
            grid = activation_grid(self.options.grid, bits, observed, self._non_negative(group), observed.clipped(percentile))
            grids.update(dict.fromkeys(group, grid))
        return grids

    def _observed(self, group: list[ir.Value]) -> Observed:
        total = self.seen[group[0].name or ""]
        for value in group[1:]:
            total = total.merge(self.seen[value.name or ""])
        return total

    def _non_negative(self, group: list[ir.Value]) -> bool:
        """Proven by the operators; of a graph input, seen: its range is the data's, on every grid."""
        return all(range_of(v)[0] >= 0 or (v.is_graph_input() and self.seen[v.name or ""].low >= 0) for v in group if not _moved(v, group))

    def _joined(self, groups: list[list[ir.Value]]) -> list[list[ir.Value]]:
        """Groups of a Concat's operands and result become one where their ranges are close and their signs equal."""
        home = {v: i for i, group in enumerate(groups) for v in group}
        merged = dict(enumerate(groups))
        for node in self.placement.joins:
            members = {home[v] for v in (*node.inputs, self._result(node)) if v in home}
            sizes = [max(-(o := self._observed(merged[i])).low, o.high) for i in members]
            signs = {self._non_negative(merged[i]) for i in members}
            wides = {any(v in self.wide_values for v in merged[i]) for i in members}
            constants = any(rewrite.real_constant(v) is not None for v in node.inputs)
            if len(members) < 2 or constants or len(signs) > 1 or len(wides) > 1 or min(sizes) <= 0 or max(sizes) / min(sizes) > CLOSE:
                continue
            first, *rest = sorted(members)
            for i in rest:
                merged[first] += merged.pop(i)
            for v in merged[first]:
                home[v] = first
        return list(merged.values())

    def _result(self, node: ir.Node) -> ir.Value:
        for value, nodes in self.placement.inside.items():
            if node in nodes:
                return value
        return node.outputs[0]


def _moved(value: ir.Value, group: list[ir.Value]) -> bool:
    """Whether ``value`` is a moved copy of another member of its group (its sign is that one's)."""
    producer = value.producer()
    return producer is not None and producer.inputs[:1] != () and producer.inputs[0] in group


class _Weights:
    """Weights, biases and constant operands."""

    def __init__(self, options: Quantize, edit: Editor, placement: Placement, grids: dict[ir.Value, Grid], wide: set[ir.Value]) -> None:
        self.options, self.edit, self.placement, self.grids, self.wide = options, edit, placement, grids, wide
        self.notes: list[str] = []

    def write(self, writer: Writer) -> None:
        too_wide: dict[str, tuple[int, int]] = {}
        """Layer name to the bits of its input and the most bits of its weights that are safe."""
        for layer in self.placement.layers:
            weight, fits = self._weight(layer)
            source = layer.node.inputs[0]
            assert source is not None
            if fits is not None:
                too_wide[layer.node.name or ""] = self.grids[source].bits, fits
                continue
            writer.constant(layer.node, 1, weight)
            unit = self.grids[source].scale.astype(np.float32) * weight.grid.scale
            for node, index in layer.biases:
                writer.bias(node, index, unit, 1 if node.op_type == "Add" and layer.node.op_type == "Conv" else None)
        if too_wide:
            first, (bits, _) = next(iter(too_wide.items()))
            smallest = min(fits for _, fits in too_wide.values())
            raise PassError(
                f"layer {first!r} could overflow its 32-bit accumulator with weights of {self.options.weights} bits"
                f" and inputs of {bits}" + (f", {len(too_wide) - 1} more layers too" if len(too_wide) > 1 else ""),
                hint=f"weight_bits={smallest} is proven safe" if smallest >= 2 else "use fewer bits",
            )
        for node, index in self.placement.constants:
            value = node.inputs[index]
            array = rewrite.real_constant(value)
            assert array is not None
            # Not a weight but an activation that never changes.
            bits = self.options.wide_bits if self._is_wide(node) else self.options.bits
            writer.constant(node, index, quantize_weight(array, self.options.grid, bits, None))

    def _is_wide(self, node: ir.Node) -> bool:
        return any(node in self.placement.inside.get(v, ()) for v in self.wide)

    def _weight(self, layer: Layer) -> tuple[QuantizedConstant, int | None]:
        """The weight at its width; or, where the accumulator could overflow, the most bits that are proven safe (0: none).

        A layer that is kept wide, or that reads one, takes those bits by itself.
        """
        node = layer.node
        array, source = rewrite.real_constant(node.inputs[1]), node.inputs[0]
        assert array is not None
        assert source is not None
        grid = self.grids[source]
        axis = layer.axis if self.options.per == "channel" else None
        bias = sum((self._bias(n, i, array.shape[layer.axis]) for n, i in layer.biases), np.zeros(array.shape[layer.axis]))
        floor = np.abs(bias) / (float(grid.scale) * BIAS_LIMIT)
        wanted = self.options.wide_bits if layer.output in self.wide else self.options.weights
        wide = layer.output in self.wide or source in self.wide
        for bits in range(wanted, 1, -1):
            found = quantize_weight(array, self.options.grid, bits, axis, floor, self.options.range == "percentile")
            if _reach(found, grid, bias, layer.axis) < ACCUMULATOR:
                if bits == wanted or wide:
                    if bits < wanted:
                        self.notes.append(f"{node.name}: weights take {bits} bits instead of {wanted}, so that the accumulator stays in 32")
                    return found, None
                return found, bits
        return found, 0

    def _bias(self, node: ir.Node, index: int, channels: int) -> Array:
        array = rewrite.real_constant(node.inputs[index])
        assert array is not None
        return np.broadcast_to(array.reshape(-1).astype(np.float64), (channels,))


def _reach(weight: QuantizedConstant, grid: Grid, bias: Array, axis: int) -> float:
    """The largest magnitude that any partial sum can have: Σ|w|·max|q − z| + |bias|."""
    rows = np.abs(np.moveaxis(weight.values, axis, 0).reshape(weight.values.shape[axis], -1)).sum(axis=1).astype(np.float64)
    zero = int(grid.zero_point)
    unit = float(grid.scale) * weight.grid.scale.astype(np.float64)
    return float((rows * max(abs(grid.lo - zero), abs(grid.hi - zero)) + np.abs(bias) / unit + 1).max(initial=0.0))


def proof(model: Model) -> list[str]:
    """The integer view of the result: every accumulator proven, and what stays float."""
    try:
        view = plan(model)
    except ModelError as error:
        raise PassError(f"quantize made a graph without an exact integer form: {error.message}", hint=error.hint) from error
    for op in view.integer_ops:
        reach = max(abs(op.accumulator[0]), abs(op.accumulator[1]))
        if op.kind in ("conv", "matmul", "average", "product") and reach >= ACCUMULATOR:
            raise PassError(f"layer {op.name!r} ({op.op}) could overflow its 32-bit accumulator: it reaches {reach}", hint="use fewer bits")
    edges = ("QuantizeLinear", "DequantizeLinear", "Clip")
    floats = [step.node for step in view.steps if isinstance(step, FloatStep) and step.node.op_type not in edges]
    notes = list(view.notes)
    if floats:
        listed = ", ".join(f"{n.name} ({n.op_type})" for n in floats[:8])
        notes.append(f"{len(floats)} nodes stay in float: {listed}{' …' if len(floats) > 8 else ''}")
    return notes
