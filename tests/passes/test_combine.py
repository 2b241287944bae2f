"""Ensembles and averages: outputs are the mean of the members', weights the mean of theirs, and the history says what it cost."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph

from gatewright.errors import UnsupportedError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.frontend.work import macs
from gatewright.passes.combine import combine
from gatewright.passes.pipeline import PassContext, Pipeline

TEXT = "(float[1,4] x) => (float[1,3] y) { h = Gemm(x, w1, b1)  r = Relu(h)  y = Gemm(r, w2, b2) }"


def member(seed: int, hidden: int = 8, name: str = "m") -> Model:
    rng = np.random.default_rng(seed)
    sizes = {"w1": (4, hidden), "b1": (hidden,), "w2": (hidden, 3), "b2": (3,)}
    return graph(TEXT, **{key: rng.normal(size=size).astype(np.float32) for key, size in sizes.items()}).renamed(f"{name}{seed}")


X = {"x": np.random.default_rng(9).normal(size=(50, 4)).astype(np.float32)}


def outputs(model: Model) -> np.ndarray:
    return Reference(model).run(X)["y"]


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    members = [member(0), member(1, hidden=5), member(2)]
    both = combine(members)
    # One float32 sum of three and one product: a few units in the last place.
    np.testing.assert_allclose(outputs(both), np.mean([outputs(m) for m in members], axis=0), rtol=1e-5, atol=1e-6)
    assert macs(both) == sum(map(macs, members))
    assert both.outputs == members[0].outputs
    assert "MACs" in both.history[-1].notes[0]


def test_an_ensemble_of_quantized_variants_and_back_from_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = Dataset(X)
    quantized = [Pipeline.parse(f"fuse,quantize{{bits={bits},grid=pow2}}").run(member(0), PassContext(data)) for bits in (8, 4)]
    both = combine([member(0), *quantized])
    wanted = np.mean([outputs(m) for m in (member(0), *quantized)], axis=0)
    np.testing.assert_allclose(outputs(both), wanted, rtol=1e-5, atol=1e-6)
    both.save(tmp_path / "both.onnx")
    assert np.array_equal(outputs(load(tmp_path / "both.onnx")), outputs(both))


def test_an_average_has_the_mean_weights() -> None:
    a, b = member(0), member(1)
    made = combine([a, b], "average")
    assert macs(made) == macs(a)
    for name, value in made.graph.initializers.items():
        mean = (a.graph.initializers[name].const_value.numpy() + b.graph.initializers[name].const_value.numpy()) / 2
        np.testing.assert_allclose(value.const_value.numpy(), mean, rtol=1e-6)
    same = combine([a, a, a], "average")
    np.testing.assert_allclose(outputs(same), outputs(a), rtol=1e-6, atol=1e-6)
    assert np.array_equal(outputs(a), outputs(member(0))), "the members are as they were"


def test_what_cannot_be_combined() -> None:
    with pytest.raises(UsageError, match="two models or more"):
        combine([member(0)])
    with pytest.raises(UsageError, match="not combined by 'sum'"):
        combine([member(0), member(1)], "sum")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="different shapes"):
        combine([member(0), member(1, hidden=5)], "average")
    other = graph("(float[1,5] x) => (float[1,5] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match="different inputs"):
        combine([member(0), other])
    quantized = Pipeline.parse("quantize{bits=8}").run(member(0), PassContext(Dataset(X)))
    with pytest.raises(UnsupportedError, match="is quantized"):
        combine([quantized, quantized], "average")
    chooser = graph("(float[1,5] x) => (int64[1,1] y) { y = ArgMax<axis=1>(x) }")
    with pytest.raises(UnsupportedError, match="y is int64"):
        combine([chooser, chooser])
