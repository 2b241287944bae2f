"""From a quantized model to layers: the layer list of a small network as a golden file, and refusals by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graphs import graph
from hls_kit import PYNQ, cnn, mlp, quantized, weights

import gatewright as gw
from gatewright.errors import DoesNotFit, UnsupportedError, UnsupportedOp, UsageError
from gatewright.frontend.integer import plan
from gatewright.targets.hls.legalize import legalize

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("grid", ["pow2", "affine"])
def test_layers_of_a_small_network(golden: Callable[[str, str], None], grid: str) -> None:
    network, parts, problems = legalize(quantized(cnn(), f"bits=8,grid={grid}"), "vitis")
    assert not problems
    text = json.dumps(network.to_json(), indent=1) + "\n"
    host = [node.op_type for part in (parts.host_pre, parts.host_post) if part is not None for node in part.graph]
    golden(f"hls_cnn_{grid}.json", text.replace('"notes": []', f'"host": {json.dumps(host)}'))


def test_on_a_power_of_two_grid_rounding_is_the_type_of_the_layer() -> None:
    network, _, _ = legalize(quantized(mlp()), "vitis")
    assert [layer.kind for layer in network.layers] == ["InputLayer", "Dense", "Dense"]
    assert str(network.layers[1].types["result"]).startswith("ufixed<8")  # Relu is saturation at zero
    assert all(layer.types["result"].saturating for layer in network.layers[1:])


def test_accumulators_hold_what_the_integer_view_proves() -> None:
    model = quantized(mlp())
    network, _, _ = legalize(model, "vitis")
    for op in plan(model).integer_ops:
        layer = next(layer for layer in network.layers if layer.node == op.name and "accum" in layer.types)
        lo, hi = layer.types["accum"].bounds
        assert lo <= op.accumulator[0]
        assert op.accumulator[1] <= hi


def test_names_of_the_model_never_become_names_of_the_design() -> None:
    model = graph("(float[1,4] x) => (float[1,2] y) { h = Gemm(x, w, b)  y = Relu(h) }", **weights(RNG, w=(4, 2), b=(2,)))
    edited = model.copy_ir()
    next(iter(edited.graph)).name = '"; system("true"); //'
    network, _, _ = legalize(quantized(model.with_ir(edited)), "vitis")
    assert all(layer.name.isidentifier() for layer in network.layers)
    assert any(layer.node == '"; system("true"); //' for layer in network.layers)


def test_a_float_model_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnsupportedError, match="quantize"):
        gw.compile(mlp(), PYNQ)
    check = gw.check(mlp(), PYNQ)
    assert not check.ok
    assert "float" in str(check.problems[0])


def test_every_refused_node_is_named() -> None:
    text = """(float[1,4,6] x) => (float[1,4,4] y, float[1,4,4] z) {
      a = MatMul(x, w1)  t = Transpose<perm=[0,2,1]>(x)  b = MatMul(t, w2)  p = MatMul(a, b)  y = Relu(p)
      e = Exp(x)  q = MatMul(e, b)  z = Relu(q) }"""
    model = quantized(graph(text, **weights(RNG, w1=(6, 6), w2=(4, 4))))
    with pytest.raises(UnsupportedOp) as error:
        gw.compile(model, PYNQ)
    assert error.value.target == "hls"
    problems = gw.check(model, PYNQ).problems
    assert [problem.op for problem in problems] == ["MatMul", "MatMul"]
    assert len({problem.node for problem in problems}) == 2
    assert all("both of its operands are activations" in problem.rule for problem in problems)


def test_a_float_node_in_the_middle_is_named() -> None:
    text = "(float[1,8] x) => (float[1,3] y) { h = Gemm(x, w1, b1)  n = LpNormalization(h)  y = Gemm(n, w2, b2) }"
    model = quantized(graph(text, **weights(RNG, w1=(8, 6), b1=(6,), w2=(6, 3), b2=(3,))))
    (problem,) = (p for p in gw.check(model, PYNQ).problems if p.op == "LpNormalization")
    assert "float between quantized layers" in problem.rule


def test_what_does_not_fit_is_counted_before_anything_is_written(tmp_path: Path) -> None:
    text = "(float[1,1500] x) => (float[1,1500] y) { h = Gemm(x, w, b)  y = Relu(h) }"
    model = quantized(graph(text, **weights(RNG, w=(1500, 1500), b=(1500,))))
    assert any("BRAM" in shortfall for shortfall in gw.check(model, PYNQ).shortfalls)
    with pytest.raises(DoesNotFit, match="BRAM"):
        gw.compile(model, PYNQ, out=tmp_path / "art")
    assert not (tmp_path / "art").exists()


def test_a_part_of_another_vendor_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="tool=quartus"):
        gw.check(quantized(mlp()), "hls:10ax115")
    with pytest.raises(UsageError, match="amd"):
        gw.check(quantized(mlp()), "hls:ice40up5k")


def test_estimates_are_labelled_and_fall_with_reuse() -> None:
    model = quantized(cnn())
    fast, slow = gw.check(model, f"{PYNQ}{{reuse=1}}"), gw.check(model, f"{PYNQ}{{io=stream,reuse=64}}")
    assert {figure.source for figure in fast.figures.values()} == {"estimated"}
    assert slow.figures["throughput"].value < fast.figures["throughput"].value
    assert slow.figures["LUT"].value < fast.figures["LUT"].value


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized(cnn())
    first = gw.compile(model, PYNQ, out=tmp_path / "one").manifest["files"]
    monkeypatch.setenv("GATEWRIGHT_CACHE_DIR", str(tmp_path / "another"))
    assert gw.compile(model, PYNQ, out=tmp_path / "two").manifest["files"] == first
    written = "\n".join(p.read_text() for p in (tmp_path / "one").rglob("*") if p.suffix in (".json", ".tcl", ".cpp", ".h", ".txt"))
    assert str(tmp_path) not in written
