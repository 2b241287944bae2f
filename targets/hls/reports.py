"""What the vendors' reports say, as figures: every value here was read in a file that a tool wrote (source: synthesized).

Formats: csynth.xml of Vitis HLS and Vivado HLS (UG1399, "csynth.xml"); Vivado's report_utilization, report_timing_summary and
report_timing (UG835); i++'s reports/lib/*.js and oneAPI's reports/resources/json/*.ndjson; Catapult's rtl.rpt. A report that
lacks a figure gives none: nothing is guessed.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gatewright.errors import ToolFailed
from gatewright.hw.measurement import Measurement

Figures = dict[str, Measurement]

_AREA = {"LUT": "LUT", "FF": "FF", "DSP": "DSP", "DSP48E": "DSP", "BRAM_18K": "BRAM", "URAM": "URAM"}
"""Names in csynth.xml to names in ours; its BRAM is counted in halves (18 Kb), ours in blocks of 36 Kb."""

_UTILIZATION = {
    "LUT": ("Slice LUTs", "CLB LUTs"), "FF": ("Slice Registers", "CLB Registers"), "DSP": ("DSPs", "DSP Slices"),
    "BRAM": ("Block RAM Tile",), "URAM": ("URAM",),
}  # fmt: skip
"""Rows of report_utilization: of 7 series and of UltraScale. A block RAM tile is 36 Kb, and half of one counts as 0.5."""


def csynth(report: Path) -> Figures:
    """LUT, FF, DSP, BRAM, latency, interval, throughput and clock of a csynth.xml: HLS's own estimate of what it made."""
    try:
        root = ElementTree.parse(report).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ToolFailed(f"synthesis left no report that can be read: {report}: {error}", hint="read build.log beside it") from None
    found: Figures = {}
    for theirs, ours in _AREA.items():
        count = root.findtext(f"AreaEstimates/Resources/{theirs}")
        if count is not None:
            found[ours] = _count(ours, float(count) / 2 if ours == "BRAM" else float(count))
    period_ns = root.findtext("PerformanceEstimates/SummaryOfTimingAnalysis/EstimatedClockPeriod")
    target_ns = root.findtext("UserAssignments/TargetClockPeriod")
    if period_ns is not None:
        found["clock"] = Measurement(1e9 / float(period_ns), "Hz", "synthesized")
    # The design runs at the clock that was asked for if it can, else at the one it reached.
    seconds = 1e-9 * max(float(target_ns or 0), float(period_ns or 0))
    overall = "PerformanceEstimates/SummaryOfOverallLatency"
    return found | _speed(root.findtext(f"{overall}/Worst-caseLatency"), root.findtext(f"{overall}/Interval-max"), seconds)


def utilization(report: Path) -> Figures:
    """LUT, FF, DSP, BRAM and URAM of Vivado's report_utilization: the first row of each name with a number."""
    found: Figures = {}
    for line in _text(report).splitlines():
        cells = [cell.strip().rstrip("*") for cell in line.split("|")]
        if len(cells) < 4:
            continue
        for ours, names in _UTILIZATION.items():
            if ours not in found and cells[1] in names and _is_number(cells[2]):
                found[ours] = _count(ours, float(cells[2]))
    return found


def slack_ns(report: Path) -> float | None:
    """The worst negative slack in the Design Timing Summary of report_timing_summary; None where it has none (no clock)."""
    lines = _text(report).splitlines()
    for index, line in enumerate(lines):
        if re.match(r"\s*WNS\(ns\)", line):
            values = next((text.split() for text in lines[index + 2 : index + 5] if text.strip()), [])
            if values and _is_number(values[0]):
                return float(values[0])
    return None


def timing(report: Path, clock_ns: float) -> Figures:
    """The clock that the placed design reaches: its period is the asked one less the slack."""
    slack = slack_ns(report)
    return {} if slack is None else {"clock": Measurement(1e9 / (clock_ns - slack), "Hz", "synthesized")}


def worst_path(report: Path) -> tuple[str, ...]:
    """Source and destination of the first path in report_timing, then every cell on it: what its layer is told by."""
    text = _text(report)
    ends = re.findall(r"^\s*(?:Source|Destination):\s+(\S+)", text, re.MULTILINE)[:2]
    first = re.split(r"^Slack", text, flags=re.MULTILINE)[1:2]
    return (*ends, *re.findall(r"\b(\S*config\d+\S*|\S*layer_?\d+\S*)", first[0] if first else ""))


def intel_hls(project: Path) -> Figures:
    """i++'s project: estimates of report_data.js, cycles of verification_data.js, and where Quartus ran, its quartus_data.js."""
    lib, found = project / "reports" / "lib", Figures()
    area = _js(lib / "report_data.js").get("areaJSON", {})
    if isinstance(total := area.get("total"), list):
        found |= {ours: _count(ours, float(value)) for ours, value in zip(("LUT", "FF", "BRAM", "DSP"), total, strict=False)}
    placed = _js(lib / "quartus_data.js").get("quartusJSON", {})
    found |= _quartus(placed)
    functions = _js(lib / "verification_data.js").get("verifJSON", {}).get("functions") or [{}]
    data = functions[0].get("data") or []
    if len(data) >= 3 and "clock" in found:
        # Each is "min,max,avg" in cycles.
        worst = [str(cell).split(",")[min(1, str(cell).count(","))].strip() for cell in data[1:3]]
        found |= _speed(worst[0], worst[1], 1 / found["clock"].value)
    return found


def oneapi(project: Path) -> Figures:
    """oneAPI's project: the total of summary.ndjson, the slowest loop of loop_attr.ndjson, Quartus's quartus.ndjson."""
    folder, found = project / "reports" / "resources" / "json", Figures()
    for row in _ndjson(folder / "summary.ndjson"):
        if row.get("name") == "Total" and isinstance(row.get("data"), list):
            found |= {ours: _count(ours, float(value)) for ours, value in zip(("LUT", "FF", "BRAM", "DSP"), row["data"], strict=False)}
    loops = [row for row in _ndjson(folder / "loop_attr.ndjson") if {"af", "ii", "lt"} <= set(row)]
    clocks = [float(row["af"]) for row in loops if _is_number(str(row["af"]))]
    if clocks:
        found["clock"] = Measurement(min(clocks) * 1e6, "Hz", "synthesized")
        intervals = [int(row["ii"]) for row in loops if str(row["ii"]).isdigit()]
        latencies = [float(row["lt"]) for row in loops if _is_number(str(row["lt"]))]
        latency, interval = (str(int(max(values))) if values else None for values in (latencies, intervals))
        found |= _speed(latency, interval, 1 / found["clock"].value)
    for row in _ndjson(folder / "quartus.ndjson"):
        found |= _quartus(row)
    return found


def catapult(solution: Path, clock_ns: float) -> Figures:
    """Cycles of rtl.rpt ("Design Total: operations latency throughput …"), area and slack of the Vivado that Catapult ran."""
    found = Figures()
    total = re.search(r"^\s*Design Total:\s+\d+\s+(\d+)\s+(\d+)", _text(solution / "rtl.rpt"), re.MULTILINE)
    if total:
        found |= _speed(total[1], total[2], clock_ns * 1e-9)
    vivado = solution / "vivado_concat_v"
    if (vivado / "utilization_synth.rpt").exists():
        found |= utilization(vivado / "utilization_synth.rpt")
    if (vivado / "timing_summary_synth.rpt").exists():
        found |= timing(vivado / "timing_summary_synth.rpt", clock_ns)
    return found


def _quartus(data: dict[str, Any]) -> Figures:
    """Fitted figures, the whole design's row (the last); none where Quartus has not run ("TBD")."""
    clocks = data.get("quartusFitClockSummary", {}).get("nodes") or [{}]
    clock = clocks[0].get("clock fmax", clocks[0].get("clock"))
    rows = data.get("quartusFitResourceUsageSummary", {}).get("nodes") or [{}]
    if clock is None or not _is_number(str(clock)):
        return {}
    found = {"clock": Measurement(float(clock) * 1e6, "Hz", "synthesized")}
    for theirs, ours in (("alut", "LUT"), ("reg", "FF"), ("dsp", "DSP"), ("ram", "BRAM")):
        if _is_number(str(rows[-1].get(theirs))):
            found[ours] = _count(ours, float(rows[-1][theirs]))
    return found


def _speed(latency: str | None, interval: str | None, seconds: float) -> Figures:
    """Of counts of cycles as texts ("undef" and "?" are none)."""
    found: Figures = {}
    if seconds and latency and latency.isdigit():
        found["latency_cycles"] = Measurement(float(latency), "cycles", "synthesized")
        found["latency"] = Measurement(int(latency) * seconds, "s", "synthesized")
    if seconds and interval and interval.isdigit():
        found["interval"] = Measurement(float(max(1, int(interval))), "cycles", "synthesized")
        found["throughput"] = Measurement(1 / (max(1, int(interval)) * seconds), "1/s", "synthesized")
    return found


def _count(name: str, value: float) -> Measurement:
    return Measurement(value, name, "synthesized")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ToolFailed(f"synthesis left no report that can be read: {path}: {error}", hint="read build.log beside it") from None


def _js(path: Path) -> dict[str, Any]:
    """The objects of a file of "var name={…};" statements, those that are JSON; nothing where there is no such file."""
    if not path.exists():
        return {}
    text, found = _text(path), {}
    for match in re.finditer(r"\bvar\s+(\w+)\s*=\s*(?=\{)", text):
        try:
            found[match[1]] = json.JSONDecoder().raw_decode(text, match.end())[0]
        except ValueError:
            continue
    return found


def _ndjson(path: Path) -> Iterable[dict[str, Any]]:
    """A JSON object a line."""
    for line in _text(path).splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
