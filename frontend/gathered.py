"""What finds or puts values by an index, said with Gather, comparisons and sums: ReverseSequence, ScatterElements and ScatterND at
constant places, TopK of short rows, Col2Im."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .edit import Editor, attribute, constant_of, input_of, shape_of
from .steps import Steps

TOP_COMPARISONS = 1 << 22
"""TopK compares every pair of a row: beyond so many comparisons another engine's kernel is better."""
_REDUCTIONS = {"add": "Add", "mul": "Mul", "max": "Max", "min": "Min"}
_MOST_ROUNDS = 8


def reverse_sequence(edit: Editor, node: ir.Node) -> bool:
    """Along the time axis a value of step t comes from step length − 1 − t, if that is one of the sequence."""
    x, shape, lengths = node.inputs[0], shape_of(node.inputs[0]), node.inputs[1]
    if x is None or shape is None or lengths is None or 0 in shape:
        return False
    time, batch = attribute(node, "time_axis", 0) % len(shape), attribute(node, "batch_axis", 1) % len(shape)
    new = Steps(edit, node)
    along = [1] * len(shape)
    along[batch] = shape[batch]
    length = new.reshape(lengths, *along)
    steps = new.constant(np.arange(shape[time]).reshape([-1 if i == time else 1 for i in range(len(shape))]))
    turned = new.op("Sub", new.op("Sub", length, new.constant(1)), steps)
    place = new.op("Where", new.op("Less", steps, length), turned, steps)
    whole = new.op("Expand", place, new.constant(shape))
    return new.finish(new.op("GatherElements", x, whole, axis=time))


def scatter_elements(edit: Editor, node: ir.Node) -> bool:
    x, places, shape = node.inputs[0], constant_of(input_of(node, 1)), shape_of(node.inputs[0])
    if x is None or places is None or not shape or not places.size:
        return False
    axis = attribute(node, "axis", 0) % len(shape)
    where = list(np.indices(places.shape))
    where[axis] = np.where(places < 0, places + shape[axis], places)
    return _scattered(edit, node, np.ravel_multi_index(where, shape).reshape(-1))


def scatter_nd(edit: Editor, node: ir.Node) -> bool:
    places, shape = constant_of(input_of(node, 1)), shape_of(node.inputs[0])
    if places is None or not shape or not places.size or 0 in shape:
        return False
    depth = places.shape[-1]
    own = [np.where(i < 0, i + n, i) for i, n in zip(np.moveaxis(places, -1, 0), shape, strict=False)]
    row = math.prod(shape[depth:])
    first = np.ravel_multi_index(own, shape[:depth]).reshape(-1, 1) * row
    return _scattered(edit, node, (first + np.arange(row)).reshape(-1))


def _scattered(edit: Editor, node: ir.Node, target: NDArray[np.int64]) -> bool:
    """``target``: for each of the flattened updates its place in the flattened data."""
    x, updates, shape = node.inputs[0], node.inputs[2], shape_of(node.inputs[0])
    reduction = attribute(node, "reduction", "none")
    if x is None or x.dtype is None or updates is None or shape is None:
        return False
    size, new = math.prod(shape), Steps(edit, node)
    flat, flat_updates = new.reshape(x, size), new.reshape(updates, len(target))
    if reduction == "none":
        # Of several for one place the last one stays.
        source = np.arange(size)
        source[target] = size + np.arange(len(target))
        joined = new.op("Concat", flat, flat_updates, axis=0)
        return new.finish(new.reshape(new.op("Gather", joined, new.constant(source), axis=0), *shape))
    rounds = _rounds(target, size)
    if len(rounds) > _MOST_ROUNDS:
        return False
    for update_of in rounds:
        hit = update_of >= 0
        taken = new.op("Gather", flat_updates, new.constant(np.maximum(update_of, 0)), axis=0)
        changed = new.op(_REDUCTIONS[reduction], flat, taken)
        flat = new.op("Where", new.constant(hit, np.bool_), changed, flat)
    return new.finish(new.reshape(flat, *shape))


def _rounds(target: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """For each place which update it takes (−1: none), as often as a place takes more than one."""
    found: list[NDArray[np.int64]] = []
    seen = np.zeros(size, np.int64)
    for update, place in enumerate(target.tolist()):
        if seen[place] == len(found):
            found.append(np.full(size, -1, np.int64))
        found[seen[place]][place] = update
        seen[place] += 1
    return found


def top_k(edit: Editor, node: ir.Node) -> bool:
    """The value of rank r is the one that r others go before; of equal ones the first goes before. Numbers only: no NaN."""
    x, count, shape = node.inputs[0], constant_of(input_of(node, 1)), shape_of(node.inputs[0])
    if x is None or count is None or not shape or x.dtype is None or 0 in shape:
        return False
    axis, k = attribute(node, "axis", -1) % len(shape), int(count.reshape(-1)[0])
    length = shape[axis]
    if math.prod(shape) * length > TOP_COMPARISONS or k < 1:
        return False
    new, rank = Steps(edit, node), len(shape)
    order = [i for i in range(rank) if i != axis] + [axis]
    rows = new.op("Transpose", x, perm=order) if order != list(range(rank)) else x
    around = [shape[i] for i in order[:-1]]
    column, row = new.reshape(rows, *around, length, 1), new.reshape(rows, *around, 1, length)
    better = "Greater" if attribute(node, "largest", 1) else "Less"
    # before[i, j]: j goes before i.
    earlier = new.constant(np.tri(length, length, -1, dtype=np.bool_), np.bool_)
    before = new.op("Or", new.op(better, row, column), new.op("And", new.op("Equal", row, column), earlier))
    ranks = new.op("ReduceSum", new.cast(before, ir.DataType.INT32), new.constant([rank]), keepdims=0)
    wanted = new.constant(np.arange(k).reshape(k, 1), np.int32)
    hit = new.cast(new.op("Equal", new.reshape(ranks, *around, 1, length), wanted), ir.DataType.INT32)
    places = new.op("ArgMax", hit, axis=rank, keepdims=0)
    values = new.op("GatherElements", rows, places, axis=rank - 1)
    if rows is not x:
        back = [order.index(i) for i in range(rank)]
        values, places = (new.op("Transpose", value, perm=back) for value in (values, places))
    return new.finish(values, places)


def col2im(edit: Editor, node: ir.Node) -> bool:
    """Each column adds its block where it came from: a transposed convolution with ones, one channel for each place in the block."""
    x, shape = node.inputs[0], shape_of(node.inputs[0])
    image, block = (constant_of(input_of(node, i)) for i in (1, 2))
    if x is None or x.dtype is None or shape is None or image is None or block is None:
        return False
    sizes, kernel = image.astype(int).tolist(), block.astype(int).tolist()
    rank = len(sizes)
    strides, dilations = (list(attribute(node, key, [1] * rank)) for key in ("strides", "dilations"))
    pads = list(attribute(node, "pads", [0] * (2 * rank)))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    grid = [(n + pads[i] + pads[i + rank] - r) // s + 1 for i, (n, r, s) in enumerate(zip(sizes, reach, strides, strict=True))]
    count = math.prod(kernel)
    channels = shape[1] // count
    if not 1 <= rank <= 3 or math.prod(grid) != shape[2]:
        return False
    new = Steps(edit, node)
    weight = np.tile(np.eye(count, dtype=x.dtype.numpy()).reshape(count, 1, *kernel), (channels, *[1] * (rank + 1)))
    # What the last block does not reach is output padding.
    whole = [n + pads[i] + pads[i + rank] for i, n in enumerate(sizes)]
    extra = [n - ((g - 1) * s + r) for n, g, s, r in zip(whole, grid, strides, reach, strict=True)]
    made = new.op(
        "ConvTranspose", new.reshape(x, shape[0], shape[1], *grid), new.constant(weight, weight.dtype), kernel_shape=kernel,
        strides=strides, dilations=dilations, pads=pads, group=channels, output_padding=extra,
    )  # fmt: skip
    return new.finish(made)


RULES: dict[str, Callable[[Editor, ir.Node], bool]] = {
    "ReverseSequence": reverse_sequence, "ScatterElements": scatter_elements, "ScatterND": scatter_nd, "TopK": top_k, "Col2Im": col2im,
}  # fmt: skip
