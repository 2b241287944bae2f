"""TFLite's operators, one function each, by their name in the schema. What is not here is refused by name.

A function gets the graph, the node (options, input and output tensors) and puts the values of the outputs. Padding, strides and
broadcasting follow TFLite's reference kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from gatewright.errors import ModelError

from .tflite_graph import TO_NCHW, Array, Graph, Grid, Tensor

_LAST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Call:
    """One node: its place and name for messages, options, and tensors; None for an input that is left out."""

    where: str
    options: Any
    inputs: list[Tensor | None]
    outputs: list[Tensor]

    def __getitem__(self, index: int) -> Tensor:
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise ModelError(f"{self.where} lacks its input {index}", hint="the file is damaged")
        return found

    def optional(self, index: int) -> Tensor | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int) -> Array:
        tensor = self[index]
        if tensor.data is None:
            raise self.refuse(f"its input {tensor.name!r} is computed, not constant")
        return tensor.data

    def refuse(self, why: str) -> ModelError:
        return ModelError(f"{self.where}: {why}", hint="convert the model without it, or from its own framework: load(keras_model)")


Function = Callable[[Graph, Call], None]


def _activated(graph: Graph, value: str, code: int, call: Call) -> str:
    """The fused activation function."""
    if code == 0:
        return value
    if code == 1:
        return graph.node("Relu", [value])
    if code in (2, 3):
        low, high = (-1.0, 1.0) if code == 2 else (0.0, 6.0)
        return graph.node("Clip", [value, graph.constant(np.float32(low)), graph.constant(np.float32(high))])
    if code == 4:
        return graph.node("Tanh", [value])
    raise call.refuse(f"its fused activation {code} has no form here")


def _pads(call: Call, size: tuple[int, int], out: tuple[int, int], kernel: tuple[int, int], strides: Any, dilations: Any) -> list[int]:
    """Explicit padding [top, left, bottom, right]; SAME puts the odd one last."""
    if call.options.padding == 1:
        return [0, 0, 0, 0]
    totals = [max((o - 1) * s + (k - 1) * d + 1 - i, 0) for i, o, k, s, d in zip(size, out, kernel, strides, dilations, strict=True)]
    return [totals[0] // 2, totals[1] // 2, totals[0] - totals[0] // 2, totals[1] - totals[1] // 2]


def _weight(graph: Graph, call: Call, index: int, perm: tuple[int, ...], shape: tuple[int, ...] | None = None) -> str:
    """A constant weight, transposed (then reshaped); integers stay integers and are dequantized after."""
    tensor = call[index]
    if tensor.data is None:
        raise call.refuse(f"its weights {tensor.name!r} are computed, not constant")
    array = tensor.data.transpose(perm)
    array = array if shape is None else array.reshape(shape)
    if tensor.grid is None:
        return graph.constant(array.astype(np.float32), "weight")
    axis = 0 if tensor.grid.plain else perm.index(tensor.grid.axis)
    if not tensor.grid.plain and shape is not None:
        axis = next(i for i, size in enumerate(shape) if size == tensor.grid.scale.size)
    graph.hybrid |= call[0].grid is None
    return graph.dequantize(graph.constant(array, "weight"), tensor.grid, axis)


def _bias(graph: Graph, call: Call, index: int, weight: Tensor, given: Tensor) -> list[str]:
    tensor = call.optional(index)
    if tensor is None:
        return []
    data = call.constant(index)
    if given.grid is None or weight.grid is None or data.dtype.kind == "f":
        return [graph.constant(data.astype(np.float32), "bias")]
    if np.abs(data.astype(np.int64)).max(initial=0) > np.iinfo(np.int32).max:
        raise call.refuse("its bias needs more than 32 bits")
    # The sum of products has this scale, whatever the file says of the bias.
    scale = (given.grid.scale.astype(np.float64) * weight.grid.scale.astype(np.float64)).astype(np.float32)
    grid = Grid(scale, np.zeros(scale.shape, np.int32), 0)
    return [graph.dequantize(graph.constant(data.astype(np.int32), "bias"), grid)]


def _conv(graph: Graph, call: Call) -> None:
    x, w, y = call[0], call[1], call.outputs[0]
    o = call.options
    strides, dilations = (o.strideH, o.strideW), (o.dilationHFactor, o.dilationWFactor)
    _, kh, kw, inner = w.shape
    if inner == 0 or x.shape[3] % inner:
        raise call.refuse(f"its weights {list(w.shape)} do not fit its input {list(x.shape)}")
    pads = _pads(call, x.shape[1:3], y.shape[1:3], (kh, kw), strides, dilations)  # type: ignore[arg-type]
    inputs = [graph.real(x, "nchw"), _weight(graph, call, 1, (0, 3, 1, 2)), *_bias(graph, call, 2, w, x)]
    group = x.shape[3] // inner
    value = graph.node("Conv", inputs, kernel_shape=[kh, kw], strides=strides, dilations=dilations, pads=pads, group=group)
    graph.put_real(y, _activated(graph, value, o.fusedActivationFunction, call), "nchw", x)


def _depthwise(graph: Graph, call: Call) -> None:
    x, w, y = call[0], call[1], call.outputs[0]
    o = call.options
    strides, dilations = (o.strideH, o.strideW), (o.dilationHFactor, o.dilationWFactor)
    _, kh, kw, channels = w.shape
    pads = _pads(call, x.shape[1:3], y.shape[1:3], (kh, kw), strides, dilations)  # type: ignore[arg-type]
    # [1, kh, kw, c] with c = input channel · multiplier + copy, which is ONNX's order of groups.
    inputs = [graph.real(x, "nchw"), _weight(graph, call, 1, (3, 0, 1, 2)), *_bias(graph, call, 2, w, x)]
    value = graph.node("Conv", inputs, kernel_shape=[kh, kw], strides=strides, dilations=dilations, pads=pads, group=x.shape[3])
    if channels % x.shape[3]:
        raise call.refuse(f"{channels} channels of {x.shape[3]}")
    graph.put_real(y, _activated(graph, value, o.fusedActivationFunction, call), "nchw", x)


def _transpose_conv(graph: Graph, call: Call) -> None:
    w, x, y = call[1], call[2], call.outputs[0]
    o = call.options
    strides = (o.strideH, o.strideW)
    _, kh, kw, _ = w.shape
    full = [(i - 1) * s + k for i, s, k in zip(x.shape[1:3], strides, (kh, kw), strict=True)]
    excess = [max(f - o, 0) for f, o in zip(full, y.shape[1:3], strict=True)] if o.padding == 0 else [0, 0]
    pads = [excess[0] // 2, excess[1] // 2, excess[0] - excess[0] // 2, excess[1] - excess[1] // 2]
    more = [size - f + e for size, f, e in zip(y.shape[1:3], full, excess, strict=True)]
    tensor = Call(call.where, o, [x, w, call.optional(3)], call.outputs)
    inputs = [graph.real(x, "nchw"), _weight(graph, tensor, 1, (3, 0, 1, 2)), *_bias(graph, tensor, 2, w, x)]
    value = graph.node("ConvTranspose", inputs, kernel_shape=[kh, kw], strides=strides, pads=pads, output_padding=more)
    graph.put_real(y, _activated(graph, value, getattr(o, "fusedActivationFunction", 0), call), "nchw", x)


def _fully_connected(graph: Graph, call: Call) -> None:
    x, w, y = call[0], call[1], call.outputs[0]
    if call.options.weightsFormat:
        raise call.refuse("its weights are shuffled for one processor")
    rows = math.prod(x.shape) // w.shape[1]
    given = graph.real(x)
    if len(x.shape) != 2 or x.shape[1] != w.shape[1]:
        moved = graph.node("Reshape", [graph.held(x), graph.constant(np.array([rows, w.shape[1]]))])
        given = moved if x.grid is None else graph.dequantize(moved, x.grid)
    if w.data is None:
        value = graph.node("MatMul", [given, graph.node("Transpose", [graph.real(w)], perm=[1, 0])])
    else:
        value = graph.node("Gemm", [given, _weight(graph, call, 1, (1, 0)), *_bias(graph, call, 2, w, x)])
    value = _activated(graph, value, call.options.fusedActivationFunction, call)
    if y.shape == (rows, w.shape[0]):
        graph.put_real(y, value, "", x)
        return
    flat = Tensor(-1 - y.index, y.name, (rows, w.shape[0]), y.dtype, y.grid, None)
    graph.put_real(flat, value, "", x)
    graph.depth[y.index] = graph.depth[flat.index]
    graph.put(y, graph.node("Reshape", [graph.held(flat), graph.constant(np.array(y.shape, np.int64))]))


def _pool(op: str) -> Function:
    def pool(graph: Graph, call: Call) -> None:
        x, y, o = call[0], call.outputs[0], call.options
        kernel, strides = (o.filterHeight, o.filterWidth), (o.strideH, o.strideW)
        pads = _pads(call, x.shape[1:3], y.shape[1:3], kernel, strides, (1, 1))  # type: ignore[arg-type]
        value = graph.node(op, [graph.real(x, "nchw")], kernel_shape=kernel, strides=strides, pads=pads)
        graph.put_real(y, _activated(graph, value, o.fusedActivationFunction, call), "nchw", x)

    return pool


def _layout(graph: Graph, tensors: list[Tensor], output: Tensor) -> str:
    """NCHW for an element-wise operator whose operands are there already, and fit one another as they are."""
    four = len(output.shape) == 4 and all(len(t.shape) in (0, 4) for t in tensors)
    return "nchw" if four and any(graph.prefers_nchw(t) for t in tensors if len(t.shape) == 4) else ""


def _operand(graph: Graph, tensor: Tensor, layout: str) -> str:
    return graph.real(tensor, layout if len(tensor.shape) == 4 else "")


def _elementwise(op: str, count: int, **attributes: Any) -> Function:
    def apply(graph: Graph, call: Call) -> None:
        given, y = [_spread(call[i], call.outputs[0]) for i in range(count)], call.outputs[0]
        layout = _layout(graph, given, y)
        value = graph.node(op, [_operand(graph, t, layout) for t in given], **attributes)
        value = _activated(graph, value, getattr(call.options, "fusedActivationFunction", 0), call)
        graph.put_real(y, value, layout, *given)

    return apply


def _spread(tensor: Tensor, output: Tensor) -> Tensor:
    """A constant of fewer axes than the output, with as many, so that it can be turned around with the others."""
    missing = len(output.shape) - len(tensor.shape)
    if tensor.data is None or missing <= 0 or not tensor.shape or (tensor.grid is not None and not tensor.grid.plain):
        return tensor
    shape = (1,) * missing + tensor.shape
    return Tensor(-1_000_000 - tensor.index, tensor.name, shape, tensor.dtype, tensor.grid, tensor.data.reshape(shape))


def _logical(op: str, count: int, **attributes: Any) -> Function:
    """On what the tensors hold, if they have no scales: integers, truth values."""

    def apply(graph: Graph, call: Call) -> None:
        given = [call[i] for i in range(count)]
        graph.put(call.outputs[0], graph.node(op, [graph.real(t) if t.grid else graph.held(t) for t in given], **attributes))

    return apply


def _arithmetic(op: str) -> Function:
    numbers, integers = _elementwise(op, 2), _logical(op, 2)

    def apply(graph: Graph, call: Call) -> None:
        (integers if call[0].grid is None and call[0].dtype in (np.int32, np.int64) else numbers)(graph, call)

    return apply


def _clip(low: float, high: float) -> Function:
    def apply(graph: Graph, call: Call) -> None:
        x, y = call[0], call.outputs[0]
        layout = _layout(graph, [x], y)
        bounds = [graph.constant(np.float32(low)), graph.constant(np.float32(high))]
        graph.put_real(y, graph.node("Clip", [graph.real(x, layout), *bounds]), layout, x)

    return apply


def _leaky(graph: Graph, call: Call) -> None:
    _elementwise("LeakyRelu", 1, alpha=float(call.options.alpha))(graph, call)


def _gelu(graph: Graph, call: Call) -> None:
    _elementwise("Gelu", 1, approximate="tanh" if call.options.approximate else "none")(graph, call)


def _squared_difference(graph: Graph, call: Call) -> None:
    a, b, y = _spread(call[0], call.outputs[0]), _spread(call[1], call.outputs[0]), call.outputs[0]
    layout = _layout(graph, [a, b], y)
    difference = graph.node("Sub", [_operand(graph, a, layout), _operand(graph, b, layout)])
    graph.put_real(y, graph.node("Mul", [difference, difference]), layout, a, b)


def _square(graph: Graph, call: Call) -> None:
    x = call[0]
    layout = _layout(graph, [x], call.outputs[0])
    graph.put_real(call.outputs[0], graph.node("Mul", [graph.real(x, layout)] * 2), layout, x)


def _rsqrt(graph: Graph, call: Call) -> None:
    x = call[0]
    layout = _layout(graph, [x], call.outputs[0])
    graph.put_real(call.outputs[0], graph.node("Reciprocal", [graph.node("Sqrt", [graph.real(x, layout)])]), layout, x)


def _softmax(op: str) -> Function:
    def apply(graph: Graph, call: Call) -> None:
        value = graph.real(call[0])
        beta = float(getattr(call.options, "beta", 1.0))
        if beta != 1.0:
            value = graph.node("Mul", [value, graph.constant(np.float32(beta))])
        graph.put_real(call.outputs[0], graph.node(op, [value], axis=-1), "", call[0])

    return apply


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether the integers of both stand for the same values."""
    if a.grid is None or b.grid is None:
        return a.grid is b.grid and a.dtype == b.dtype
    return a.dtype == b.dtype and np.array_equal(a.grid.scale, b.grid.scale) and np.array_equal(a.grid.zero, b.grid.zero)


def _moved(graph: Graph, x: Tensor, y: Tensor, move: Callable[[str], str], layout: str = "", turned: str | None = None) -> None:
    """What only moves values acts on the integers themselves, unless the output has another grid. ``turned``: the result's layout."""
    after = layout if turned is None else turned
    if _same(x, y):
        graph.depth[y.index] = graph.depth.get(x.index, 0)
        graph.put(y, move(graph.held(x, layout)), after)
    else:
        graph.put_real(y, move(graph.real(x, layout)), after, x)


def _reshape(graph: Graph, call: Call) -> None:
    x, y = call[0], call.outputs[0]
    if math.prod(x.shape) != math.prod(y.shape):
        raise call.refuse(f"{list(x.shape)} does not become {list(y.shape)}")
    _moved(graph, x, y, lambda value: graph.node("Reshape", [value, graph.constant(np.array(y.shape, np.int64))]))


def _transpose(graph: Graph, call: Call) -> None:
    perm = [int(p) for p in call.constant(1)]
    _moved(graph, call[0], call.outputs[0], lambda value: graph.node("Transpose", [value], perm=perm))


def _concat(graph: Graph, call: Call) -> None:
    y = call.outputs[0]
    given = [call[i] for i in range(len(call.inputs))]
    axis = call.options.axis % len(y.shape)
    layout = _layout(graph, given, y)
    at = TO_NCHW.index(axis) if layout else axis
    if all(_same(x, y) for x in given) and not call.options.fusedActivationFunction:
        graph.depth[y.index] = max(graph.depth.get(x.index, 0) for x in given)
        graph.put(y, graph.node("Concat", [graph.held(x, layout) for x in given], axis=at), layout)
        return
    value = graph.node("Concat", [graph.real(x, layout) for x in given], axis=at)
    graph.put_real(y, _activated(graph, value, call.options.fusedActivationFunction, call), layout, *given)


def _pad(graph: Graph, call: Call) -> None:
    x, y = call[0], call.outputs[0]
    pads = call.constant(1).reshape(-1, 2)
    layout = _layout(graph, [x], y)
    if layout:
        pads = pads[list(TO_NCHW)]
    amounts = graph.constant(pads.T.reshape(-1).astype(np.int64))
    filler = [graph.real(call[2])] if call.optional(2) is not None else []
    graph.put_real(y, graph.node("Pad", [graph.real(x, layout), amounts, *filler], mode="constant"), layout, x)


def _mirror_pad(graph: Graph, call: Call) -> None:
    if call.options.mode != 0:
        raise call.refuse("mode SYMMETRIC has no operator in ONNX")
    pads = graph.constant(call.constant(1).T.reshape(-1).astype(np.int64))
    _moved(graph, call[0], call.outputs[0], lambda value: graph.node("Pad", [value, pads], mode="reflect"))


def _reduce(op: str) -> Function:
    def apply(graph: Graph, call: Call) -> None:
        x, y = call[0], call.outputs[0]
        axes = sorted({int(a) % len(x.shape) for a in call.constant(1).reshape(-1)})
        spatial = axes == [1, 2] and len(x.shape) == 4
        layout = "nchw" if spatial else ""
        places = [2, 3] if spatial else axes
        value = graph.node(op, [graph.real(x, layout), graph.constant(np.array(places, np.int64))], keepdims=1)
        kept = Tensor(-1 - y.index, y.name, tuple(1 if i in axes else d for i, d in enumerate(x.shape)), y.dtype, y.grid, None)
        target = y if call.options.keepDims else kept
        graph.put_real(target, value, layout, x)
        if target is kept:
            graph.depth[y.index] = graph.depth[kept.index]
            graph.put(y, graph.node("Reshape", [graph.held(kept, layout), graph.constant(np.array(y.shape, np.int64))]))

    return apply


def _slice(graph: Graph, call: Call) -> None:
    begin, size = call.constant(1).reshape(-1).astype(np.int64), call.constant(2).reshape(-1).astype(np.int64)
    ends = np.where(size < 0, _LAST, begin + size)
    _sliced(graph, call, begin, ends, np.ones_like(begin))


def _strided_slice(graph: Graph, call: Call) -> None:
    o = call.options
    if o.ellipsisMask or o.newAxisMask or getattr(o, "offset", False):
        raise call.refuse("its ellipsis, new axes or offset")
    begin, end, steps = (call.constant(i).reshape(-1).astype(np.int64).copy() for i in (1, 2, 3))
    for axis in range(len(begin)):
        if o.beginMask >> axis & 1:
            begin[axis] = 0 if steps[axis] > 0 else _LAST
        if o.endMask >> axis & 1:
            end[axis] = _LAST if steps[axis] > 0 else -_LAST
        if o.shrinkAxisMask >> axis & 1:
            end[axis] = begin[axis] + 1 if begin[axis] != -1 else _LAST
            steps[axis] = 1
    _sliced(graph, call, begin, end, steps)


def _sliced(graph: Graph, call: Call, begin: Array, ends: Array, steps: Array) -> None:
    y = call.outputs[0]

    def move(value: str) -> str:
        bounds = [graph.constant(array) for array in (begin, ends, np.arange(len(begin)), steps)]
        cut = graph.node("Slice", [value, *bounds])
        return graph.node("Reshape", [cut, graph.constant(np.array(y.shape, np.int64))])

    _moved(graph, call[0], y, move)


def _split(sizes: bool) -> Function:
    def apply(graph: Graph, call: Call) -> None:
        x, axis = (call[0], int(call.constant(2))) if sizes else (call[1], int(call.constant(0)))
        axis %= len(x.shape)
        lengths = np.array([y.shape[axis] for y in call.outputs], np.int64)
        if not all(_same(x, y) for y in call.outputs):
            raise call.refuse("its outputs are quantized in another way than its input")
        value = graph.node("Split", [graph.held(x), graph.constant(lengths)], outputs=len(lengths), axis=axis)
        for i, y in enumerate(call.outputs):
            graph.depth[y.index] = graph.depth.get(x.index, 0)
            graph.put(y, value if i == 0 else f"{value}.{i}")

    return apply


def _pack(graph: Graph, call: Call) -> None:
    y = call.outputs[0]
    axis = call.options.axis % len(y.shape)
    shape = [1 if i == axis else d for i, d in enumerate(y.shape)]
    given = [call[i] for i in range(len(call.inputs))]
    if not all(_same(x, y) for x in given):
        raise call.refuse("its inputs are quantized in another way than its output")
    pieces = [graph.node("Reshape", [graph.held(x), graph.constant(np.array(shape, np.int64))]) for x in given]
    graph.depth[y.index] = max(graph.depth.get(x.index, 0) for x in given)
    graph.put(y, graph.node("Concat", pieces, axis=axis))


def _unpack(graph: Graph, call: Call) -> None:
    x = call[0]
    axis = call.options.axis % len(x.shape)
    for i, y in enumerate(call.outputs):
        _moved(graph, x, y, lambda value, i=i: graph.node("Gather", [value, graph.constant(np.int64(i))], axis=axis))  # type: ignore[misc]


def _gather(graph: Graph, call: Call) -> None:
    if getattr(call.options, "batchDims", 0):
        raise call.refuse("batch_dims")
    _moved(graph, call[0], call.outputs[0], lambda value: graph.node("Gather", [value, graph.held(call[1])], axis=call.options.axis))


def _tile(graph: Graph, call: Call) -> None:
    repeats = graph.constant(call.constant(1).astype(np.int64))
    _moved(graph, call[0], call.outputs[0], lambda value: graph.node("Tile", [value, repeats]))


def _resize(mode: str) -> Function:
    def apply(graph: Graph, call: Call) -> None:
        x, y, o = call[0], call.outputs[0], call.options
        how = "align_corners" if o.alignCorners else "half_pixel" if o.halfPixelCenters else "asymmetric"
        attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": how}
        if mode == "nearest":
            attributes["nearest_mode"] = "floor" if how == "asymmetric" else "round_prefer_ceil"
        sizes = graph.constant(np.array([y.shape[0], y.shape[3], *y.shape[1:3]], np.int64))
        graph.put_real(y, graph.node("Resize", [graph.real(x, "nchw"), "", "", sizes], **attributes), "nchw", x)

    return apply


def _blocks(op: str) -> Function:
    def apply(graph: Graph, call: Call) -> None:
        size = int(call.options.blockSize)
        move = lambda value: graph.node(op, [value], blocksize=size)  # noqa: E731
        _moved(graph, call[0], call.outputs[0], move, "nchw")

    return apply


def _arg(op: str) -> Function:
    def apply(graph: Graph, call: Call) -> None:
        y = call.outputs[0]
        value = graph.node(op, [graph.real(call[0])], axis=int(call.constant(1)), keepdims=0)
        graph.put(y, graph.node("Cast", [value], to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(y.dtype))))

    return apply


def _cast(graph: Graph, call: Call) -> None:
    x, y = call[0], call.outputs[0]
    value = graph.held(x) if x.grid is None or x.dtype not in (np.int8, np.int16, np.uint8) else graph.real(x)
    graph.put(y, graph.node("Cast", [value], to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(y.dtype))))


def _quantize(graph: Graph, call: Call) -> None:
    x, y = call[0], call.outputs[0]
    layout = _layout(graph, [x], y)
    graph.put_real(y, graph.real(x, layout), layout, x)


def _dequantize(graph: Graph, call: Call) -> None:
    x, y = call[0], call.outputs[0]
    layout = _layout(graph, [x], y)
    graph.depth[y.index] = graph.depth.get(x.index, 0)
    if x.grid is not None:
        graph.step[y.index] = float(x.grid.scale.max())
    graph.put(y, graph.real(x, layout), layout)


def _shape(graph: Graph, call: Call) -> None:
    y = call.outputs[0]
    graph.put(y, graph.constant(np.array(call[0].shape, y.dtype)))


def _matmul(graph: Graph, call: Call) -> None:
    values = []
    for x, flip in ((call[0], call.options.adjX), (call[1], call.options.adjY)):
        perm = [*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
        values.append(graph.node("Transpose", [graph.real(x)], perm=perm) if flip else graph.real(x))
    graph.put_real(call.outputs[0], graph.node("MatMul", values), "", call[0], call[1])


def _select(graph: Graph, call: Call) -> None:
    graph.put_real(
        call.outputs[0], graph.node("Where", [graph.held(call[0]), graph.real(call[1]), graph.real(call[2])]), "", call[1], call[2]
    )


def _normalize(graph: Graph, call: Call) -> None:
    graph.put_real(call.outputs[0], graph.node("LpNormalization", [graph.real(call[0])], axis=-1, p=2), "", call[0])


_UNARY = {"RELU": "Relu", "LOGISTIC": "Sigmoid", "TANH": "Tanh", "ELU": "Elu", "HARD_SWISH": "HardSwish", "EXP": "Exp", "LOG": "Log",
          "SQRT": "Sqrt", "ABS": "Abs", "NEG": "Neg", "SIN": "Sin", "COS": "Cos", "FLOOR": "Floor", "CEIL": "Ceil", "ROUND": "Round",
          "SIGN": "Sign"}  # fmt: skip
_BINARY = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "MAXIMUM": "Max", "MINIMUM": "Min", "POW": "Pow"}
_COMPARED = {"EQUAL": "Equal", "GREATER": "Greater", "GREATER_EQUAL": "GreaterOrEqual", "LESS": "Less", "LESS_EQUAL": "LessOrEqual",
             "LOGICAL_AND": "And", "LOGICAL_OR": "Or"}  # fmt: skip
_REDUCED = {"MEAN": "ReduceMean", "SUM": "ReduceSum", "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin", "REDUCE_PROD": "ReduceProd"}

OPERATORS: dict[str, Function] = {
    "CONV_2D": _conv, "DEPTHWISE_CONV_2D": _depthwise, "TRANSPOSE_CONV": _transpose_conv, "FULLY_CONNECTED": _fully_connected,
    "MAX_POOL_2D": _pool("MaxPool"), "AVERAGE_POOL_2D": _pool("AveragePool"),
    **{name: _elementwise(op, 1) for name, op in _UNARY.items()},
    **{name: _arithmetic(op) for name, op in _BINARY.items()},
    **{name: _logical(op, 2) for name, op in _COMPARED.items()},
    **{name: _reduce(op) for name, op in _REDUCED.items()},
    "LOGICAL_NOT": _logical("Not", 1), "PRELU": _elementwise("PRelu", 2), "RELU6": _clip(0, 6), "RELU_N1_TO_1": _clip(-1, 1),
    "RELU_0_TO_1": _clip(0, 1), "LEAKY_RELU": _leaky, "GELU": _gelu, "SQUARED_DIFFERENCE": _squared_difference, "SQUARE": _square,
    "RSQRT": _rsqrt, "SOFTMAX": _softmax("Softmax"), "LOG_SOFTMAX": _softmax("LogSoftmax"), "RESHAPE": _reshape, "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape, "TRANSPOSE": _transpose, "CONCATENATION": _concat, "PAD": _pad, "PADV2": _pad, "MIRROR_PAD": _mirror_pad,
    "SLICE": _slice, "STRIDED_SLICE": _strided_slice, "SPLIT": _split(False), "SPLIT_V": _split(True), "PACK": _pack, "UNPACK": _unpack,
    "GATHER": _gather, "TILE": _tile, "RESIZE_BILINEAR": _resize("linear"), "RESIZE_NEAREST_NEIGHBOR": _resize("nearest"),
    "DEPTH_TO_SPACE": _blocks("DepthToSpace"), "SPACE_TO_DEPTH": _blocks("SpaceToDepth"), "ARG_MAX": _arg("ArgMax"),
    "ARG_MIN": _arg("ArgMin"), "CAST": _cast, "QUANTIZE": _quantize, "DEQUANTIZE": _dequantize, "SHAPE": _shape, "BATCH_MATMUL": _matmul,
    "SELECT": _select, "SELECT_V2": _select, "L2_NORMALIZATION": _normalize,
}  # fmt: skip
