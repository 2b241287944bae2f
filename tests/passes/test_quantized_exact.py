"""Whatever chose ranges, biases and integers, the result keeps the numeric contract: the cpu target equals the reference bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from strategies import build, dataset, feeds

from gatewright.frontend.integer import FloatStep, plan
from gatewright.frontend.reference import Reference
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline

PIPELINES = (
    "fuse,equalize,absorb,gptq,quantize{range=entropy,bias_correction=true}",
    pytest.param(
        "fuse,adaround{bits=3,grid=pow2,iterations=50},quantize{bits=6,grid=pow2,range=mse,bias_correction=true}", marks=pytest.mark.slow
    ),
    pytest.param("fuse,mixed{candidates=3|6,average_bits=4,per=channel,range=mse,samples=20}", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("text", PIPELINES)
def test_cpu_equals_the_reference(text: str, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    import gatewright as gw

    model = build(5, ["conv", "relu", "conv_depthwise", "relu", "residual", "max_pool", "conv_1x1"])
    made = Pipeline.parse(text).run(model, PassContext(data=dataset(model, 60)))
    inner = [s.node.op_type for s in plan(made).steps if isinstance(s, FloatStep)]
    assert set(inner) <= {"QuantizeLinear", "DequantizeLinear", "Clip"}
    x = feeds(model, 12, 4)
    with gw.compile(made, "cpu", out=tmp_path / "built").load("device") as executor:
        np.testing.assert_array_equal(executor.run(x)["y"], Reference(made).run(x)["y"])
    wanted = Reference(model).run(x)["y"]
    assert np.std(Reference(made).run(x)["y"] - wanted) < 0.5 * np.std(wanted)
