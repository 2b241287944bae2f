"""One table of every target: what each says of a model that it takes, and that a refusal stands in the table by name."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from conftest import make_mlp
from graphs import graph
from rich.console import Console

from gatewright.frontend.data import Dataset
from gatewright.runtime.compare import compare
from gatewright.targets import toolchain
from gatewright.targets.base import TARGETS
from gatewright.targets.tvm.cuda.toolkit import Toolkit

SEVEN = ("ref", "ort", "cpu", "cuda:sm_90", "tpu:v5e{aot=none}", "hls:pynq-z2", "rtl:ulx3s-85f")
SMALL = "rtl:icebreaker"
missing = [name for name in ("tvm", "jax", "hls4ml") if find_spec(name) is None]
missing += ["nvcc or NVRTC"] if Toolkit.installed() is None else []
missing += ["g++"] if toolchain.GXX.find() is None else []


@pytest.mark.slow
@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
def test_seven_targets_in_one_table(samples: Dataset) -> None:
    """A float model, quantized for those that take nothing else; and one beside it that an iCE40 has no room for."""
    assert {text.partition(":")[0] for text in SEVEN} == set(TARGETS)
    random = np.random.default_rng(4)
    wide = graph(
        "(float[1,4] x) => (float[1,3] y) { h = MatMul(x, w1)  r = Relu(h)  i = MatMul(r, w2)  s = Relu(i)  y = MatMul(s, w3) }",
        w1=random.normal(size=(4, 64)).astype(np.float32), w2=random.normal(size=(64, 64)).astype(np.float32),
        w3=random.normal(size=(64, 3)).astype(np.float32),
    ).renamed("wide")  # fmt: skip
    report = compare([make_mlp(), wide], {"mlp": SEVEN, "wide": ("ref", SMALL)}, samples, limit=8, calibration=samples, rounds=1)
    assert [(row.model, row.target, row.status) for row in report.rows] == [
        *(("mlp", text, "ok") for text in SEVEN), ("wide", "ref", "ok"), ("wide", SMALL, "does_not_fit"),
    ]  # fmt: skip
    assert report.exit_code == 3
    for row in report.rows[:-1]:
        assert row.error_ref is not None, row.target
        assert row.error_ref.mismatching_samples == 0, row.target
    sources = {row.target: row.latency.source for row in report.rows if row.latency is not None}
    assert sources == {text: "measured" if text in ("ort", "cpu") else "estimated" for text in (*SEVEN[1:], SMALL) if text in sources}
    console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table())
    lines = console.export_text().splitlines()
    (refused,) = [line for line in lines if line.startswith("wide") and SMALL in line and "does not fit" in line and "on rtl" not in line]
    assert "–" in refused
    assert not str(report.rows[-1].reason).startswith("wide"), "the table has the model's name already"
    assert all(sum(line.startswith("mlp") and f" {text} " in line for line in lines) == 1 for text in SEVEN)
