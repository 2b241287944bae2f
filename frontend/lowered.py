"""Operators that tensor operations every target has can say as well: Hardmax, LpPool, EyeLike, Einsum of two operands or one.

Each is exact up to the order of float sums. ``RULES`` is part of canonicalization.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .edit import Editor, attribute, shape_of

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


RULES: dict[str, tuple[Rule, ...]] = {"Hardmax": (hardmax,), "Einsum": (einsum,), "EyeLike": (eye_like,)}
