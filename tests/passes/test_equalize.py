"""Cross-layer equalization: equal ranges, the same function, a per-tensor grid that works again; and absorbed biases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import graph
from strategies import build, dataset, feeds

from gatewright.errors import PassError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.passes import chains, equalize
from gatewright.passes.base import PassContext
from gatewright.passes.chains import pairs
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.rewrite import Array

SEPARABLE = (
    "(float[1,3,8,8] x) => (float[1,5] y) {"
    " a = Conv<pads=[1,1,1,1]>(x, w0, b0) ra = Relu(a)"
    " d = Conv<pads=[1,1,1,1], group=6>(ra, w1, b1) rd = Relu(d)"
    " p = Conv(rd, w2, b2) rp = LeakyRelu<alpha=0.1>(p)"
    " m = AveragePool<kernel_shape=[4,4], strides=[4,4]>(rp) f = Flatten(m) y = Gemm(f, w3, b3) }"
)


def separable(imbalance: float = 0.0, seed: int = 0) -> Model:
    """Conv, depthwise, pointwise, Gemm; ``imbalance``: spread of the channels' ranges in octaves, the function unchanged."""
    random = np.random.default_rng(seed)
    shapes = {"w0": (6, 3, 3, 3), "w1": (6, 1, 3, 3), "w2": (8, 6, 1, 1), "w3": (32, 5)}
    arrays: dict[str, Array] = {n: random.normal(size=s) / np.sqrt(np.prod(s[1:]) if n != "w3" else 32) for n, s in shapes.items()}
    arrays |= {f"b{i}": random.normal(size=n) * 0.3 for i, n in enumerate((6, 6, 8, 5))}
    s0, s1, s2 = (2.0 ** random.uniform(-imbalance, imbalance, n) for n in (6, 6, 8))
    arrays["w0"] *= s0[:, None, None, None]
    arrays["b0"] *= s0
    arrays["w1"] *= (s1 / s0)[:, None, None, None]
    arrays["b1"] *= s1
    arrays["w2"] *= s2[:, None, None, None] / s1[None, :, None, None]
    arrays["b2"] *= s2
    arrays["w3"] /= np.repeat(s2, 4)[:, None]
    return graph(SEPARABLE, **{n: a.astype(np.float32) for n, a in arrays.items()})


def run(model: Model, text: str, data: Dataset | None = None, verify: Any = "structure") -> Model:
    return Pipeline.parse(text).run(model, PassContext(data=data or dataset(model, 60)), verify=verify)


def outputs(model: Model, seed: int = 3) -> Array:
    return Reference(model).run(feeds(model, 50, seed))["y"]


def ranges_agree(model: Model) -> None:
    for pair in pairs(model.graph):
        first = np.abs(pair.first.by_output(pair.first.weight)).max(axis=1)
        second = np.abs(pair.second.by_input(pair.second.weight, pair.first.outputs)).max(axis=1)
        np.testing.assert_allclose(first, second, rtol=1e-4)


def test_ranges_are_equal_and_the_function_is_the_same() -> None:
    model = separable(3.0)
    assert [(p.first.node.op_type, p.second.node.op_type) for p in pairs(model.graph)] == [("Conv", "Conv")] * 2 + [("Conv", "Gemm")]
    equal = run(model, "equalize", verify="numeric")
    ranges_agree(equal)
    np.testing.assert_allclose(outputs(equal), outputs(model), rtol=1e-4, atol=1e-5)
    assert "3 pairs of layers" in equal.history[-1].notes[0]
    assert len(equal.history[-1].details["pairs"]) == 3


def test_powers_of_two_change_no_bit() -> None:
    model = separable(3.0)
    equal = run(model, "equalize{pow2=true}", verify="numeric")
    np.testing.assert_array_equal(outputs(equal), outputs(model))
    for pair in pairs(equal.graph):
        first = np.abs(pair.first.by_output(pair.first.weight)).max(axis=1)
        second = np.abs(pair.second.by_input(pair.second.weight, pair.first.outputs)).max(axis=1)
        assert np.all(np.abs(np.log2(first / second)) <= 4.0)


def test_it_repairs_a_grid_per_tensor() -> None:
    """Channels six octaves apart: one scale for a tensor rounds most of them away; equalized, it is as good as on the balanced network."""
    balanced, model = separable(0.0), separable(6.0)
    error = {}
    for name, source, text in (("balanced", balanced, ""), ("broken", model, ""), ("repaired", model, "equalize,")):
        q = run(source, f"{text}quantize{{grid=symmetric}}", dataset(source, 100))
        error[name] = float(np.std(outputs(q) - outputs(model)) / np.std(outputs(model)))
    assert error["broken"] > 0.2
    assert error["repaired"] < 1.5 * error["balanced"] + 0.002
    assert error["repaired"] < 0.05


CHAINS = (
    "conv relu conv_depthwise relu conv_grouped max_pool conv_1x1", "gemm matmul_add relu", "conv residual relu6 conv leaky_relu pad_conv",
    "matmul sigmoid matmul gemm",
)  # fmt: skip


@pytest.mark.parametrize("steps", CHAINS)
@pytest.mark.parametrize("pow2", ["true", "false"])
def test_random_models_stay_what_they_are(steps: str, pow2: str) -> None:
    model = build(len(steps), steps.split(), image="conv" in steps)
    run(model, f"fuse,equalize{{pow2={pow2}}}", verify="numeric")


def test_what_is_not_homogeneous_or_read_twice_is_left() -> None:
    w = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    for middle in ("r = Sigmoid(a)", "r = Add(a, x)", "r = Relu(a) z = Neg(a)"):
        more = ", float[1,4] z" if "z =" in middle else ""
        model = graph(f"(float[1,4] x) => (float[1,4] y{more}) {{ a = MatMul(x, w) {middle} y = MatMul(r, v) }}", w=w, v=w * 3)
        same = run(model, "equalize")
        assert same.digest == model.digest
        assert "no two layers" in same.history[-1].notes[0]


def test_dead_and_constant_channels_are_left() -> None:
    model = separable(2.0)
    array = model.graph.initializers["w0"].const_value
    assert array is not None
    weights = array.numpy().copy()
    weights[2] *= 1e-30
    arrays = {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value is not None and n[0] in "wb"}
    again = graph(SEPARABLE, **{**arrays, "w0": weights})
    equal = run(again, "equalize", verify="numeric")
    values = equal.graph.initializers["b0"].const_value
    assert values is not None
    assert values.numpy()[2] == pytest.approx(arrays["b0"][2])


def test_bugs_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = chains.Linear.scaled_inputs
    monkeypatch.setattr(chains.Linear, "scaled_inputs", lambda self, weight, factors: real(self, weight, factors * 1.01))
    with pytest.raises(PassError, match="exact, but"):
        run(separable(3.0), "equalize", verify="numeric")
    monkeypatch.setattr(chains.Linear, "scaled_inputs", real)
    monkeypatch.setattr(equalize, "ROUNDS", 1)
    with pytest.raises(AssertionError):
        ranges_agree(run(separable(3.0), "equalize"))


def test_large_biases_are_absorbed() -> None:
    """Above zero Relu passes a constant on: the activation's range shrinks, the outputs on the data stay."""
    random = np.random.default_rng(1)
    w, v = (random.normal(size=(8, 8)).astype(np.float32) for _ in range(2))
    b = np.asarray([0, 100, 0, 50, 0, 0, 30, 0], np.float32)
    model = graph("(float[1,8] x) => (float[1,8] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }", w=w, v=v, b=b, c=b)
    data = Dataset({"x": random.normal(size=(300, 8)).astype(np.float32)})
    small = run(model, "absorb{sigma=4}", data)
    x = dict(data.inputs)
    np.testing.assert_allclose(Reference(small).run(x)["y"], Reference(model).run(x)["y"], atol=2e-3)
    ranges = {name: run(m, "quantize", data).history[-1].details["ranges"]["r"][1] for name, m in (("before", model), ("after", small))}
    assert ranges["after"] < 0.4 * ranges["before"]
    padded = graph(
        "(float[1,1,4,4] x) => (float[1,1,4,4] y) { a = Conv(x, w, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, v, b) }",
        w=np.ones((1, 1, 1, 1), np.float32), v=np.ones((1, 1, 3, 3), np.float32), b=np.asarray([90], np.float32),
    )  # fmt: skip
    left = run(padded, "absorb")
    assert left.digest == padded.digest
    assert any("pads with zeros" in note for note in left.history[-1].notes)


def test_what_it_refuses() -> None:
    model = build(3, ["conv", "batch_norm", "relu", "conv"])
    with pytest.raises(PassError, match="run fuse first"):
        run(model, "equalize")
    with pytest.raises(PassError, match=r"first equalize, then quantize"):
        run(model, "fuse,quantize,equalize")
    with pytest.raises(UsageError, match="exclude=nothing names no node"):
        run(separable(), "equalize{exclude=nothing}")
    with pytest.raises(UsageError, match="sigma"):
        Pipeline.parse("absorb{sigma=-1}")
    with pytest.raises(PassError, match="needs data"):
        Pipeline.parse("absorb").run(separable())
    first = pairs(separable().graph)[0].first.name
    part = run(separable(3.0), f"equalize{{exclude={first}}}")
    assert len(part.history[-1].details["pairs"]) == 2
