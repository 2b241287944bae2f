"""Layers: convolution, pooling, products, normalizations, recurrence, branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper
from random_base import OPSETS, Base

DILATED = {("MaxPool", opset) for opset in OPSETS if opset >= 10} | {("AveragePool", opset) for opset in OPSETS if opset >= 19}


class Layers(Base):
    """What networks are made of."""

    def image(self) -> str:
        if self.chance(0.8) and (x := self.pick(lambda a: a.dtype == self.float and 3 <= a.ndim <= 5 and a.size)) is not None:
            return x
        rank = int(self.choose([3, 4, 4, 4, 5]))
        channels = int(self.choose([1, 2, 3, 4, 6, 8, 16]))
        return self.input([self.batch, channels, *(int(self.random.integers(3, 8)) for _ in range(rank - 2))])

    def window(self, spatial: Sequence[int]) -> dict[str, Any] | None:
        """Attributes of a window that fits."""
        rank = len(spatial)
        kernel = [int(self.random.integers(1, min(d, 3) + 1)) for d in spatial]
        attributes: dict[str, Any] = {"kernel_shape": kernel}
        if self.chance(0.5):
            attributes["strides"] = [int(self.random.integers(1, 4)) for _ in range(rank)]
        if self.chance(0.2):
            attributes["auto_pad"] = self.choose(["SAME_UPPER", "SAME_LOWER", "VALID"])
            if "strides" in attributes:
                # Beyond the kernel "the same" would take negative padding, which is left open.
                attributes["strides"] = [min(k, s) for k, s in zip(kernel, attributes["strides"], strict=True)]
        elif self.chance(0.6):
            attributes["pads"] = [int(self.random.integers(0, k)) for _ in range(2) for k in kernel]
        return attributes

    def dilations(self, attributes: dict[str, Any], spatial: Sequence[int]) -> list[int]:
        """Up to 2, where the window still fits: of one that does not, engines make different things."""
        kernel = attributes["kernel_shape"]
        pads = attributes.get("pads", [0] * (2 * len(kernel)))
        room = [n + a + b for n, a, b in zip(spatial, pads, pads[len(kernel) :], strict=False)]
        return [int(self.random.integers(1, 3)) if 2 * (k - 1) + 1 <= n else 1 for k, n in zip(kernel, room, strict=True)]

    def conv(self) -> str | None:
        x = self.image()
        shape = self.values[x].shape
        attributes = self.window(shape[2:])
        if attributes is None:
            return None
        group = int(self.choose([d for d in range(1, shape[1] + 1) if shape[1] % d == 0])) if shape[1] else 1
        out = group * int(self.random.integers(1, max(2, 17 // group)))
        if self.chance(0.2) and "auto_pad" not in attributes:
            attributes["dilations"] = self.dilations(attributes, shape[2:])
        kernel = attributes["kernel_shape"]
        if self.chance(0.2):
            attributes.pop("kernel_shape")
        bias = [self.weight(out)] if self.chance(0.6) else []
        return self.add("Conv", [x, self.weight(out, shape[1] // group, *kernel), *bias], **attributes, group=group)

    def conv_transpose(self) -> None:
        x = self.image()
        shape = self.values[x].shape
        attributes = self.window(shape[2:])
        if attributes is None or shape[1] == 0:
            return
        attributes.pop("auto_pad", None)
        group = int(self.choose([d for d in (1, 2, shape[1]) if shape[1] % d == 0]))
        out = int(self.random.integers(1, 4))
        strides = attributes.get("strides", [1] * len(shape[2:]))
        if self.chance(0.2) and max(strides) > 1:
            attributes["output_padding"] = [int(self.random.integers(0, s)) for s in strides]
        bias = [self.weight(out * group)] if self.chance(0.5) else []
        self.add("ConvTranspose", [x, self.weight(shape[1], out, *attributes["kernel_shape"]), *bias], **attributes, group=group)

    def pool(self) -> None:
        x = self.image()
        attributes = self.window(self.values[x].shape[2:])
        if attributes is None:
            return
        op = self.choose(["MaxPool", "MaxPool", "AveragePool", "AveragePool", "LpPool"])
        if self.opset >= 10 and "auto_pad" not in attributes and op != "LpPool" and self.chance(0.3):
            attributes["ceil_mode"] = 1
        if op == "AveragePool" and self.chance(0.5):
            attributes["count_include_pad"] = 1
        if "auto_pad" not in attributes and (op, self.opset) in DILATED and self.chance(0.2):
            attributes["dilations"] = self.dilations(attributes, self.values[x].shape[2:])
        two = op == "MaxPool" and self.chance(0.1)
        self.add(op, [x], 2 if two else 1, **attributes)

    def global_pool(self) -> None:
        self.add(self.choose(["GlobalAveragePool", "GlobalMaxPool"]), [self.image()])

    def gemm(self) -> None:
        x = self.float_of(2)
        rows, depth = self.values[x].shape
        attributes: dict[str, Any] = {}
        if self.chance(0.2):
            attributes["transA"], depth, rows = 1, rows, depth
        out = self.size()
        shape = (depth, out)
        if self.chance(0.4):
            attributes["transB"], shape = 1, (out, depth)
        if self.chance(0.2):
            attributes["alpha"], attributes["beta"] = 0.5, 1.5
        bias = [self.weight(*self.choose([(out,), (1, out), (rows, 1), (rows, out), ()]))] if self.chance(0.7) or self.opset < 11 else []
        self.add("Gemm", [x, self.weight(*shape), *bias], **attributes)

    def matmul(self) -> None:
        x = self.float_of()
        a = self.values[x]
        if a.ndim == 0:
            return
        y = self.pick(lambda b: b.dtype == a.dtype and b.ndim and b.size and b.shape[-2 if b.ndim > 1 else 0] == a.shape[-1])
        if y is None or self.chance(0.6):
            around = list(a.shape[:-2]) if self.chance(0.3) else []
            shape = [*around, a.shape[-1], self.size()] if self.chance(0.9) else [a.shape[-1]]
            y = self.weight(*shape)
        self.add("MatMul", [x, y])

    def normalization(self) -> None:
        op = self.choose(["BatchNormalization", "InstanceNormalization", "LayerNormalization", "LRN", "GroupNormalization",
                          "MeanVarianceNormalization", "LpNormalization", "RMSNormalization"])  # fmt: skip
        if op == "LayerNormalization":
            x = self.float_of()
            a = self.values[x]
            if a.ndim == 0 or self.opset < 17:
                return
            axis = self.axis(x)
            shape = a.shape[axis % a.ndim :]
            self.add(op, [x, self.weight(*shape), *([self.weight(*shape)] if self.chance(0.6) else [])], axis=axis)
            return
        x = self.image()
        a = self.values[x]
        n = a.shape[1]
        if op == "BatchNormalization":
            variance = self.constant(self.random.uniform(0.3, 2, n), self.float)
            self.add(op, [x, self.weight(n), self.weight(n), self.weight(n), variance], epsilon=float(self.choose([1e-5, 1e-3])))
        elif op == "InstanceNormalization":
            self.add(op, [x, self.weight(n), self.weight(n)])
        elif op == "LRN":
            self.add(op, [x], size=int(self.choose([1, 3, 5])), alpha=0.01, bias=1.5)
        elif op == "GroupNormalization" and self.opset >= 21:
            self.add(op, [x, self.weight(n), self.weight(n)], num_groups=int(self.choose([d for d in (1, 2, n) if n % d == 0])))
        elif op == "MeanVarianceNormalization" and a.ndim == 4:
            self.add(op, [x])
        elif op == "LpNormalization":
            self.add(op, [x], axis=self.axis(x), p=int(self.choose([1, 2])))

    def softmax(self) -> None:
        x = self.pick(lambda a: a.ndim)
        if x is not None:
            self.add(
                self.choose(["Softmax", "Softmax", "LogSoftmax", "Hardmax"]), [x],
                # Of old, what nothing is said of is axis 1.
                **({"axis": self.axis(x)} if self.chance(0.8) or (self.opset < 13 and self.values[x].ndim == 1) else {}),
            )  # fmt: skip

    def einsum(self) -> None:
        x = self.float_of(3)
        if self.opset < 12 or not self.values[x].size:  # ONNX Runtime dies of an empty operand
            return
        b, i, j = self.values[x].shape
        equation, shape = self.choose(
            [("bij,bjk->bik", (b, j, 3)), ("bij,bkj->bik", (b, 2, j)), ("bij,bij->b", (b, i, j)), ("bij->bji", None)]
        )
        self.add("Einsum", [x, self.weight(*shape)] if shape else [x], equation=equation)

    def recurrent(self) -> None:
        x = self.float_of(3)
        steps, _, width = self.values[x].shape
        if not 1 <= steps <= 3 or not self.values[x].size:  # ONNX Runtime dies of an empty operand
            return
        op, gates = self.choose([("RNN", 1), ("LSTM", 4), ("GRU", 3)])
        hidden, two = int(self.random.integers(1, 4)), self.chance(0.2)
        ways = 2 if two else 1
        w, r = self.weight(ways, gates * hidden, width), self.weight(ways, gates * hidden, hidden)
        bias = [self.weight(ways, 2 * gates * hidden)] if self.chance(0.6) else []
        linear = {"linear_before_reset": 1} if op == "GRU" and self.chance(0.5) else {}
        self.add(
            op, [x, w, r, *bias], int(self.choose([1, 2])), hidden_size=hidden, direction="bidirectional" if two else "forward", **linear
        )

    def branch(self) -> None:
        """If, on a constant or on an input."""
        x = self.pick(lambda a: a.ndim)
        if x is None or self.opset < 11:
            return
        flag = np.asarray(self.chance(0.5))
        if self.chance(0.6):
            condition = self.constant(flag)
        else:
            condition = self.fresh("x")
            self.inputs[condition] = self.values[condition] = flag
        info = helper.make_tensor_value_info
        kind, shape = helper.np_dtype_to_tensor_dtype(self.values[x].dtype), self.values[x].shape
        graphs = []
        for op in (self.choose(["Relu", "Tanh", "Identity"]), self.choose(["Neg", "Abs", "Sigmoid"])):
            out = self.fresh("b")
            graphs.append(helper.make_graph([helper.make_node(op, [x], [out])], "branch", [], [info(out, kind, shape)]))
        self.add("If", [condition], then_branch=graphs[0], else_branch=graphs[1])
