"""Names from a model on their way into C++, Verilog, Tcl, CMake, shell, HTML, paths and terminals: none arrives as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gatewright as gw
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model

EVIL = {
    "shell and C++": '"; $(touch harm) #*/ int main() { return 1; } /*\n`touch harm`',
    "templates and HTML": "{{7*7}}{% for x in y %}<script>alert(1)</script>[red]\x1b[31m%s",
    "Verilog and Tcl": "../../x'; endmodule // \\end $finish; ]; exec touch harm; [",
}
PIECES = (
    "$(touch", "*/ int main", "`touch", "{{7*7}}", "{% for", "<script>alert", "\x1b[31m", "../../x'", "; endmodule //", "; exec touch",
    "$finish; ]",
)  # fmt: skip
"""What must not be met in a file that a tool reads."""
ESCAPED = (".json", ".onnx", ".npz", ".npy", ".bin", ".so", ".txt")
"""JSON escapes what it holds, and what no tool parses may hold anything."""


def model(name: str) -> Model:
    """A multilayer perceptron all of whose names are ``name`` and a number."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), f"{name}{i}") for i, shape in ((1, (8, 6)), (2, (6, 4)))]
    nodes = [
        helper.make_node("MatMul", [f"{name}0", f"{name}1"], [f"{name}3"], name=f"{name}10"),
        helper.make_node("Relu", [f"{name}3"], [f"{name}4"], name=f"{name}11"),
        helper.make_node("MatMul", [f"{name}4", f"{name}2"], [f"{name}5"], name=f"{name}12"),
    ]
    ends = [helper.make_tensor_value_info(f"{name}{i}", TensorProto.FLOAT, [1, size]) for i, size in ((0, 8), (5, 4))]
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], weights)
    return gw.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def data(of: Model, name: str) -> Dataset:
    rng = np.random.default_rng(1)
    return Dataset({of.inputs[0].name: rng.normal(size=(32, 8)).astype(np.float32)}, rng.integers(0, 4, 32), name=name)


def require_mangled(folder: Path, name: str) -> None:
    for file in folder.rglob("*"):
        assert not any(piece in file.name for piece in PIECES)
        if file.is_file() and file.suffix not in ESCAPED:
            content = file.read_bytes()
            assert name.encode() not in content, file
            found = [piece for piece in PIECES if piece.encode() in content]
            assert not found, (file, found)


@pytest.mark.parametrize(
    "target",
    [
        "ref", "ort", "rtl:ulx3s-85f",
        pytest.param("cpu", marks=pytest.mark.slow), pytest.param("hls:pynq-z2", marks=pytest.mark.slow),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", EVIL)
def test_compiled(kind: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = EVIL[kind]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    loaded = model(name)
    samples = data(loaded, name)
    artifact = gw.compile(loaded, target, out=tmp_path / "out", data=samples)
    require_mangled(tmp_path / "out", name)
    if target in ("ref", "ort", "cpu"):
        with artifact.load() as executor:
            assert executor.run({loaded.inputs[0].name: samples.arrays[loaded.inputs[0].name][:1]})[loaded.outputs[0].name].shape == (1, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "out"]
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("kind", EVIL)
def test_shown(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The HTML report and the console's table."""
    from gatewright.runtime import console

    name = EVIL[kind]
    loaded = model(name)
    report = gw.compare(loaded, "ref,ort", data(loaded, name))
    report.save_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    console.stdout(color=True).print(report.table())
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown
    if "[red]" in name:
        assert "[red]" in "".join(shown.split())


def test_saved(tmp_path: Path) -> None:
    """A name is a name: it comes back from a file as it was."""
    for name in EVIL.values():
        loaded = model(name)
        loaded.save(tmp_path / "model.onnx")
        again = gw.load(tmp_path / "model.onnx")
        assert (again.digest, again.inputs) == (loaded.digest, loaded.inputs)
        assert onnx.load(tmp_path / "model.onnx").graph.input[0].name == f"{name}0"
