"""Random small models for property tests: canonical float graphs, and what the quantize pass makes of them.

    @given(float_models())
    def test_fuse(model): ...

A model is a seed and a list of step names, so that a failing example is short to read and easy to build again:
``build(7, ["conv", "batch_norm", "relu"])``. Every step keeps values around 1, so that quantization has something to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gatewright.frontend.data import Dataset
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline

Array = NDArray[Any]

IMAGE_STEPS = (
    "conv", "conv_1x1", "conv_stride", "conv_grouped", "conv_depthwise", "conv_no_bias", "conv_asymmetric", "pad_conv", "pad_pool",
    "batch_norm", "relu", "relu_twice", "relu6", "clip", "max_min", "max_pool", "average_pool", "average_pool_padded", "add_number",
    "add_channels",
    "mul_number", "mul_channels", "sub_from", "div_number", "residual", "join", "sigmoid", "tanh", "leaky_relu", "hard_swish", "swish",
    "transposed", "reshaped", "branch_mul", "conv_transpose", "split_join", "identity",
)  # fmt: skip
VECTOR_STEPS = (
    "gemm", "matmul", "matmul_add", "batch_norm", "relu", "relu6", "clip", "add_number", "mul_number", "add_channels", "mul_channels",
    "sub_from", "div_number", "residual", "join", "sigmoid", "tanh", "swish", "gelu",
)  # fmt: skip
QUANTIZED_IMAGE_STEPS = tuple(s for s in IMAGE_STEPS if s not in ("conv_transpose",))
"""Steps whose operators all have an integer form once fused."""


def build(seed: int, steps: Sequence[str], *, image: bool = True, softmax: bool = False, samples: int = 1) -> Model:
    """The canonical model of these steps: input ``x`` [samples, 3, 6, 6] or [samples, 10], output ``y``."""
    maker = _Maker(seed, image, samples)
    for step in steps:
        getattr(maker, step)()
    return maker.finish(softmax)


def feeds(model: Model, samples: int, seed: int = 0) -> dict[str, Array]:
    """Random inputs around 1, stacked along axis 0."""
    random = np.random.default_rng(seed)
    return {info.name: random.normal(0.2, 1.0, (samples, *info.shape[1:])).astype(info.dtype) for info in model.inputs}


def dataset(model: Model, samples: int = 24, seed: int = 1) -> Dataset:
    return Dataset(feeds(model, samples, seed))


@st.composite
def float_models(draw: st.DrawFn, max_steps: int = 6, image: bool | None = None, steps: Sequence[str] | None = None) -> Model:
    is_image = draw(st.booleans()) if image is None else image
    names = draw(st.lists(st.sampled_from(steps or (IMAGE_STEPS if is_image else VECTOR_STEPS)), min_size=1, max_size=max_steps))
    return build(draw(st.integers(0, 2**16)), names, image=is_image, softmax=draw(st.booleans()))


@st.composite
def quantize_texts(draw: st.DrawFn) -> str:
    """Pipeline text of a quantization with drawn options."""
    bits, grid = draw(st.sampled_from([2, 3, 4, 5, 7, 8, 8, 10])), draw(st.sampled_from(["affine", "symmetric", "pow2"]))
    weight_bits = draw(st.sampled_from([2, 4, 6, 8, 8]))
    per, reach = draw(st.sampled_from(["tensor", "channel"])), draw(st.sampled_from(["minmax", "percentile"]))
    return f"quantize{{bits={bits},weight_bits={weight_bits},grid={grid},per={per},range={reach},percentile=99.5}}"


@st.composite
def quantized_models(draw: st.DrawFn, max_steps: int = 5, image: bool | None = None, text: str | None = None) -> Model:
    """A quantized model; every node but the float edges has an exact integer form."""
    is_image = draw(st.booleans()) if image is None else image
    steps = QUANTIZED_IMAGE_STEPS if is_image else VECTOR_STEPS
    model = draw(float_models(max_steps, is_image, steps))
    pipeline = Pipeline.parse(f"fuse,{text or draw(quantize_texts())}")
    return pipeline.run(model, PassContext(data=dataset(model)))


class _Maker:
    def __init__(self, seed: int, image: bool, samples: int) -> None:
        self.random = np.random.default_rng(seed)
        self.image = image
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shape: tuple[int, ...] = (samples, 3, 6, 6) if image else (samples, 10)
        self.value = "x"
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        self.count = 0

    # ---- building -----------------------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, shape: tuple[int, ...] | None = None, **attributes: Any) -> str:
        self.count += 1
        name = f"{kind.lower()}_{self.count}"
        self.nodes.append(helper.make_node(kind, inputs, [f"v{self.count}"], name, **attributes))
        self.shape = shape or self.shape
        self.value = f"v{self.count}"
        return self.value

    def constant(self, array: Any) -> str:
        self.count += 1
        self.constants.append(numpy_helper.from_array(np.asarray(array), f"c{self.count}"))
        return f"c{self.count}"

    def normal(self, *shape: int, fan_in: int = 1, about: float = 0.0) -> str:
        return self.constant((about + self.random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32))

    def finish(self, softmax: bool) -> Model:
        if self.image:
            self.op("GlobalAveragePool", self.value, shape=(*self.shape[:2], 1, 1))
            self.op("Flatten", self.value, shape=self.shape[:2])
        self.gemm(4)
        if softmax:
            self.op("Softmax", self.value, axis=1)
        self.nodes[-1].output[0] = "y"
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, self.shape)
        graph = helper.make_graph(self.nodes, "random", [self.input], [output], self.constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return load(proto, name="random")

    def along_channels(self, array: Array) -> str:
        return self.constant(array.astype(np.float32).reshape(-1, *[1] * (len(self.shape) - 2)))

    # ---- layers -------------------------------------------------------------------------------------------------

    def conv(
        self, kernel: int = 3, stride: int = 1, pads: Sequence[int] = (1, 1, 1, 1), group: int = 1, bias: bool = True, out: int = 0
    ) -> None:
        batch, channels, height, width = self.shape
        if min(height + pads[0] + pads[2], width + pads[1] + pads[3]) < kernel:
            return
        out = out or (channels if group > 1 else int(self.random.integers(2, 6)))
        weight = self.normal(out, channels // group, kernel, kernel, fan_in=channels // group * kernel * kernel)
        extra = [self.normal(out, fan_in=4)] if bias else []
        sizes = [(n + a + b - kernel) // stride + 1 for n, a, b in ((height, pads[0], pads[2]), (width, pads[1], pads[3]))]
        self.op(
            "Conv", self.value, weight, *extra, shape=(batch, out, *sizes), kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=list(pads), group=group,
        )  # fmt: skip

    def conv_1x1(self) -> None:
        self.conv(kernel=1, pads=(0, 0, 0, 0))

    def conv_stride(self) -> None:
        self.conv(stride=2)

    def conv_no_bias(self) -> None:
        self.conv(bias=False)

    def conv_asymmetric(self) -> None:
        self.conv(pads=(0, 1, 2, 1))

    def conv_grouped(self) -> None:
        if self.shape[1] % 2:
            self.conv(kernel=1, pads=(0, 0, 0, 0), out=4)
        self.conv(group=2)

    def conv_depthwise(self) -> None:
        self.conv(group=self.shape[1])

    def conv_transpose(self) -> None:
        batch, channels, height, width = self.shape
        if height > 8:
            return
        out = int(self.random.integers(2, 5))
        weight, bias = self.normal(channels, out, 2, 2, fan_in=channels), self.normal(out)
        self.op("ConvTranspose", self.value, weight, bias, shape=(batch, out, 2 * height, 2 * width), kernel_shape=[2, 2], strides=[2, 2])

    def pad_conv(self) -> None:
        self._pad(1, 0)
        self.conv(pads=(0, 0, 0, 0) if self.random.integers(2) else (1, 0, 0, 1))

    def pad_pool(self) -> None:
        self.relu()
        self._pad(1, 0)
        kind = "MaxPool" if self.random.integers(2) else "AveragePool"
        batch, channels, height, width = self.shape
        self.op(kind, self.value, shape=(batch, channels, height - 1, width - 1), kernel_shape=[2, 2])

    def _pad(self, amount: int, fill: float) -> None:
        batch, channels, height, width = self.shape
        pads = self.constant(np.asarray([0, 0, amount, 0, 0, 0, amount, amount], np.int64))
        value = self.constant(np.asarray(fill, np.float32))
        self.op("Pad", self.value, pads, value, shape=(batch, channels, height + 2 * amount, width + amount))

    def gemm(self, out: int = 0) -> None:
        batch, depth = self.shape
        out = out or int(self.random.integers(3, 9))
        self.op("Gemm", self.value, self.normal(depth, out, fan_in=depth), self.normal(out, fan_in=4), shape=(batch, out))

    def matmul(self) -> None:
        batch, depth = self.shape
        out = int(self.random.integers(3, 9))
        self.op("MatMul", self.value, self.normal(depth, out, fan_in=depth), shape=(batch, out))

    def matmul_add(self) -> None:
        self.matmul()
        bias = self.normal(self.shape[1], fan_in=4)
        self.op("Add", *((self.value, bias) if self.random.integers(2) else (bias, self.value)))

    # ---- between layers -----------------------------------------------------------------------------------------

    def batch_norm(self) -> None:
        n = self.shape[1]
        gamma = self.random.uniform(-1.5, 1.5, n) * (self.random.random(n) > 0.1)
        rest = (self.random.normal(0, 0.5, n), self.random.normal(0, 0.5, n), self.random.uniform(0.3, 2.0, n))
        names = [self.constant(a.astype(np.float32)) for a in (gamma, *rest)]
        self.op("BatchNormalization", self.value, *names, epsilon=1e-3)

    def relu(self) -> None:
        self.op("Relu", self.value)

    def relu_twice(self) -> None:
        self.relu()
        self.relu()

    def relu6(self) -> None:
        self._clip(0.0, 6.0)

    def clip(self) -> None:
        low = float(self.random.uniform(-1, 0.5))
        self._clip(low, low + float(self.random.uniform(0.5, 2)))

    def _clip(self, low: float, high: float) -> None:
        self.op("Clip", self.value, self.constant(np.float32(low)), self.constant(np.float32(high)))

    def max_min(self) -> None:
        self.op("Max", self.value, self.constant(np.float32(-0.5)))
        self.op("Min", self.constant(np.float32(1.5)), self.value)

    def max_pool(self) -> None:
        self._pool("MaxPool", pads=[0, 1, 1, 0])

    def average_pool(self) -> None:
        self._pool("AveragePool", pads=[0, 0, 0, 0])

    def average_pool_padded(self) -> None:
        self._pool("AveragePool", pads=[1, 1, 1, 1], count_include_pad=int(self.random.integers(2)))

    def _pool(self, kind: str, pads: list[int], **attributes: int) -> None:
        batch, channels, height, width = self.shape
        if min(height, width) < 2:
            return
        size = [n + a + b - 1 for n, a, b in ((height, pads[0], pads[2]), (width, pads[1], pads[3]))]
        self.op(kind, self.value, shape=(batch, channels, *size), kernel_shape=[2, 2], pads=pads, **attributes)

    def _number(self) -> str:
        value = np.float32(self.random.uniform(0.3, 1.6) * self.random.choice([-1, 1]))
        return self.constant(value if self.random.integers(2) else value.reshape([1] * int(self.random.integers(1, 3))))

    def add_number(self) -> None:
        self.op("Add", self.value, self._number())

    def mul_number(self) -> None:
        self.op("Mul", self._number(), self.value)

    def sub_from(self) -> None:
        self.op("Sub", self._number(), self.value)

    def div_number(self) -> None:
        self.op("Div", self.value, self._number())

    def add_channels(self) -> None:
        self.op("Add", self.along_channels(self.random.normal(0, 0.5, self.shape[1])), self.value)

    def mul_channels(self) -> None:
        self.op("Mul", self.value, self.along_channels(self.random.uniform(-1.2, 1.2, self.shape[1])))

    def residual(self) -> None:
        before, shape = self.value, self.shape
        if self.image:
            self.conv(out=shape[1])
            if self.random.integers(2):
                self.batch_norm()
        else:
            self.gemm(shape[1])
        if self.random.integers(2):
            self.relu()
        self.op("Add" if self.random.integers(3) else "Sub", before, self.value)

    def join(self) -> None:
        before, shape = self.value, self.shape
        self.conv() if self.image else self.gemm()
        if self.random.integers(2):
            self.relu()
        self.op("Concat", self.value, before, shape=(shape[0], shape[1] + self.shape[1], *shape[2:]), axis=1)

    def split_join(self) -> None:
        if self.shape[1] < 2:
            return
        sizes = [1, self.shape[1] - 1]
        self.count += 1
        first, second = f"v{self.count}a", f"v{self.count}b"
        lengths = self.constant(np.asarray(sizes, np.int64))
        self.nodes.append(helper.make_node("Split", [self.value, lengths], [first, second], f"split_{self.count}", axis=1))
        relu = self.op("Relu", second)
        self.op("Concat", relu, first, axis=1)

    def sigmoid(self) -> None:
        self.op("Sigmoid", self.value)

    def tanh(self) -> None:
        self.op("Tanh", self.value)

    def leaky_relu(self) -> None:
        self.op("LeakyRelu", self.value, alpha=0.1)

    def hard_swish(self) -> None:
        if self.random.integers(2):
            self.op("HardSwish", self.value)
            return
        before = self.value
        self.op("Mul", before, self.op("HardSigmoid", before, alpha=1 / 6, beta=0.5))

    def swish(self) -> None:
        before = self.value
        self.op("Mul", before, self.op("Sigmoid", before))

    def gelu(self) -> None:
        before = self.value
        self.op("Div", before, self.constant(np.float32(np.sqrt(2))))
        self.op("Erf", self.value)
        self.op("Add", self.value, self.constant(np.float32(1)))
        self.op("Mul", before, self.value)
        self.op("Mul", self.value, self.constant(np.float32(0.5)))

    def transposed(self) -> None:
        before = self.shape
        self.op("Transpose", self.value, shape=tuple(before[i] for i in (0, 2, 3, 1)), perm=[0, 2, 3, 1])
        self.op("Relu", self.value)
        self.op("Transpose", self.value, shape=before, perm=[0, 3, 1, 2])

    def reshaped(self) -> None:
        before = self.shape
        flat = self.constant(np.asarray([0, -1], np.int64))
        self.op("Reshape", self.value, flat)
        self.op("Reshape", self.value, self.constant(np.asarray([0, *before[1:]], np.int64)))

    def branch_mul(self) -> None:
        before, shape = self.value, self.shape
        self.conv_1x1()
        if self.shape[1] != shape[1]:
            self.conv(kernel=1, pads=(0, 0, 0, 0), out=shape[1])
        self.op("Sigmoid", self.value)
        self.op("Mul", before, self.value)

    def identity(self) -> None:
        self.op("Identity", self.value)
