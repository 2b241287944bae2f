"""Fourier transforms as matrix products: DFT and STFT, with the sines and cosines of a length as a constant.

n² products instead of n·log n, but on an engine's fastest code: for the lengths of sounds (256 to 2,048) that is little. Sums are in
float64, as ONNX's evaluator has them: what cancels leaves zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .edit import Array, Editor, attribute, constant_of, input_of, shape_of
from .steps import Steps

LARGEST = 1 << 22
"""Complex elements of the matrix: a transform of 2,048."""
MOST_SAMPLES = 1 << 26
"""Of all frames of a signal."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def dft(edit: Editor, node: ir.Node) -> bool:
    """x [..., n, ..., 1 or 2] with real or complex numbers as its last axis, transformed along ``axis``."""
    x, shape = node.inputs[0], shape_of(node.inputs[0])
    length, place = (constant_of(input_of(node, i)) for i in (1, 2))
    unknown = any(input_of(node, i) is not None and found is None for i, found in ((1, length), (2, place)))
    if x is None or shape is None or unknown or x.dtype not in _FLOATS or shape[-1] not in (1, 2) or 0 in shape:
        return False
    axis = (-2 if place is None else int(place.reshape(()))) % len(shape)
    inverse, onesided = bool(attribute(node, "inverse", 0)), bool(attribute(node, "onesided", 0))
    given = shape[axis]
    n = (2 * (given - 1) if inverse and onesided else given) if length is None else int(length.reshape(()))
    if axis == len(shape) - 1 or n < 1 or min(given, n) * n > LARGEST:
        return False
    matrix = transform(min(given, n), n, shape[-1], inverse=inverse, onesided=onesided)
    new = Steps(edit, node)
    wide = new.cast(x, ir.DataType.DOUBLE)
    if matrix.shape[0] < given:
        # A shorter transform leaves the rest out; a longer one would add zeros, which the matrix has no rows for.
        wide = new.op("Slice", wide, new.constant([0]), new.constant([matrix.shape[0]]), new.constant([axis]))
    order = [i for i in range(len(shape) - 1) if i != axis] + [axis, len(shape) - 1]
    outer = [shape[i] for i in order[:-2]]
    rows = new.reshape(new.op("Transpose", wide, perm=order), *(outer or (1,)), matrix.shape[0] * shape[-1])
    flat = new.op("MatMul", rows, new.constant(matrix.reshape(matrix.shape[0] * shape[-1], -1), np.float64))
    result = new.reshape(flat, *outer, *matrix.shape[2:])
    back = [order.index(i) for i in range(len(shape))]
    return new.finish(new.cast(new.op("Transpose", result, perm=back), x.dtype))


def transform(given: int, n: int, parts: int, *, inverse: bool, onesided: bool) -> Array:
    """[given values, their parts, results, parts of those]: e^(∓2πi·jk/n), of the inverse divided by n."""
    if inverse and onesided:
        return _real_inverse(given, n, parts)
    results = n // 2 + 1 if onesided else n
    # The product is taken modulo n first: the sine of a large angle is less exact.
    angle = 2 * np.pi / n * (np.outer(np.arange(given), np.arange(results)) % n)
    real, imaginary = np.cos(angle), np.sin(angle) if inverse else -np.sin(angle)
    # (a + bi)(c + di): a makes (c, d), b makes (−d, c).
    matrix = np.stack([np.stack([real, imaginary], -1), np.stack([-imaginary, real], -1)][:parts], 1)
    return matrix / n if inverse else matrix


def _real_inverse(given: int, n: int, parts: int) -> Array:
    """From the first half of a spectrum whose other half is its mirror image: every value but the ends counts twice."""
    given = min(given, n // 2 + 1)
    angle = 2 * np.pi / n * (np.outer(np.arange(given), np.arange(n)) % n)
    weight = np.full((given, 1), 2.0)
    weight[0] = 1
    if n % 2 == 0 and given == n // 2 + 1:
        weight[-1] = 1
    both = np.stack([np.cos(angle), -np.sin(angle)][:parts], 1)
    return np.asarray((weight[:, :, None] * both / n)[..., None])


def stft(edit: Editor, node: ir.Node) -> bool:
    """signal [N, samples, 1 or 2] → [N, frames, results, 2]: pieces of it, times the window, transformed."""
    x, window, shape, out = node.inputs[0], input_of(node, 2), shape_of(node.inputs[0]), shape_of(node.outputs[0])
    step = constant_of(input_of(node, 1))
    if x is None or shape is None or out is None or step is None or x.dtype not in _FLOATS or shape[-1] not in (1, 2):
        return False
    length = frame_length(node)
    if length is None or length * length > LARGEST or (window is not None and shape_of(window) != (length,)):
        return False
    matrix = transform(length, length, shape[-1], inverse=False, onesided=bool(attribute(node, "onesided", 1)))
    if out[1] * length > MOST_SAMPLES:
        return False
    new = Steps(edit, node)
    starts = np.arange(out[1]) * int(step.reshape(()))
    frames = new.op("Gather", new.cast(x, ir.DataType.DOUBLE), new.constant(starts[:, None] + np.arange(length)), axis=1)
    if window is not None:
        frames = new.op("Mul", frames, new.reshape(new.cast(window, ir.DataType.DOUBLE), 1, 1, length, 1))
    rows = new.reshape(frames, shape[0], out[1], length * shape[-1])
    flat = new.op("MatMul", rows, new.constant(matrix.reshape(length * shape[-1], -1), np.float64))
    return new.finish(new.cast(new.reshape(flat, *out), x.dtype))


def frame_length(node: ir.Node) -> int | None:
    """Of an STFT: what it is told, or the window's."""
    told, window = constant_of(input_of(node, 3)), shape_of(input_of(node, 2))
    if input_of(node, 3) is not None:
        return None if told is None or told.size != 1 else int(told.reshape(()))
    return window[0] if window is not None and len(window) == 1 else None


def stft_shape(node: ir.Node) -> tuple[int, ...] | None:
    """Of its result; None where the step or the length of a frame is not known."""
    shape, step, length = shape_of(input_of(node, 0)), constant_of(input_of(node, 1)), frame_length(node)
    if shape is None or len(shape) != 3 or step is None or step.size != 1 or int(step.reshape(())) < 1 or length is None:
        return None
    if not 1 <= length <= shape[1]:
        return None
    results = length // 2 + 1 if attribute(node, "onesided", 1) else length
    return shape[0], (shape[1] - length) // int(step.reshape(())) + 1, results, 2


RULES: dict[str, Callable[[Editor, ir.Node], bool]] = {"DFT": dft, "STFT": stft}
