"""``optimize``: the front is the front, the choice is the cheapest within the drop, and a killed study goes on as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gatewright.errors import DataError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.hw.measurement import Measurement
from gatewright.runtime import search
from gatewright.runtime.cli import app
from gatewright.runtime.driver import load, transform
from gatewright.runtime.front import Candidate, Front, choose, knee, pareto
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
    given = {"trials": 12, "methods": ("prune", "quantize"), "finalists": 1, "costs": ["bytes"], **options}
    return optimize(model, "ort", labelled(model), out=out, **given)  # type: ignore[arg-type]


def summary(front: Front) -> list[tuple[str, float, float]]:
    return [(one.pipeline, one.metric, one.costs["bytes"].value) for one in front.points]


def test_a_whole_search(mlp: Model, tmp_path: Path) -> None:
    front = run(mlp, tmp_path / "study")
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
    assert "<svg" in page
    assert front.report is not None
    assert {row.status for row in front.report.rows} == {"ok"}


def test_the_first_candidates_are_the_uniform_ones(mlp: Model, tmp_path: Path) -> None:
    tried = [one.pipeline for one in run(mlp, tmp_path / "study").tried]
    assert tried[0] == "fuse"
    assert tried[1] == "fuse,quantize{bits=8,grid=pow2,per=tensor,range=minmax}"


def test_a_killed_study_gives_the_same_front(mlp: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(mlp, tmp_path / "whole")
    run(mlp, tmp_path / "killed", trials=5)
    store = tmp_path / "killed" / search.EVALUATIONS
    kept = store.read_bytes()
    store.write_bytes(kept[:-20])  # torn in the middle of its last line
    evaluated: list[str] = []
    real = search._Evaluator._evaluate

    def counting(self: object, pipeline: str) -> Candidate:
        evaluated.append(pipeline)
        return real(self, pipeline)  # type: ignore[arg-type]

    monkeypatch.setattr(search._Evaluator, "_evaluate", counting)
    resumed = run(mlp, tmp_path / "killed")
    assert summary(resumed) == summary(whole)
    assert [one.pipeline for one in resumed.tried] == [one.pipeline for one in whole.tried]
    assert len(evaluated) == len(whole.tried) - 4, "four whole lines were left"
    evaluated.clear()
    assert summary(run(mlp, tmp_path / "killed")) == summary(whole)
    assert not evaluated, "a finished study has nothing to evaluate"


def test_a_time_budget_counts_earlier_calls(mlp: Model, tmp_path: Path) -> None:
    first = run(mlp, tmp_path / "study", budget_s=1e-6)
    assert len(first.tried) == 1, "the budget is looked at between evaluations"
    assert len(run(mlp, tmp_path / "study", budget_s=1e-6).tried) == 1


def test_another_study_is_not_overwritten(mlp: Model, tmp_path: Path) -> None:
    run(mlp, tmp_path / "study", trials=1)
    with pytest.raises(UsageError, match="another study: its seed differ"):
        run(mlp, tmp_path / "study", trials=1, seed=7)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run(mlp, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_where_nothing_holds_the_drop_it_says_so(mlp: Model, tmp_path: Path) -> None:
    data = labelled(mlp)
    wrong = Dataset(data.arrays, (np.asarray(data.labels) + 1) % 3, name="wrong")
    front = optimize(mlp, "ort", wrong, out=tmp_path / "study", trials=3, methods=("prune",), finalists=0, costs=["bytes"], max_drop=0.0)
    assert front.baseline == 0.0
    assert front.chosen.metric >= 0.0


def test_bad_input(mlp: Model, tmp_path: Path) -> None:
    data = labelled(mlp)
    with pytest.raises(UsageError, match="estimates no 'lut'") as caught:
        optimize(mlp, "ort", data, costs=["lut"], out=tmp_path / "a")
    assert "bytes" in str(caught.value.hint)
    with pytest.raises(DataError, match="too few for 20 folds"):
        optimize(mlp, "ort", data.take(10), folds=20, out=tmp_path / "b")
    with pytest.raises(UsageError, match="no search method 'prun'"):
        optimize(mlp, "ort", data, methods=["prun"], out=tmp_path / "c")
    with pytest.raises(UsageError, match="trains on labels"):
        optimize(mlp, "ort", Dataset(data.arrays), methods=["finetune"], out=tmp_path / "d")
    with pytest.raises(UsageError, match="leave quantization out"):
        optimize(mlp, "hls:pynq-z2", data, methods=["prune"], out=tmp_path / "e")
    with pytest.raises(DataError, match="needs labels"):
        optimize(mlp, "ort", Dataset(data.arrays), metric="accuracy", out=tmp_path / "f")
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}, "nothing was left behind"


def test_the_command_line(mlp: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mlp.save("mlp.onnx")
    data = labelled(mlp)
    np.savez("data.npz", x=data.arrays["x"], y=data.labels)
    words = "optimize mlp.onnx -t ort --data data.npz -o study --max-drop 0.1 --costs bytes --methods quantize --trials 4 --finalists 1"
    result = CliRunner().invoke(app, [*words.split(), "--budget", "2m", "--json", "-"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["chosen"]["drop"] <= 0.1
    for option, value in (("--budget", "soon"), ("--costs", "beauty"), ("--folds", "1")):
        result = CliRunner().invoke(app, [*words.replace("-o study", "-o other").split(), option, value])
        assert result.exit_code == 2, result.output
