"""What onnx-ir imports and hardly ever uses is imported when it is used: SymPy takes longer than all else that ``load`` needs together.

onnx-ir calculates with it where dimensions are expressions ("2*n + 1"); a canonical model has none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

_USER = "onnx_ir"
_DEFERRED = frozenset({"sympy", f"{_USER}._symbolic_shapes"})
"""The second builds a table of the first's functions."""


class _Finder(MetaPathFinder):
    """Finds these modules where onnx-ir asks for them; for anybody else they are imported as ever."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _DEFERRED or not _is_being_imported(_USER):
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        spec.loader = LazyLoader(spec.loader)
        return spec


def _is_being_imported(name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


def install() -> None:
    """From now on, in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
