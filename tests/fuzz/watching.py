"""What the kernel tells of a folder: whoever opens a file in it, Python or C++, in whatever process (Linux: inotify)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ACCESS_MODIFY_OPEN_CREATE_DELETE = 0x1 | 0x2 | 0x20 | 0x100 | 0x200
_IS_FOLDER = 0x40000000
_EVENT = struct.Struct("iIII")


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Names of the files of ``folder`` itself that were touched; filled when the block ends."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0 or library.inotify_add_watch(descriptor, os.fsencode(folder), _ACCESS_MODIFY_OPEN_CREATE_DELETE) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    touched: list[str] = []
    try:
        yield touched
        while True:
            try:
                data = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return
            while data:
                _, mask, _, length = _EVENT.unpack_from(data)
                if not mask & _IS_FOLDER:
                    touched.append(data[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode("utf-8", "replace"))
                data = data[_EVENT.size + length :]
    finally:
        os.close(descriptor)
