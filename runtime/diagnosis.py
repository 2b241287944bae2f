"""``gatewright doctor``: what is installed, what is missing, and what each missing thing disables."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import RenderableType

import gatewright
from gatewright.hw.device import host
from gatewright.targets.rtl import tools as fpga
from gatewright.targets.toolchain import CATAPULT, GXX, ICPX, MAKE, QUARTUS, VERILATOR, VITIS, VIVADO, VIVADO_HLS, VPP, Tool

from .cache import Cache
from .config import SETTINGS, config
from .console import Text, facts, table
from .views import bytes_text

REQUIRED = {
    "numpy": "everything",
    "onnx": "reading models",
    "onnx-ir": "reading models",
    "onnxscript": "reading models",
    "onnxruntime": "target ort",
    "apache-tvm": "target cpu",
    "hls4ml": "target hls",
}
"""Packages that gatewright depends on, and what is lost without each."""

OPTIONAL = {
    "torch": ("PyTorch models", "torch"),
    "openvino": ("bench --against openvino", "openvino"),
    "scikit-learn": ("training the demo's models again", "sklearn"),
    "pandas": (".csv and .parquet data", "data"),
    "pyarrow": (".parquet data", "data"),
    "pillow": ("folders of images as data", "data"),
    "jax": ("target tpu: portable programs and the emulator", "tpu"),
    "libtpu": ("target tpu: compiling for TPUs ahead of time", "tpu"),
}
"""Packages of the extras: what each enables, and the extra that installs it."""

TOOLS = (
    (GXX, True, "emulating hls designs (target hls), simulating rtl designs"),
    (VERILATOR, False, "simulating rtl designs faster, and waves as FST (else: yosys and g++)"),
    (MAKE, False, "simulating rtl designs with Verilator"),
    (VIVADO, False, "building rtl designs and hls accelerators for AMD FPGAs (gatewright build)"),
    (VITIS, False, "building hls designs for AMD FPGAs (gatewright build)"),
    (VIVADO_HLS, False, "building hls designs with tool=vivado and vivadoaccelerator"),
    (VPP, False, "linking hls kernels for Alveo cards"),
    (QUARTUS, False, "building hls designs for Intel FPGAs (gatewright build)"),
    (ICPX, False, "building hls designs with tool=oneapi"),
    (CATAPULT, False, "building hls designs with tool=catapult"),
)
"""Outside programs: whether the ordinary use needs them, and what they enable."""


OPEN_TOOLS = (
    (fpga.YOSYS, "rtl: synthesis, netlists, simulation without Verilator"),
    (fpga.NEXTPNR_ICE40, "rtl: bitstreams for iCEBreaker, iCE40-HX8K"),
    (fpga.ICEPACK, "rtl: bitstreams for iCEBreaker, iCE40-HX8K"),
    (fpga.NEXTPNR_ECP5, "rtl: bitstreams for ULX3S, OrangeCrab"),
    (fpga.ECPPACK, "rtl: bitstreams for ULX3S, OrangeCrab"),
    (fpga.NEXTPNR_GOWIN, "rtl: bitstreams for Tang Nano 9K and 20K"),
    (fpga.GOWIN_PACK, "rtl: bitstreams for Tang Nano 9K and 20K"),
)
"""The open FPGA tools, pip's or the system's, and what each enables."""


@dataclass(frozen=True)
class Finding:
    """One thing that may be installed."""

    name: str
    version: str | None
    """None where it is missing."""
    needed: bool
    """True where a plain installation should have it."""
    enables: str
    hint: str = ""
    where: str = ""
    """The program that was found; empty for a Python package."""

    def to_json(self) -> dict[str, Any]:
        found = {"name": self.name, "version": self.version, "needed": self.needed, "enables": self.enables, "hint": self.hint or None}
        return {**found, "where": self.where or None}


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found."""

    findings: tuple[Finding, ...]
    cache_dir: Path
    cache_bytes: int
    settings: dict[str, str]

    @property
    def healthy(self) -> bool:
        return all(finding.version is not None for finding in self.findings if finding.needed)

    def to_json(self) -> dict[str, Any]:
        return {
            "gatewright": gatewright.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "healthy": self.healthy,
            "findings": [finding.to_json() for finding in self.findings],
            "cache": {"path": str(self.cache_dir), "bytes": self.cache_bytes},
            "settings": self.settings,
        }

    def tables(self) -> list[RenderableType]:
        cpu = host()
        pairs = {
            "gatewright": gatewright.__version__,
            "python": f"{platform.python_version()} on {platform.platform()}",
            "cpu": f"{cpu.description or cpu.name}, {cpu.cores} cores",
            "cache": f"{self.cache_dir}, {bytes_text(self.cache_bytes)}; delete the folder to empty it",
        }
        rows = [(f.name, _state(f), f.enables, f.where if f.version else f.hint) for f in self.findings]
        known = [(setting.variable, self.settings[setting.variable], setting.meaning) for setting in SETTINGS]
        shown: list[RenderableType] = [facts(pairs), "", table(None, ("what", "version", "enables", "where, or to get it"), rows)]
        shown += ["", table(None, ("setting", "in force", "what it does"), known), ""]
        missing = [finding for finding in self.findings if finding.needed and finding.version is None]
        verdict = "all that is needed is here" if not missing else f"missing: {', '.join(finding.name for finding in missing)}"
        return [*shown, Text(verdict, style="green" if not missing else "red")]


def diagnose() -> Diagnosis:
    """Look, without importing anything heavy."""
    settings = config()
    findings = [Finding(name, _package(name), True, what, f"pip install {name}") for name, what in REQUIRED.items()]
    findings += [_tool(tool, needed, what) for tool, needed, what in TOOLS]
    findings += [_open_tool(tool, what) for tool, what in OPEN_TOOLS]
    findings += [
        Finding(name, _package(name), False, what, f"pip install 'gatewright[{extra}]'") for name, (what, extra) in OPTIONAL.items()
    ]
    in_force = {
        "GATEWRIGHT_CACHE_DIR": str(settings.cache_dir),
        "GATEWRIGHT_JOBS": str(settings.jobs),
        "GATEWRIGHT_TIME_LIMIT_S": f"{settings.time_limit_s:g}",
        "GATEWRIGHT_VERIFY": settings.verify,
        "GATEWRIGHT_DEBUG": "1" if settings.debug else "0",
        "NO_COLOR": "not set" if settings.color else "set",
    }
    return Diagnosis(tuple(findings), settings.cache_dir, Cache(settings.cache_dir).bytes_used(), in_force)


def _package(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _tool(tool: Tool, needed: bool, enables: str) -> Finding:
    return Finding(tool.programs[0], tool.version(), needed, enables, tool.hint, str(tool.find() or ""))


def _open_tool(tool: fpga.OpenTool, enables: str) -> Finding:
    command = tool.command()
    if command is None:
        return Finding(tool.program, None, False, enables, fpga.HINT)
    where = f"package {tool.package}" if tool.packaged else command[0]
    return Finding(tool.program, tool.version() or "found", False, enables, where=where)


def _state(finding: Finding) -> Text:
    if finding.version is not None:
        return Text(finding.version, style="green")
    return Text("missing", style="red" if finding.needed else "yellow")
