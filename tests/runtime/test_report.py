"""The report as JSON, as a table, as one offline HTML file."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
from report_schema import REPORT
from rich.console import Console

from gatewright.hw.measurement import Measurement
from gatewright.runtime import plots
from gatewright.runtime.compare import recommend
from gatewright.runtime.html import BADGES, environment, render
from gatewright.runtime.metrics import METRICS
from gatewright.runtime.report import Layer, ModelSummary, OutputError, Report, Row, dumps, show
from gatewright.targets.base import TARGETS

EVIL = "</title><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&{{7*7}}"
DIGEST = "ab" * 32


def report(evil: str = "net") -> Report:
    """Two models on four targets, with every source and every status."""
    models = ("float", evil)
    rows = []
    for index, model in enumerate(models):
        for target, source in (("ort", "measured"), ("hls:pynq-z2", "estimated"), (f"toy{{x={evil}}}", "estimated")):
            rows.append(
                Row(
                    model,
                    target,
                    "ok",
                    metric=Measurement(0.98 - 0.01 * index, "1", "measured" if source == "measured" else "emulated"),
                    error_ref=OutputError(0.0, index * 3, 0),
                    error_baseline=OutputError(0.1 * index, 5 * index, 2 * index),
                    first_diverging_layer=evil if index else None,
                    layers=(Layer(evil, 31.5, 0.1, 3), Layer("y", None, 0.0, 0), Layer("low", 4.0, 0.9, 0)) if index else (),
                    latency=Measurement(2e-6 * (index + 1), "s", source),  # type: ignore[arg-type]
                    throughput=Measurement(1e5, "1/s", source),  # type: ignore[arg-type]
                    energy=Measurement(3e-8 * (index + 1), "J", "estimated"),
                    artifact_size=Measurement(12345.0 * (index + 1), "B", "measured"),
                    resources={"LUT": Measurement(8123.0, "LUT", "synthesized")} if source == "estimated" else None,
                    build_time=Measurement(1.5, "s", "measured"),
                    notes=(f"note of {evil}",),
                )
            )
    rows += [Row(evil, status, status, f"because {evil}") for status in ("unsupported", "does_not_fit", "tool_missing", "failed")]
    best = recommend(rows, METRICS["accuracy"], 0.98, "latency", 0.05)
    summaries = tuple(ModelSummary(name, DIGEST, 2368, 2572, 0.5, ("net.onnx", evil)) for name in models)
    return Report(540, DIGEST, evil, "accuracy", True, summaries, tuple(rows), 0.98, best)


def test_json_is_the_contract() -> None:
    found = json.loads(dumps(report().to_json()))
    jsonschema.validate(found, REPORT)
    assert found["rows"][0]["latency"] == {"value": 2e-6, "unit": "s", "source": "measured"}
    assert found["rows"][3]["layers"][1] == {"name": "y", "sqnr_db": None, "max_abs_error": 0.0, "saturated": 0}
    assert found["rows"][3]["resources"] is None
    assert found["rows"][4]["resources"]["LUT"]["source"] == "synthesized"


def test_json_never_holds_what_is_no_number() -> None:
    row = Row("a", "b", "ok", metric=Measurement(float("nan"), "1", "measured"), error_ref=OutputError(float("inf"), 1, None))
    found = row.to_json()
    assert found["metric"] is None
    assert found["error"]["ref"]["max_abs"] is None
    dumps(found)


def test_the_schema_can_fail() -> None:
    for key in ("status", "latency", "error"):
        broken = report().to_json()
        broken["rows"][0][key] = "emulated"
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, REPORT)
    broken = report().to_json()
    broken["rows"][0]["latency"]["source"] = "emulated"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, REPORT)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (4.51e-5, "s", "45.1 µs"), (0.9996, "s", "1 s"), (1234.0, "s", "1,234 s"), (999.6e-6, "s", "1 ms"), (1.2e6, "B", "1.2 MB"),
        (12.0, "B", "12 B"), (0.974, "1", "0.974"), (41000.0, "1/s", "41k/s"), (3.1e-8, "J", "31 nJ"), (8123.0, "LUT", "8,123 LUT"),
        (0.0, "s", "0 s"), (31.25, "dB", "31.2 dB"), (float("nan"), "s", "–"),
    ],
)  # fmt: skip
def test_figures_are_readable(value: float, unit: str, text: str) -> None:
    assert show(Measurement(value, unit, "measured")) == text


def test_the_console_table_marks_every_source() -> None:
    console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report().table())
    text = console.export_text()
    assert "≈2 µs" in text
    assert re.search(r"0\.98ᵉ", text)
    assert "≈ estimated" in text
    assert "ᵗ synthesized" in text
    assert "because net" in text
    assert "recommended: " in text


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_html_is_one_offline_file_without_scripts() -> None:
    page = Page(render(report(EVIL)))
    assert not {"script", "img", "iframe", "link", "object", "embed", "form", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "action", "srcdoc")]
    text = render(report(EVIL))
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"https?://", text)


def test_hostile_names_are_text() -> None:
    text = render(report(EVIL))
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert "{{7*7}}" in text


def test_every_figure_has_a_badge() -> None:
    text = render(report())
    figures = re.findall(r'<span class="figure"><span class="value">[^<]+</span><span class="badge (\w+)"[^>]*>(\w+)</span></span>', text)
    assert len(figures) == text.count('class="figure"')
    assert {source for source, _ in figures} == {"measured", "emulated", "estimated", "synthesized"}
    assert all(BADGES[source][0] == word for source, word in figures)


def test_a_report_of_one_refused_row_still_has_a_page() -> None:
    one = Report(1, DIGEST, "", "accuracy", True, (ModelSummary("m", DIGEST),), (Row("m", "hls", "unsupported", "because"),))
    assert "because" in render(one)
    jsonschema.validate(one.to_json(), REPORT)


def test_plots_stay_inside_their_frame() -> None:
    for values in ([1e-9], [1.0, 1.0], [1e-12, 1e3], [5e-6, 6e-6, 7e-6]):
        rows = tuple(
            Row("m", f"t{i}", "ok", metric=Measurement(0.5, "1", "measured"), latency=Measurement(v, "s", "measured"))
            for i, v in enumerate(values)
        )
        plot = plots.scatter(Report(1, DIGEST, "", "accuracy", True, (ModelSummary("m", DIGEST),), rows), "latency", "latency")
        if len(values) < 2:
            assert plot is None
            continue
        assert plot is not None
        for point in plot.points:
            assert plots.LEFT <= point.x <= plots.WIDTH - plots.RIGHT
            assert plots.TOP <= point.y <= plots.HEIGHT - plots.BOTTOM
        assert 2 <= len(plot.x_ticks) <= 7
        assert 2 <= len(plot.y_ticks) <= 12


def test_saving_replaces_whole_files(tmp_path: Path) -> None:
    report().save_html(tmp_path / "r.html")
    report().save_json(tmp_path / "r.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json"]


@pytest.mark.chromium
def test_a_real_browser_shows_it(tmp_path: Path) -> None:
    program = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("there is no chromium on this machine")
    (tmp_path / "r.html").write_text(render(report(EVIL)), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    start = [program, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,2200"]
    page = (tmp_path / "r.html").as_uri()
    dom = subprocess.run([*start, "--dump-dom", page], capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    assert title[1].startswith("gatewright"), "nothing of the model's name ran"
    assert "<script" not in dom
    assert dom.count("<svg") > 5
    subprocess.run([*start, f"--screenshot={tmp_path / 'r.png'}", page], capture_output=True, timeout=120, check=True)
    assert (tmp_path / "r.png").stat().st_size > 60_000, "an empty page is a small picture"


def test_every_target_has_a_marker_of_its_own() -> None:
    assert len(set(plots.SHAPES)) == len(plots.SHAPES) >= len(TARGETS)
    marker = environment().get_template("parts.html.j2").module.marker  # type: ignore[attr-defined]
    assert len({str(marker(shape, 0, False)) for shape in plots.SHAPES}) == len(plots.SHAPES)
