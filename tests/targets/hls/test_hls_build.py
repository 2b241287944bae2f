"""Building with the vendor's tool: what is missing is named; a tool that runs has its report read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hls_kit import ARRIA, PYNQ, mlp, quantized

import gatewright as gw
from gatewright.errors import ToolFailed, ToolMissing
from gatewright.targets.base import Artifact
from gatewright.targets.hls.build import vitis_figures

REPORT = """<?xml version="1.0"?><profile>
  <UserAssignments><TargetClockPeriod>10.00</TargetClockPeriod></UserAssignments>
  <PerformanceEstimates>
    <SummaryOfTimingAnalysis><EstimatedClockPeriod>7.250</EstimatedClockPeriod></SummaryOfTimingAnalysis>
    <SummaryOfOverallLatency><Worst-caseLatency>42</Worst-caseLatency><Interval-max>21</Interval-max></SummaryOfOverallLatency>
  </PerformanceEstimates>
  <AreaEstimates><Resources><BRAM_18K>3</BRAM_18K><DSP>7</DSP><FF>1200</FF><LUT>3400</LUT><URAM>0</URAM></Resources></AreaEstimates>
</profile>"""


def test_the_report_of_a_synthesis_becomes_figures(tmp_path: Path) -> None:
    (tmp_path / "csynth.xml").write_text(REPORT)
    figures = vitis_figures(tmp_path / "csynth.xml")
    assert {name: (figure.value, figure.unit) for name, figure in figures.items() if figure.unit == name} == {
        "LUT": (3400, "LUT"), "FF": (1200, "FF"), "DSP": (7, "DSP"), "BRAM": (1.5, "BRAM"), "URAM": (0, "URAM"),
    }  # fmt: skip
    assert figures["latency"].value == pytest.approx(420e-9)
    assert figures["throughput"].value == pytest.approx(1 / 210e-9)
    assert figures["clock"].value == pytest.approx(1e9 / 7.25)
    assert {figure.source for figure in figures.values()} == {"synthesized"}


def test_a_report_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "csynth.xml").write_text("<profile>")
    with pytest.raises(ToolFailed, match="no report that can be read"):
        vitis_figures(tmp_path / "csynth.xml")


@pytest.mark.parametrize(("target", "tool"), [(PYNQ, "Vitis HLS 2022.2"), (f"{ARRIA}{{tool=quartus}}", "Intel HLS Compiler")])
def test_a_missing_tool_is_named_with_its_versions(target: str, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = gw.compile(quantized(mlp()), target, out=tmp_path / "art")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match=tool):
        gw.build(artifact)
    assert Artifact.open(artifact.path, artifact.context).stage == "lowered"


def install(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for vitis_hls at the front of PATH: it shows what build gives the tool and does with what it leaves."""
    folder.mkdir()
    program = folder / "vitis_hls"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_build_keeps_the_reports_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = gw.compile(quantized(mlp()), PYNQ, out=tmp_path / "art")
    (tmp_path / "report.xml").write_text(REPORT)
    reports = "design_prj/solution1/syn/report"
    install(tmp_path / "bin", f"test -f $2 && mkdir -p {reports} && cp {tmp_path}/report.xml {reports}/csynth.xml", monkeypatch)
    built = gw.build(artifact)
    assert built.stage == "built"
    assert built.manifest["target"]["built_with"] == "vitis_hls"
    assert built.manifest["target"]["synthesis"]["LUT"] == {"value": 3400.0, "unit": "LUT", "source": "synthesized"}


def test_a_build_that_fails_leaves_the_artifact_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = gw.compile(quantized(mlp()), PYNQ, out=tmp_path / "art")
    install(tmp_path / "bin", "echo 'ERROR: [HLS 200-1] no licence'; exit 1", monkeypatch)
    with pytest.raises(ToolFailed, match="no licence"):
        gw.build(artifact)
    assert Artifact.open(artifact.path, artifact.context).stage == "lowered"


def test_the_script_names_the_part_and_the_clock(tmp_path: Path) -> None:
    script = (gw.compile(quantized(mlp()), f"{PYNQ}{{clock_mhz=200}}", out=tmp_path / "art").path / "build.tcl").read_text()
    assert "set_part {xc7z020clg400-1}" in script
    assert "create_clock -period 5 " in script
    assert "@" not in script
