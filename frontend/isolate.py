"""Work on what nobody vouches for, in a process of its own: its crash, its hang and its hunger are a ModelError here.

    model = isolated("gatewright.frontend.load:read", {"path": path}, what=f"reading {path}", limits=limits)

A first process is started once and keeps its imports (``nursery.py``); each piece of work is a fork of it, which takes some
milliseconds, is limited (``Limits.memory_bytes``, ``Limits.seconds``) and is never used twice. What it makes is a Model, which comes
back in a file without a name: its weights are mapped from there, or from the model's own files where they lie as they are.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import gatewright
from gatewright import errors
from gatewright.errors import GatewrightError, ModelError
from gatewright.interpreter import python

from .nursery import STATUS

if TYPE_CHECKING:
    from .limits import Limits
    from .model import Model

AVAILABLE = hasattr(os, "fork") and hasattr(socket, "send_fds")
"""Whether this system can do it; where not (Windows), files are read in the user's own process."""

_IN_MEMORY_BYTES = 256 << 20
_GRACE_S = 10.0
"""The process ends itself when its time is up, and says where it was; this is how much longer one is waited for that cannot."""
_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from gatewright.frontend.nursery import main; main(int(sys.argv[1]))"
_STARVED = 0.8
_TRACE = ("Fatal Python error", "  File ", "Stack (most recent", "Current thread", "Extension modules")
"""How the lines begin that Python's fault handler writes."""
_HINTS = {
    "memory": "the file asks for more than its size explains; if you trust it: limits=Limits(memory_bytes=…), --limits memory_bytes=16GiB",
    "time": "if you trust the file: limits=Limits(seconds=…), on the command line --limits seconds=3600",
    "crash": "the file is damaged or made to do that; if it runs elsewhere, please report it",
}


def isolated(
    work: str, arguments: Mapping[str, Any], *, what: str, limits: Limits, data: bytes | bytearray | memoryview | None = None, size: int = 0
) -> Model:
    """What ``work`` ("gatewright.module:function") makes of ``arguments`` (JSON values), called with ``limits=`` and, if given, ``data=``.

    ``what`` names it for people: "reading digits.onnx"; ``size``: bytes of the files it reads, by which the way back is chosen.
    Raises the GatewrightError that the work raises; ModelError saying where it was if it crashed or went past a limit.
    """
    from .transfer import receive

    request = {"work": work, "arguments": dict(arguments), "limits": asdict(limits), "has_data": data is not None}
    with _file(0) as asked, _file(max(size, len(data or b""))) as answer, _file(0) as log:
        text = json.dumps(request).encode()
        asked.write(len(text).to_bytes(8, "little") + text)
        asked.write(data or b"")
        asked.flush()
        ended = _nursery.run((asked.fileno(), answer.fileno(), log.fileno()), limits.seconds + _GRACE_S)
        if ended is None or ended[0]:
            raise _death(what, ended, log, limits)
        header, model = receive(answer.fileno())
    if model is None:
        raise _error(header)
    return model


def warm() -> None:
    """Start the first process, so that its imports run beside this one's."""
    if AVAILABLE:
        _nursery.start()


class _Nursery:
    """The process that forks the others, one at a time. A process forked from this one gets its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> None:
        with self._lock:
            self._require()

    def run(self, files: tuple[int, ...], limit_s: float) -> tuple[int, int] | None:
        """The wait status of a fork that got ``files`` and its most memory in bytes, or None where it had to be ended from outside."""
        with self._lock:
            for attempt in (0, 1):
                control = self._require()
                try:
                    socket.send_fds(control, [b"."], files)
                    return self._status(control, limit_s)
                except (ConnectionError, EOFError):
                    # It may have gone since it was last needed.
                    said = self._last_words()
                    self._end()
                    if attempt:
                        hint = "trust=True (--trust) reads a file that you trust in your own process"
                        raise GatewrightError(f"the process in which models are read ends at once{said}", hint=hint) from None
                except BaseException:
                    self._end()
                    raise
        raise AssertionError

    def close(self) -> None:
        if self._pid == os.getpid():
            self._end()

    def _require(self) -> socket.socket:
        if self._control is not None and self._pid == os.getpid():
            return self._control
        ours, theirs = socket.socketpair()
        self._pid, self._control, self._log = os.getpid(), ours, tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        paths = [str(Path(gatewright.__file__).resolve().parents[1]), *(p for p in sys.path if p)]
        self._process = subprocess.Popen(
            python("-c", _BOOT, str(theirs.fileno()), json.dumps(paths)), pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log, process_group=0,
            # One thread: a fork takes only the one that forks.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )  # fmt: skip
        theirs.close()
        return ours

    def _status(self, control: socket.socket, limit_s: float) -> tuple[int, int] | None:
        deadline = time.monotonic() + limit_s
        found = b""
        while len(found) < STATUS.size:
            ready, _, _ = select.select([control], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._end()
                return None
            piece = control.recv(STATUS.size - len(found))
            if not piece:
                raise EOFError
            found += piece
        status, peak_bytes = STATUS.unpack(found)
        return status, peak_bytes

    def _end(self) -> None:
        process, control, log = self._process, self._control, self._log
        self._process = self._control = self._log = None
        if control is not None:
            control.close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if log is not None:
            log.close()

    def _last_words(self) -> str:
        if self._log is None or self._process is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        lines = _tail(self._log)
        return f": {lines[-1][:300]}" if lines else ""


_nursery = _Nursery()
atexit.register(_nursery.close)


def _file(size: int) -> IO[bytes]:
    """A file without a name: in memory, or where it may become large on the disk (both count as mapped, not as anonymous memory)."""
    if size <= _IN_MEMORY_BYTES and hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("gatewright"), "w+b")
    return tempfile.TemporaryFile()


def _tail(log: IO[bytes]) -> list[str]:
    log.seek(0)
    return [line for line in log.read(1 << 16).decode("utf-8", "replace").splitlines() if line.strip()]


def _death(what: str, ended: tuple[int, int] | None, log: IO[bytes], limits: Limits) -> ModelError:
    """What to tell of a process that gave no answer. What it wrote says where it was: Python's own fault handler sees to that."""
    lines = _tail(log)
    place = next((f" in {_place(line)}" for line in lines if line.startswith("  File ")), "")
    memory = f"needs more than {limits.memory_bytes >> 20:,} MiB of memory"
    if ended is None or any(line.startswith("Timeout (") for line in lines[:3]):
        return ModelError(f"{what} takes longer than {limits.seconds:g} s{place}", hint=_HINTS["time"])
    code, peak_bytes = os.waitstatus_to_exitcode(ended[0]), ended[1]
    # A library may trip over the memory that it did not get.
    starved = peak_bytes > _STARVED * limits.memory_bytes or any("bad_alloc" in line or "MemoryError" in line for line in lines)
    if starved or code == -signal.SIGKILL:
        return ModelError(f"{what} {memory}{place}", hint=_HINTS["memory"])
    how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    said = next((line for line in lines if not line.startswith(_TRACE)), "")
    return ModelError(f"{what} {how}{place}{': ' + said[:200] if said else ''}", hint=_HINTS["crash"])


def _place(line: str) -> str:
    """``File "/…/onnx/checker.py", line 163 in check_model`` as ``check_model of onnx/checker.py``."""
    path, _, function = line.strip().removeprefix('File "').partition('", line ')
    return f"{function.rpartition(' in ')[2]} of {'/'.join(Path(path).parts[-2:])}"


def _error(header: Mapping[str, Any]) -> GatewrightError:
    """The error that the work ended with, as one of this process."""
    kind = getattr(errors, str(header["error"]), ModelError)
    error: GatewrightError = kind.__new__(kind)
    GatewrightError.__init__(error, header["message"], hint=header["hint"])
    if header["traceback"]:
        error.add_note(header["traceback"])
    return error
