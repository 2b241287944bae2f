"""Operators between grids of integers, and those that hold integers themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from random_base import Array, fits
from random_layers import Layers


class Quantized(Layers):
    """QuantizeLinear, DequantizeLinear and what stands between them."""

    def quantized_input(self) -> str:
        """A float value that is a DequantizeLinear's, made of one that is at hand."""
        found = [n.output[0] for n in self.nodes if n.op_type == "DequantizeLinear" and self.values[n.output[0]].size]
        if found and self.chance(0.7):
            return str(self.choose(found))
        x = self.pick(lambda a: a.dtype == np.float32 and a.size) or self.input(self.shape(), np.float32)
        return self.through_grid(x) or x

    def grid(self, dtype: str, largest: float) -> tuple[Array, Array]:
        scale = max(largest, 0.1) / (200.0 if dtype.startswith("u") else 110.0)
        if dtype.endswith("16"):
            scale /= 200
        if self.chance(0.4):
            scale = float(2.0 ** np.ceil(np.log2(scale)))
        zero = 0 if self.chance(0.4) else int(self.random.integers(100, 150) if dtype == "uint8" else self.random.integers(-20, 20))
        if dtype == "uint16":
            zero = abs(zero)
        return np.asarray(scale, np.float32), np.asarray(zero, dtype)

    def through_grid(self, x: str) -> str | None:
        """QuantizeLinear, perhaps movement of the integers, DequantizeLinear."""
        if self.opset < 10:
            return None
        dtype = self.choose(["int8", "uint8", "uint8", "int8", "int16", "uint16"] if self.opset >= 21 else ["int8", "uint8"])
        scale, zero = self.grid(dtype, float(np.abs(self.values[x]).max(initial=0)))
        s, z = self.constant(scale, shared=True), self.constant(zero, shared=True)
        q = self.add("QuantizeLinear", [x, s, z])
        if q is None:
            return None
        if self.chance(0.15) and self.values[q].ndim > 1:
            q = self.add("Transpose", [q]) or q
        return self.add("DequantizeLinear", [q, s, z])

    def integer_weight(self, shape: Sequence[int], axis: int) -> str:
        """A dequantized int8 weight, one scale or one for each channel along ``axis``."""
        q = self.random.integers(-127, 128, tuple(shape))
        if self.opset >= 13 and self.chance(0.5):
            scale = self.random.uniform(0.5, 1.5, shape[axis]).astype(np.float32) / 128
            names = [self.constant(q, np.int8), self.constant(scale), self.constant(np.zeros(shape[axis]), np.int8)]
            return self.add("DequantizeLinear", names, axis=axis) or ""
        one = np.asarray(self.choose([1 / 128, 1 / 64, 0.011]), np.float32)
        return self.add("DequantizeLinear", [self.constant(q, np.int8), self.constant(one), self.constant(0, np.int8)]) or ""

    def quantized(self) -> None:
        """An operator between grids."""
        if self.opset < 10 or self.float != np.float32:
            return
        x = self.quantized_input()
        a = self.values[x]
        made: str | None = None
        kind = self.choose(["conv", "matmul", "add", "mul", "table", "pool", "concat", "move", "global", "relu", "softmax"])
        if kind == "conv" and 3 <= a.ndim <= 4:
            attributes = self.window(a.shape[2:]) or {}
            out = int(self.random.integers(1, 9))
            weight = self.integer_weight((out, a.shape[1], *attributes["kernel_shape"]), 0)
            made = self.add("Conv", [x, weight], **attributes) if weight else None
        elif kind == "matmul" and a.ndim >= 2:
            weight = self.integer_weight((a.shape[-1], self.size()), 1)
            made = self.add("MatMul", [x, weight]) if weight else None
        elif kind in ("add", "mul"):
            other = self.quantized_input()
            made = self.add("Add" if kind == "add" else "Mul", [x, other]) if fits(a.shape, self.values[other].shape) else None
        elif kind == "table":
            made = self.add(self.choose(["Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Abs", "Elu"]), [x])
        elif kind == "pool" and a.ndim == 4:
            made = self.add(self.choose(["MaxPool", "AveragePool"]), [x], **(self.window(a.shape[2:]) or {}))
        elif kind == "global" and a.ndim == 4:
            made = self.add("GlobalAveragePool", [x])
        elif kind == "concat" and a.ndim:
            other = self.quantized_input()
            made = self.add("Concat", [x, other], axis=self.axis(x)) if self.values[other].ndim == a.ndim else None
        elif kind == "move" and a.ndim > 1:
            made = self.add("Transpose", [x])
        elif kind == "relu":
            made = self.add(self.choose(["Relu", "Neg"]), [x])
        elif kind == "softmax" and a.ndim:
            made = self.add("Softmax", [x], axis=-1 if self.opset >= 13 else a.ndim - 1)
        if made is not None:
            if self.chance(0.3):
                made = self.add("Relu", [made]) or made
            self.through_grid(made)

    def integer_operator(self) -> None:
        """The operators that hold integers themselves."""
        if self.opset < 10 or self.float != np.float32:
            return
        x = self.quantized_input()
        q = self.pick(lambda a: a.dtype in (np.int8, np.uint8) and 2 <= a.ndim <= 4 and a.size, "iu")
        kind = self.choose(["dynamic", "matmul_integer", "conv_integer", "qlinear_matmul", "qlinear_conv"])
        if kind == "dynamic" and self.opset >= 11:
            self.add("DynamicQuantizeLinear", [x], 3)
            return
        if q is None:
            return
        a = self.values[q]
        zero = self.constant(int(self.choose([0, 3])), a.dtype)
        scales = [self.constant(v, np.float32) for v in (0.02, 0.01, 0.05)]
        if kind.endswith("matmul") or kind == "matmul_integer":
            weight = self.constant(self.random.integers(-127, 128, (a.shape[-1], self.size())), np.int8)
            none = self.constant(0, np.int8)
            if kind == "matmul_integer":
                self.add("MatMulInteger", [q, weight, zero, none])
            else:
                self.add("QLinearMatMul", [q, scales[0], zero, weight, scales[1], none, scales[2], self.constant(2, a.dtype)])
        elif a.ndim == 4:
            attributes = self.window(a.shape[2:]) or {}
            weight = self.constant(self.random.integers(-127, 128, (3, a.shape[1], *attributes["kernel_shape"])), np.int8)
            if kind == "conv_integer":
                self.add("ConvInteger", [q, weight, zero], **attributes)
            else:
                none = self.constant(0, np.int8)
                self.add("QLinearConv", [q, scales[0], zero, weight, scales[1], none, scales[2], self.constant(2, a.dtype)], **attributes)
