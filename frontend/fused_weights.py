"""ONNX Runtime's products with integer weights: MatMulNBits, and those that quantize their input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .edit import Array, attribute, constant_of
from .fused_steps import Fused


def _matmul_nbits(new: Fused) -> tuple[ir.Value] | None:
    """A · W, weights in blocks along K: in one form with those of ``nearest{group=…,store=blocks}``, integers behind a DequantizeLinear."""
    node, a = new.node, new.need(0)
    bits, block, columns, depth = (
        int(attribute(node, name, default)) for name, default in (("bits", 4), ("block_size", 0), ("N", 0), ("K", 0))
    )
    packed, scales, zeros = (constant_of(new.input(i)) if new.input(i) is not None else None for i in (1, 2, 3))
    if packed is None or scales is None or bits not in (2, 4, 8) or block < 1 or columns < 1 or depth < 1 or new.input(4) is not None:
        return None
    if new.input(3) is not None and zeros is None:
        return None
    blocks = -(-depth // block)
    half = 1 << (bits - 1)
    values = unpacked(packed.reshape(columns, -1), bits)
    if values.shape[1] < blocks * block or scales.size != columns * blocks:
        return None
    values = values[:, : blocks * block]
    scale = np.ascontiguousarray(scales.reshape(columns, blocks).T)
    if zeros is None:
        points: Array = np.full((columns, blocks), half)
    elif zeros.dtype == np.uint8:
        rows = zeros.reshape(columns, -1)
        points = unpacked(rows, bits)[:, :blocks]
    else:
        # A zero point between the integers: the weight itself.
        steps = np.repeat(scales.reshape(columns, blocks), block, axis=1)
        whole = (values - np.repeat(zeros.reshape(columns, blocks), block, axis=1).astype(np.float32)) * steps
        return _biased(new, new.op("MatMul", a, new.number(whole[:, :depth].T, a)))
    if points.shape != (columns, blocks):
        return None
    dtype = ir.DataType.INT8 if bits == 8 else ir.DataType.INT4
    integers = [new.integers((array - half).T, dtype) for array in (values, points)]
    weight = new.op("DequantizeLinear", integers[0], new.number(scale, a), integers[1], axis=0, block_size=block)
    missing = blocks * block - depth
    if missing:
        ends = [0] * (2 * len(new.shape(0)))
        ends[-1] = missing
        a = new.op("Pad", a, new.constant(ends), new.number(0, a))
    return _biased(new, new.op("MatMul", a, weight))


def _biased(new: Fused, y: ir.Value) -> tuple[ir.Value]:
    bias = new.input(5)
    return (y if bias is None else new.op("Add", y, bias),)


def unpacked(rows: Array, bits: int) -> Array:
    """Unsigned numbers of uint8 [rows, bytes], the lowest bits first: int16 [rows, numbers]."""
    shifts = np.arange(0, 8, bits)
    return np.asarray((rows[..., None] >> shifts) & ((1 << bits) - 1), np.int16).reshape(len(rows), -1)


def _dynamic_quantize_matmul(new: Fused) -> tuple[ir.Value]:
    """A is quantized to uint8 by its own range, then MatMulInteger."""
    q, scale, zero = new.several("DynamicQuantizeLinear", 3, new.need(0))
    return _scaled(new, (q, scale, zero), (new.need(1), new.need(2), new.input(3)), new.input(4))


def _matmul_integer_to_float(new: Fused) -> tuple[ir.Value]:
    return _scaled(new, (new.need(0), new.need(2), new.input(4)), (new.need(1), new.need(3), new.input(5)), new.input(6))


Operand = tuple[ir.Value, ir.Value, "ir.Value | None"]


def _scaled(new: Fused, a: Operand, b: Operand, bias: ir.Value | None) -> tuple[ir.Value]:
    sums = new.op("MatMulInteger", a[0], b[0], a[2], b[2])
    y = new.op("Mul", new.cast(sums, a[1].dtype or ir.DataType.FLOAT), new.op("Mul", a[1], b[1]))
    return (y if bias is None else new.op("Add", y, bias),)


RULES: dict[str, Callable[[Fused], tuple[ir.Value] | None]] = {
    "MatMulNBits": _matmul_nbits, "DynamicQuantizeMatMul": _dynamic_quantize_matmul, "MatMulIntegerToFloat": _matmul_integer_to_float,
}  # fmt: skip
