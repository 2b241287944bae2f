"""Archives as model files: what they hold is known and bounded before a byte is unpacked, and nothing is unpacked to the disk."""

from __future__ import annotations

import zipfile
from pathlib import Path

from gatewright.errors import ModelError

from .limits import Limits, raised

_ENTRIES = 100_000


def entries(path: Path, limits: Limits) -> dict[str, int]:
    """Names and unpacked sizes of a zip file. Raises ModelError for what is none, for names that leave it, doubles, and past the limits."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise ModelError(f"{path.name} is no zip archive, or it is cut short: {error}") from None
    if len(found) > _ENTRIES:
        raise ModelError(f"{path.name} holds {len(found):,} files, the limit is {_ENTRIES:,}")
    held: dict[str, int] = {}
    for entry in found:
        name = entry.filename
        if name in held or name.startswith(("/", "\\")) or "\\" in name or ".." in name.split("/") or "\0" in name:
            raise ModelError(
                f"{path.name} holds a file {name!r}, twice or outside of the archive", hint="the file is damaged or made to do that"
            )
        held[name] = entry.file_size
    total = sum(held.values())
    if total > limits.weight_bytes:
        raise ModelError(
            f"{path.name} unpacks to {total:,} bytes, the limit is {limits.weight_bytes:,}", hint=f"raise it: {raised('weight_bytes')}"
        )
    return held


def member(path: Path, name: str, limit: int) -> bytes:
    """One file of the archive. Raises ModelError if it is not there, or has more than ``limit`` bytes whatever the archive says."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            data = file.read(limit + 1)
    except KeyError:
        raise ModelError(f"{path.name} holds no {name}") from None
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError, RuntimeError) as error:
        raise ModelError(f"{name} in {path.name} cannot be unpacked: {error}") from None
    if len(data) > limit:
        raise ModelError(f"{name} in {path.name} has more than {limit:,} bytes")
    return data
