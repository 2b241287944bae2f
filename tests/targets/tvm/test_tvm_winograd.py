"""Winograd convolutions: every plan against the reference within the error that its docstring bounds; who may use them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from by_kernel import run
from graphs import Array, graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.tvm.kernel import Choice, Policy
from gatewright.targets.tvm.machine import Machine
from gatewright.targets.tvm.ops import winograd
from gatewright.targets.tvm.schedules.winograd import Plan, Problem, direct_cycles, plans

PLANS = [Plan(4, 1, 6, False), Plan(4, 2, 4, True), Plan(2, 1, 6, True), Plan(2, 3, 5, False)]


def model(channels: int, filters: int, high: int, wide: int, batch: int = 1, pads: tuple[int, ...] = (1, 1, 1, 1)) -> Model:
    """A 3×3 convolution with bias, residual and ReLU between two others, so that blocked layouts come in and go out."""
    random = np.random.default_rng(5)

    def he(*shape: int) -> Array:
        return (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    return graph(
        f"(float[{batch},{channels},{high},{wide}] x) => (float[N,M,H,W] y) {{ a = Conv<kernel_shape = [1, 1]>(x, u) b = Relu(a) "
        f"c = Conv<kernel_shape = [3, 3], pads = {list(pads)}>(b, w, bias) d = Relu(c) y = Conv<kernel_shape = [1, 1]>(d, v) }}",
        u=he(channels, channels, 1, 1), w=he(filters, channels, 3, 3), bias=he(filters), v=he(8, filters, 1, 1),
    )  # fmt: skip


def error(model: Model, policy: Policy) -> tuple[float, set[str]]:
    """max|err|/max|ref| against the reference, and the algorithms."""
    random = np.random.default_rng(6)
    feeds = {i.name: random.standard_normal(i.shape).astype(np.float32) for i in model.inputs}
    wanted = Reference(model).run(feeds)["y"]
    got, algorithms = run(model, policy, feeds)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max()), algorithms


def only(plan: Plan) -> Policy:
    """Every problem that has Winograd candidates is solved by ``plan``."""

    def choose(problem: str, offered: object) -> Choice:
        found = tuple(offered)  # type: ignore[arg-type]
        return plan.choice if any(c.algorithm.startswith("winograd") for c in found) else found[0]

    return Policy(choose=choose)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.choice.algorithm)
def test_every_plan(plan: Plan) -> None:
    found, algorithms = error(model(16, 32, 13, 10, batch=2), only(plan))
    assert plan.choice.algorithm in algorithms
    assert found < winograd.ERROR[plan.m]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plan=st.builds(Plan, st.sampled_from([2, 4]), st.integers(1, 3), st.integers(1, 6), st.booleans()),
    channels=st.sampled_from([8, 16, 24]), filters=st.sampled_from([8, 24, 32]), high=st.integers(2, 11), wide=st.integers(2, 11),
    batch=st.integers(1, 2), pads=st.tuples(*[st.integers(0, 2)] * 4),
)  # fmt: skip
def test_any_shape(plan: Plan, channels: int, filters: int, high: int, wide: int, batch: int, pads: tuple[int, ...]) -> None:
    if high + pads[0] + pads[2] < 3 or wide + pads[1] + pads[3] < 3:
        return
    found, _ = error(model(channels, filters, high, wide, batch, pads), only(plan))
    assert found < winograd.ERROR[plan.m]


def test_the_error_grows_as_documented() -> None:
    """On a large sum, as deep as ResNet-50's: F(2×2) well below F(4×4), both within their bounds."""
    large = model(256, 16, 8, 8)
    four, two = error(large, only(Plan(4, 2, 4, False)))[0], error(large, only(Plan(2, 2, 4, False)))[0]
    assert two < four
    assert two < winograd.ERROR[2]
    assert four < winograd.ERROR[4]


def test_strict_and_small_ones_are_summed_plainly() -> None:
    wanted = model(32, 32, 16, 16)
    assert any(a.startswith("winograd") for a in error(wanted, Policy())[1])
    found, algorithms = error(wanted, Policy(strict=True))
    assert not any(a.startswith("winograd") for a in algorithms)
    assert found < 1e-6
    assert not any(a.startswith("winograd") for a in error(model(10, 32, 16, 16), Policy())[1])


@pytest.mark.parametrize("planted", ["_inputs", "_outputs"])
def test_a_planted_bug_is_caught(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(winograd, planted)
    monkeypatch.setattr(winograd, planted, lambda m, v: [*right(m, v)[:-1], right(m, v)[-1] + v[0]])
    assert error(model(16, 16, 8, 8), only(PLANS[0]))[0] > 100 * winograd.ERROR[4]


def test_the_transforms_in_exact_arithmetic() -> None:
    """Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A of one tile is the correlation, to float64's last digits."""
    import gatewright.targets.tvm.ops.winograd as module

    random = np.random.default_rng(0)
    for m in (2, 4):
        g, d = random.standard_normal((1, 1, 3, 3)), random.standard_normal((m + 2, m + 2))
        wanted = [[float(np.sum(g[0, 0] * d[y : y + 3, x : x + 3])) for x in range(m)] for y in range(m)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "constant", lambda value, dtype: value)
            data = np.array(winograd._inputs(m, np.array(winograd._inputs(m, d)).T)).T
            products = winograd.transformed(g, m)[:, :, 0, 0] * data
            got = np.array(winograd._outputs(m, np.array(winograd._outputs(m, products)).T)).T
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_the_estimate_prefers_what_was_measured_to_be_fast() -> None:
    """Quiet AVX-512 machine of 2 cores: F(4×4) by tiles at 64@56, F(2×2) by filters at 512@7, the plain sum where channels are few."""
    machine = Machine(512, 32, 2, 1 << 20, 4.0)
    large, deep = Problem(1, 64, 64, (56, 56), 16), Problem(1, 512, 512, (7, 7), 16)
    assert (plans(large, machine)[0].m, plans(deep, machine)[0].m, plans(deep, machine)[0].shared) == (4, 2, True)
    assert all(plans(p, machine)[0].cycles(p, machine) < direct_cycles(p, machine) for p in (large, deep))
    assert all(math.isfinite(plan.cycles(large, machine)) for plan in plans(large, machine))
