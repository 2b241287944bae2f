"""The quantize pass: what it writes, that everything becomes integer, and how it refuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import QUANTIZED_IMAGE_STEPS, VECTOR_STEPS, build, dataset, feeds, quantized_models

from gatewright.errors import PassError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.integer import FloatStep, IntegerOp, plan
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.quantize import Quantize

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)


def quantized(model: Model, text: str, data: Dataset | None = None) -> Model:
    return Pipeline.parse(text).run(model, PassContext(data=data or dataset(model)))


def float_nodes(model: Model) -> list[str]:
    found = [step.node.op_type for step in plan(model).steps if isinstance(step, FloatStep)]
    return [op for op in found if op not in ("QuantizeLinear", "DequantizeLinear", "Clip")]


@relaxed
@given(quantized_models())
def test_everything_but_the_edges_is_integer(model: Model) -> None:
    assert set(float_nodes(model)) <= {"Softmax"}


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("grid", ["affine", "symmetric", "pow2"])
def test_every_step_quantizes(image: bool, grid: str) -> None:
    """Each step alone, at 8 bits: integer throughout, and near to the float model."""
    for step in QUANTIZED_IMAGE_STEPS if image else VECTOR_STEPS:
        model = build(11, ["conv" if image else "gemm", step], image=image)
        q = quantized(model, f"fuse,quantize{{grid={grid},per=channel}}", dataset(model, 100))
        assert float_nodes(q) == [], step
        x = feeds(model, 40, seed=1)
        error = Reference(q).run(x)["y"] - Reference(model).run(x)["y"]
        assert np.std(error) < 0.06 * np.std(Reference(model).run(x)["y"]) + 0.01, step


def test_names_and_forms() -> None:
    model = build(1, ["conv", "relu", "conv"])
    q = quantized(model, "fuse,quantize{bits=5,grid=symmetric,per=channel}")
    values = {v.name: v for node in q.graph for v in node.outputs}
    assert {"x_q", "x_c", "x_dq", "y_prequant", "y_q", "y_c", "y"} <= set(values)
    quantize = values["x_q"].producer()
    clip = values["x_c"].producer()
    assert quantize is not None
    assert clip is not None
    assert quantize.inputs[0] is q.graph.inputs[0]
    assert [int(v.const_value.numpy()) for v in clip.inputs[1:] if v is not None and v.const_value is not None] == [-16, 15]
    for node in q.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert "axis" in node.attributes
            assert len(node.inputs) == 3
    ops = {op.name: op for op in plan(q).integer_ops}
    conv = next(op for op in ops.values() if op.kind == "conv")
    assert conv.weight_grid is not None
    assert conv.weight_grid.scale.shape == (conv.weight.shape[0],)  # type: ignore[union-attr]
    assert conv.activation_lo
    assert (conv.grid.lo, conv.grid.hi) == (0, 31)


@pytest.mark.parametrize(
    ("bits", "dtype", "clipped"),
    [(4, "UINT4", False), (8, "UINT8", False), (16, "UINT16", False), (3, "UINT8", True), (11, "UINT16", True)],
)
def test_storage_types(bits: int, dtype: str, clipped: bool) -> None:
    model = build(3, ["gemm", "relu"], image=False)
    q = quantized(model, f"quantize{{bits={bits},weight_bits=6,grid=affine}}")
    values = {v.name: v for node in q.graph for v in node.outputs}
    assert values["x_q"].dtype == ir.DataType[dtype]
    assert ("x_c" in values) == clipped


def test_pow2_scales_are_powers_of_two() -> None:
    q = quantized(build(4, ["conv", "relu", "residual", "join"]), "fuse,quantize{grid=pow2,per=channel}")
    for op in plan(q).integer_ops:
        assert op.grid.is_pow2
        assert op.weight_grid is None or op.weight_grid.is_pow2
        assert all(m.is_shift for m in op.multipliers) or op.kind in ("average",)


def test_relu_is_fused_and_movement_keeps_the_grid() -> None:
    q = quantized(build(4, ["conv", "relu", "max_pool", "transposed"]), "fuse,quantize{}")
    ops = list(plan(q).integer_ops)
    assert [op.kind for op in ops if op.kind == "conv"] == ["conv"]
    for op in ops:
        if op.kind in ("maximum",) or (op.kind == "requantize" and op.node is not None):
            assert op.operands[0].grid.same_as(op.grid)


def test_concat_shares_a_grid_where_ranges_are_close() -> None:
    model = graph("(float[1,4] x) => (float[1,8] y) { a = Relu(x) n = Neg(x) b = Relu(n) y = Concat<axis=1>(a, b) }")
    data = Dataset({"x": np.random.default_rng(0).uniform(-1, 1, (50, 4)).astype(np.float32)})
    op = next(op for op in plan(quantized(model, "quantize{grid=symmetric}", data)).integer_ops if op.kind == "concat")
    assert all(o.grid.same_as(op.grid) for o in op.operands)
    far = graph(
        "(float[1,4] x) => (float[1,8] y) { k = Constant<value = float {0.01}>() a = Relu(x) b = Mul(a, k) y = Concat<axis=1>(a, b) }"
    )
    op = next(op for op in plan(quantized(far, "quantize{grid=symmetric}", data)).integer_ops if op.kind == "concat")
    assert not op.operands[1].grid.same_as(op.operands[0].grid)


def test_softmax_at_the_end_stays_float_and_inside_is_integer() -> None:
    assert float_nodes(quantized(build(1, ["gemm"], image=False, softmax=True), "quantize{}")) == ["Softmax"]
    attention = graph(
        "(float[1,4,6] x) => (float[1,4,6] y) { t = Transpose<perm=[0,2,1]>(x) s = MatMul(x, t) p = Softmax<axis=-1>(s) y = MatMul(p, x) }"
    )
    data = Dataset({"x": np.random.default_rng(0).normal(size=(20, 4, 6)).astype(np.float32)})
    q = quantized(attention, "quantize{grid=symmetric}", data)
    assert float_nodes(q) == []
    assert [op.kind for op in plan(q).integer_ops] == ["requantize", "matmul", "softmax", "matmul"]


def test_a_spelled_out_activation_is_one_table() -> None:
    model = graph(
        "(float[1,8] x) => (float[1,8] y) { three = Constant<value = float {3.0}>() six = Constant<value = float {6.0}>()"
        " zero = Constant<value = float {0.0}>() a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(x, d) }"
    )
    data = Dataset({"x": np.random.default_rng(0).normal(0, 3, size=(60, 8)).astype(np.float32)})
    q = quantized(model, "quantize{grid=pow2}", data)
    assert [op.kind for op in plan(q).integer_ops] == ["table"]


def test_excluded_layers_stay_float_and_wide_ones_are_wide() -> None:
    model = build(6, ["gemm", "relu", "gemm", "relu"], image=False)
    names = [n.name for n in model.graph if n.op_type == "Gemm"]
    q = quantized(model, f"quantize{{bits=8,exclude={names[0]},wide={names[1]}}}")
    assert float_nodes(q) == ["Gemm", "Relu"] or float_nodes(q) == ["Gemm"]
    wide = next(op for op in plan(q).integer_ops if op.name == names[1])
    assert wide.grid.bits == 16
    assert wide.weight_grid is not None
    assert wide.weight_grid.bits > 8
    assert max(map(abs, wide.accumulator)) < 2**31


def test_a_layer_that_reads_a_wide_one_is_narrowed_with_a_note() -> None:
    w = np.ones((400, 900), np.float32)
    model = graph("(float[1,400] x) => (float[1,2] y) { a = Gemm(x, w) y = Gemm(a, v) }", w=w, v=np.ones((900, 2), np.float32))
    data = Dataset({"x": np.random.default_rng(0).normal(size=(20, 400)).astype(np.float32)})
    q = quantized(model, "quantize{wide=a}", data)
    names = [n.name for n in model.graph]
    assert [note.split(":")[0] for note in q.history[-1].notes if "weights take" in note] == names[-1:]
    assert all(max(map(abs, op.accumulator)) < 2**31 for op in plan(q).integer_ops)


def test_an_accumulator_that_could_overflow_is_refused_by_name() -> None:
    model = build(7, ["gemm", "relu", "gemm"], image=False)
    first = next(n.name for n in model.graph if n.op_type == "Gemm")
    with pytest.raises(PassError, match=f"{first}.*32-bit accumulator.*weight_bits=") as caught:
        quantized(model, "quantize{bits=16}")
    bits = int(str(caught.value).split("weight_bits=")[1].split()[0])
    q = quantized(model, f"quantize{{bits=16,weight_bits={bits}}}")
    assert all(max(map(abs, op.accumulator)) < 2**31 for op in plan(q).integer_ops if op.kind in ("conv", "matmul"))
    with pytest.raises(PassError, match="32-bit"):
        quantized(model, f"quantize{{bits=16,weight_bits={bits + 1}}}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantize{bits=1}", "2 to 16"), ("quantize{bits=17}", "2 to 16"), ("quantize{weight_bits=1}", "2 to 16"),
        ("quantize{bits=x}", "whole"), ("quantize{grid=log}", "affine, symmetric, pow2"), ("quantize{percentile=20}", "percentile"),
        ("quantize{bit=8}", "did you mean bits"), ("quantise{}", "did you mean quantize"),
    ],
)  # fmt: skip
def test_options_out_of_range(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pipeline.parse(text)


def test_unknown_layer_names_give_the_nearest() -> None:
    model = build(8, ["gemm"], image=False)
    name = next(n.name for n in model.graph if n.op_type == "Gemm") or ""
    for option in ("wide", "exclude"):
        with pytest.raises(UsageError, match=f"{option}=.*{name}"):
            quantized(model, f"quantize{{{option}={name}x}}")
    assert quantized(model, "quantize{wide=gemm*}")


def test_what_cannot_be_quantized() -> None:
    model = build(8, ["conv", "batch_norm"])
    with pytest.raises(PassError, match=r"BatchNormalization.*run fuse first"):
        quantized(model, "quantize{}")
    with pytest.raises(PassError, match="needs data"):
        Pipeline.parse("fuse,quantize{}").run(model)
    with pytest.raises(PassError, match="quantized already"):
        quantized(quantized(model, "fuse,quantize{}"), "quantize{}")
    integers = graph("(int64[1,4] x) => (int64[1,4] y) { y = Add(x, x) }")
    with pytest.raises(PassError, match="integer form"):
        quantized(integers, "quantize{}", Dataset({"x": np.zeros((3, 4), np.int64)}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_calibration_data_that_is_not_finite_is_named(bad: float) -> None:
    model = build(8, ["gemm"], image=False)
    x = np.zeros((5, 10), np.float32)
    x[3, 2] = bad
    with pytest.raises(PassError, match=r"(NaN|infinite).*'x'"):
        quantized(model, "quantize{}", Dataset({"x": x}))


def test_a_tensor_that_is_always_zero_and_a_layer_of_zeros() -> None:
    w, b = np.zeros((3, 2), np.float32), np.asarray([1.5, -2e9], np.float32)
    model = graph("(float[1,3] x) => (float[1,2] y) { y = Gemm(x, w, b) }", w=w, b=b)
    for per in ("tensor", "channel"):
        for grid in ("affine", "symmetric", "pow2"):
            q = quantized(model, f"quantize{{grid={grid},per={per}}}", Dataset({"x": np.zeros((4, 3), np.float32)}))
            assert any("zero on all" in note for note in q.history[-1].notes)
            y = Reference(q).run({"x": np.zeros((1, 3), np.float32)})["y"]
            assert np.abs(y[0, 1] + 2e9) < 2e7
            for value in q.graph.initializers.values():
                if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
                    assert np.all(value.const_value.numpy() >= 2.0**-126)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**16), st.integers(-40, 40))
def test_scales_stay_normal_at_any_magnitude(seed: int, exponent: int) -> None:
    """Data and weights scaled by a power of two: nothing overflows, nothing becomes denormal, the result scales along."""
    random = np.random.default_rng(seed)
    w = (random.normal(size=(5, 3)) * 2.0**exponent).astype(np.float32)
    b = (random.normal(size=3) * 2.0**exponent).astype(np.float32)
    model = graph("(float[1,5] x) => (float[1,3] y) { y = Gemm(x, w, b) }", w=w, b=b)
    x = (random.normal(size=(30, 5)) * 2.0 ** (-exponent // 2)).astype(np.float32)
    q = quantized(model, "quantize{grid=pow2}", Dataset({"x": x}))
    error = Reference(q).run({"x": x})["y"] - Reference(model).run({"x": x})["y"]
    assert np.abs(error).max() < 0.1 * np.abs(Reference(model).run({"x": x})["y"]).max()


def test_the_order_of_the_samples_does_not_matter() -> None:
    model = build(9, ["conv", "relu", "conv"])
    data = dataset(model, 50)
    for text in ("fuse,quantize{grid=pow2,range=percentile,percentile=99}", "fuse,quantize{}"):
        assert quantized(model, text, data).digest == quantized(model, text, data.shuffled(3)).digest


def test_history_says_what_was_done() -> None:
    model = build(9, ["gemm"], image=False)
    data = dataset(model, 12)
    step = quantized(model, "quantize{bits=8,grid=pow2}", data).history[-1]
    assert step.text == "quantize{grid=pow2}"
    assert step.details["samples"] == 12
    assert step.details["dataset"] == data.digest
    assert step.details["ranges"]["x"] == [float(data.inputs["x"].min()), float(data.inputs["x"].max())]


def test_percentile_clips_an_outlier() -> None:
    model = build(9, ["gemm"], image=False)
    x = np.random.default_rng(0).uniform(-1, 1, (2000, 10)).astype(np.float32)
    x[7, 3] = 1000.0
    for grid in ("affine", "symmetric", "pow2"):
        wide = plan(quantized(model, f"quantize{{grid={grid}}}", Dataset({"x": x}))).grids["x_q"].scale
        narrow = plan(quantized(model, f"quantize{{grid={grid},range=percentile,percentile=99.9}}", Dataset({"x": x}))).grids["x_q"].scale
        if grid != "pow2":
            assert narrow < wide / 100
        assert narrow <= wide


def test_quantize_is_frozen_and_describes_itself() -> None:
    text = "quantize{bits=4,weight_bits=6,grid=pow2,per=channel,range=percentile,percentile=99.9,wide=a|b*,wide_bits=12,exclude=c}"
    assert str(Pipeline.parse(text)) == text
    assert Pipeline.parse(text).passes[0] == Quantize(4, 6, "pow2", "channel", "percentile", 99.9, ("a", "b*"), 12, ("c",))


def test_operations_cover_every_node_once() -> None:
    q = quantized(build(12, ["conv", "residual", "swish", "join"]), "fuse,quantize{}")
    seen: set[ir.Node] = set()
    for op in plan(q).integer_ops:
        assert isinstance(op, IntegerOp)
        assert not seen & set(op.nodes)
        seen.update(op.nodes)
