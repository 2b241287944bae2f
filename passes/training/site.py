"""``Site``: a node that is being given its differentiable function; reads its attributes and constant inputs.

A maker takes a Site once, when a model is prepared, and returns the function that runs on tensors from then on: whatever
the graph fixes (axes, shapes, pads) is a Python number by then, and what torch cannot do is refused before training begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from gatewright.errors import UnsupportedOp
from gatewright.frontend.edit import Array, attribute, constant_of, input_of, shape_of

Function = Callable[..., "Tensor | tuple[Tensor, ...]"]
"""From a node's inputs (None where one is left out) to its output, or to its outputs."""


@dataclass(frozen=True)
class Site:
    """``dtype`` is that of every float tensor in the run: the model's types say only float or not."""

    node: ir.Node
    dtype: torch.dtype

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute as Python has it, or ``default``."""
        return attribute(self.node, name, default)

    def given(self, index: int) -> bool:
        """Whether the input is there at all."""
        return input_of(self.node, index) is not None

    def constant(self, index: int, what: str) -> Array:
        """The values of an input that must be a constant of the graph."""
        found = constant_of(input_of(self.node, index))
        if found is None:
            raise self.refused(f"its {what} is computed by the model, not a constant", hint="export the model with static shapes")
        return found

    def numbers(self, index: int, what: str) -> tuple[int, ...]:
        """A constant input as whole numbers."""
        return tuple(int(n) for n in self.constant(index, what).reshape(-1))

    def shape(self, index: int) -> tuple[int, ...]:
        """The static shape of an input; its axis 0 may be another number of samples when it runs."""
        found = shape_of(input_of(self.node, index))
        if found is None:
            raise self.refused(f"the shape of its input {index} is not known")
        return found

    def rank(self, index: int = 0) -> int:
        return len(self.shape(index))

    def wanted(self, output: int) -> bool:
        """Whether anybody reads that output."""
        values = self.node.outputs
        return output < len(values) and bool(values[output].uses() or values[output].is_graph_output())

    def refused(self, rule: str, hint: str | None = None) -> UnsupportedOp:
        return UnsupportedOp(node=self.node.name or "", op=self.node.op_type, target="training", rule=rule, hint=hint)


Maker = Callable[[Site], Function]
