"""No name of a model reaches C++, Tcl or a script of an hls project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import graph, scale

import gatewright as gw
from gatewright.frontend.model import Model

HOSTILE = '"; system("reboot"); // */ [exec reboot] $(reboot)\n#include </etc/passwd>\nint'


def model(name: str) -> Model:
    """A dense layer with Relu; every name of the graph begins with ``name``."""
    text = (
        "(int8[N,4] xq) => (int8[N,3] yq) { x = DequantizeLinear(xq, s, z) w = DequantizeLinear(wq, s, z) h = MatMul(x, w) "
        "r = Relu(h) yq = QuantizeLinear(r, s, z) }"
    )
    made = graph(text, wq=np.arange(12).reshape(4, 3).astype(np.int8), s=scale(0.25), z=np.int8(0))
    if name:
        for number, node in enumerate(made.graph):
            node.name = f"{name}{number}"
        for number, value in enumerate((*made.graph.inputs, *made.graph.outputs, *list(made.graph.initializers.values()))):
            value.name = f"{name}_{number}"
        made = made.renamed(name)
    return made


@pytest.mark.slow
def test_no_name_of_the_model_reaches_a_tool(tmp_path: Path) -> None:
    clean = gw.compile(model(""), "hls:pynq-z2", out=tmp_path / "clean").path
    folder = gw.compile(model(HOSTILE), "hls:pynq-z2", out=tmp_path / "hostile").path
    names = sorted(file.relative_to(clean) for file in clean.rglob("*") if file.is_file())
    assert sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file()) == names
    assert len(names) > 10
    for name in names:
        if name.suffix not in (".json", ".onnx", ".npz"):  # data, read by parsers of their own
            text = (folder / name).read_bytes()
            assert b"reboot" not in text, name
            assert b"passwd" not in text, name
