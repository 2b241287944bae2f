"""Static shapes: dynamic axes of the inputs bound to numbers, and every other shape inferred from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx.shape_inference
import onnx_ir as ir

from gatewright.errors import ModelError, UsageError, nearest

from .edit import attribute, input_of, label, shape_of
from .limits import Limits, raised
from .pooling import pooled_sizes, settle_ceil
from .spectra import stft_shape
from .upgrade import without_weights


@dataclass(frozen=True)
class Binding:
    """What ``bind`` decided."""

    batch: str | None
    """The axis taken as the batch, as a user may name it; None where the model has a fixed batch."""
    sizes: Mapping[str, int]
    """Every axis that was bound, by name."""


def bind(model: ir.Model, dims: Mapping[str, int]) -> Binding:
    """Give every dynamic axis of the inputs a size, in place.

    An axis is named by the file ("sequence"), or as input.axis ("x.2") where the file gives no name. The leading dynamic axis, if
    all inputs that have one share it, is the batch: "batch" names it too, and it is 1 unless bound. Raises ModelError naming an
    axis left open, UsageError naming one that does not exist.
    """
    axes = [(value, axis) for value in model.graph.inputs for axis in _dynamic(value)]
    shown = {value: _shown(value) for value, _ in axes}
    leading = {_symbol(value, axis) for value, axis in axes if axis == 0}
    batch_symbol = next(iter(leading)) if len(leading) == 1 else None
    symbols = {_symbol(value, axis) for value, axis in axes}
    names: list[list[str]] = []
    for value, axis in axes:
        symbol = _symbol(value, axis)
        is_batch = len(leading) == 1 and symbol == batch_symbol and (symbol is not None or axis == 0)
        own = [symbol] if symbol else []
        names.append([*own, f"{value.name}.{axis}", *(["batch"] if is_batch and "batch" not in symbols else [])])
    for name, size in dims.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"axis {name!r} cannot have size {size!r}", hint="a size is a whole number from 1")
        if not any(name in known for known in names):
            hint = nearest(name, {known[0] for known in names}, "axes") if names else "all its axes are fixed"
            raise UsageError(f"the model has no dynamic axis {name!r}", hint=hint)
    sizes: dict[str, int] = {}
    for (value, axis), known in zip(axes, names, strict=True):
        given = next((dims[name] for name in known if name in dims), None)
        is_batch = len(leading) == 1 and known[0] in (batch_symbol, f"{value.name}.0")
        if given is None and not is_batch:
            raise ModelError(
                f"axis {axis} of input {value.name!r} ({shown[value]}) is dynamic and has no size",
                hint=f"bind it to the size you need: dims={{{known[0]!r}: 1}}, on the command line --dims {known[0]}=1",
            )
        sizes[known[0]] = 1 if given is None else given
        assert value.shape is not None
        value.shape = ir.Shape([sizes[known[0]] if i == axis else d for i, d in enumerate(value.shape)])
    for graph in model.graphs():
        for claimed in (value for node in graph for value in node.outputs if value.shape is not None):
            claimed.shape = ir.Shape([sizes.get(str(d.value), d) if isinstance(d, ir.SymbolicDim) else d for d in claimed.shape or ()])
    return Binding((batch_symbol or "batch") if len(leading) == 1 else None, sizes)


def infer(model: ir.Model, limits: Limits) -> bool:
    """Infer types and shapes of all values in place. True if one became known that was not. Raises ModelError where they contradict."""
    modified = _infer_once(model)
    while (node := _wrong_pool(model)) is not None:
        # Everything behind it was inferred from a wrong shape.
        if not settle_ceil(node):
            where = f"node {label(node)!r} ({node.op_type})"
            raise ModelError(f"{where}: ceil_mode with count_include_pad and a window that starts in the padding is not defined")
        forget(model)
        _infer_once(model)
        modified = True
    for node in model.graph:
        for value in node.outputs:
            _check_size(node, value, limits)
    return modified


def _infer_once(model: ir.Model) -> bool:
    proto = without_weights(model)
    _hide(proto)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=False, data_prop=True)
    except Exception as error:
        raise ModelError(f"the model's types or shapes contradict one another: {' '.join(str(error).split())[:400]}") from None
    modified = False
    for graph, shaped in zip(model.graphs(), ir.from_proto(inferred).graphs(), strict=False):
        found = {v.name: v for node in shaped for v in node.outputs} | {v.name: v for v in shaped.outputs}
        for node in graph:
            for value in node.outputs:
                new = found.get(value.name)
                if new is not None:
                    modified |= _take(value, new)
            if node.domain == "ai.onnx.ml":
                modified |= _infer_ml(node)
            elif node.op_type == "STFT" and node.domain == "":
                modified |= _infer_stft(node)
    return modified


def _wrong_pool(model: ir.Model) -> ir.Node | None:
    """The first pooling node with ceil_mode whose shape opset 21's inference gets wrong: a window may not start in the end padding."""
    for node in model.graph:
        if node.domain == "" and node.op_type in ("MaxPool", "AveragePool", "LpPool") and attribute(node, "ceil_mode", 0):
            y, wanted = shape_of(node.outputs[0]), pooled_sizes(node)
            if y is not None and wanted is not None and y[2:] != wanted:
                return node
    return None


def forget(model: ir.Model) -> dict[ir.Value, ir.Shape]:
    """Drop the shapes that the file claims for values other than inputs; returns those that are static.

    They are used again only where inference finds nothing: a claim is not a fact, and most are of unbound axes.
    """
    claimed: dict[ir.Value, ir.Shape] = {}
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if value.shape is not None and value.shape.is_static() and all(int(d) >= 0 for d in value.shape.numpy()):
                    claimed[value] = value.shape
                if value.shape is not None or isinstance(value.type, ir.TensorType):
                    value.shape = None
    return claimed


def fresh(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Static shapes of the main graph's values inferred from its inputs alone: what the recorded shapes must agree with."""
    proto = without_weights(model)
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        del output.type.tensor_type.shape.dim[:]
        output.type.tensor_type.ClearField("shape")
    for node in model.graph:
        if node.op_type == "STFT" and (shape := stft_shape(node)) is not None and node.outputs[0].dtype is not None:
            # Known here, and inferred wrongly there: given.
            name = node.outputs[0].name or ""
            kept = [one for one in proto.graph.node if name not in one.output]
            del proto.graph.node[:]
            proto.graph.node.extend(kept)
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, int(node.outputs[0].dtype), shape))
    inferred = _strictly(proto)
    return {
        v.name: shape
        for v in (*inferred.graph.value_info, *inferred.graph.output)
        if (shape := tuple(d.dim_value if d.HasField("dim_value") else -1 for d in v.type.tensor_type.shape.dim)) is not None
        and v.type.tensor_type.HasField("shape")
        and -1 not in shape
    }


def _strictly(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Strict inference; where it fails although every shape is found without, it stumbled over an operator's own definition."""
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        failure = ModelError(f"the graph's types or shapes contradict one another: {' '.join(str(error).split())[:400]}")
    try:
        lenient = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=False, data_prop=True)
    except Exception:
        raise failure from None
    known = {v.name for v in (*lenient.graph.value_info, *lenient.graph.output) if v.type.tensor_type.HasField("shape")}
    if all(name in known for node in lenient.graph.node for name in node.output if name):
        return lenient
    raise failure


def why_unknown(model: ir.Model, node: ir.Node) -> str:
    """What strict inference says about a node whose shape is not known."""
    try:
        onnx.shape_inference.infer_shapes(without_weights(model), check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return " ".join(str(error).split())[:300]
    data = [v.name for v in node.inputs if v is not None and shape_of(v) is None]
    return f"the shape of its input {data[0]!r} is not known" if data else "it depends on the data"


def _take(value: ir.Value, new: ir.Value) -> bool:
    modified = False
    if new.shape is not None and new.shape != value.shape and (value.shape is None or not value.shape.is_static()):
        value.shape = ir.Shape(list(new.shape))
        modified = new.shape.is_static()
    if new.type is not None and value.type != new.type:
        value.type = new.type
        modified = True
    return modified


def _hide(proto: onnx.ModelProto) -> None:
    """Nodes that onnx 1.22 infers a wrong shape for (of a one-sided STFT the two-sided one) go by a domain of which it knows nothing."""
    hidden = [node for node in proto.graph.node if node.op_type == "STFT" and node.domain == ""]
    for node in hidden:
        node.domain = "gatewright.hidden"
    if hidden:
        proto.opset_import.append(onnx.helper.make_opsetid("gatewright.hidden", 1))


def _infer_stft(node: ir.Node) -> bool:
    y, shape = node.outputs[0], stft_shape(node)
    if y.shape is not None or shape is None or node.inputs[0] is None or node.inputs[0].dtype is None:
        return False
    y.shape, y.type = ir.Shape(shape), ir.TensorType(node.inputs[0].dtype)
    return True


def _infer_ml(node: ir.Node) -> bool:
    """ai.onnx.ml's schemas infer little. Shapes from the operators' specification; labels int64 or string."""
    x = shape_of(input_of(node, 0))
    if x is None:
        return False
    rows = x[0] if len(x) > 1 else 1
    op, shapes, types = node.op_type, list[tuple[int, ...]](), list[ir.DataType]()
    if op in ("TreeEnsembleClassifier", "SVMClassifier", "LinearClassifier"):
        strings = attribute(node, "classlabels_strings", ())
        numbers = attribute(node, "classlabels_int64s", attribute(node, "classlabels_ints", ()))
        count, label_type = len(strings or numbers), ir.DataType.STRING if strings else ir.DataType.INT64
        if op == "SVMClassifier" and not attribute(node, "prob_a") and count > 2:
            # Without probabilities it gives one score for each pair of classes, unless it is linear.
            count = count * (count - 1) // 2 if attribute(node, "vectors_per_class") else count
        shapes, types = [(rows,), (rows, count)], [label_type, ir.DataType.FLOAT]
    elif op in ("TreeEnsembleRegressor", "LinearRegressor"):
        shapes, types = [(rows, int(attribute(node, "n_targets" if op.startswith("T") else "targets", 1)))], [ir.DataType.FLOAT]
    elif op == "SVMRegressor":
        shapes, types = [(rows, 1)], [ir.DataType.FLOAT]
    elif op in ("Scaler", "Normalizer", "Imputer", "Binarizer"):
        shapes = [x]
        types = [ir.DataType.FLOAT] if op in ("Scaler", "Normalizer") else []
    elif op in ("LabelEncoder", "CategoryMapper"):
        shapes = [x]
    elif op == "OneHotEncoder":
        shapes, types = [(*x, len(attribute(node, "cats_int64s") or attribute(node, "cats_strings", ())))], [ir.DataType.FLOAT]
    elif op == "ArrayFeatureExtractor":
        index = shape_of(input_of(node, 1))
        if index is None:
            return False
        # The specification keeps all axes but the last; a vector gives [1, n].
        shapes = [(*x[:-1], math.prod(index)) if len(x) > 1 else (1, math.prod(index))]
    elif op == "FeatureVectorizer":
        shapes, types = [(rows, sum(attribute(node, "inputdimensions", ())))], [ir.DataType.FLOAT]
    modified = False
    for i, (value, shape) in enumerate(zip(node.outputs, shapes, strict=False)):
        if shape_of(value) is None:
            value.shape = ir.Shape(list(shape))
            modified = True
        if value.dtype is None:
            first = input_of(node, 0)
            dtype = types[i] if i < len(types) else (first.dtype if first is not None else None)
            if dtype is not None:
                value.type = ir.TensorType(dtype)
                modified = True
    return modified


def _check_size(node: ir.Node, value: ir.Value, limits: Limits) -> None:
    shape = shape_of(value)
    if shape is None or value.dtype is None:
        return
    if any(d < 0 for d in shape):
        raise ModelError(f"node {label(node)!r} ({node.op_type}) gives {value.name!r} a negative dimension: {list(shape)}")
    size = math.prod(shape) * max(value.dtype.bitwidth if value.dtype != ir.DataType.STRING else 8, 8) // 8
    if size > limits.tensor_bytes:
        what = f"node {label(node)!r} ({node.op_type}) makes {value.name!r} of shape {list(shape)}: {size:,} bytes"
        raise ModelError(f"{what}, the limit is {limits.tensor_bytes:,}", hint=f"raise it: {raised('tensor_bytes')}")


def _dynamic(value: ir.Value) -> list[int]:
    """The axes of an input whose size is not known."""
    if not isinstance(value.type, ir.TensorType):
        raise ModelError(f"input {value.name!r} is not a tensor: {value.type}", hint="export the model with tensors as inputs")
    if value.shape is None:
        raise ModelError(f"input {value.name!r} has no shape, not even its number of axes", hint="export the model with shapes")
    odd = [d for d in value.shape if isinstance(d, int) and d < -1]
    if odd:
        raise ModelError(f"input {value.name!r} has an axis of size {odd[0]}", hint="the file is damaged")
    # Some exporters write -1 for "unknown".
    return [axis for axis, d in enumerate(value.shape) if isinstance(d, ir.SymbolicDim) or d < 0]


def _symbol(value: ir.Value, axis: int) -> str | None:
    """The name that the file gives a dynamic axis."""
    assert value.shape is not None
    size = value.shape[axis]
    name = size.value if isinstance(size, ir.SymbolicDim) else None
    return None if name in (None, "", "?") else str(name)


def _shown(value: ir.Value) -> str:
    assert value.shape is not None
    sizes = (str(d) if isinstance(d, int) and d >= 0 else _symbol(value, axis) or "?" for axis, d in enumerate(value.shape))
    return f"[{', '.join(sizes)}]"
