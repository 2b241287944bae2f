"""The content-addressed store: the same inputs are never compiled twice, and nothing in it is trusted.

    <root>/<kind>/ab/abcdef…/        one entry: a folder, named by the hash of everything that shaped it
    <root>/<kind>/ab/abcdef….time    how many seconds it took to make
    <root>/locks/                    so that two processes do not make the same entry at the same time

An entry is checked each time it is taken (its own SHA-256s, by the caller's ``check``); a damaged one is removed and made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatewright.errors import GatewrightError
from gatewright.progress import Progress, silent

from .atomic import install, staging, write_file


@dataclass(frozen=True)
class Entry:
    """A folder of the cache, whole and checked."""

    path: Path
    hit: bool
    """True where it was there already."""
    seconds: float | None
    """What making it took, then; None where that is not known any more."""


def key_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, by name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Cache:
    """The store below ``root``. Safe for any number of processes."""

    root: Path

    def entry(
        self, kind: str, key: str, make: Callable[[Path], None], check: Callable[[Path], object], progress: Progress = silent
    ) -> Entry:
        """The folder for ``key``: the one in the store if ``check`` does not raise a GatewrightError for it, else what ``make`` writes.

        ``make`` gets an empty folder to fill; if it raises, nothing stays.
        """
        folder = self.root / kind / key[:2] / key
        clock = folder.with_name(f"{key}.time")
        with self._lock(key, progress):
            if folder.exists():
                try:
                    check(folder)
                    return Entry(folder, True, _read_seconds(clock))
                except GatewrightError:
                    progress("an entry of the cache is damaged: making it again")
                    _remove(folder)
            with staging(folder.parent, key) as staged:
                start = time.perf_counter()
                make(staged)
                seconds = time.perf_counter() - start
                write_file(clock, f"{seconds:.6f}\n".encode())
                install(staged, folder)
            check(folder)
            return Entry(folder, False, seconds)

    def bytes_used(self) -> int:
        """Bytes of every file in the store."""
        total = 0
        for file in self.root.rglob("*"):
            try:
                total += 0 if file.is_symlink() or not file.is_file() else file.stat().st_size
            except OSError:
                continue  # another process removed it meanwhile
        return total

    @contextmanager
    def _lock(self, key: str, progress: Progress) -> Iterator[None]:
        locks = self.root / "locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
            file = open(locks / f"{key}.lock", "wb")  # noqa: SIM115 (closed below, whatever happens)
        except OSError as error:
            raise GatewrightError(
                f"the cache folder {self.root} cannot be written: {error.strerror}", hint="set GATEWRIGHT_CACHE_DIR"
            ) from None
        with file:  # the lock goes with the file, or with the process
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another process that makes the same")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _read_seconds(file: Path) -> float | None:
    try:
        return float(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
