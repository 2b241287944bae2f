"""A graph cut along the axes that ``dependency.py`` found: classes of units removed from it, or silenced in it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError
from gatewright.frontend.edit import Editor
from gatewright.frontend.queries import constant, integer

from .dependency import PRODUCERS, Dependencies
from .rewrite import Array, real_constant


def remove(found: Dependencies, edit: Editor, removed: set[int]) -> None:
    """Cut these classes out of every initializer, shape and attribute; no axis may be ``emptied``."""
    keep = {value: [~np.isin(found.units.roots(axis), list(removed)) for axis in axes] for value, axes in found.axes.items()}
    for node in found.graph:
        _shrink_attributes(edit, node, keep)
    for value, masks in keep.items():
        if all(mask.all() for mask in masks):
            continue
        array = constant(value)
        if array is not None:
            for axis, mask in enumerate(masks):
                array = np.compress(mask, array, axis=axis)
            value.const_value = ir.Tensor(np.ascontiguousarray(array), dtype=value.dtype, name=value.name)
        value.shape = ir.Shape([int(mask.sum()) for mask in masks])


def _shrink_attributes(edit: Editor, node: ir.Node, keep: dict[ir.Value, list[Array]]) -> None:
    """What a node says about sizes beside its inputs' shapes."""
    x, y = node.inputs[0] if node.inputs else None, node.outputs[0]
    if x is None or x not in keep or y not in keep:
        return
    if node.op_type in ("Conv", "ConvTranspose") and integer(node, "group", 1) > 1:
        group, channels = integer(node, "group", 1), len(keep[x][1])
        if group == channels:
            node.attributes["group"] = ir.AttrInt64("group", int(keep[x][1].sum()))
    elif node.op_type == "Reshape":
        target = constant(node.inputs[1])
        assert target is not None
        changed = [int(t) if t <= 0 else int(mask.sum()) for t, mask in zip(target.tolist(), keep[y], strict=True)]
        if changed != target.tolist():
            node.replace_input_with(1, edit.constant(np.asarray(changed, np.int64), f"{node.name}_shape"))
    elif node.op_type == "Split":
        axis = integer(node, "axis", 0)
        sizes = [int(keep[v][axis].sum()) for v in node.outputs]
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            node.replace_input_with(1, edit.constant(np.asarray(sizes, np.int64), f"{node.name}_sizes"))
    elif node.op_type == "Slice":
        _shrink_slice(edit, node, keep[x])


def _shrink_slice(edit: Editor, node: ir.Node, masks: list[Array]) -> None:
    begin, end, axes = (constant(node.inputs[i]) for i in (1, 2, 3))
    assert begin is not None
    assert end is not None
    assert axes is not None
    new_begin, new_end = begin.copy(), end.copy()
    for i, axis in enumerate(axes.tolist()):
        if not masks[axis].all():
            stop = min(int(end[i]), len(masks[axis]))
            new_begin[i], new_end[i] = masks[axis][: int(begin[i])].sum(), masks[axis][:stop].sum()
    if not (np.array_equal(begin, new_begin) and np.array_equal(end, new_end)):
        node.replace_input_with(1, edit.constant(new_begin, f"{node.name}_start"))
        node.replace_input_with(2, edit.constant(new_end, f"{node.name}_end"))


def mask(found: Dependencies, removed: set[int]) -> None:
    """Silence these classes without removing them: zero in every weight that makes or reads them, and in biases and batch norms.

    The pruned model must equal this one: the definition of what structured pruning computes.
    """
    for node in found.graph:
        if node.op_type not in PRODUCERS | {"BatchNormalization"}:
            continue
        # A batch norm's mean and variance stay: scale 0 and bias 0 make it 0.
        for value in node.inputs[1:3]:
            if value is None or value not in found.axes or real_constant(value) is None:
                continue
            source, fill = storage(value)
            array = np.array(constant(source))
            for axis, units in enumerate(found.axes[value]):
                gone = np.isin(found.units.roots(units), list(removed))
                array[(slice(None),) * axis + (gone,)] = fill
            source.const_value = ir.Tensor(array, dtype=source.dtype, name=source.name)


def storage(value: ir.Value) -> tuple[ir.Value, int]:
    """The initializer behind a constant weight (itself, or what its DequantizeLinear reads), and what stands for zero in it."""
    if constant(value) is not None:
        return value, 0
    producer = value.producer()
    assert producer is not None
    source, zero = producer.inputs[0], constant(producer.inputs[2])
    assert source is not None
    assert zero is not None
    if np.any(zero != zero.reshape(-1)[0]):
        raise PassError(f"weight {value.name!r} has a zero point per channel", hint="prune the float model")
    return source, int(zero.reshape(-1)[0])
