"""``mixed``: the bits of each layer's weights chosen by what they cost the outputs, under a budget.

Every layer is narrowed alone and the loss of the outputs measured (``sensitivity.py``). All layers begin at the widest candidate; the
step down that costs least per bit saved is taken until the budget is met, and what is left of it goes to the step up that gains
most. Then ``quantize`` runs with those bits; its text, in the history, repeats the choice without measuring again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from gatewright.errors import PassError, UsageError
from gatewright.frontend.model import Model

from .base import Effect, Pass, PassContext, PassResult
from .clipping import RangeKind
from .grids import GridKind, quantize_weight
from .quantize import Quantize
from .rewrite import Array
from .sensitivity import Measure, sensitivities

Choice = dict[str, int]
Costs = dict[tuple[str, int], float]


@dataclass(frozen=True)
class Mixed(Pass):
    """Lossy. Options but for the first five are quantize's."""

    name: ClassVar[str] = "mixed"
    effect: ClassVar[Effect] = "lossy"
    needs_data: ClassVar[bool] = True

    average_bits: float = 5.0
    """Of all weights of quantized layers, together."""
    budget_bytes: int | None = None
    """Of those weights, whatever ``average_bits`` says."""
    candidates: tuple[int, ...] = (4, 8)
    measure: Measure = "kl"
    samples: int = 256
    """The first so many of the data are measured on."""

    bits: int = 8
    grid: GridKind = "affine"
    per: Literal["tensor", "channel"] = "tensor"
    range: RangeKind = "minmax"
    percentile: float = 99.99
    exclude: tuple[str, ...] = ()
    bias_correction: bool = False

    def __post_init__(self) -> None:
        if len(set(self.candidates)) < 2 or not all(2 <= bits <= 16 for bits in self.candidates):
            raise UsageError(f"option 'candidates' of pass 'mixed' is {self.candidates}; it takes two widths or more, of 2 to 16 bits")
        if self.budget_bytes is None and not self.average_bits >= min(self.candidates):
            raise UsageError(f"option 'average_bits' of pass 'mixed' is {self.average_bits:g}, below its narrowest candidate")
        if self.samples < 1:
            raise UsageError(f"option 'samples' of pass 'mixed' is {self.samples}; it takes 1 or more")
        self._quantizer({})

    def run(self, model: Model, context: PassContext) -> PassResult:
        if context.data is None:
            raise PassError("mixed needs data to measure on", hint="give data=Dataset.load(…), or --data FILE")
        weights = self._quantizer({}).weights_of(model)
        if len(weights) < 2:
            raise PassError(f"{model.name} has {len(weights)} layers with weights: nothing to choose between", hint="take quantize{…}")
        sizes = {name: array.size for name, (array, _) in weights.items()}
        budget = self.average_bits * sum(sizes.values()) if self.budget_bytes is None else 8.0 * self.budget_bytes
        if budget < min(self.candidates) * sum(sizes.values()):
            least = math.ceil(min(self.candidates) * sum(sizes.values()) / 8)
            raise UsageError(f"budget_bytes={self.budget_bytes} is less than {least}, what {min(self.candidates)} bits everywhere take")

        def rounded(name: str, bits: int) -> Array:
            array, axis = weights[name]
            q = quantize_weight(array, self.grid, bits, axis if self.per == "channel" else None, 0.0, self.range != "minmax")
            along = tuple(-1 if i == q.grid.axis else 1 for i in range(array.ndim)) if q.grid.scale.ndim else ()
            return np.asarray(q.values * q.grid.scale.astype(np.float64).reshape(along))

        data = context.data.take(min(self.samples, len(context.data)))
        tried = [(name, bits) for name in weights for bits in sorted(set(self.candidates))]
        costs = sensitivities(model, tried, rounded, data, self.measure, context.progress)
        chosen = choose(sizes, costs, sorted(set(self.candidates)), budget)
        quantizer = self._quantizer(chosen)
        result = quantizer.run(model, context)
        average = sum(sizes[name] * bits for name, bits in chosen.items()) / sum(sizes.values())
        counts = ", ".join(f"{sum(b == bits for b in chosen.values())} with {bits}" for bits in sorted(set(self.candidates)))
        note = f"{average:.2f} bits on average for {len(chosen)} layers ({counts})"
        details = {
            **result.details, "bits": chosen, "quantize": str(quantizer),
            "sensitivity": {name: {str(bits): costs[name, bits] for bits in sorted(set(self.candidates))} for name in weights},
        }  # fmt: skip
        return PassResult(result.model, True, (note, *result.notes), details)

    def _quantizer(self, chosen: Choice) -> Quantize:
        return Quantize(
            bits=self.bits, weight_bits=max(self.candidates), grid=self.grid, per=self.per, range=self.range, percentile=self.percentile,
            exclude=self.exclude, weight_bits_of=tuple(f"{name}:{bits}" for name, bits in chosen.items()),
            bias_correction=self.bias_correction,
        )  # fmt: skip


def choose(sizes: dict[str, int], costs: Costs, candidates: list[int], budget: float) -> Choice:
    """Bits of each layer with at most ``budget`` bits together. ``sizes``: weights of each; ``costs``: the loss at each width."""
    chosen = dict.fromkeys(sizes, candidates[-1])

    def spent() -> int:
        return sum(sizes[name] * bits for name, bits in chosen.items())

    while spent() > budget:
        steps = [(name, lower) for name, bits in chosen.items() for lower in candidates if lower < bits]
        name, lower = min(steps, key=lambda s: ((costs[s] - costs[s[0], chosen[s[0]]]) / (sizes[s[0]] * (chosen[s[0]] - s[1])), s))
        chosen[name] = lower
    while True:
        gains = {
            (name, higher): costs[name, bits] - costs[name, higher] for name, bits in chosen.items() for higher in candidates
            if higher > bits and spent() + sizes[name] * (higher - bits) <= budget and costs[name, higher] < costs[name, bits]
        }  # fmt: skip
        if not gains:
            return chosen
        name, higher = max(gains, key=lambda s: (gains[s], s))
        chosen[name] = higher
