"""``quantize``: static quantization to QDQ ONNX, calibrated on data.

The steps, in order: where (``placement``), what range (``calibrate``), which grid (``grids``), then QuantizeLinear and
DequantizeLinear are written into the graph (``qdq``) and the integer view proves that every accumulator stays in 32 bits.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from gatewright.errors import ModelError, PassError, UsageError, nearest
from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.edit import Editor
from gatewright.frontend.integer import FloatStep, Grid, plan
from gatewright.frontend.model import Model
from gatewright.frontend.queries import integer
from gatewright.frontend.walked import walks

from . import rewrite
from .base import Effect, Pass, PassContext, PassResult
from .bias import Corrections, add_biases, measured_corrections
from .calibrate import Observed, calibrate
from .clipping import RangeKind, best_grid
from .grids import GridKind, activation_grid
from .placement import LINEAR, Placement, place, strongly_tied
from .qdq import Writer
from .quantize_weights import ACCUMULATOR, Weights
from .ranges import range_of
from .rewrite import Array
from .trees import Trees

CLOSE = 2.0
"""Operands of a Concat whose ranges differ by less than this factor share one grid: the join is then a plain copy."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Lossy. Widths are 2 to 16 bits. Layers in ``wide`` (names or patterns of nodes or outputs) take ``wide_bits``, those in ``exclude``
    stay float.

    A model of trees becomes what the pass ``trees`` makes of it, with these bits.

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
    range: RangeKind = "minmax"
    """Of activations: all of it, or the part that ``percentile``, the squared error or the entropy keeps (``clipping.py``). Weights are
    clipped too, where that lowers their squared error, but for minmax."""
    percentile: float = 99.99
    """Per cent of an activation's values that the grid covers at least, with range=percentile."""
    wide: tuple[str, ...] = ()
    wide_bits: int = 16
    exclude: tuple[str, ...] = ()
    weight_bits_of: tuple[str, ...] = ()
    """``name:bits``: bits for the weights of single layers (names or patterns of nodes or outputs); the first that matches counts."""
    bias_correction: bool = False
    """Measure by how much rounding shifts each channel's mean, and take that out of its bias (``bias.py``)."""

    def __post_init__(self) -> None:
        for option in ("bits", "weight_bits", "wide_bits"):
            value = getattr(self, option)
            if value is not None and not 2 <= value <= 16:
                raise UsageError(f"option {option!r} of pass 'quantize' is {value}; it takes 2 to 16")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"option 'percentile' of pass 'quantize' is {self.percentile:g}; it takes more than 50, up to 100")
        for text in self.weight_bits_of:
            name, _, bits = text.rpartition(":")
            if not name or not bits.isdecimal() or not 2 <= int(bits) <= 16:
                raise UsageError(f"option 'weight_bits_of' of pass 'quantize' has {text!r}; it takes NAME:BITS with 2 to 16 bits")

    def run(self, model: Model, context: PassContext) -> PassResult:
        if context.data is None:
            raise PassError("quantize needs data to calibrate on", hint="give data=Dataset.load(…), or --data FILE")
        edited = model.copy_ir()
        edit = Editor(edited)
        _refuse(edited.graph)
        if any(walks(edited.graph)):
            # Their thresholds are their calibration; what stands around them is a scaler or a link, and stays float.
            found = Trees(bits=self.bits, leaf_bits=self.weights).run(model, context)
            if found.modified:
                told = "trees take bits and weight_bits; no other option of quantize is used"
                return replace(found, notes=(*found.notes, told))
        _splits_to_slices(edit)
        placement = self._place(edited.graph)
        if not placement.points:
            raise PassError(f"{model.name} has no float32 operation with an integer form", hint="check exclude=")
        if self.bias_correction:
            add_biases(edit, placement.layers)
            placement = self._place(edited.graph)
        prepared = model.with_ir(edited)
        names = [v.name or "" for v in placement.points]
        seen = calibrate(prepared, names, context.data, histograms=self.range != "minmax", progress=context.progress)
        details: dict[str, object] = {
            "samples": len(context.data), "dataset": context.data.digest, "points": len(names),
            "ranges": {name: [seen[name].low, seen[name].high] for name in names},
            "inputs": [given.text(name) for name, given in context.data.preparation.items()],
        }  # fmt: skip
        corrections = None
        if self.bias_correction:
            corrections = measured_corrections(
                prepared, placement.layers, lambda given: self._build(prepared, seen, given)[0], context.data, context.progress
            )
            details["output_shift"] = list(corrections.shift)
        result, notes = self._build(prepared, seen, corrections)
        return PassResult(result, True, (*notes, *(corrections.notes if corrections else ()), *proof(result)), details)

    def weights_of(self, model: Model) -> dict[str, tuple[Array, int]]:
        """The float weights that would become integers, and the axis of their output channels, by the layer's name."""
        edited = model.copy_ir()
        _refuse(edited.graph)
        _splits_to_slices(Editor(edited))
        arrays = {x.node.name or "": (rewrite.real_constant(x.node.inputs[1]), x.axis) for x in self._place(edited.graph).layers}
        return {name: (array, axis) for name, (array, axis) in arrays.items() if array is not None}

    def _place(self, graph: ir.Graph) -> Placement:
        excluded = _matcher(graph, self.exclude, "exclude")
        return place(graph, lambda node: any(map(excluded, _names(node))) or _weight_in_groups(node))

    def _build(self, prepared: Model, seen: dict[str, Observed], corrections: Corrections | None) -> tuple[Model, list[str]]:
        """The quantized model, from the float one and what was seen of it."""
        edited = prepared.copy_ir()
        edit = Editor(edited)
        wide = _matcher(edited.graph, self.wide, "wide")
        chosen = [(_matcher(edited.graph, (name,), "weight_bits_of"), bits) for name, bits in self._weight_bits_of]
        placement = self._place(edited.graph)
        if corrections is not None:
            corrections.apply(edit, placement.layers)
        chooser = _Grids(self, placement, seen, wide)
        grids = chooser.choose()
        weights = Weights(
            self, placement, grids, chooser.wide_values,
            lambda node: next((bits for named, bits in chosen if any(map(named, _names(node)))), None),
        )  # fmt: skip
        writer = Writer(edit)
        weights.write(writer)
        for value in placement.points:
            writer.activation(value, grids[value])
        canonicalize(edited)
        return prepared.with_ir(edited), [*chooser.notes, *weights.notes]

    @property
    def _weight_bits_of(self) -> list[tuple[str, int]]:
        pairs = [text.rpartition(":") for text in self.weight_bits_of]
        return [(name, int(bits)) for name, _, bits in pairs]

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


def _weight_in_groups(node: ir.Node) -> bool:
    """A product whose weight is integers with one scale for a group of inputs: no integer accumulator spans those, it stays float."""
    weight = node.inputs[1] if node.op_type in LINEAR and len(node.inputs) > 1 else None
    return weight is not None and weight.producer() is not None and rewrite.real_constant(weight) is None and rewrite.from_constants(weight)


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
            grid = self._grid(bits, observed, self._non_negative(group))
            grids.update(dict.fromkeys(group, grid))
        return grids

    def _grid(self, bits: int, observed: Observed, non_negative: bool) -> Grid:
        method, kind = self.options.range, self.options.grid
        if method in ("mse", "entropy"):
            return best_grid(method, kind, bits, observed, non_negative)
        percentile = self.options.percentile if method == "percentile" else None
        return activation_grid(kind, bits, observed, non_negative, observed.clipped(percentile))

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
