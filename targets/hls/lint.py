"""Checks an artifact's files without the vendor's tools: what can go wrong before one is even started.

Tcl is parsed and run against stand-ins that note their calls, by tclsh or the Tcl inside Python's tkinter; the host's C++ is
parsed by g++ against stand-ins of XRT's headers; Makefile by make -n; driver.py by Python. The design's C++ is not here:
the emulator compiles all of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from gatewright.errors import GatewrightError, ToolFailed
from gatewright.interpreter import python
from gatewright.targets import toolchain

from .emulator import includes

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_TIME_LIMIT_S = 600.0
_KINDS = {"implement.tcl": "vivado", "block_design.tcl": "vivado"}


@dataclass(frozen=True)
class Finding:
    """What was found in one file: nothing wrong, or the first complaint."""

    file: str
    by: str
    """The program that looked at it."""
    wrong: str | None
    notes: tuple[str, ...] = ()
    """The vendor's commands in the order in which a script calls them."""


def check(folder: Path, scratch: Path) -> tuple[Finding, ...]:
    """Everything in ``folder`` that something at hand can look at. ``scratch``: a folder for logs and stand-ins."""
    found = [tcl(path, scratch) for path in sorted(folder.glob("*.tcl"))]
    makefile = folder / "Makefile"
    if makefile.exists() and shutil.which("make"):
        goal = "all" if "\nall:" in makefile.read_text(encoding="utf-8") else "design-fpga"
        found.append(_run(["make", "-n", "-B", goal], folder, scratch, "Makefile"))
    if (folder / "driver.py").exists():
        parse = "import ast, sys; ast.parse(open(sys.argv[1]).read())"
        found.append(_run([*python("-c", parse, folder / "driver.py")], folder, scratch, "driver.py"))
    gxx = toolchain.GXX.find()
    if gxx is not None and (folder / "host.cpp").exists():
        command: list[str | Path] = [gxx, "-std=c++17", "-fsyntax-only", "-Wall", f"-I{xrt_headers(scratch)}", folder / "host.cpp"]
        found.append(_run(command, folder, scratch, "host.cpp"))
    if gxx is not None:
        headers = [f"-I{path}" for path in includes(folder)]
        found.append(_run([gxx, "-std=c++17", "-fsyntax-only", "-w", *headers, folder / "testbench.cpp"], folder, scratch, "testbench.cpp"))
    return tuple(found)


def xrt_headers(scratch: Path) -> Path:
    """A folder whose headers take the place of XRT's for g++."""
    place = scratch / "xrt_stand_in" / "xrt"
    place.mkdir(parents=True, exist_ok=True)
    text = (_TEMPLATES / "hosts" / "xrt.h").read_text(encoding="utf-8")
    for name in ("xrt_bo.h", "xrt_device.h", "xrt_kernel.h"):
        (place / name).write_text(text, encoding="utf-8")
    return place.parent


def tcl(script: Path, scratch: Path) -> Finding:
    """One Tcl script, run against stand-ins. Raises GatewrightError where there is no Tcl at all."""
    text = script.read_text(encoding="utf-8")
    kind = _KINDS.get(script.name) or ("catapult" if "\ngo analyze" in text else "hls")
    harness = _TEMPLATES / "lint.tcl"
    if tclsh := shutil.which("tclsh"):
        command: list[str | Path] = [tclsh, harness, script, kind]
    elif importlib.util.find_spec("_tkinter") is not None:
        inside = "import sys, tkinter; t = tkinter.Tcl(); t.setvar('argv', tuple(sys.argv[2:])); t.eval('source {' + sys.argv[1] + '}')"
        command = [*python("-c", inside, harness, script, kind)]
    else:
        raise GatewrightError("there is no Tcl to check scripts with", hint="install tclsh, on Debian and Ubuntu: apt install tcl")
    log = scratch / f"{script.name}.log"
    with contextlib.suppress(ToolFailed):  # what it says is in the log
        toolchain.run(command, cwd=scratch, log=log, what=f"checking {script.name}", time_limit_s=60)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    wrong = next((line.removeprefix("WRONG ") for line in lines if line.startswith("WRONG ")), None)
    ended = any(line.startswith("EXIT") for line in lines)
    calls = tuple(line.removeprefix("CALL ") for line in lines if line.startswith("CALL "))
    return Finding(script.name, "tcl", wrong if wrong or ended else "it did not come to its end", calls)


def _run(command: list[str | Path], folder: Path, scratch: Path, name: str) -> Finding:
    try:
        toolchain.run(command, cwd=folder, log=scratch / f"{name}.log", what=f"checking {name}", time_limit_s=_TIME_LIMIT_S)
    except ToolFailed as error:
        return Finding(name, Path(command[0]).name, error.message)
    return Finding(name, Path(command[0]).name, None)
