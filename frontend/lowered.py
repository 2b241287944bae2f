"""Operators that tensor operations every target has can say as well: Hardmax, LpPool, EyeLike, Einsum of two operands or one, Det of
small matrices, BatchNormalization that takes its statistics from the batch, Compress by a constant, a Dropout that drops nothing.

Each is exact up to the order of float sums. ``RULES`` is part of canonicalization.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .edit import Editor, attribute, constant_of, input_of, shape_of
from .steps import Steps

Rule = Callable[[Editor, ir.Node], bool]


def hardmax(edit: Editor, node: ir.Node) -> bool:
    """1 at the first largest element along the axis, 0 elsewhere: where the index is ArgMax's."""
    x, shape = node.inputs[0], shape_of(node.inputs[0])
    if x is None or not shape or x.dtype is None:
        return False
    axis = attribute(node, "axis", -1) % len(shape)
    places = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    largest = edit.node("ArgMax", [x], {"axis": axis, "keepdims": 1}, name=node.name or "")
    same = edit.node("Equal", [edit.constant(places, f"{node.name}_places"), largest.outputs[0]])
    edit.replace(node, [largest, same, edit.node("Cast", same.outputs, {"to": int(x.dtype)})])
    return True


def lp_pool(edit: Editor, node: ir.Node) -> bool:
    """(Σ|x|^p)^(1/p) over windows whose place is settled: an average with the padding's zeros, times the window's size."""
    x, kernel, p = node.inputs[0], attribute(node, "kernel_shape"), attribute(node, "p", 2)
    if x is None or x.dtype is None or "pads" not in node.attributes or attribute(node, "ceil_mode", 0) or attribute(node, "auto_pad"):
        return False
    number = x.dtype.numpy().type
    power = edit.node("Pow", [x, edit.constant(np.asarray(p, number), f"{node.name}_p")])
    nodes = [power]
    if p % 2:
        nodes = [edit.node("Abs", [x]), power]
        power.replace_input_with(0, nodes[0].outputs[0])
    mean = edit.node("AveragePool", power.outputs, {"count_include_pad": 1}, name=node.name or "")
    for key in ("kernel_shape", "strides", "pads", "dilations"):
        if key in node.attributes:
            mean.attributes[key] = node.attributes[key]
    total = edit.node("Mul", [mean.outputs[0], edit.constant(np.asarray(math.prod(kernel), number), f"{node.name}_size")])
    root = edit.node("Pow", [total.outputs[0], edit.constant(np.asarray(1 / p, number), f"{node.name}_root")])
    edit.replace(node, [*nodes, mean, total, root])
    return True


def einsum(edit: Editor, node: ir.Node) -> bool:
    """One or two operands without a diagonal: sums over axes of one operand, then one batched matrix product."""
    terms = _terms(node)
    if terms is None:
        return False
    operands, result = terms
    axes = [pair for term, value in zip(operands, node.inputs, strict=True) for pair in zip(term, shape_of(value) or (), strict=True)]
    sizes = dict(axes)
    if any(sizes[letter] != size for letter, size in axes):
        return False  # an axis of one broadcasts
    made = _Terms(edit, node)
    values: list[ir.Value] = []
    for number, (term, value) in enumerate(zip(operands, node.inputs, strict=True)):
        assert value is not None
        others = result + "".join(other for i, other in enumerate(operands) if i != number)
        kept, summed = made.summed(value, term, [letter for letter in term if letter not in others])
        operands[number] = kept
        values.append(summed)
    if len(operands) == 1:
        last = made.turned(values[0], operands[0], result)
    else:
        (a, b), (left, right) = operands, values
        batch = "".join(c for c in a if c in b and c in result)
        inner = "".join(c for c in a if c in b and c not in result)
        rows, columns = "".join(c for c in a if c not in b), "".join(c for c in b if c not in a)
        count = [math.prod(sizes[c] for c in letters) for letters in (rows, inner, columns)]
        whole = [sizes[c] for c in batch]
        left = made.shaped(made.turned(left, a, batch + rows + inner), [*whole, count[0], count[1]])
        right = made.shaped(made.turned(right, b, batch + inner + columns), [*whole, count[1], count[2]])
        product = made.node("MatMul", [left, right])
        last = made.turned(made.shaped(product, [sizes[c] for c in batch + rows + columns]), batch + rows + columns, result)
    if not made.nodes or last is not made.nodes[-1].outputs[0]:
        made.node("Identity", [last])
    edit.replace(node, made.nodes)
    return True


def _terms(node: ir.Node) -> tuple[list[str], str] | None:
    """The letters of each operand and of the result, an ellipsis as letters of its own; None for what is not handled."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    left, arrow, result = equation.partition("->")
    operands = left.split(",")
    shapes = [shape_of(value) for value in node.inputs]
    if len(operands) != len(shapes) or len(operands) > 2 or any(shape is None for shape in shapes):
        return None
    if not arrow:
        letters = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        result = ("..." if "..." in left else "") + "".join(letters)
    spare = [c for c in string.ascii_letters if c not in equation]
    ranks = [len(shape or ()) - len(term.replace("...", "")) for term, shape in zip(operands, shapes, strict=True)]
    hidden = "".join(spare[: max([rank for term, rank in zip(operands, ranks, strict=True) if "..." in term], default=0)])
    operands = [term.replace("...", hidden[len(hidden) - rank :] if rank else "") for term, rank in zip(operands, ranks, strict=True)]
    result = result.replace("...", hidden)
    proper = all(len(set(term)) == len(term) == len(shape or ()) for term, shape in zip(operands, shapes, strict=True))
    return (operands, result) if proper and len(set(result)) == len(result) and set(result) <= set("".join(operands)) else None


class _Terms:
    """Nodes of an Einsum, as they are made."""

    def __init__(self, edit: Editor, node: ir.Node) -> None:
        self._edit, self._name = edit, node.name or "Einsum"
        self.nodes: list[ir.Node] = []

    def node(self, op: str, inputs: list[ir.Value], attributes: dict[str, object] | None = None) -> ir.Value:
        self.nodes.append(self._edit.node(op, inputs, attributes, name=self._name))
        return self.nodes[-1].outputs[0]

    def summed(self, value: ir.Value, term: str, letters: list[str]) -> tuple[str, ir.Value]:
        if not letters:
            return term, value
        axes = self._edit.constant(np.array([term.index(letter) for letter in letters], np.int64), f"{self._name}_axes")
        return "".join(c for c in term if c not in letters), self.node("ReduceSum", [value, axes], {"keepdims": 0})

    def turned(self, value: ir.Value, term: str, wanted: str) -> ir.Value:
        return value if term == wanted else self.node("Transpose", [value], {"perm": [term.index(letter) for letter in wanted]})

    def shaped(self, value: ir.Value, shape: list[int]) -> ir.Value:
        return self.node("Reshape", [value, self._edit.constant(np.array(shape, np.int64), f"{self._name}_shape")])


def eye_like(edit: Editor, node: ir.Node) -> bool:
    """A constant: only the operand's shape and type matter."""
    shape, x = shape_of(node.inputs[0]), node.inputs[0]
    dtype = ir.DataType(attribute(node, "dtype")) if "dtype" in node.attributes else None if x is None else x.dtype
    if shape is None or dtype is None:
        return False
    eye = edit.constant(np.eye(shape[0], shape[1], k=attribute(node, "k", 0), dtype=dtype.numpy()), f"{node.name}_eye")
    edit.replace(node, [edit.node("Identity", [eye], name=node.name or "")])
    return True


_LARGEST_DET = 3
"""Rows of a matrix whose determinant is written out: a product for each permutation of them."""


def det(edit: Editor, node: ir.Node) -> bool:
    """Leibniz: the sum over all permutations of the products that they pick, with their signs."""
    shape = shape_of(node.inputs[0])
    if node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.FLOAT or shape is None or not 1 <= shape[-1] <= _LARGEST_DET:
        return False
    new, n = Steps(edit, node), shape[-1]
    orders = list(itertools.permutations(range(n)))
    flat = new.reshape(node.inputs[0], math.prod(shape[:-2]), n * n)
    picked = [new.op("Gather", flat, new.constant([row * n + order[row] for order in orders]), axis=1) for row in range(n)]
    terms = picked[0]
    for factor in picked[1:]:
        terms = new.op("Mul", terms, factor)
    signs = [(-1) ** sum(a > b for a, b in itertools.combinations(order, 2)) for order in orders]
    total = new.op("ReduceSum", new.op("Mul", terms, new.constant(signs, np.float32)), new.constant([1]), keepdims=0)
    return new.finish(new.reshape(total, *shape[:-2]))


def batch_statistics(edit: Editor, node: ir.Node) -> bool:
    """BatchNormalization in training mode: by the batch's own mean and variance, which the running ones move towards."""
    x, shape = node.inputs[0], shape_of(node.inputs[0])
    if not attribute(node, "training_mode", 0) or x is None or shape is None or len(shape) < 2:
        return False
    if x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE) or any(v is None or v.dtype != x.dtype for v in node.inputs[1:5]):
        return False
    new, dtype = Steps(edit, node), x.dtype.numpy()
    others = new.constant([axis for axis in range(len(shape)) if axis != 1])
    column = (shape[1], *[1] * (len(shape) - 2))
    mean = new.op("ReduceMean", x, others, keepdims=1)
    centred = new.op("Sub", x, mean)
    variance = new.op("ReduceMean", new.op("Mul", centred, centred), others, keepdims=1)
    deviation = new.op("Sqrt", new.op("Add", variance, new.constant(attribute(node, "epsilon", 1e-5), dtype)))
    scaled = new.op("Mul", new.op("Div", centred, deviation), new.reshape(node.inputs[1], *column))
    results = [new.op("Add", scaled, new.reshape(node.inputs[2], *column))]
    kept = attribute(node, "momentum", 0.9)
    for running, current in zip(node.inputs[3:5], (mean, variance), strict=True):
        moved = new.op("Mul", new.reshape(current, shape[1]), new.constant(1 - kept, dtype))
        results.append(new.op("Add", new.op("Mul", running, new.constant(kept, dtype)), moved))
    return new.finish(*results[: len(node.outputs)])


def compress(edit: Editor, node: ir.Node) -> bool:
    """By a constant condition: the places where it is true."""
    x, shape, condition = node.inputs[0], shape_of(node.inputs[0]), constant_of(input_of(node, 1))
    if x is None or shape is None or condition is None:
        return False
    new, axis = Steps(edit, node), attribute(node, "axis")
    places = new.constant(np.flatnonzero(condition))
    if axis is None:
        return new.finish(new.op("Gather", new.reshape(x, math.prod(shape)), places, axis=0))
    return new.finish(new.op("Gather", x, places, axis=axis % len(shape)))


def drops_nothing(edit: Editor, node: ir.Node) -> bool:
    """Dropout in training mode, with a ratio of 0: its input, and a mask of nothing but true."""
    ratio, shape = constant_of(input_of(node, 1)), shape_of(node.inputs[0])
    if ratio is None or ratio.size != 1 or float(ratio.reshape(())) != 0 or node.inputs[0] is None or shape is None:
        return False
    new = Steps(edit, node)
    return new.finish(*[node.inputs[0], new.constant(np.ones(shape), np.bool_)][: len(node.outputs)])


RULES: dict[str, tuple[Rule, ...]] = {
    "Hardmax": (hardmax,), "Einsum": (einsum,), "EyeLike": (eye_like,), "Det": (det,), "BatchNormalization": (batch_statistics,),
    "Compress": (compress,),
}  # fmt: skip
