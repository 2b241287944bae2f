"""Building with the vendors' tools: what is missing is named; logs stream; errors lead to layers; reports become figures.

The tools are stand-ins at the front of PATH that print and write as the real ones do: what is tested is what build does with it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hls_kit import mlp, quantized
from test_hls_reports import CSYNTH, PATH, TIMING, UTILIZATION

import gatewright as gw
from gatewright.errors import ToolFailed, ToolMissing
from gatewright.targets.base import Artifact

REPORTS = "design_prj/solution1/syn/report"
Install = Callable[[str, str], None]


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """An accelerator for PYNQ-Z2 and a core by Quartus; tests build copies."""
    root = tmp_path_factory.mktemp("lowered")
    patch = pytest.MonkeyPatch()
    patch.setenv("GATEWRIGHT_CACHE_DIR", str(root / "cache"))
    model = quantized(mlp())
    made = {n: gw.compile(model, t, out=root / n) for n, t in (("dma", "hls:pynq-z2"), ("quartus", "hls:de10-nano{tool=quartus}"))}
    patch.undo()
    return made


@pytest.fixture
def artifact(lowered: dict[str, Artifact], tmp_path: Path) -> Artifact:
    return copy(lowered["dma"], tmp_path / "art")


def copy(artifact: Artifact, place: Path) -> Artifact:
    import shutil

    shutil.copytree(artifact.path, place)
    return Artifact.open(place, artifact.context)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A stand-in for a tool, alone on PATH with the system's own programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "csynth.xml").write_text(CSYNTH)
    (tmp_path / "utilization.rpt").write_text(UTILIZATION)
    (tmp_path / "timing.rpt").write_text(TIMING.format(slack="0.500"))
    (tmp_path / "missed.rpt").write_text(TIMING.format(slack="-0.812"))
    (tmp_path / "critical_path.rpt").write_text(PATH)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def put(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\nHERE={tmp_path}\n{script}\n")
        (folder / name).chmod(0o755 | stat.S_IXUSR)

    return put


BANNER = "****** Vitis HLS - High-Level Synthesis from C, C++ and OpenCL v2023.2 (64-bit)"
HLS = f"echo '{BANNER}'; test -f build.tcl && mkdir -p {REPORTS} && cp $HERE/csynth.xml {REPORTS}/"
VIVADO = "mkdir -p reports && cp $HERE/utilization.rpt $HERE/timing.rpt $HERE/critical_path.rpt reports/ && echo bits > design.bit"


def test_a_missing_tool_is_named_with_its_versions(
    artifact: Artifact, lowered: dict[str, Artifact], tmp_path: Path, install: Install
) -> None:
    with pytest.raises(ToolMissing, match=r"AMD Vitis HLS 2022\.2 or later"):
        gw.build(artifact)
    install("vitis_hls", "echo must not run; exit 9")
    with pytest.raises(ToolMissing, match="making the bitstream needs AMD Vivado"):
        gw.build(artifact)
    with pytest.raises(ToolMissing, match=r"Intel HLS Compiler 19\.1 to 22\.4"):
        gw.build(copy(lowered["quartus"], tmp_path / "q"))
    assert Artifact.open(artifact.path, artifact.context).stage == "lowered"


def test_a_build_keeps_the_figures_of_the_placed_design(artifact: Artifact, install: Install) -> None:
    install("vitis_hls", HLS)
    install("vivado", VIVADO)
    lines: list[str] = []
    built = gw.build(artifact, progress=lambda what, done=None, total=None: lines.append(what))
    target = built.manifest["target"]
    assert built.stage == "built"
    assert target["built_with"] == "vitis_hls + vivado"
    assert target["tool_versions"] == {"vitis_hls": "2023.2"}
    assert target["synthesis"]["LUT"] == {"value": 12345.0, "unit": "LUT", "source": "synthesized"}  # Vivado's, not HLS's
    assert target["synthesis"]["clock"]["value"] == pytest.approx(1e9 / 9.5)
    assert target["synthesis"]["latency_cycles"]["value"] == 42
    assert "design.bit" in target["products"]
    assert (built.path / "build.log").exists()
    assert (built.path / "build-2.log").exists()


def test_the_log_streams_while_the_tool_runs(artifact: Artifact, install: Install) -> None:
    install("vitis_hls", f"echo 'INFO: [HLS 200-10] Running csim'; sleep 1.3; echo 'INFO: [HLS 200-10] Synthesis'; sleep 1.3; {HLS}")
    install("vivado", VIVADO)
    lines: list[str] = []
    gw.build(artifact, progress=lambda what, done=None, total=None: lines.append(what))
    assert any("Running csim" in line for line in lines)


def test_timing_that_is_missed_names_the_layer_and_offers_no_bitstream(artifact: Artifact, install: Install) -> None:
    install("vitis_hls", HLS)
    install("vivado", f"{VIVADO}; cp $HERE/missed.rpt reports/timing.rpt; rm design.bit; echo 'gatewright: timing is missed'; exit 3")
    with pytest.raises(ToolFailed, match=r"timing is missed by 0\.812 ns: 92\.5 MHz instead of 100\.0") as error:
        gw.build(artifact)
    assert error.value.exit_code == 1
    assert "the critical path lies in" in error.value.message
    assert "layer_2_dense" in error.value.message
    assert "clock_mhz=87" in (error.value.hint or "")
    assert not (artifact.path / "design.bit").exists()


@pytest.mark.parametrize(
    ("script", "said", "hint"),
    [
        ("echo 'ERROR: [Common 17-345] A valid license was not found'; exit 1", "valid license", "LM_LICENSE_FILE"),
        (
            "echo \"ERROR: [XFORM 203-504] Stop unrolling loop 'Product1' in function 'nnet::dense_latency<config2>'\"; exit 1",
            "the layers that its errors name: 'Gemm_0' (layer_1_dense)", "reuse",
        ),
        ("echo 'std::bad_alloc: out of memory'; exit 1", "out of memory", "reuse"),
        ("echo working; kill -9 $$", "SIGKILL", ""),
        (f"mkdir -p {REPORTS}; echo half > {REPORTS}/other.xml; exit 0", "ended without", ""),
    ],
    ids=["licence", "unroll", "memory", "killed", "no report"],
)  # fmt: skip
def test_a_tool_that_fails_says_why_and_leaves_nothing(script: str, said: str, hint: str, artifact: Artifact, install: Install) -> None:
    before = sorted(path.relative_to(artifact.path) for path in artifact.path.rglob("*"))
    nodes = artifact.manifest["target"]["layers"]
    install("vitis_hls", script)
    install("vivado", VIVADO)
    with pytest.raises(ToolFailed) as error:
        gw.build(artifact)
    assert said.replace("Gemm_0", nodes["layer_1_dense"]) in error.value.message
    assert hint in (error.value.hint or "")
    log = error.value.message.split("log: ")[-1].split("\n")[0]
    assert Path(log).exists()
    assert sorted(path.relative_to(artifact.path) for path in artifact.path.rglob("*")) == before
    assert Artifact.open(artifact.path, artifact.context).stage == "lowered"


def test_a_tool_that_hangs_is_stopped(artifact: Artifact, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWRIGHT_TIME_LIMIT_S", "2")
    install("vitis_hls", "echo 'INFO: waiting for a licence'; sleep 60")
    install("vivado", VIVADO)
    with pytest.raises(ToolFailed, match=r"(?s)longer than 2 s.*waiting for a licence.*log"):
        gw.build(artifact)
    assert Artifact.open(artifact.path, artifact.context).stage == "lowered"


def test_the_newer_and_the_older_name_of_vitis_get_their_own_arguments(artifact: Artifact, install: Install) -> None:
    install("vitis-run", f'echo "given $@"; {HLS}')
    install("vivado", VIVADO)
    built = gw.build(artifact)
    assert "given --mode hls --tcl build.tcl" in (built.path / "build.log").read_text()


def test_the_script_names_the_part_and_the_clock(tmp_path: Path) -> None:
    script = (gw.compile(quantized(mlp()), "hls:pynq-z2{clock_mhz=200}", out=tmp_path / "art").path / "build.tcl").read_text()
    assert "set part {xc7z020clg400-1}" in script
    assert "set clock_ns 5\n" in script
    assert "@" not in script
