"""``trees``: forests as integer matrix products, so that what runs quantized networks runs them: three layers and no table.

    z = (x − offset) / step, quantized        in steps of each feature's own; on the host of an FPGA
    d = clamp(t + 1 − z, 0, 1)                1 where z <= t: z and t are integers          one −1 in each column
    p = clamp(Σ ±d + 1 − number of +, 0, 1)   1 where every answer on a leaf's way is right
    y = Σ p·value                             what the leaves that are reached add

This is the GEMM strategy of Nakandala et al., OSDI 2020 ("A Tensor Compiler for Unified Machine Learning Prediction Serving"), where the
comparisons are exact because everything is an integer. Only two things are rounded: features, to ``bits`` over the range of each
one's own thresholds (so no data is needed), and what leaves add, to ``leaf_bits``; both steps are powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError, UsageError
from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.edit import Editor
from gatewright.frontend.integer import Grid, plan
from gatewright.frontend.model import Model
from gatewright.frontend.queries import INTEGER_BOUNDS
from gatewright.frontend.walked import Tree, Walk, walks

from . import rewrite
from .base import Effect, Pass, PassContext, PassResult
from .grids import QuantizedConstant, covering_exponent, storage
from .qdq import Writer
from .rewrite import Array

UNROLLED = 4096
"""Products with constants that high-level synthesis unrolls: trees stand in one layer as long as it has no more."""
LARGEST = 1 << 24
"""Weights of one tree's layer."""
OUTPUT_BITS = 16


@dataclass(frozen=True)
class Trees(Pass):
    """Lossy: a number less than a step away from a threshold may count as equal to it."""

    name: ClassVar[str] = "trees"
    effect: ClassVar[Effect] = "lossy"

    bits: int = 8
    """Of the features."""
    leaf_bits: int = 8
    """Of what each leaf adds."""

    def __post_init__(self) -> None:
        for option in ("bits", "leaf_bits"):
            if not 2 <= getattr(self, option) <= 16:
                raise UsageError(f"option {option!r} of pass 'trees' is {getattr(self, option)}; it takes 2 to 16")

    def run(self, model: Model, context: PassContext) -> PassResult:
        edited = model.copy_ir()
        notes = to_integers(edited, self.bits, self.leaf_bits)
        if not notes:
            return PassResult(model, False, (f"{model.name} has no trees",))
        canonicalize(edited)
        result = model.with_ir(edited)
        return PassResult(result, True, (*notes, *plan(result).notes))


def to_integers(model: ir.Model, bits: int, leaf_bits: int) -> tuple[str, ...]:
    """Every forest of ``model`` as integer products, in place; what was done, empty where there is none.

    Raises PassError for trees that no layer holds.
    """
    edit = Editor(model)
    found = tuple(walk for walk in walks(model.graph) if any(len(tree.feature) for tree in walk.trees))
    notes = tuple(note for walk in found for note in _Forest(edit, walk, bits, leaf_bits).write())
    rewrite.remove_dead(model.graph)
    return notes


class _Forest:
    """One forest on its way to integers."""

    def __init__(self, edit: Editor, walk: Walk, bits: int, leaf_bits: int) -> None:
        self.edit, self.walk, self.writer = edit, walk, Writer(edit)
        self.trees = tuple(tree for tree in walk.trees if len(tree.feature))
        self.always = np.sum([tree.values[0] for tree in walk.trees if not len(tree.feature)], axis=0)
        """What trees that ask nothing add."""
        self.base = walk.node.name or "trees"
        dtype, narrow = storage(bits, signed=False)
        highest = (1 << bits) - 1 if narrow else INTEGER_BOUNDS[dtype][1]
        self.features = Grid(dtype, np.asarray(1, np.float32), np.asarray(0, np.int64), 0, highest)
        self.leaf_bits = leaf_bits
        self.rows = rewrite.shape_of(walk.x)[0]
        self.offset, self.step = _steps(self.trees, rewrite.shape_of(walk.x)[1], self.features.hi)

    def write(self) -> Iterator[str]:
        """The nodes before the walk's last one, whose output they take over; then what to tell."""
        trees, graph = self.trees, self.edit.graph
        bit = Grid(ir.DataType.UINT8, np.asarray(1, np.float32), np.asarray(0, np.int64), 0, 255)
        x = self.walk.x
        if x.dtype != ir.DataType.FLOAT:
            x = self._op("Cast", [x], "float", len(self.offset), to=ir.DataType.FLOAT.value)
        z = self._op("Sub", [x, self._constant(self.offset, "offset")], "centred", len(self.offset))
        z = self._op("Mul", [z, self._constant(1 / self.step, "per_step")], "steps", len(self.offset))
        # Beyond the outermost thresholds every number is alike.
        z = self._op("Clip", [z, self._constant(0, "lowest"), self._constant(self.features.hi, "highest")], "within", len(self.offset))
        self.writer.activation(z, self.features)
        z = self._dequantized(z)
        chosen: list[ir.Value] = []
        for group in grouped(trees, len(self.offset)):
            answers = self._layer(z, *self._questions(group), bit)
            path = _diagonal([tree.path for tree in group])
            chosen.append(self._layer(answers, path, 1 - (path > 0).sum(axis=0), bit))
        leaves = chosen[0]
        if len(chosen) > 1:
            leaves = self._op("Concat", chosen, "leaves", sum(len(tree.values) for tree in trees), axis=1)
            self.writer.activation(leaves, bit)
            leaves = self._dequantized(leaves)
        values = np.concatenate([tree.values for tree in trees]).astype(np.float64)
        grid, steps = _leaf_grid(values, self.leaf_bits)
        ends = np.cumsum([len(tree.values) for tree in trees])[:-1]
        always = np.rint(self.always / grid.scale).astype(np.int64)
        sums = [np.sum([part.min(0) for part in np.split(steps, ends)], 0), np.sum([part.max(0) for part in np.split(steps, ends)], 0)]
        total = self._product(leaves, QuantizedConstant(steps, grid), np.broadcast_to(always, steps.shape[1]), "sum")
        result = _sum_grid(int((sums[0] + always).min()), int((sums[1] + always).max()), float(grid.scale))
        self.walk.node.replace_input_with(0, None)
        rewrite.adopt(graph, total, self.walk.node.outputs[0])
        self.writer.activation(total, result)
        yield from self._told(grid, result, len(chosen))

    def _told(self, leaf: Grid, result: Grid, groups: int) -> Iterator[str]:
        trees = self.trees
        asked, leaves = sum(len(tree.feature) for tree in trees), sum(len(tree.values) for tree in trees)
        yield (
            f"{len(trees)} trees with {asked} comparisons and {leaves} leaves are {2 * groups + 1} integer products; "
            f"features in {self.features.bits} bits, leaves in steps of {float(leaf.scale):g}"
        )
        merged = self._merged()
        if merged:
            yield f"thresholds on the same step as another one of their feature: {merged}; more bits keep them apart"
        if float(result.scale) != float(leaf.scale):
            yield f"sums of {OUTPUT_BITS} bits are rounded to {float(result.scale):g}"
        if self.walk.asks_nan:
            yield "missing values (NaN) have no integer: samples must be complete"

    def _questions(self, group: Sequence[Tree]) -> tuple[Array, Array]:
        """Weights [features, comparisons] and biases: t + 1 − z, at least 1 where z <= t."""
        feature = np.concatenate([tree.feature for tree in group])
        threshold = np.concatenate([tree.threshold for tree in group])
        weight = np.zeros((len(self.offset), len(feature)), np.int64)
        weight[feature, np.arange(len(feature))] = -1
        return weight, self._limits(feature, threshold) + 1

    def _limits(self, feature: Array, threshold: Array) -> Array:
        """t as integers: each threshold rounded as the numbers are that it is compared with, in float32.

        A threshold parts two neighbouring float32. Data often holds exactly the rounder one of them (4.9, or 3 for "less than 3"):
        that one always goes the right way, the other one's neighbours within a step may not.
        """
        at, above = _parted(threshold)
        offset, per_step = self.offset.astype(np.float32)[feature], (1 / self.step).astype(np.float32)[feature]
        rounded = [np.rint((ends - offset) * per_step) for ends in (at, above)]
        is_above = [len(str(high)) < len(str(low)) for low, high in zip(at, above, strict=True)]
        t = np.where(is_above, rounded[1] - 1, rounded[0])
        return np.asarray(np.clip(t, -1, self.features.hi).astype(np.int64))

    def _merged(self) -> int:
        """Thresholds that are no longer told from another one."""
        feature = np.concatenate([tree.feature for tree in self.trees])
        threshold = np.concatenate([tree.threshold for tree in self.trees])
        before, after = (set(zip(feature.tolist(), t.tolist(), strict=True)) for t in (threshold, self._limits(feature, threshold)))
        return len(before) - len(after)

    def _layer(self, x: ir.Value, weight: Array, bias: Array, grid: Grid) -> ir.Value:
        """clamp(x·weight + bias, 0, 1) in integers, dequantized."""
        unit = Grid(ir.DataType.INT8, np.asarray(1, np.float32), np.asarray(0, np.int64), -128, 127)
        total = self._product(x, QuantizedConstant(weight, unit), bias, "answers")
        ends = [self._constant(np.asarray(end), f"end_{end}") for end in (0, 1)]
        clamped = self._op("Clip", [total, *ends], "bits", weight.shape[1])
        self.writer.activation(clamped, grid)
        return self._dequantized(clamped)

    def _product(self, x: ir.Value, weight: QuantizedConstant, bias: Array, what: str) -> ir.Value:
        real = (weight.values * weight.grid.scale).astype(np.float32)
        inputs = [x, self._constant(real, f"{what}_weight"), self._constant(bias * weight.grid.scale, f"{what}_bias")]
        made = self._op("Gemm", inputs, what, real.shape[1])
        node = made.producer()
        assert node is not None
        self.writer.constant(node, 1, weight)
        self.writer.bias(node, 2, np.asarray(weight.grid.scale, np.float32), None)
        return made

    def _op(self, op: str, inputs: Sequence[ir.Value], what: str, width: int, **attributes: int) -> ir.Value:
        name = f"{self.base}_{what}"
        node = rewrite.typed_node(
            self.edit, op, inputs, name, name=name, shape=(self.rows, width), dtype=ir.DataType.FLOAT, attributes=attributes
        )
        self.edit.graph.insert_before(self.walk.node, node)
        return node.outputs[0]

    def _dequantized(self, value: ir.Value) -> ir.Value:
        """What ``Writer.activation`` left behind ``value``."""
        while (reader := rewrite.sole_reader(value)) is not None:
            value = reader.outputs[0]
        return value

    def _constant(self, array: Array | int, what: str) -> ir.Value:
        return self.edit.constant(np.asarray(array, np.float32), f"{self.base}_{what}")


def grouped(trees: Sequence[Tree], features: int) -> Iterator[list[Tree]]:
    """Neighbouring trees whose layers stay within ``UNROLLED``; a larger tree stands alone. Raises PassError for one beyond LARGEST."""
    group: list[Tree] = []
    asked = leaves = 0
    for number, tree in enumerate(trees):
        own, ends = tree.path.shape
        if max(features, ends) * own > LARGEST:
            raise PassError(
                f"tree {number} has {own} comparisons and {ends} leaves, and the product of the two is beyond what one layer takes",
                hint="train it with fewer leaves (max_depth, max_leaf_nodes)",
            )
        if group and (asked + own) * max(features, leaves + ends) > UNROLLED:
            yield group
            group, asked, leaves = [], 0, 0
        group.append(tree)
        asked, leaves = asked + own, leaves + ends
    yield group


def _diagonal(blocks: Sequence[Array]) -> Array:
    """The blocks along the diagonal, zeros elsewhere: int64."""
    rows, columns = (sum(block.shape[axis] for block in blocks) for axis in (0, 1))
    whole = np.zeros((rows, columns), np.int64)
    row = column = 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return whole


def _steps(trees: Sequence[Tree], features: int, levels: int) -> tuple[Array, Array]:
    """Offset and step of each feature, float64: a power of two for which all its thresholds lie within 1 … levels − 1 steps."""
    offset, step = np.zeros(features), np.ones(features)
    asked = np.concatenate([tree.feature for tree in trees])
    thresholds = np.concatenate([tree.threshold for tree in trees])
    finite = np.isfinite(thresholds)
    for feature in np.unique(asked[finite]):
        own = thresholds[finite & (asked == feature)]
        span = max(float(own.max() - own.min()), abs(float(own.max())) * 2.0**-20, 2.0**-60)
        exponent = math.ceil(math.log2(span / (levels - 3)))
        step[feature] = 2.0**exponent
        offset[feature] = (math.floor(own.min() / step[feature]) - 1) * step[feature]
    return offset, step


def _parted(threshold: Array) -> tuple[Array, Array]:
    """The largest float32 that is no larger than each threshold, and the next one."""
    near = threshold.astype(np.float32)
    at = np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)
    return at, np.nextafter(at, np.float32(np.inf))


def _leaf_grid(values: Array, bits: int) -> tuple[Grid, Array]:
    """A signed power-of-two grid, and the leaves on it as integers."""
    dtype, _ = storage(bits, signed=True)
    hi = (1 << (bits - 1)) - 1
    exponent = covering_exponent(float(np.abs(values).max()), hi)
    steps = np.clip(np.rint(np.ldexp(values, -exponent)), -hi, hi).astype(np.int64)
    lo, top = INTEGER_BOUNDS[dtype]
    return Grid(dtype, np.asarray(2.0**exponent, np.float32), np.asarray(0, np.int64), lo, top), steps


def _sum_grid(low: int, high: int, scale: float) -> Grid:
    """Where sums of low … high steps are kept: steps of the same size wherever ``OUTPUT_BITS`` hold them."""
    signed = low < 0
    dtype, _ = storage(OUTPUT_BITS, signed)
    lo, hi = INTEGER_BOUNDS[dtype]
    while low < lo or high > hi:
        low, high, scale = math.floor(low / 2), math.ceil(high / 2), scale * 2
    return Grid(dtype, np.asarray(scale, np.float32), np.asarray(0, np.int64), lo, hi)
