"""``Outset``: what a training begins with, and each of its workers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .executor import Executor
from .objective import Objective


@dataclass(frozen=True)
class Outset:
    net: Executor
    objective: Objective
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Parameters that are learned along but are no part of the model, by name."""
