"""The target around the kernels: a compiler that is contained, files that are the same twice, a runtime that loads alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compiling import Compile
from graphs import graph

import gatewright as gw
from gatewright.errors import DataError, ToolFailed, ToolMissing, UnsupportedError, UnsupportedOp, UsageError
from gatewright.frontend.integer import plan
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.hw.device import host, load_device
from gatewright.targets.base import Artifact, TargetContext
from gatewright.targets.tvm import target as cpu
from gatewright.targets.tvm.support import problems
from gatewright.targets.tvm.target import CpuOptions, CpuTarget


@pytest.fixture
def model() -> Model:
    random = np.random.default_rng(0)
    return graph(
        "(float[1,16] x) => (float[1,8] y) { a = Gemm(x, w, b) c = Relu(a) y = Gemm(c, v) }",
        w=random.standard_normal((16, 32)).astype(np.float32), b=random.standard_normal(32).astype(np.float32),
        v=random.standard_normal((32, 8)).astype(np.float32),
    )  # fmt: skip


X = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16)


def build(model: Model, folder: Path, target: CpuTarget | None = None, context: TargetContext | None = None) -> None:
    """Lower and build into ``folder`` as the driver does."""
    target, context = target or CpuTarget(None, CpuOptions()), context or TargetContext(folder)
    folder.mkdir(exist_ok=True)
    described = target.lower(target.legalize(model), folder, context)
    target.build(Artifact(folder, {"model": {"name": model.name}, "target": described}, context), folder, context)


def test_from_model_to_numbers(model: Model, tmp_path: Path) -> None:
    artifact = gw.compile(model, "cpu", out=tmp_path / "out")
    assert artifact.stage == "built"
    assert set(artifact.manifest["files"]) == {"libgw_g.so", "constants.bin", "gw_g.h", "example/main.cpp", "example/CMakeLists.txt"}
    with artifact.load() as executor:
        assert executor.mode == "device"
        y = executor.run({"x": X})["y"]
    with gw.compile(model, "ref", out=tmp_path / "ref").load() as reference:
        assert np.allclose(y, reference.run({"x": X})["y"], atol=1e-5)


def test_the_same_model_gives_the_same_bytes(model: Model, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build(model, tmp_path / name)
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file())
    assert [file.name for file in files] == ["constants.bin", "CMakeLists.txt", "main.cpp", "gw_g.h", "libgw_g.so"]
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_running_needs_no_compiler(model: Model, tmp_path: Path) -> None:
    """Neither tvm nor any of its libraries is loaded to run an artifact, nor what reads ONNX."""
    gw.compile(model, "cpu", out=tmp_path / "out")
    script = (
        "import sys, numpy as np; from gatewright.targets.base import Artifact, TargetContext; from pathlib import Path\n"
        f"e = Artifact.open({str(tmp_path / 'out')!r}, TargetContext(Path('.'))).load()\n"
        "y = e.run({'x': np.zeros((1, 16), np.float32)})['y']\n"
        "print(y.shape, {'tvm', 'tvm_ffi', 'onnxruntime', 'onnx'} & set(sys.modules), 'tvm' in open('/proc/self/maps').read())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "(1, 8) set() False"


def test_a_compiler_that_hangs_is_stopped(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match=r"compiling g for cpu took longer than 0 s"):
        build(model, tmp_path / "a", context=TargetContext(tmp_path, time_limit_s=0.2))


def test_a_compiler_that_dies_is_an_error(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "MEMORY_LIMIT", 300 << 20)
    with pytest.raises(ToolFailed, match=r"compiling g for cpu.*memory limit is 300 MiB"):
        build(model, tmp_path / "a")


def test_a_crash_names_the_kernel(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies of a signal while it makes a kernel: its last line says which."""
    monkeypatch.setattr(
        cpu, "WORKER",
        ("-c", "import os, signal; print('kernel of conv7 (Conv)', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"),
    )  # fmt: skip
    with pytest.raises(ToolFailed, match=r"(?s)compiling g for cpu.*SIGSEGV.*kernel of conv7 \(Conv\)"):
        build(model, tmp_path / "a")


def test_nothing_is_left_of_a_failed_compilation(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "MEMORY_LIMIT", 300 << 20)
    with pytest.raises(ToolFailed):
        gw.compile(model, "cpu{threads=1}", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_unsupported_nodes_are_named() -> None:
    model = graph("(float[1,4,4] x) => (float[1] y, float[1] z) { y = Det(x) a = Neg(x) z = Det(a) }")
    found = problems(plan(model), "cpu")
    assert [p.op for p in found] == ["Det", "Det"]
    assert gw.check(model, "cpu{fallback=none}").problems
    with pytest.raises(UnsupportedError, match=r"cpu does not support 2 nodes: .*no kernel for this operator"):
        gw.compile(model, "cpu{fallback=none}")


def test_one_unsupported_node_says_the_rule() -> None:
    model = graph("(float[1,2,4,4] x, float[3,2,3,3] w) => (float[1,3,2,2] y) { y = Conv<kernel_shape = [3, 3]>(x, w) }")
    with pytest.raises(UnsupportedOp, match="weight has to be a constant"):
        gw.compile(model, "cpu{fallback=none}")


@pytest.mark.parametrize("text", ["cpu{threads=0}", "cpu{batch=0}", "cpu{batch=x}", "cpu{level=9}"])
def test_options_out_of_range(model: Model, text: str) -> None:
    with pytest.raises(UsageError):
        gw.check(model, text)


def test_check_gives_figures_without_tvm(model: Model) -> None:
    script = (
        "import sys, numpy as np; sys.path.insert(0, 'tests'); import gatewright as gw; from graphs import graph\n"
        "c = gw.check(graph('(float[1,16] x) => (float[1,16] y) { y = Relu(x) }'), 'cpu')\n"
        "print(c.ok, sorted(c.figures), 'tvm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True ['energy', 'latency', 'peak_memory'] False"


def test_a_device_with_other_instructions_is_refused_by_name(model: Model, tmp_path: Path) -> None:
    """Code for it compiles here; running it would end the process."""
    device = replace(host(), name="future", source="future.toml", isa=(*host().isa, "avx10.9"))
    target = CpuTarget(device, CpuOptions())
    with pytest.raises(UnsupportedError, match=r"future.*avx10\.9"):
        target.load(Artifact(tmp_path, {}, TargetContext(tmp_path)), "device", TargetContext(tmp_path))


def test_another_architecture_needs_its_linker(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if host().triple is None or host().triple.startswith("aarch64"):  # type: ignore[union-attr]
        pytest.skip("this machine is an aarch64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match=r"for cpu:raspberry-pi-5 needs a C compiler for aarch64.*gcc-aarch64-linux-gnu"):
        build(model, tmp_path / "a", CpuTarget(load_device("raspberry-pi-5"), CpuOptions()))


def test_the_pool_is_as_wide_as_asked(compiled: Compile, model: Model) -> None:
    """An executor has its threads from the start, and ends them when it is closed."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("this system does not list a process's threads")

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    for count in (1, 2, 4):
        before = threads()
        executor = compiled(model, threads=count)
        assert threads() == before + count - 1
        executor.run({"x": X})
        executor.close()
        assert threads() == before


def test_the_default_is_every_core() -> None:
    assert CpuTarget(None, CpuOptions()).threads == host().cores
    assert CpuTarget(None, CpuOptions(threads=1)).threads == 1


def test_threads_do_not_change_results(compiled: Compile, shared_model: Callable[[str], Path]) -> None:
    model = load(shared_model("tiny_ic_resnet8_int8.onnx"))
    x = np.random.default_rng(0).integers(-128, 128, (1, 32, 32, 3)).astype(np.int8)
    one, two = (compiled(model, threads=count).run({model.inputs[0].name: x}) for count in (1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_feeds_may_lie_anywhere(compiled: Compile, model: Model) -> None:
    """Views, odd addresses and other strides: the executor copies into buffers of its own."""
    executor = compiled(model)
    expected = executor.run({"x": X})["y"]
    raw = np.zeros(X.nbytes + 1, np.uint8)
    odd = raw[1:].view(np.float32).reshape(X.shape)
    odd[:] = X
    assert np.array_equal(executor.run({"x": odd})["y"], expected)
    assert np.array_equal(executor.run({"x": np.asfortranarray(X)})["y"], expected)


def test_results_are_the_callers_own(compiled: Compile, model: Model) -> None:
    executor = compiled(model)
    first = executor.run({"x": X[:1]})["y"]
    kept = first.copy()
    executor.run({"x": X[1:2]})
    assert np.array_equal(first, kept)


def test_wrong_feeds_say_both_shapes(compiled: Compile, model: Model) -> None:
    with pytest.raises(DataError, match=r"\[N, 16\].*\[1, 15\]"):
        compiled(model).run({"x": np.zeros((1, 15), np.float32)})


def test_traces_go_by_the_references_names(compiled: Compile, shared_model: Callable[[str], Path]) -> None:
    from gatewright.frontend.reference import Reference

    model = load(shared_model("tiny_kws_dscnn_int8.onnx"))
    x = {model.inputs[0].name: np.random.default_rng(0).integers(-128, 128, (2, 49, 10, 1)).astype(np.int8)}
    seen, wanted = compiled(model).trace(x), Reference(model).run(x, trace=True)
    ops = list(plan(model).integer_ops)
    assert sum(op.output in seen and op.float_name in seen for op in ops) >= len(ops) - 2
    assert all(np.array_equal(seen[op.float_name], wanted[op.float_name]) for op in ops if op.float_name in seen)
