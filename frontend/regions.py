"""RoiAlign and DeformConv said with Gather: values at places that the model computes, each a sum of its four neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from .edit import Editor, attribute, input_of, shape_of
from .steps import Steps

MOST_ELEMENTS = 1 << 28
"""Of all values that the samples of all bins take, before they are summed."""
Taps = list[tuple[ir.Value, ir.Value]]
"""Of one axis: whole places (floats inside the axis) and their shares."""


def _number(new: Steps, value: Any) -> ir.Value:
    return new.constant(value, np.float32)


def roi_align(edit: Editor, node: ir.Node) -> bool:
    """X [N, C, H, W] in the boxes rois [R, 4] (x1, y1, x2, y2) of the samples [R]; as many samples of a bin as ``sampling_ratio`` says.

    Left as it is: a ratio of 0, by which each box says how often it is sampled when the model runs. The largest of a bin (mode max) is
    that of the neighbours' values times their shares, not of sums of them: so ONNX has it.
    """
    x, rois, sample = (input_of(node, i) for i in range(3))
    shape, boxes, ratio = shape_of(x), shape_of(rois), attribute(node, "sampling_ratio", 0)
    if x is None or x.dtype != ir.DataType.FLOAT or shape is None or boxes is None or ratio < 1:
        return False
    elements = max(boxes[0], 1) * max(shape[1], 1) * math.prod(attribute(node, f"output_{side}", 1) * ratio for side in ("height", "width"))
    if elements > MOST_ELEMENTS:
        return False
    new = Steps(edit, node)
    largest = attribute(node, "mode", "avg") == "max"
    half = attribute(node, "coordinate_transformation_mode", "half_pixel") == "half_pixel"
    sizes = attribute(node, "output_height", 1), attribute(node, "output_width", 1)
    scaled = new.op("Mul", rois, _number(new, attribute(node, "spatial_scale", 1.0)))
    if half:
        scaled = new.op("Sub", scaled, _number(new, 0.5))
    axes: list[Taps] = []
    for axis, (size, bins) in enumerate(zip(shape[2:], sizes, strict=True)):
        start, end = (new.op("Gather", scaled, new.constant([column]), axis=1) for column in (1 - axis, 3 - axis))
        extent = new.op("Sub", end, start)
        if not half:
            extent = new.op("Max", extent, _number(new, 1))
        width = new.op("Div", extent, _number(new, bins))
        steps = (np.arange(bins)[:, None] + (np.arange(ratio) + 0.5) / ratio).reshape(1, -1)
        axes.append(_clamped(new, new.op("Add", start, new.op("Mul", width, _number(new, steps))), size))
    rows, columns = sizes[0] * ratio, sizes[1] * ratio
    first = new.op("Mul", new.cast(sample, ir.DataType.INT64), new.constant(shape[2] * shape[3]))
    values = new.reshape(new.op("Transpose", x, perm=[0, 2, 3, 1]), shape[0] * shape[2] * shape[3], shape[1])
    total: ir.Value | None = None
    for (y, y_share), (across, x_share) in itertools.product(*axes):
        place = new.op(
            "Add", new.op("Mul", new.reshape(y, boxes[0], rows, 1), _number(new, shape[3])), new.reshape(across, boxes[0], 1, columns)
        )
        index = new.op("Add", new.cast(place, ir.DataType.INT64), new.reshape(first, boxes[0], 1, 1))
        share = new.op("Mul", new.reshape(y_share, boxes[0], rows, 1, 1), new.reshape(x_share, boxes[0], 1, columns, 1))
        value = new.op("Mul", new.op("Gather", values, index, axis=0), share)
        total = value if total is None else new.op("Max" if largest else "Add", total, value)
    apart = new.reshape(total, boxes[0], sizes[0], ratio, sizes[1], ratio, shape[1])
    pooled = new.op("ReduceMax" if largest else "ReduceMean", apart, new.constant([2, 4]), keepdims=0)
    return new.finish(new.op("Transpose", pooled, perm=[0, 3, 1, 2]))


def _clamped(new: Steps, place: ir.Value, size: int) -> Taps:
    """Up to one place outside the axis the value at its end counts, beyond none."""
    inside = new.op("And", new.op("GreaterOrEqual", place, _number(new, -1)), new.op("LessOrEqual", place, _number(new, size)))
    place = new.op("Clip", place, _number(new, 0), _number(new, size - 1))
    below = new.op("Floor", place)
    counts = new.cast(inside, ir.DataType.FLOAT)
    share = new.op("Mul", new.op("Sub", place, below), counts)
    above = new.op("Min", new.op("Add", below, _number(new, 1)), _number(new, size - 1))
    return [(below, new.op("Sub", counts, share)), (above, share)]


def deform_conv(edit: Editor, node: ir.Node) -> bool:
    """A convolution whose taps lie where ``offset`` moves them: [N, groups·taps·2, *out], the first axis' offset before the second's."""
    x, w, offset, bias, mask = (input_of(node, i) for i in range(5))
    shape, kernel, moves, out = shape_of(x), shape_of(w), shape_of(offset), shape_of(node.outputs[0])
    if x is None or w is None or offset is None or shape is None or kernel is None or moves is None or out is None:
        return False
    if len(shape) != 4 or x.dtype != ir.DataType.FLOAT or 0 in (*shape, *out):
        return False
    new, groups, parts = Steps(edit, node), attribute(node, "group", 1), attribute(node, "offset_group", 1)
    taps, places = math.prod(kernel[2:]), math.prod(out[2:])
    strides, dilations = attribute(node, "strides", (1, 1)), attribute(node, "dilations", (1, 1))
    pads = attribute(node, "pads", (0, 0, 0, 0))
    own = new.reshape(offset, shape[0], parts, taps, 2, places)
    axes: list[Taps] = []
    for axis in (0, 1):
        at = np.arange(out[2 + axis]) * strides[axis] - pads[axis]
        grid = np.broadcast_to(at[:, None] if axis == 0 else at, out[2:]).reshape(1, -1)
        reach = np.arange(kernel[2 + axis]) * dilations[axis]
        tap = np.broadcast_to(reach[:, None] if axis == 0 else reach, kernel[2:]).reshape(-1, 1)
        moved = new.reshape(new.op("Gather", own, new.constant([axis]), axis=3), shape[0], parts, taps, places)
        axes.append(_zero_outside(new, new.op("Add", moved, _number(new, tap + grid)), shape[2 + axis]))
    values = new.reshape(x, shape[0], parts, shape[1] // parts, shape[2] * shape[3])
    wide = new.constant((shape[0], parts, shape[1] // parts, taps * places))
    total: ir.Value | None = None
    for (y, y_share), (across, x_share) in itertools.product(*axes):
        place = new.cast(new.op("Add", new.op("Mul", y, _number(new, shape[3])), across), ir.DataType.INT64)
        index = new.op("Expand", new.reshape(place, shape[0], parts, 1, taps * places), wide)
        share = new.reshape(new.op("Mul", y_share, x_share), shape[0], parts, 1, taps * places)
        value = new.op("Mul", new.op("GatherElements", values, index, axis=3), share)
        total = value if total is None else new.op("Add", total, value)
    if mask is not None:
        assert total is not None
        total = new.op("Mul", total, new.reshape(mask, shape[0], parts, 1, taps * places))
    columns = new.reshape(total, shape[0], groups, kernel[1] * taps, places)
    product = new.op("MatMul", new.reshape(w, 1, groups, kernel[0] // groups, kernel[1] * taps), columns)
    result = new.reshape(product, *out)
    return new.finish(result if bias is None else new.op("Add", result, new.reshape(bias, 1, kernel[0], 1, 1)))


def _zero_outside(new: Steps, place: ir.Value, size: int) -> Taps:
    """The two neighbours of a place; one that lies outside counts as nothing."""
    below = new.op("Floor", place)
    share = new.op("Sub", place, below)
    found = []
    for tap, part in ((below, new.op("Sub", _number(new, 1), share)), (new.op("Add", below, _number(new, 1)), share)):
        inside = new.op("And", new.op("GreaterOrEqual", tap, _number(new, 0)), new.op("LessOrEqual", tap, _number(new, size - 1)))
        found.append(
            (new.op("Clip", tap, _number(new, 0), _number(new, size - 1)), new.op("Mul", part, new.cast(inside, ir.DataType.FLOAT)))
        )
    return found


RULES: dict[str, Callable[[Editor, ir.Node], bool]] = {"RoiAlign": roi_align, "DeformConv": deform_conv}
