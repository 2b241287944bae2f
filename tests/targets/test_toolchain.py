"""Running outside programs: limits, logs, errors."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from gatewright.errors import ToolFailed, ToolMissing
from gatewright.targets.toolchain import Tool
from gatewright.targets.toolchain import run as run_tool


def run(code: str, folder: Path, *, time_limit_s: float = 20, memory_limit_bytes: int | None = None) -> str:
    command = [sys.executable, "-c", code]
    log = folder / "logs" / "x.log"
    return run_tool(command, cwd=folder, log=log, what="a step", time_limit_s=time_limit_s, memory_limit_bytes=memory_limit_bytes)


def test_output_goes_to_the_log_and_the_last_lines_come_back(tmp_path: Path) -> None:
    tail = run("print('one'); print('two')", tmp_path)
    assert tail == "one\ntwo"
    assert (tmp_path / "logs" / "x.log").read_text() == "one\ntwo\n"


def test_a_failure_has_the_last_lines_and_the_logs_path(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match=r"(?s)exit code 3.*it broke.*x\.log"):
        run("print('it broke'); raise SystemExit(3)", tmp_path)


def test_a_crash_names_the_signal(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="SIGSEGV"):
        run("import os; os.kill(os.getpid(), 11)", tmp_path)


def test_the_time_limit_kills_the_tool_and_its_children(tmp_path: Path) -> None:
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    started = time.monotonic()
    with pytest.raises(ToolFailed, match="longer than 1 s"):
        run(child, tmp_path, time_limit_s=1)
    assert time.monotonic() - started < 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address-space limits of another process are Linux's")
def test_the_memory_limit_is_an_error_not_a_dead_machine(tmp_path: Path) -> None:
    hungry = "import time; time.sleep(0.5); x = bytearray(3 << 30)"
    with pytest.raises(ToolFailed, match="memory limit is 1024 MiB"):
        run(hungry, tmp_path, memory_limit_bytes=1 << 30)


def test_a_missing_tool_says_what_and_how(tmp_path: Path) -> None:
    tool = Tool(("no-such-program-7",), "Nonesuch 1.0", "install it from nowhere")
    assert tool.find() is None
    with pytest.raises(ToolMissing, match=r"synthesis needs Nonesuch 1\.0.*install it from nowhere"):
        tool.require("synthesis")
    with pytest.raises(ToolMissing, match="no-such-program-7"):
        run_tool(["no-such-program-7"], cwd=tmp_path, log=tmp_path / "x.log", what="x", time_limit_s=1)
