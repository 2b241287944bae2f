"""How another process of Python is started."""

from __future__ import annotations

import os
import sys


def python(*words: str | os.PathLike[str]) -> list[str]:
    """The command that runs Python with these words: ``python("-m", "gatewright.targets.tvm.worker", folder)``.

    ``-P``: nothing is imported from the folder that it runs in, where a model's files or anybody's ``numpy.py`` may lie.
    """
    return [sys.executable, "-P", *(os.fspath(word) for word in words)]
