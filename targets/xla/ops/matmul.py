"""Matrix products in float."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import onnx_ir as ir

from gatewright.frontend.queries import integer, real

from . import Lowering, Value
from .elementwise import like


def product(scope: Any, a: Value, b: Value) -> Value:
    """numpy's matmul in the policy's precision; the result has ``a``'s type."""
    left, right = scope.factors(a, b)
    return jnp.matmul(left, right, precision=scope.precision, preferred_element_type=scope.sums(a)).astype(a.dtype)


def _matmul(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    return product(scope, inputs[0], inputs[1])


def _gemm(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    a = inputs[0].T if integer(node, "transA", 0) else inputs[0]
    b = inputs[1].T if integer(node, "transB", 0) else inputs[1]
    y = product(scope, a, b)
    alpha, beta = real(node, "alpha", 1.0), real(node, "beta", 1.0)
    y = y if alpha == 1 else like(alpha, y) * y
    c = inputs[2] if len(inputs) > 2 else None
    return y if c is None else y + (c if beta == 1 else like(beta, y) * c)


def _einsum(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    equation = (node.attributes.get_string("equation", "") or "").replace(" ", "")
    operands = [scope.factor(v) for v in inputs]
    found = jnp.einsum(equation, *operands, precision=scope.precision, preferred_element_type=scope.sums(inputs[0]))
    return found.astype(inputs[0].dtype)


def _integer_matmul(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    """MatMulInteger: int32 sums of products of differences to the zero points; a's per row, b's per column."""
    a, b = (v.astype(jnp.int32) for v in inputs[:2])
    az, bz = (inputs[i] if len(inputs) > i else None for i in (2, 3))
    if az is not None:
        z = az.astype(jnp.int32)
        a = a - (z[..., None] if z.ndim else z)
    b = b if bz is None else b - bz.astype(jnp.int32)
    return jnp.matmul(a, b, preferred_element_type=jnp.int32)


LOWERINGS: dict[str, Lowering] = {"MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum, "MatMulInteger": _integer_matmul}
