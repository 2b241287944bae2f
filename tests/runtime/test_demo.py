"""The demo, as a new user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from report_schema import REPORT
from typer.testing import CliRunner

from gatewright.errors import UsageError
from gatewright.runtime import demo
from gatewright.runtime.cli import app


def test_variants_are_made_on_power_of_two_grids() -> None:
    from gatewright.frontend.integer import plan

    found = demo.variants("digits_mlp", None)
    assert [model.name for model in found] == ["digits_mlp", "digits_mlp_int8", "digits_mlp_int4", "digits_mlp_pruned_int8"]
    for model in found[1:]:
        assert all(grid.is_pow2 for grid in plan(model).grids.values())


def test_in_software_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SOFTWARE", ("ref", "ort"))
    monkeypatch.setattr(demo, "FPGA", "ref")
    report, files = demo.run(tmp_path / "out")
    assert [file.name for file in files] == ["report.html", "report.json"]
    jsonschema.validate(json.loads(files[1].read_text(encoding="utf-8")), REPORT)
    assert report.exit_code == 0
    values = {row.model: row.metric.value for row in report.rows if row.metric is not None}
    assert values["digits_mlp"] > 0.98
    assert values["digits_cnn"] > 0.98
    for name, value in values.items():
        assert value > 0.95, name
    layers = {row.model: [layer.name for layer in row.layers] for row in report.rows}
    assert "relu1_out" in layers["digits_cnn_int8"], "a CNN's layers are compared with the float CNN's"
    assert layers["digits_cnn"] == []


def test_not_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError):
        demo.run(tmp_path / "file")


@pytest.mark.slow
def test_the_whole_demo_twice(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(app, ["demo"])
    assert first.exit_code == 0, first.stderr
    found = json.loads(Path("demo-report/report.json").read_text(encoding="utf-8"))
    jsonschema.validate(found, REPORT)
    rows = {(row["model"], row["target"]): row for row in found["rows"]}
    for name in ("digits_mlp_int8", "digits_mlp_int4", "digits_mlp_pruned_int8"):
        for target in ("ref", "cpu", "hls:pynq-z2"):
            assert rows[name, target]["error"]["ref"]["mismatching_samples"] == 0
            assert rows[name, target]["metric"]["value"] > 0.95
    assert rows["digits_mlp", "hls:pynq-z2"]["status"] == "unsupported"
    assert {row["status"] for row in found["rows"]} == {"ok", "unsupported"}
    before = made(own_cache)
    second = CliRunner().invoke(app, ["demo"])
    assert second.exit_code == 0, second.stderr
    assert made(own_cache) == before, "nothing is compiled again"


def made(cache: Path) -> dict[Path, int]:
    """Artifacts and emulators, and when each was written."""
    files = (path for path in cache.rglob("*") if path.is_file() and not {"logs", "locks"} & set(path.relative_to(cache).parts))
    return {path: path.stat().st_mtime_ns for path in files}
