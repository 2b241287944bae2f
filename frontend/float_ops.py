"""The float meaning of ONNX operators, in numpy, vectorized over the batch: what stands here is the reference's own.

``evaluate`` runs one node. An operator that is not in ``OPERATORS`` or ``elementwise.FUNCTIONS`` is computed by onnx's
reference implementation, which follows the specification's text; the ones here are those that a batch of thousands meets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gatewright.errors import ModelError, UnsupportedOp

from . import elementwise, float_layers, float_recurrent, subgraphs, svm
from .queries import integer, real
from .windows import Window, convolve, window_counts

Array = NDArray[Any]
Inputs = list[Any]
Operator = Callable[[ir.Node, Inputs], Array]


def evaluate(node: ir.Node, inputs: Sequence[Array | None], opset: int = 21, outer: Mapping[str, Array] | None = None) -> tuple[Array, ...]:
    """The outputs of ``node``; ``outer``: by name, the values that its own graphs read, where it has any.

    Raises UnsupportedOp where neither this file nor onnx's reference knows the operator.
    """
    if node.domain == "" and node.op_type in ("If", "Loop", "Scan"):
        return subgraphs.evaluate(node, inputs, outer or {}, lambda inner, given, around: evaluate(inner, given, opset, around))
    if node.domain == "" and _simple(node):
        if node.op_type in elementwise.FUNCTIONS:
            return (elementwise.evaluate(node, inputs),)
        if node.op_type in OPERATORS:
            return (OPERATORS[node.op_type](node, list(inputs)),)
        if node.op_type in float_layers.OPERATORS:
            return (float_layers.OPERATORS[node.op_type](node, list(inputs)),)
    if node.domain == "" and node.op_type == "MaxPool" and inputs[0] is not None:
        return float_layers.max_pool_with_indices(node, inputs[0])
    if node.domain == "" and node.op_type == "DynamicQuantizeLinear" and inputs[0] is not None:
        return float_layers.dynamic_quantize(inputs[0])
    if node.domain == "" and node.op_type in float_recurrent.GATES:
        return float_recurrent.recurrent(node, inputs)
    if svm.has_probabilities(node) and inputs[0] is not None:
        return svm.classify(node, inputs[0])
    return _by_onnx(node, inputs, opset)


def _simple(node: ir.Node) -> bool:
    """One output only: second outputs (MaxPool's Indices, BatchNormalization's training) are left to onnx's reference."""
    return len(node.outputs) == 1 and not integer(node, "training_mode", 0)


def _conv(node: ir.Node, v: Inputs) -> Array:
    y: Array = convolve(v[0], v[1], Window.of(node, v[1].shape[2:]), integer(node, "group", 1))
    if len(v) > 2 and v[2] is not None:
        y += v[2].reshape(1, -1, *[1] * (y.ndim - 2))
    return y


def _gemm(node: ir.Node, v: Inputs) -> Array:
    a = v[0].T if integer(node, "transA", 0) else v[0]
    b = v[1].T if integer(node, "transB", 0) else v[1]
    alpha, beta = (np.asarray(real(node, k, 1.0), a.dtype) for k in ("alpha", "beta"))
    y = np.matmul(a, b)
    y = y if alpha == 1 else alpha * y
    return np.asarray(y if len(v) < 3 or v[2] is None else (y + (v[2] if beta == 1 else beta * v[2])).astype(y.dtype))


def _batch_normalization(node: ir.Node, v: Inputs) -> Array:
    x, scale, bias, mean, variance = v
    along = (1, -1, *[1] * (x.ndim - 2))
    factor = scale / np.sqrt(variance + np.asarray(real(node, "epsilon", 1e-5), variance.dtype))
    return np.asarray((x * factor.reshape(along) + (bias - mean * factor).reshape(along)).astype(x.dtype))


def _average_pool(node: ir.Node, v: Inputs) -> Array:
    window = Window.of(node)
    counts = window_counts(window, v[0].shape[2:], integer(node, "count_include_pad", 0) == 1)
    total = window.view(v[0], 0).sum(axis=tuple(range(-len(window.kernel), 0)), dtype=np.float64)
    return np.asarray((total / counts).astype(v[0].dtype))


def _lrn(node: ir.Node, v: Inputs) -> Array:
    """Local response normalization over ``size`` channels. (onnx's reference walks the batch axis where it means the channels'.)"""
    x, size = v[0], integer(node, "size", 1)
    alpha, beta, bias = (real(node, k, d) for k, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    before, after = (size - 1) // 2, size // 2
    squares = np.pad(x.astype(np.float64) ** 2, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
    total = np.lib.stride_tricks.sliding_window_view(squares, size, axis=1).sum(axis=-1)
    return np.asarray((x / (bias + alpha / size * total) ** beta).astype(x.dtype))


def lowest(dtype: np.dtype[Any]) -> Any:
    """The identity of max in ``dtype``."""
    return -np.inf if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).min


def max_pool(node: ir.Node, x: Array) -> Array:
    """MaxPool of any dtype; padding never wins."""
    window = Window.of(node)
    pooled: Array = window.view(x, lowest(x.dtype)).max(axis=tuple(range(-len(window.kernel), 0)))
    return pooled


def reshape(node: ir.Node, v: Inputs) -> Array:
    """Reshape where 0 copies the input's dimension (allowzero = 0), which keeps canonical graphs free of the batch size."""
    keep = not integer(node, "allowzero", 0)
    shape = [v[0].shape[i] if d == 0 and keep else int(d) for i, d in enumerate(v[1])]
    return np.asarray(v[0].reshape(shape))


def _softmax(node: ir.Node, v: Inputs) -> Array:
    x, axis = v[0], integer(node, "axis", -1)
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray((e / e.sum(axis=axis, keepdims=True)).astype(x.dtype))


def _log_softmax(node: ir.Node, v: Inputs) -> Array:
    x, axis = v[0], integer(node, "axis", -1)
    shifted = x - x.max(axis=axis, keepdims=True)
    return np.asarray((shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))).astype(x.dtype))


def quantize_linear(node: ir.Node, v: Inputs, dtype: np.dtype[Any], lo: int, hi: int) -> tuple[Array, int]:
    """QuantizeLinear exactly as ONNX defines it (division in the input's dtype, half to even, saturate), and how many values saturated."""
    x, scale = v[0], v[1]
    zero = v[2].astype(np.int64) if len(v) > 2 and v[2] is not None else np.zeros(scale.shape, np.int64)
    if integer(node, "block_size", 0):
        scale, zero = (_spread(node, a, x.shape) for a in (scale, zero))
        along = x.shape
    else:
        along = _along(node, scale, x.ndim)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(x / scale.reshape(along))
    # NaN has no place on a grid; ONNX leaves it open, here it is the zero point.
    steps = np.clip(np.nan_to_num(steps.astype(np.float64), nan=0.0), -(2.0**40), 2.0**40).astype(np.int64) + zero.reshape(along)
    outside = int(np.count_nonzero((steps < lo) | (steps > hi)))
    return np.clip(steps, lo, hi).astype(dtype), outside


def dequantize_linear(node: ir.Node, v: Inputs) -> Array:
    """(q − z)·s: the difference in integers, one rounding in the scale's dtype."""
    q, scale = v[0].astype(np.int64), v[1]
    if integer(node, "block_size", 0):
        scale, *zero = (_spread(node, a, q.shape) for a in v[1:3] if a is not None)
        return np.asarray((q - zero[0].astype(np.int64) if zero else q).astype(scale.dtype) * scale)
    along = _along(node, scale, q.ndim)
    if len(v) > 2 and v[2] is not None:
        q = q - v[2].astype(np.int64).reshape(along)
    return np.asarray(q.astype(scale.dtype) * scale.reshape(along))


def _spread(node: ir.Node, array: Array, shape: tuple[int, ...]) -> Array:
    """One scale for ``block_size`` values in a row along the axis, as one for each; the last block may be shorter."""
    axis = integer(node, "axis", 1) % len(shape)
    return np.repeat(array, integer(node, "block_size", 0), axis=axis).take(range(shape[axis]), axis=axis)


def _along(node: ir.Node, scale: Array, rank: int) -> tuple[int, ...]:
    """The shape that broadcasts a scale along the node's axis."""
    if scale.size == 1:
        return ()
    axis = integer(node, "axis", 1) % rank
    return tuple(-1 if i == axis else 1 for i in range(rank))


def _gather_elements(node: ir.Node, v: Inputs) -> Array:
    data, index = v[0], v[1]
    axis = integer(node, "axis", 0) % index.ndim
    # On the other axes the indices may cover less than the data.
    part = data[tuple(slice(None) if i == axis else slice(size) for i, size in enumerate(index.shape))]
    return np.take_along_axis(part, np.where(index < 0, index + data.shape[axis], index), axis)


OPERATORS: dict[str, Operator] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": lambda n, v: np.matmul(v[0], v[1]), "BatchNormalization": _batch_normalization,
    "AveragePool": _average_pool, "MaxPool": lambda n, v: max_pool(n, v[0]),
    "GlobalAveragePool": lambda n, v: v[0].mean(axis=tuple(range(2, v[0].ndim)), keepdims=True, dtype=np.float64).astype(v[0].dtype),
    "GlobalMaxPool": lambda n, v: v[0].max(axis=tuple(range(2, v[0].ndim)), keepdims=True),
    "LRN": _lrn, "Reshape": reshape, "Softmax": _softmax, "LogSoftmax": _log_softmax, "Identity": lambda n, v: v[0],
    "Transpose": lambda n, v: v[0].transpose(n.attributes.get_ints("perm", tuple(reversed(range(v[0].ndim))))),
    "Concat": lambda n, v: np.concatenate(v, axis=integer(n, "axis", 0)), "DequantizeLinear": dequantize_linear,
    "Gather": lambda n, v: np.take(v[0], v[1], axis=integer(n, "axis", 0)), "GatherElements": _gather_elements,
}  # fmt: skip


def _by_onnx(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> tuple[Array, ...]:
    names = [v.name or "" if v is not None else "" for v in node.inputs]
    session = _session(node, opset)
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if name and array is not None}
    try:
        return tuple(np.asarray(array) for array in session.run(None, feeds))
    except (ValueError, TypeError, IndexError, RuntimeError, AttributeError) as error:
        raise ModelError(f"node {node.name!r} ({node.op_type}) cannot be computed: {error}") from error


@lru_cache(maxsize=512)
def _session(node: ir.Node, opset: int) -> Any:
    """onnx's reference evaluator over a model of this one node."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    names = list(dict.fromkeys(name for name in proto.input if name))
    graph = onnx.helper.make_graph(
        [proto], "node",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in names],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in proto.output if name],
    )  # fmt: skip
    imports = [onnx.helper.make_opsetid("", opset)]
    if node.domain:
        imports.append(onnx.helper.make_opsetid(node.domain, 4))
    try:
        return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports))
    except (NotImplementedError, RuntimeError, ValueError, KeyError) as error:
        rule = f"onnx's reference has no such operator: {error}"
        raise UnsupportedOp(node=node.name or "", op=node.op_type, target="ref", rule=rule) from error
