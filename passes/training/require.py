"""torch is an extra: who needs it and does not find it is told what to install."""

from __future__ import annotations

from importlib.util import find_spec

from gatewright.errors import ToolMissing


def require_torch(who: str) -> None:
    """Raises ToolMissing, naming ``who``, where torch is not installed."""
    if find_spec("torch") is None:
        raise ToolMissing(f"{who} computes gradients with PyTorch, which is not installed", hint="pip install 'gatewright[torch]'")
