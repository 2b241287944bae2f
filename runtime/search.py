"""``optimize``: which pipeline? Searched for, not guessed: accuracy against what the model costs on the device.

A candidate is the text of a pipeline. Its accuracy is the mean over k folds of the user's data: calibrated and trained on the
others, judged on the fold, on ``ref``, which says what the model means on every target. Its costs are the target's own
estimates. A few finalists of the front are then made from all of the data, compiled, and measured side by side.

Every evaluation is kept in the study's folder as it comes. A search that is started again asks the same questions in the same
order and takes the answers that it finds there, so a killed one goes on as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gatewright
from gatewright.errors import DataError, GatewrightError, ToolMissing, UnsupportedError, UsageError, nearest
from gatewright.frontend import work
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.hw.measurement import Measurement
from gatewright.progress import Progress, silent
from gatewright.targets.base import Check, Target
from gatewright.targets.ref.target import RefExecutor

from . import partition, session
from .atomic import write_file
from .compare import compare
from .driver import compile as compile_model
from .driver import context, transform
from .front import Candidate, Front, choose, knee, pareto
from .metrics import Metric, MetricFunction
from .metrics import metric as metric_of
from .space import Space
from .targetspec import canonical_text, resolve

STUDY, EVALUATIONS, TEACHER = "study.json", "evaluations.jsonl", "teacher.onnx"
WORST = 10.0
"""A candidate that a pass refused counts as this many times the dearest, so that the search turns away."""


def optimize(
    model: Model,
    target: str,
    data: Dataset,
    *,
    max_drop: float = 0.01,
    costs: Sequence[str] | None = None,
    metric: str | Metric | MetricFunction | None = None,
    methods: Sequence[str] | None = None,
    folds: int = 3,
    trials: int = 100,
    budget_s: float = 1800.0,
    test: Dataset | None = None,
    finalists: int = 3,
    out: str | Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Front:
    """The Pareto front of ``metric`` against ``costs`` on ``target``, and the cheapest point that loses at most ``max_drop``.

    ``costs``: latency, energy, bytes, or a resource that the target estimates (LUT, DSP, …); the first decides the choice.
    ``budget_s``: seconds of evaluation in all, those of an earlier call on the same study included. ``test``: data that
    chooses nothing, to judge the finalists on. ``out``: the study's folder (in the cache where None); afterwards it also has
    ``front.json``, ``front.html``, ``best.onnx`` and ``best/``, the artifact for the target.

    Raises UsageError for a cost that the target does not estimate, and where ``out`` holds another study; DataError for too
    few samples; UnsupportedError where no candidate at all is possible on the target.
    """
    bound = resolve(target)
    if trials < 1 or budget_s <= 0 or finalists < 0 or not 0 <= max_drop < float("inf"):
        given = f"trials {trials}, budget {budget_s:g} s, finalists {finalists}, max_drop {max_drop:g}"
        raise UsageError(f"optimize: one is out of range: {given}", hint="trials and budget are above 0, the others 0 or more")
    if len(data) < 2 * folds:
        raise DataError(f"{len(data)} samples are too few for {folds} folds", hint=f"give {2 * folds} or more, or fewer folds")
    judge = metric_of(metric, data.labels)
    judge.require(data.labels)
    described = {
        "gatewright": gatewright.__version__, "model": model.digest, "data": data.digest, "target": canonical_text(bound),
        "device": None if bound.device is None else bound.device.to_json(), "metric": judge.name, "folds": folds, "seed": seed,
    }  # fmt: skip
    folder = _folder(out, described)
    space = Space.of(bound, methods, data.labels is not None, str(folder / TEACHER))
    evaluator = _Evaluator(model, bound, data, judge, folds, seed, progress, folder / EVALUATIONS)
    objectives = evaluator.objectives(costs, space)
    # Only now, when nothing that the user wrote can be wrong any more, is anything written.
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / STUDY, json.dumps(described, indent=1).encode())
    if "distil" in space.methods and not (folder / TEACHER).exists():
        model.save(folder / TEACHER)
    tried = _search(evaluator, space, objectives, trials, budget_s, seed, progress)
    points = pareto(tried, objectives, judge.higher_is_better)
    if not points:
        raise UnsupportedError(f"none of {len(tried)} candidates is possible on {target}: {_commonest(tried)}")
    chosen, reason = choose(points, evaluator.baseline, max_drop, objectives[0], judge.higher_is_better)
    front = Front(
        model.name, target, judge.name, judge.higher_is_better, objectives, evaluator.baseline, max_drop, tuple(tried), points,
        chosen, reason, knee(points, objectives, judge.higher_is_better),
    )  # fmt: skip
    return _finish(front, model, data, test, judge, finalists, folder, seed, progress)


@dataclass
class _Evaluator:
    """Candidates' figures, each worked out once and kept on disk."""

    model: Model
    target: Target
    data: Dataset
    judge: Metric
    folds: int
    seed: int
    progress: Progress
    store: Path
    known: dict[str, Candidate] = field(default_factory=dict)
    baseline: float = 0.0

    def __post_init__(self) -> None:
        self.known = {one.pipeline: one for one in _read(self.store)}
        self._pairs = self.data.split(self.folds)
        self.progress(f"{self.model.name} on ref")
        self._truths = [self._outputs(self.model, held) for _, held in self._pairs]
        values = [self.judge(truth, held.labels, truth) for truth, (_, held) in zip(self._truths, self._pairs, strict=True)]
        self.baseline = sum(values) / len(values)

    def objectives(self, costs: Sequence[str] | None, space: Space) -> tuple[str, ...]:
        """The costs by the target's own spelling. Raises UsageError with the nearest names."""
        text = "fuse,quantize{bits=8,grid=pow2}" if space.must_quantize else "fuse"
        made = transform(self.model, text, self.data, seed=self.seed, progress=self.progress)
        available = _costs(made, partition.check(made, self.target))
        if costs is None:
            # An FPGA is full before it is slow.
            return ("LUT",) if "LUT" in available else ("latency",) if "latency" in available else ("bytes",)
        spelled = {name.lower(): name for name in available}
        for cost in costs:
            if cost.lower() not in spelled:
                raise UsageError(f"{self.target.name} estimates no {cost!r}", hint=nearest(cost, available, "costs"))
        return tuple(dict.fromkeys(spelled[cost.lower()] for cost in costs))

    def __call__(self, pipeline: str) -> Candidate:
        if pipeline not in self.known:
            start = time.monotonic()
            found = self._evaluate(pipeline)
            done = Candidate(found.pipeline, found.folds, found.costs, time.monotonic() - start, found.problem)
            _append(self.store, done)
            self.known[pipeline] = done
        return self.known[pipeline]

    def _evaluate(self, pipeline: str) -> Candidate:
        values: list[float] = []
        costs: dict[str, Measurement] = {}
        for number, ((rest, held), truth) in enumerate(zip(self._pairs, self._truths, strict=True)):
            try:
                made = transform(self.model, pipeline, rest, seed=self.seed)
                if not number:
                    check = partition.check(made, self.target)
                    costs = _costs(made, check)
                    if not check.ok:
                        return Candidate(pipeline, (), costs, problem="; ".join([*map(str, check.problems), *check.shortfalls])[:500])
                values.append(self.judge(self._outputs(made, held), held.labels, truth))
            except GatewrightError as error:
                return Candidate(pipeline, (), costs, problem=str(error)[:500])
        return Candidate(pipeline, tuple(values), costs)

    def _outputs(self, model: Model, data: Dataset) -> dict[str, Any]:
        with RefExecutor(model) as executor:
            return session.run(executor, data).outputs


def _search(
    evaluate: _Evaluator, space: Space, objectives: Sequence[str], trials: int, budget_s: float, seed: int, progress: Progress
) -> list[Candidate]:
    """The candidates that were tried, each once, in order."""
    optuna = _optuna()
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=20)
    directions = ["maximize" if evaluate.judge.higher_is_better else "minimize", *("minimize" for _ in objectives)]
    study = optuna.create_study(sampler=sampler, directions=directions)
    for choices in space.anchors():
        study.enqueue_trial(dict(choices))
    tried: dict[str, Candidate] = {}
    spent, worst = 0.0, dict.fromkeys(objectives, 0.0)
    for number in range(trials):
        if spent >= budget_s:
            break
        trial = study.ask()
        pipeline = space.suggest(trial)
        progress(f"trying {pipeline}", number, trials)
        found = evaluate(pipeline)
        if pipeline not in tried:
            spent += found.seconds
        tried[pipeline] = found
        for name in objectives:
            if name in found.costs:
                worst[name] = max(worst[name], found.costs[name].value)
        study.tell(trial, _values(found, objectives, worst, evaluate))
    return list(tried.values())


def _values(found: Candidate, objectives: Sequence[str], worst: Mapping[str, float], evaluate: _Evaluator) -> list[float]:
    """What the sampler hears. An impossible candidate has the worst metric, and what it would cost where that is known."""
    costs = [found.costs[name].value if name in found.costs else WORST * max(worst[name], 1e-9) for name in objectives]
    if found.problem is None:
        return [found.metric, *costs]
    return [0.0 if evaluate.judge.higher_is_better else WORST * max(abs(evaluate.baseline), 1.0), *costs]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ToolMissing("searching needs the package optuna", hint="pip install 'gatewright[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _costs(model: Model, check: Check) -> dict[str, Measurement]:
    """What the target estimates, and the bytes of the weights; figures of which more is better are no costs."""
    found = {name: figure for name, figure in check.figures.items() if figure.unit != "1/s"}
    return {**found, "bytes": Measurement(float(work.weight_bytes(model)), "B", "measured")}


def _commonest(tried: Sequence[Candidate]) -> str:
    problems = [one.problem for one in tried if one.problem is not None]
    return max(problems, key=problems.count)


def _finish(
    front: Front,
    model: Model,
    data: Dataset,
    test: Dataset | None,
    judge: Metric,
    finalists: int,
    folder: Path,
    seed: int,
    progress: Progress,
) -> Front:
    """Make, compile and compare the finalists, and write the files."""
    wanted = list({one.pipeline: one for one in (front.chosen, front.knee, *front.points)}.values())[:finalists]
    made: dict[str, Model] = {}
    for number, one in enumerate(wanted):
        progress(f"making finalist {one.pipeline}", number, len(wanted))
        made[one.pipeline] = transform(model, one.pipeline, data, seed=seed).renamed(f"finalist-{number + 1}")
    if made:
        uncompressed = model.renamed("uncompressed")
        targets = {"uncompressed": ["ref"], **{one.name: ["ref", front.target] for one in made.values()}}
        report = compare([uncompressed, *made.values()], targets, test or data, judge, max_drop=front.max_drop, progress=progress)
        names = {pipeline: one.name for pipeline, one in made.items()}
        front = replace(front, report=report, names=names)
    best = made.get(front.chosen.pipeline)
    best = best if best is not None else transform(model, front.chosen.pipeline, data, seed=seed, progress=progress)
    best = best.renamed(f"{model.name}-best")
    best.save(folder / "best.onnx")
    compile_model(best, front.target, folder / "best", seed=seed, progress=progress)
    write_file(folder / "front.json", json.dumps(front.to_json(), indent=1).encode())
    front.save_html(folder / "front.html")
    return front


def _folder(out: str | Path | None, described: Mapping[str, Any]) -> Path:
    """Where the study is or will be. Raises UsageError where something else is there."""
    if out is None:
        import hashlib

        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
        out = context().cache_dir / "studies" / key
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="give a folder, -o DIR")
    file = folder / STUDY
    if file.exists():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UsageError(f"{file} is damaged", hint="give another folder, or remove this one") from None
        changed = [name for name, value in described.items() if found.get(name) != value]
        if changed:
            raise UsageError(f"{folder} holds another study: its {', '.join(changed)} differ", hint="give another folder, -o DIR")
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and holds no study", hint="give a new or an empty folder, -o DIR")
    return folder


def _read(store: Path) -> list[Candidate]:
    """The evaluations so far. A line that a kill or a bad disk has damaged is none: it is evaluated again."""
    if not store.exists():
        return []
    found = []
    for line in store.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(Candidate.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def _append(store: Path, found: Candidate) -> None:
    # A line of its own even behind one that was torn.
    torn = store.exists() and store.stat().st_size > 0 and store.read_bytes()[-1:] != b"\n"
    with open(store, "ab") as file:
        file.write((b"\n" if torn else b"") + json.dumps(found.to_json()).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


