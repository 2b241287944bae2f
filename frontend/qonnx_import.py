"""QONNX: ONNX with the operators Quant, BipolarQuant and Trunc, as QDQ of the same grids, compared with QONNX's own executor.

Quant(x, scale, zero point, bits) of a constant becomes integers and a DequantizeLinear; of an activation QuantizeLinear, an integer
Clip where the width is not the type's, DequantizeLinear. Other roundings than half to even, and odd zero points (x/scale + zero is
rounded, not x/scale), are done in floats first, which is exact: the integer is then stored with scale 1 and read with the real one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.shape_inference
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from gatewright.errors import ModelError

from .importing import Imported, finish, need
from .limits import Limits, check_proto
from .model import Model
from .sources import QONNX_DOMAINS

Array = NDArray[Any]

_ACCEPTED = ("", "ai.onnx", *QONNX_DOMAINS)
_EXTRA = "qonnx"
_SAMPLES = 8
_HINT = "clean it with qonnx-cleanup, so that scales and widths are initializers"
_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.round, "HALF_EVEN": np.round, "CEIL": np.ceil, "FLOOR": np.floor, "DOWN": np.fix,
    "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
    "HALF_UP": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),
    "HALF_DOWN": lambda x: np.sign(x) * np.ceil(np.abs(x) - 0.5),
}  # fmt: skip


def from_qonnx(proto: onnx.ModelProto, *, dims: Mapping[str, int], name: str | None, text: str, limits: Limits) -> Model:
    """The canonical model of a QONNX graph. Raises ModelError naming the node whose quantization has no form here."""
    check_proto(proto, limits)
    for node in proto.graph.node:
        if node.domain not in _ACCEPTED or (node.attribute and any(a.HasField("g") for a in node.attribute)):
            where = f"node {node.name!r}: op {node.op_type!r} of domain {node.domain!r}"
            raise ModelError(f"{where} is none of ONNX's or of QONNX's Quant, BipolarQuant and Trunc", hint="export the model without it")
    original = _plain(proto, dims)
    converted = _Conversion(original).run()
    qonnx = need("qonnx", _EXTRA, text)
    samples, expected = _executed(original)
    title = name or proto.graph.name or "model"
    version = getattr(qonnx, "__version__", "") or _version()
    imported = Imported(converted, "qonnx", text, f"QONNX {version}", samples, expected, per_sample=True, rare=1e-3)
    return finish(imported, dims=None, name=title, limits=limits)


def _plain(proto: onnx.ModelProto, dims: Mapping[str, int]) -> onnx.ModelProto:
    """A copy with sizes for free axes, and nothing that QONNX's tools would interpret beyond the graph."""
    made = copy.deepcopy(proto)
    del made.metadata_props[:]
    del made.graph.quantization_annotation[:]
    held = {tensor.name for tensor in made.graph.initializer}
    kept = [value for value in made.graph.input if value.name not in held]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    for value in made.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.dim_value:
                size = dims.get(dim.dim_param) or (dims.get("batch", 1) if axis == 0 else None)
                if size is None:
                    raise ModelError(f"axis {axis} of input {value.name!r} has no size", hint=f"bind it: dims={{{dim.dim_param!r}: 16}}")
                dim.dim_value = size
    return made


class _Conversion:
    """The graph with every operator of QONNX replaced."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = copy.deepcopy(proto)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        for node in proto.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.nodes: list[onnx.NodeProto] = []
        self.count = 0

    def run(self) -> onnx.ModelProto:
        kinds = {"Quant": self.quant, "IntQuant": self.quant, "BipolarQuant": self.bipolar, "Trunc": self.trunc}
        for node in self.proto.graph.node:
            if node.domain not in QONNX_DOMAINS:
                self.nodes.append(node)
            elif node.op_type in kinds:
                kinds[node.op_type](node)
            else:
                raise ModelError(f"node {node.name!r}: QONNX's {node.op_type} has no form here", hint="Quant, BipolarQuant and Trunc have")
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(self.nodes)
        del self.proto.graph.value_info[:]
        version = max((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), default=13)
        if version < 21:
            # Narrow integers came with opset 21; every other operator is converted by itself.
            core = [node for node in self.nodes if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
            self._require_convertible(core, version)
        del self.proto.opset_import[:]
        self.proto.opset_import.append(helper.make_opsetid("", 21))
        self.proto.ir_version = 10
        return onnx.shape_inference.infer_shapes(self.proto)

    def _require_convertible(self, nodes: list[onnx.NodeProto], version: int) -> None:
        """Raises ModelError for an operator whose form changed between its opset and 21."""
        for node in nodes:
            then = onnx.defs.get_schema(node.op_type, version, node.domain)
            now = onnx.defs.get_schema(node.op_type, 21, node.domain)
            unknown = [a.name for a in node.attribute if a.name not in now.attributes]
            if unknown or (
                then.since_version != now.since_version and node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and version < 13
            ):
                where = f"node {node.name!r} ({node.op_type}) of opset {version}"
                raise ModelError(f"{where} is written differently in opset 21", hint="export the model with opset 13 or later")

    def quant(self, node: onnx.NodeProto) -> None:
        attributes = _attributes(node)
        signed, narrow = bool(attributes.get("signed", 1)), bool(attributes.get("narrow", 0))
        scale, zero, bits = self.scale(node, 1), self.whole(node, 2), self.whole(node, 3)
        rounding = str(attributes.get("rounding_mode", "ROUND")).upper()
        if rounding not in _ROUNDINGS:
            raise self.refuse(node, f"rounds by {rounding!r}, which is none of {', '.join(_ROUNDINGS)}")
        if bits == 1 and signed:
            self.bipolar(node)
            return
        if not 1 <= bits <= 32:
            raise self.refuse(node, f"has {bits} bits, 1 to 32 are possible")
        low = -(2 ** (bits - 1)) + narrow if signed else 0
        high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
        given = self.constants.get(node.input[0])
        if given is not None:
            whole = np.clip(_ROUNDINGS[rounding](given / scale + zero), low, high)
            self.stored(node, whole, scale, zero, low, high)
            return
        if bits > 16:
            self.as_floats(node, scale, zero, low, high, rounding)
            return
        dtype = self.dtype(node, low, high, zero)
        exact = rounding in ("ROUND", "HALF_EVEN") and zero % 2 == 0
        axis = self.axis(node, scale, given)
        if exact:
            flat = _flat(scale, axis)
            inputs = [node.input[0], self.constant(flat), self.constant(np.full(flat.shape, zero).astype(dtype))]
        else:
            value = self.rounded(node, scale, zero, rounding)
            inputs = [value, self.constant(np.float32(1)), self.constant(np.zeros((), dtype))]
        q = self.add("QuantizeLinear", inputs, **({"axis": axis} if exact and axis is not None else {}))
        q = self.clipped(q, dtype, low, high)
        self.read(node, q, scale, zero, dtype, axis)

    def bipolar(self, node: onnx.NodeProto) -> None:
        """±scale by the sign, zero counting as positive."""
        scale, given = self.scale(node, 1), self.constants.get(node.input[0])
        if given is not None:
            self.stored(node, np.where(given >= 0, 1, -1), scale, 0, -1, 1)
            return
        positive = self.add("GreaterOrEqual", [node.input[0], self.constant(np.float32(0))])
        q = self.add("Where", [positive, self.constant(np.int8(1)), self.constant(np.int8(-1))])
        self.read(node, q, scale, 0, np.dtype(np.int8), self.axis(node, scale, None))

    def trunc(self, node: onnx.NodeProto) -> None:
        """The integers of the input without their lowest bits."""
        attributes = _attributes(node)
        rounding = str(attributes.get("rounding_mode", "FLOOR")).upper()
        scale, zero = self.scale(node, 1), self.whole(node, 2)
        if rounding not in ("FLOOR", "ROUND", "CEIL"):
            raise self.refuse(node, f"rounds by {rounding!r}, which is none of FLOOR, ROUND, CEIL")
        second = len(node.input) == 6
        out_bits = self.whole(node, 5 if second else 4)
        after = self.scale(node, 4) if second else scale
        shift = 2.0 ** np.round(np.log2(after / scale)) if second else np.float32(2.0 ** (self.whole(node, 3) - out_bits))
        value = self.rounded(node, scale, zero, "ROUND")
        value = self.add("Div", [value, self.constant(np.asarray(shift, np.float32))])
        signed = bool(attributes.get("signed", 1))
        left = zero
        if second:
            if zero and (zero % int(np.max(shift)) or np.size(shift) > 1):
                raise self.refuse(node, f"its zero point {zero} is no multiple of what it cuts off")
            left = int(zero / np.max(shift))
        value = self.add({"FLOOR": "Floor", "ROUND": "Round", "CEIL": "Ceil"}[rounding], [value])
        narrow = bool(attributes.get("narrow", 0))
        low, high = (-(2 ** (out_bits - 1)) + narrow, 2 ** (out_bits - 1) - 1) if signed else (0, 2**out_bits - 1 - narrow)
        if not second:
            # The first version neither says whether it is signed nor bounds its result.
            low, high = -(2**15), 2**15 - 1
        dtype = self.dtype(node, low, high, left)
        q = self.add("QuantizeLinear", [value, self.constant(np.float32(1)), self.constant(np.zeros((), dtype))])
        self.read(node, self.clipped(q, dtype, low, high), after, left, dtype, self.axis(node, after, None))

    def as_floats(self, node: onnx.NodeProto, scale: Array, zero: int, low: int, high: int, rounding: str) -> None:
        """Activations of more than 16 bits, for which there is no type to quantize to."""
        value = self.rounded(node, scale, zero, rounding)
        value = self.add("Clip", [value, self.constant(np.float32(low)), self.constant(np.float32(high))])
        value = self.add("Sub", [value, self.constant(np.float32(zero))])
        self.nodes.append(helper.make_node("Mul", [value, self.constant(scale)], list(node.output), name=node.name))

    def rounded(self, node: onnx.NodeProto, scale: Array, zero: int, rounding: str) -> str:
        value = self.add("Div", [node.input[0], self.constant(scale)])
        if zero:
            value = self.add("Add", [value, self.constant(np.float32(zero))])
        plain = {"ROUND": "Round", "HALF_EVEN": "Round", "FLOOR": "Floor", "CEIL": "Ceil"}
        if rounding in plain:
            return self.add(plain[rounding], [value])
        size, half = self.add("Abs", [value]), self.constant(np.float32(0.5))
        inner = {"UP": ("Ceil", None), "DOWN": ("Floor", None), "HALF_UP": ("Floor", "Add"), "HALF_DOWN": ("Ceil", "Sub")}[rounding]
        size = self.add(inner[1], [size, half]) if inner[1] else size
        return self.add("Mul", [self.add("Sign", [value]), self.add(inner[0], [size])])

    def stored(self, node: onnx.NodeProto, whole: Array, scale: Array, zero: int, low: int, high: int) -> None:
        """A constant as integers."""
        dtype = self.dtype(node, low, high, zero)
        self.read(node, self.constant(whole.astype(dtype)), scale, zero, dtype, self.axis(node, scale, whole))

    def read(self, node: onnx.NodeProto, q: str, scale: Array, zero: int, dtype: Any, axis: int | None) -> None:
        flat = _flat(scale, axis)
        inputs = [q, self.constant(flat), self.constant(np.full(flat.shape, zero).astype(dtype))]
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, list(node.output), name=node.name, **attributes))

    def clipped(self, q: str, dtype: Any, low: int, high: int) -> str:
        limits = ml_dtypes.iinfo(dtype)
        if (limits.min, limits.max) == (low, high):
            return q
        return self.add("Clip", [q, self.constant(np.asarray(low, dtype)), self.constant(np.asarray(high, dtype))])

    def dtype(self, node: onnx.NodeProto, low: int, high: int, zero: int) -> Any:
        """The narrowest type that holds the range and the zero point; four bits only where the range is all of it, as Clip lacks them."""
        if not min(low, 0) <= zero <= high:
            raise self.refuse(node, f"its zero point {zero} lies outside of {low} to {high}")
        for dtype in (ml_dtypes.int4, ml_dtypes.uint4):
            if (ml_dtypes.iinfo(dtype).min, ml_dtypes.iinfo(dtype).max) == (low, high):
                return np.dtype(dtype)
        kinds = (np.int8, np.int16, np.int32) if low < 0 else (np.uint8, np.uint16, np.int32)
        for kind in kinds:
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return np.dtype(kind)
        raise self.refuse(node, f"its range {low} to {high} needs more than 32 bits")

    def axis(self, node: onnx.NodeProto, scale: Array, given: Array | None) -> int | None:
        """The one axis along which scales differ, counted from the front."""
        wide = [i for i, size in enumerate(scale.shape) if size > 1]
        if not wide:
            return None
        if len(wide) > 1:
            raise self.refuse(node, f"its scales of shape {list(scale.shape)} differ along several axes")
        if given is not None and given.ndim != scale.ndim:
            return wide[0] + given.ndim - scale.ndim
        return wide[0]

    def scale(self, node: onnx.NodeProto, index: int) -> Array:
        found = self.constants.get(node.input[index]) if index < len(node.input) else None
        if found is None:
            raise self.refuse(node, "its scale is computed, not constant", _HINT)
        if not np.all(np.isfinite(found) & (found > 0)):
            raise self.refuse(node, "its scale is not positive")
        return np.asarray(found, np.float32)

    def whole(self, node: onnx.NodeProto, index: int) -> int:
        found = self.constants.get(node.input[index]) if index < len(node.input) else None
        if found is None or found.size != 1:
            raise self.refuse(node, "its zero point or width is not one constant", _HINT)
        value = float(found.reshape(()))
        if value != int(value):
            raise self.refuse(node, f"its zero point or width {value} is no whole number")
        return int(value)

    def refuse(self, node: onnx.NodeProto, why: str, hint: str | None = None) -> ModelError:
        return ModelError(f"node {node.name!r} ({node.op_type}) {why}", hint=hint)

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        self.count += 1
        name = f"qonnx_{op.lower()}_{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array: Any) -> str:
        self.count += 1
        name = f"qonnx_constant_{self.count}"
        self.proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name


def _flat(scale: Array, axis: int | None) -> Array:
    return scale.reshape(()) if axis is None else scale.reshape(-1)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in found.items()}


def _executed(proto: onnx.ModelProto) -> tuple[dict[str, Array], list[Array]]:
    """Random samples, several of the model's own batch, and what QONNX's executor makes of them."""
    wrapper = need("qonnx.core.modelwrapper", _EXTRA, "a QONNX model").ModelWrapper
    execute = need("qonnx.core.onnx_exec", _EXTRA, "a QONNX model").execute_onnx
    shapes = need("qonnx.transformation.infer_shapes", _EXTRA, "a QONNX model").InferShapes
    rng = np.random.default_rng(0)
    samples: dict[str, Array] = {}
    for value in proto.graph.input:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        samples[value.name] = rng.normal(size=[_SAMPLES * sizes[0], *sizes[1:]]).astype(dtype)
    outputs = [value.name for value in proto.graph.output]
    try:
        model = wrapper(copy.deepcopy(proto)).transform(shapes())
        pieces = []
        for i in range(_SAMPLES):
            step = {key: array[i * (len(array) // _SAMPLES) : (i + 1) * (len(array) // _SAMPLES)] for key, array in samples.items()}
            made = execute(model, step)
            pieces.append([np.asarray(made[name]) for name in outputs])
    except Exception as error:
        raise ModelError(f"QONNX's executor refuses the model: {type(error).__name__}: {str(error)[:300]}", hint=_HINT) from error
    return samples, [np.concatenate(columns) for columns in zip(*pieces, strict=True)]


def _version() -> str:
    from importlib.metadata import version

    return version("qonnx")
