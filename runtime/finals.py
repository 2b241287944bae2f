"""The end of a search: the choice and a few other points made from all of the data, compiled for the target, run and compared.

During the search a cost is the target's estimate of the first fold's model. Here it is that of the model which the user gets, and what
can be measured on this machine is measured: latency on a ``cpu``, exactness of an emulated or simulated design. Every figure says where
it came from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatewright.errors import GatewrightError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.progress import Progress
from gatewright.targets.base import Target

from . import partition, session
from .atomic import write_file
from .compare import compare
from .difference import exact_outputs, output_error, tolerance
from .driver import compile_timed, transform
from .evaluate import FILE, costs_of, outputs_of
from .front import Candidate, Finalist, Front
from .metrics import Metric
from .report import Row
from .study import Study

RESAMPLES = 1000
SIMULATED = 32
"""Samples that a finalist's design is simulated on, cycle by cycle."""

Outputs = Mapping[str, NDArray[Any]]


def finish(
    front_of: Callable[[Sequence[Candidate]], Front],
    tried: Sequence[Candidate],
    model: Model,
    target: Target,
    data: Dataset,
    test: Dataset | None,
    judge: Metric,
    finalists: int,
    study: Study,
    seed: int,
    progress: Progress,
) -> Front:
    """The front with its finalists, and the files written. A point that fails when it is made from all of the data is one no more."""
    front, made = _made(front_of, tried, model, target, data, finalists, seed, progress)
    best = made[front.chosen.pipeline].renamed(f"{model.name}-best")
    if finalists:
        front = _judged(front, made, model, target, data, test or data, judge, seed, progress)
    best.save(study.folder / "best.onnx")
    compile_timed(best, front.target, study.folder / "best", seed=seed, progress=progress)
    write_file(study.folder / "front.json", json.dumps(front.to_json(), indent=1).encode())
    front.save_html(study.folder / "front.html")
    return front


def _made(
    front_of: Callable[[Sequence[Candidate]], Front],
    tried: Sequence[Candidate],
    model: Model,
    target: Target,
    data: Dataset,
    finalists: int,
    seed: int,
    progress: Progress,
) -> tuple[Front, dict[str, Model]]:
    """The finalists' models, by their pipelines, the choice first."""
    made: dict[str, Model] = {}
    tried = list(tried)
    while True:
        front = front_of(tried)
        wanted = _wanted(front, max(1, finalists))
        for number, one in enumerate(wanted):
            if one.pipeline in made:
                continue
            progress(f"making finalist {one.pipeline}", number, len(wanted))
            try:
                made[one.pipeline] = transform(model, one.pipeline, data, seed=seed)
                check = partition.check(made[one.pipeline], target)
                problem = "; ".join([*map(str, check.problems), *check.shortfalls])
            except GatewrightError as error:
                problem = str(error)
            if problem:
                told = f"made from all of the data: {problem}"[:500]
                tried[tried.index(one)] = replace(one, folds=(), problem=told)
                break
        else:
            return front, {one.pipeline: made[one.pipeline] for one in wanted}


def _wanted(front: Front, count: int) -> list[Candidate]:
    """The choice, the cheapest point that beats uniform quantization, the knee, the others that beat it, then any, the best first."""
    by_metric = sorted(front.points, key=lambda one: one.metric, reverse=front.higher_is_better)
    order = (front.chosen, *front.dominating[:1], front.knee, *front.dominating, *by_metric)
    return list({one.pipeline: one for one in order}.values())[:count]


def _judged(
    front: Front,
    made: Mapping[str, Model],
    model: Model,
    target: Target,
    data: Dataset,
    test: Dataset,
    judge: Metric,
    seed: int,
    progress: Progress,
) -> Front:
    named = {pipeline: one.renamed(f"finalist-{number + 1}") for number, (pipeline, one) in enumerate(made.items())}
    rivals = [model.renamed("uncompressed")]
    targets = {"uncompressed": ["ref"], **{one.name: ["ref", front.target] for one in named.values()}}
    if front.uniform is not None and front.uniform.pipeline not in named:
        rivals.append(transform(model, front.uniform.pipeline, data, seed=seed, progress=progress).renamed("uniform"))
        # Beside the finalists where the target measures here; on other targets its estimates say all.
        measured = target.builds_on_compile and front.uniform.problem is None
        targets["uniform"] = ["ref", front.target] if measured else ["ref"]
    report = compare([*rivals, *named.values()], targets, test, judge, max_drop=front.max_drop, progress=progress)
    truth = outputs_of(model, test)
    rival = truth if front.uniform is None else outputs_of(named.get(front.uniform.pipeline, rivals[-1]), test)
    rows = {(row.model, row.target): row for row in report.rows}
    judged = []
    for pipeline, one in named.items():
        difference, interval = paired(judge, outputs_of(one, test), rival, truth, test.labels, seed)
        row = rows[one.name, front.target]
        metric = row.metric or rows[one.name, "ref"].metric
        assert metric is not None
        costs = costs_of(one, partition.check(one, target), FILE in front.objectives)
        exactness = _exactness(one, row, front.target, target.simulates, test, seed, progress)
        judged.append(Finalist(one.name, pipeline, metric, difference, interval, len(test), costs, exactness, row.latency))
    return replace(front, report=report, finalists=tuple(judged))


def paired(
    judge: Metric, ours: Outputs, theirs: Outputs, truth: Outputs, labels: NDArray[Any] | None, seed: int
) -> tuple[float, tuple[float, float]]:
    """By how much our metric is better than theirs on the same samples, and the 95 % interval of that: the percentile bootstrap, both
    judged on the same draws (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, §13.3)."""
    sign = 1 if judge.higher_is_better else -1

    def difference(index: NDArray[Any] | slice) -> float:
        drawn = [{name: array[index] for name, array in outputs.items()} for outputs in (ours, theirs, truth)]
        given = None if labels is None else labels[index]
        return sign * (judge(drawn[0], given, drawn[2]) - judge(drawn[1], given, drawn[2]))

    samples = min((len(array) for array in ours.values() if array.ndim), default=0)
    if samples < 2:
        found = difference(slice(None))
        return found, (found, found)
    random = np.random.default_rng([seed, 13])
    draws = [difference(random.integers(0, samples, samples)) for _ in range(RESAMPLES)]
    low, high = np.percentile(draws, (2.5, 97.5))
    return difference(slice(None)), (float(low), float(high))


def _exactness(model: Model, row: Row, target: str, simulates: bool, test: Dataset, seed: int, progress: Progress) -> str:
    """How the finalist ran on the target and what differs from ref, in words; a design that can be simulated is."""
    if row.status != "ok" or row.metric is None:
        return f"not run: {row.reason}"
    wrong = 0 if row.error_ref is None else row.error_ref.mismatching_samples
    told = f"{row.metric.source} on {len(test)} samples, {wrong or 'none'} of them unlike ref"
    if not simulates:
        return told
    return f"{told}; {_simulated(model, target, test.take(min(SIMULATED, len(test))), seed, progress)}"


def _simulated(model: Model, target: str, some: Dataset, seed: int, progress: Progress) -> str:
    try:
        progress(f"simulating {model.name}")
        with compile_timed(model, target, seed=seed).artifact.load("simulate") as executor:
            found = session.run(executor, some).outputs
    except GatewrightError as error:
        return f"not simulated: {error.message}"
    unlike = output_error(found, outputs_of(model, some), exact_outputs(model), tolerance(model))
    wrong = 0 if unlike is None else unlike.mismatching_samples
    return f"simulated on {len(some)} samples, {wrong or 'none'} of them unlike ref"
