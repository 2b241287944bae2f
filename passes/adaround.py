"""``adaround``: whether a weight is rounded up or down is learned, layer by layer (Nagel et al. 2020). No gradient of the network is
needed, so no training framework either: a layer's output error is a quadratic form of its weights (``moments.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gatewright.errors import UsageError

from . import rounding
from .rewrite import Array
from .weight_only import WeightOnly


@dataclass(frozen=True)
class Adaround(WeightOnly):
    """Lossy. ``iterations`` of Adam at ``rate`` for each layer."""

    name: ClassVar[str] = "adaround"
    needs_data: ClassVar[bool] = True

    iterations: int = 1000
    rate: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.iterations <= 1_000_000:
            raise UsageError(f"option 'iterations' of pass 'adaround' is {self.iterations}; it takes 1 to 1000000")
        if not 0 < self.rate <= 1:
            raise UsageError(f"option 'rate' of pass 'adaround' is {self.rate:g}; it takes more than 0, up to 1")

    def integers(self, w: Array, steps: Array, h: Array) -> Array:
        return rounding.adaround(w, steps, h, self.hi, self.iterations, self.rate)
