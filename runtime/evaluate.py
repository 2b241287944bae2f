"""What a candidate is worth: its metric by k-fold cross-validation, its costs by the target's own estimates.

Each fold is held out once: the pipeline calibrates and trains on the others, and ``ref``, which says what a model means on every
target, is judged on it. Where the model has already learned from the data (``seen``), a fold is no unseen data to it, and a
pipeline that forgets would look worse than it is, one that remembers better. Each fold then begins from the same network learned afresh
on the other folds, uncompressed, against which the drop is counted: the whole way is cross-validated (Hastie, Tibshirani, Friedman, The
Elements of Statistical Learning, 2009, §7.10.2).
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gatewright.errors import GatewrightError, UsageError, nearest
from gatewright.frontend import work
from gatewright.frontend.coded import encode
from gatewright.frontend.data import Dataset
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.hw.measurement import Measurement
from gatewright.passes.pipeline import Pipeline
from gatewright.progress import Progress
from gatewright.targets.base import Check, Target
from gatewright.targets.ref.target import RefExecutor

from . import partition, session
from .driver import transform
from .front import Candidate
from .metrics import Metric
from .study import Study

AFRESH = "distil{init=random,alpha=0,epochs=100,lr=0.005,smoothing=0.1}"
"""How a network is learned again from nothing: alpha=0 listens to the labels alone."""
FILE = "file"
"""The cost of the model as a Huffman-coded file (``frontend/coded.py``), worked out only where it is asked for."""
GIVEN_UP = "given up after the first fold"
"""How the problem of a candidate begins that was not judged on the other folds."""
_KEPT_BYTES = 256 << 20
"""Of models after the first passes of a pipeline, which the next pipeline may begin with."""


@dataclass
class Evaluator:
    """Candidates' figures, each worked out once and kept on disk."""

    model: Model
    target: Target
    data: Dataset
    judge: Metric
    folds: int
    seed: int
    progress: Progress
    study: Study
    seen: bool = False
    objectives: tuple[str, ...] = ()
    baseline: float = math.nan
    """The uncompressed model's metric, the mean over the folds; known after ``prepare``."""
    _known: dict[str, Candidate] = field(default_factory=dict)
    _models: OrderedDict[tuple[int, tuple[str, ...]], Model] = field(default_factory=OrderedDict)

    def choose_objectives(self, costs: Sequence[str] | None, pipeline: str) -> None:
        """The costs by the target's own spelling, as it estimates them of ``pipeline``. Raises UsageError with the nearest names."""
        made = transform(self.model, pipeline, self.data, seed=self.seed, progress=self.progress)
        available = [*costs_of(made, partition.check(made, self.target)), FILE]
        if costs is None:
            # An FPGA is full before it is slow.
            self.objectives = (next(name for name in ("LUT", "latency", "bytes") if name in available),)
            return
        spelled = {name.lower(): name for name in available}
        for cost in costs:
            if cost.lower() not in spelled:
                raise UsageError(f"{self.target.name} estimates no {cost!r}", hint=nearest(cost, available, "costs"))
        if not costs:
            raise UsageError("optimize needs a cost", hint=f"one or more of {', '.join(available)}")
        self.objectives = tuple(dict.fromkeys(spelled[cost.lower()] for cost in costs))

    def prepare(self) -> None:
        """What every candidate needs: the folds, the networks they begin from, and what those are worth."""
        self._known = {one.pipeline: one for one in self.study.evaluations()}
        self._pairs = self.data.split(self.folds)
        rests = [rest for rest, _ in self._pairs]
        self._begun = [self._afresh(i, rest) for i, rest in enumerate(rests)] if self.seen else [self.model] * self.folds
        self.progress(f"{self.model.name} on ref")
        self._truths = [outputs_of(model, held) for model, (_, held) in zip(self._begun, self._pairs, strict=True)]
        self.folds_of_baseline = tuple(
            self.judge(truth, held.labels, truth) for truth, (_, held) in zip(self._truths, self._pairs, strict=True)
        )
        self.baseline = math.fsum(self.folds_of_baseline) / self.folds

    def __call__(self, pipeline: str, most: float | None = None) -> Candidate:
        """``most``: who loses more than that on the first fold is not judged on the others; None: everybody is."""
        known = self._known.get(pipeline)
        if known is None or not self._holds(known, most):
            start = time.monotonic()
            found = self._evaluate(pipeline, most)
            known = Candidate(found.pipeline, found.folds, found.costs, time.monotonic() - start, found.problem)
            self.study.keep(known)
            self._known[pipeline] = known
        return known

    def _holds(self, known: Candidate, most: float | None) -> bool:
        """An earlier call of the same study may not have asked for the file's size, or given up earlier than this one would."""
        if known.problem is not None:
            return not known.problem.startswith(GIVEN_UP) or (most is not None and self._lost(known.folds[0]) > most)
        return set(self.objectives) <= set(known.costs)

    def _lost(self, first: float) -> float:
        """On the first fold."""
        return self.judge.drop(first, self.folds_of_baseline[0])

    def _evaluate(self, pipeline: str, most: float | None) -> Candidate:
        values: list[float] = []
        costs: Mapping[str, Measurement] = {}
        for number, ((rest, held), truth) in enumerate(zip(self._pairs, self._truths, strict=True)):
            try:
                made = self._made(number, pipeline, rest)
                if not number:
                    check = partition.check(made, self.target)
                    costs = costs_of(made, check, FILE in self.objectives)
                    if not check.ok:
                        return Candidate(pipeline, (), costs, problem="; ".join([*map(str, check.problems), *check.shortfalls])[:500])
                values.append(self.judge(outputs_of(made, held), held.labels, truth))
                if not number and most is not None and self._lost(values[0]) > most:
                    told = f"{GIVEN_UP}: it loses {self._lost(values[0]):.3g} there, more than {most:.3g}"
                    return Candidate(pipeline, tuple(values), costs, problem=told)
            except GatewrightError as error:
                return Candidate(pipeline, (), costs, problem=str(error)[:500])
        if not all(map(math.isfinite, values)):
            return Candidate(pipeline, (), costs, problem=f"its {self.judge.name} is not a finite number")
        return Candidate(pipeline, tuple(values), costs)

    def _made(self, number: int, pipeline: str, rest: Dataset) -> Model:
        """The model of a fold after ``pipeline``; what other pipelines did to it in the same words is not done again."""
        if self.seen:
            # Who teaches must not have seen the fold either.
            pipeline = pipeline.replace(str(self.study.teacher), str(self.study.fold(number)))
        passes = tuple(Pipeline.parse(pipeline))
        done = next((n for n in range(len(passes), 0, -1) if (number, tuple(map(str, passes[:n]))) in self._models), 0)
        model = self._models[number, tuple(map(str, passes[:done]))] if done else self._begun[number]
        for count in range(done, len(passes)):
            model = transform(model, Pipeline((passes[count],)), rest, seed=self.seed)
            self._remember((number, tuple(map(str, passes[: count + 1]))), model)
        return model

    def _remember(self, key: tuple[int, tuple[str, ...]], model: Model) -> None:
        self._models[key] = model
        while sum(map(work.weight_bytes, self._models.values())) > _KEPT_BYTES or len(self._models) > 256:
            self._models.popitem(last=False)

    def _afresh(self, number: int, rest: Dataset) -> Model:
        """The network learned from the other folds alone; always read from its file, so that a killed study goes on from the same one."""
        file = self.study.fold(number)
        if not file.exists():
            self.progress(f"learning fold {number + 1} of {self.folds} afresh", number, self.folds)
            file.parent.mkdir(exist_ok=True)
            transform(self.model, f"fuse,{AFRESH}", rest, seed=self.seed).save(file)
        return load(file).renamed(self.model.name)


def outputs_of(model: Model, data: Dataset) -> dict[str, Any]:
    """What the model means by the data."""
    with RefExecutor(model) as executor:
        return session.run(executor, data).outputs


def costs_of(model: Model, check: Check, file: bool = False) -> Mapping[str, Measurement]:
    """What the target estimates of the model as it is, and the bytes of the weights.

    Figures of which more is better are no costs, nor is what a change would bring (a CPU's latency_int8, latency_threads_1).
    """
    found = {name: figure for name, figure in check.figures.items() if figure.unit != "1/s" and not name.startswith("latency_")}
    found["bytes"] = Measurement(float(work.weight_bytes(model)), "B", "measured")
    return {**found, FILE: Measurement(float(len(encode(model)[0])), "B", "measured")} if file else found
