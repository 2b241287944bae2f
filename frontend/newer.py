"""Operators newer than the canonical opset that ONNX does not define by older ones: CumProd and TensorScatter, by functions of ours.

They are written for any shape: what they compute from shapes is constant once the model's are known.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.inliner

DOMAIN = "gatewright.newer"
_ONES = "n0 = Constant<value = int64[1] {0}>() n1 = Constant<value = int64[1] {1}>() n2 = Constant<value = int64[1] {2}>() "
_COUNTED = "s0 = Squeeze(n0) s1 = Squeeze(n1) count = Squeeze(length) place = Range(s0, count, s1) "


def _cumprod(node: onnx.NodeProto) -> str:
    """Each place's product of those up to it, a row of a mask for each: exact for whole numbers, and no sum of logarithms."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    compare = ("Less" if given.get("reverse") else "Greater") + ("" if given.get("exclusive") else "OrEqual")
    return (
        "(x, axis) => (y) {"
        f"{_ONES} all = Constant<value = int64[1] {{-1}}>() shape = Shape(x) rank = Size(shape) "
        "number = Cast<to = 7>(axis) wrapped = Mod(number, rank) at = Reshape(wrapped, n1) "
        "before = Slice(shape, n0, at) outer = ReduceProd<keepdims = 1>(before) length = Gather(shape, at) "
        f"{_COUNTED} split = Concat<axis = 0>(outer, length, all) three = Reshape(x, split) wide = Unsqueeze(three, n1) "
        "row = Unsqueeze(place, n1) r = Unsqueeze(row, n2) column = Unsqueeze(place, n0) c = Unsqueeze(column, n2) "
        f"taken = {compare}(r, c) "
        "unit = Constant<value = float[1] {1}>() neutral = CastLike(unit, x) factors = Where(taken, wide, neutral) "
        "products = ReduceProd<keepdims = 0>(factors, n2) y = Reshape(products, shape) }"
    )


def _tensor_scatter(node: onnx.NodeProto) -> str:
    """Each place of the cache takes, if it is one of those that are written, the value that belongs there. What is written beyond the end
    in mode linear, which ONNX does not allow, is dropped."""
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    axis, circular = given.get("axis", -2), given.get("mode", b"linear") == b"circular"
    indexed = len(node.input) > 2 and node.input[2] != ""
    return (
        f"(past, update{', start' if indexed else ''}) => (present) {{"
        f"{_ONES} all = Constant<value = int64[1] {{-1}}>() shape = Shape(past) rank = Size(shape) fresh = Shape(update) "
        f"given = Constant<value = int64[1] {{{axis}}}>() at = Mod(given, rank) next = Add(at, n1) "
        "batch = Slice(shape, n0, n1) length = Gather(shape, at) written = Gather(fresh, at) "
        f"{_COUNTED} end = Reshape(rank, n1) after = Slice(shape, next, end) inner = ReduceProd<keepdims = 1>(after) "
        "four = Concat<axis = 0>(batch, all, length, inner) old = Reshape(past, four) "
        "fours = Concat<axis = 0>(batch, all, written, inner) new = Reshape(update, fours) "
        + ("begin = Cast<to = 7>(start) " if indexed else "begin = Expand(n0, batch) ")
        + "column = Unsqueeze(begin, n1) row = Unsqueeze(place, n0) apart = Sub(row, column) "
        + ("there = Mod(apart, length) " if circular else "there = Identity(apart) ")
        + "low = GreaterOrEqual(there, n0) high = Less(there, written) fits = And(low, high) "
        "last = Sub(written, n1) top = Squeeze(last) source = Clip(there, s0, top) "
        "ends = Constant<value = int64[2] {1, 3}>() index = Unsqueeze(source, ends) is = Unsqueeze(fits, ends) "
        "whole = Shape(old) every = Expand(index, whole) taken = GatherElements<axis = 2>(new, every) "
        "both = Where(is, taken, old) present = Reshape(both, shape) }"
    )


_WRITERS = {"CumProd": _cumprod, "TensorScatter": _tensor_scatter}


def defined(proto: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> onnx.ModelProto:
    """``proto`` with those of ``nodes`` that are such operators replaced by what they are made of."""
    found = [node for node in nodes if node.domain == "" and node.op_type in _WRITERS]
    if not found:
        return proto
    # Functions of the model's own opset are inlined as they are; these operators mean the same since opset 21.
    version = next(entry.version for entry in proto.opset_import if entry.domain == "")
    for number, node in enumerate(found):
        name = f"{node.op_type}_{number}"
        text = f'<domain: "{DOMAIN}", opset_import: ["" : {version}]> {name} {_WRITERS[node.op_type](node)}'
        proto.functions.append(onnx.parser.parse_function(text))
        node.op_type, node.domain = name, DOMAIN
        del node.attribute[:]
    proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return onnx.inliner.inline_local_functions(proto, True)
