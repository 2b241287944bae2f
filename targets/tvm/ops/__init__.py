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


def lower(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    """The result of a float operator. Sums of float16 run in float32: in float16 itself a few hundred terms lose half the digits."""
    if step.role != "anchor" or all(x is None or x.dtype != "float16" for x in inputs):
        return lowering_of(step.node.op_type)(kernel, step, inputs)
    from ..lazy import converted

    wide = [x if x is None or x.dtype != "float16" else converted(x, "float32") for x in inputs]
    result = lowering_of(step.node.op_type)(kernel, step, wide)
    return result if result.dtype != "float32" else converted(result, "float16")


def lowering_of(op: str) -> Lowering:
    """The function that lowers a float operator."""
    table: dict[str, Lowering] = import_module(f".{OPERATORS[op].module}", __name__).LOWERINGS
    return table[op]
