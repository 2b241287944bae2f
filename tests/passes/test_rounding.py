"""Rounding weights: gptq and adaround against nearest, the forms in which the integers are stored, and integer layers made of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph
from strategies import build, dataset, feeds

from gatewright.errors import PassError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.integer import plan
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.ortrun import OrtSession
from gatewright.frontend.reference import Reference
from gatewright.passes import moments, rounding
from gatewright.passes.base import PassContext
from gatewright.passes.chains import linear_of
from gatewright.passes.moments import inputs_of, rows_of, second_moments, weight_of
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.rewrite import Array, real_constant


def run(model: Model, text: str, data: Dataset | None = None) -> Model:
    return Pipeline.parse(text).run(model, PassContext(data=data or dataset(model, 60)))


def correlated(seed: int, n: int = 24, rank: int = 5, groups: int = 1) -> Array:
    """E[x xᵀ] of inputs that depend on one another, as activations do."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(groups):
        mix = random.normal(size=(rank, n))
        found.append(mix.T @ mix + 0.05 * np.diag(random.uniform(0.1, 1, n)))
    return np.asarray(found)


def case(seed: int, hi: int = 3, groups: int = 1) -> tuple[Array, Array, Array]:
    w = np.random.default_rng(seed + 100).normal(size=(groups, 8, 24))
    steps = np.stack([rounding.row_scales(part, hi, "symmetric") for part in w])[..., None].astype(np.float64)
    return w, steps, correlated(seed, groups=groups)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("hi", [1, 3, 7])
def test_learned_rounding_has_less_error_in_every_row(seed: int, hi: int) -> None:
    w, steps, h = case(seed, hi, groups=2)
    plain = rounding.error(w, rounding.nearest(w, steps, hi), steps, h)
    for q in (rounding.gptq(w, steps, h, hi), rounding.adaround(w, steps, h, hi, 400)):
        assert q.shape == w.shape
        assert np.array_equal(q, np.rint(q))
        assert np.abs(q).max() <= hi
        found = rounding.error(w, q, steps, h)
        assert np.all(found <= plain)
        assert found.sum() < (0.8 if hi == 1 else 0.6) * plain.sum()


def test_adaround_rounds_up_or_down_only_and_finds_the_best_of_few() -> None:
    """Of six weights all 64 roundings can be tried."""
    random = np.random.default_rng(0)
    ranks: dict[str, list[int]] = {"adaround": [], "nearest": []}
    for seed in range(12):
        w, h = random.normal(size=(1, 1, 6)) * 3, correlated(seed, n=6, rank=2)
        steps = np.ones((1, 1, 1))
        every = sorted(
            float(rounding.error(w, np.floor(w) + np.asarray(up), steps, h)[0, 0]) for up in itertools.product((0, 1), repeat=6)
        )  # fmt: skip
        for name, q in (("adaround", rounding.adaround(w, steps, h, 20)), ("nearest", rounding.nearest(w, steps, 20))):
            assert np.all(np.abs(q - w) < 1)
            ranks[name].append(int(np.searchsorted(every, float(rounding.error(w, q, steps, h)[0, 0]) - 1e-9)))
    assert np.mean(ranks["adaround"]) < 0.5 * np.mean(ranks["nearest"])
    assert np.mean(ranks["adaround"]) < 8


def test_independent_inputs_leave_nothing_to_gain() -> None:
    w, steps, _ = case(1)
    h = np.diag(np.random.default_rng(0).uniform(0.5, 2, 24))[None]
    for q in (rounding.gptq(w, steps, h, 3), rounding.adaround(w, steps, h, 3, 400)):
        np.testing.assert_array_equal(q, rounding.nearest(w, steps, 3))


def test_inputs_that_are_always_zero() -> None:
    w, steps, h = case(2)
    h[:, 5], h[:, :, 5] = 0, 0
    assert np.isfinite(rounding.gptq(w, steps, h, 3)).all()
    np.testing.assert_array_equal(rounding.gptq(w, steps, np.zeros_like(h), 3), rounding.nearest(w, steps, 3))
    np.testing.assert_array_equal(rounding.adaround(w, steps, np.zeros_like(h), 3, 50), rounding.nearest(w, steps, 3))


def test_gptq_that_does_not_make_up_for_errors_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = np.outer
    monkeypatch.setattr(rounding.np, "outer", lambda a, b: 0 * real(a, b))
    with pytest.raises(AssertionError):
        test_learned_rounding_has_less_error_in_every_row(0, 3)


@pytest.mark.parametrize("steps", ["conv conv_grouped conv_stride conv_depthwise", "gemm matmul_add"])
def test_moments_are_those_of_the_layer(steps: str) -> None:
    """rows·columns is the layer's product, and H the mean of the columns' products."""
    model = run(build(2, steps.split(), image="conv" in steps), "fuse")
    data = dataset(model, 7)
    traced = Reference(model).run(dict(data.inputs), trace=True)
    layers = [layer for node in model.graph if (layer := linear_of(node)) is not None]
    for layer, h in second_moments(model, layers, data):
        node = layer.node
        x = traced[node.inputs[0].name or ""]  # type: ignore[union-attr]
        (columns,) = inputs_of(layer, x)
        rows = rows_of(layer, layer.weight)
        np.testing.assert_array_equal(weight_of(layer, rows, layer.weight.shape), layer.weight)
        np.testing.assert_allclose(h, np.matmul(columns.transpose(0, 2, 1), columns) / columns.shape[1], rtol=1e-4, atol=1e-6)
        product = np.matmul(columns, rows.transpose(0, 2, 1))
        y = traced[node.outputs[0].name or ""]
        bias = layer.read_bias() if layer.bias is not None and layer.bias[0] is node else np.zeros(layer.outputs)
        y = np.moveaxis(y, 1 if node.op_type == "Conv" else -1, 0).reshape(len(bias), -1) - bias[:, None]
        np.testing.assert_allclose(product.transpose(0, 2, 1).reshape(len(bias), -1), y, rtol=1e-4, atol=1e-5)


def test_layers_in_turns_have_the_same_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(2, ["gemm", "relu", "gemm", "gemm"], image=False)
    layers = [layer for node in model.graph if (layer := linear_of(node)) is not None]
    together = [h for _, h in second_moments(model, layers, dataset(model, 20))]
    monkeypatch.setattr(moments, "MOMENT_BYTES", 1)
    for one, other in zip(together, second_moments(model, layers, dataset(model, 20)), strict=True):
        np.testing.assert_array_equal(one, other[1])


def net(seed: int = 0) -> tuple[Model, Dataset]:
    """Two products over 64 correlated inputs."""
    random = np.random.default_rng(seed)
    w, v = (random.normal(size=(64, n)).astype(np.float32) / 8 for n in (64, 10))
    b = random.normal(size=64).astype(np.float32) / 8
    text = "(float[1,4,64] x) => (float[1,4,10] y) { m = MatMul(x, w) a = Add(m, b) r = Relu(a) y = MatMul(r, v) }"
    x = random.normal(size=(80, 4, 6)) @ random.normal(size=(6, 64)) + 0.1 * random.normal(size=(80, 4, 64))
    return graph(text, w=w, v=v, b=b), Dataset({"x": x.astype(np.float32)})


def output_error(model: Model, changed: Model, data: Dataset) -> float:
    x = dict(data.inputs)
    return float(np.mean((Reference(changed).run(x)["y"] - Reference(model).run(x)["y"]) ** 2))


@pytest.mark.parametrize("options", ["", "group=32", "bits=3,group=16", "grid=pow2"])
def test_on_a_model_and_on_data_not_measured_on(options: str) -> None:
    model, data = net()
    known, held_out = data.slice(0, 40), data.slice(40, 80)
    error = {name: output_error(model, run(model, f"{name}{{{options}}}", known), held_out) for name in ("nearest", "gptq", "adaround")}
    assert error["gptq"] < 0.7 * error["nearest"]
    assert error["adaround"] < 0.7 * error["nearest"]


@pytest.mark.parametrize("name", ["nearest", "gptq", "adaround"])
def test_both_forms_mean_the_same_everywhere(name: str, tmp_path: Path) -> None:
    """Rows and blocks, through a file, on the reference and in ONNX Runtime with its fused kernel."""
    model, data = net()
    x = {"x": data.inputs["x"][:1]}
    forms = {form: run(model, f"{name}{{group=32,store={form}}}", data) for form in ("rows", "blocks")}
    wanted = Reference(forms["rows"]).run(x)["y"]
    for form, made in forms.items():
        integers = [n for n in made.graph if n.op_type == "DequantizeLinear"]
        assert [n.inputs[0].dtype for n in integers] == [ir.DataType.INT4] * 2  # type: ignore[union-attr]
        assert all(("block_size" in n.attributes) == (form == "blocks") for n in integers)
        made.save(tmp_path / f"{form}.onnx")
        again = load(tmp_path / f"{form}.onnx")
        np.testing.assert_allclose(Reference(again).run(x)["y"], wanted, rtol=1e-5, atol=1e-6)
        for optimize in (True, False):
            np.testing.assert_allclose(OrtSession(again, optimize=optimize).run(x)["y"], wanted, rtol=1e-4, atol=1e-5)
    stored = sum(v.const_value.nbytes for v in forms["rows"].graph.initializers.values() if v.const_value is not None)
    assert stored < 0.25 * 4 * (64 * 64 + 64 * 10) + 4 * 64 * 2


@pytest.mark.parametrize("text", ["gptq{group=32}", "adaround{iterations=50},quantize{bias_correction=true,range=mse}"])
def test_the_cpu_target_runs_them(text: str, tmp_path: Path) -> None:
    """Weights alone: as near as float is. Integers throughout: bit for bit."""
    pytest.importorskip("tvm")
    import gatewright as gw

    model, data = net()
    x = {"x": data.inputs["x"][:1]}
    made = run(model, text, data)
    wanted = Reference(made).run(x)["y"]
    with gw.compile(made, "cpu", out=tmp_path / "built").load("device") as executor:
        got = executor.run(x)["y"]
    if plan(made).is_quantized:
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_quantize_makes_the_layers_integer_and_keeps_what_was_rounded() -> None:
    for steps, image in ((["conv", "relu", "conv_depthwise", "relu"], True), (["gemm", "relu", "matmul_add"], False)):
        model = build(3, steps, image=image)
        for text, options in (
            ("gptq", ""), ("adaround{bits=3,iterations=50}", "weight_bits=4,bias_correction=true"), ("gptq{grid=pow2}", "grid=pow2"),
        ):  # fmt: skip
            rounded = run(model, f"fuse,{text}")
            quantized = run(model, f"fuse,{text},quantize{{{options}}}")
            ops = {op.name: op for op in plan(quantized).integer_ops if op.weight is not None}
            layers = [n for n in rounded.graph if n.op_type in ("Conv", "Gemm", "MatMul")]
            assert set(ops) == {n.name for n in layers}
            for node in layers:
                op = ops[node.name or ""]
                assert op.weight is not None
                assert op.weight_grid is not None
                axis = 0 if node.op_type == "Conv" else 1
                along = tuple(-1 if i == axis else 1 for i in range(op.weight.ndim))
                real = (op.weight * op.weight_grid.scale.reshape(along)).astype(np.float32)
                np.testing.assert_array_equal(real, real_constant(node.inputs[1]))
                assert np.abs(op.weight).max() <= (3 if "bits=3" in text else 7)


def test_products_with_groups_stay_float_and_the_rest_is_quantized() -> None:
    model, data = net()
    last = [n.name for n in model.graph if n.op_type == "MatMul"][1]
    q = run(model, f"gptq{{group=32,exclude={last}}},quantize", data)
    assert [op.name for op in plan(q).integer_ops if op.kind == "matmul"] == [last]
    assert output_error(model, q, data) < 0.05 * float(np.var(Reference(model).run(dict(data.inputs))["y"]))


def test_what_is_refused() -> None:
    model, data = net()
    for text, message in (
        ("gptq{bits=9}", "2 to 8"), ("gptq{group=24}", "power of two"), ("gptq{damping=0}", "damping"), ("adaround{rate=0}", "rate"),
        ("adaround{iterations=0}", "iterations"), ("nearest{store=columns}", "rows, blocks"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            Pipeline.parse(text)
    with pytest.raises(UsageError, match="exclude=a names no layer"):
        run(model, "gptq{exclude=a}", data)
    with pytest.raises(PassError, match="quantized"):
        run(model, "quantize,gptq", data)
    with pytest.raises(PassError, match="needs data"):
        Pipeline.parse("adaround").run(model)
    with pytest.raises(PassError, match="to round"):
        run(graph("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }"), "nearest")
    bad = data.inputs["x"].copy()
    bad[3, 0, 0] = np.nan
    with pytest.raises(PassError, match="not finite"):
        run(model, "gptq", Dataset({"x": bad}))
    odd = run(model, "nearest{group=128}")
    assert any("no multiple of 128" in note for note in odd.history[-1].notes)


def test_the_same_seed_and_data_give_the_same_bytes() -> None:
    model, data = net()
    for text in ("gptq{group=16}", "adaround{iterations=30}"):
        assert run(model, text, data).digest == run(model, text, data).digest
        assert str(Pipeline.parse(text)) == text
    assert feeds(model, 1)["x"].shape == (1, 4, 64)
