"""Encoders of ai.onnx.ml as tensor operations: equal to ONNX Runtime's own operators, bit for bit; text stays where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from gatewright.frontend.batch import batch_reason
from gatewright.frontend.load import load
from gatewright.frontend.reference import Reference

F, WHOLE_TYPE = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
NAN = float("nan")
FLOATS = np.array([[1.5, NAN, -1], [0.0, 2, 7], [-0.0, 3.9, 1e9]], np.float32)
WHOLE = np.array([[1, 0, -1], [5, 2, 7], [2, 2**40, 1]], np.int64)
ENCODERS: dict[str, tuple[str, np.ndarray, int, dict[str, Any]]] = {
    "binarizer": ("Binarizer", np.nan_to_num(FLOATS), F, {"threshold": 1.5}),
    "imputer of NaN": ("Imputer", FLOATS, F, {"imputed_value_floats": [9.0, 8.0, 7.0], "replaced_value_float": NAN}),
    "imputer of a number": ("Imputer", FLOATS, F, {"imputed_value_floats": [4.0], "replaced_value_float": 2.0}),
    "imputer of whole numbers": ("Imputer", WHOLE, WHOLE_TYPE, {"imputed_value_int64s": [40], "replaced_value_int64": 2}),
    "labels to labels": (
        "LabelEncoder",
        WHOLE,
        WHOLE_TYPE,
        {"keys_int64s": [2, 5, -1], "values_int64s": [20, 50, 2**40], "default_int64": 3},
    ),
    "labels to numbers": ("LabelEncoder", WHOLE, F, {"keys_int64s": [2, 7], "values_floats": [0.25, -3.0]}),
    "numbers to numbers": ("LabelEncoder", FLOATS, F, {"keys_floats": [1.5, 0.0, 7.0], "values_floats": [1.0, 2.0, 3.0]}),
    "categories of whole numbers": ("OneHotEncoder", WHOLE, F, {"cats_int64s": [2, 0, 1], "zeros": 1}),
    "categories of floats": ("OneHotEncoder", np.nan_to_num(FLOATS), F, {"cats_int64s": [3, 1], "zeros": 1}),
}


def model_of(op: str, x: np.ndarray, kind: int, attributes: dict[str, Any]) -> onnx.ModelProto:
    node = onnx.helper.make_node(op, ["x"], ["y"], domain="ai.onnx.ml", name="it", **attributes)
    shape = ["N", *x.shape[1:]]
    made = onnx.helper.make_tensor_value_info("x", onnx.helper.np_dtype_to_tensor_dtype(x.dtype), shape)
    given = onnx.helper.make_tensor_value_info("y", kind, [*shape, len(attributes["cats_int64s"])] if op == "OneHotEncoder" else shape)
    graph = onnx.helper.make_graph([node], "encoder", [made], [given])
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize("name", ENCODERS)
def test_equal_to_onnx_runtime(name: str) -> None:
    op, x, kind, attributes = ENCODERS[name]
    proto = model_of(op, x, kind, attributes)
    (wanted,) = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    model = load(proto, dims={"N": len(x)})
    assert not [node for node in model.graph if node.domain]
    assert batch_reason(model) is None
    found = Reference(model).run({"x": x})["y"]
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted, equal_nan=found.dtype.kind == "f"), (found, wanted)


@pytest.mark.parametrize(
    ("op", "x", "kind", "attributes"),
    [
        ("LabelEncoder", WHOLE, WHOLE_TYPE, {"keys_int64s": [2, 2], "values_int64s": [1, 3]}),
        ("LabelEncoder", WHOLE, onnx.TensorProto.STRING, {"keys_int64s": [2], "values_strings": ["two"]}),
        ("LabelEncoder", FLOATS, F, {"keys_floats": [NAN, 1.0], "values_floats": [5.0, 6.0]}),
        ("OneHotEncoder", WHOLE, F, {"cats_int64s": [2], "zeros": 0}),
    ],
    ids=["a key twice", "text", "NaN as a key", "unknown ones fail"],
)
def test_what_is_read_in_two_ways_stays(op: str, x: np.ndarray, kind: int, attributes: dict[str, Any]) -> None:
    model = load(model_of(op, x, kind, attributes), dims={"N": len(x)})
    assert [node.op_type for node in model.graph if node.domain] == [op]
