"""What a user may get wrong, each: one clear line that says what and what to do, the right exit code, no traceback, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.runtime.cli import app


@pytest.fixture
def here(mlp: Model, samples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good and bad files, and the working directory in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    mlp.save("good.onnx")
    whole = Path("good.onnx").read_bytes()
    Path("truncated.onnx").write_bytes(whole[: len(whole) // 2])
    Path("text.onnx").write_text("this is no model\n" * 20)
    Path("empty.onnx").write_bytes(b"")
    unknown = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 21]> g (float[1, 4] x) => (float[1, 4] y) { y = Frobnicate(x) }')
    Path("unknown_op.onnx").write_bytes(unknown.SerializeToString())
    foreign = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21, "com.acme": 1]> g (float[1, 4] x) => (float[1, 4] y) { y = com.acme.Magic(x) }'
    )
    Path("foreign_op.onnx").write_bytes(foreign.SerializeToString())
    unbound = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 21]> g (float[n, t] x) => (float[n, t] y) { y = Relu(x) }')
    Path("unbound.onnx").write_bytes(unbound.SerializeToString())
    np.savez("good.npz", x=samples.inputs["x"], y=samples.labels)
    np.savez("wrong_shape.npz", x=np.zeros((5, 7), np.float32), y=np.zeros(5, np.int64))
    np.savez("whole_numbers.npz", x=np.zeros((5, 4), np.uint8), y=np.zeros(5, np.int64))
    np.savez("unlabelled.npz", x=samples.inputs["x"])
    np.savez("uneven.npz", x=np.zeros((5, 4), np.float32), y=np.zeros(4, np.int64))
    Path("text.npz").write_text("no archive")
    Path("pickle.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128) + b"\n")
    Path("folder").mkdir()
    Path("folder/thesis.tex").write_text("years of work")
    Path("folder.onnx").mkdir()
    Path("broken").mkdir()
    Path("broken/manifest.json").write_text('{"schema": ')
    Path("board.toml").write_text("kind = 'board'\nname = 3\n")
    return folder


COMPARE = ["compare", "good.onnx", "-t", "ref", "--data"]
CASES: dict[str, tuple[list[str], int, list[str]]] = {
    "missing file": (["inspect", "missing.onnx"], 1, ["missing.onnx"]),
    "missing file, compile": (["compile", "missing.onnx", "-t", "ref", "-o", "out"], 1, ["missing.onnx"]),
    "not ONNX": (["inspect", "text.onnx"], 1, ["text.onnx"]),
    "empty": (["inspect", "empty.onnx"], 1, ["empty.onnx"]),
    "truncated": (["compile", "truncated.onnx", "-t", "ref", "-o", "out"], 1, ["truncated.onnx"]),
    "a folder without a model": (["inspect", "folder"], 1, ["folder"]),
    "unbound axis": (["inspect", "unbound.onnx"], 1, ["'t'", "dims"]),
    "bad dims": (["inspect", "unbound.onnx", "--dims", "t=many"], 2, ["t=many", "NAME=N"]),
    "unknown op of another domain": (["compile", "foreign_op.onnx", "-t", "ref", "-o", "out"], 1, ["Magic", "com.acme"]),
    "unknown target": (["compile", "good.onnx", "-t", "cpuu", "-o", "out"], 2, ["cpuu", "did you mean cpu"]),
    "unknown device": (["compile", "good.onnx", "-t", "hls:pynq-z3", "-o", "out"], 2, ["pynq-z3", "pynq-z2"]),
    "no device": (["check", "good.onnx", "-t", "hls"], 2, ["needs a device", "pynq-z2"]),
    "device of the wrong kind": (["check", "good.onnx", "-t", "hls:znver3"], 2, ["znver3"]),
    "broken device file": (["check", "good.onnx", "-t", "hls:./board.toml"], 2, ["board.toml", "name"]),
    "unknown option of a target": (["check", "good.onnx", "-t", "ort{exakt=true}"], 2, ["exakt", "exact"]),
    "target option out of range": (["check", "good.onnx", "-t", "hls:pynq-z2{reuse=0}"], 2, ["reuse", "0"]),
    "unclosed brace": (["check", "good.onnx", "-t", "ort{exact=true"], 2, ["ort{exact=true"]),
    "float model on an FPGA": (["compile", "good.onnx", "-t", "hls:pynq-z2", "-o", "out"], 3, ["good", "quantize"]),
    "unknown pass": (["transform", "good.onnx", "-p", "quantise", "-o", "out.onnx"], 2, ["quantise", "did you mean quantize"]),
    "unknown option of a pass": (["transform", "good.onnx", "-p", "quantize{bit=8}", "-o", "out.onnx"], 2, ["'bit'", "bits"]),
    "pass option out of range": (["transform", "good.onnx", "-p", "quantize{bits=99}", "-o", "out.onnx"], 2, ["bits", "99", "16"]),
    "pass option of the wrong type": (["transform", "good.onnx", "-p", "prune{amount=half}", "-o", "out.onnx"], 2, ["amount", "half"]),
    "no calibration data": (["transform", "good.onnx", "-p", "quantize", "-o", "out.onnx"], 1, ["quantize", "--data"]),
    "nowhere to write": (["transform", "good.onnx", "-p", "fuse", "-o", "no/such/folder/out.onnx"], 1, ["no/such/folder"]),
    "missing data": ([*COMPARE, "missing.npz"], 1, ["missing.npz"]),
    "data that is none": ([*COMPARE, "text.npz"], 1, ["text.npz"]),
    "data with pickled objects": ([*COMPARE, "pickle.npy"], 1, ["pickle.npy"]),
    "data of the wrong shape": ([*COMPARE, "wrong_shape.npz"], 1, ["[N, 7]", "[N, 4]"]),
    "data of the wrong type": ([*COMPARE, "whole_numbers.npz"], 1, ["uint8", "float32"]),
    "numbers of samples differ": ([*COMPARE, "uneven.npz"], 1, ["5", "4"]),
    "no labels": ([*COMPARE, "unlabelled.npz", "--metric", "accuracy"], 1, ["accuracy needs labels", "agreement"]),
    "unknown option of data": ([*COMPARE, "good.npz{rang=0:3}"], 2, ["rang", "range"]),
    "a range that is none": ([*COMPARE, "good.npz{range=5}"], 2, ["range", "0:200"]),
    "samples that are not there": ([*COMPARE, "good.npz{range=0:999}"], 1, ["999", "40"]),
    "an input that the model lacks": ([*COMPARE, "good.npz", "--input", "z{scale=2}"], 1, ["'z'", "x"]),
    "an input that is no spec": ([*COMPARE, "good.npz", "--input", "x{scale}"], 2, ["scale", "key=value"]),
    "unknown metric": ([*COMPARE, "good.npz", "--metric", "acuracy"], 2, ["acuracy", "did you mean accuracy"]),
    "a metric that does not fit": ([*COMPARE, "good.npz", "--metric", "accuracy{output=z}"], 2, ["'z'", "y"]),
    "unknown cost": ([*COMPARE, "good.npz", "--cost", "price"], 2, ["price", "latency"]),
    "limit of nothing": ([*COMPARE, "good.npz", "--limit", "0"], 2, ["--limit"]),
    "unknown mode": (["run", "folder", "--data", "good.npz", "--mode", "dream"], 1, ["folder"]),
    "run what is no artifact": (["run", "folder", "--data", "good.npz"], 1, ["not an artifact", "gatewright compile"]),
    "build what is no artifact": (["build", "missing"], 1, ["missing", "not an artifact"]),
    "a place that is taken": (["compile", "good.onnx", "-t", "ref", "-o", "folder"], 2, ["folder", "new or an empty folder"]),
    "a place that is a file": (["compile", "good.onnx", "-t", "ref", "-o", "good.npz"], 2, ["good.npz"]),
    "build what is a file": (["build", "good.onnx"], 1, ["good.onnx is not an artifact", "gatewright compile"]),
    "run what is a file": (["run", "good.onnx", "--data", "good.npz"], 1, ["good.onnx is not an artifact"]),
    "a manifest that is none": (["build", "broken"], 1, ["manifest.json", "compile the model again"]),
    "a place below a file": (["compile", "good.onnx", "-t", "ref", "-o", "good.npz/out"], 1, ["good.npz is not a folder"]),
    "a comma too many": (["transform", "good.onnx", "-p", "fuse,,fold", "-o", "out.onnx"], 2, ["fuse,,fold", "take the ','"]),
    "a comma at the end": (["compare", "good.onnx", "-t", "ref,", "--data", "good.npz"], 2, ["ref,"]),
    "a model called otherwise": (["transform", "good.onnx", "-p", "fuse", "-o", "out.txt"], 2, ["out.txt", ".onnx", ".gwz"]),
    "models called otherwise": (["combine", "good.onnx", "good.onnx", "-o", "out"], 2, ["out", ".onnx"]),
    "a model where a folder is": (["transform", "good.onnx", "-p", "fuse", "-o", "folder.onnx"], 1, ["folder.onnx", "folder"]),
    "a report where a folder is": ([*COMPARE, "good.npz", "--html", "folder"], 1, ["folder"]),
    "a bench's report nowhere": (["bench", "good.onnx", "--html", "no/such/r.html"], 1, ["no/such"]),
    "unknown kind of device": (["devices", "fpga"], 2, ["fpga", "board"]),
    "unknown verb": (["inspekt", "good.onnx"], 2, ["inspekt", "inspect"]),
    "unknown option": (["inspect", "good.onnx", "--verbos"], 2, ["--verbos"]),
    "missing argument": (["inspect"], 2, ["MODEL"]),
    "missing option": (["compile", "good.onnx", "-o", "out"], 2, ["--target"]),
    "report that cannot be written": ([*COMPARE, "good.npz", "--html", "no/such/r.html"], 1, ["no/such/r.html"]),
    "bench against an unknown engine": (["bench", "good.onnx", "--against", "orf"], 2, ["orf", "did you mean ort"]),
    "bench on an unknown target": (["bench", "good.onnx", "-t", "cpuu"], 2, ["cpuu", "did you mean cpu"]),
    "bench of another engine": (["bench", "good.onnx", "-t", "ort"], 2, ["ort", "--against"]),
    "bench of files": (["bench", "good.onnx", "-t", "hls:pynq-z2"], 2, ["hls:pynq-z2"]),
    "bench on another device": (["bench", "good.onnx", "-t", "cpu:znver3"], 2, ["cpu:znver3", "this machine"]),
    "bench with a batch in the target": (["bench", "good.onnx", "-t", "cpu{batch=4}"], 2, ["batch", "--batch 4"]),
    "bench in no batch": (["bench", "good.onnx", "--batch", "1,some"], 2, ["1,some", "--batch 1,16"]),
    "bench on no threads": (["bench", "good.onnx", "--threads", "0"], 2, ["--threads"]),
    "bench of a missing model": (["bench", "missing.onnx"], 1, ["missing.onnx"]),
    "demo into a file": (["demo", "-o", "good.npz"], 2, ["good.npz"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(case: str, here: Path) -> None:
    words, code, expected = CASES[case]
    before = contents(here)
    result = CliRunner().invoke(app, words)
    assert_clear(result.stderr, result.stdout)
    assert result.exit_code == code, result.stderr
    for word in expected:
        assert word in result.stderr
    assert contents(here) == before, "nothing is left behind, nothing is touched"


def test_an_op_that_no_opset_has(here: Path) -> None:
    result = CliRunner().invoke(app, ["compile", "unknown_op.onnx", "-t", "ref", "-o", "out"])
    assert_clear(result.stderr, result.stdout)
    assert result.exit_code in (1, 3)
    assert "Frobnicate" in result.stderr
    assert not Path("out").exists()


def test_no_compiler(here: Path, mlp: Model, samples: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    made = runner.invoke(app, ["compile", "good.onnx", "-t", "hls:pynq-z2", "--data", "good.npz", "-o", "artifact"])
    assert made.exit_code == 0, made.stderr
    monkeypatch.setenv("PATH", str(here / "empty"))
    result = runner.invoke(app, ["run", "artifact", "--data", "good.npz", "-o", "out.npz"])
    assert_clear(result.stderr, result.stdout)
    assert result.exit_code == 1
    assert "g++" in result.stderr
    assert "install" in result.stderr
    assert not Path("out.npz").exists()
    report = runner.invoke(app, ["compare", "good.onnx", "-t", "ref,hls:pynq-z2", "--data", "good.npz", "--calibration", "good.npz"])
    assert report.exit_code == 1
    assert "tool missing" in report.stdout
    assert "g++" in report.stdout


def test_a_model_that_lies_about_its_sizes(here: Path) -> None:
    model = onnx.load("good.onnx")
    model.graph.initializer[0].dims[0] = 2**40
    Path("liar.onnx").write_bytes(model.SerializeToString())
    result = CliRunner().invoke(app, ["inspect", "liar.onnx"])
    assert_clear(result.stderr, result.stdout)
    assert result.exit_code == 1


def test_external_data_outside_of_the_model_s_folder(here: Path) -> None:
    Path("secret.bin").write_bytes(bytes(128))
    Path("inner").mkdir()
    model = onnx.load("good.onnx")
    tensor = next(t for t in model.graph.initializer if list(t.dims) == [4, 8])
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", "128")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    Path("inner/m.onnx").write_bytes(model.SerializeToString())
    result = CliRunner().invoke(app, ["inspect", "inner/m.onnx"])
    assert_clear(result.stderr, result.stdout)
    assert result.exit_code == 1


@pytest.mark.parametrize(("words", "code"), [(["inspect", "missing.onnx"], 1), (["check", "good.onnx", "-t", "cpuu"], 2)])
def test_the_real_program(here: Path, words: list[str], code: int) -> None:
    ran = subprocess.run([sys.executable, "-m", "gatewright.runtime.cli", *words], capture_output=True, text=True, check=False)
    assert ran.returncode == code
    assert_clear(ran.stderr, ran.stdout)


def assert_clear(stderr: str, stdout: str) -> None:
    lines = [line for line in stderr.splitlines() if line.strip()]
    complaint = [line for line in lines if line.startswith("error: ")]
    assert len(complaint) == 1, stderr
    assert 15 < len(complaint[0]) < 700
    assert len(lines) <= 3, stderr
    assert "Traceback" not in stderr + stdout
    assert "something unforeseen" not in stderr
    assert 'File "' not in stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {os.path.relpath(path, folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
