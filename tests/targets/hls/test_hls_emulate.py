"""The emulator against ref, bit for bit; bugs planted in the lowered files are caught and the layer is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hls_kit import ARRIA, PYNQ, cnn, executor, mismatches, mlp, needs_gxx, noise, quantized

import gatewright as gw
from gatewright.errors import MismatchError, ToolFailed, ToolMissing
from gatewright.frontend.batch import with_batch
from gatewright.frontend.reference import Reference
from gatewright.targets import toolchain
from gatewright.targets.base import Artifact
from gatewright.targets.hls import emulator

pytestmark = needs_gxx


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ("bits=8,grid=pow2", PYNQ),
        ("bits=4,grid=affine,per=channel", f"{PYNQ}{{io=stream}}"),
        ("bits=6,weight_bits=4,grid=symmetric,per=channel", f"{ARRIA}{{tool=quartus}}"),
    ],
)
def test_mlp(options: str, target: str, tmp_path: Path) -> None:
    assert mismatches(quantized(mlp(), options), target, tmp_path) == 0


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ("bits=8,grid=pow2", f"{PYNQ}{{io=parallel}}"),
        ("bits=8,grid=affine", f"{PYNQ}{{io=stream,reuse=6}}"),
        ("bits=8,grid=pow2,per=channel", f"{ARRIA}{{tool=quartus,io=stream,reuse=4}}"),
        *(
            pytest.param(f"bits=8,grid={grid}", f"hls:{device}{{tool={tool},io={io}}}", marks=pytest.mark.slow)
            for tool, device in (("vivado", "pynq-z2"), ("vivadoaccelerator", "zcu102"), ("oneapi", "10ax115"), ("catapult", "zcu102"))
            for io, grid in (("stream", "affine"), ("parallel", "pow2"))
        ),
    ],
)
def test_cnn(options: str, target: str, tmp_path: Path) -> None:
    assert mismatches(quantized(cnn(), options), target, tmp_path) == 0


def test_a_trace_has_the_inner_tensors_by_their_onnx_names(tmp_path: Path) -> None:
    model = quantized(cnn())
    feeds = noise(model, 5, seed=9)
    expected = Reference(model).run(feeds, trace=True)
    with executor(model, f"{PYNQ}{{io=stream}}", tmp_path) as running:
        traced = running.trace(feeds)
    shared = set(traced) & set(expected)
    assert {"r1", "p", "r2", "c3", "g", "y"} <= {name.removesuffix("_prequant") for name in shared}
    for name in shared:
        assert np.array_equal(traced[name], expected[name]), name


def test_the_second_load_compiles_and_verifies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized(mlp())
    executor(model, PYNQ, tmp_path / "one").close()

    def never(*_: object, **__: object) -> float:
        raise AssertionError("the cached emulator was not taken")

    monkeypatch.setattr(emulator, "compile_emulator", never)
    executor(model, PYNQ, tmp_path / "two").close()


def test_samples_can_be_run_again_and_in_any_number(tmp_path: Path) -> None:
    model = quantized(mlp())
    with executor(model, PYNQ, tmp_path) as running:
        for count in (1, 33, 2):
            feeds = noise(model, count, seed=count)
            assert np.array_equal(running.run(feeds)["y"], Reference(model).run(feeds)["y"])


def replace(pattern: str, by: str, file: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / file
        text, count = re.subn(pattern, by, path.read_text(), count=1)
        assert count, f"{pattern} is not in {file}"
        path.write_text(text)

    return edit


@pytest.mark.parametrize(
    ("options", "edit", "layer"),
    [
        pytest.param("bits=8,grid=pow2", replace("AP_RND_CONV", "AP_TRN", "firmware/defines.h"), "gemm_h", id="truncation"),
        pytest.param("bits=8,grid=pow2", replace("AP_RND_CONV", "AP_RND", "firmware/defines.h"), "gemm_h", id="half up"),
        pytest.param("bits=4,grid=pow2", replace("AP_SAT", "AP_WRAP", "firmware/defines.h"), "gemm_h", id="wraparound"),
        pytest.param("bits=8,grid=affine", replace(r"(?s)(struct config5.*?lowest\(\) \{ return )", r"\g<1>1 + ", "firmware/parameters.h"),
                     "gemm_y", id="zero point"),
        pytest.param("bits=8,grid=pow2", replace(r"^[^,]*,", "0.9,", "firmware/weights/b3.txt"), "gemm_y", id="bias"),
        pytest.param("bits=8,grid=pow2", replace(r"ap_fixed<\d+,(\d+)> layer_1_dense_accum_t", r"ap_fixed<12,\1> layer_1_dense_accum_t",
                                                 "firmware/defines.h"), "gemm_h", id="narrow accumulator"),
    ],
)  # fmt: skip
def test_a_planted_bug_is_caught_and_the_layer_named(options: str, edit: Callable[[Path], None], layer: str, tmp_path: Path) -> None:
    model = mlp()
    named = model.copy_ir()
    for node in named.graph:
        node.name = f"{node.op_type}_{node.outputs[0].name}".lower()
    model = quantized(model.with_ir(named), options)

    def plant(folder: Path) -> None:
        edit(folder)
        top, traced = folder / "firmware" / "design.cpp", folder / "traced.cpp"
        assert top.exists()
        assert traced.exists()

    with pytest.raises(MismatchError, match=f"first layer that differs is '{layer}'"):
        executor(model, PYNQ, tmp_path, plant)


def test_a_crash_of_the_design_is_an_error_message(tmp_path: Path) -> None:
    def crash(folder: Path) -> None:
        source = folder / "firmware" / "design.cpp"
        source.write_text("#include <cstdlib>\nstatic int never = (abort(), 0);\n" + source.read_text())

    with pytest.raises(ToolFailed, match="emulator stopped with signal 6"):
        executor(quantized(mlp()), PYNQ, tmp_path, crash)


def test_code_that_does_not_compile_shows_the_compilers_words(tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        source = folder / "firmware" / "design.cpp"
        source.write_text(source.read_text() + "\nnonsense;\n")

    with pytest.raises(ToolFailed, match=r"(?s)compiling the emulator.*nonsense.*log"):
        executor(quantized(mlp()), PYNQ, tmp_path, spoil)


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = gw.compile(quantized(mlp()), PYNQ, out=tmp_path / "art")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match=r"g\+\+.*apt install"):
        artifact.load("emulate")


@pytest.mark.parametrize(
    "target",
    [
        f"{PYNQ}{{io=stream}}", f"{ARRIA}{{tool=quartus,io=parallel}}",
        *(pytest.param(target, marks=pytest.mark.slow) for target in ("hls:alveo-u50", f"{PYNQ}{{tool=catapult}}", f"{PYNQ}{{design=ip}}")),
    ],
)  # fmt: skip
def test_the_testbench_for_the_vendors_simulator_passes_and_can_fail(target: str, tmp_path: Path) -> None:
    folder = gw.compile(quantized(mlp()), target, out=tmp_path / "art").path
    gxx = toolchain.GXX.require("this test")
    sources = [folder / "testbench.cpp", *sorted((folder / "firmware").glob("design*.cpp"))]
    headers = [f"-I{path}" for path in emulator.includes(folder)]
    options = ["-std=c++17", "-O1", "-w", *headers, f'-DWEIGHTS_DIR="{folder}/firmware/weights"']
    compiler: list[str | Path] = [gxx, *options, *sources, "-o", folder / "bench"]
    toolchain.run(compiler, cwd=folder, log=tmp_path / "gxx.log", what="compiling the testbench", time_limit_s=300)
    said = toolchain.run([folder / "bench"], cwd=folder, log=tmp_path / "bench.log", what="the testbench", time_limit_s=60)
    vectors = len((folder / "tb_data" / "expected.txt").read_text().splitlines())
    assert f"{vectors * 3} values compared, 0 different" in said
    expected = folder / "tb_data" / "expected.txt"
    expected.write_text(expected.read_text().replace(" ", " 1", 1))
    with pytest.raises(ToolFailed, match="1 different"):
        toolchain.run([folder / "bench"], cwd=folder, log=tmp_path / "bench.log", what="the testbench", time_limit_s=60)


def test_the_manifest_says_what_runs_on_the_host(tmp_path: Path) -> None:
    artifact = gw.compile(quantized(mlp()), PYNQ, out=tmp_path / "art")
    described = artifact.manifest["target"]
    assert (described["host_pre"], described["host_post"]) == ("host_pre.onnx", "host_post.onnx")
    assert set(described["layers"]) == {layer["name"] for layer in json.loads((artifact.path / "network.json").read_text())["layers"]}
    assert any("on the host" in note for note in gw.check(quantized(mlp()), PYNQ).notes)


def test_a_model_of_a_fixed_batch_becomes_a_design_for_one_sample(tmp_path: Path) -> None:
    model = with_batch(quantized(mlp()), 3)
    assert model.inputs[0].shape == (3, 6)
    assert mismatches(model, PYNQ, tmp_path, samples=7) == 0


def test_an_artifact_is_opened_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized(mlp())
    artifact = gw.compile(model, PYNQ, out=tmp_path / "art")
    monkeypatch.chdir(tmp_path)
    feeds = noise(model, 3)
    with Artifact.open("art", artifact.context).load("emulate") as running:
        assert np.array_equal(running.run(feeds)["y"], Reference(model).run(feeds)["y"])
