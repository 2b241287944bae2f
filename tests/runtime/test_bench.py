"""bench: what each row says, that wrong engines are caught and not timed, and that one row's failure stops no other."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from bench_schema import BENCH
from graphs import graph
from typer.testing import CliRunner

from gatewright.errors import ToolMissing, UnsupportedError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.runtime import engines, footprint
from gatewright.runtime.bench import bench, random_feeds
from gatewright.runtime.bench_html import ratio_plot
from gatewright.runtime.bench_report import BenchReport
from gatewright.runtime.cli import app
from gatewright.runtime.engines import Other, Prepared
from gatewright.runtime.timing import Blocks
from gatewright.targets.base import Feeds

QUICK = Blocks(runs=3, pause_s=0.0, rounds=2)
Change = Callable[[dict[str, Any]], dict[str, Any]]


def as_it_is(outputs: dict[str, Any]) -> dict[str, Any]:
    return outputs


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``engine("other", change)``: an engine that is the reference, its outputs changed."""

    def make(name: str, change: Change = as_it_is, package: str = "numpy") -> None:
        def opened(path: Path, feeds: Feeds, threads: int) -> Prepared:
            reference = Reference(load(path))
            return Prepared(lambda: change(reference.run(feeds)))

        made = Other(package, f"pip install {package}", lambda model, path: model.save(path), opened)
        monkeypatch.setitem(engines.OTHERS, name, made)

    monkeypatch.setattr(engines, "OTHERS", dict(engines.OTHERS))
    return make


def quick(models: Model | list[Model], targets: str = "ref", against: str = "other", **more: Any) -> BenchReport:
    more = {"batches": [1], "blocks": QUICK, "memory": False, **more}
    report = bench(models, targets, against, **more)
    jsonschema.validate(json.loads(json.dumps(report.to_json(), allow_nan=False)), BENCH)
    return report


def test_rows_ratios_and_means(mlp: Model, engine: Callable[..., None]) -> None:
    engine("other")
    report = quick([mlp, mlp], batches=[1, 4])
    assert [(row.run.model, row.run.batch, row.run.engine) for row in report.rows] == [
        (name, batch, what) for name in ("mlp", "mlp-2") for batch in (1, 4) for what in ("ref", "other")
    ]
    row = report.row("mlp", "ref", 4)
    assert row.timing is not None
    assert row.latency is not None
    assert (len(row.timing.rounds), len(row.timing.all)) == (2, 4)
    assert (row.latency.unit, row.latency.source) == ("s", "measured")
    assert row.throughput is not None
    assert row.throughput.value == pytest.approx(4 / row.latency.value)
    assert set(row.ratios) == {"other"}
    assert row.relative_error == 0
    assert report.row("mlp", "other").ratios == {}
    assert [(m.batch, m.models, m.against) for m in report.means] == [(1, 2, "other"), (4, 2, "other")]
    ratios = [report.row(name, "ref").ratios["other"].value for name in ("mlp", "mlp-2")]
    assert report.means[0].value == pytest.approx((ratios[0] * ratios[1]) ** 0.5)
    assert report.means[0].worst == min(ratios)
    assert report.exit_code == 0
    with pytest.raises(KeyError, match="batch 7"):
        report.row("mlp", "ref", 7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda outputs: {"y": outputs["y"] + np.float32(0.01)}, "wrong in 1 of 1 samples"),
        (lambda outputs: {"y": outputs["y"] * np.float32("nan")}, "not numbers"),
        (lambda outputs: {"y": outputs["y"][:, :2]}, "not the model's: y [1, 2]"),
        (lambda outputs: {**outputs, "z": outputs["y"]}, "not the model's"),
        (lambda outputs: {"y": 1 // 0}, "ZeroDivisionError"),
    ],
    ids=["off", "not a number", "another shape", "one too many", "it fails"],
)
def test_a_wrong_engine_is_not_timed(mlp: Model, engine: Callable[..., None], change: Change, said: str) -> None:
    engine("other")
    engine("wrong", change)
    report = quick(mlp, against="other,wrong")
    row = report.row("mlp", "wrong")
    assert row.status == "failed"
    assert said in (row.reason or "")
    assert row.timing is None
    assert row.throughput is None
    assert set(report.row("mlp", "ref").ratios) == {"other"}
    assert report.exit_code == 1


def test_a_wrong_target_is_not_timed(mlp: Model, engine: Callable[..., None], toys: list[str]) -> None:
    engine("other")
    report = quick(mlp, "built{off=0.001},built")
    assert "wrong in" in (report.row("mlp", "built{off=0.001}").reason or "")
    assert report.row("mlp", "built").status == "ok"
    assert report.row("mlp", "other").status == "ok"


@pytest.mark.parametrize(("does", "status"), [("refuse", "unsupported"), ("overflow", "does_not_fit"), ("crash", "failed")])
def test_a_failing_target_stops_no_other(mlp: Model, engine: Callable[..., None], toys: list[str], does: str, status: str) -> None:
    engine("other")
    report = quick(mlp, f"built{{does={does}}},ref")
    assert [row.status for row in report.rows] == [status, "ok", "ok"]
    assert report.exit_code == (1 if status == "failed" else 3)


def test_a_model_that_an_engine_refuses(mlp: Model, engine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, feeds: Feeds, threads: int) -> Prepared:
        raise UnsupportedError("it has no Gemm")

    engine("other")
    monkeypatch.setitem(engines.OTHERS, "picky", Other("numpy", "", lambda model, path: model.save(path), refuses))
    report = quick(mlp, against="picky,other")
    assert (report.row("mlp", "picky").status, report.row("mlp", "picky").reason) == ("unsupported", "it has no Gemm")
    assert report.row("mlp", "other").status == "ok"


def test_a_small_error_of_another_engine_is_shown_and_no_mistake(mlp: Model, engine: Callable[..., None]) -> None:
    engine("other", lambda outputs: {"y": outputs["y"] * np.float32(1 + 1e-5)})
    row = quick(mlp).row("mlp", "other")
    assert row.status == "ok"
    assert row.relative_error == pytest.approx(1e-5, rel=0.1)


def test_samples_that_depend_on_one_another_have_no_other_batch(engine: Callable[..., None]) -> None:
    engine("other")
    model = graph("(float[2,3] x) => (float[2,3] y) { y = CumSum(x, axis) }", axis=np.asarray(0, np.int64))
    report = quick(model, batches=[2, 16])
    assert [row.status for row in report.rows] == ["ok", "ok", "unsupported", "unsupported"]
    assert "--batch 2" in (report.rows[2].reason or "")


def test_a_pipeline_is_for_the_targets_and_others_run_both(mlp: Model, samples: Dataset, engine: Callable[..., None]) -> None:
    engine("other")
    report = quick(mlp, pipeline="fuse,quantize{bits=8,per=channel}", data=samples)
    assert [(row.run.label, row.run.transformed) for row in report.rows] == [("ref", True), ("other", False), ("other (transformed)", True)]
    assert set(report.row("mlp", "ref", transformed=True).ratios) == {"other", "other (transformed)"}
    assert {mean.against for mean in report.means} == {"other", "other (transformed)"}


def test_what_another_engine_does_to_integers_is_shown_not_judged(mlp: Model, samples: Dataset, engine: Callable[..., None]) -> None:
    engine("other", lambda outputs: {"y": outputs["y"] + np.float32(0.2)})
    report = quick(mlp, pipeline="fuse,quantize{bits=8}", data=samples)
    assert report.row("mlp", "other", transformed=False).status == "failed"
    row = report.row("mlp", "other", transformed=True)
    assert row.status == "ok"
    assert row.relative_error is not None
    assert row.relative_error > 0.01


def test_a_pipeline_that_fails_is_the_models_rows(mlp: Model, engine: Callable[..., None]) -> None:
    engine("other")
    ints = graph("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }").renamed("other")
    report = quick([mlp, ints], pipeline="prune{kind=channel,amount=0.5,exclude=nothere}")
    assert {row.status for row in report.rows} <= {"ok", "failed"}
    assert all(row.reason for row in report.rows if row.status == "failed")


def test_real_engines_agree(mlp: Model) -> None:
    report = quick(mlp, "cpu{threads=1}", "ort", threads=1, batches=[1, 3], memory=True, kernels=True)
    assert {row.status for row in report.rows} == {"ok"}
    inside = report.row("mlp", "cpu{threads=1}", 3).kernels
    assert sum(kernel["macs"] for kernel in inside) == 3 * (4 * 8 + 8 * 3)
    assert report.row("mlp", "ort", 3).kernels == ()
    for row in report.rows:
        assert row.relative_error is not None
        assert row.relative_error < 1e-5
        if row.memory is not None:
            assert 0 < row.memory.baseline.value < row.memory.peak.value
            assert row.memory.taken.source == "measured"
        else:
            assert "memory was not measured" in row.notes[0]


def test_openvino_agrees(mlp: Model) -> None:
    pytest.importorskip("openvino")
    report = quick(mlp, "ref", "openvino", threads=1, batches=[1, 3])
    assert {row.status for row in report.rows} == {"ok"}
    assert report.versions["openvino"]


def test_unknown_names_and_missing_packages(mlp: Model, engine: Callable[..., None]) -> None:
    with pytest.raises(UsageError) as unknown:
        quick(mlp, against="openvinno")
    assert "did you mean openvino" in str(unknown.value)
    engine("absent", package="no_such_package_at_all")
    with pytest.raises(ToolMissing) as missing:
        quick(mlp, against="absent")
    assert "pip install no_such_package_at_all" in str(missing.value)
    wrong = {"hls:pynq-z2": "another device", "cpu:znver3": "this machine", "cpu{batch=2}": "--batch 2", "": "a target"}
    for target, said in wrong.items():
        with pytest.raises(UsageError, match=said):
            quick(mlp, target)
    with pytest.raises(UsageError, match="batch is 0"):
        quick(mlp, against="", batches=[0])


def test_without_another_engine_it_times_the_target_alone(mlp: Model) -> None:
    report = quick(mlp, against="")
    assert [row.run.engine for row in report.rows] == ["ref"]
    assert report.means == ()
    assert "<svg" not in report_html(report).partition("<h2>Results")[0]


def report_html(report: BenchReport) -> str:
    from gatewright.runtime.bench_html import render

    return render(report)


def test_the_page_needs_nothing_else_and_escapes_names(mlp: Model, engine: Callable[..., None], tmp_path: Path) -> None:
    engine("other")
    report = quick(mlp.renamed("<script>alert(1)</script>"), batches=[1, 2])
    report.save_html(tmp_path / "b.html")
    text = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count('class="ratios"') == 2


def test_the_plot_is_to_scale(mlp: Model, engine: Callable[..., None]) -> None:
    engine("other")
    plot = ratio_plot(quick(mlp), "ref", 1)
    assert plot is not None
    line = plot.lines[0]
    assert plot.gutter <= line.low <= line.at <= line.high <= plot.end
    assert (line.at < plot.one) == line.slower
    assert all(plot.gutter <= tick.at <= plot.end for tick in plot.ticks)
    assert ratio_plot(quick(mlp, against=""), "ref", 1) is None


def test_interrupted_it_leaves_nothing(mlp: Model, engine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupts(outputs: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    engine("other", interrupts)
    scratch, here = tmp_path / "scratch", tmp_path / "here"
    scratch.mkdir()
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(here)
    mlp.save(here / "mlp.onnx")
    words = ["bench", "mlp.onnx", "-t", "ref", "--against", "other", "--json", "b.json", "--html", "b.html", "--no-memory"]
    assert CliRunner().invoke(app, words).exit_code == 130
    assert sorted(path.name for path in here.iterdir()) == ["mlp.onnx"]
    assert list(scratch.iterdir()) == []


def test_on_the_command_line(mlp: Model, engine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine("other")
    monkeypatch.chdir(tmp_path)
    mlp.save(tmp_path / "mlp.onnx")
    words = ["bench", "mlp.onnx", "-t", "ref", "--against", "other", "--batch", "1,2", "--rounds", "1", "--runs", "3", "--no-memory"]
    shown = CliRunner().invoke(app, [*words, "--html", "b.html", "--json", "b.json"])
    assert shown.exit_code == 0, shown.output
    assert "Geometric means" in shown.stdout
    assert Path("b.html").is_file()
    jsonschema.validate(json.loads(Path("b.json").read_text(encoding="utf-8")), BENCH)


def test_random_feeds_are_seeded_and_in_range() -> None:
    model = graph("(float[2,3] x, int8[4] q, int64[5] i, bool[6] b) => (float[2,3] y) { y = Relu(x) }")
    feeds, again = random_feeds(model.inputs, 3), random_feeds(model.inputs, 3)
    assert all((feeds[name] == again[name]).all() for name in feeds)
    assert [(str(a.dtype), a.shape) for a in feeds.values()] == [("float32", (2, 3)), ("int8", (4,)), ("int64", (5,)), ("bool", (6,))]
    assert (feeds["i"] >= 0).all()
    assert (feeds["i"] < 100).all()
    assert random_feeds(model.inputs, 3, samples=7)["x"].shape == (7, 3)


def test_memory_that_cannot_be_measured_is_a_note(mlp: Model, tmp_path: Path) -> None:
    from gatewright.errors import GatewrightError

    with pytest.raises(GatewrightError, match="measuring memory"):
        footprint.measure("ort", tmp_path / "no_such_model.onnx", {"x": np.zeros((1, 4), np.float32)}, 1)
