"""Outside programs: where they are, and one way to run them. Nothing here knows what any of them does.

A tool runs in its own process group, without a shell, with its output streamed to a log file and its last line to the
progress listener, under a time limit and (Linux) an address-space limit. What goes wrong is ToolMissing or ToolFailed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from gatewright.errors import ToolFailed, ToolMissing
from gatewright.progress import Progress, silent

LAST_LINES = 15
_LONGEST_LINE = 1000


@dataclass(frozen=True)
class Tool:
    """An outside program: the names it goes by, and what to tell somebody who lacks it."""

    programs: tuple[str, ...]
    """Names of executables, the preferred one first."""
    what: str
    """What it is and which versions will do: "Vitis HLS 2023.2 to 2025.1"."""
    hint: str
    """How to get it."""

    def find(self) -> Path | None:
        """The first of its programs on PATH."""
        for program in self.programs:
            if found := shutil.which(program):
                return Path(found)
        return None

    def version(self) -> str | None:
        """The first line that it prints when asked; "found" where it says nothing, None where it is missing."""
        program = self.find()
        return None if program is None else first_line((str(program), "--version"))

    def require(self, purpose: str) -> Path:
        """The program, or ToolMissing saying what it is needed for and how to get it."""
        if (found := self.find()) is not None:
            return found
        raise ToolMissing(f"{purpose} needs {self.what}; none of {', '.join(self.programs)} is on PATH", hint=self.hint)


GXX = Tool(("g++", "clang++"), "a C++ compiler (g++ 9 or later)", "install g++, on Debian and Ubuntu: apt install g++")
MAKE = Tool(("make", "gmake"), "GNU make", "on Debian and Ubuntu: apt install make")
VERILATOR = Tool(("verilator",), "Verilator 5.006 or later", "on Debian and Ubuntu: apt install verilator")
VIVADO = Tool(("vivado",), "AMD Vivado 2020.2 or later", "install Vivado from amd.com and source its settings64.sh")
VITIS = Tool(("vitis-run", "vitis_hls"), "AMD Vitis HLS 2022.2 or later", "install Vitis from amd.com and source its settings64.sh")
VIVADO_HLS = Tool(
    ("vivado_hls",), "AMD Vivado HLS 2019.2 or 2020.1", "install Vivado of that release from amd.com and source its settings64.sh; "
    "later releases have Vitis HLS: tool=vitis",
)  # fmt: skip
VPP = Tool(("v++",), "AMD Vitis 2022.2 or later (v++)", "install Vitis and the card's platform from amd.com and source settings64.sh")
QUARTUS = Tool(
    ("i++",), "Intel HLS Compiler 19.1 to 22.4 (i++, part of Quartus Prime)", "install Quartus Prime with it and source its init_hls.sh"
)
ICPX = Tool(
    ("icpx",), "Intel oneAPI DPC++/C++ compiler 2024.0 to 2025.0 with its FPGA support package",
    "install the oneAPI Base Toolkit and the FPGA support package and source setvars.sh; 2025.1 no longer has it",
)  # fmt: skip
CATAPULT = Tool(("catapult",), "Siemens Catapult HLS 2023.2 or later", "install Catapult, set MGC_HOME and put its bin folder on PATH")


def run(
    command: Sequence[str | os.PathLike[str]], *, cwd: Path, log: Path, what: str, time_limit_s: float,
    memory_limit_bytes: int | None = None, env: Mapping[str, str] | None = None, without: Sequence[str] = (),
    progress: Progress = silent,
) -> str:  # fmt: skip
    """Run ``command`` to its end; returns the last lines of its output (stdout and stderr, in order, are in ``log``).

    ``what`` names the step for people: "compiling the emulator of digits". ``env`` and ``without``: see
    ``surroundings``. Raises ToolMissing if the program does not exist, ToolFailed if it exits with anything but 0, passes a limit or dies;
    then its whole process group has been killed.
    """
    words = [os.fspath(word) for word in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tail: deque[str] = deque(maxlen=LAST_LINES)
    with open(log, "wb") as file:
        try:
            process = subprocess.Popen(
                words, cwd=cwd, env=surroundings(env, without), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise ToolMissing(f"{what}: there is no program {words[0]!r}", hint="install it, or put it on PATH") from None
        except OSError as error:
            raise ToolFailed(f"{what}: {words[0]} does not start: {error}") from None
        try:
            limit_memory(process.pid, memory_limit_bytes)
            assert process.stdout is not None
            in_time = _drain(process.stdout, file, tail, started + time_limit_s, what, progress)
            if in_time:
                process.wait(max(0.1, started + time_limit_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            in_time = False
        finally:
            kill_group(process)
    if not in_time:
        raise ToolFailed(f"{what} took longer than {time_limit_s:.0f} s and was stopped{_ending(tail, log)}", hint="raise the time limit")
    if process.returncode:
        code = process.returncode
        died = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        # A library that cannot be mapped may fail in any words, so the limit is always told.
        limited = f" (its memory limit is {memory_limit_bytes >> 20} MiB)" if memory_limit_bytes else ""
        raise ToolFailed(f"{what}: {Path(words[0]).name} {died}{limited}{_ending(tail, log)}")
    return "\n".join(tail)


def surroundings(env: Mapping[str, str] | None = None, without: Sequence[str] = ()) -> dict[str, str]:
    """This process's environment with ``env`` added, and without the variables whose names begin with one of ``without``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(tuple(without))}
    return {**kept, **(env or {})}


@cache
def first_line(command: tuple[str, ...]) -> str:
    """The first line that a program prints; it is there even where it says nothing."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return "found"
    return next((line.strip()[:60] for line in ran.stdout.splitlines() if line.strip()), "found")


def limit_memory(pid: int, limit_bytes: int | None) -> None:
    """Bound the address space of a process that has just been started; where the system cannot (not Linux), nothing happens."""
    if limit_bytes is None:
        return
    try:
        import resource

        resource.prlimit(pid, resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    except (ImportError, AttributeError, OSError):
        # It may have ended already, and a limit is a safety net: the time limit still holds.
        return


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process started with ``start_new_session`` and everything that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):  # what was still to be written to it has no reader
                stream.close()


def _drain(stream: IO[bytes], log: IO[bytes], tail: deque[str], deadline: float, what: str, progress: Progress) -> bool:
    """Copy ``stream`` to ``log`` until it ends (True) or the deadline passes (False), telling ``progress`` about once a second."""
    told, partial = 0.0, b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            ready = selector.select(min(left, 1.0))
            if ready:
                block = os.read(stream.fileno(), 1 << 16)
                if not block:
                    if partial:
                        tail.append(_text(partial))
                    return True
                log.write(block)
                log.flush()
                *lines, partial = (partial + block).split(b"\n")
                partial = partial[-_LONGEST_LINE:]
                tail.extend(_text(line) for line in lines if line.strip())
            now = time.monotonic()
            if now - told >= 1.0:
                told = now
                progress(f"{what}: {tail[-1].strip()[:100]}" if tail else what)


def _text(line: bytes) -> str:
    return line[-_LONGEST_LINE:].decode("utf-8", "replace").rstrip()


def _ending(tail: Sequence[str], log: Path) -> str:
    lines = "\n  ".join(tail)
    return f"; its last lines:\n  {lines}\nthe whole log: {log}" if tail else f"; it printed nothing; the log: {log}"
