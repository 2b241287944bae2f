"""Every kind of integer operation as a network: equal to the reference on every sample, or refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import Array, graph, scale

from gatewright.frontend.integer import plan
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.runtime.targetspec import resolve
from gatewright.targets.rtl import interpret
from gatewright.targets.rtl.lower import attempt, require_room
from gatewright.targets.rtl.network import Network

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance"))
from cases import INTEGER, Case, integer_feeds, integer_model


def equal_to_reference(model: Model, feeds: dict[str, Array]) -> Network:
    """Runs both, sample by sample, and returns the network."""
    network, parts, problems = attempt(model)
    assert not problems
    pre = Reference(parts.host_pre) if parts.host_pre is not None else None
    for i in range(len(next(iter(feeds.values())))):
        values = {name: array[i : i + 1] for name, array in feeds.items()}
        expected = Reference(model).run(values, trace=True)
        if pre is not None:
            values |= pre.run({info.name: values[info.name] for info in pre.inputs})
        got = interpret.run(network, [np.asarray(values[p.value]).astype(np.int64).reshape(1, -1) for p in network.inputs])
        for port, array in zip(network.outputs, got, strict=True):
            assert np.array_equal(array.reshape(-1), expected[port.value].astype(np.int64).reshape(-1)), port.value
    return network


@pytest.mark.parametrize("case", [case for case in INTEGER if case.name != "softmax"], ids=lambda case: case.name)
def test_kind(case: Case) -> None:
    equal_to_reference(integer_model([case]), integer_feeds())


def test_softmax_alone_is_the_hosts() -> None:
    (case,) = (case for case in INTEGER if case.name == "softmax")
    network, parts, problems = attempt(integer_model([case]))
    assert not problems
    assert not network.outputs
    assert parts.host_pre is not None


def test_every_kind_is_covered() -> None:
    kinds = {op.kind for op in plan(integer_model(INTEGER)).integer_ops}
    from gatewright.targets.rtl.lower import _LOWERINGS

    assert kinds - {"softmax"} == set(_LOWERINGS)


@pytest.mark.parametrize("zero", [-3, 0, 4])
@pytest.mark.parametrize("shift", [0, 1, 4])
def test_rounding_meets_every_tie(zero: int, shift: int) -> None:
    """All int8 values through a requantization by a power of two, to an even and to an odd zero point."""
    model = graph(
        "(int8[N,1] xq) => (int8[N,1] yq) { x = DequantizeLinear(xq, sx, zx) yq = QuantizeLinear(x, sy, zy) }",
        sx=scale(2.0**-shift), zx=np.int8(1), sy=scale(1.0), zy=np.int8(zero),
    )  # fmt: skip
    network = equal_to_reference(model, {"xq": np.arange(-128, 128).astype(np.int8)[:, None]})
    assert sum(node.op == "add" for node in network.nodes) <= 1  # half, zero points: one constant


def test_constant_weights_cost_nothing_where_they_are_zero() -> None:
    weight = np.zeros((4, 3), np.int8)
    weight[1, 2] = 4
    text = (
        "(int8[N,4] xq) => (int8[N,3] yq) { x = DequantizeLinear(xq, s, z) w = DequantizeLinear(wq, s, z) y = MatMul(x, w) "
        "yq = QuantizeLinear(y, sy, z) }"
    )
    model = graph(text, wq=weight, s=scale(0.5), z=np.int8(0), sy=scale(0.25))
    network = equal_to_reference(model, {"xq": np.arange(-4, 4).astype(np.int8).reshape(2, 4)})
    assert {node.op for node in network.nodes} <= {"input", "constant", "add", "clip"}


def test_too_much_to_unroll_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatewright.targets.rtl.lower.MOST_PRODUCTS", 10)
    (case,) = (case for case in INTEGER if case.name == "conv")
    model = integer_model([case])
    _, _, problems = attempt(model)
    assert "unrolled it has" in problems[0].rule
    assert problems[0].op == "Conv"
    check = resolve("rtl:ulx3s-85f").check(model)
    assert not check.problems
    assert "unrolled it has" in check.shortfalls[0]
    monkeypatch.setattr("gatewright.targets.rtl.lower.MOST_PRODUCTS", 2_000_000)
    require_room(model)
