"""JAX's processes: whether there is a JAX, and the environment in which it runs. The user's own process never imports it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from gatewright.errors import ToolMissing
from gatewright.interpreter import python

LEFT_OUT = ("JAX_", "XLA_", "LIBTPU_")
"""Variables of the user's that would shape what is compiled and run: they are not handed on. (TPU_ stays: a TPU host sets those.)"""
HINT = "install it: pip install 'gatewright[tpu]'"


def version_of(package: str) -> str | None:
    """Of an installed package; None where it is missing."""
    try:
        return version(package) if find_spec(package) is not None else None
    except (PackageNotFoundError, ValueError):
        return None


def require_jax(purpose: str) -> None:
    """Raises ToolMissing naming the extra."""
    if version_of("jax") is None:
        raise ToolMissing(f"{purpose} needs JAX, which is not installed", hint=HINT)


def environment(platform: Literal["cpu", "tpu"]) -> dict[str, str]:
    """What JAX's processes are told."""
    return {"JAX_PLATFORMS": platform, "JAX_ENABLE_X64": "1", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}


def command(module: str, *words: str | Path) -> list[str]:
    """Python running one of this package's modules."""
    return python("-m", f"gatewright.targets.xla.{module}", *words)
