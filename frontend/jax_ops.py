"""JAX's primitives as ONNX nodes. A function gets the graph, the equation (parameters, shapes) and the names of its operands."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from . import jax_places
from .jax_graph import Graph, Primitive, refuse

CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "closed_call", "core_call", "remat", "remat2",
         "checkpoint")  # fmt: skip
"""Primitives that only hold another jaxpr."""


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
    if int(equation.params["rounding_method"]) == 1:
        return graph.node("Round", [value])
    # Halves away from zero.
    up = graph.node("Floor", [graph.node("Add", [graph.node("Abs", [value]), _number(graph, equation, 0.5)])])
    return graph.node("Mul", [graph.node("Sign", [value]), up])


def _number(graph: Graph, equation: Any, value: float) -> str:
    """A constant of the operands' type."""
    return graph.constant(np.asarray(value, equation.invars[0].aval.dtype))


def _is_finite(graph: Graph, equation: Any, value: str) -> str:
    return graph.node("Not", [graph.node("Or", [graph.node("IsInf", [value]), graph.node("IsNaN", [value])])])


def _cube_root(graph: Graph, equation: Any, value: str) -> str:
    root = graph.node("Pow", [graph.node("Abs", [value]), _number(graph, equation, 1 / 3)])
    return graph.node("Mul", [graph.node("Sign", [value]), root])


def _exp2(graph: Graph, equation: Any, value: str) -> str:
    return graph.node("Pow", [_number(graph, equation, 2), value])


def _atan2(graph: Graph, equation: Any, y: str, x: str) -> str:
    """The arc tangent of y/x where x is above 0; half a turn further where it is below; a quarter of one where it is 0."""
    zero, half = _number(graph, equation, 0), np.pi
    upright = graph.node("Equal", [x, zero])
    slope = graph.node("Atan", [graph.node("Div", [y, graph.node("Where", [upright, _number(graph, equation, 1), x])])])
    turn = graph.node("Where", [graph.node("Less", [y, zero]), _number(graph, equation, -half), _number(graph, equation, half)])
    found = graph.node("Where", [graph.node("Less", [x, zero]), graph.node("Add", [slope, turn]), slope])
    quarter = graph.node("Mul", [graph.node("Sign", [y]), _number(graph, equation, half / 2)])
    return graph.node("Where", [upright, quarter, found])


def _shift(left: bool) -> Primitive:
    """By multiplication with a power of two, or the division by it that rounds down, as ONNX shifts unsigned numbers only."""

    def apply(graph: Graph, equation: Any, value: str, count: str) -> str:
        dtype = equation.invars[0].aval.dtype
        if np.dtype(dtype).kind == "u":
            return graph.node("BitShift", [value, count], direction="LEFT" if left else "RIGHT")
        power = graph.node("Pow", [_number(graph, equation, 2), count])
        if left:
            return graph.node("Mul", [value, power])
        return graph.node("Div", [graph.node("Sub", [value, graph.node("Mod", [value, power])]), power])

    return apply


def _select(graph: Graph, equation: Any, which: str, *cases: str) -> str:
    if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
        raise refuse(equation, "selects between more than two")
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


def _stack(graph: Graph, equation: Any, *given: str) -> str:
    axis = equation.params["axis"]
    return graph.node("Concat", [graph.node("Unsqueeze", [value, graph.whole(axis)]) for value in given], axis=axis)


def _unstack(graph: Graph, equation: Any, value: str) -> list[str]:
    axis = equation.params["axis"]
    places = range(len(equation.outvars))
    return [graph.node("Gather", [value, graph.constant(np.asarray(i, np.int64))], axis=axis) for i in places]


def _tile(graph: Graph, equation: Any, value: str) -> str:
    return graph.node("Tile", [value, graph.whole(*equation.params["reps"])])


def _pad(graph: Graph, equation: Any, value: str, filler: str) -> str:
    config, shape = equation.params["padding_config"], equation.invars[0].aval.shape
    value = _spread(graph, value, shape, [inner for _, _, inner in config], filler)
    amounts = [low for low, _, _ in config] + [high for _, high, _ in config]
    return graph.node("Pad", [value, graph.whole(*amounts), filler]) if any(amounts) else value


def _spread(graph: Graph, value: str, shape: Sequence[int], between: Sequence[int], filler: str) -> str:
    """``between`` elements so many others: each gets an axis of its own, which is filled up, and what is behind the last is cut off."""
    if not any(between) or 0 in shape:
        return value
    value = graph.reshaped(value, [size for n in shape for size in (n, 1)])
    behind = [amount for inner in between for amount in (0, inner)]
    value = graph.node("Pad", [value, graph.whole(*[0] * len(behind), *behind), filler])
    value = graph.reshaped(value, [n * (inner + 1) for n, inner in zip(shape, between, strict=True)])
    ends = [n * (inner + 1) - inner for n, inner in zip(shape, between, strict=True)]
    return graph.node("Slice", [value, graph.whole(*[0] * len(ends)), graph.whole(*ends)])


def _iota(graph: Graph, equation: Any) -> str:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    line = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return graph.constant(np.broadcast_to(line, shape).astype(equation.params["dtype"]))


def _shift_logical(graph: Graph, equation: Any, value: str, count: str) -> str:
    if np.dtype(equation.invars[0].aval.dtype).kind != "u":
        raise refuse(equation, "shifts a sign bit in among the others")
    return graph.node("BitShift", [value, count], direction="RIGHT")


def _dot(graph: Graph, equation: Any, a: str, b: str) -> str:
    (left, right), (batch_a, batch_b) = equation.params["dimension_numbers"]
    out = equation.outvars[0].aval.dtype
    a, b = (name if v.aval.dtype == out else graph.cast(name, out) for name, v in zip((a, b), equation.invars, strict=True))
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
    if p["batch_group_count"] != 1:
        raise refuse(equation, "is grouped by samples")
    pads = [low for low, _ in p["padding"]] + [high for _, high in p["padding"]]
    kernel = [equation.invars[1].aval.shape[i] for i in numbers.rhs_spec[2:]]
    given = [graph.turned(x, numbers.lhs_spec), graph.turned(w, numbers.rhs_spec)]
    if any(d != 1 for d in p["lhs_dilation"]):
        y = _transposed_conv(graph, equation, kernel, pads, *given)
        return graph.turned(y, [numbers.out_spec.index(i) for i in range(len(numbers.out_spec))])
    if min(pads) < 0:
        zero, half = _number(graph, equation, 0), len(kernel)
        given[0] = graph.node("Pad", [given[0], graph.whole(0, 0, *pads[:half], 0, 0, *pads[half:]), zero])
        pads = [0] * len(pads)
    y = graph.node("Conv", given, kernel_shape=kernel, strides=p["window_strides"], dilations=p["rhs_dilation"], pads=pads,
                   group=p["feature_group_count"])  # fmt: skip
    return graph.turned(y, [numbers.out_spec.index(i) for i in range(len(numbers.out_spec))])


def _transposed_conv(graph: Graph, equation: Any, kernel: Sequence[int], pads: Sequence[int], x: str, w: str) -> str:
    """A convolution of what has zeros between its elements: ConvTranspose by the mirrored kernel, whose whole result is cut or padded."""
    p, rank = equation.params, len(kernel)
    strides, dilations, zero = p["lhs_dilation"], p["rhs_dilation"], _number(graph, equation, 0)
    if p["feature_group_count"] != 1 or any(s != 1 for s in p["window_strides"]):
        shape = [equation.invars[0].aval.shape[i] for i in p["dimension_numbers"].lhs_spec]
        x = _spread(graph, x, shape, [0, 0, *(s - 1 for s in strides)], zero)
        x = graph.node("Pad", [x, graph.whole(0, 0, *pads[:rank], 0, 0, *pads[rank:]), zero])
        return graph.node("Conv", [x, w], kernel_shape=kernel, strides=p["window_strides"], dilations=dilations,
                          group=p["feature_group_count"])  # fmt: skip
    ones, axes = [-1] * rank, range(2, rank + 2)
    mirrored = graph.node("Slice", [w, graph.whole(*ones), graph.whole(*[-(2**31)] * rank), graph.whole(*axes), graph.whole(*ones)])
    y = graph.node("ConvTranspose", [x, graph.turned(mirrored, [1, 0, *axes])], kernel_shape=kernel, strides=strides, dilations=dilations)
    # Of the whole result there is so much more than what the padding asks for, or less.
    more = [n - d * (k - 1) for n, k, d in zip(pads, [*kernel, *kernel], [*dilations, *dilations], strict=True)]
    return graph.node("Pad", [y, graph.whole(0, 0, *more[:rank], 0, 0, *more[rank:]), zero]) if any(more) else y


def _pool(op: str) -> Primitive:
    def apply(graph: Graph, equation: Any, value: str) -> str:
        p = equation.params
        window, rank = p["window_dimensions"], len(p["window_dimensions"])
        still = [i for i in range(rank) if window[i] == 1 and p["window_strides"][i] == 1 and tuple(p["padding"][i]) == (0, 0)]
        moving = [i for i in range(rank) if i not in still[:1] + still[-1:]]
        if len(still) < 2 or not moving or any(d != 1 for d in (*p["base_dilation"], *p["window_dilation"])):
            raise refuse(equation, "its windows span every axis, or are dilated")
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


def _running(combine: Callable[[Graph, str, str], str], start: Callable[[Any], float]) -> Primitive:
    """Along an axis, by doubling: after each step an element holds twice as many (Hillis, Steele: Data parallel algorithms, 1986)."""

    def apply(graph: Graph, equation: Any, value: str) -> str:
        p, given = equation.params, equation.invars[0].aval
        axis, length, rank = p["axis"], given.shape[p["axis"]], len(given.shape)
        neutral, reach = _number(graph, equation, start(given.dtype)), 1
        while reach < length:
            by = -reach if p["reverse"] else reach
            amounts = [by if i == axis else 0 for i in range(rank)] + [-by if i == axis else 0 for i in range(rank)]
            value = combine(graph, value, graph.node("Pad", [value, graph.whole(*amounts), neutral]))
            reach *= 2
        return value

    return apply


def _both(op: str) -> Callable[[Graph, str, str], str]:
    return lambda graph, a, b: graph.node(op, [a, b])


def _log_of_sum(graph: Graph, a: str, b: str) -> str:
    highest = graph.node("Max", [a, b])
    powers = [graph.node("Exp", [graph.node("Sub", [value, highest])]) for value in (a, b)]
    return graph.node("Add", [highest, graph.node("Log", [graph.node("Add", powers)])])


def _lowest(dtype: Any) -> float:
    return -np.inf if np.dtype(dtype).kind == "f" else np.iinfo(dtype).min


def _highest(dtype: Any) -> float:
    return np.inf if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max


def _split(graph: Graph, equation: Any, value: str) -> list[str]:
    axis, ends = graph.whole(equation.params["axis"]), np.cumsum([0, *equation.params["sizes"]])
    bounds = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    return [graph.node("Slice", [value, graph.whole(start), graph.whole(end), axis]) for start, end in bounds]


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
    "reduce_or": _truth("ReduceMax"), "argmax": _arg("ArgMax"), "argmin": _arg("ArgMin"), "cumsum": _cumulate, "split": _split,
    "cumprod": _running(_both("Mul"), lambda dtype: 1), "cummax": _running(_both("Max"), _lowest),
    "cummin": _running(_both("Min"), _highest), "cumlogsumexp": _running(_log_of_sum, _lowest), "is_finite": _is_finite,
    "cbrt": _cube_root, "exp2": _exp2, "atan2": _atan2, "shift_left": _shift(left=True), "shift_right_arithmetic": _shift(left=False),
    "shift_right_logical": _shift_logical,
    "stack": _stack, "unstack": _unstack, "tile": _tile, **jax_places.PRIMITIVES,
}  # fmt: skip
