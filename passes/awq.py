"""``awq``: few-bit weights, the channels that matter kept finer (Lin et al. 2023, AWQ: Activation-aware Weight Quantization, §3.2).

Before rounding, the weights that read channel j are multiplied by s_j = mean|x_j|^α and the channel is divided by it in whatever makes
it (``smooth.py``), so that what meets large activations is rounded relatively finer. α is searched for each value by the squared
error of the outputs, α = 0 (plain rounding) among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model

from . import rewrite, rounding
from .base import PassContext, PassResult
from .moments import rows_of, second_moments
from .rewrite import Array
from .smooth import Family, channel_sizes, migrate, prepared
from .weight_only import WeightOnly

GRID = np.linspace(0.0, 1.0, 11)
"""Values of α that are tried."""


@dataclass(frozen=True)
class Awq(WeightOnly):
    """Lossy. ``rounding``: how the scaled weights are rounded. Layers whose input can't be scaled are rounded as they are, and noted."""

    name: ClassVar[str] = "awq"
    needs_data: ClassVar[bool] = True

    rounding: Literal["nearest", "gptq"] = "nearest"

    def run(self, model: Model, context: PassContext) -> PassResult:
        self.layers(model.graph)
        edited, found, refused = prepared(self, model, context)
        assert context.data is not None
        kept = {layer.name for layer in self.layers(edited.graph)}
        found = [family for family in found if all(layer.name in kept for layer in family.layers)]
        sizes = channel_sizes(model, [family.source.name or "" for family in found], context.data)
        layers = [layer for family in found for layer in family.layers]
        moments = {layer.name: h for layer, h in second_moments(model, layers, context.data, context.progress)}
        edit, chosen = Editor(edited), {}
        for family in found:
            name = family.source.name or ""
            alpha, s = self._search(family, sizes[name][1], moments)
            chosen[name] = alpha
            if alpha > 0:
                migrate(edit, family, s)
        rewrite.remove_dead(edited.graph)
        result = super().run(model.with_ir(edited), context)
        notes = [*result.notes, f"{sum(a > 0 for a in chosen.values())} of {len(chosen)} values scaled by their activations"]
        notes += [f"{layer}: rounded as it is, {why}" for layer, why in refused.items() if layer in kept]
        return PassResult(result.model, True, tuple(notes), {**result.details, "alpha": chosen})

    def integers(self, w: Array, steps: Array, h: Array) -> Array:
        return rounding.gptq(w, steps, h, self.hi) if self.rounding == "gptq" else rounding.nearest(w, steps, self.hi)

    def _search(self, family: Family, sizes: Array, moments: dict[str, Array]) -> tuple[float, Array]:
        """The α with the least error over the family's layers, and its s."""
        alive = sizes > 0
        best, least, factors = 0.0, np.inf, np.ones_like(sizes)
        for alpha in GRID.tolist():
            s = np.where(alive, np.where(alive, sizes, 1.0) ** alpha, 1.0)
            if alive.any():
                s = np.where(alive, s / np.sqrt(s[alive].max() * s[alive].min()), 1.0)
            error = 0.0
            for layer in family.layers:
                rows, h = rows_of(layer, layer.weight) * s, moments[layer.name] / np.outer(s, s)
                scales = self.scales(rows, self._group_of(layer), h)
                steps = np.repeat(scales.astype(np.float64), rows.shape[-1] // scales.shape[-1], axis=-1)
                error += float(rounding.error(rows, rounding.nearest(rows, steps, self.hi), steps, h).sum())
            if error < least:
                best, least, factors = alpha, error, s
        return best, factors
