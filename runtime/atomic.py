"""Folders and files that appear whole or not at all, whatever kills the process.

The work is done in a staging folder beside the destination (``.NAME.HOST.PID-n.staging``), flushed to the disk, and
renamed. A process that was killed leaves its staging folder behind, never a half-written destination; the next one that
stages there removes it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gatewright.errors import GatewrightError
from gatewright.files import replacing

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_serial = itertools.count()


@contextmanager
def staging(parent: Path, name: str) -> Iterator[Path]:
    """An empty folder below ``parent`` on the way to becoming ``parent / name``; removed on any way out, unless it was installed."""
    sweep(parent, name)
    host = re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname()) or "host"
    folder = parent / f".{name}.{host}.{os.getpid()}-{next(_serial)}.staging"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        file = next((above for above in (parent, *parent.parents) if above.is_file()), None)
        why = f"{file} is not a folder" if file is not None else error.strerror
        raise GatewrightError(f"cannot write in {parent}: {why}", hint="name another folder") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def install(folder: Path, destination: Path) -> None:
    """Flush the staged ``folder`` to the disk and make it ``destination``, in one step; a folder that was there is replaced."""
    flush_tree(folder)
    if destination.is_dir() and any(destination.iterdir()):
        _exchange(folder, destination)  # what was there now lies in ``folder``; staging() removes it
    else:
        os.rename(folder, destination)
    _flush(destination.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all. Raises GatewrightError where that is not possible."""
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise GatewrightError(f"cannot write {path}: {error.strerror}") from None


def sweep(parent: Path, name: str) -> None:
    """Remove staging folders for ``parent / name`` whose process, on this machine, is gone."""
    host = re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname()) or "host"
    pattern = re.compile(re.escape(f".{name}.{host}.") + r"(\d+)-\d+\.staging")
    if not parent.is_dir():
        return
    for entry in parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match and not _alive(int(match[1])):
            shutil.rmtree(entry, ignore_errors=True)


def flush_tree(folder: Path) -> None:
    """fsync every file and folder below ``folder``, and itself."""
    for root, _, files in os.walk(folder):
        for file in files:
            _flush(Path(root) / file)
        _flush(Path(root))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _exchange(folder: Path, destination: Path) -> None:
    """Swap two folders. Linux does it in one step; elsewhere there is a moment in which ``destination`` is not there."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename and not rename(_AT_FDCWD, os.fsencode(folder), _AT_FDCWD, os.fsencode(destination), _RENAME_EXCHANGE):
        return
    aside = folder.with_name(folder.name + "-old")
    os.rename(destination, aside)
    try:
        os.rename(folder, destination)
    except BaseException:
        os.rename(aside, destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)
