"""From a lowered artifact to a bitstream with tools that do as they are told: seeds, refusals, tools that die, builds that are resumed.

The tools are scripts on PATH, so that what is run is the way that the system's own tools are run.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from test_simulation import small

import gatewright as gw
from gatewright.errors import DoesNotFit, GatewrightError, ToolFailed, ToolMissing
from gatewright.runtime import driver, views
from gatewright.targets.base import Artifact
from gatewright.targets.rtl import advice, tools
from gatewright.targets.rtl.reports import read_report, too_large, utilization

SCRIPT = """\
#!{python}
import json, os, pathlib, sys, time
here = pathlib.Path({folder!r})
if sys.argv[1] in ("-V", "--version"):
    print("Fake 1.25 (git)"); sys.exit()
with open(here / "ran", "a") as log:
    log.write({name!r} + "\\n")
told = json.loads((here / "told.json").read_text()).get({name!r}, {{}})
print("Info: \\t ICESTORM_LC: %d/ 5280 %d%%" % (told.get("cells", 100), told.get("cells", 100) // 53))
{does}
if told.get("hang"):
    time.sleep(600)
if told.get("kill"):
    os.kill(os.getpid(), 9)
if told.get("error"):
    print("ERROR: " + told["error"]); sys.exit(1)
"""
SYNTHESIZES = """\
open("top.json", "w").write("{}")
open("cells.json", "w").write(json.dumps({"design": {"num_cells_by_type": {"SB_LUT4": told.get("luts", 10), "SB_DFF": 3}}}))
"""
PLACES = """\
seed = sys.argv[sys.argv.index("--seed") + 1]
if seed in told.get("stuck", []):
    for i in range(10_000):
        print(f"Info:     iter={i} wires=900 overused={max(1, 9 - i)} overuse=1 archfail=NA", flush=True); time.sleep(0.01)
path = [{"from": "posedge clk", "to": "posedge clk", "path": [{"net": told.get("net", "core.L1_3")}]}]
report = {"fmax": {"clk": {"achieved": told.get("mhz", {}).get(seed, 1.0)}}, "critical_paths": path}
open("report.json", "w").write(json.dumps({**report, "utilization": {"ICESTORM_LC": {"used": 100, "available": 5280}}}))
open("top.asc", "w").write("placed with seed " + seed)
"""
PACKS = """\
open("top.bin", "w").write(open("top.asc").read())
"""

Tell = Callable[..., None]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Puts the tools on PATH; called with what each is to do."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, does in (("yosys", SYNTHESIZES), ("nextpnr-ice40", PLACES), ("icepack", PACKS)):
        text = SCRIPT.format(python=sys.executable, folder=str(folder), name=name, does=does)
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("GATEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tools.OpenTool, "packaged", property(lambda tool: False))

    def told(**orders: object) -> None:
        (folder / "told.json").write_text(json.dumps({name.replace("_", "-"): order for name, order in orders.items()}), encoding="utf-8")
        (folder / "ran").write_text("", encoding="utf-8")

    told()
    return told


@pytest.fixture
def lowered(tell: Tell, tmp_path: Path) -> Artifact:
    return gw.compile(small(), "rtl:icebreaker{seeds=3}", out=tmp_path / "a")


def ran(tmp_path: Path) -> list[str]:
    return (tmp_path / "tools" / "ran").read_text(encoding="utf-8").split()


def untouched(artifact: Artifact) -> bool:
    """It is lowered and whole, with nothing in it that it did not have."""
    found = {file.relative_to(artifact.path).as_posix() for file in artifact.path.rglob("*") if file.is_file()}
    return Artifact.open(artifact.path, driver.context()).stage == "lowered" and found == {*artifact.manifest["files"], "manifest.json"}


def test_seeds_are_tried_until_one_meets_the_clock(lowered: Artifact, tell: Tell, tmp_path: Path) -> None:
    tell(nextpnr_ice40={"mhz": {"1": 11.9, "2": 12.5, "3": 30.0}})
    seen: list[str] = []
    built = gw.build(lowered, progress=lambda what, done=None, total=None: seen.append(what))
    target = built.manifest["target"]
    assert ran(tmp_path) == ["yosys", "nextpnr-ice40", "nextpnr-ice40", "icepack"]
    assert (target["seed"], target["figures"]["fmax"]["value"], target["figures"]["FF"]["value"]) == (2, 12.5e6, 3.0)
    assert (built.path / "top.bin").read_text(encoding="utf-8") == "placed with seed 2"
    assert built.manifest["versions"]["yosys"] == "1.25"
    assert any("seed 1: 11.90 MHz of 12 MHz" in what for what in seen)
    shown = io.StringIO()
    Console(file=shown, width=160).print(*views.artifact_tables(built))
    assert "12.5 MHz" in shown.getvalue()
    assert "synthesized" in shown.getvalue()
    assert not list((tmp_path / "cache" / "rtl-builds").iterdir())
    assert not {"top.json", "top.asc", "report.json"} & set(built.manifest["files"])


def test_a_missed_clock_gives_no_bitstream_whatever_files_there_are(lowered: Artifact, tell: Tell, tmp_path: Path) -> None:
    tell(nextpnr_ice40={"mhz": {"1": 10.0, "2": 11.0, "3": 9.0}})
    for tools_run in (["yosys", *["nextpnr-ice40"] * 3], []):  # the second time everything is known
        with pytest.raises(ToolFailed, match=r"11.00 MHz of 12 MHz is the best of 3 seeds; the critical path is in 'MatMul_2'") as caught:
            gw.build(lowered)
        assert caught.value.exit_code == 1
        assert "{margin=1.4}" in str(caught.value.hint)
        assert "{clock_mhz=" not in str(caught.value.hint)  # no PLL of this board makes less than its oscillator
        assert ran(tmp_path) == tools_run
        assert untouched(lowered)
        tell()
    tell(nextpnr_ice40={"mhz": {}, "net": "line.bit"})
    faster = gw.compile(small(), "rtl:icebreaker{seeds=1,clock_mhz=24}", out=tmp_path / "b")
    with pytest.raises(ToolFailed, match="critical path is in the serial interface") as caught:
        gw.build(faster)
    assert "margin" not in str(caught.value.hint)


def test_a_build_goes_on_where_it_was_stopped(lowered: Artifact, tell: Tell, tmp_path: Path) -> None:
    tell(nextpnr_ice40={"kill": True})
    with pytest.raises(ToolFailed, match="was killed by SIGKILL") as caught:
        gw.build(lowered)
    assert "ran out of memory" in str(caught.value.hint)
    log = Path(caught.value.message.rpartition("log: ")[2])
    assert "ICESTORM_LC" in log.read_text(encoding="utf-8")
    assert ran(tmp_path) == ["yosys", "nextpnr-ice40"]
    assert untouched(lowered)
    tell(nextpnr_ice40={"mhz": {"1": 13.0}})
    built = gw.build(lowered)
    assert ran(tmp_path) == ["nextpnr-ice40", "icepack"]
    assert built.manifest["target"]["figures"]["LUT"] == {"value": 100.0, "unit": "LUT", "source": "synthesized"}
    # Another design has other steps.
    tell(nextpnr_ice40={"mhz": {"1": 99.0}})
    gw.build(gw.compile(small(), "rtl:icebreaker{baud=9600}", out=tmp_path / "b"))
    assert ran(tmp_path) == ["yosys", "nextpnr-ice40", "icepack"]


def test_a_tool_that_hangs_is_stopped(lowered: Artifact, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWRIGHT_TIME_LIMIT_S", "3")
    tell(nextpnr_ice40={"hang": True})
    with pytest.raises(ToolFailed, match="place and route for icebreaker, seed 1 of at most 3 took longer than 3 s") as caught:
        gw.build(lowered)
    assert "GATEWRIGHT_TIME_LIMIT_S=6" in str(caught.value.hint)
    assert untouched(lowered)


def test_a_router_that_goes_round_in_circles_is_stopped_and_another_seed_tried(lowered: Artifact, tell: Tell, tmp_path: Path) -> None:
    tell(nextpnr_ice40={"stuck": ["1"], "mhz": {"2": 14.0}})
    seen: list[str] = []
    built = gw.build(lowered, progress=lambda what, done=None, total=None: seen.append(what))
    assert built.manifest["target"]["seed"] == 2
    assert any("seed 1: the router found no way, 1 wires are still in conflict" in what for what in seen)
    tell(nextpnr_ice40={"stuck": ["1"]})
    hopeless = gw.compile(small(), "rtl:icebreaker{seeds=1,baud=9600}", out=tmp_path / "b")
    for tools_run in (["yosys", "nextpnr-ice40"], []):
        with pytest.raises(ToolFailed, match="no way was found to route it on icebreaker, with 1 seeds") as caught:
            gw.build(hopeless)
        assert "{seeds=12}" in str(caught.value.hint)
        assert ran(tmp_path) == tools_run
        tell()


@pytest.mark.parametrize(
    ("orders", "rows", "tools_run"),
    [
        ({"yosys": {"luts": 6000}}, "LUT: needs 6000, ice40up5k has 5280", ["yosys"]),
        (
            {"nextpnr_ice40": {"cells": 5500, "error": "Unable to place cell 'a', no BELs remaining to implement cell type 'ICESTORM_LC'"}},
            "ICESTORM_LC: needs 5500, ice40up5k has 5280", ["yosys", "nextpnr-ice40"],
        ),
    ],
)  # fmt: skip
def test_what_turns_out_too_large_is_refused(
    orders: dict[str, object], rows: str, tools_run: list[str], lowered: Artifact, tell: Tell, tmp_path: Path
) -> None:
    tell(**orders)
    with pytest.raises(DoesNotFit, match=rows) as caught:
        gw.build(lowered)
    assert caught.value.exit_code == 3
    assert "it would fit ice40-hx8k" in str(caught.value.hint)
    assert ran(tmp_path) == tools_run
    assert untouched(lowered)


def test_a_placer_that_fails_otherwise_is_no_lack_of_room(lowered: Artifact, tell: Tell) -> None:
    tell(nextpnr_ice40={"error": "package does not have a pin named 99"})
    with pytest.raises(ToolFailed, match="pin named 99"):
        gw.build(lowered)


def test_a_missing_tool_is_named(lowered: Artifact, tmp_path: Path) -> None:
    (tmp_path / "tools" / "nextpnr-ice40").unlink()
    with pytest.raises(ToolMissing, match="needs nextpnr-ice40, which is not installed") as caught:
        gw.build(lowered)
    assert "gatewright[fpga]" in str(caught.value.hint)
    assert untouched(lowered)


def test_report_of_the_placer() -> None:
    report = {
        "fmax": {"clk": {"achieved": 51.5, "constraint": 50.0}, "clk_in": {"achieved": 300.0, "constraint": 25.0}},
        "utilization": {"TRELLIS_COMB": {"used": 10, "available": 20}},
        "critical_paths": [{"from": "posedge clk", "to": "posedge clk", "path": [{"net": "core.L2_14_r1"}, {"net": "core.L2_15"}]}],
    }
    placed = read_report(report, 3)
    assert placed.fmax_hz == 51.5e6
    assert placed.utilization == {"TRELLIS_COMB": (10, 20)}
    assert placed.critical == ("core.L2_14_r1", "core.L2_15")
    assert placed.blame(["a", "b", "c"]) == "c"
    assert placed.blame(["a"]) is None


def test_a_log_of_a_placer_that_stopped(tmp_path: Path) -> None:
    log = tmp_path / "place.log"
    log.write_text(
        "Info: \t         ICESTORM_LC:    5850/   5280   110%\nERROR: Unable to find legal placement for cell 'x'\n", encoding="utf-8"
    )
    assert utilization(log) == {"ICESTORM_LC": (5850, 5280)}
    assert too_large(log) == "Unable to find legal placement for cell 'x'"
    assert too_large(tmp_path / "none.log") is None
    log.write_text("ERROR: failed to open file\n", encoding="utf-8")
    assert too_large(log) is None


def test_advice_for_a_clock_that_is_missed() -> None:
    from gatewright.hw.device import Board, load_device

    board = load_device("ulx3s-25f")
    assert isinstance(board, Board)
    text = advice.for_timing(board, 50e6, 41e6, in_network=True)
    assert "{clock_mhz=37.5}" in text
    assert "{margin=1.5}" in text
    with pytest.raises(GatewrightError):
        gw.compile(small(), "rtl:ulx3s-25f{seeds=0}")
