"""The lowering of operators to JAX, one file per family. ``lowerings`` finds an operator's; ``support.py`` says which there are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

Value = Any
"""A JAX array under trace, or a numpy array where the value is a small constant."""
Lowering = Callable[..., Any]
"""Of the scope (``program.Scope``), the node and its inputs (None where an optional one is absent) to one value or one per output."""

FAMILIES = ("elementwise", "convolution", "matmul", "pooling", "reduction", "movement", "scatter", "normalization", "resize", "quantize")


@cache
def lowerings() -> dict[str, Lowering]:
    """By ONNX operator."""
    found: dict[str, Lowering] = {}
    for family in FAMILIES:
        found |= import_module(f"{__name__}.{family}").LOWERINGS
    return found
