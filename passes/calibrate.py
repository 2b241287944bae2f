"""Ranges of a model's inner tensors on real data, streamed: never more than one batch of inner tensors is held.

Minimum and maximum are exact. A percentile needs the distribution: a histogram whose bins double in width when a value lies
outside, which merges neighbours exactly, so that the result does not depend on the order of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gatewright.errors import DataError, PassError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.progress import Progress, silent

from .rewrite import Array, shape_of

BINS = 1 << 14
"""Bins of a histogram, over −2^e … 2^e: the tail is resolved to 2^-12 of the largest value or better."""

BATCH_BYTES = 128 << 20
"""Inner tensors of one batch stay below this."""


class Histogram:
    """Counts over [−2^e, 2^e) in ``BINS`` equal bins; e grows as values arrive."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.exponent: int | None = None

    def add(self, values: Array, largest: float) -> None:
        """``largest``: the greatest magnitude among ``values``, finite."""
        exponent = max(math.frexp(largest)[1], -100)
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            self._widen()
        width = math.ldexp(1.0, self.exponent + 1) / BINS
        index = np.floor(values.reshape(-1).astype(np.float64) / width).astype(np.int64) + BINS // 2
        self.counts += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)

    def _widen(self) -> None:
        """Twice the reach: two old bins make one new one."""
        assert self.exponent is not None
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
        self.exponent += 1

    def joined(self, other: Histogram) -> Histogram:
        """The counts of both, in the wider one's bins."""
        total = Histogram()
        total.exponent = max((h.exponent for h in (self, other) if h.exponent is not None), default=None)
        for part in (self, other):
            if part.exponent is not None and total.exponent is not None:
                widened = Histogram()
                widened.counts, widened.exponent = part.counts, part.exponent
                while widened.exponent < total.exponent:
                    widened._widen()
                total.counts = total.counts + widened.counts
        return total

    def centres(self) -> tuple[Array, Array]:
        """Bin centres (float64) and counts of the bins that are not empty. The bin at zero stands for exact zeros (Relu's)."""
        used = np.flatnonzero(self.counts)
        width = math.ldexp(1.0, (self.exponent or 0) + 1) / BINS
        centres = (used - BINS // 2 + 0.5) * width
        centres[used == BINS // 2] = 0.0
        return centres, self.counts[used].astype(np.float64)

    def quantiles(self, low: float, high: float) -> tuple[float, float]:
        """Values below which the fractions ``low`` and ``high`` of all lie (the outer edge of the bin, so rather too wide)."""
        total = np.cumsum(self.counts)
        width = math.ldexp(1.0, (self.exponent or 0) + 1) / BINS
        first = int(np.searchsorted(total, low * total[-1], side="right"))
        last = int(np.searchsorted(total, high * total[-1], side="left"))
        return (first - BINS // 2) * width, (last + 1 - BINS // 2) * width


@dataclass
class Observed:
    """What was seen of one tensor."""

    low: float = math.inf
    high: float = -math.inf
    histogram: Histogram | None = None

    def add(self, name: str, values: Array) -> None:
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise PassError(
                f"calibration met {'NaN' if math.isnan(low + high) else 'an infinite value'} in tensor {name!r}",
                hint="look at the data and its Input preparation, or keep the layer in float with exclude=",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.histogram is not None:
            self.histogram.add(values, max(abs(low), abs(high)))

    def merge(self, other: Observed) -> Observed:
        """Of two tensors that share a grid: the wider range. Their histograms are joined."""
        joined = Observed(min(self.low, other.low), max(self.high, other.high))
        if self.histogram is not None and other.histogram is not None:
            joined.histogram = self.histogram.joined(other.histogram)
        return joined

    def clipped(self, percentile: float | None) -> tuple[float, float]:
        """The range to keep: all of it, or the central ``percentile`` per cent (each tail loses half of the rest; a side that
        nothing crosses zero on is kept)."""
        if percentile is None or self.histogram is None or percentile >= 100:
            return self.low, self.high
        tail = (1 - percentile / 100) / (2 if self.low < 0 < self.high else 1)
        low, high = self.histogram.quantiles(tail if self.low < 0 else 0.0, 1 - tail if self.high > 0 else 1.0)
        return max(self.low, low), min(self.high, high)


def calibrate(model: Model, names: Sequence[str], data: Dataset, *, histograms: bool, progress: Progress = silent) -> dict[str, Observed]:
    """What each float tensor in ``names`` takes on all of ``data``, by ONNX Runtime. Raises DataError where the data does not fit."""
    observed = {name: Observed(histogram=Histogram() if histograms else None) for name in names}
    for info in model.inputs:
        if info.name in observed and info.dtype.kind != "f":
            raise PassError(f"input {info.name!r} is {info.dtype}, only float tensors have a range to calibrate")
    inner = [name for name in names if name not in {info.name for info in model.inputs}]
    done = 0
    for feeds, traced in traces(model, inner, data):
        for name, seen in observed.items():
            seen.add(name, traced[name] if name in traced else feeds[name])
        done += len(next(iter(feeds.values())))
        progress("calibrating", done, len(data))
    return observed


def traces(
    model: Model, names: Sequence[str], data: Dataset, *, optimize: bool = True, outputs: bool = False
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Feeds and inner tensors (and the model's outputs), batch by batch: as many samples at once as the model takes and memory allows.

    ``optimize=False``: nothing saturates on the way (``OrtSession``), which the integers of a quantized model need.
    """
    from gatewright.frontend.batch import batch_reason, with_batch
    from gatewright.frontend.ortrun import OrtSession

    traced = with_outputs(model, names)
    fixed = {info.shape[0] for info in model.inputs if info.shape}
    size = fixed.pop() if len(fixed) == 1 else 1
    if batch_reason(model) is None:
        sample = sum(4 * math.prod(shape_of(v)) for v in traced.graph.outputs) // max(size, 1)
        size = int(np.clip(BATCH_BYTES // max(sample, 1), 1, min(64, len(data))))
        traced = with_batch(traced, size)
    session = OrtSession(traced, optimize=optimize)
    wanted = [*names, *(info.name for info in model.outputs)] if outputs else names
    for feeds in data.batches(model.inputs, size):
        count = len(next(iter(feeds.values())))
        padded = feeds if count == size else {k: np.concatenate([v, np.repeat(v[-1:], size - count, axis=0)]) for k, v in feeds.items()}
        found = session.run(padded)
        yield feeds, {name: found[name][:count] if count < size else found[name] for name in wanted}


def with_outputs(model: Model, names: Sequence[str]) -> Model:
    """The model with these inner values as graph outputs besides its own."""
    edited = model.copy_ir()
    have = {v.name for v in edited.graph.outputs}
    by_name = {v.name: v for node in edited.graph for v in node.outputs}
    for name in names:
        if name not in by_name:
            raise DataError(f"the model has no inner tensor {name!r}")
        if name not in have:
            value = by_name[name]
            assert isinstance(value, ir.Value)
            edited.graph.outputs.append(value)
    return model.with_ir(edited)
