"""What operators compute, one file a family. Each has LOWERINGS: operator → function of (kernel, step, inputs) to a lazy result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from ..support import OPERATORS

if TYPE_CHECKING:
    from ..kernel import Kernel
    from ..lazy import Lazy
    from ..steps import Step

Lowering = Callable[["Kernel", "Step", Sequence["Lazy | None"]], "Lazy"]


def lowering_of(op: str) -> Lowering:
    """The function that lowers a float operator."""
    table: dict[str, Lowering] = import_module(f".{OPERATORS[op].module}", __name__).LOWERINGS
    return table[op]
