"""Sliding windows: the padding arithmetic and the im2col behind convolution and pooling, for any number of spatial axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .queries import integer

Array = NDArray[Any]

CHUNK_BYTES = 64 << 20
"""im2col copies each value once per window; batches are cut so that the copy stays below this."""


@dataclass(frozen=True)
class Window:
    """Attributes of a Conv or pooling node, in ONNX's terms."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    """Padding before each spatial axis."""
    end: tuple[int, ...]
    ceil: bool = False

    @classmethod
    def of(cls, node: ir.Node, kernel: Sequence[int] | None = None) -> Window:
        """From the node's attributes; ``kernel`` (the weight's spatial shape) where kernel_shape may be absent."""
        found = node.attributes.get("kernel_shape")
        shape = tuple(int(k) for k in (found.as_ints() if found else kernel or ()))
        ints = {
            key: tuple(int(i) for i in (node.attributes[key].as_ints() if key in node.attributes else default))
            for key, default in (("strides", [1] * len(shape)), ("dilations", [1] * len(shape)), ("pads", [0] * 2 * len(shape)))
        }
        ceil = integer(node, "ceil_mode", 0) == 1
        return cls(shape, ints["strides"], ints["dilations"], ints["pads"][: len(shape)], ints["pads"][len(shape) :], ceil)

    @property
    def padded(self) -> bool:
        return any(self.begin) or any(self.end)

    def output(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Spatial shape of the result (ONNX operator specification, MaxPool)."""
        sizes = []
        for axis, size in enumerate(spatial):
            reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            steps = (size + self.begin[axis] + self.end[axis] - reach) / self.strides[axis]
            count = (math.ceil(steps) if self.ceil else math.floor(steps)) + 1
            # ONNX: a window that would start inside the end padding is dropped.
            if self.ceil and (count - 1) * self.strides[axis] >= size + self.begin[axis]:
                count -= 1
            sizes.append(max(count, 0))
        return tuple(sizes)

    def view(self, x: Array, fill: float) -> Array:
        """x [N, C, *spatial] padded with ``fill`` → windows [N, C, *output, *kernel] (a view of the padded copy)."""
        out = self.output(x.shape[2:])
        if 0 in out:
            return np.zeros((*x.shape[:2], *out, *self.kernel), x.dtype)
        pads = [(0, 0), (0, 0)]
        for axis, size in enumerate(x.shape[2:]):
            reach = (out[axis] - 1) * self.strides[axis] + (self.kernel[axis] - 1) * self.dilations[axis] + 1
            pads.append((self.begin[axis], max(self.end[axis], reach - size - self.begin[axis])))
        if any(pad != (0, 0) for pad in pads):
            x = np.pad(x, pads, constant_values=fill)
        reach_shape = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        axes = tuple(range(2, x.ndim))
        windows = np.lib.stride_tricks.sliding_window_view(x, reach_shape, axis=axes)
        pick_out = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(out, self.strides, strict=True))
        pick_kernel = tuple(slice(None, None, d) for d in self.dilations)
        found: Array = windows[(slice(None), slice(None), *pick_out, *pick_kernel)]
        return found


def convolve(x: Array, weight: Array, window: Window, group: int) -> Array:
    """x [N, C, *spatial], weight [M, C/group, *kernel] → [N, M, *output], accumulated in their common dtype; zero padding."""
    samples, channels = x.shape[:2]
    filters = weight.reshape(group, weight.shape[0] // group, -1).transpose(0, 2, 1)
    out = window.output(x.shape[2:])
    if 0 in out or not x.size:
        return np.zeros((samples, weight.shape[0], *out), np.result_type(x, weight))
    per_sample = channels * math.prod(out) * math.prod(window.kernel) * x.dtype.itemsize
    step = max(1, CHUNK_BYTES // max(per_sample, 1))
    result = np.empty((samples, weight.shape[0], *out), np.result_type(x, weight))
    spatial = len(out)
    for start in range(0, samples, step):
        windows = window.view(x[start : start + step], 0)
        n = windows.shape[0]
        # [n, C, *out, *k] → [group, n·out, C/group·k]
        columns = windows.reshape(n, group, channels // group, *windows.shape[2:])
        order = (1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial))
        columns = columns.transpose(order).reshape(group, n * math.prod(out), -1)
        part = np.matmul(columns, filters)  # [group, n·out, M/group]
        part = part.reshape(group, n, *out, -1).transpose(1, 0, 2 + spatial, *range(2, 2 + spatial))
        result[start : start + n] = part.reshape(n, weight.shape[0], *out)
    return result


def window_counts(window: Window, spatial: Sequence[int], include_padding: bool) -> Array:
    """How many values each average divides by: [1, 1, *output], int64. Without padding or with it counted, the kernel's size,
    save that a ceil_mode window never counts what lies past the padding."""
    ones = np.ones((1, 1, *spatial), np.int64)
    if include_padding:
        ones = np.pad(ones, [(0, 0), (0, 0), *zip(window.begin, window.end, strict=True)], constant_values=1)
        zeros = (0,) * len(window.kernel)
        grown = Window(window.kernel, window.strides, window.dilations, zeros, zeros, window.ceil)
        counted = grown.view(ones, 0)
        out = window.output(spatial)
        counted = counted[(slice(None), slice(None), *(slice(0, n) for n in out))]
    else:
        counted = window.view(ones, 0)
    total: Array = counted.sum(axis=tuple(range(-len(window.kernel), 0)))
    return total
