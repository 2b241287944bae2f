"""The vendor's tool on a lowered artifact, and what its report says. Nothing here runs unless somebody asks for ``build``."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from gatewright.errors import ToolFailed
from gatewright.hw.measurement import Measurement
from gatewright.progress import Progress
from gatewright.targets import toolchain

_REPORT = Path("design_prj/solution1/syn/report/csynth.xml")
_AREA = {"LUT": "LUT", "FF": "FF", "DSP": "DSP", "BRAM_18K": "BRAM", "URAM": "URAM"}
"""Names in Vitis's report to names in ours; its BRAM is counted in halves (18 Kb), ours in blocks of 36 Kb."""


def build(folder: Path, tool: str, *, part: str, clock_ns: float, time_limit_s: float, progress: Progress) -> dict[str, Any]:
    """Synthesize in ``folder``; returns the manifest's additions: the tool's name and the figures of its report."""
    if tool == "vitis":
        program = toolchain.VITIS.require("building an hls design for AMD parts")
        arguments = ["--mode", "hls", "--tcl", "build.tcl"] if program.name == "vitis-run" else ["-f", "build.tcl"]
    else:
        program = toolchain.QUARTUS.require("building an hls design for Intel parts")
        clock = f"{1e3 / clock_ns:g}MHz"
        arguments = [f"-march={part}", "--clock", clock, "testbench.cpp", "firmware/design.cpp", "-o", "design-fpga"]
    log = folder / "build.log"
    what = f"synthesis with {program.name}"
    toolchain.run([program, *arguments], cwd=folder, log=log, what=what, time_limit_s=time_limit_s, progress=progress)
    figures = vitis_figures(folder / _REPORT) if tool == "vitis" else {}
    return {"built_with": program.name, "synthesis": {name: figure.to_json() for name, figure in figures.items()}}


def vitis_figures(report: Path) -> dict[str, Measurement]:
    """LUT, FF, DSP, BRAM, latency, throughput and clock of a csynth.xml (Vitis HLS 2020.1 and later)."""
    try:
        root = ElementTree.parse(report).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ToolFailed(f"synthesis left no report that can be read: {report}: {error}", hint="read build.log beside it") from None
    found: dict[str, Measurement] = {}
    for theirs, ours in _AREA.items():
        count = root.findtext(f"AreaEstimates/Resources/{theirs}")
        if count is not None:
            value = float(count) / 2 if ours == "BRAM" else float(count)
            found[ours] = Measurement(value, ours, "synthesized")
    period_ns = root.findtext("PerformanceEstimates/SummaryOfTimingAnalysis/EstimatedClockPeriod")
    target_ns = root.findtext("UserAssignments/TargetClockPeriod")
    if period_ns is not None:
        found["clock"] = Measurement(1e9 / float(period_ns), "Hz", "synthesized")
    # The design runs at the clock that was asked for if it can, else at the one it reached.
    seconds = 1e-9 * max(float(target_ns or 0), float(period_ns or 0))
    latency = root.findtext("PerformanceEstimates/SummaryOfOverallLatency/Worst-caseLatency")
    interval = root.findtext("PerformanceEstimates/SummaryOfOverallLatency/Interval-max")
    if seconds and latency and latency.isdigit():
        found["latency"] = Measurement(int(latency) * seconds, "s", "synthesized")
    if seconds and interval and interval.isdigit():
        found["throughput"] = Measurement(1 / (max(1, int(interval)) * seconds), "1/s", "synthesized")
    return found
