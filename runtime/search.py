"""``optimize``: which pipeline? Searched for, not guessed: accuracy against what the model costs on the device.

A candidate is the text of a pipeline (``space.py``), its figures come from ``evaluate.py``, Optuna's tree of Parzen estimators decides
what to try next, and ``finals.py`` makes, compiles and measures a few points of the front.

Every evaluation is kept in the study's folder (``study.py``) as it comes. A search that is started again asks the same questions in the
same order and takes the answers that it finds there, so a killed one goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gatewright
from gatewright.errors import DataError, ToolMissing, UnsupportedError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.progress import Progress, silent

from . import finals
from .evaluate import AFRESH, GIVEN_UP, Evaluator
from .front import Candidate, Front, choose, knee, pareto
from .metrics import Metric, MetricFunction
from .metrics import metric as metric_of
from .space import LABELLED, ROUNDING, Space
from .study import Study
from .targetspec import canonical_text, resolve

STARTUP = 10
"""Candidates before the estimators are asked, the seeds among them."""
NEAR = 5.0
"""Candidates that lose more than so many times what is allowed are none to look around."""
FAR = 15.0
"""Those that lose more than so many times what is allowed on the first fold are not judged on the others."""
WORST = 10.0
"""A candidate that a pass refused counts as this many times the dearest."""


def optimize(
    model: Model,
    target: str,
    data: Dataset,
    *,
    max_drop: float = 0.01,
    costs: Sequence[str] | None = None,
    metric: str | Metric | MetricFunction | None = None,
    methods: Sequence[str] | None = None,
    seen: bool = False,
    folds: int = 3,
    trials: int = 60,
    budget_s: float = 1800.0,
    test: Dataset | None = None,
    finalists: int = 3,
    out: str | Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Front:
    """The Pareto front of ``metric`` against ``costs`` on ``target``, and the cheapest point that loses at most ``max_drop``.

    ``costs``: latency, energy, bytes, ``file`` (Huffman-coded), or a resource that the target estimates (LUT, DSP, …); the first decides
    the choice. ``seen``: the model was trained on this very data, so each fold begins from a network learned afresh on the others.
    ``budget_s``: seconds of evaluation in all, those of an earlier call on the same study included. ``test``: data that
    chooses nothing, to judge the finalists on. ``out``: the study's folder (in the cache where None); afterwards it also has
    ``front.json``, ``front.html``, ``best.onnx`` and ``best/``, the artifact for the target.

    Raises UsageError for a cost that the target does not estimate, and where ``out`` holds another study; DataError for too
    few samples; UnsupportedError where no candidate at all is possible on the target.
    """
    bound = resolve(target)
    _check_numbers(trials, budget_s, finalists, max_drop, folds, len(data))
    judge = metric_of(metric, data.labels)
    judge.require(data.labels)
    if seen:
        _check_seen(data)
    described = {
        "gatewright": gatewright.__version__, "model": model.digest, "data": data.digest, "target": canonical_text(bound),
        "device": None if bound.device is None else bound.device.to_json(), "metric": judge.name, "folds": folds, "seed": seed,
        "seen": AFRESH if seen else False,
    }  # fmt: skip
    study = Study.at(out, described)
    optuna = _optuna()
    evaluate = Evaluator(model, bound, data, judge, folds, seed, progress, study, seen)
    evaluate.choose_objectives(costs, "fuse" if bound.quantization is None else bound.quantization)
    space = Space.of(model, bound, evaluate.objectives, methods, data.labels is not None, str(study.teacher))
    if "distil" in space.methods and set(",{}|") & set(str(study.teacher)):
        raise UsageError(f"{study.folder} cannot be written in a pipeline's text", hint="a folder without , { } | in its path, -o DIR")
    # Only now, when nothing that the user wrote can be wrong any more, is anything written.
    study.begin()
    if "distil" in space.methods and not study.teacher.exists():
        model.save(study.teacher)
    evaluate.prepare()
    uniform = evaluate(space.uniform) if set(ROUNDING) & set(space.methods) else None
    tried = _search(optuna, evaluate, space, uniform, max_drop, trials, budget_s, seed, progress)
    notes = _notes(evaluate, space, data, test)

    def front(tried: Sequence[Candidate]) -> Front:
        points = pareto(tried, evaluate.objectives, judge.higher_is_better)
        if not points:
            raise UnsupportedError(f"none of {len(tried)} candidates is possible on {target}: {_commonest(tried)}")
        chosen, reason = choose(points, evaluate.baseline, max_drop, evaluate.objectives[0], judge.higher_is_better)
        if judge.drop(chosen.metric, evaluate.baseline) > max_drop:
            reason += "; " + _why(tried, evaluate, space)
        return Front(
            model.name, target, judge.name, judge.higher_is_better, evaluate.objectives, evaluate.baseline, max_drop, tuple(tried), points,
            chosen, reason, knee(points, evaluate.objectives, judge.higher_is_better), uniform, seen, notes=notes,
        )  # fmt: skip

    return finals.finish(front, tried, model, bound, data, test, judge, finalists, study, seed, progress)


def _check_numbers(trials: int, budget_s: float, finalists: int, max_drop: float, folds: int, samples: int) -> None:
    for name, value, right, takes in (
        ("trials", trials, trials >= 1, "1 or more"),
        ("budget", budget_s, budget_s > 0, "more than 0 seconds"),
        ("finalists", finalists, finalists >= 0, "0 or more"),
        ("max_drop", max_drop, 0 <= max_drop < math.inf, "0 or more"),
        ("folds", folds, folds >= 2, "2 or more"),
    ):
        if not right:
            raise UsageError(f"optimize: {name} is {value:g}; it takes {takes}")
    if samples < 2 * folds:
        raise DataError(f"{samples} samples are too few for {folds} folds", hint=f"give {2 * folds} or more, or fewer folds")


def _check_seen(data: Dataset) -> None:
    from importlib.util import find_spec

    if data.labels is None:
        raise DataError("seen needs labels: each fold's network is learned afresh", hint="name them, --data 'FILE{labels=NAME}'")
    if find_spec("torch") is None:
        raise ToolMissing("seen trains, which needs torch", hint="pip install 'gatewright[torch]', or data that the model has not seen")


def _search(
    optuna: Any,
    evaluate: Evaluator,
    space: Space,
    uniform: Candidate | None,
    max_drop: float,
    trials: int,
    budget_s: float,
    seed: int,
    progress: Progress,
) -> list[Candidate]:
    """The candidates that were tried, each once, in order."""
    seeds, objectives = space.seeds(), evaluate.objectives
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(STARTUP, len(seeds)), multivariate=True, group=True)
    directions = ["maximize" if evaluate.judge.higher_is_better else "minimize", *("minimize" for _ in objectives)]
    study = optuna.create_study(sampler=sampler, directions=directions)
    for choices in seeds:
        study.enqueue_trial(dict(choices))
    tried: dict[str, Candidate] = {} if uniform is None else {uniform.pipeline: uniform}
    spent = sum(one.seconds for one in tried.values())
    worst = dict.fromkeys(objectives, 0.0)
    for number in range(trials):
        if spent >= budget_s and tried:
            break
        trial = study.ask()
        pipeline = space.suggest(trial)
        progress(f"{_best_so_far(tried, evaluate, max_drop)}; trying {pipeline}", number, trials)
        # Not before there is something to fall back on: the best is returned where nothing holds the drop.
        sound = max_drop > 0 and any(one.problem is None for one in tried.values())
        found = evaluate(pipeline, FAR * max_drop if sound else None)
        if pipeline not in tried:
            spent += found.seconds
        tried[pipeline] = found
        for name in objectives:
            if name in found.costs:
                worst[name] = max(worst[name], found.costs[name].value)
        trial.set_constraint("possible and near", _violation(found, evaluate, worst, max_drop))
        study.tell(trial, _values(found, objectives, worst, evaluate))
    return list(tried.values())


def _best_so_far(tried: Mapping[str, Candidate], evaluate: Evaluator, max_drop: float) -> str:
    cost = evaluate.objectives[0]
    within = [
        one.costs[cost] for one in tried.values()
        if one.problem is None and evaluate.judge.drop(one.metric, evaluate.baseline) <= max_drop + 1e-12
    ]  # fmt: skip
    if not within:
        return "nothing within the drop yet"
    best = min(within, key=lambda figure: figure.value)
    return f"{cost} {best.value:.4g} {best.unit}".rstrip(" 1") + " within the drop so far"


def _violation(found: Candidate, evaluate: Evaluator, worst: Mapping[str, float], max_drop: float) -> float:
    """Above 0 for what is no candidate to look around: the more, the farther it is from being one."""
    if found.problem is None:
        drop = evaluate.judge.drop(found.metric, evaluate.baseline)
        # Everything counts where nothing may be lost: then there is no measure of what is far.
        return 1 - NEAR * max_drop / drop if drop > NEAR * max_drop > 0 else 0.0
    cost = evaluate.objectives[0]
    if found.folds:  # given up: it is possible, but far
        return 1.0
    return 1.0 + (found.costs[cost].value / worst[cost] if cost in found.costs and worst[cost] > 0 else WORST)


def _values(found: Candidate, objectives: Sequence[str], worst: Mapping[str, float], evaluate: Evaluator) -> list[float]:
    """What the sampler hears. An impossible candidate has the worst metric, and what it would cost where that is known."""
    costs = [found.costs[name].value if name in found.costs else WORST * max(worst[name], 1e-9) for name in objectives]
    if found.folds:
        return [found.metric, *costs]
    return [0.0 if evaluate.judge.higher_is_better else WORST * max(abs(evaluate.baseline), 1.0), *costs]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ToolMissing("searching needs the package optuna", hint="pip install 'gatewright[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _commonest(tried: Sequence[Candidate]) -> str:
    problems = [one.problem for one in tried if one.problem is not None]
    return max(problems, key=problems.count) if problems else ""


def _why(tried: Sequence[Candidate], evaluate: Evaluator, space: Space) -> str:
    """Why nothing that was tried holds the drop, and what to do."""
    told = []
    impossible = [one for one in tried if one.problem is not None and not one.problem.startswith(GIVEN_UP)]
    if impossible:
        told.append(f"{len(impossible)} of {len(tried)} candidates are not possible, most often: {_commonest(impossible)}")
    sound = [one for one in tried if one.problem is None]
    noise = max(one.spread for one in sound) / math.sqrt(evaluate.folds)
    told.append(f"a mean of these {evaluate.folds} folds is uncertain by up to {noise:.2g}")
    trains = set(space.methods) & {*LABELLED, "distil"}
    more = "" if trains else ", add a method that trains (finetune, qat, distil; needs labels and torch)"
    told.append(f"search longer (trials, budget), allow more (max_drop), give more data{more}, or take a larger device")
    return "; ".join(told)


def _notes(evaluate: Evaluator, space: Space, data: Dataset, test: Dataset | None) -> tuple[str, ...]:
    notes = []
    if evaluate.seen:
        notes.append(
            f"the model has seen the data: folds begin from networks learned afresh ({AFRESH}), and the drop is counted from those"
        )
    elif evaluate.baseline == 1.0 and evaluate.judge.name == "accuracy" and set(space.methods) & set(LABELLED):
        notes.append(
            "the model makes no error at all on the data: if it was trained on it, say seen (--seen), "
            "or candidates that are trained again are held against what it remembers"
        )
    if test is None:
        notes.append("finalists are judged on the data that chose them; --test FILE judges them on other data")
    elif test.digest == data.digest:
        notes.append("the test data is the data that chose: the finalists' figures are too good")
    return tuple(notes)
