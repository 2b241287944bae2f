"""Artifacts for other CPUs: compiled here, run under qemu where it can, labelled where nobody has run them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph

import gatewright as gw
from gatewright.errors import ToolMissing, UnsupportedError
from gatewright.frontend.data import Dataset
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.hw.device import Processor, devices, host, load_device
from gatewright.targets.base import Artifact, TargetContext
from gatewright.targets.tvm import portability
from gatewright.targets.tvm.machine import Machine
from gatewright.targets.tvm.target import CpuOptions, CpuTarget

ARM = ("raspberry-pi-4", "raspberry-pi-5", "graviton3")
LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")
CPUS = [device for device in devices("cpu") if isinstance(device, Processor)]


def cpu(name: str) -> Processor:
    device = load_device(name)
    assert isinstance(device, Processor)
    return device


def need_emulation(name: str) -> None:
    device = cpu(name)
    for tool in (portability.linker_for(device), portability.cxx_for(device), portability.qemu_for(device)):
        if tool.find() is None:
            pytest.skip(f"{tool.programs[0]} is not installed")


@pytest.fixture
def model() -> Model:
    random = np.random.default_rng(0)
    return graph(
        "(float[1,3,8,8] x) => (float[1,10] y)"
        "{ a = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(a) g = GlobalAveragePool(r) f = Flatten(g) h = Gemm(f, v) y = Softmax(h) }",
        w=random.standard_normal((16, 3, 3, 3)).astype(np.float32), b=random.standard_normal(16).astype(np.float32),
        v=random.standard_normal((16, 10)).astype(np.float32),
    )  # fmt: skip


X = np.random.default_rng(1).standard_normal((3, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("name", [*ARM, "x86-64-v2", "x86-64-v3"])
def test_float_models_agree_with_ref_under_emulation(name: str, model: Model) -> None:
    need_emulation(name)
    with gw.compile(model, f"cpu:{name}{{threads=2}}").load("emulate") as executor:
        assert executor.mode == "emulate"
        y, trace = executor.run({"x": X})["y"], executor.trace({"x": X})
    wanted = Reference(model).run({"x": X}, trace=True)
    assert y.shape == (3, 10)
    assert np.allclose(y, wanted["y"], atol=1e-5)
    assert np.allclose(trace["r"], wanted["r"], atol=1e-5)


@pytest.mark.parametrize(("device", "name"), [("raspberry-pi-4", "tiny_kws_dscnn_int8"), ("raspberry-pi-5", "tiny_ic_resnet8_int8")])
def test_int8_models_are_exact_under_emulation(device: str, name: str, shared_model: Callable[[str], Path]) -> None:
    need_emulation(device)
    model = load(shared_model(f"{name}.onnx"))
    info = model.inputs[0]
    feeds = {info.name: np.random.default_rng(0).integers(-128, 128, (4, *info.shape[1:])).astype(np.int8)}
    wanted = Reference(model).run(feeds, trace=True)
    with gw.compile(model, f"cpu:{device}").load() as executor:
        assert executor.mode == "emulate"
        got = {**executor.run(feeds), **{f"traced {name}": array for name, array in executor.trace(feeds).items() if name in wanted}}
    assert len(got) > 10
    assert [name for name, array in got.items() if not np.array_equal(array, wanted[name.removeprefix("traced ")])] == []


def test_any_number_of_samples_in_batches(model: Model) -> None:
    """The last batch is padded, and what was computed for the padding is cut off."""
    need_emulation("raspberry-pi-5")
    with gw.compile(model, "cpu:raspberry-pi-5{batch=2}").load() as executor:
        y, trace = executor.run({"x": X})["y"], executor.trace({"x": X})
    wanted = Reference(model).run({"x": X}, trace=True)
    assert y.shape == (3, 10)
    assert np.allclose(y, wanted["y"], atol=1e-5)
    assert np.allclose(trace["r"], wanted["r"], atol=1e-5)


@pytest.mark.parametrize("name", LEVELS)
def test_code_of_a_level_runs_on_what_has_it(name: str, model: Model) -> None:
    if portability.unverified(cpu(name)):
        pytest.skip(f"this machine is no {name}")
    artifact = gw.compile(model, f"cpu:{name}")
    assert artifact.manifest["target"]["unverified"] is None
    with artifact.load() as executor:
        assert executor.mode == "device"
        assert np.allclose(executor.run({"x": X})["y"], Reference(model).run({"x": X})["y"], atol=1e-5)


def test_compare_emulates_what_is_not_here(model: Model) -> None:
    need_emulation("raspberry-pi-5")
    row = gw.compare(model, "cpu:raspberry-pi-5", Dataset({"x": X}, labels=np.zeros(3, np.int64))).rows[0]
    assert row.status == "ok"
    assert row.emulation_rate is not None
    assert row.latency is None or row.latency.source == "estimated"
    assert any(note.startswith("unverified on a CPU") for note in row.notes)


def test_the_example_is_cross_compiled_as_its_cmake_says(model: Model, tmp_path: Path) -> None:
    need_emulation("raspberry-pi-4")
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    artifact = gw.compile(model, "cpu:raspberry-pi-4", out=tmp_path / "out")
    lines = (artifact.path / "example" / "CMakeLists.txt").read_text(encoding="ascii")
    options = re.findall(r"-D[A-Z_]+=\S+", lines)
    assert len(options) == 3
    for words in (["-S", artifact.path / "example", "-B", tmp_path / "build", *options], ["--build", tmp_path / "build"]):
        done = subprocess.run(["cmake", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "x").write_bytes(X.tobytes())
    qemu = ["qemu-aarch64", "-cpu", "cortex-a72", "-L", "/usr/aarch64-linux-gnu", tmp_path / "build" / "example"]
    subprocess.run([*qemu, artifact.path / "constants.bin", tmp_path / "x", tmp_path / "y"], check=True)
    y = np.fromfile(tmp_path / "y", np.float32).reshape(3, 10)
    assert np.allclose(y, Reference(model).run({"x": X})["y"], atol=1e-5)


def lacking_host(monkeypatch: pytest.MonkeyPatch, *features: str) -> None:
    """This machine, had it been made without ``features``."""
    less = replace(host(), isa=tuple(feature for feature in host().isa if feature not in features))
    monkeypatch.setattr(portability, "host", lambda: less)


def test_what_this_machine_lacks_is_assembled_and_labelled(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    if portability.architecture(None) != "x86_64":
        pytest.skip("this machine is no x86-64")
    lacking_host(monkeypatch, "amx-int8", "avx512fp16")
    text = "cpu:sapphire-rapids"
    notes = gw.check(model, text).notes
    assert any(re.search(r"unverified: .*lacks \(.*amx-int8.*avx512fp16", note) for note in notes)
    artifact = gw.compile(model, text)
    assert "amx-int8" in artifact.manifest["target"]["unverified"]
    with pytest.raises(UnsupportedError, match=r"sapphire-rapids, whose instructions this CPU lacks: .*amx-int8"):
        artifact.load()
    with pytest.raises(UnsupportedError, match=r"qemu emulates none of amx-bf16"):
        artifact.load("emulate")
    row = gw.compare(model, text, Dataset({"x": X}, labels=np.zeros(3, np.int64))).rows[0]
    assert row.status == "unsupported"
    assert row.reason is not None
    assert "amx-int8" in row.reason
    assert "unverified" in row.reason


def test_the_library_itself_refuses_another_cpu(tmp_path: Path) -> None:
    """Where nobody asks Python first: create looks at the CPU before a kernel runs."""
    from gatewright.targets.tvm.executor import Library

    if portability.architecture(None) != "x86_64" or "avx512fp16" in host().isa:
        pytest.skip("this machine has the instructions that the test wants missing")
    if "avx512f" in host().isa:
        need_emulation("x86-64-v4")
    model = graph("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    artifact = gw.compile(model, "cpu:x86-64-v4", out=tmp_path / "out")
    program = tmp_path / "example"
    library = artifact.path / "libgw_g.so"
    words = ["c++", "-std=c++17", "-I", artifact.path, artifact.path / "example" / "main.cpp", library, "-o", program]
    subprocess.run([*words, f"-Wl,-rpath,{artifact.path}"], check=True)
    (tmp_path / "x").write_bytes(bytes(16))
    if "avx512f" not in host().isa:
        with pytest.raises(Exception, match="this CPU lacks instructions"):
            Library(artifact.path, artifact.manifest["target"], 1)
        return
    qemu = ["qemu-x86_64", "-cpu", "Haswell", program, artifact.path / "constants.bin", tmp_path / "x", tmp_path / "y"]
    done = subprocess.run(qemu, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (1, "this CPU lacks instructions that the code uses")


def test_this_machines_artifacts_are_not_emulated(model: Model) -> None:
    with pytest.raises(UnsupportedError, match="no mode 'emulate'"):
        gw.compile(model, "cpu").load("emulate")


@pytest.mark.parametrize(
    ("tool", "said"),
    [("linker_for", r"gcc-aarch64-linux-gnu"), ("cxx_for", r"g\+\+-aarch64-linux-gnu"), ("qemu_for", r"apt install qemu-user")],
)
def test_a_missing_tool_is_named_with_its_package(tool: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if portability.architecture(None) == "aarch64":
        pytest.skip("this machine is an aarch64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match=said):
        getattr(portability, tool)(cpu("raspberry-pi-5")).require("a test")


def test_emulation_without_qemu_says_what_to_install(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if portability.architecture(None) == "aarch64":
        pytest.skip("this machine is an aarch64")
    target = CpuTarget(cpu("raspberry-pi-5"), CpuOptions())
    described = {"per_sample": True, "batch": 1, "shapes": {}, "calls": []}
    manifest: dict[str, Any] = {"inputs": [], "outputs": [], "target": described, "files": {}, "model": {"name": "m"}}
    artifact = Artifact(tmp_path, manifest, TargetContext(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match=r"emulating m on raspberry-pi-5 needs qemu.*apt install qemu-user"):
        target.load(artifact, "emulate", TargetContext(tmp_path))


@pytest.mark.parametrize("name", ARM)
def test_arm_is_neon(name: str) -> None:
    """128 bits and 32 registers; SVE is not assumed, not even where there is some."""
    assert Machine.of(cpu(name), 4) == Machine.of(replace(cpu(name), vector_bits=2048), 4)
    machine = Machine.of(cpu(name), 4)
    assert (machine.vector_bits, machine.vector_registers, machine.lanes("float32")) == (128, 32, 4)


@pytest.mark.parametrize(("name", "bits", "registers"), [("x86-64-v2", 128, 16), ("x86-64-v3", 256, 16), ("x86-64-v4", 512, 32)])
def test_registers_of_the_levels(name: str, bits: int, registers: int) -> None:
    machine = Machine.of(cpu(name), 4)
    assert (machine.vector_bits, machine.vector_registers) == (bits, registers)


def test_no_sve_instruction_for_graviton(model: Model) -> None:
    objdump = shutil.which("aarch64-linux-gnu-objdump")
    if objdump is None:
        pytest.skip("aarch64-linux-gnu-objdump is not installed")
    artifact = gw.compile(model, "cpu:graviton3")
    code = subprocess.run([objdump, "-d", artifact.path / "libgw_g.so"], capture_output=True, text=True, check=True).stdout
    assert re.search(r"\bfmla\s+v\d+\.4s", code), "NEON multiply-adds"
    assert not re.search(r"\bz\d+\.[bhsd]\b", code), "an SVE register"


@pytest.mark.parametrize("name", LEVELS)
def test_no_instruction_above_its_level(name: str, model: Model) -> None:
    """Registers tell: zmm is AVX-512, ymm is AVX."""
    objdump = shutil.which("objdump") if portability.architecture(None) == "x86_64" else None
    if objdump is None:
        pytest.skip("objdump for x86-64 is not installed")
    artifact = gw.compile(model, f"cpu:{name}")
    code = subprocess.run([objdump, "-d", artifact.path / "libgw_g.so"], capture_output=True, text=True, check=True).stdout
    assert ("%ymm" in code, "%zmm" in code, "vfmadd" in code) == {
        "x86-64-v2": (False, False, False), "x86-64-v3": (True, False, True), "x86-64-v4": (True, True, True)
    }[name]  # fmt: skip


def test_levels_hold_the_psabis_features() -> None:
    """System V ABI, AMD64 supplement, section 3.1.1; each level has those below it."""
    v2 = {"cx16", "sahf", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"}
    v3 = v2 | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"}
    v4 = v3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
    assert [set(cpu(name).isa) for name in LEVELS] == [v2, v3, v4]


@pytest.mark.parametrize("device", CPUS, ids=lambda device: device.name)
def test_manifests_say_what_was_not_run_here(device: Processor) -> None:
    label = portability.unverified(device)
    runs_here = portability.is_native(device) and set(device.isa) <= set(host().isa)
    assert (label is None) == runs_here


@pytest.mark.parametrize("name", ["cpu", "cpu:raspberry-pi-5", "cpu:x86-64-v3{threads=4}"])
def test_the_same_bytes_in_another_place(name: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Library, constants, header and example hold no path, no time and no order of a set."""
    if ":" in name and portability.linker_for(cpu(name.split(":")[1].split("{")[0])).find() is None:
        pytest.skip("the device's compiler is not installed")
    found = []
    for place, seed in (("a", "1"), ("a/longer/place", "2")):
        monkeypatch.setenv("GATEWRIGHT_CACHE", str(tmp_path / place / "cache"))
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        artifact = gw.compile(model, name, out=tmp_path / place / "out")
        found.append({file: (artifact.path / file).read_bytes() for file in artifact.manifest["files"]})
        found[-1]["manifest"] = json.dumps(artifact.manifest, sort_keys=True).encode()
    assert found[0].keys() == found[1].keys()
    assert [file for file in found[0] if found[0][file] != found[1][file]] == []
