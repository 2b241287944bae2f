"""The result of a search: what no other candidate beats in everything, the choice among it, and why.

Kept apart from the search itself, so that a front can be read and drawn without Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gatewright.hw.measurement import Measurement

from .report import Report


@dataclass(frozen=True)
class Candidate:
    """A pipeline that was tried."""

    pipeline: str
    folds: tuple[float, ...] = ()
    """The metric on each held-out fold."""
    costs: Mapping[str, Measurement] = field(default_factory=dict)
    seconds: float = 0.0
    """What evaluating it took."""
    problem: str | None = None
    """Why it is no candidate after all: it does not fit, a pass refused."""

    @property
    def metric(self) -> float:
        """The mean over the folds."""
        return math.fsum(self.folds) / len(self.folds)

    @property
    def spread(self) -> float:
        """The standard deviation over the folds."""
        mean = self.metric
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.folds) / max(1, len(self.folds) - 1))

    def to_json(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "folds": list(self.folds),
            "costs": {name: cost.to_json() for name, cost in self.costs.items()},
            "seconds": self.seconds,
            "problem": self.problem,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Candidate:
        costs = {str(name): Measurement(float(m["value"]), m["unit"], m["source"]) for name, m in entry["costs"].items()}
        problem = None if entry["problem"] is None else str(entry["problem"])
        return cls(str(entry["pipeline"]), tuple(map(float, entry["folds"])), costs, float(entry["seconds"]), problem)


@dataclass(frozen=True)
class Finalist:
    """A point of the front made from all of the data, compiled for the target and run: what a user will have."""

    name: str
    """In the report."""
    pipeline: str
    metric: Measurement
    """On data that chose nothing where such was given."""
    difference: float
    """Of the metric on the same samples, to uniform 8-bit quantization (where there is none, the uncompressed model); above 0: better …"""
    interval: tuple[float, float]
    """… and its 95 % interval, by the bootstrap over samples."""
    samples: int
    costs: Mapping[str, Measurement]
    """Of this model, where the search's are those of the first fold."""
    exactness: str
    """How it ran on the target, and how that agrees with ref."""
    latency: Measurement | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pipeline": self.pipeline,
            "metric": self.metric.to_json(),
            "difference": self.difference,
            "interval": list(self.interval),
            "samples": self.samples,
            "costs": {name: cost.to_json() for name, cost in self.costs.items()},
            "exactness": self.exactness,
            "latency": None if self.latency is None else self.latency.to_json(),
        }


@dataclass(frozen=True)
class Front:
    """``points`` are the Pareto front, the cheapest first."""

    model: str
    target: str
    metric: str
    higher_is_better: bool
    objectives: tuple[str, ...]
    """Costs that count, the first decides."""
    baseline: float
    """The uncompressed model's metric, the mean over the same folds."""
    max_drop: float
    tried: tuple[Candidate, ...]
    points: tuple[Candidate, ...]
    chosen: Candidate
    reason: str
    """Why this one."""
    knee: Candidate
    uniform: Candidate | None = None
    """Uniform 8-bit quantization, which everybody would take; None where the methods leave quantization out."""
    seen: bool = False
    """Whether the folds begin from networks learned afresh, since the model has seen the data."""
    report: Report | None = None
    """The finalists compiled and compared, on data that chose nothing where such was given."""
    finalists: tuple[Finalist, ...] = ()
    notes: tuple[str, ...] = ()
    """What a user should know about how the figures came about."""

    def drop(self, candidate: Candidate) -> float:
        """How much worse than the baseline; negative where it is better."""
        difference = self.baseline - candidate.metric
        return difference if self.higher_is_better else -difference

    @property
    def dominating(self) -> tuple[Candidate, ...]:
        """The points that beat uniform 8-bit quantization: as good and cheaper, or better and as cheap. Where that does not fit the
        target, those within the drop: it is no choice there."""
        if self.uniform is None:
            return ()
        if self.uniform.problem is not None:
            return tuple(one for one in self.points if self.drop(one) <= self.max_drop + 1e-12)
        score = _score(self.uniform, self.objectives, self.higher_is_better)
        return tuple(one for one in self.points if _dominates(_score(one, self.objectives, self.higher_is_better), score))

    @property
    def verdict(self) -> str:
        """The points against uniform 8-bit quantization, in a sentence."""
        if self.uniform is None:
            return ""
        count = len(self.dominating)
        points = f"{count} of {len(self.points)} points"
        if self.uniform.problem is not None:
            told = f"uniform 8-bit quantization is not possible on {self.target} ({self.uniform.problem})"
            return f"{told}; {points} are possible within the drop" if count else f"{told}; nor is any point within the drop"
        return f"{points} beat uniform 8-bit quantization in {', '.join(self.objectives)} without being worse in {self.metric}"

    def marks(self, candidate: Candidate) -> tuple[str, ...]:
        """What there is to say of a point in a word."""
        said = (("chosen", candidate is self.chosen), ("knee", candidate is self.knee), ("beats uniform", candidate in self.dominating))
        return tuple(mark for mark, holds in said if holds)

    def finalist(self, candidate: Candidate) -> Finalist | None:
        """What became of a point, where it was compiled."""
        return next((one for one in self.finalists if one.pipeline == candidate.pipeline), None)

    def to_json(self) -> dict[str, Any]:
        def point(one: Candidate) -> dict[str, Any]:
            made = self.finalist(one)
            shown = {"metric": one.metric, "spread": one.spread, "drop": self.drop(one), "finalist": None if made is None else made.name}
            return {**one.to_json(), **shown, "dominates_uniform": one in self.dominating}

        return {
            "schema": 1,
            "model": self.model,
            "target": self.target,
            "metric": self.metric,
            "objectives": list(self.objectives),
            "baseline": self.baseline,
            "max_drop": self.max_drop,
            "tried": len(self.tried),
            "infeasible": sum(one.problem is not None for one in self.tried),
            "seen": self.seen,
            "uniform": None if self.uniform is None else self.uniform.to_json(),
            "verdict": self.verdict,
            "front": [point(one) for one in self.points],
            "chosen": point(self.chosen),
            "reason": self.reason,
            "knee": point(self.knee),
            "finalists": [one.to_json() for one in self.finalists],
            "notes": list(self.notes),
            "report": None if self.report is None else self.report.to_json(),
        }

    def save_html(self, path: str | Path) -> None:
        """One file that works offline."""
        from .atomic import write_file
        from .front_page import render

        write_file(Path(path), render(self).encode())


def pareto(tried: Sequence[Candidate], objectives: Sequence[str], higher_is_better: bool) -> tuple[Candidate, ...]:
    """The candidates that no other beats or equals in everything and beats in something; of equals the first. The cheapest first."""
    sound = [one for one in tried if one.problem is None]
    scored = [(one, _score(one, objectives, higher_is_better)) for one in sound]
    kept, seen = [], set()
    for one, score in scored:
        if score in seen or any(_dominates(other, score) for _, other in scored):
            continue
        seen.add(score)
        kept.append((score[1:], one))
    return tuple(one for _, one in sorted(kept, key=lambda item: item[0]))


def _score(one: Candidate, objectives: Sequence[str], higher_is_better: bool) -> tuple[float, ...]:
    """All to be made small."""
    return (-one.metric if higher_is_better else one.metric, *(one.costs[name].value for name in objectives))


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def knee(points: Sequence[Candidate], objectives: Sequence[str], higher_is_better: bool) -> Candidate:
    """The compromise: nearest to the ideal point, every objective scaled to the front's own range, costs by their logarithm.

    Zeleny, Compromise Programming, 1973.
    """
    scores = [_score(one, objectives, higher_is_better) for one in points]
    axes = []
    for position, values in enumerate(zip(*scores, strict=True)):
        axis = [math.log(max(v, 1e-30)) for v in values] if position else list(values)
        low, high = min(axis), max(axis)
        axes.append([(v - low) / (high - low) if high > low else 0.0 for v in axis])
    distances = [math.hypot(*place) for place in zip(*axes, strict=True)]
    return points[distances.index(min(distances))]


def choose(points: Sequence[Candidate], baseline: float, max_drop: float, objective: str, higher_is_better: bool) -> tuple[Candidate, str]:
    """The cheapest point within the drop, and why; where there is none, the best."""
    sign = 1 if higher_is_better else -1
    drops = [sign * (baseline - one.metric) for one in points]
    within = [(one.costs[objective].value, drop, one) for one, drop in zip(points, drops, strict=True) if drop <= max_drop + 1e-12]
    if within:
        _, drop, one = min(within, key=lambda item: item[:2])
        lost = max(drop, 0.0)
        return one, f"the lowest {objective} of {len(within)} points on the front that lose at most {max_drop:g}; it loses {lost:.4g}"
    drop, one = min(zip(drops, points, strict=True), key=lambda item: item[0])
    return one, f"nothing found loses at most {max_drop:g}: the best loses {drop:.4g}"
