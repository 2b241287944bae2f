"""A file that appears whole or not at all, whatever kills the process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_serial = itertools.count()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """An open file that becomes ``path`` when the block ends well: flushed to the disk, then renamed over what was there.

    On any other way out ``path`` stays as it was. Raises OSError as the file system does; its folder must exist.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_serial)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
