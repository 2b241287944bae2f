"""Operators on elements, and reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper
from random_base import MOST_ELEMENTS, Array, Base, fits

UNARY = (
    ("Abs", -1e9, 1e9), ("Neg", -1e9, 1e9), ("Relu", -1e9, 1e9), ("Sigmoid", -1e9, 1e9), ("Tanh", -1e9, 1e9), ("Exp", -50, 8),
    ("Log", 0.05, 1e9), ("Sqrt", 1e-3, 1e9), ("Erf", -1e9, 1e9), ("Floor", -1e6, 1e6), ("Ceil", -1e6, 1e6), ("Round", -1e6, 1e6),
    ("Sign", -1e9, 1e9), ("Sin", -50, 50), ("Cos", -50, 50), ("Softplus", -1e9, 1e9), ("Softsign", -1e9, 1e9), ("HardSwish", -1e9, 1e9),
    ("HardSigmoid", -1e9, 1e9), ("LeakyRelu", -1e9, 1e9), ("Elu", -1e9, 1e9), ("Selu", -1e9, 1e9), ("Celu", -1e9, 1e9),
    ("ThresholdedRelu", -1e9, 1e9), ("Mish", -1e9, 1e9), ("Gelu", -1e9, 1e9), ("Reciprocal", 0.1, 1e9), ("Asin", -0.95, 0.95),
    ("Acos", -0.95, 0.95), ("Atan", -1e9, 1e9), ("Tan", -1.3, 1.3), ("Sinh", -6, 6), ("Cosh", -6, 6), ("Asinh", -1e3, 1e3),
    ("Acosh", 1.05, 1e3), ("Atanh", -0.9, 0.9), ("Shrink", -1e9, 1e9), ("IsNaN", -1e9, 1e9), ("IsInf", -1e9, 1e9),
    ("Identity", -1e9, 1e9), ("Dropout", -1e9, 1e9),
)  # fmt: skip
"""Operator, and the range in which it is asked for."""
ATTRIBUTES = {
    "HardSigmoid": ("alpha", "beta"), "LeakyRelu": ("alpha",), "Elu": ("alpha",), "Selu": ("alpha", "gamma"), "Celu": ("alpha",),
    "ThresholdedRelu": ("alpha",), "Shrink": ("lambd", "bias"),
}  # fmt: skip
REDUCTIONS = (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceSumSquare",
)  # fmt: skip


class Elementwise(Base):
    """Elementwise operators with broadcasting, comparisons, casts, reductions."""

    def unary(self) -> None:
        op, low, high = self.choose(UNARY)
        x = self.pick(lambda a: a.size == 0 or (a.min() >= low and a.max() <= high))
        if x is None:
            return
        attributes = {key: float(self.random.uniform(0.1, 1.2)) for key in ATTRIBUTES.get(op, ()) if self.chance(0.7)}
        if op == "Gelu" and self.chance(0.5):
            attributes = {"approximate": "tanh"}
        self.add(op, [x], **attributes)

    def partner(self, x: str, fits: Callable[[Array], Any] = lambda a: True) -> str | None:
        """A value that broadcasts with ``x``: another one, or a new constant or input of part of its shape."""
        a = self.values[x]

        def broadcasts(b: Array) -> bool:
            try:
                return b.dtype == a.dtype and fits(b) and np.prod(np.broadcast_shapes(a.shape, b.shape)) <= MOST_ELEMENTS
            except ValueError:
                return False

        if self.chance(0.5) and (found := self.pick(broadcasts, a.dtype.kind)) is not None:
            return found
        shape = [d if self.chance(0.6) else 1 for d in a.shape][int(self.random.integers(0, a.ndim + 1)) :]
        drawn = self.drawn(shape, a.dtype)
        if not fits(drawn):
            return None
        if self.chance(0.75):
            return self.constant(drawn, shared=True)
        name = self.fresh("x")
        self.inputs[name] = self.values[name] = drawn
        return name

    def binary(self) -> None:
        x = self.pick() if self.chance(0.8) else self.pick(kinds="iu")
        if x is None:
            return
        op = self.choose(["Add", "Sub", "Mul", "Div", "Max", "Min", "Add", "Mul", "Pow", "PRelu", "Sum", "Mean", "Mod"])
        if op in ("Div", "Mod"):
            y = self.partner(x, lambda b: b.size == 0 or np.abs(b).min() > 0.1)
        elif op == "Pow":
            y = self.constant(self.choose([0.5, 1.0, 2.0, 3.0, 2.0]), self.values[x].dtype)
            if self.values[x].dtype.kind != "f" or ((self.values[x] <= 0).any() and self.chance(0.8)):
                return
        else:
            y = self.partner(x)
        if y is None:
            return
        operands = [x, y] if op in ("Div", "Mod", "Pow", "PRelu") or self.chance(0.7) else [y, x]
        if op in ("Sum", "Mean", "Max", "Min") and (third := self.partner(x)) is not None and self.chance(0.4):
            operands.append(third)
        attributes = {"fmod": 1} if op == "Mod" and (self.values[x].dtype.kind == "f" or self.chance(0.3)) else {}
        self.add(op, operands, **attributes)

    def compare(self) -> None:
        x = self.pick(kinds="fiu")
        if x is not None and (y := self.partner(x)) is not None:
            # Whether two sums of floats are the same is a matter of their order.
            equal = [] if self.values[x].dtype.kind == "f" else ["Equal"]
            self.add(self.choose(["Greater", "Less", "GreaterOrEqual", "LessOrEqual", *equal]), [x, y])

    def logic(self) -> None:
        x = self.pick(kinds="b")
        if x is None:
            self.compare()
        elif self.chance(0.3):
            self.add("Not", [x])
        elif (y := self.partner(x)) is not None:
            self.add(self.choose(["And", "Or", "Xor", "Equal"]), [x, y])

    def bits(self) -> None:
        x = self.pick(kinds="iu")
        if x is None:
            return
        if self.chance(0.2):
            self.add("BitwiseNot", [x])
        elif self.values[x].dtype.kind == "u" and self.chance(0.5):
            y = self.partner(x, lambda b: b.size == 0 or int(b.max()) < 8)
            if y is not None:
                self.add("BitShift", [x, y], direction=self.choose(["LEFT", "RIGHT"]))
        elif (y := self.partner(x)) is not None:
            self.add(self.choose(["BitwiseAnd", "BitwiseOr", "BitwiseXor"]), [x, y])

    def where(self) -> None:
        condition = self.pick(kinds="b")
        if condition is None:
            self.compare()
            return
        shape = self.values[condition].shape
        x = self.pick(lambda a: fits(a.shape, shape))
        if x is not None and (y := self.partner(x)) is not None:
            self.add("Where", [condition, x, y] if self.chance(0.5) else [condition, y, x])

    def clip(self) -> None:
        x = self.pick(kinds="f" if self.opset < 12 else "fi")
        if x is None:
            return
        low, high = float(self.random.uniform(-1.5, 0.5)), float(self.random.uniform(0.6, 3))
        if self.opset < 11:
            self.add("Clip", [x], **{key: value for key, value in (("min", low), ("max", high)) if self.chance(0.8)})
            return
        dtype = self.values[x].dtype
        bounds = [self.constant(np.asarray(v, dtype), shared=True) if self.chance(0.8) else None for v in (low, high)]
        self.add("Clip", [x, *bounds] if bounds[1] else [x, bounds[0]] if bounds[0] else [x])

    def cast(self) -> None:
        x = self.pick(kinds="fiub")
        if x is None:
            return
        to = np.dtype(
            self.choose(["float32", "float32", "float64", "float16", "int32", "int64", "int8", "uint8", "bool", "int16", "uint32"])
        )
        a = self.values[x]
        bounds = np.iinfo(to) if to.kind in "iu" else None
        if bounds and a.size and a.dtype.kind in "fiu" and not (bounds.min <= float(a.min()) and float(a.max()) <= bounds.max):
            return
        self.add("Cast", [x], to=helper.np_dtype_to_tensor_dtype(to))

    def reduce(self) -> None:
        op = self.choose(REDUCTIONS)
        positive = op in ("ReduceLogSum",)
        x = self.pick(
            lambda a: a.ndim and a.size and (not positive or (a.size and a.min() > 0.05)), "f" if self.chance(0.85) or positive else "i"
        )
        if x is None:
            return
        a = self.values[x]
        if op == "ReduceMean" and a.dtype.kind in "iu" and np.abs(a.astype(float)).sum() > np.iinfo(a.dtype).max:
            return  # ONNX does not say what the mean is of integers whose sum overflows, and each engine has its own answer
        rank = a.ndim
        axes = sorted(self.random.choice(rank, int(self.random.integers(1, rank + 1)), replace=False).tolist())
        axes = [a - rank if self.opset >= 11 and self.chance(0.3) else a for a in axes]
        keep = {} if self.chance(0.3) else {"keepdims": int(self.random.integers(2))}
        since = 13 if op == "ReduceSum" else 18
        if self.chance(0.15):
            self.add(op, [x], **keep)
        elif self.opset >= since:
            self.add(op, [x, self.numbers(axes)], **keep)
        else:
            self.add(op, [x], axes=axes, **keep)

    def arg(self) -> None:
        x = self.pick(lambda a: a.ndim and a.size, "fi")
        if x is None:
            return
        last = {"select_last_index": 1} if self.opset >= 12 and self.chance(0.2) else {}
        self.add(self.choose(["ArgMax", "ArgMin"]), [x], axis=self.axis(x), keepdims=int(self.random.integers(2)), **last)

    def cumulative(self) -> None:
        x = self.pick(lambda a: a.ndim)
        if x is not None and self.opset >= 11:
            flags = {key: 1 for key in ("exclusive", "reverse") if self.chance(0.3)}
            self.add("CumSum", [x, self.constant(self.axis(x), self.choose([np.int64, np.int32]))], **flags)

    def top(self) -> None:
        x = self.pick(lambda a: a.ndim and a.size, "fi")
        if x is None or self.opset < 11:
            return
        axis = self.axis(x)
        count = int(self.random.integers(1, self.values[x].shape[axis] + 1))
        self.add("TopK", [x, self.numbers([count])], 2, axis=axis, largest=int(self.random.integers(2)))
