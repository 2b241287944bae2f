"""Float layers and movement that onnx's reference implementation lacks, computes slowly or gets wrong: the specification in numpy.

Normalizations, reductions, ConvTranspose, MaxPool's places, Pad with negative amounts, ScatterElements and ScatterND of any rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .elementwise import quotient
from .queries import integer, real, shape_of
from .resampling import resize
from .windows import Window

Array = NDArray[Any]
Inputs = list[Any]


def _normalized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """(x − mean) / √(variance + ε) over ``axes``, in float64."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=axes, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon))


def _along_channels(parameter: Array, rank: int) -> Array:
    return parameter.reshape(1, -1, *[1] * (rank - 2))


def instance_normalization(node: ir.Node, v: Inputs) -> Array:
    x, scale, bias = v
    y = _normalized(x, tuple(range(2, x.ndim)), real(node, "epsilon", 1e-5))
    return np.asarray((y * _along_channels(scale, x.ndim) + _along_channels(bias, x.ndim)).astype(x.dtype))


def group_normalization(node: ir.Node, v: Inputs) -> Array:
    """Opset 21: scale and bias for each channel."""
    x, scale, bias = v
    groups = integer(node, "num_groups", 1)
    grouped = x.reshape(x.shape[0], groups, -1)
    y = _normalized(grouped, (2,), real(node, "epsilon", 1e-5)).reshape(x.shape)
    return np.asarray((y * _along_channels(scale, x.ndim) + _along_channels(bias, x.ndim)).astype(x.dtype))


def layer_normalization(node: ir.Node, v: Inputs) -> Array:
    x, scale = v[0], v[1]
    axis = integer(node, "axis", -1) % x.ndim
    y = _normalized(x, tuple(range(axis, x.ndim)), real(node, "epsilon", 1e-5)) * scale
    return np.asarray((y if len(v) < 3 or v[2] is None else y + v[2]).astype(x.dtype))


def lp_normalization(node: ir.Node, v: Inputs) -> Array:
    """x / (Σ|x|^p)^(1/p) along the axis; 0 where that is 0."""
    x, axis, p = v[0].astype(np.float64), integer(node, "axis", -1), integer(node, "p", 2)
    size = (np.abs(x) ** p).sum(axis=axis, keepdims=True) ** (1 / p)
    return np.asarray(np.divide(x, size, out=np.zeros_like(x), where=size != 0).astype(v[0].dtype))


def dynamic_quantize(x: Array) -> tuple[Array, Array, Array]:
    """DynamicQuantizeLinear: uint8, scale and zero point of a range that holds 0. Of zeros alone ONNX leaves the scale open: 1, as in
    ONNX Runtime."""
    zero = np.float32(0)
    low, high = x.min(initial=zero), x.max(initial=zero)
    scale = np.float32(1) if high == low else (high - low) / np.float32(255)
    point = np.rint(np.clip(-low / scale, zero, np.float32(255)))
    steps = np.clip(np.rint(x / scale) + point, 0, 255)
    return steps.astype(np.uint8), np.asarray(scale, np.float32), np.asarray(point, np.uint8)


def max_pool_with_indices(node: ir.Node, x: Array) -> tuple[Array, Array]:
    """MaxPool and, of each maximum, its place in the whole tensor (the first one, where there are several)."""
    window = Window.of(node)
    low = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    axes = tuple(range(-len(window.kernel), 0))
    windows = window.view(x, low)
    columns = integer(node, "storage_order", 0) == 1
    spatial = np.arange(math.prod(x.shape[2:])).reshape(x.shape[2:], order="F" if columns else "C")
    places = spatial + (np.arange(math.prod(x.shape[:2])) * spatial.size).reshape(*x.shape[:2], *[1] * spatial.ndim)
    held = window.view(places, -1)
    flat, flat_places = (a.reshape(*a.shape[: a.ndim - len(axes)], math.prod(window.kernel)) for a in (windows, held))
    # Padding never wins, not even against the lowest number.
    best = np.where(flat_places < 0, False, flat == flat.max(axis=-1, keepdims=True)).argmax(axis=-1)[..., None]
    found = (np.take_along_axis(a, best, -1)[..., 0] for a in (flat, flat_places))
    y, index = found
    return y, index.astype(np.int64)


def conv_transpose(node: ir.Node, v: Inputs) -> Array:
    """x [N, C, *spatial], weight [C, M/group, *kernel]: each value of x adds the kernel, scaled, where it lands."""
    x, weight = v[0], v[1]
    window, group = Window.of(node, weight.shape[2:]), integer(node, "group", 1)
    spatial = tuple(range(len(window.kernel)))
    samples, channels, filters = x.shape[0], x.shape[1] // group, weight.shape[1]
    full = [(x.shape[2 + a] - 1) * window.strides[a] + (window.kernel[a] - 1) * window.dilations[a] + 1 for a in spatial]
    shape = shape_of(node.outputs[0])[2:]
    # What lies behind the last window, output padding, is zero.
    room = [max(f, window.begin[a] + shape[a]) for a, f in zip(spatial, full, strict=True)]
    y = np.zeros((samples, group * filters, *room), np.float64)
    grouped = x.astype(np.float64).reshape(samples, group, channels, *x.shape[2:])
    kernels = weight.astype(np.float64).reshape(group, channels, filters, *window.kernel)
    for place in np.ndindex(*window.kernel):
        part = np.einsum("ngc...,gcf->ngf...", grouped, kernels[(slice(None),) * 3 + place])
        reach = tuple(
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, s, n in zip(place, window.dilations, window.strides, x.shape[2:], strict=True)
        )
        y[(slice(None), slice(None), *reach)] += part.reshape(samples, group * filters, *x.shape[2:])
    y = y[(slice(None), slice(None), *(slice(window.begin[a], window.begin[a] + shape[a]) for a in spatial))]
    if len(v) > 2 and v[2] is not None:
        y = y + _along_channels(v[2], y.ndim)
    return np.asarray(y.astype(x.dtype))


def _log_sum_exp(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    largest = x.max(axis=axes, keepdims=True, initial=-np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(np.isfinite(largest), largest, 0.0)
        found = np.log(np.exp(x - shift).sum(axis=axes, keepdims=True)) + shift
    return np.asarray(found if keep else found.squeeze(axes))


def _logarithm(x: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(x))


_WIDE: dict[str, Callable[[Array, tuple[int, ...], bool], Array]] = {
    "ReduceMean": lambda x, a, k: x.mean(axis=a, keepdims=k), "ReduceL1": lambda x, a, k: np.abs(x).sum(axis=a, keepdims=k),
    "ReduceL2": lambda x, a, k: np.sqrt((x * x).sum(axis=a, keepdims=k)),
    "ReduceLogSum": lambda x, a, k: _logarithm(x.sum(axis=a, keepdims=k)), "ReduceLogSumExp": _log_sum_exp,
}  # fmt: skip
"""In float64; into an integer type the result is cut towards zero."""


def reduction(node: ir.Node, v: Inputs) -> Array:
    x, op, keep = v[0], node.op_type, integer(node, "keepdims", 1) == 1
    given = v[1] if len(v) > 1 and v[1] is not None else None
    if given is None or not given.size:
        axes = () if integer(node, "noop_with_empty_axes", 0) else tuple(range(x.ndim))
    else:
        axes = tuple(sorted(int(a) % x.ndim for a in given.reshape(-1)))
    if x.dtype.kind in "iu" and op in ("ReduceMean", "ReduceL1"):
        # Whole numbers: no digit is lost, a sum of absolute values wraps around as any sum does, a mean is cut towards zero.
        if op == "ReduceL1":
            return np.asarray(np.abs(x).sum(axis=axes, keepdims=keep, dtype=x.dtype))
        total = x.sum(axis=axes, keepdims=keep, dtype=np.int64 if x.dtype.itemsize < 8 else x.dtype)
        count = math.prod(x.shape[a] for a in axes)
        return quotient(total, np.asarray(max(count, 1), total.dtype)).astype(x.dtype)
    if op in _WIDE:
        return np.asarray(_WIDE[op](x.astype(np.float64), axes, keep)).astype(x.dtype)
    total = np.float64 if x.dtype.kind == "f" else x.dtype
    match op:
        case "ReduceSum":
            y = x.sum(axis=axes, keepdims=keep, dtype=total)
        case "ReduceSumSquare":
            y = (x.astype(total) ** 2).sum(axis=axes, keepdims=keep, dtype=total)
        case "ReduceProd":
            y = x.prod(axis=axes, keepdims=keep, dtype=total)
        case "ReduceMax":
            y = x.max(axis=axes, keepdims=keep, initial=_end(x.dtype, -1))
        case _:
            y = x.min(axis=axes, keepdims=keep, initial=_end(x.dtype, 1))
    return np.asarray(y).astype(x.dtype)


def _end(dtype: np.dtype[Any], sign: int) -> Any:
    """What the maximum (sign −1) or minimum of nothing is."""
    if dtype.kind == "f":
        return sign * np.inf
    if dtype.kind == "b":
        return sign > 0
    return np.iinfo(dtype).max if sign > 0 else np.iinfo(dtype).min


def pad(node: ir.Node, v: Inputs) -> Array:
    """Negative amounts cut off; the others are added before or after that by ``mode``."""
    x, amounts, fill, axes = [*v, None, None][:4]
    chosen = range(x.ndim) if axes is None else [int(a) % x.ndim for a in axes]
    pads = [(0, 0)] * x.ndim
    for position, axis in enumerate(chosen):
        pads[axis] = int(amounts[position]), int(amounts[position + len(chosen)])
    mode = node.attributes.get_string("mode", "constant") or "constant"
    kept = x[tuple(slice(max(0, -a), n - max(0, -b)) for (a, b), n in zip(pads, x.shape, strict=True))]
    grown = [(max(0, a), max(0, b)) for a, b in pads]
    if mode == "constant":
        return np.pad(kept, grown, constant_values=0 if fill is None else fill.reshape(-1)[0])
    return np.pad(kept, grown, mode=mode)  # type: ignore[call-overload,no-any-return]


_REDUCTIONS: dict[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scattered(y: Array, where: tuple[Any, ...], updates: Array, reduction: str) -> Array:
    if reduction == "none":
        y[where] = updates
    else:
        _REDUCTIONS[reduction].at(y, where, updates)
    return y


def scatter_elements(node: ir.Node, v: Inputs) -> Array:
    x, index, updates = v
    axis = integer(node, "axis", 0) % x.ndim
    where = list(np.indices(index.shape))
    where[axis] = np.where(index < 0, index + x.shape[axis], index)
    return _scattered(x.copy(), tuple(where), updates, node.attributes.get_string("reduction", "none") or "none")


def scatter_nd(node: ir.Node, v: Inputs) -> Array:
    x, index, updates = v
    where = tuple(np.where(i < 0, i + n, i) for i, n in zip(np.moveaxis(index, -1, 0), x.shape, strict=False))
    return _scattered(x.copy(), where, updates, node.attributes.get_string("reduction", "none") or "none")


def one_hot(node: ir.Node, v: Inputs) -> Array:
    """Nothing is marked where an index is outside −depth … depth − 1."""
    index, depth, values = v[0], int(v[1].reshape(-1)[0]), v[2]
    axis = integer(node, "axis", -1) % (index.ndim + 1)
    place = np.expand_dims(np.where(index < 0, index + depth, index), axis)
    steps = np.arange(depth).reshape([-1 if i == axis else 1 for i in range(index.ndim + 1)])
    return np.asarray(np.where(place == steps, values[1], values[0]).astype(values.dtype))


def _resized(node: ir.Node, x: Array) -> tuple[int, ...]:
    """The shape that Resize makes, for as many samples as there are."""
    shape, source = shape_of(node.outputs[0]), node.inputs[0]
    kept = source is not None and shape_of(source)[:1] == shape[:1]
    return (*x.shape[:1], *shape[1:]) if kept else shape


OPERATORS: dict[str, Callable[[ir.Node, Inputs], Array]] = {
    "InstanceNormalization": instance_normalization, "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization, "LpNormalization": lp_normalization, "ConvTranspose": conv_transpose, "Pad": pad,
    "ScatterElements": scatter_elements, "ScatterND": scatter_nd, "OneHot": one_hot,
    "Resize": lambda node, v: resize(node, v, _resized(node, v[0])),
    **dict.fromkeys((*_WIDE, "ReduceSum", "ReduceSumSquare", "ReduceProd", "ReduceMax", "ReduceMin"), reduction),
}  # fmt: skip
