"""The Vivado project: its Tcl parsed and run against stand-ins for Vivado's commands, its host program, its reports."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rtl_kit import tiny

import gatewright as gw
from gatewright.errors import ToolFailed, ToolMissing, UsageError
from gatewright.targets import toolchain
from gatewright.targets.rtl import files, simulate, vivado

# Every command of Vivado that the script may use; each call is written down, and those that are asked for something answer.
STUBS = """
set said {}
foreach name {create_project set_property add_files update_compile_order create_bd_design create_bd_cell apply_bd_automation connect_bd_net
    connect_bd_intf_net assign_bd_address validate_bd_design save_bd_design make_wrapper launch_runs wait_on_run open_run report_utilization
    report_timing_summary} {
  proc $name {args} "global said; lappend said \\[linsert \\$args 0 $name\\]"
}
foreach name {current_project current_fileset get_bd_cells get_bd_pins get_bd_intf_pins get_files get_runs get_timing_paths} {
  proc $name {args} "return \\"$name \\$args\\""
}
proc get_board_parts {args} { return [lindex $args end] }
proc get_ipdefs {args} { regexp {NAME == (\\w+)} $args -> name; return [list xilinx.com:ip:$name:1.0 xilinx.com:ip:$name:2.0] }
proc get_property {name of} { switch $name { PROGRESS { return 100% } SLACK { global slack; return $slack } DIRECTORY { return runs } } }
rename file file_
proc file {verb args} {
  global said
  if {$verb eq "copy"} { lappend said [linsert $args 0 copy]; return }
  return [uplevel 1 [list file_ $verb {*}$args]]
}
proc glob {args} { return [list vivado/system.hwh] }
proc puts {args} { global said; lappend said [linsert $args 0 puts] }
"""


def interpreter(slack: str) -> object:
    tkinter = pytest.importorskip("tkinter", reason="Python has no tkinter here, whose Tcl would parse the script")
    tcl = tkinter.Tcl()
    tcl.eval(f"set slack {slack}")
    tcl.eval(STUBS)
    return tcl


def calls(tcl: object, folder: Path) -> list[tuple[str, ...]]:
    tcl.eval(f"source {{{folder / 'build.tcl'}}}")  # type: ignore[attr-defined]
    return [tuple(tcl.splitlist(call)) for call in tcl.splitlist(tcl.eval("set said"))]  # type: ignore[attr-defined]


@pytest.fixture(scope="module", params=["pynq-z2", "zcu102"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gw.compile(tiny(), f"rtl:{request.param}", out=tmp_path_factory.mktemp("vivado") / "a").path


def test_the_script_builds_a_whole_design(folder: Path) -> None:
    text = (folder / "build.tcl").read_text(encoding="utf-8")
    assert not re.search(r"@[A-Z_]+@", text)
    made = calls(interpreter("0.25"), folder)
    by_name: dict[str, list[tuple[str, ...]]] = {}
    for call in made:
        by_name.setdefault(call[0], []).append(call)
    sources = {Path(call[1]).name for call in by_name["add_files"] if call[1] != "-fileset"}
    assert sources == {"network.v", "axi_stream.v", "top.v"}
    assert all((folder / name).is_file() for name in (*sources, "clock.xdc"))
    cells = {call[-1] for call in by_name["create_bd_cell"]}
    assert cells == {"ps", "reset", "dma", "control", "memory", "network"}
    # Each cell's clocks and resets, and both ends of each bus, are connected once.
    ends = [end.split()[-1] for call in by_name["connect_bd_intf_net"] for end in call[1:]]
    assert len(ends) == len(set(ends)) == 14
    assert {end.partition("/")[0] for end in ends} == {"ps", "dma", "control", "memory", "network"}
    sinks = [call[2].split()[-1] for call in by_name["connect_bd_net"]]
    assert len(sinks) == len(set(sinks)) == 14
    assert {"network/aclk", "network/aresetn", "dma/axi_resetn"} <= set(sinks)
    top = (folder / "top.v").read_text(encoding="utf-8")
    assert all(f"{end.partition('/')[2]}_tdata" in top for end in ends if end.startswith("network/"))
    assert all(re.search(rf"input wire {sink.partition('/')[2]}\b", top) for sink in sinks if sink.startswith("network/"))
    assert [Path(call[-1]).name for call in by_name["copy"]] == ["gatewright.bit", "gatewright.hwh"]
    assert ("puts", "gatewright: slack 0.25 ns") in made


def test_timing_that_is_missed_ends_without_a_bitstream(folder: Path) -> None:
    tcl = interpreter("-0.5")
    with pytest.raises(Exception, match=r"timing is missed by 0\.5 ns"):
        calls(tcl, folder)
    assert "gatewright.bit" not in tcl.eval("set said")  # type: ignore[attr-defined]


def test_a_script_with_a_command_that_is_none_is_seen(folder: Path, tmp_path: Path) -> None:
    text = (folder / "build.tcl").read_text(encoding="utf-8")
    for broken in (text.replace("assign_bd_address", "assign_address"), text + "\nforeach x {1 2 {"):
        (tmp_path / "build.tcl").write_text(broken, encoding="utf-8")
        with pytest.raises(Exception, match=r"invalid command|missing close-brace"):
            calls(interpreter("1"), tmp_path)


def test_the_program_on_the_board_packs_as_the_simulator_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("run_pynq", folder / "run_pynq.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network, ports = files.load(folder / "network.json"), json.loads((folder / "network.json").read_text(encoding="utf-8"))
    x = np.random.default_rng(0).integers(-128, 128, (9, 3))
    assert module.pack(ports["inputs"], [x]).tobytes() == simulate.pack(network.inputs, [x], 2).tobytes()
    y = np.random.default_rng(1).integers(0, 1 << 7, (9, 2))
    beats = simulate.pack(network.outputs, [y], 2).view("<u8")
    (got,) = module.unpack(ports["outputs"], beats)
    assert np.array_equal(got.reshape(9, -1), simulate.unpack(network.outputs, beats.view(np.uint8))[0])
    assert module.beats_of(ports["inputs"]) == 1


UTILIZATION = """
| Site Type              |  Used | Fixed | Prohibited | Available | Util% |
| {kind} LUTs*            |  1234 |     0 |          0 |     53200 |  2.32 |
| {kind} Registers        |   567 |     0 |          0 |    106400 |  0.53 |
| Block RAM Tile |  2.5 |     0 |          0 |       140 |  1.79 |
| DSPs           |    0 |     0 |          0 |       220 |  0.00 |
"""


@pytest.mark.parametrize("kind", ["Slice", "CLB"])
def test_reports(kind: str, tmp_path: Path) -> None:
    (tmp_path / "utilization.rpt").write_text(UTILIZATION.format(kind=kind), encoding="utf-8")
    (tmp_path / "vivado.out").write_text("INFO: done\ngatewright: slack 2.000 ns\n", encoding="utf-8")
    found = vivado.read_reports(tmp_path, 100e6)
    assert {name: figure.value for name, figure in found.items() if name != "fmax"} == {"LUT": 1234, "FF": 567, "BRAM": 2.5, "DSP": 0}
    assert found["fmax"].value == pytest.approx(125e6)
    assert found["LUT"].source == "synthesized"
    (tmp_path / "vivado.out").write_text("INFO: done\n", encoding="utf-8")
    with pytest.raises(ToolFailed, match="whether timing is met"):
        vivado.read_reports(tmp_path, 100e6)


def test_what_is_missing_is_said(folder: Path) -> None:
    if toolchain.VIVADO.find() is not None:
        pytest.skip("Vivado is installed here")
    with pytest.raises(ToolMissing, match="AMD Vivado"):
        gw.build(folder)
    with pytest.raises(UsageError, match=r"run_pynq\.py"):
        gw.targets.base.Artifact.open(folder, gw.runtime.driver.context()).load("device")
