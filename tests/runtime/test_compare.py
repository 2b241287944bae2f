"""compare: what each row says, that one row's failure stops no other, and what is recommended."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from report_schema import REPORT

import gatewright as gw
from gatewright.errors import DataError, UsageError
from gatewright.frontend.data import Dataset, Input
from gatewright.frontend.model import Model
from gatewright.hw.measurement import Measurement
from gatewright.runtime.compare import compare, recommend, unique_names
from gatewright.runtime.metrics import METRICS
from gatewright.runtime.report import Report, Row

TROUBLE = ["toy{does=refuse}", "toy{does=overflow}", "toy{does=shortfall}", "toy{does=tool}", "toy{does=break}", "toy{does=crash}"]


@pytest.fixture
def small(mlp: Model, samples: Dataset) -> Model:
    return gw.transform(mlp, "fuse,quantize{bits=8,grid=pow2}", samples).renamed("mlp_int8")


def valid(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(report.to_json(), allow_nan=False))
    jsonschema.validate(found, REPORT)
    return found


def test_one_rows_failure_stops_no_other(mlp: Model, samples: Dataset, toys: list[str]) -> None:
    report = compare(mlp, [*TROUBLE, "ref", "toy"], samples, rounds=1)
    assert [row.status for row in report.rows] == [
        "unsupported",
        "does_not_fit",
        "does_not_fit",
        "tool_missing",
        "failed",
        "failed",
        "ok",
        "ok",
    ]
    assert "refused for the test" in (report.rows[0].reason or "")
    assert "buy one" in (report.rows[3].reason or "")
    assert "ZeroDivisionError: a bug" in (report.rows[5].reason or "")
    assert all("\n" not in (row.reason or "") for row in report.rows)
    assert report.exit_code == 1
    valid(report)


def test_exit_codes(mlp: Model, samples: Dataset, toys: list[str]) -> None:
    assert compare(mlp, "ref", samples).exit_code == 0
    assert compare(mlp, "ref,toy{does=overflow}", samples).exit_code == 3
    assert compare(mlp, "ref,toy{does=overflow},toy{does=tool}", samples).exit_code == 1


def test_errors_against_ref_and_against_the_baseline(mlp: Model, small: Model, samples: Dataset, toys: list[str]) -> None:
    report = compare([mlp, small], "ref,toy{off=0.5}", samples)
    exact, off = report.row("mlp_int8", "ref"), report.row("mlp_int8", "toy{off=0.5}")
    assert exact.error_ref is not None
    assert exact.error_baseline is not None
    assert off.error_ref is not None
    assert (exact.error_ref.mismatching_samples, exact.error_ref.max_abs) == (0, 0)
    assert 0 < exact.error_baseline.max_abs < 0.2
    assert exact.error_baseline.mismatching_samples == len(samples)
    assert (off.error_ref.mismatching_samples, off.error_ref.max_abs) == (1, 0.5)
    assert off.first_diverging_layer == "y"
    assert exact.first_diverging_layer is None
    assert [layer.name for layer in exact.layers] == ["r", "y"]
    assert report.row("mlp", "ref").layers == ()
    valid(report)


def test_measured_here_estimated_there(mlp: Model, samples: Dataset, toys: list[str]) -> None:
    report = compare(mlp, "ref,ort,toy", samples, rounds=1)
    ref, ort, toy = report.rows
    assert (ref.latency, ref.throughput) == (None, None)
    assert ref.emulation_rate is not None
    assert ort.latency is not None
    assert toy.latency is not None
    assert (ort.latency.source, toy.latency.source) == ("measured", "estimated")
    assert (ref.emulation_rate.source, ref.emulation_rate.unit) == ("emulated", "1/s")
    assert ort.throughput is not None
    assert ort.energy is not None
    assert (ort.throughput.source, ort.energy.source, ort.energy.unit) == ("measured", "estimated", "J")
    assert toy.resources == {"LUT": Measurement(7, "LUT", "estimated")}
    for row in report.rows:
        assert row.build_time is not None
        assert row.artifact_size is not None
        assert row.artifact_size.value > 100
    macs = valid(report)["models"][0]
    assert (macs["macs"], macs["bytes"]) == (4 * 8 + 8 * 3, 4 * (4 * 8 + 8 + 8 * 3 + 3))


def test_another_machine_is_never_measured_here(mlp: Model, samples: Dataset) -> None:
    here, there = compare(mlp, "ort,ort:raspberry-pi-5", samples, rounds=1).rows
    for row, expected in ((here, "measured"), (there, "estimated")):
        assert row.latency is not None
        assert row.latency.source == expected
    assert there.throughput is None
    assert there.emulation_rate is not None
    assert there.metric is not None
    assert (there.emulation_rate.source, there.metric.source) == ("emulated", "emulated")


def test_a_float_model_on_a_target_for_quantized_ones(mlp: Model, samples: Dataset, toys: list[str]) -> None:
    refused = compare(mlp, "qtoy", samples).rows[0]
    assert refused.status == "unsupported"
    assert "'mlp'" in (refused.reason or "")
    done = compare(mlp, "qtoy", samples, calibration=samples).rows[0]
    assert done.status == "ok"
    assert done.error_ref is not None
    assert done.error_baseline is not None
    assert done.error_ref.mismatching_samples == 0, "ref runs the quantized model too"
    assert done.error_baseline.max_abs > 0
    assert done.layers


def test_models_may_take_their_inputs_differently_prepared(mlp: Model, samples: Dataset) -> None:
    raw = Dataset({"x": np.asarray(samples.inputs["x"]) * 2}, samples.labels)
    sets = {
        "mlp": Dataset(raw.arrays, raw.labels, {"x": Input(scale=0.5)}),
        "other": Dataset(raw.arrays, raw.labels, {"x": Input(scale=0.25)}),
    }
    report = compare([mlp, mlp.renamed("other")], "ref", sets)
    assert report.rows[1].error_baseline is not None
    assert report.rows[1].error_baseline.max_abs > 0.01
    with pytest.raises(UsageError, match="no data for model 'third'"):
        compare([mlp.renamed("third")], "ref", sets)


def test_targets_by_model(mlp: Model, samples: Dataset, toys: list[str]) -> None:
    report = compare([mlp, mlp.renamed("b")], {"mlp": ["ref", "toy"], "b": ["ref"]}, samples)
    assert [(row.model, row.target) for row in report.rows] == [("mlp", "ref"), ("mlp", "toy"), ("b", "ref")]


def test_what_is_wrong_for_all_rows_is_an_error(mlp: Model, samples: Dataset) -> None:
    with pytest.raises(UsageError, match="cpuu"):
        compare(mlp, "ref,cpuu", samples)
    with pytest.raises(DataError, match="needs labels"):
        compare(mlp, "ref", Dataset(samples.arrays), "accuracy")
    with pytest.raises(DataError, match="4"):
        compare(mlp, "ref", Dataset({"x": np.zeros((3, 5), np.float32)}))
    with pytest.raises(UsageError, match="limit"):
        compare(mlp, "ref", samples, limit=0)
    with pytest.raises(UsageError, match="a model and a target"):
        compare([], "ref", samples)


def test_without_labels_the_models_are_compared_with_the_baseline(mlp: Model, small: Model, samples: Dataset) -> None:
    report = compare([mlp, small], "ref", Dataset(samples.arrays))
    assert report.metric == "agreement"
    assert report.rows[0].metric is not None
    assert report.rows[1].metric is not None
    assert report.rows[0].metric.value == 1.0
    assert 0.8 < report.rows[1].metric.value <= 1.0


def test_a_users_metric(mlp: Model, samples: Dataset) -> None:
    def mean_of_outputs(outputs: Any, labels: Any) -> float:
        return float(outputs["y"].mean())

    report = compare(mlp, "ref", samples, mean_of_outputs)
    assert report.metric == "mean_of_outputs"
    assert report.rows[0].metric is not None


def test_limit_and_names(mlp: Model, samples: Dataset) -> None:
    report = compare([mlp, mlp, mlp], "ref", samples, limit=5)
    assert report.samples == 5
    assert [model.name for model in report.models] == ["mlp", "mlp-2", "mlp-3"]
    assert [m.name for m in unique_names([mlp.renamed("a"), mlp.renamed("a-2"), mlp.renamed("a")])] == ["a", "a-2", "a-3"]


def row(model: str, target: str, value: float, latency_s: float | None, **more: Any) -> Row:
    latency = None if latency_s is None else Measurement(latency_s, "s", "measured")
    return Row(model, target, "ok", metric=Measurement(value, "1", "measured"), latency=latency, **more)


def test_the_cheapest_row_within_the_drop_is_recommended() -> None:
    rows = [
        row("a", "ref", 1.0, 1e-9),
        row("a", "cpu", 0.99, 3e-6),
        row("b", "cpu", 0.985, 2e-6),
        row("c", "cpu", 0.90, 1e-6),
        row("d", "cpu", 0.99, None),
    ]
    best = recommend(rows, METRICS["accuracy"], 0.99, "latency", 0.01)
    assert best is not None
    assert (best.model, best.target, best.candidates, best.drop) == ("b", "cpu", 2, pytest.approx(0.005))
    loose = recommend(rows, METRICS["accuracy"], 0.99, "latency", 0.1)
    assert loose is not None
    assert loose.model == "c"
    assert recommend(rows, METRICS["accuracy"], 0.99, "energy", 0.1) is None
    lower = recommend([row("a", "cpu", 1.0, 2e-6), row("b", "cpu", 5.0, 1e-6)], METRICS["mse"], 1.0, "latency", 0.5)
    assert lower is not None
    assert lower.model == "a", "of an error more is worse"


def test_beside_a_bound_stands_what_was_measured() -> None:
    bound = replace(row("a", "tpu:v5e", 0.99, None), latency=Measurement(1e-9, "s", "estimated"))
    rows = [bound, row("a", "cpu", 0.99, 3e-6), row("b", "ort", 0.99, 4e-6), row("c", "cpu", 0.5, 1e-6)]
    best = recommend(rows, METRICS["accuracy"], 0.99, "latency", 0.01)
    assert best is not None
    assert best.target == "tpu:v5e"
    assert best.measured == ("a on cpu", Measurement(3e-6, "s", "measured"))
    assert "of those measured, a on cpu has the lowest (3 µs)" in str(best)
    alone = recommend(rows[1:], METRICS["accuracy"], 0.99, "latency", 0.01)
    assert alone is not None
    assert alone.measured is None


def test_a_failed_row_is_never_recommended() -> None:
    failed = Row("a", "cpu", "failed", "because", metric=Measurement(1.0, "1", "measured"), latency=Measurement(1e-9, "s", "measured"))
    assert recommend([failed], METRICS["accuracy"], 0.9, "latency", 0.5) is None


def test_the_whole_thing_from_another_process(mlp: Model, samples: Dataset, tmp_path: Path) -> None:
    mlp.save(tmp_path / "mlp.onnx")
    np.savez(tmp_path / "data.npz", x=samples.inputs["x"], y=samples.labels)
    words = ["compare", "mlp.onnx", "mlp.onnx", "-t", "ref,ort", "--data", "data.npz", "--json", "-", "--html", "r.html", "--limit", "20"]
    ran = subprocess.run(
        [sys.executable, "-m", "gatewright.runtime.cli", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    jsonschema.validate(found, REPORT)
    assert len(found["rows"]) == 4
    assert (tmp_path / "r.html").stat().st_size > 10_000


def test_onnxruntime_stands_beside_the_cpu(mlp: Model, samples: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    report = compare(mlp, "cpu{threads=1},ref", samples, rounds=1)
    assert [row.target for row in report.rows] == ["cpu{threads=1}", "ref", "ort"]
    ours, theirs = report.rows[0].latency, report.rows[2].latency
    assert ours is not None
    assert theirs is not None
    assert (ours.source, theirs.source) == ("measured", "measured")
    assert report.recommendation is not None
    assert report.recommendation.target == "cpu{threads=1}"
    valid(report)


def test_it_stands_there_once_and_only_beside_this_machines_cpu(mlp: Model, samples: Dataset) -> None:
    assert [row.target for row in compare(mlp, "ort,cpu{threads=1}", samples, rounds=1).rows] == ["ort", "cpu{threads=1}"]
    assert [row.target for row in compare(mlp, "ref", samples).rows] == ["ref"]


def test_a_row_that_nobody_asked_for_fails_quietly(mlp: Model, samples: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from gatewright.errors import UnsupportedError
    from gatewright.targets.ort.target import OrtTarget

    def refuses(self: OrtTarget, model: Model) -> Model:
        raise UnsupportedError("not today")

    monkeypatch.setattr(OrtTarget, "legalize", refuses)
    report = compare(mlp, "cpu{threads=1}", samples, rounds=1)
    assert [row.status for row in report.rows] == ["ok", "unsupported"]
    assert report.exit_code == 0
    assert compare(mlp, "ort", samples).exit_code == 3
