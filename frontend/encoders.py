"""Encoders of ai.onnx.ml on numbers as tensor operations: Binarizer, Imputer, LabelEncoder, OneHotEncoder. Exact.

What takes or gives text stays what it is: no target but the reference and ONNX Runtime holds strings.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .chain import Array, Chain, Rule
from .edit import Editor, attribute, shape_of

MOST_KEYS = 1 << 12
"""Of a LabelEncoder: each value is compared with every key."""
MOST_ELEMENTS = 1 << 28
"""Of all comparisons."""
_TYPES = {ir.DataType.FLOAT: np.float32, ir.DataType.DOUBLE: np.float64, ir.DataType.INT64: np.int64, ir.DataType.INT32: np.int32}
_LISTS = {"floats": ("default_float", np.float32, -0.0), "int64s": ("default_int64", np.int64, -1)}


def binarizer(edit: Editor, node: ir.Node) -> bool:
    """1 above the threshold, else 0, in the input's type."""
    chain, x = Chain(edit, node), node.inputs[0]
    if x is None or x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return False
    above = chain("Greater", x, np.asarray(attribute(node, "threshold", 0.0), x.dtype.numpy()))
    return chain.close(chain("Cast", above, to=x.dtype.value))


def imputer(edit: Editor, node: ir.Node) -> bool:
    """What equals the replaced value, or is NaN where that is, becomes the imputed value of its column."""
    chain, x = Chain(edit, node), node.inputs[0]
    shape = shape_of(x)
    if x is None or not shape or x.dtype not in (ir.DataType.FLOAT, ir.DataType.INT64):
        return False
    kind, name = (np.float32, "float") if x.dtype == ir.DataType.FLOAT else (np.int64, "int64")
    imputed: Array = np.asarray(attribute(node, f"imputed_value_{name}s", ()), kind)
    replaced = kind(attribute(node, f"replaced_value_{name}", 0))
    if imputed.shape not in ((1,), (shape[-1],)):
        return False
    missing = chain("IsNaN", x) if np.isnan(replaced) else chain("Equal", x, replaced)
    return chain.close(chain("Where", missing, imputed, x))


def label_encoder(edit: Editor, node: ir.Node) -> bool:
    """The value of the key that each number is, else the default: Equal with all keys, the first that is, its place in the values."""
    chain, x, shape = Chain(edit, node), node.inputs[0], shape_of(node.inputs[0])
    keys, values, default = _side(node, "keys"), _side(node, "values"), _default(node)
    if x is None or x.dtype is None or shape is None or keys is None or values is None or default is None:
        return False
    if math.prod(shape) * len(keys) > MOST_ELEMENTS:
        return False
    known = keys[~np.isnan(keys)] if keys.dtype.kind == "f" else keys
    if keys.shape != values.shape or keys.dtype != _TYPES.get(x.dtype) or not 0 < len(keys) <= MOST_KEYS or len(set(known)) < len(keys):
        # The same key twice is read in two ways, and which NaN is equal to which in more.
        return False
    column = chain("Unsqueeze", x, np.array([len(shape)], np.int64))
    # 1 where there is a match, then a smaller number: the first largest is the match, or the default behind all values.
    matches = chain("Cast", chain("Equal", column, keys), to=ir.DataType.FLOAT.value)
    ends = np.array([0] * (2 * len(shape) + 1) + [1], np.int64)
    place = chain("ArgMax", chain("Pad", matches, ends, np.float32(0.5)), axis=len(shape), keepdims=0)
    return chain.close(chain("Gather", np.append(values, default).astype(values.dtype), place, axis=0))


def one_hot_encoder(edit: Editor, node: ir.Node) -> bool:
    """A new last axis: 1 at the category that each number is, after its fraction is cut off. (``zeros=0`` fails on an unknown one.)"""
    chain, x, shape = Chain(edit, node), node.inputs[0], shape_of(node.inputs[0])
    categories = np.asarray(attribute(node, "cats_int64s", ()), np.int64)
    if x is None or x.dtype not in _TYPES or shape is None or not categories.size or not attribute(node, "zeros", 1):
        return False
    if math.prod(shape) * categories.size > MOST_ELEMENTS:
        return False
    whole = x if x.dtype == ir.DataType.INT64 else chain("Cast", x, to=ir.DataType.INT64.value)
    column = chain("Unsqueeze", whole, np.array([len(shape)], np.int64))
    return chain.close(chain("Cast", chain("Equal", column, categories), to=ir.DataType.FLOAT.value))


def _side(node: ir.Node, side: str) -> Array | None:
    """Keys or values that are numbers; None for text."""
    tensor = attribute(node, f"{side}_tensor", None)
    if tensor is not None:
        return None if tensor.dtype not in _TYPES else np.asarray(tensor.numpy()).reshape(-1)
    for kind, (_, dtype, _) in _LISTS.items():
        found = attribute(node, f"{side}_{kind}", None)
        if found is not None:
            return np.asarray(found, dtype)
    return None


def _default(node: ir.Node) -> float | int | None:
    tensor = attribute(node, "default_tensor", None)
    if tensor is not None:
        return None if tensor.dtype not in _TYPES or tensor.size != 1 else tensor.numpy().reshape(-1)[0].item()
    values = _side(node, "values")
    if values is None:
        return None
    name, _, usual = _LISTS["floats" if values.dtype.kind == "f" else "int64s"]
    found: float | int = attribute(node, name, usual)
    return found


RULES: dict[str, tuple[Rule, ...]] = {
    "Binarizer": (binarizer,), "Imputer": (imputer,), "LabelEncoder": (label_encoder,), "OneHotEncoder": (one_hot_encoder,),
}  # fmt: skip
