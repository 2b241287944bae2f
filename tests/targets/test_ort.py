"""ONNX Runtime as a target: what it lacks is refused by name, and what is legalized for it stays equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import graph, scale

import gatewright as gw
from gatewright.errors import UnsupportedOp, UsageError
from gatewright.frontend.reference import Reference


def test_a_missing_kernel_is_refused_by_node(tmp_path: Path) -> None:
    model = graph("(int16[1,4] x) => (int16[1,4] y) { y = Relu(x) }")
    (problem,) = gw.check(model, "ort").problems
    assert (problem.node, problem.op, problem.target) == (next(iter(model.graph)).name, "Relu", "ort")
    with pytest.raises(UnsupportedOp, match="Relu"):
        gw.compile(model, "ort", out=tmp_path / "art")
    assert not (tmp_path / "art").exists()


@pytest.mark.parametrize("exact", [True, False])
def test_an_odd_width_runs_through_int32(exact: bool, tmp_path: Path) -> None:
    """Ten bits are an int16 with a Clip, and ONNX Runtime has no Clip for int16."""
    text = """(float[1,6] x) => (float[1,6] y) {
      q = QuantizeLinear(x, s, z)  c = Clip(q, lo, hi)  xf = DequantizeLinear(c, s, z)  r = Relu(xf)
      m = QuantizeLinear(r, s, z)  k = Clip(m, lo, hi)  y = DequantizeLinear(k, s, z) }"""
    model = graph(text, s=scale(0.5), z=np.int16(0), lo=np.int16(-512), hi=np.int16(511))
    x = np.array([[-300, -256, -0.25, 0.75, 255.5, 300]], np.float32)
    with gw.compile(model, f"ort{{exact={str(exact).lower()}}}", out=tmp_path / "art").load() as executor:
        assert np.array_equal(executor.run({"x": x})["y"], Reference(model).run({"x": x})["y"])


def test_thread_count_below_one_is_a_usage_error() -> None:
    model = graph("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match="threads"):
        gw.check(model, "ort{threads=0}")


def test_corners_of_a_fractional_size_are_refused() -> None:
    """Its kernel gave zeros there, to the right of a row that is resized to 1.5 times as much (nearest)."""
    text = """(float[1,1,4,3] x) => (float[1,1,6,4] y) {
      y = Resize<mode="nearest", coordinate_transformation_mode="align_corners">(x, , s) }"""
    (problem,) = gw.check(graph(text, s=np.array([1, 1, 1.5, 1.5], np.float32)), "ort").problems
    assert "corners" in problem.rule
    text = text.replace("6,4", "8,6")
    assert not gw.check(graph(text, s=np.array([1, 1, 2, 2], np.float32)), "ort").problems


def test_both_bounds_may_be_one_constant() -> None:
    model = graph("(int16[1,3] x) => (int16[1,3] y) { y = Clip(x, b, b) }", b=np.int16(2))
    x = np.array([[-3, 2, 7]], np.int16)
    with gw.compile(model, "ort").load() as executor:
        assert executor.run({"x": x})["y"].tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("op", ["Div", "Mod", "Mod<fmod = 1>"])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_the_least_integer_by_minus_one_ends_no_process(tmp_path: Path, op: str, dtype: str) -> None:
    model = graph(f"({dtype}[1,4] x, {dtype}[1,4] b) => ({dtype}[1,4] y) {{ y = {op}(x, b) }}")
    x = np.array([[np.iinfo(dtype).min, -7, 7, 9]], dtype)
    feeds = {"x": x, "b": np.array([[-1, -1, -2, 4]], dtype)}
    with gw.compile(model, "ort", out=tmp_path / "artifact").load() as executor:
        np.testing.assert_array_equal(executor.run(feeds)["y"], Reference(model).run(feeds)["y"])
