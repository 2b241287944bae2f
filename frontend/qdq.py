"""Quantized graphs in one form: QuantizeLinear and DequantizeLinear with everything explicit, QLinear operators rewritten to it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .edit import Array, Editor, attribute, constant_of, derived, drop_attribute, input_of, is_constant, set_attribute, set_input, shape_of
from .rewrite import Rule


def linear(edit: Editor, node: ir.Node) -> bool:
    """QuantizeLinear or DequantizeLinear: one scale has shape (), the zero point the scale's shape, ``axis`` is there and not negative."""
    x, scale = shape_of(node.inputs[0]), constant_of(input_of(node, 1))
    if x is None:
        return False
    modified = False
    axis = attribute(node, "axis", 1)
    axis = axis + len(x) if axis < 0 else axis
    per_tensor = scale is not None and scale.size == 1 and not attribute(node, "block_size", 0)
    if per_tensor:
        axis = min(1, max(len(x) - 1, 0))
    modified |= set_attribute(node, "axis", axis)
    if scale is None:
        return modified
    if per_tensor and scale.ndim:
        scale = scale.reshape(())
        set_input(node, 1, edit.constant(scale, f"{_name(node, 1)}_scalar"))
        modified = True
    modified |= _zero_point(edit, node, scale)
    return drop_attribute(node, "output_dtype") or modified


def _zero_point(edit: Editor, node: ir.Node, scale: Array) -> bool:
    """The zero point as a constant of the integer type, in the scale's shape."""
    given = input_of(node, 2)
    if given is None:
        if node.op_type == "DequantizeLinear":
            dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
        else:
            dtype = ir.DataType(attribute(node, "output_dtype", 0) or int(ir.DataType.UINT8))
        if dtype is None:
            return False
        set_input(node, 2, edit.constant(np.zeros(scale.shape, dtype.numpy()), f"{node.outputs[0].name}_zero_point"))
        return True
    held = constant_of(given)
    if held is None or held.shape == scale.shape or held.size != scale.size:
        return False
    set_input(node, 2, edit.constant(held.reshape(scale.shape), f"{_name(node, 2)}_shaped"))
    return True


def move_into_weight(edit: Editor, node: ir.Node) -> bool:
    """Transpose or Reshape of a dequantized constant: the integers are moved, now; the DequantizeLinear comes last, as for every weight."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is None or source.op_type != "DequantizeLinear" or not is_constant(source.inputs[0]) or source.graph is not node.graph:
        return False
    weight, scale = source.inputs[0], constant_of(input_of(source, 1))
    after, before = shape_of(node.outputs[0]), shape_of(weight)
    if weight is None or weight.dtype is None or scale is None or after is None or before is None or attribute(source, "block_size", 0):
        return False
    axis = attribute(source, "axis", 1)
    if node.op_type == "Transpose":
        perm = list(attribute(node, "perm", tuple(reversed(range(len(before))))))
        new_axis = perm.index(axis) if scale.ndim else axis
    else:
        moved = _axis_after_reshape(before, after, axis) if scale.ndim else axis
        if moved is None:
            return False
        perm, new_axis = list(range(len(before))), moved
    moved_weight = derived(weight, lambda array: array.transpose(perm).reshape(after), after)
    constant = edit.constant(moved_weight, f"{weight.name}_moved")
    attributes = {"axis": min(1, max(len(after) - 1, 0)) if not scale.ndim else new_axis}
    edit.replace(node, [edit.node("DequantizeLinear", [constant, *source.inputs[1:]], attributes, name=source.name or "")])
    return True


def _axis_after_reshape(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int | None:
    """Where a channel axis lies after a reshape that keeps it whole."""
    lead = math.prod(before[:axis])
    return next((i for i, size in enumerate(after) if size == before[axis] and math.prod(after[:i]) == lead), None)


def qlinear_conv(edit: Editor, node: ir.Node) -> bool:
    """x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, [bias int32 on x_scale·w_scale] to QDQ around Conv."""
    x_scale, w_scale = constant_of(input_of(node, 1)), constant_of(input_of(node, 4))
    if x_scale is None or w_scale is None or not is_constant(input_of(node, 6)) or node.inputs[0] is None:
        return False
    base = node.outputs[0].name
    x = edit.node("DequantizeLinear", [node.inputs[0], node.inputs[1], node.inputs[2]], outputs=[f"{base}_x"])
    w = edit.node("DequantizeLinear", [node.inputs[3], node.inputs[4], node.inputs[5]], {"axis": 0}, outputs=[f"{base}_w"])
    new = [x, w]
    operands = [x.outputs[0], w.outputs[0]]
    bias = input_of(node, 8)
    if bias is not None:
        scale = (x_scale.astype(np.float64) * w_scale.astype(np.float64)).astype(np.float32)
        b = edit.node("DequantizeLinear", [bias, edit.constant(scale, f"{base}_bias_scale")], {"axis": 0}, outputs=[f"{base}_b"])
        new.append(b)
        operands.append(b.outputs[0])
    attributes = {key: attribute(node, key) for key in node.attributes}
    conv = edit.node("Conv", operands, attributes, outputs=[f"{base}_float"], name=node.name or "")
    q = edit.node("QuantizeLinear", [conv.outputs[0], node.inputs[6], node.inputs[7]], outputs=[f"{base}_q"])
    edit.replace(node, [*new, conv, q])
    return True


def qlinear_matmul(edit: Editor, node: ir.Node) -> bool:
    """a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero to QDQ around MatMul. Scales along rows of a or columns of b, or one."""
    a_scale, b_scale = constant_of(input_of(node, 1)), constant_of(input_of(node, 4))
    a_shape, b_shape = shape_of(node.inputs[0]), shape_of(node.inputs[3])
    if a_scale is None or b_scale is None or a_shape is None or b_shape is None or not is_constant(input_of(node, 6)):
        return False
    if a_scale.ndim > 1 or b_scale.ndim > 1:
        return False
    base = node.outputs[0].name
    a = edit.node("DequantizeLinear", node.inputs[0:3], {"axis": max(len(a_shape) - 2, 0)}, outputs=[f"{base}_a"])
    b = edit.node("DequantizeLinear", node.inputs[3:6], {"axis": len(b_shape) - 1}, outputs=[f"{base}_b"])
    product = edit.node("MatMul", [a.outputs[0], b.outputs[0]], outputs=[f"{base}_float"], name=node.name or "")
    q = edit.node("QuantizeLinear", [product.outputs[0], node.inputs[6], node.inputs[7]], outputs=[f"{base}_q"])
    edit.replace(node, [a, b, product, q])
    return True


def _name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return (value.name if value is not None else None) or node.op_type


RULES: dict[str, tuple[Rule, ...]] = {
    "QuantizeLinear": (linear,),
    "DequantizeLinear": (linear,),
    "Transpose": (move_into_weight,),
    "Reshape": (move_into_weight,),
    "QLinearConv": (qlinear_conv,),
    "QLinearMatMul": (qlinear_matmul,),
}
