"""JAX's primitives as ONNX nodes. A function gets the graph, the equation (parameters, shapes) and the names of its operands."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from gatewright.errors import ModelError

Array = NDArray[Any]

CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "closed_call", "core_call", "remat", "remat2",
         "checkpoint")  # fmt: skip
"""Primitives that only hold another jaxpr."""


class Graph:
    """ONNX nodes and constants under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, array: Any) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def whole(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def reshaped(self, value: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", [value, self.whole(*shape)])

    def turned(self, value: str, perm: Sequence[int]) -> str:
        return value if list(perm) == sorted(perm) else self.node("Transpose", [value], perm=list(perm))

    def proto(self, title: str, inputs: Mapping[str, Array], outputs: Sequence[str], expected: Sequence[Array]) -> onnx.ModelProto:
        def info(name: str, array: Array) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

        names = ["y"] if len(outputs) == 1 else [f"y{i}" for i in range(len(outputs))]
        self.nodes.extend(helper.make_node("Identity", [old], [new], name=f"output_{new}") for old, new in zip(outputs, names, strict=True))
        shown = [info(name, array) for name, array in zip(names, expected, strict=True)]
        graph = helper.make_graph(self.nodes, title, [info(*item) for item in inputs.items()], shown, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="jax")


Primitive = Callable[..., "str | list[str]"]
"""From names of operands to the name of the result, or the names of several."""


def _refuse(equation: Any, why: str) -> ModelError:
    return ModelError(f"JAX's {equation.primitive.name} for {equation.outvars[0]}: {why}", hint="write it with other operations")


def _simple(op: str, **attributes: Any) -> Primitive:
    return lambda graph, equation, *given: graph.node(op, given, **attributes)


def _chain(*ops: str) -> Primitive:
    def apply(graph: Graph, equation: Any, value: str) -> str:
        for op in ops:
            value = graph.node(op, [value])
        return value

    return apply


def _shifted(op: str, before: float, after: float) -> Primitive:
    """op(x + before) + after."""

    def apply(graph: Graph, equation: Any, value: str) -> str:
        dtype = equation.invars[0].aval.dtype
        value = graph.node("Add", [value, graph.constant(np.asarray(before, dtype))]) if before else value
        value = graph.node(op, [value])
        return graph.node("Add", [value, graph.constant(np.asarray(after, dtype))]) if after else value

    return apply


def _same(graph: Graph, equation: Any, value: str, *_: str) -> str:
    return value


def _power(graph: Graph, equation: Any, value: str) -> str:
    return graph.node("Pow", [value, graph.constant(np.asarray(equation.params["y"], equation.invars[0].aval.dtype))])


def _square(graph: Graph, equation: Any, value: str) -> str:
    return graph.node("Mul", [value, value])


def _erfc(graph: Graph, equation: Any, value: str) -> str:
    return graph.node("Sub", [graph.constant(np.asarray(1, equation.invars[0].aval.dtype)), graph.node("Erf", [value])])


def _not(graph: Graph, equation: Any, value: str) -> str:
    return graph.node("Not" if equation.invars[0].aval.dtype == bool else "BitwiseNot", [value])


def _bitwise(op: str) -> Primitive:
    return lambda graph, equation, a, b: graph.node(op if equation.invars[0].aval.dtype == bool else f"Bitwise{op}", [a, b])


def _cast(graph: Graph, equation: Any, value: str) -> str:
    return graph.node("Cast", [value], to=helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"])))


def _round(graph: Graph, equation: Any, value: str) -> str:
    if int(equation.params["rounding_method"]) != 1:
        raise _refuse(equation, "rounds halves away from zero, ONNX's Round to even")
    return graph.node("Round", [value])


def _select(graph: Graph, equation: Any, which: str, *cases: str) -> str:
    if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
        raise _refuse(equation, "selects between more than two")
    return graph.node("Where", [which, cases[1], cases[0]])


def _clamp(graph: Graph, equation: Any, low: str, value: str, high: str) -> str:
    return graph.node("Min", [graph.node("Max", [value, low]), high])


def _broadcast(graph: Graph, equation: Any, value: str, *_: str) -> str:
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    before = equation.invars[0].aval.shape
    aligned = [before[places.index(i)] if i in places else 1 for i in range(len(shape))]
    value = value if tuple(aligned) == tuple(before) else graph.reshaped(value, aligned)
    return value if tuple(aligned) == tuple(shape) else graph.node("Expand", [value, graph.whole(*shape)])


def _reshape(graph: Graph, equation: Any, value: str, *_: str) -> str:
    return graph.reshaped(value, equation.outvars[0].aval.shape)


def _transpose(graph: Graph, equation: Any, value: str) -> str:
    return graph.turned(value, equation.params["permutation"])


def _slice(graph: Graph, equation: Any, value: str) -> str:
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    return graph.node("Slice", [value, graph.whole(*starts), graph.whole(*ends), graph.whole(*range(len(starts))), graph.whole(*steps)])


def _reverse(graph: Graph, equation: Any, value: str) -> str:
    axes = equation.params["dimensions"]
    ones = [-1] * len(axes)
    return graph.node("Slice", [value, graph.whole(*ones), graph.whole(*[-(2**31)] * len(axes)), graph.whole(*axes), graph.whole(*ones)])


def _concatenate(graph: Graph, equation: Any, *given: str) -> str:
    return graph.node("Concat", given, axis=equation.params["dimension"])


def _pad(graph: Graph, equation: Any, value: str, filler: str) -> str:
    config = equation.params["padding_config"]
    if any(inner or low < 0 or high < 0 for low, high, inner in config):
        raise _refuse(equation, "pads between elements, or by less than nothing")
    amounts = [low for low, _, _ in config] + [high for _, high, _ in config]
    return graph.node("Pad", [value, graph.whole(*amounts), filler])


def _iota(graph: Graph, equation: Any) -> str:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    line = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return graph.constant(np.broadcast_to(line, shape).astype(equation.params["dtype"]))


def _dot(graph: Graph, equation: Any, a: str, b: str) -> str:
    (left, right), (batch_a, batch_b) = equation.params["dimension_numbers"]
    ranks = [len(v.aval.shape) for v in equation.invars]
    if not batch_a and ranks == [2, 2] and tuple(left) == (1,) and tuple(right) == (0,):
        return graph.node("MatMul", [a, b])
    letters = iter(string.ascii_letters)
    first = [next(letters) for _ in range(ranks[0])]
    second = [next(letters) for _ in range(ranks[1])]
    for i, j in (*zip(left, right, strict=True), *zip(batch_a, batch_b, strict=True)):
        second[j] = first[i]
    batch = [first[i] for i in batch_a]
    rows = [c for i, c in enumerate(first) if i not in left and i not in batch_a]
    columns = [c for j, c in enumerate(second) if j not in right and j not in batch_b]
    return graph.node("Einsum", [a, b], equation=f"{''.join(first)},{''.join(second)}->{''.join(batch + rows + columns)}")


def _conv(graph: Graph, equation: Any, x: str, w: str) -> str:
    p = equation.params
    numbers = p["dimension_numbers"]
    if p["batch_group_count"] != 1 or any(d != 1 for d in p["lhs_dilation"]) or any(n < 0 for pair in p["padding"] for n in pair):
        raise _refuse(equation, "is transposed, or grouped by samples")
    pads = [low for low, _ in p["padding"]] + [high for _, high in p["padding"]]
    kernel = [equation.invars[1].aval.shape[i] for i in numbers.rhs_spec[2:]]
    given = [graph.turned(x, numbers.lhs_spec), graph.turned(w, numbers.rhs_spec)]
    y = graph.node("Conv", given, kernel_shape=kernel, strides=p["window_strides"], dilations=p["rhs_dilation"], pads=pads,
                   group=p["feature_group_count"])  # fmt: skip
    return graph.turned(y, [numbers.out_spec.index(i) for i in range(len(numbers.out_spec))])


def _pool(op: str) -> Primitive:
    def apply(graph: Graph, equation: Any, value: str) -> str:
        p = equation.params
        window, rank = p["window_dimensions"], len(p["window_dimensions"])
        still = [i for i in range(rank) if window[i] == 1 and p["window_strides"][i] == 1 and tuple(p["padding"][i]) == (0, 0)]
        moving = [i for i in range(rank) if i not in still[:1] + still[-1:]]
        if len(still) < 2 or not moving or any(d != 1 for d in (*p["base_dilation"], *p["window_dilation"])):
            raise _refuse(equation, "its windows span every axis, or are dilated")
        perm = [still[0], still[-1], *moving]
        pads = [p["padding"][i][0] for i in moving] + [p["padding"][i][1] for i in moving]
        kernel, strides = [window[i] for i in moving], [p["window_strides"][i] for i in moving]
        more = {"count_include_pad": 1} if op == "AveragePool" else {}
        y = graph.node(op, [graph.turned(value, perm)], kernel_shape=kernel, strides=strides, pads=pads, **more)
        if op == "AveragePool":
            y = graph.node("Mul", [y, graph.constant(np.asarray(math.prod(kernel), equation.invars[0].aval.dtype))])
        return graph.turned(y, [perm.index(i) for i in range(rank)])

    return apply


def _reduce(op: str) -> Primitive:
    def apply(graph: Graph, equation: Any, value: str) -> str:
        return graph.node(op, [value, graph.whole(*equation.params["axes"])], keepdims=0)

    return apply


def _truth(op: str) -> Primitive:
    """All or any along axes, by the smallest or largest of 0 and 1."""

    def apply(graph: Graph, equation: Any, value: str) -> str:
        numbers = graph.node("Cast", [value], to=onnx.TensorProto.INT32)
        found = graph.node(op, [numbers, graph.whole(*equation.params["axes"])], keepdims=0)
        return graph.node("Cast", [found], to=onnx.TensorProto.BOOL)

    return apply


def _arg(op: str) -> Primitive:
    def apply(graph: Graph, equation: Any, value: str) -> str:
        found = graph.node(op, [value], axis=equation.params["axes"][0], keepdims=0)
        return graph.node("Cast", [found], to=helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["index_dtype"])))

    return apply


def _cumulate(graph: Graph, equation: Any, value: str) -> str:
    axis = graph.constant(np.asarray(equation.params["axis"], np.int64))
    return graph.node("CumSum", [value, axis], reverse=int(equation.params["reverse"]))


def _split(graph: Graph, equation: Any, value: str) -> list[str]:
    axis, ends = graph.whole(equation.params["axis"]), np.cumsum([0, *equation.params["sizes"]])
    bounds = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    return [graph.node("Slice", [value, graph.whole(start), graph.whole(end), axis]) for start, end in bounds]


def _gather(graph: Graph, equation: Any, value: str, indices: str) -> str:
    """Whole slices along one axis, as x[i] and jnp.take make them."""
    p, shape = equation.params, equation.invars[0].aval.shape
    numbers, count = p["dimension_numbers"], len(equation.invars[1].aval.shape) - 1
    axis = numbers.start_index_map[0] if len(numbers.start_index_map) == 1 else -1
    wanted = tuple(1 if i == axis else size for i, size in enumerate(shape))
    offsets = tuple(i for i in range(len(shape) - 1 + count) if not axis <= i < axis + count)
    plain = not getattr(numbers, "operand_batching_dims", ()) and tuple(numbers.collapsed_slice_dims) == (axis,)
    if axis < 0 or not plain or tuple(p["slice_sizes"]) != wanted or tuple(numbers.offset_dims) != offsets:
        raise _refuse(equation, "gathers more than whole slices along one axis")
    last = shape[axis] - 1
    flat = graph.reshaped(indices, equation.invars[1].aval.shape[:-1])
    dtype = equation.invars[1].aval.dtype
    # Out of range, JAX takes the nearest (or NaN); ONNX refuses.
    flat = graph.node("Max", [graph.node("Min", [flat, graph.constant(np.asarray(last, dtype))]), graph.constant(np.asarray(0, dtype))])
    return graph.node("Gather", [value, flat], axis=axis)


_UNARY = {"exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt", "abs": "Abs", "neg": "Neg", "sign": "Sign",
          "floor": "Floor", "ceil": "Ceil", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan",
          "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "erf": "Erf"}  # fmt: skip
_BINARY = {"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow",
           "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}  # fmt: skip

PRIMITIVES: dict[str, Primitive] = {
    **{name: _simple(op) for name, op in {**_UNARY, **_BINARY}.items()},
    "rem": _simple("Mod", fmod=1), "rsqrt": _chain("Sqrt", "Reciprocal"), "square": _square, "integer_pow": _power, "erfc": _erfc,
    "log1p": _shifted("Log", 1, 0), "expm1": _shifted("Exp", 0, -1), "not": _not, "and": _bitwise("And"), "or": _bitwise("Or"),
    "xor": _bitwise("Xor"), "ne": lambda graph, equation, a, b: graph.node("Not", [graph.node("Equal", [a, b])]),
    "stop_gradient": _same, "copy": _same, "copy_p": _same, "reduce_precision": _same, "convert_element_type": _cast, "round": _round,
    "select_n": _select, "clamp": _clamp, "broadcast_in_dim": _broadcast, "reshape": _reshape, "squeeze": _reshape,
    "expand_dims": _reshape, "transpose": _transpose, "slice": _slice, "rev": _reverse, "concatenate": _concatenate, "pad": _pad,
    "iota": _iota, "dot_general": _dot, "conv_general_dilated": _conv, "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"), "reduce_sum": _reduce("ReduceSum"), "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"), "reduce_prod": _reduce("ReduceProd"), "reduce_and": _truth("ReduceMin"),
    "reduce_or": _truth("ReduceMax"), "argmax": _arg("ArgMax"), "argmin": _arg("ArgMin"), "cumsum": _cumulate, "gather": _gather,
    "split": _split,
}  # fmt: skip
