"""Timing several engines side by side, so that none slows the next one down.

Worker threads of ONNX Runtime and OpenVINO spin for a while after a run and take the cores from whatever comes next; so each
engine runs a block of its own, after a pause, by turns over several rounds, and the first runs of a block do not count: they
wake threads and fill caches.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gatewright.hw.measurement import Measurement
from gatewright.progress import Progress, silent

Call = Callable[[], object]


@dataclass(frozen=True)
class Blocks:
    """How the runs are laid out."""

    runs: int = 10
    """Of one engine in a row."""
    dropped: int = 2
    """The first ones of each block."""
    pause_s: float = 0.3
    """Before each block."""
    rounds: int = 5
    budget_s: float = 10.0
    """Seconds of one engine's runs in all: a slow model's blocks become shorter, never below three runs of which one is dropped."""

    def runs_for(self, seconds: float) -> int:
        """The length of a block whose runs take so long."""
        return max(min(self.runs, 3), min(self.runs, int(self.budget_s / self.rounds / max(seconds, 1e-9))))

    def counted(self, runs: int) -> int:
        """How many of a block's runs count."""
        return max(1, runs - (self.dropped if runs > self.dropped + 1 else 1))


@dataclass(frozen=True)
class Timing:
    """Seconds of every run that counts, by round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def all(self) -> tuple[float, ...]:
        return tuple(seconds for found in self.rounds for seconds in found)

    @property
    def median(self) -> Measurement:
        return Measurement(statistics.median(self.all), "s", "measured")

    @property
    def quartiles(self) -> tuple[Measurement, Measurement]:
        low, high = quartiles(self.all)
        return Measurement(low, "s", "measured"), Measurement(high, "s", "measured")


@dataclass(frozen=True)
class Ratio:
    """How many times as long another engine takes: above 1 it is slower."""

    value: float
    """The median of the ratios of each round's medians: what the machine does to a whole round does not enter."""
    low: float
    high: float
    """Their quartiles."""


def ratio(theirs: Timing, ours: Timing) -> Ratio:
    """``theirs`` over ``ours``; both measured by turns in the same rounds."""
    each = [statistics.median(a) / statistics.median(b) for a, b in zip(theirs.rounds, ours.rounds, strict=True)]
    low, high = quartiles(each)
    return Ratio(statistics.median(each), low, high)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper one, interpolated between the values."""
    if len(values) < 2:
        return values[0], values[0]
    found = statistics.quantiles(values, n=4, method="inclusive")
    return found[0], found[2]


def alternate(calls: Sequence[Call], blocks: Blocks = Blocks(), *, progress: Progress = silent, what: str = "measuring") -> list[Timing]:
    """Time the calls in blocks by turns. How long a block is, a first run says that does not count."""
    sizes = []
    for call in calls:
        sizes.append(blocks.runs_for(*_block(call, 1)))
    found: list[list[tuple[float, ...]]] = [[] for _ in calls]
    for turn in range(blocks.rounds):
        progress(what, turn, blocks.rounds)
        for call, size, mine in zip(calls, sizes, found, strict=True):
            time.sleep(blocks.pause_s)
            mine.append(tuple(_block(call, size)[size - blocks.counted(size) :]))
    return [Timing(tuple(rounds)) for rounds in found]


def _block(call: Call, size: int) -> list[float]:
    found = []
    for _ in range(size):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found
