"""``gptq``: weights rounded one input after the other, the rest making up for it (Frantar et al. 2022). For 4-bit weights of MatMul-heavy
models with ``group=32`` or 128; per channel it serves any layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gatewright.errors import UsageError

from . import rounding
from .rewrite import Array
from .weight_only import WeightOnly


@dataclass(frozen=True)
class Gptq(WeightOnly):
    """Lossy. ``damping``: of the mean of E[x²], added to E[x xᵀ] so that it can be inverted."""

    name: ClassVar[str] = "gptq"
    needs_data: ClassVar[bool] = True

    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damping <= 1:
            raise UsageError(f"option 'damping' of pass 'gptq' is {self.damping:g}; it takes more than 0, up to 1")

    def integers(self, w: Array, steps: Array, h: Array) -> Array:
        return rounding.gptq(w, steps, h, self.hi, self.damping)
