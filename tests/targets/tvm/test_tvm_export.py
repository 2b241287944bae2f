"""The artifact as a user of C or C++ has it: names, header, example, and a library that needs neither Python nor TVM."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph

import gatewright as gw
from gatewright.errors import GatewrightError, UnsupportedError
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.targets.base import Artifact, TargetContext
from gatewright.targets.tvm import link as linking
from gatewright.targets.tvm import worker
from gatewright.targets.tvm.export import Interface, comment, files, identifier
from gatewright.targets.tvm.steps import Value
from gatewright.targets.tvm.target import CpuOptions, CpuTarget

HOSTILE = [
    'a*/ #include "/etc/passwd" /*', "x;system(0)", "int", "linux", "__FILE__", "9lives", "", "模型", "a\\\nb", "??/", "../../x", "$(rm)",
]  # fmt: skip


@pytest.fixture
def model() -> Model:
    random = np.random.default_rng(0)
    return graph(
        "(float[1,16] x, int32[1,1] k) => (float[1,8] y, float[1,16] z) { f = Cast<to = 1>(k) s = Mul(x, f) y = Gemm(s, w, b) z = Exp(x) }",
        w=random.standard_normal((16, 8)).astype(np.float32), b=random.standard_normal(8).astype(np.float32),
    )  # fmt: skip


def feeds_of(model: Model, samples: int) -> dict[str, Any]:
    """Random samples for every input: floats within [0, 1), integers over their whole type."""
    random = np.random.default_rng(1)
    feeds = {}
    for info in model.inputs:
        shape, kind = (samples, *info.shape[1:]), np.dtype(info.dtype)
        if kind.kind == "f":
            feeds[info.name] = random.random(shape).astype(kind)
        else:
            feeds[info.name] = random.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)
    return feeds


def built_with(model: Model, folder: Path, *flags: str) -> Artifact:
    """The artifact, linked with more flags for the compiler."""
    target, context = CpuTarget(None, CpuOptions(threads=2)), TargetContext(folder)
    folder.mkdir()
    described = target.lower(target.legalize(model), folder, context)
    (folder / worker.JOB).write_text(json.dumps(target.job(model.name, "cc", context)), encoding="utf-8")
    whole = linking.Job

    def flagged(*fields: Any) -> linking.Job:
        return whole(*fields, flags=flags)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(linking, "Job", flagged)
        built = worker.build(folder)
    return Artifact(folder, {"target": {**described, **built}, "files": {}}, context)


def run_example(program: Path, artifact: Artifact, model: Model, feeds: dict[str, Any], folder: Path, *words: str) -> dict[str, Any]:
    """The outputs of the example program, run in an environment without Python or TVM."""
    inputs = []
    for number, info in enumerate(model.inputs):
        inputs.append(folder / f"in{number}.raw")
        inputs[-1].write_bytes(feeds[info.name].tobytes())
    outputs = [folder / f"out{number}.raw" for number in range(len(model.outputs))]
    command = [program, *words, artifact.path / "constants.bin", *inputs, *outputs]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/nowhere"})
    assert done.returncode == 0, done.stderr
    found = zip(model.outputs, outputs, strict=True)
    return {info.name: np.fromfile(path, info.dtype).reshape(-1, *info.shape[1:]) for info, path in found}


def cmake(artifact: Artifact, folder: Path) -> Path:
    """The example, built as its first lines say, warnings being errors."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    for words in (["-S", artifact.path / "example", "-B", folder, "-DCMAKE_CXX_FLAGS=-Werror"], ["--build", folder]):
        done = subprocess.run(["cmake", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "example"


def test_the_example_gives_what_python_gives(model: Model, tmp_path: Path) -> None:
    artifact = gw.compile(model, "cpu", out=tmp_path / "out")
    feeds = feeds_of(model, 3)
    with artifact.load() as executor:
        wanted = executor.run(feeds)
    program = cmake(artifact, tmp_path / "build")
    got = run_example(program, artifact, model, feeds, tmp_path, "--threads", "2")
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
    assert len(got["y"]) == 3
    listed = subprocess.run(["readelf", "-d", artifact.path / "libgw_g.so"], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*?)[.-]", listed)
    assert set(needed) <= {"libc", "libm", "libpthread", "ld"}


@pytest.mark.parametrize("name", ["tiny_kws_dscnn_fp32", "tiny_kws_dscnn_int8", "tiny_ic_resnet8_int8", "tiny_ad01_fp32"])
def test_real_models_run_without_python(name: str, shared_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = load(shared_model(f"{name}.onnx"))
    artifact = gw.compile(model, "cpu", out=tmp_path / "out")
    feeds = feeds_of(model, 4)
    with artifact.load() as executor:
        wanted = executor.run(feeds)
    got = run_example(cmake(artifact, tmp_path / "build"), artifact, model, feeds, tmp_path)
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


def test_the_example_refuses_what_does_not_fit(model: Model, tmp_path: Path) -> None:
    artifact = gw.compile(model, "cpu", out=tmp_path / "out")
    program = cmake(artifact, tmp_path / "build")
    (tmp_path / "short").write_bytes(b"123")
    outputs = [tmp_path / "y", tmp_path / "z"]

    def said(constants: Path, *inputs: Path) -> tuple[int, str]:
        done = subprocess.run([program, constants, *inputs, *outputs], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    constants, short = artifact.path / "constants.bin", tmp_path / "short"
    assert said(constants) == (2, "usage: example [--threads N] [--repeat N] [--trace FILE] CONSTANTS IN1 IN2 OUT1 OUT2\n")
    assert said(constants, short, short) == (1, f"{short} holds 3 bytes, which is not a multiple of the 64 of one run\n")
    assert said(tmp_path / "none", short, short) == (1, "the file of constants cannot be opened\n")
    assert said(short, short, short) == (1, "the file of constants is not the one that was made with this library\n")


def test_constants_of_another_model_are_refused(model: Model, tmp_path: Path) -> None:
    """Same sizes, other weights: the stamp at the file's end tells them apart."""
    other = graph("(float[1,4] x) => (float[1,4] y) { y = Add(x, w) }", w=np.arange(4, dtype=np.float32))
    changed = graph("(float[1,4] x) => (float[1,4] y) { y = Add(x, w) }", w=np.ones(4, np.float32))
    one, two = (built_with(m, tmp_path / str(i)) for i, m in enumerate((other, changed)))
    shutil.copy(two.path / "constants.bin", one.path / "constants.bin")
    described = {"inputs": [], "outputs": [], **one.manifest}
    with pytest.raises(GatewrightError, match="not the one that was made with this library"):
        CpuTarget(None, CpuOptions()).load(Artifact(one.path, described, one.context), "device", one.context)


def test_models_of_one_process_keep_apart(tmp_path: Path) -> None:
    """Their kernels have the same names; neither may call the other's."""
    results = []
    for factor in (2, 3):
        model = graph("(float[1,4] x) => (float[1,4] y) { y = Mul(x, w) }", w=np.full(4, factor, np.float32))
        results.append(gw.compile(model, "cpu", out=tmp_path / str(factor)).load())
    x = np.ones((1, 4), np.float32)
    assert [executor.run({"x": x})["y"][0, 0] for executor in results] == [2, 3]
    library = tmp_path / "2" / "libgw_g.so"
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    assert {line.split()[-1].partition("_g_")[0] for line in symbols.splitlines()} == {"gw"}


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_mangled(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", identifier(name, "model"))
    shown = comment(name)
    assert shown[0] == shown[-1] == '"'
    assert shown.isascii()
    assert not set(shown[1:-1]) & set("*\\\n?\"#$'`/")


def test_ports_have_names_of_their_own() -> None:
    values = tuple(Value(name, (1,), "float32") for name in ("x", "X", "x_", "x_2", *HOSTILE))
    interface = Interface.of("m", values, values, 1)
    for ports in (interface.inputs, interface.outputs):
        assert len({port.field for port in ports}) == len(values)
        assert len({port.macro for port in ports}) == len(values)


def test_the_batch_is_part_of_the_name() -> None:
    assert [Interface.of("m", (), (), batch).prefix for batch in (1, 16)] == ["gw_m", "gw_m_b16"]


def test_a_type_without_a_c_type_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="complex64"):
        Interface.of("m", (Value("x", (1,), "complex64"),), (), 1)


def test_a_hostile_model_compiles_runs_and_leaks_no_name(tmp_path: Path) -> None:
    """Model, input and output are named to break out of C comments, strings, CMake and paths."""
    model = graph("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    model.graph.inputs[0].name, model.graph.outputs[0].name = 'x*/ int main(){system("id");} /*', "../../y\n)\nexecute_process(COMMAND id"
    hostile = Model(model.ir, '$(id) */ ";\n../../evil', model.history)
    artifact = gw.compile(hostile, "cpu", out=tmp_path / "out")
    files = {file.relative_to(artifact.path).as_posix() for file in artifact.path.rglob("*") if file.is_file()}
    assert files == {
        "libgw_id_evil.so", "gw_id_evil.h", "constants.bin", "manifest.json", "example/main.cpp", "example/CMakeLists.txt"
    }  # fmt: skip
    for name in ("gw_id_evil.h", "example/main.cpp", "example/CMakeLists.txt"):
        text = (artifact.path / name).read_text(encoding="ascii")
        assert not re.search(r"system\(\"|^execute_process|\$\(id|\.\./\.\./", text, re.MULTILINE), name
    x = np.array([[-1, 0, 1, 2]], np.float32)
    got = run_example(cmake(artifact, tmp_path / "build"), artifact, hostile, {hostile.inputs[0].name: x}, tmp_path)
    assert np.array_equal(got[hostile.outputs[0].name], np.maximum(x, 0))


def test_the_header_is_what_it_was(model: Model, tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    """The device's description varies from machine to machine; all else is the interface that programs are written against."""
    artifact = gw.compile(model, "cpu:x86-64-v3{threads=4}", out=tmp_path / "out")
    golden("tvm/gw_g.h", (artifact.path / "gw_g.h").read_text(encoding="utf-8"))
    golden("tvm/main.cpp", (artifact.path / "example" / "main.cpp").read_text(encoding="utf-8"))
    golden("tvm/CMakeLists.txt", (artifact.path / "example" / "CMakeLists.txt").read_text(encoding="utf-8"))


def test_the_header_is_c(model: Model, tmp_path: Path) -> None:
    """C11 and C++11, with every warning an error."""
    artifact = gw.compile(model, "cpu", out=tmp_path / "out")
    for compiler, standard in (("cc", "c11"), ("c++", "c++11")):
        source = tmp_path / ("use.c" if compiler == "cc" else "use.cpp")
        source.write_text('#include "gw_g.h"\nint64_t shape[] = GW_G_IN_X_SHAPE;\n', encoding="utf-8")
        words = [compiler, f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I", artifact.path, source]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_model_without_inputs_has_an_example(tmp_path: Path) -> None:
    """C has no empty structs, and the example then reads no file."""
    interface = Interface.of("m", (), (Value("y", (2, 3), "float32"),), 1)
    described = {"threads": 2, "batch": 1, "per_sample": False, "arena_bytes": 0, "calls": []}
    for name, text in files(interface, described, "a CPU", "x86_64", None).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    words = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I", tmp_path]
    done = subprocess.run([*words, tmp_path / "example" / "main.cpp"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unaligned_arrays_are_copied(model: Model, tmp_path: Path) -> None:
    """A C caller may pass any address; ctypes stands for one here."""
    import ctypes

    from gatewright.targets.tvm.executor import Library

    artifact = gw.compile(model, "cpu", out=tmp_path / "out")
    feeds = feeds_of(model, 1)
    with artifact.load() as executor:
        wanted = executor.run(feeds)
    arrays = [feeds["x"], feeds["k"], np.zeros((1, 8), np.float32), np.zeros((1, 16), np.float32)]
    places = []
    for array in arrays:
        raw = np.zeros(array.nbytes + 68, np.uint8)
        start = -raw.ctypes.data % 64 + 4
        raw[start : start + array.nbytes] = array.view(np.uint8).reshape(-1)
        places.append((raw, raw.ctypes.data + start))
    library = Library(artifact.path, artifact.manifest["target"], 2)
    pair = ctypes.c_void_p * 2
    library.run(pair(*(at for _, at in places[:2])), pair(*(at for _, at in places[2:])))
    library.close()
    for name, (raw, at) in zip(("y", "z"), places[2:], strict=True):
        start = at - raw.ctypes.data
        assert np.array_equal(raw[start : start + wanted[name].nbytes].view(np.float32), wanted[name].reshape(-1))


def test_a_missing_argument_is_an_error_of_its_own(model: Model, tmp_path: Path) -> None:
    import ctypes

    from gatewright.targets.tvm.executor import Library

    artifact = gw.compile(model, "cpu", out=tmp_path / "out")
    library = Library(artifact.path, artifact.manifest["target"], 1)
    with pytest.raises(GatewrightError, match="an argument is missing or out of range"):
        library.run((ctypes.c_void_p * 2)(), (ctypes.c_void_p * 2)())
    library.close()
    with pytest.raises(GatewrightError, match="an argument is missing or out of range"):
        Library(artifact.path, artifact.manifest["target"], 5000)


def test_instances_run_at_once(shared_model: Callable[[str], Path]) -> None:
    """Two of one library and one of another, each in a thread of its own: none sees another's values or threads."""
    from concurrent.futures import ThreadPoolExecutor

    loaded = [load(shared_model(f"{name}.onnx")) for name in ("tiny_ic_resnet8_int8", "tiny_ic_resnet8_int8", "tiny_kws_dscnn_int8")]
    feeds = [feeds_of(model, 40) for model in loaded]
    executors = [gw.compile(model, "cpu").load() for model in loaded]
    alone = [executor.run(fed) for executor, fed in zip(executors, feeds, strict=True)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda executor, fed: executor.run(fed), executors, feeds))
    for executor in executors:
        executor.close()
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(alone, together, strict=True) for name in a)


def test_a_forked_process_runs_on(tmp_path: Path) -> None:
    """It has none of the parent's threads: its caller does their parts, and closing waits for nobody."""
    script = (
        "import os, sys, numpy as np; from gatewright.targets.base import Artifact, TargetContext; from pathlib import Path\n"
        "e = Artifact.open(sys.argv[1], TargetContext(Path('.'))).load(); x = np.ones((1, 64, 64), np.float32)\n"
        "y = e.run({'x': x})['y']; pid = os.fork()\n"
        "same = np.array_equal(e.run({'x': x})['y'], y); e.close()\n"
        "os._exit(0 if same else 3) if pid == 0 else sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or 4 * (not same))"
    )
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = graph("(float[1,64,64] x) => (float[1,64,64] y) { y = MatMul(x, w) }", w=weights)
    artifact = gw.compile(model, "cpu{threads=3}", out=tmp_path / "out")
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", script, artifact.path], timeout=60, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizer: str, shared_model: Callable[[str], Path], tmp_path: Path) -> None:
    """The runner and the example under the sanitizers, in two threads, against an executor without them."""
    model = load(shared_model("tiny_ic_resnet8_int8.onnx"))
    flags = (f"-fsanitize={sanitizer}", "-g")
    artifact = built_with(model, tmp_path / "out", *flags)
    program = tmp_path / "example"
    library = artifact.path / artifact.manifest["target"]["library"]
    words = ["c++", "-std=c++17", "-O1", *flags, "-I", artifact.path, artifact.path / "example" / "main.cpp", library, "-o", program]
    done = subprocess.run([*words, f"-Wl,-rpath,{artifact.path}"], capture_output=True, text=True, check=False)
    if done.returncode and "cannot find" in done.stderr:
        pytest.skip(f"the compiler has no library for -fsanitize={sanitizer}")
    assert done.returncode == 0, done.stderr
    feeds = feeds_of(model, 8)
    got = run_example(program, artifact, model, feeds, tmp_path, "--threads", "3", "--repeat", "20")
    with gw.compile(model, "cpu").load() as executor:
        wanted = executor.run(feeds)
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
