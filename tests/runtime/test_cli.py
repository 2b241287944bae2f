"""The command line: its verbs, what goes to stdout and what to stderr, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.runtime.cli import app
from gatewright.runtime.views import opened_tables
from gatewright.targets.base import Artifact, TargetContext

VERBS = ["inspect", "devices", "doctor", "check", "transform", "compile", "build", "run", "compare", "combine", "optimize", "bench", "demo"]


@pytest.fixture
def files(mlp: Model, samples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with mlp.onnx and data.npz, and the working directory in it."""
    mlp.save(tmp_path / "mlp.onnx")
    np.savez(tmp_path / "data.npz", X=samples.inputs["x"], y=samples.labels, X_train=samples.inputs["x"], y_train=samples.labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def ok(*words: str) -> Any:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result


def as_json(*words: str) -> Any:
    result = ok(*words, "--json", "-")
    return json.loads(result.stdout)


def test_help_names_every_verb() -> None:
    text = ok("--help").stdout
    assert all(verb in text for verb in VERBS)
    for verb in VERBS:
        shown = ok(verb, "--help").stdout
        assert "--json" in shown
        assert "--debug" in shown


def test_inspect_opens_an_artifact(files: Path) -> None:
    ok("compile", "mlp.onnx", "-t", "ref", "-o", "out")
    assert "mlp for ref, built" in ok("inspect", "out").stdout
    assert as_json("inspect", "out")["target_name"] == "ref"


def test_kernels_of_an_artifact(tmp_path: Path) -> None:
    entry = {"problem": "conv3x3", "algorithm": "winograd", "blocks": [4, 6], "choice": "measured", "seconds": 2e-5}
    target = {"kernels": {"k1": [entry]}, "notes": ["kernel of n7 (Conv): it runs in plain loops: why"]}
    manifest = {"name": "m", "target_text": "cpu", "stage": "built", "files": {}, "model": {"history": []}, "target": target}
    console = Console(width=160, record=True)
    console.print(*opened_tables(Artifact(tmp_path, manifest, TargetContext(tmp_path))))
    text = console.export_text()
    assert "note: kernel of n7 (Conv): it runs in plain loops: why" in text
    assert [line.split() for line in text.splitlines() if line.startswith("k1")] == [
        ["k1", "conv3x3", "winograd", "4,", "6", "measured", "20", "µs"]
    ]


def test_without_words_it_shows_its_help() -> None:
    assert "inspect" in run().output


def test_a_coded_model_is_a_model(files: Path) -> None:
    told = ok("transform", "mlp.onnx", "-p", "prune{amount=0.9},cluster{bits=2}", "-o", "small.gwz").output
    assert "times as much" in told
    ok("transform", "mlp.onnx", "-p", "prune{amount=0.9},cluster{bits=2}", "-o", "small.onnx")
    assert as_json("inspect", "small.gwz")["digest"] == as_json("inspect", "small.onnx")["digest"]
    assert Path("small.gwz").stat().st_size < Path("small.onnx").stat().st_size


def test_the_whole_way(files: Path) -> None:
    ok(
        "transform",
        "mlp.onnx",
        "-p",
        "fuse,quantize{bits=8,grid=pow2}",
        "--data",
        "data.npz{part=train}",
        "--input",
        "x{scale=0.5}",
        "-o",
        "small.onnx",
    )
    history = as_json("inspect", "small.onnx")["history"]
    assert [step["text"].partition("{")[0] for step in history if step["action"] == "pass"] == ["fuse", "quantize"]

    ok("compile", "small.onnx", "-t", "ort", "-o", "artifact")
    ran = ok("run", "artifact", "--data", "data.npz", "-o", "out.npz")
    assert "as recorded in the artifact: x{scale=0.5}" in ran.stderr
    with np.load("out.npz") as archive:
        assert archive["y"].shape == (40, 3)

    found = as_json(
        "compare", "mlp.onnx", "small.onnx", "-t", "ref,ort", "--data", "data.npz", "--input", "x{scale=0.5}", "--html", "r.html"
    )
    assert [row["status"] for row in found["rows"]] == ["ok"] * 4
    assert Path("r.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(os.listdir()) == ["artifact", "cache", "data.npz", "mlp.onnx", "out.npz", "r.html", "small.onnx"]


def test_inspect(files: Path) -> None:
    shown = ok("inspect", "mlp.onnx").stdout
    assert "Gemm 2, Relu 1" in shown
    assert "56 multiply-accumulates" in shown
    found = as_json("inspect", "mlp.onnx")
    assert found["macs"] == 56
    assert found["inputs"] == [{"name": "x", "shape": [1, 4], "dtype": "float32"}]
    assert found["parameters"] == 4 * 8 + 8 + 8 * 3 + 3


def test_dims_bind_axes(tmp_path: Path) -> None:
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 21]> g (float[n, t, 4] x) => (float[n, t, 4] y) { y = Relu(x) }')
    onnx.save(model, tmp_path / "m.onnx")
    result = run("inspect", str(tmp_path / "m.onnx"))
    assert result.exit_code == 1
    assert "'t'" in result.stderr
    found = as_json("inspect", str(tmp_path / "m.onnx"), "--dims", "t=7,n=2")
    assert found["inputs"][0]["shape"] == [2, 7, 4]


def test_devices(files: Path) -> None:
    shown = ok("devices").stdout
    assert "pynq-z2" in shown
    assert "host" in shown
    boards = as_json("devices", "board")
    assert {device["kind"] for device in boards} == {"board"}
    assert "pynq-z2" in {device["name"] for device in boards}


def test_doctor(files: Path, own_cache: Path) -> None:
    shown = run("doctor").stdout
    assert "onnxruntime" in shown
    assert str(own_cache) in shown.replace("\n", "")
    found = json.loads(run("doctor", "--json", "-").stdout)
    names = {finding["name"]: finding for finding in found["findings"]}
    assert names["numpy"]["version"] == np.__version__
    assert names["g++"]["needed"]
    assert found["cache"]["path"] == str(own_cache)


def test_doctor_says_what_a_missing_compiler_disables(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(files / "nowhere"))
    result = run("doctor")
    assert result.exit_code == 1
    assert "missing: g++" in result.stdout
    assert "emulating hls designs" in result.stdout


def test_check(files: Path, toys: list[str]) -> None:
    assert "supported, and it fits" in ok("check", "mlp.onnx", "-t", "toy").stdout
    result = run("check", "mlp.onnx", "-t", "toy{does=shortfall}")
    assert result.exit_code == 3
    assert "needs 9, toy has 1" in result.stdout
    assert toys == [], "check builds nothing"


def test_build(files: Path, toys: list[str]) -> None:
    assert as_json("compile", "mlp.onnx", "-t", "toy", "-o", "a")["stage"] == "lowered"
    assert as_json("build", "a")["stage"] == "built"


def test_json_goes_to_a_file_or_alone_to_stdout(files: Path) -> None:
    result = ok("inspect", "mlp.onnx", "--json", "out.json")
    assert "operators" in result.stdout
    assert json.loads(Path("out.json").read_text(encoding="utf-8"))["name"] == "mlp"
    alone = run("transform", "mlp.onnx", "-p", "fuse", "-o", "b.onnx", "--json", "-")
    assert json.loads(alone.stdout)["path"] == "b.onnx"


def test_compares_exit_code_is_its_worst_row(files: Path, toys: list[str]) -> None:
    words = ("compare", "mlp.onnx", "--data", "data.npz", "-t")
    assert run(*words, "ref").exit_code == 0
    assert run(*words, "ref,toy{does=overflow}").exit_code == 3
    failed = run(*words, "ref,toy{does=overflow},toy{does=tool}")
    assert failed.exit_code == 1
    assert "tool missing" in failed.stdout
    assert "buy one" in failed.stdout


def test_inputs_of_one_model_only(files: Path) -> None:
    Path("other.onnx").write_bytes(Path("mlp.onnx").read_bytes())
    words = ["compare", "mlp.onnx", "other.onnx", "-t", "ref", "--data", "data.npz", "--input", "other:x{scale=0.5}"]
    found = as_json(*words)
    assert found["rows"][1]["error"]["baseline"]["max_abs"] > 0.01
    same = as_json(*words, "--input", "mlp:x{scale=0.5}")
    assert same["rows"][1]["error"]["baseline"]["max_abs"] == 0


def test_debug_shows_where(files: Path) -> None:
    calm, loud = run("inspect", "missing.onnx"), run("inspect", "missing.onnx", "--debug")
    assert "Traceback" not in calm.stderr
    assert "Traceback" in loud.stderr
    assert calm.exit_code == loud.exit_code == 1


def test_a_bug_is_one_line_too(files: Path, toys: list[str]) -> None:
    result = run("compile", "mlp.onnx", "-t", "toy{does=crash}", "-o", "a")
    assert result.exit_code == 1
    assert "something unforeseen: ZeroDivisionError: a bug" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("a").exists()


def test_an_interrupt_leaves_nothing(files: Path, toys: list[str]) -> None:
    result = run("compile", "mlp.onnx", "-t", "toy{does=interrupt}", "-o", "a")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert not Path("a").exists()
    assert not list(files.rglob("*.staging"))


SLOW = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background has it ignored
sys.path[:0] = {paths!r}
from gatewright.targets import base
base.TARGETS["toy"] = "toy_target:ToyTarget"
from gatewright.runtime.cli import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_signal_leaves_nothing(files: Path, number: int, code: int) -> None:
    script = SLOW.format(paths=[str(Path(__file__).parent)])
    words = ["compile", "mlp.onnx", "-t", "toy{seconds=60}", "-o", "deep/a"]
    process = subprocess.Popen([sys.executable, "-c", script, *words], cwd=files, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list((files / "cache").rglob("first")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert "Traceback" not in complaint
    assert not (files / "deep").exists()
    assert not list(files.rglob("*.staging"))


def test_progress_is_plain_lines_where_there_is_no_terminal(files: Path) -> None:
    script = SLOW.format(paths=[str(Path(__file__).parent)])
    words = ["compile", "mlp.onnx", "-t", "toy{seconds=2}", "-o", "a"]
    ran = subprocess.run([sys.executable, "-c", script, *words], cwd=files, capture_output=True, text=True, check=True)
    assert "compiling mlp for toy" in ran.stderr
    assert "\x1b" not in ran.stderr + ran.stdout
    assert "compiling" not in ran.stdout


def test_progress_is_shown_on_a_terminal(files: Path) -> None:
    script = SLOW.format(paths=[str(Path(__file__).parent)])
    words = ["compile", "mlp.onnx", "-t", "toy{seconds=2}", "-o", "a"]
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen([sys.executable, "-c", script, *words], cwd=files, env=env, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    seen = b""
    try:
        while True:
            block = os.read(master, 4096)
            if not block:
                break
            seen += block
    except OSError:
        pass  # Linux says so when the other end of a terminal is closed
    finally:
        os.close(master)
    assert process.wait(30) == 0
    assert b"compiling mlp for toy" in seen


def test_a_reader_that_has_enough_is_no_error(files: Path) -> None:
    script = f"{sys.executable} -m gatewright.runtime.cli devices --json - | head -1"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in ran.stderr
    assert ran.stdout.startswith("[")


def test_start_up_is_quick() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "gatewright.runtime.cli", "--help"]
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "tvm", "hls4ml", "torch", "jinja2"}
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ran.stderr.splitlines()}
    assert not heavy & imported


def test_combining_from_the_command_line(files: Path) -> None:
    found = as_json("combine", "mlp.onnx", "mlp.onnx", "-o", "two.onnx")
    assert found["path"] == "two.onnx"
    assert Path("two.onnx").exists()
    wrong = run("combine", "mlp.onnx", "mlp.onnx", "--how", "sum", "-o", "three.onnx")
    assert wrong.exit_code == 2
    assert "ensemble" in wrong.output + wrong.stderr
    assert not Path("three.onnx").exists()
