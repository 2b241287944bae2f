"""ArgMax and ArgMin as the last layer of the design: every tie as ONNX breaks it, and only where nobody reads the scores."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from graphs import graph, scale

import gatewright as gw
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.rtl import interpret
from gatewright.targets.rtl.lower import attempt


def model(op: str, last: int, *, keep: int = 0, scores: bool = False) -> Model:
    """x [N, 3] doubled and then compared; ``scores``: they are an output, too."""
    outputs = f"(int64[N{',1' if keep else ''}] y{', float[N,3] d' if scores else ''})"
    text = (
        f"(int8[N,3] xq) => {outputs} {{ x = DequantizeLinear(xq, s, z) w = DequantizeLinear(wq, s, z) m = MatMul(x, w) "
        f"q = QuantizeLinear(m, sy, z) d = DequantizeLinear(q, sy, z) y = {op}<axis=-1, keepdims={keep}, select_last_index={last}>(d) }}"
    )
    return graph(text, wq=2 * np.eye(3, dtype=np.int8), s=scale(0.5), sy=scale(0.25), z=np.int8(0))


@pytest.mark.parametrize(("op", "last"), [("ArgMax", 0), ("ArgMax", 1), ("ArgMin", 0), ("ArgMin", 1)])
def test_every_order_and_every_tie(op: str, last: int) -> None:
    found = model(op, last)
    network, parts, problems = attempt(found)
    assert not problems
    assert parts.host_post is None
    assert [(port.value, port.bits) for port in network.outputs] == [("y", 2)]
    x = np.array(list(itertools.product((-3, 0, 5), repeat=3)), np.int8)
    assert np.array_equal(interpret.run(network, [x.astype(np.int64)])[0][:, 0], Reference(found).run({"xq": x})["y"])


def test_scores_that_somebody_reads_leave_the_design() -> None:
    network, parts, problems = attempt(model("ArgMax", 0, scores=True))
    assert not problems
    assert [port.value for port in network.outputs] == ["q"]
    assert parts.host_post is not None


@pytest.mark.parametrize("keep", [0, 1])
def test_through_the_target(keep: int, tmp_path: Path) -> None:
    found = model("ArgMax", 0, keep=keep)
    x = np.random.default_rng(0).integers(-128, 128, (50, 3)).astype(np.int8)
    with gw.compile(found, "rtl:icebreaker", out=tmp_path / "a").load("emulate") as executor:
        got, trace = executor.run({"xq": x})["y"], executor.trace({"xq": x})
    expected = Reference(found).run({"xq": x}, trace=True)
    assert got.dtype == np.int64
    assert np.array_equal(got, expected["y"])
    assert np.array_equal(trace["q"], expected["q"])
