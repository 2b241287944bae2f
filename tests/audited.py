"""Reading a model while Python tells of every file that is opened, every process and every connection; work for ``frontend/isolate.py``."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import gatewright
from gatewright.frontend import load
from gatewright.frontend.limits import Limits
from gatewright.frontend.model import Model

_ROOTS = sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), str(Path(gatewright.__file__).resolve().parents[2])
_CODE = {*_ROOTS, "/usr", "/lib", "/sys"}
_OWN = ("/proc/self/", "/dev/null")
_NEVER = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect",
    "os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def read(path: str, folder: str, limits: Limits) -> Model:
    """``load``'s own work on a file; an AssertionError where it leaves ``folder``."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_NEVER):
            raise AssertionError(f"{event}{arguments}")
        if event != "open" or isinstance(arguments[0], int):
            return
        name, _, flags = arguments
        opened = os.path.realpath(os.fsdecode(name))
        if os.fsdecode(name).startswith(_OWN) or opened.startswith("/proc/"):
            return
        inside = (opened + os.sep).startswith(os.path.realpath(folder) + os.sep)
        code = any(opened.startswith(root + os.sep) for root in _CODE)
        if flags & _WRITING or not (inside or code):
            raise AssertionError(f"opened {opened} with {flags:#x}")

    sys.addaudithook(watch)
    return load.read_file(path, {}, None, limits)


def open_outside(path: str, limits: Limits) -> Model:
    """What the watch must catch."""
    os.close(os.open(path, os.O_RDONLY))
    raise AssertionError
