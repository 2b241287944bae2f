"""The other side of ``isolate.py``: a process that imports what reading models takes, and forks itself for each piece of work.

It has one thread and holds nothing of a model: what a fork does to itself ends with it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

STATUS = struct.Struct("<Iq")
"""What is told of each fork: its wait status, and the most memory that it held in bytes."""
_IDLE_S = 600.0
_FILES = 3


def main(control_fd: int) -> None:
    """Serve until the process that asked for it is gone, or has not asked for ten minutes."""
    control = socket.socket(fileno=control_fd)
    _prepare()
    while select.select([control], [], [], _IDLE_S)[0]:
        message, files, _, _ = socket.recv_fds(control, 1, _FILES)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            _serve(*files)
        for file in files:
            os.close(file)
        status, peak_bytes = _wait(pid, control)
        control.sendall(STATUS.pack(status, peak_bytes))


def _prepare() -> None:
    """Import, and fill the tables that onnx makes on first use: every fork then has them."""
    from onnx import parser

    from .limits import Limits
    from .load import from_proto
    from .transfer import send

    small = parser.parse_model('<ir_version: 8, opset_import: ["" : 13]> small (float[1] x) => (float[1] y) { y = Relu(x) }')
    send(from_proto(small, text="a model in memory", limits=Limits()), io.BytesIO())
    # A collection in a fork would write to every page that it shares with this process.
    gc.collect()
    gc.freeze()


def _wait(pid: int, control: socket.socket) -> tuple[int, int]:
    """The wait status of the fork and the most memory that it held; it is ended when nobody waits for its answer any more."""
    if hasattr(os, "pidfd_open"):
        ended = os.pidfd_open(pid)
        try:
            # Nothing is asked while an answer is due: what can be read is the end.
            descriptors = [control.fileno(), ended]
            if ended not in select.select(descriptors, [], [])[0]:
                os.kill(pid, signal.SIGKILL)
        finally:
            os.close(ended)
    _, status, used = os.wait4(pid, 0)
    return status, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _serve(asked: int, answer: int, log: int) -> None:
    """The fork: limited, then at work. Never returns."""
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(log, stream)
        request = mmap.mmap(asked, 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(request[:8], "little")
        told = json.loads(request[8 : 8 + length])
        faulthandler.enable(log, all_threads=False)
        # Its watch is a thread of C, which ends the process even where C++ never comes back to Python.
        faulthandler.dump_traceback_later(told["limits"]["seconds"], exit=True, file=log)
        data = memoryview(request)[8 + length :] if told["has_data"] else None
        with open(answer, "wb", closefd=False) as file:
            _work(told, data, file)
        code = 0
    except MemoryError:
        os.write(log, b"MemoryError\n")
    except BaseException:
        os.write(log, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)


def _work(told: dict[str, Any], data: memoryview | None, file: Any) -> None:
    from gatewright.errors import GatewrightError

    from .limits import Limits
    from .transfer import send, send_error

    limits = Limits(**told["limits"])
    _bound(limits.memory_bytes, limits.weight_bytes + limits.file_bytes)
    module, _, function = told["work"].partition(":")
    given = {**told["arguments"], "limits": limits} | ({"data": data} if data is not None else {})
    try:
        made = getattr(import_module(module), function)(**given)
        send(made, file)
    except MemoryError:
        raise
    except GatewrightError as error:
        cause = error.__cause__
        send_error(file, type(error).__name__, error.message, error.hint, "".join(traceback.format_exception(cause)) if cause else "")
    except Exception as error:
        what = f"something unforeseen: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        send_error(file, "ModelError", what, "--debug shows where; please report it", traceback.format_exc())


def _bound(memory_bytes: int, written_bytes: int) -> None:
    """Of this process: the memory that it may take (mapped files apart), and the size of a file that it may write."""
    try:
        import resource
    except ImportError:
        return
    for kind, limit in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_FSIZE, written_bytes), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (bound, bound))
    with contextlib.suppress(OSError):
        # Where the whole machine runs out of memory, this process is the one to go.
        Path("/proc/self/oom_score_adj").write_text("1000")
    sys.setrecursionlimit(3000)
