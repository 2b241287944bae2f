"""Resize along each axis by a fixed sum of taps: output o = Σ_t weight[o, t]·x[index[o, t]] (ONNX operator specification, Resize-19)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .site import Function, Site

Array = NDArray[Any]
Taps = tuple[Array, Array]
"""Indices int64 [output, taps] and weights float64 [output, taps]."""


def resize(site: Site) -> Function:
    """nearest, linear and cubic, separable; the batch axis keeps its size."""
    mode, place = site.get("mode", "nearest"), site.get("coordinate_transformation_mode", "half_pixel")
    if mode not in ("nearest", "linear", "cubic") or place not in _PLACES:
        raise site.refused(f"mode {mode!r} with coordinates {place!r} is not supported")
    for name in ("antialias", "exclude_outside"):
        if site.get(name, 0):
            raise site.refused(f"{name} is not supported")
    before, rank = site.shape(0), site.rank()
    axes = [a % rank for a in site.get("axes", tuple(range(rank)))]
    taps: dict[int, Taps] = {}
    for axis, (size, scale) in zip(axes, _sizes(site, [before[a] for a in axes]), strict=True):
        if size != before[axis] or scale != 1:
            taps[axis] = _taps(site, mode, _PLACES[place](np.arange(size, dtype=np.float64), scale, before[axis], size), before[axis])

    def run(x: Tensor, *_: Tensor) -> Tensor:
        for axis, (index, weight) in taps.items():
            along = [-1 if i == axis else 1 for i in range(x.ndim)]
            parts = []
            for tap in range(index.shape[1]):
                picked = x.index_select(axis, torch.from_numpy(index[:, tap].copy()).to(x.device))
                parts.append(picked * torch.as_tensor(weight[:, tap], dtype=x.dtype, device=x.device).reshape(along))
            x = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        return x

    return run


def _sizes(site: Site, before: list[int]) -> list[tuple[int, float]]:
    """Size after, and scale, along each listed axis."""
    if site.given(3) and len(sizes := site.numbers(3, "sizes")):
        ratios = [s / b for s, b in zip(sizes, before, strict=True)]
        policy = site.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = min(ratios) if policy == "not_larger" else max(ratios)
            return [(math.floor(b * one + 0.5), one) for b in before]
        return list(zip(sizes, ratios, strict=True))
    scales = [float(s) for s in site.constant(2, "scales").reshape(-1)]
    return [(math.floor(b * s), s) for b, s in zip(before, scales, strict=True)]


def _half_pixel_symmetric(o: Array, scale: float, before: int, after: int) -> Array:
    adjustment = after / (scale * before)
    return before / 2 * (1 - adjustment) + (o + 0.5) / scale - 0.5


_PLACES: dict[str, Any] = {
    "half_pixel": lambda o, scale, before, after: (o + 0.5) / scale - 0.5,
    "asymmetric": lambda o, scale, before, after: o / scale,
    "align_corners": lambda o, scale, before, after: o * (before - 1) / (after - 1) if after > 1 else o * 0,
    "pytorch_half_pixel": lambda o, scale, before, after: (o + 0.5) / scale - 0.5 if after > 1 else o * 0,
    "half_pixel_symmetric": _half_pixel_symmetric,
}
"""Where in the input output o lies."""

_NEAREST: dict[str, Any] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5), "round_prefer_ceil": lambda x: np.floor(x + 0.5), "floor": np.floor, "ceil": np.ceil,
}  # fmt: skip


def _taps(site: Site, mode: str, x: Array, size: int) -> Taps:
    if mode == "nearest":
        index = _NEAREST[site.get("nearest_mode", "round_prefer_floor")](x)[:, None]
        weight = np.ones_like(index)
    else:
        floor = np.floor(x)
        t = (x - floor)[:, None]
        if mode == "linear":
            index, weight = floor[:, None] + np.arange(2), np.concatenate([1 - t, t], axis=1)
        else:
            index, weight = floor[:, None] + np.arange(-1, 3), _cubic(t, site.get("cubic_coeff_a", -0.75))
    return np.clip(index, 0, size - 1).astype(np.int64), weight


def _cubic(t: Array, a: float) -> Array:
    """Keys 1981, Cubic Convolution Interpolation: weights of the four neighbours."""

    def near(d: Array) -> Array:
        return np.asarray(((a + 2) * d - (a + 3)) * d * d + 1)

    def far(d: Array) -> Array:
        return np.asarray(((a * d - 5 * a) * d + 8 * a) * d - 4 * a)

    return np.concatenate([far(1 + t), near(t), near(1 - t), far(2 - t)], axis=1)
