"""Operators with weights or windows, and normalizations, as torch computes them. Layout NC…, as in ONNX; 1 to 3 spatial axes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gatewright.frontend.windows import Window, window_counts

from .site import Function, Maker, Site

_CONV: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE: dict[int, Any] = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAX: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _spatial(site: Site) -> int:
    rank = site.rank() - 2
    if not 1 <= rank <= 3:
        raise site.refused(f"it has {rank} spatial axes, torch has 1 to 3")
    return rank


def _pads(begin: tuple[int, ...], end: tuple[int, ...]) -> list[int]:
    """As functional.pad takes them: the last axis first."""
    return [n for pair in reversed(tuple(zip(begin, end, strict=True))) for n in pair]


def _conv(site: Site) -> Function:
    convolve, window, group = _CONV[_spatial(site)], Window.of(site.node, site.shape(1)[2:]), site.get("group", 1)
    even = window.begin == window.end
    inside, outside = (window.begin, []) if even else (0, _pads(window.begin, window.end))

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = functional.pad(x, outside) if outside else x
        return convolve(x, weight, bias, stride=window.strides, padding=inside, dilation=window.dilations, groups=group)

    return conv


def _conv_transpose(site: Site) -> Function:
    convolve, window, group = _CONV_TRANSPOSE[_spatial(site)], Window.of(site.node, site.shape(1)[2:]), site.get("group", 1)
    extra = site.get("output_padding", (0,) * len(window.kernel))
    # Rows beyond the last product are zeros before the bias; padding crops.
    amounts = _pads(tuple(-n for n in window.begin), tuple(e - n for e, n in zip(extra, window.end, strict=True)))

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = functional.pad(convolve(x, weight, None, stride=window.strides, groups=group, dilation=window.dilations), amounts)
        return y if bias is None else y + bias.reshape(1, -1, *[1] * (y.ndim - 2))

    return conv


def _gemm(site: Site) -> Function:
    alpha, beta, left, right = site.get("alpha", 1.0), site.get("beta", 1.0), site.get("transA", 0), site.get("transB", 0)

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        y = torch.matmul(a.T if left else a, b.T if right else b)
        y = y if alpha == 1 else alpha * y
        return y if c is None else y + (c if beta == 1 else beta * c)

    return gemm


def _reach(window: Window, spatial: tuple[int, ...]) -> tuple[list[int], tuple[int, ...]]:
    """Padding with which plain windows, ceil_mode or not, lie as ONNX has them; and how many there are along each axis."""
    out = window.output(spatial)
    ends = []
    for axis, size in enumerate(spatial):
        last = (out[axis] - 1) * window.strides[axis] + (window.kernel[axis] - 1) * window.dilations[axis] + 1
        ends.append(max(window.end[axis], last - size - window.begin[axis]))
    return _pads(window.begin, tuple(ends)), out


def _max_pool(site: Site) -> Function:
    if site.wanted(1):
        raise site.refused("its output Indices is read")
    pool, window = _MAX[_spatial(site)], Window.of(site.node)
    amounts, out = _reach(window, site.shape(0)[2:])
    keep = tuple(slice(0, n) for n in out)

    def run(x: Tensor) -> Tensor:
        lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x = functional.pad(x, amounts, value=lowest) if any(amounts) else x
        return pool(x, window.kernel, stride=window.strides, dilation=window.dilations)[(..., *keep)]

    return run


def _average_pool(site: Site) -> Function:
    window, spatial = Window.of(site.node), site.shape(0)[2:]
    amounts, out = _reach(window, spatial)
    keep, size = tuple(slice(0, n) for n in out), math.prod(window.kernel)
    counts = window_counts(window, spatial, bool(site.get("count_include_pad", 0)))
    factor = torch.as_tensor(size / counts, dtype=site.dtype)
    scaled = bool((counts != size).any())
    axes, convolve = _spatial(site), _CONV[_spatial(site)]

    def run(x: Tensor) -> Tensor:
        x = functional.pad(x, amounts) if any(amounts) else x
        if all(d == 1 for d in window.dilations):
            y = _AVERAGE[axes](x, window.kernel, stride=window.strides)
        else:
            ones = torch.full((x.shape[1], 1, *window.kernel), 1 / size, dtype=x.dtype, device=x.device)
            y = convolve(x, ones, None, stride=window.strides, dilation=window.dilations, groups=x.shape[1])
        y = y[(..., *keep)]
        return y * factor.to(y.device, y.dtype) if scaled else y

    return run


def _global(site: Site) -> Function:
    axes, reduce = tuple(range(2, site.rank())), torch.mean if site.node.op_type == "GlobalAveragePool" else torch.amax
    return lambda x: reduce(x, dim=axes, keepdim=True)


def channels(x: Tensor) -> tuple[int, ...]:
    """The shape that broadcasts one number per channel over x [N, C, …]."""
    return (1, -1, *[1] * (x.ndim - 2))


def _batch_normalization(site: Site) -> Function:
    """At inference: with the running statistics. ``executor.py`` does what training mode does."""
    epsilon = site.get("epsilon", 1e-5)

    def normalize(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        factor = scale / torch.sqrt(variance + epsilon)
        return x * factor.reshape(channels(x)) + (bias - mean * factor).reshape(channels(x))

    return normalize


def _instance_normalization(site: Site) -> Function:
    epsilon, axes = site.get("epsilon", 1e-5), tuple(range(2, site.rank()))

    def normalize(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=axes, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(variance + epsilon) * scale.reshape(channels(x)) + bias.reshape(channels(x))

    return normalize


def _group_normalization(site: Site) -> Function:
    groups, epsilon = site.get("num_groups"), site.get("epsilon", 1e-5)
    return lambda x, scale, bias: functional.group_norm(x, groups, scale, bias, epsilon)


def _layer_normalization(site: Site) -> Function:
    axis, epsilon, rank = site.get("axis", -1), site.get("epsilon", 1e-5), site.rank()
    axes = tuple(range(axis % rank, rank))

    def normalize(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
        variance, mean = torch.var_mean(x, dim=axes, keepdim=True, correction=0)
        inverse = 1 / torch.sqrt(variance + epsilon)
        y = (x - mean) * inverse * scale
        return (y if bias is None else y + bias), mean, inverse

    return normalize


def _lp_normalization(site: Site) -> Function:
    axis, p = site.get("axis", -1), site.get("p", 2)
    return lambda x: x / torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)


def _lrn(site: Site) -> Function:
    size, alpha, beta, bias = site.get("size"), site.get("alpha", 1e-4), site.get("beta", 0.75), site.get("bias", 1.0)
    before = (size - 1) // 2

    def normalize(x: Tensor) -> Tensor:
        squares = functional.pad((x * x).transpose(1, -1), (before, size - 1 - before)).transpose(1, -1)
        total = squares.unfold(1, size, 1).sum(-1)
        return x / (bias + alpha / size * total) ** beta

    return normalize


def _softmax(site: Site) -> Function:
    axis, function = site.get("axis", -1), torch.softmax if site.node.op_type == "Softmax" else torch.log_softmax
    return lambda x: function(x, dim=axis)


def _dropout(site: Site) -> Function:
    """What a canonical graph still has of it is inference."""
    return lambda x, *_: x


MAKERS: dict[str, Maker] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": lambda site: torch.matmul, "MaxPool": _max_pool,
    "AveragePool": _average_pool, "GlobalAveragePool": _global, "GlobalMaxPool": _global, "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization, "GroupNormalization": _group_normalization,
    "LayerNormalization": _layer_normalization, "LpNormalization": _lp_normalization, "LRN": _lrn, "Softmax": _softmax,
    "LogSoftmax": _softmax, "Dropout": _dropout,
}  # fmt: skip
