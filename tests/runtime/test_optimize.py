"""``optimize``: the front is the front, the choice is the cheapest within the drop, and a killed study goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gatewright.errors import DataError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.hw.measurement import Measurement
from gatewright.runtime import finals, study
from gatewright.runtime.cli import app
from gatewright.runtime.driver import load, transform
from gatewright.runtime.evaluate import Evaluator
from gatewright.runtime.front import Candidate, Front, choose, knee, pareto
from gatewright.runtime.metrics import metric as metric_of
from gatewright.runtime.search import optimize

optuna = pytest.importorskip("optuna", reason="the search needs optuna")


def candidate(metric: float, *costs: float, name: str = "") -> Candidate:
    found = {f"c{i}": Measurement(value, "B", "estimated") for i, value in enumerate(costs)}
    return Candidate(name or f"p{metric}{costs}", (metric, metric), found)


SCORES = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=30)


@given(SCORES, st.booleans())
def test_the_front_is_what_nothing_beats(scores: list[tuple[int, int, int]], higher: bool) -> None:
    tried = [candidate(float(m), float(a), float(b), name=str(i)) for i, (m, a, b) in enumerate(scores)]
    found = pareto(tried, ("c0", "c1"), higher)

    def beats(x: tuple[int, int, int], y: tuple[int, int, int]) -> bool:
        good = x[0] >= y[0] if higher else x[0] <= y[0]
        return good and x[1] <= y[1] and x[2] <= y[2] and x != y

    wanted = {score for score in scores if not any(beats(other, score) for other in scores)}
    assert {scores[int(one.pipeline)] for one in found} == wanted
    assert len(found) == len(wanted), "of equals one"
    assert knee(found, ("c0", "c1"), higher) in found


def test_the_impossible_is_on_no_front() -> None:
    lost = Candidate("lost", (), {}, problem="does not fit")
    assert pareto([lost, candidate(0.5, 3.0)], ("c0",), True) == (candidate(0.5, 3.0),)
    assert pareto([lost], ("c0",), True) == ()


def test_the_choice_is_the_cheapest_within_the_drop() -> None:
    points = pareto([candidate(0.9, 100.0), candidate(0.895, 50.0), candidate(0.7, 10.0)], ("c0",), True)
    assert choose(points, 0.9, 0.01, "c0", True)[0].metric == 0.895
    assert choose(points, 0.9, 0.5, "c0", True)[0].metric == 0.7
    best, why = choose(points, 0.99, 0.01, "c0", True)
    assert best.metric == 0.9
    assert "nothing found" in why
    errors = pareto([candidate(1.0, 100.0), candidate(1.2, 50.0), candidate(9.0, 10.0)], ("c0",), False)
    assert choose(errors, 1.0, 0.25, "c0", False)[0].metric == 1.2


def labelled(model: Model, count: int = 60) -> Dataset:
    """Data that the model gets right."""
    from gatewright.frontend.reference import Reference

    x = np.random.default_rng(3).uniform(-1, 1, (count, 4)).astype(np.float32)
    return Dataset({"x": x}, Reference(model).run({"x": x})["y"].argmax(axis=1), name="right")


def run(model: Model, out: Path, **options: object) -> Front:
    given = {"trials": 8, "methods": ("prune", "quantize"), "finalists": 1, "costs": ["bytes"], **options}
    return optimize(model, "ort", labelled(model), out=out, **given)  # type: ignore[arg-type]


def figures(front: Front | dict[str, Any]) -> dict[str, Any]:
    """All that a front says, but for what a clock read."""
    found: dict[str, Any] = json.loads(json.dumps(front if isinstance(front, dict) else front.to_json()))
    found.pop("report")
    found.pop("finalists")
    for point in (*found["front"], found["chosen"], found["knee"], found["uniform"]):
        point.pop("seconds")
    return found


def test_a_whole_search(mlp: Model, tmp_path: Path) -> None:
    front = run(mlp, tmp_path / "study", finalists=2)
    assert front.baseline == 1.0
    assert front.objectives == ("bytes",)
    assert front.chosen in front.points
    # The figures are those of the pipeline, replayed: nothing is invented on the way.
    replayed = transform(mlp, front.chosen.pipeline, labelled(mlp))
    from gatewright.frontend.work import weight_bytes

    assert front.chosen.costs["bytes"].value == weight_bytes(replayed)
    saved = json.loads((tmp_path / "study" / "front.json").read_text())
    assert saved == json.loads(json.dumps(front.to_json()))
    assert saved["chosen"]["pipeline"] == front.chosen.pipeline
    assert load(tmp_path / "study" / "best.onnx").digest == replayed.digest
    assert (tmp_path / "study" / "best" / "manifest.json").exists()
    page = (tmp_path / "study" / "front.html").read_text()
    assert front.chosen.pipeline in page
    assert page.count("<svg") > 4
    assert front.report is not None
    assert {row.status for row in front.report.rows} == {"ok"}
    assert front.finalists[0].pipeline == front.chosen.pipeline
    assert front.finalists[0].exactness.startswith("measured on 60 samples")
    assert any("no error at all" in note for note in front.notes) is False, "nothing here trains"
    assert any("--test" in note for note in front.notes)


def test_uniform_quantization_is_tried_first_and_beaten(mlp: Model, tmp_path: Path) -> None:
    front = run(mlp, tmp_path / "study")
    assert front.tried[0].pipeline == "fuse,quantize{bits=8,grid=pow2}"
    assert front.uniform is front.tried[0]
    for one in front.dominating:
        assert one.metric >= front.uniform.metric
        assert one.costs["bytes"].value <= front.uniform.costs["bytes"].value
        assert one.metric > front.uniform.metric or one.costs["bytes"].value < front.uniform.costs["bytes"].value
    # One that does not fit is no rival: what fits within the drop is better.
    lost = replace(front, uniform=replace(front.uniform, folds=(), problem="LUT: needs about 9, it has 5"), max_drop=0.05)
    assert [one for one in lost.points if lost.drop(one) <= 0.05] == list(lost.dominating)
    assert "LUT: needs about 9" in lost.verdict


SEARCH = "optimize mlp.onnx -t ort --data data.npz -o study --costs bytes --methods prune,quantize,mixed --trials 24 --finalists 0 --seed 5"


def searching(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "GATEWRIGHT_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gatewright.runtime.cli", *SEARCH.split()]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_a_process_killed_and_started_again_gives_the_same_front(mlp: Model, tmp_path: Path) -> None:
    data = labelled(mlp)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        mlp.save(tmp_path / name / "mlp.onnx")
        np.savez(tmp_path / name / "data.npz", x=data.arrays["x"], y=data.labels)
    store = tmp_path / "killed" / "study" / study.EVALUATIONS
    process = searching(tmp_path / "killed")
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None and not (store.exists() and store.read_bytes().count(b"\n") >= 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()
    before = store.read_bytes().splitlines()
    assert 3 <= len(before) < 20, "killed in the middle"
    assert not (store.parent / "front.json").exists()
    store.write_bytes(b"\n".join(before)[:-20])  # torn in the middle of its last line, as a kill can leave it
    for name in ("killed", "whole"):
        process = searching(tmp_path / name)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
    fronts = {name: json.loads((tmp_path / name / "study" / "front.json").read_text()) for name in ("killed", "whole")}
    assert figures(fronts["killed"]) == figures(fronts["whole"])
    assert len(fronts["whole"]["front"]) > 1
    again = [json.loads(line) for line in store.read_bytes().splitlines() if line.endswith(b"}")]
    first = [json.loads(line) for line in (tmp_path / "whole" / "study" / study.EVALUATIONS).read_text().splitlines()]
    assert [(one["pipeline"], one["folds"], one["costs"]) for one in again] == [
        (one["pipeline"], one["folds"], one["costs"]) for one in first
    ]
    models = [(tmp_path / name / "study" / "best.onnx").read_bytes() for name in fronts]
    assert models[0] == models[1]


def test_a_study_goes_on_where_it_was(mlp: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(mlp, tmp_path / "whole", finalists=0)
    run(mlp, tmp_path / "short", trials=4, finalists=0)
    evaluated: list[str] = []
    real = Evaluator._evaluate

    def counting(self: Evaluator, pipeline: str, most: float | None) -> Candidate:
        evaluated.append(pipeline)
        return real(self, pipeline, most)

    monkeypatch.setattr(Evaluator, "_evaluate", counting)
    assert figures(run(mlp, tmp_path / "short", finalists=0)) == figures(whole)
    assert 0 < len(evaluated) < len(whole.tried)
    evaluated.clear()
    assert figures(run(mlp, tmp_path / "short", finalists=0)) == figures(whole)
    assert not evaluated, "a finished study has nothing to evaluate"
    # A cost that nobody asked for before is not in the file: it is worked out, not left out.
    coded = run(mlp, tmp_path / "short", costs=["file"], trials=2, finalists=0)
    assert coded.objectives == ("file",)
    assert {one.pipeline for one in coded.tried} & set(evaluated)


def evaluator(model: Model, data: Dataset, folder: Path) -> Evaluator:
    made = Evaluator(model, _ort(), data, metric_of(None, data.labels), 2, 0, lambda *_: None, study.Study.at(folder, {}))
    made.choose_objectives(["bytes"], "fuse")
    made.study.begin()
    made.prepare()
    return made


def test_who_is_far_off_on_the_first_fold_is_not_judged_on_the_others(mlp: Model, tmp_path: Path) -> None:
    data, bad = labelled(mlp), "fuse,prune{amount=0.95},quantize{bits=2}"
    one = evaluator(mlp, data, tmp_path / "study")
    given_up = one(bad, 0.1)
    assert len(given_up.folds) == 1
    assert str(given_up.problem).startswith("given up after the first fold: it loses 0.")
    # The same study, gone on with by somebody who allows more, or less.
    later = evaluator(mlp, data, tmp_path / "study")
    assert later(bad, 0.05) == given_up
    whole = later(bad, 2.0)
    assert (len(whole.folds), whole.problem) == (2, None)
    assert whole.folds[0] == given_up.folds[0]
    assert evaluator(mlp, data, tmp_path / "study")(bad) == whole, "the last word counts"


def test_what_passes_did_is_not_done_again(mlp: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates that begin alike share the beginning, and it makes no difference."""
    from gatewright.passes.prune import Prune

    ran: list[str] = []
    real = Prune.run

    def counting(self: Prune, *given: Any) -> Any:
        ran.append(str(self))
        return real(self, *given)

    data = labelled(mlp)
    monkeypatch.setattr(Prune, "run", counting)
    evaluate = evaluator(mlp, data, tmp_path / "s")
    shared = [evaluate(f"fuse,prune{{amount=0.5}},quantize{{bits={bits}}}") for bits in (8, 4)]
    assert len(ran) == 2, "once for each fold"
    fresh = evaluator(mlp, data, tmp_path / "t")
    alone = fresh(shared[1].pipeline)
    assert (alone.folds, alone.costs) == (shared[1].folds, shared[1].costs)


def _ort() -> Any:
    from gatewright.runtime.targetspec import resolve

    return resolve("ort")


def test_a_time_budget_counts_earlier_calls(mlp: Model, tmp_path: Path) -> None:
    first = run(mlp, tmp_path / "study", budget_s=1e-6, finalists=0)
    assert len(first.tried) == 1, "the budget is looked at between evaluations"
    assert len(run(mlp, tmp_path / "study", budget_s=1e-6, finalists=0).tried) == 1


def test_another_study_is_refused_by_name(mlp: Model, tmp_path: Path) -> None:
    run(mlp, tmp_path / "study", trials=1, finalists=0)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "study").iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=r"another study: another seed \(it has 0, this is 7\)"):
        run(mlp, tmp_path / "study", trials=1, seed=7)
    with pytest.raises(UsageError, match="another model"):
        run(transform(mlp, "prune"), tmp_path / "study", trials=1)
    with pytest.raises(UsageError, match="another data"):
        optimize(mlp, "ort", labelled(mlp, 50), out=tmp_path / "study", costs=["bytes"])
    with pytest.raises(UsageError, match=r"another target \(it has ort.*this is ref"):
        optimize(mlp, "ref", labelled(mlp), out=tmp_path / "study", costs=["bytes"])
    assert kept == {path.name: path.read_bytes() for path in (tmp_path / "study").iterdir() if path.is_file()}
    (tmp_path / "study" / study.STUDY).write_text("[")
    with pytest.raises(UsageError, match="damaged"):
        run(mlp, tmp_path / "study", trials=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run(mlp, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_where_nothing_holds_the_drop_it_says_why(mlp: Model, tmp_path: Path) -> None:
    front = run(mlp, tmp_path / "study", trials=1, max_drop=0.0, finalists=0, metric=_never_as_good)
    assert front.drop(front.chosen) > 0
    assert front.chosen.metric == max(one.metric for one in front.points), "the best"
    for told in ("nothing found loses at most 0: the best loses", "search longer", "add a method that trains", "uncertain by up to"):
        assert told in front.reason
    assert "not within the drop" in (tmp_path / "study" / "front.html").read_text()


def _never_as_good(outputs: Any, labels: Any) -> float:
    """Good is who gives no number twice: whoever rounds does."""
    values = next(iter(outputs.values()))
    return 1.0 if len(np.unique(values)) == values.size else 0.4


def test_a_point_that_does_not_fit_in_the_end_is_none(mlp: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folds' models may fit where the one made from all of the data does not: then the next best is chosen."""
    first = run(mlp, tmp_path / "study", finalists=0)
    real = finals.transform

    def refusing(model: Model, pipeline: str, *given: Any, **options: Any) -> Model:
        if pipeline == first.chosen.pipeline:
            raise UsageError("too large, alas")
        return real(model, pipeline, *given, **options)

    monkeypatch.setattr(finals, "transform", refusing)
    second = run(mlp, tmp_path / "study", finalists=0)
    assert second.chosen.pipeline != first.chosen.pipeline
    assert [one.problem for one in second.tried if one.pipeline == first.chosen.pipeline] == ["made from all of the data: too large, alas"]


def test_paired_intervals() -> None:
    """Two models that err on the same samples are alike, however bad; the interval of a difference holds it."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 400)
    right = np.eye(3, dtype=np.float32)[labels]
    bad, worse = right.copy(), right.copy()
    bad[:80] = np.roll(bad[:80], 1, axis=1)
    worse[:100] = np.roll(worse[:100], 1, axis=1)
    judge = metric_of("accuracy", labels)
    same, interval = finals.paired(judge, {"y": bad}, {"y": bad}, {"y": right}, labels, 0)
    assert (same, interval) == (0.0, (0.0, 0.0))
    found, (low, high) = finals.paired(judge, {"y": bad}, {"y": worse}, {"y": right}, labels, 0)
    assert found == pytest.approx(0.05)
    # 20 of 400 differ: the deviation is √(0.05·0.95/400), whatever the 80 shared errors add to either alone.
    assert low == pytest.approx(0.05 - 1.96 * 0.0109, abs=0.004)
    assert high == pytest.approx(0.05 + 1.96 * 0.0109, abs=0.004)
    losses, _ = finals.paired(metric_of("mse", right), {"y": worse}, {"y": right}, {"y": right}, right, 0)
    assert losses < 0, "of errors less is better"


def test_bad_input(mlp: Model, tmp_path: Path) -> None:
    data = labelled(mlp)
    file = tmp_path / "model.onnx"
    mlp.save(file)
    before = file.read_bytes()
    model = load(file)
    with pytest.raises(UsageError, match="estimates no 'lut'") as caught:
        optimize(model, "ort", data, costs=["lut"], out=tmp_path / "a")
    assert "bytes" in str(caught.value.hint)
    with pytest.raises(UsageError, match="estimates no 'beauty'"):
        optimize(model, "rtl:icebreaker", data, costs=["LUT", "beauty"], out=tmp_path / "a")
    with pytest.raises(UsageError, match="cpu estimates no 'LUT'"):
        optimize(model, "cpu", data, costs=["LUT"], out=tmp_path / "a")
    with pytest.raises(UsageError, match="estimates no 'latency_threads_1'"):
        optimize(model, "cpu", data, costs=["latency_threads_1"], out=tmp_path / "a")
    with pytest.raises(DataError, match="too few for 20 folds"):
        optimize(model, "ort", data.take(10), folds=20, out=tmp_path / "b")
    with pytest.raises(UsageError, match="budget is 0; it takes more than 0 seconds"):
        optimize(model, "ort", data, budget_s=0, out=tmp_path / "b")
    with pytest.raises(UsageError, match="trials is 0"):
        optimize(model, "ort", data, trials=0, out=tmp_path / "b")
    with pytest.raises(UsageError, match="no search method 'prun'"):
        optimize(model, "ort", data, methods=["prun"], out=tmp_path / "c")
    with pytest.raises(UsageError, match="trains on labels"):
        optimize(model, "ort", Dataset(data.arrays), methods=["finetune"], out=tmp_path / "d")
    with pytest.raises(UsageError, match="leave quantization out"):
        optimize(model, "hls:pynq-z2", data, methods=["prune"], out=tmp_path / "e")
    with pytest.raises(DataError, match="needs labels"):
        optimize(model, "ort", Dataset(data.arrays), metric="accuracy", out=tmp_path / "f")
    with pytest.raises(UsageError, match="cannot be written in a pipeline"):
        optimize(model, "ort", data, methods=["distil", "quantize"], out=tmp_path / "g,h")
    with pytest.raises(DataError, match="seen needs labels"):
        optimize(model, "ort", Dataset(data.arrays), seen=True, out=tmp_path / "g")
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "model.onnx"}, "nothing was left behind"
    run(model, tmp_path / "study", trials=2, finalists=0)
    assert file.read_bytes() == before


def test_the_command_line(mlp: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mlp.save("mlp.onnx")
    data = labelled(mlp)
    np.savez("data.npz", x=data.arrays["x"], y=data.labels)
    words = "optimize mlp.onnx -t ort --data data.npz -o study --max-drop 0.1 --costs bytes --methods quantize --trials 4 --finalists 1"
    result = CliRunner().invoke(app, [*words.split(), "--budget", "2m", "--json", "-"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["chosen"]["drop"] <= 0.1
    for option, value in (("--budget", "soon"), ("--budget", "0s"), ("--costs", "beauty"), ("--folds", "1"), ("--methods", "magic")):
        result = CliRunner().invoke(app, [*words.replace("-o study", "-o other").split(), option, value])
        assert result.exit_code == 2, result.output
    assert not (tmp_path / "other").exists()
    assert CliRunner().invoke(app, [*words.split(), "--folds", "4"]).exit_code == 2, "the folder holds a study with 3"


@pytest.mark.slow
def test_a_model_that_has_seen_the_data_is_held_against_one_that_has_not(tmp_path: Path) -> None:
    """The whole way on digits, with training: the folds' baseline is that of unseen data, and a study that goes on gives the same."""
    pytest.importorskip("torch", reason="learning afresh needs torch")
    from importlib.resources import files

    from gatewright.runtime.demo import digits

    model = load(str(files("gatewright.runtime").joinpath("demo_data", "digits_mlp.onnx")))
    some = digits(None, part="train").take(400)
    options: dict[str, Any] = {"methods": ("prune", "distil", "quantize"), "seen": True, "finalists": 0, "folds": 2, "costs": ["bytes"]}
    whole = optimize(model, "ort", some, trials=6, out=tmp_path / "study", **options)
    assert 0.8 < whole.baseline < 1.0, "the shipped model is right on all of them"
    kept = tmp_path / "kept"
    (tmp_path / "study").rename(kept)
    # Without the networks that were learned, and half of the evaluations: all of it comes again, the same.
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / study.STUDY).write_bytes((kept / study.STUDY).read_bytes())
    lines = (kept / study.EVALUATIONS).read_bytes().splitlines(keepends=True)
    (tmp_path / "study" / study.EVALUATIONS).write_bytes(b"".join(lines[:2]))
    assert figures(optimize(model, "ort", some, trials=6, out=tmp_path / "study", **options)) == figures(whole)
