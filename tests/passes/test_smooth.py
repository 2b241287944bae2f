"""smoothquant and awq: the function stays, outliers move, and what is rounded afterwards is nearer to the float model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import graph

from gatewright.errors import PassError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.integer import plan
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.passes import awq, smooth
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.rewrite import Array

WIDTH = 32
FORMS = {
    "operator": "n = LayerNormalization<axis=-1>(x, g, b)",
    "spelled": "m = ReduceMean<axes=[-1]>(x) c = Sub(x, m) v = Mul(c, g) n = Add(b, v)",
    "layer": "l = MatMul(x, w0) k = Add(l, b) n = Relu(k)",
    "gemm": "f = Reshape(x, flat) n = Gemm(f, w0, b)",
}


def block(form: str, outliers: float = 30.0, seed: int = 0) -> tuple[Model, Dataset]:
    """Two products behind a norm (or a layer) that makes three channels much larger than the others."""
    random = np.random.default_rng(seed)
    large = np.ones(WIDTH)
    large[[3, 11, 20]] = outliers
    arrays: dict[str, Array] = {
        "g": random.uniform(0.5, 1.5, WIDTH) * large, "b": random.normal(size=WIDTH) * large / 4,
        "w0": random.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH) * large,
        "w1": random.normal(size=(WIDTH, 24)) / WIDTH, "w2": random.normal(size=(WIDTH, 16)) / WIDTH, "b2": random.normal(size=16) / 4,
    }  # fmt: skip
    rank = 2 if form == "gemm" else 3
    shapes = (f"float[{4 if rank == 2 else '1,4'},24] y", f"float[{4 if rank == 2 else '1,4'},16] z")
    text = f"(float[1,4,{WIDTH}] x) => ({', '.join(shapes)}) {{ {FORMS[form]} y = MatMul(n, w1) p = MatMul(n, w2) z = Add(p, b2) }}"
    if form == "spelled":
        text = text.replace("<axes=[-1]>(x)", "(x, axes)")
    extra = {"axes": np.asarray([-1])} if form == "spelled" else {"flat": np.asarray([4, WIDTH])} if form == "gemm" else {}
    used = {n: a.astype(np.float32) for n, a in arrays.items() if f"{n})" in text or f"{n}," in text or f"({n}" in text}
    x = random.normal(size=(120, 4, 8)) @ random.normal(size=(8, WIDTH)) / 3 + 0.3 * random.normal(size=(120, 4, WIDTH))
    return graph(text, **used, **extra), Dataset({"x": x.astype(np.float32)})


def run(model: Model, text: str, data: Dataset, verify: Any = "structure") -> Model:
    return Pipeline.parse(text).run(model, PassContext(data=data), verify=verify)


def error(model: Model, changed: Model, data: Dataset) -> float:
    total = 0.0
    one = [{"x": data.inputs["x"][i : i + 1]} for i in range(40)]
    left, right = Reference(model), Reference(changed)
    for x in one:
        a, b = left.run(x), right.run(x)
        total += sum(float(np.mean((a[n] - b[n]) ** 2)) / float(np.var(a[n])) for n in a)
    return total / len(one)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_keeps_the_function_and_moves_outliers(form: str, alpha: float) -> None:
    model, data = block(form)
    smoothed = run(model, f"smoothquant{{alpha={alpha}}}", data, verify="numeric")
    (before, after) = next(iter(smoothed.history[-1].details["outliers"].values()))
    assert before > 10
    if alpha == 1.0:
        assert after == pytest.approx(1, rel=1e-3)
    if alpha == 0.5:
        assert after < 0.5 * before


@pytest.mark.parametrize("form", ["operator", "spelled", "layer"])
def test_int8_is_nearer_after_smoothing(form: str) -> None:
    model, data = block(form, outliers=200)
    calibration, held_out = data.slice(0, 60), data.slice(60, 120)
    options = "quantize{bits=8,per=channel}"
    plain, smoothed = run(model, options, calibration), run(model, f"smoothquant,{options}", calibration)
    assert [op.kind for op in plan(smoothed).integer_ops] == [op.kind for op in plan(plain).integer_ops]
    assert error(model, smoothed, held_out) < (0.9 if form == "layer" else 0.7) * error(model, plain, held_out)


def test_a_factor_that_is_not_taken_out_again_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = block("operator")
    monkeypatch.setattr(smooth, "LARGEST", 1e9)
    real = smooth.rewrite.replace_constant
    monkeypatch.setattr(smooth.rewrite, "replace_constant", lambda edit, node, i, array: real(edit, node, i, array * np.float32(1.01)))
    with pytest.raises(PassError, match="exact, but"):
        run(model, "smoothquant", data, verify="numeric")


def test_what_cannot_be_scaled_is_named() -> None:
    model, data = block("operator")
    twice = graph(
        f"(float[1,4,{WIDTH}] x) => (float[1,4,8] y, float[1,4,{WIDTH}] z)"
        " { n = LayerNormalization<axis=-1>(x, g) y = MatMul(n, w) z = Neg(n) }",
        g=np.ones(WIDTH, np.float32), w=np.ones((WIDTH, 8), np.float32),
    )  # fmt: skip
    for text, why in (("n = Sigmoid(x) y = MatMul(n, w)", "Sigmoid"), ("y = MatMul(x, w)", "an input of the model")):
        bare = graph(f"(float[1,4,{WIDTH}] x) => (float[1,4,8] y) {{ {text} }}", w=np.ones((WIDTH, 8), np.float32))
        same = run(bare, "smoothquant", data)
        assert same.digest == bare.digest
        assert why in same.history[-1].notes[0]
    assert "others read" in run(twice, "smoothquant", data).history[-1].notes[0]
    with pytest.raises(PassError, match="no MatMul or Gemm"):
        run(graph(f"(float[1,4,{WIDTH}] x) => (float[1,4,{WIDTH}] y) {{ y = Relu(x) }}"), "smoothquant", data)
    with pytest.raises(PassError, match="quantized"):
        run(model, "quantize,smoothquant", data)
    with pytest.raises(UsageError, match="alpha"):
        Pipeline.parse("smoothquant{alpha=2}")
    bad = data.inputs["x"].copy()
    bad[0, 0, 0] = np.inf
    with pytest.raises(PassError, match="not finite"):
        run(model, "smoothquant", Dataset({"x": bad}))


@pytest.mark.parametrize("form", ["operator", "layer"])
@pytest.mark.parametrize("options", ["bits=4,group=16", "bits=3"])
def test_awq_has_less_error_than_nearest(form: str, options: str) -> None:
    model, data = block(form)
    calibration, held_out = data.slice(0, 60), data.slice(60, 120)
    plain, aware = (run(model, f"{name}{{{options}}}", calibration) for name in ("nearest", "awq"))
    assert error(model, aware, held_out) < 0.9 * error(model, plain, held_out)
    assert form == "layer" or set(aware.history[-1].details["alpha"].values()) != {0.0}
    both = run(model, f"awq{{{options},rounding=gptq}}", calibration)
    assert error(model, both, held_out) < error(model, aware, held_out)


def test_awq_scales_nothing_where_all_activations_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = block("operator", outliers=1.0)
    monkeypatch.setattr(awq, "channel_sizes", lambda *_: {"n": (np.ones(WIDTH), np.ones(WIDTH))})
    made = run(model, "awq{bits=4}", data)
    monkeypatch.undo()
    assert set(made.history[-1].details["alpha"].values()) == {0.0}


def test_awq_on_layers_that_cannot_be_scaled_rounds_them_as_they_are() -> None:
    _, data = block("operator")
    w = np.random.default_rng(0).normal(size=(WIDTH, 8)).astype(np.float32)
    bare = graph(f"(float[1,4,{WIDTH}] x) => (float[1,4,8] y) {{ y = MatMul(x, w) }}", w=w)
    made = run(bare, "awq{bits=4}", data)
    assert any("rounded as it is" in note for note in made.history[-1].notes)
    wanted = run(bare, "gptq{bits=4}", data)
    assert run(bare, "awq{bits=4,rounding=gptq}", data).digest == wanted.digest
    with pytest.raises(UsageError, match="exclude=a names"):
        run(bare, "awq{exclude=a}", data)
