"""Layers fitted after pruning: exact where what went was redundant, never worse where it was not."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph
from hypothesis import HealthCheck, assume, given, settings
from strategies import build, dataset, float_models
from transformer import transformer

from gatewright.errors import DataError, PassError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.frontend.work import macs
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline

HALF = "prune{kind=channel,amount=0.5,repair=reconstruct}"


def outputs(model: Model, data: Dataset) -> np.ndarray:
    return next(iter(Reference(model).run(data.feeds(model.inputs)).values()))


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


def echoed(w: np.ndarray, axis: int) -> np.ndarray:
    """Every channel twice, the second time at a fifth of its size: after a Relu it says nothing new."""
    return np.concatenate([w, 0.2 * w], axis=axis)


def dense() -> Model:
    random = np.random.default_rng(0)
    w, b = random.normal(size=(8, 6)).astype(np.float32), random.normal(size=6).astype(np.float32)
    return graph(
        "(float[1,8] x) => (float[1,3] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }",
        w=echoed(w, 1), b=echoed(b, 0), v=random.normal(size=(12, 3)).astype(np.float32), c=random.normal(size=3).astype(np.float32),
    )  # fmt: skip


def convolved(group: int = 1) -> Model:
    random = np.random.default_rng(1)
    w = random.normal(size=(4, 3, 3, 3)).astype(np.float32)
    # In groups of 2 the copy of a channel must lie beside it.
    first = echoed(w, 0)[[0, 1, 4, 5, 2, 3, 6, 7]] if group == 2 else echoed(w, 0)
    return graph(
        "(float[1,3,7,7] x) => (float[1,5] y) {"
        " a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w) r = Relu(a)"
        f" b = Conv<kernel_shape=[3,3], strides=[2,2], pads=[1,1,0,0], group={group}>(r, v, c) m = ReduceMean<keepdims=0>(b, axes)"
        " y = MatMul(m, u) }",
        w=first, v=random.normal(size=(6, 8 // group, 3, 3)).astype(np.float32), c=np.ones(6, np.float32),
        u=random.normal(size=(6, 5)).astype(np.float32), axes=np.asarray([2, 3], np.int64),
    )  # fmt: skip


@pytest.mark.parametrize("model", [dense(), convolved(), convolved(2)], ids=["dense", "conv", "grouped"])
def test_what_was_redundant_is_won_back(model: Model) -> None:
    data = dataset(model, 120)
    first = next(n.outputs[0].name for n in model.graph if n.op_type in ("Conv", "Gemm"))
    others = "|".join(str(n.name) for n in model.graph if n.op_type in ("Conv", "Gemm", "MatMul") and n.outputs[0].name not in (first, "y"))
    text = HALF.replace("}", f",exclude={others}}}") if others else HALF
    plain = Pipeline.parse(text.replace(",repair=reconstruct", "")).run(model)
    fitted = Pipeline.parse(text).run(model, PassContext(data=data))
    fresh = dataset(model, 30, seed=5)
    wanted = outputs(model, fresh)
    assert macs(fitted) == macs(plain) < macs(model)
    assert error(outputs(plain, fresh), wanted) > 0.05
    assert error(outputs(fitted, fresh), wanted) < 0.002
    (found,) = fitted.history[-1].details["repaired"].values()
    assert found[1] < 0.002 < found[0]


def test_a_bias_takes_the_mean_of_what_went() -> None:
    """The unit that goes is constant."""
    model = graph(
        "(float[1,2] x) => (float[1,2] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }",
        w=np.asarray([[1, 0, 0], [0, 1, 0]], np.float32), b=np.asarray([2, 2, 0.3], np.float32), v=np.ones((3, 2), np.float32),
        c=np.zeros(2, np.float32),
    )  # fmt: skip
    fitted = Pipeline.parse(HALF.replace("0.5", "0.34")).run(model, PassContext(data=dataset(model, 100)))
    c = next(np.asarray(v.const_value.numpy()) for v in fitted.graph.initializers.values() if v.name == "c")  # type: ignore[union-attr]
    assert c == pytest.approx([0.3, 0.3], abs=0.02)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], max_examples=12)
@given(float_models())
def test_no_layer_becomes_worse(model: Model) -> None:
    try:
        fitted = Pipeline.parse(HALF).run(model, PassContext(data=dataset(model, 30)))
    except PassError as refusal:
        assume("no layer can lose" not in str(refusal))
        raise
    assert macs(fitted) == macs(Pipeline.parse("prune{kind=channel,amount=0.5}").run(model))
    assert all(after <= before for before, after in fitted.history[-1].details["repaired"].values())


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_attention_and_hidden_units(kind: str) -> None:
    model, feeds = transformer("bert", samples=60)
    data = Dataset(feeds)
    plain = Pipeline.parse(f"prune{{kind={kind}}}").run(model)
    fitted = Pipeline.parse(f"prune{{kind={kind},repair=reconstruct}}").run(model, PassContext(data=data))
    fresh = Dataset(transformer("bert", seed=0, samples=100)[1]).slice(60, 100)
    wanted = outputs(model, fresh)
    assert error(outputs(fitted, fresh), wanted) < error(outputs(plain, fresh), wanted)
    assert len(fitted.history[-1].details["repaired"]) == 2


def test_refusals() -> None:
    model = build(3, ["conv", "conv"])
    with pytest.raises(DataError, match="repair=reconstruct"):
        Pipeline.parse(HALF).run(model)
    with pytest.raises(UsageError, match=r"'repair'.*does not go with kind=magnitude"):
        Pipeline.parse("prune{repair=reconstruct}")
