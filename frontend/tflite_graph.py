"""A TFLite graph as it becomes ONNX: the values of each tensor, as numbers or as the integers that stand for them, in either layout.

TFLite keeps images as NHWC, ONNX convolves NCHW. A tensor of four axes is made in the layout of the operator that computes it and
turned around only for one that needs the other. A quantized tensor is q with value scale·(q − zero_point): operators read its
DequantizeLinear and end in a QuantizeLinear; what only moves values moves the integers themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from gatewright.errors import ModelError

Array = NDArray[Any]

DTYPES = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 6: np.bool_, 7: np.int16, 9: np.int8, 10: np.float64}
"""Of the schema's TensorType; the others (strings, complex, 4 bits, resources) are refused."""
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True)
class Grid:
    """Quantization of a tensor: one scale, or one for each channel along ``axis``."""

    scale: Array
    zero: Array
    axis: int

    @property
    def plain(self) -> bool:
        return self.scale.size == 1


@dataclass(frozen=True)
class Tensor:
    index: int
    name: str
    shape: tuple[int, ...]
    dtype: Any
    grid: Grid | None
    data: Array | None
    """Of a constant."""


@dataclass
class Graph:
    """The ONNX graph under construction. Values are named by tensor, layout ("" as in TFLite, "nchw") and kind ("" held, "real")."""

    tensors: Sequence[Tensor]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    depth: dict[int, int] = field(default_factory=dict)
    """Of a quantized tensor, how many roundings lie on the longest way to it."""
    step: dict[int, float] = field(default_factory=dict)
    """Of a float tensor that was dequantized, the scale it had."""
    hybrid: bool = False
    """Whether a float operator has 8-bit weights, for which TFLite rounds the activations too."""
    _values: dict[tuple[int, str, str], str] = field(default_factory=dict)
    _count: int = 0

    def node(self, op: str, inputs: Sequence[str], *, outputs: int = 1, **attributes: Any) -> str:
        """A new node; the name of its first output (more are called ``name.1`` …)."""
        self._count += 1
        name = f"{op.lower()}_{self._count}"
        names = [name] + [f"{name}.{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return name

    def constant(self, array: Any, hint: str = "constant") -> str:
        self._count += 1
        name = f"{hint}_{self._count}"
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def defined(self, tensor: Tensor) -> bool:
        return tensor.data is not None or any((tensor.index, layout, "") in self._values for layout in ("", "nchw"))

    def prefers_nchw(self, tensor: Tensor) -> bool:
        """Whether the tensor was computed as NCHW."""
        return (tensor.index, "nchw", "") in self._values and (tensor.index, "", "") not in self._values

    def held(self, tensor: Tensor, layout: str = "") -> str:
        """The tensor as TFLite holds it: integers where it is quantized."""
        key = (tensor.index, layout, "")
        if key not in self._values:
            other = (tensor.index, "" if layout else "nchw", "")
            if tensor.data is not None:
                array = tensor.data.transpose(TO_NCHW) if layout else tensor.data
                self._values[key] = self.constant(array, _plain(tensor.name))
            elif other in self._values:
                self._values[key] = self.node("Transpose", [self._values[other]], perm=TO_NCHW if layout else TO_NHWC)
            else:
                raise ModelError(f"tensor {tensor.name!r} is used before it is computed", hint="the file is damaged")
        return self._values[key]

    def real(self, tensor: Tensor, layout: str = "") -> str:
        """The tensor's values as float32."""
        if tensor.grid is None:
            held = self.held(tensor, layout)
            return self._cast(tensor, held, layout) if tensor.dtype in (np.float16,) else held
        key = (tensor.index, layout, "real")
        if key not in self._values:
            self._values[key] = self.dequantize(self.held(tensor, layout), tensor.grid, self._axis(tensor, layout))
        return self._values[key]

    def dequantize(self, value: str, grid: Grid, axis: int = 0) -> str:
        scale, zero = (grid.scale.reshape(()), grid.zero.reshape(())) if grid.plain else (grid.scale, grid.zero)
        attributes = {} if grid.plain else {"axis": axis}
        return self.node("DequantizeLinear", [value, self.constant(scale, "scale"), self.constant(zero, "zero")], **attributes)

    def put(self, tensor: Tensor, value: str, layout: str = "") -> None:
        """``value`` is the tensor as TFLite holds it."""
        self._values[tensor.index, layout, ""] = value

    def put_real(self, tensor: Tensor, value: str, layout: str = "", *inputs: Tensor) -> None:
        """``value`` is the tensor's value as floats; a quantized tensor is rounded. ``inputs``: what it was computed from."""
        grid = tensor.grid
        self.depth[tensor.index] = max((self.depth.get(i.index, 0) for i in inputs), default=0) + (grid is not None)
        if grid is None:
            self.put(tensor, value, layout)
            return
        if not grid.plain:
            raise ModelError(
                f"tensor {tensor.name!r} is computed, and quantized by channels", hint="one scale for a tensor is what can be computed"
            )
        scale, zero = self.constant(grid.scale.reshape(()), "scale"), self.constant(grid.zero.reshape(()), "zero")
        self.put(tensor, self.node("QuantizeLinear", [value, scale, zero]), layout)

    def _cast(self, tensor: Tensor, held: str, layout: str) -> str:
        key = (tensor.index, layout, "real")
        if key not in self._values:
            self._values[key] = self.node("Cast", [held], to=onnx.TensorProto.FLOAT)
        return self._values[key]

    def _axis(self, tensor: Tensor, layout: str) -> int:
        axis = tensor.grid.axis if tensor.grid is not None else 0
        return TO_NCHW.index(axis) if layout else axis


def tensors_of(subgraph: Any, buffers: Sequence[Any], limit: int) -> list[Tensor]:
    """The tensors of a subgraph, their constants checked against their shapes. Raises ModelError naming the one that is off."""
    made = []
    for index, given in enumerate(subgraph.tensors or ()):
        name = (given.name or b"").decode("utf-8", "replace") or f"tensor_{index}"
        shape = tuple(int(d) for d in (given.shape if given.shape is not None else ()))
        dtype = DTYPES.get(given.type)
        if dtype is None:
            raise ModelError(
                f"tensor {name!r} is of TFLite's type {given.type}, which has no form here", hint="convert with 8 or 16 bits or floats"
            )
        if given.sparsity is not None:
            raise ModelError(f"tensor {name!r} is stored sparse", hint="convert the model without sparsity")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if any(d < 0 for d in shape) or size > limit:
            raise ModelError(f"tensor {name!r} of shape {list(shape)} is past the limit of {limit:,} bytes")
        made.append(Tensor(index, name, shape, dtype, _grid(given, dtype, shape, name), _data(given, buffers, dtype, shape, name, size)))
    return made


def _data(given: Any, buffers: Sequence[Any], dtype: Any, shape: tuple[int, ...], name: str, size: int) -> Array | None:
    if given.externalBuffer or not 0 <= given.buffer < len(buffers):
        raise ModelError(f"tensor {name!r} lies in a buffer that the file does not hold")
    data = buffers[given.buffer].data
    if given.buffer == 0 or data is None or not len(data) or given.isVariable:
        return None
    raw = np.asarray(data, np.uint8).tobytes()
    if len(raw) != size:
        raise ModelError(
            f"tensor {name!r} of shape {list(shape)} needs {size:,} bytes, its buffer has {len(raw):,}", hint="the file is damaged"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _grid(given: Any, dtype: Any, shape: tuple[int, ...], name: str) -> Grid | None:
    found = given.quantization
    if found is None or found.scale is None or not len(found.scale) or dtype in (np.float32, np.float16, np.int64, np.bool_):
        return None
    scale = np.asarray(found.scale, np.float32)
    zero = np.asarray(found.zeroPoint if found.zeroPoint is not None and len(found.zeroPoint) else np.zeros(len(scale)), np.int64)
    zero = np.broadcast_to(zero, scale.shape) if zero.size == 1 else zero
    limits = np.iinfo(dtype)
    if not np.all(np.isfinite(scale) & (scale > 0)) or zero.shape != scale.shape or zero.min() < limits.min or zero.max() > limits.max:
        raise ModelError(f"tensor {name!r}: its scales or zero points are out of range", hint="the file is damaged")
    axis = int(found.quantizedDimension)
    if scale.size > 1 and not (0 <= axis < len(shape) and shape[axis] == scale.size):
        raise ModelError(f"tensor {name!r} has {scale.size} scales, which do not fit its shape {list(shape)}", hint="the file is damaged")
    return Grid(scale, zero.astype(dtype), axis)


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in name)[-40:] or "constant"
