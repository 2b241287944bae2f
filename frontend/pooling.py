"""Pooling with ceil_mode: the sizes it gives, and the same pooling written without it."""

from __future__ import annotations

import onnx_ir as ir

from .edit import attribute, drop_attribute, set_attribute, shape_of


def pooled_sizes(node: ir.Node) -> tuple[int, ...] | None:
    """Spatial sizes that a pooling node without auto_pad gives; None where its input's shape is not known."""
    x = shape_of(node.inputs[0])
    if x is None or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    spatial = len(x) - 2
    kernel, pads = attribute(node, "kernel_shape"), attribute(node, "pads", (0,) * (2 * spatial))
    strides, dilations = (attribute(node, key, (1,) * spatial) for key in ("strides", "dilations"))
    if kernel is None or len({spatial, len(kernel), len(strides), len(dilations), len(pads) / 2}) != 1:
        return None
    sizes = []
    for i in range(spatial):
        room = x[2 + i] + pads[i] + pads[i + spatial] - ((kernel[i] - 1) * dilations[i] + 1)
        size = (-(-room // strides[i]) if attribute(node, "ceil_mode", 0) else room // strides[i]) + 1
        # Since opset 22 ONNX says what runtimes always did: a window that starts in the end padding is left out.
        sizes.append(size - 1 if attribute(node, "ceil_mode", 0) and (size - 1) * strides[i] >= x[2 + i] + pads[i] else size)
    return tuple(sizes)


def settle_ceil(node: ir.Node) -> bool:
    """ceil_mode as end padding. Not for an average that counts padding: what lies beyond the pads does not count there. True if changed."""
    wanted, x = pooled_sizes(node), shape_of(node.inputs[0])
    if not attribute(node, "ceil_mode", 0):
        return drop_attribute(node, "ceil_mode")
    if wanted is None or x is None:
        return False
    spatial = len(wanted)
    pads = list(attribute(node, "pads", (0,) * (2 * spatial)))
    kernel = attribute(node, "kernel_shape")
    strides, dilations = (attribute(node, key, (1,) * spatial) for key in ("strides", "dilations"))
    for i in range(spatial):
        needed = (wanted[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - x[2 + i] - pads[i]
        if needed > pads[i + spatial] and attribute(node, "count_include_pad", 0):
            return False
        pads[i + spatial] = max(needed, pads[i + spatial])
    set_attribute(node, "pads", pads)
    return drop_attribute(node, "ceil_mode")
