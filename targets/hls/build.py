"""The vendor's tools on a lowered artifact: which they are, in which order, what went wrong in which layer, what the reports say.

Nothing here runs unless somebody asks for ``build``. The folder is a copy of the artifact: whatever a tool leaves half-made
there goes with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatewright.errors import ToolFailed
from gatewright.progress import Progress
from gatewright.targets import toolchain
from gatewright.targets.toolchain import Tool

from . import reports, shell
from .network import Shell

_SOLUTION = Path("design_prj/solution1")
_ERROR = re.compile(r"^(ERROR|Error|error:|CRITICAL WARNING|# Error|.*: error:|Killed|.*out of memory)", re.IGNORECASE)
_REMEDIES = (
    (r"licen[cs]e", "the tool has no licence for this: set LM_LICENSE_FILE or XILINXD_LICENSE_FILE"),
    (r"XFORM 203-504|HLS 200-1715|unroll|partition", "a layer unrolls or splits too much: a larger reuse factor (reuse=) or io=stream"),
    (r"out of memory|bad_alloc|Killed|cannot allocate", "the tool ran out of memory: a larger reuse factor (reuse=) is less for it"),
    (r"board (file|part)|board_part", "install the board's files in Vivado (Tools, Vivado Store, Boards)"),
    (r"platform", "install the card's platform, or set PLATFORM_REPO_PATHS"),
    (r"over-?utili[sz]ed|requires more .* than are available|Place 30-640", "it does not fit after all: fill=0.6, or compress the model"),
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One tool with its arguments. ``purpose`` completes "… needs AMD Vivado …"."""

    tool: Tool
    arguments: tuple[str, ...]
    purpose: str
    product: str
    """The file that exists afterwards if all went well."""
    optional: bool = False
    """Skipped where the tool is missing: the project is complete without."""


def build(folder: Path, described: Mapping[str, Any], *, time_limit_s: float, progress: Progress) -> dict[str, Any]:
    """Run the tools in ``folder``; returns the manifest's additions: which tools ran, what their reports say, what they made."""
    todo = steps(described)
    # All of them are looked for first: nobody waits an hour to learn that the second is missing.
    programs = [step.tool.find() if step.optional else step.tool.require(step.purpose) for step in todo]
    interface = json.loads((folder / "interface.json").read_text(encoding="utf-8"))
    layers = Layers({str(k): str(v) for k, v in described["layers"].items()}, {str(k): str(v) for k, v in interface["numbers"].items()})
    ran, versions = [], {}
    for index, (step, program) in enumerate(zip(todo, programs, strict=True)):
        if program is None:
            continue
        log = folder / ("build.log" if index == 0 else f"build-{index + 1}.log")
        what = f"{step.purpose} with {program.name}"
        command: list[str | Path] = [program, *_arguments(program, step)]
        try:
            toolchain.run(command, cwd=folder, log=log, what=what, time_limit_s=time_limit_s, progress=progress)
        except ToolFailed as error:
            raise _explained(error, folder, log, layers, described) from None
        if not (folder / step.product).exists():
            raise _explained(ToolFailed(f"{what} ended without {step.product}; the whole log: {log}"), folder, log, layers, described)
        ran.append(program.name)
        if version := _version(log):
            versions[program.name] = version
    found = figures(folder, described)
    products = [step.product for step in todo if (folder / step.product).is_file()]
    synthesis = {name: figure.to_json() for name, figure in found.items()}
    return {"built_with": " + ".join(ran), "tool_versions": versions, "synthesis": synthesis, "products": products}


def steps(described: Mapping[str, Any]) -> tuple[Step, ...]:
    """What ``build`` runs for an artifact, from the target's part of its manifest."""
    tool, around, clock_ns = str(described["tool"]), described.get("shell", "none"), float(described["clock_ns"])
    part, mhz = str(described["part"]), f"{1e3 / clock_ns:g}MHz"
    sources = ("testbench.cpp", "firmware/design.cpp")
    if tool == "quartus":
        compiler = (f"-march={part}", "--clock", mhz, "--quartus-compile", *sources, "-o", "design-fpga")
        return (Step(toolchain.QUARTUS, compiler, "building an hls design for Intel parts", "design-fpga"),)
    if tool == "oneapi":
        common = ("-std=c++17", "-fsycl", "-fintelfpga", "-qactypes", "-I.", "-Ifirmware", "-fconstexpr-steps=134217728", *sources)
        report = ("-DFPGA_HARDWARE", "-Xshardware", f"-Xstarget={part}", f"-Xsclock={mhz}", "-fsycl-link=early", "-o", "design.report")
        return (Step(toolchain.ICPX, (*common, *report), "building an hls design with oneAPI", "design.report"),)
    if tool == "catapult":
        script = ("-shell", "-file", "build.tcl")
        return (Step(toolchain.CATAPULT, script, "building an hls design with Catapult", "Catapult/design.v1/rtl.rpt"),)
    hls = toolchain.VITIS if tool == "vitis" else toolchain.VIVADO_HLS
    top = shell.TOPS[around]
    first = Step(hls, ("build.tcl",), "building an hls design for AMD parts", f"{_SOLUTION}/syn/report/{_csynth(tool, around)}")
    batch = ("-mode", "batch", "-source")
    if around == "dma":
        return first, Step(toolchain.VIVADO, (*batch, "block_design.tcl"), "making the bitstream", "design.bit")
    if around == "xrt":
        platform = str(described["platform"])
        what = ("--link", "--target", "hw", "--platform", platform, "--config", "link.cfg", "--save-temps")
        link = (*what, "design.xo", "-o", "design.xclbin")
        return first, Step(toolchain.VPP, link, f"linking {top} for the card", "design.xclbin")
    return first, Step(toolchain.VIVADO, (*batch, "implement.tcl"), "placing the core alone", "reports/timing.rpt", optional=True)


def figures(folder: Path, described: Mapping[str, Any]) -> reports.Figures:
    """Everything that the reports in ``folder`` say; what was placed and routed takes the place of what HLS estimated.

    Raises ToolFailed where a design missed its clock: it is offered to nobody.
    """
    tool, around, clock_ns = str(described["tool"]), described.get("shell", "none"), float(described["clock_ns"])
    if tool == "quartus":
        return reports.intel_hls(folder / "design-fpga.prj")
    if tool == "oneapi":
        return reports.oneapi(folder / "design.report.prj")
    if tool == "catapult":
        return reports.catapult(folder / "Catapult" / "design.v1", clock_ns)
    found = reports.csynth(folder / _SOLUTION / "syn" / "report" / _csynth(tool, around))
    placed = folder / "reports"
    if (placed / "utilization.rpt").exists():
        found |= reports.utilization(placed / "utilization.rpt")
    if (placed / "timing.rpt").exists():
        found |= reports.timing(placed / "timing.rpt", clock_ns)
    return found


@dataclass(frozen=True)
class Layers:
    """Which node of the model a line of a log is about."""

    nodes: Mapping[str, str]
    """Our layer's name to the ONNX node's."""
    numbers: Mapping[str, str]
    """hls4ml's number of a layer to our name: config5, layer5_out."""

    def named_in(self, lines: Iterable[str]) -> tuple[str, ...]:
        """ "conv1 (layer_3_conv)" for each layer that the lines name, in their order."""
        found: dict[str, None] = {}
        for line in lines:
            for name in sorted(self.nodes, key=len, reverse=True):
                if re.search(rf"\b{re.escape(name)}(?!\d)", line):
                    found[name] = None
            for number in re.findall(r"\bconfig(\d+)(?!\d)|(?<![a-z])layer(\d+)_(?:out|t|cpy\d)\b|_config(\d+)(?!\d)", line):
                theirs = self.numbers.get(next(filter(None, number)))
                if theirs is not None:
                    # What hls4ml put in (a padding, a copy) is told by the layer that it was put in for.
                    own = next((known for known in self.nodes if theirs.endswith(known)), None)
                    if own is not None:
                        found[own] = None
        return tuple(f"{self.nodes[name]!r} ({name})" for name in found)


def _csynth(tool: str, around: Shell) -> str:
    """Vivado HLS names its report after the top function; Vitis HLS has one under this name for all."""
    return "csynth.xml" if tool == "vitis" else f"{shell.TOPS[around]}_csynth.xml"


def _arguments(program: Path, step: Step) -> Sequence[str]:
    if step.tool in (toolchain.VITIS, toolchain.VIVADO_HLS):
        return ("--mode", "hls", "--tcl", *step.arguments) if program.name == "vitis-run" else ("-f", *step.arguments)
    return step.arguments


def _explained(error: ToolFailed, folder: Path, log: Path, layers: Layers, described: Mapping[str, Any]) -> ToolFailed:
    """The same error, with the tool's own errors, the layers that they name, and what to do."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    path = folder / "reports" / "critical_path.rpt"
    slack = reports.slack_ns(folder / "reports" / "timing.rpt") if (folder / "reports" / "timing.rpt").exists() else None
    if slack is not None and slack < 0:
        return _missed(slack, float(described["clock_ns"]), reports.worst_path(path) if path.exists() else (), layers, log)
    wrong = [line.strip() for line in text.splitlines() if _ERROR.match(line.strip())]
    named = layers.named_in(wrong)
    about = f"\nthe layers that its errors name: {', '.join(named)}" if named else ""
    first = f"\nits first error: {wrong[0][:300]}" if wrong else ""
    matched = "\n".join(wrong) or text[-4000:]
    remedy = next((advice for pattern, advice in _REMEDIES if re.search(pattern, matched, re.IGNORECASE)), error.hint)
    return ToolFailed(f"{error.message}{first}{about}", hint=remedy)


def _missed(slack: float, clock_ns: float, path: Sequence[str], layers: Layers, log: Path) -> ToolFailed:
    reached = 1e3 / (clock_ns - slack)
    named = layers.named_in(path)
    ends = f"from {path[0]} to {path[1]}" if len(path) > 1 else "in a place that its report does not name"
    where = f"in {', '.join(named)}" if named else ends
    return ToolFailed(
        f"timing is missed by {-slack:g} ns: {reached:.1f} MHz instead of {1e3 / clock_ns:.1f}; the critical path lies {where}; "
        f"no bitstream is offered; the whole log: {log}",
        hint=f"ask for clock_mhz={int(reached * 0.95)}, or a larger reuse factor (reuse=), which makes smaller sums",
    )


def _version(log: Path) -> str | None:
    """As the tool's first lines have it: "v2023.2", "2024.1_2/1091966"."""
    with open(log, encoding="utf-8", errors="replace") as file:
        head = [line for _, line in zip(range(40), file, strict=False)]
    for line in head:
        if found := re.search(r"\b(?:v|Version[: ]+)?(20\d\d\.\d[\w./-]*)", line):
            return found[1]
    return None
