"""The vendors' scripts and the hosts' programs: run against stand-ins, caught where a bug is planted, free of names from the model."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from hls_kit import cnn, mlp, needs_gxx, quantized

import gatewright as gw
from gatewright.errors import UsageError
from gatewright.frontend.model import Model
from gatewright.runtime.targetspec import resolve
from gatewright.targets.hls import hosts, lint, scripts
from gatewright.targets.hls.target import HlsTarget

needs_tcl = pytest.mark.skipif(shutil.which("tclsh") is None and importlib.util.find_spec("_tkinter") is None, reason="no Tcl")

TARGETS = {
    "vitis-dma": "hls:pynq-z2", "vitis-ultrascale": "hls:zcu102", "vitis-ip": "hls:pynq-z2{design=ip}", "vitis-xrt": "hls:alveo-u50",
    "vivado": "hls:pynq-z2{tool=vivado}", "accelerator": "hls:zcu102{tool=vivadoaccelerator}", "quartus": "hls:de10-nano{tool=quartus}",
    "oneapi": "hls:10ax115{tool=oneapi}", "catapult": "hls:pynq-z2{tool=catapult}",
}  # fmt: skip
HOSTILE = ['x"; system("id"); //', "$(touch /tmp/owned)", "}; exec id; {", "[exec id]", "a\nb`id`", "@PART@"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The scripts and the host's files of one project per way of writing one, of a model whose every name is hostile."""
    root = tmp_path_factory.mktemp("written")
    model = hostile(mlp())
    for name, target in TARGETS.items():
        bound = resolve(target)
        assert isinstance(bound, HlsTarget)
        network, _, problems = bound._legalized(model)
        assert not problems
        network = bound._size(network).network
        texts = {**scripts.files(network, bound.board), **hosts.files(network, model_outputs=["y"], host_pre=None, host_post=None)}
        (root / name).mkdir()
        for path, text in texts.items():
            (root / name / path).write_text(text, encoding="utf-8")
    return {name: root / name for name in TARGETS}


def hostile(model: Model) -> Model:
    ir_model = quantized(model).copy_ir()
    names = iter(HOSTILE)
    for node in ir_model.graph:
        node.name = next(names, f"{node.name}\"'${{}}[]")
    for value in (*ir_model.graph.inputs, *ir_model.graph.outputs):
        value.name = f'{value.name}"; exit(1); $(id) [exec id] }}'
    return quantized(model).with_ir(ir_model).renamed('m"$(id)[exec id]}')


@needs_tcl
@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("quartus", "oneapi")])
def test_every_tcl_script_runs_to_its_end_on_stand_ins(name: str, written: dict[str, Path], tmp_path: Path) -> None:
    scripts = sorted(written[name].glob("*.tcl"))
    assert scripts
    for script in scripts:
        finding = lint.tcl(script, tmp_path)
        assert finding.wrong is None
        assert len(finding.notes) > 8


@needs_tcl
def test_the_block_design_wires_the_dma_to_the_design(written: dict[str, Path], tmp_path: Path) -> None:
    boards = (("vitis-dma", "xc7z020clg400-1", "S_AXI_HP0"), ("vitis-ultrascale", "xczu9eg-ffvb1156-2-e", "S_AXI_HP0_FPD"))
    for name, part, memory in boards:
        calls = lint.tcl(written[name] / "block_design.tcl", tmp_path).notes
        assert f"create_project -force accelerator accelerator_prj -part {part}" in calls
        assert "connect_bd_intf_net dma/M_AXIS_MM2S design/taken" in calls
        assert "connect_bd_intf_net design/given dma/S_AXIS_S2MM" in calls
        assert f"connect_bd_intf_net memory_bus/M00_AXI ps/{memory}" in calls
        assert calls.index("launch_runs impl_1 -to_step route_design -jobs 4") < calls.index("write_bitstream -force design.bit")


@needs_tcl
@pytest.mark.parametrize(
    ("script", "right", "wrong", "said"),
    [
        ("block_design.tcl", "set control ps/M_AXI_GP0\n", "", "control"),
        ("block_design.tcl", "dma/M_AXIS_MM2S design/taken", "dma/M_AXIS_MM2S desing/taken", "desing"),
        ("block_design.tcl", "create_bd_design system", "create_bd_desing system", "invalid command name"),
        ("block_design.tcl", "if {$slack_ns < 0} {", "if {$slack_ns < 0} ", "wrong|close|missing|extra"),
        ("build.tcl", "foreach source $sources {", "foreach source $source {", "source"),
        ("build.tcl", "set_part $part", 'set_part "$part', "not closed"),
    ],
)
def test_a_planted_bug_in_tcl_is_caught(script: str, right: str, wrong: str, said: str, written: dict[str, Path], tmp_path: Path) -> None:
    text = (written["vitis-dma"] / script).read_text()
    assert right in text
    (tmp_path / script).write_text(text.replace(right, wrong))
    finding = lint.tcl(tmp_path / script, tmp_path)
    assert finding.wrong is not None
    assert any(word in finding.wrong for word in said.split("|")), finding.wrong


def test_a_timing_that_is_missed_writes_no_bitstream(written: dict[str, Path], tmp_path: Path) -> None:
    if shutil.which("tclsh") is None:
        pytest.skip("no tclsh")
    text = (written["vitis-dma"] / "block_design.tcl").read_text()
    (tmp_path / "block_design.tcl").write_text(text.replace("[get_property STATS.WNS [get_runs impl_1]]", "-0.8"))
    calls = lint.tcl(tmp_path / "block_design.tcl", tmp_path).notes
    assert not [call for call in calls if call.startswith("write_bitstream")]


def assert_harmless(folder: Path) -> None:
    """Nothing of the hostile names in any file that a tool, a compiler or a shell reads."""
    data = {"manifest.json", "network.json", "host.json", "interface.json"}
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in data and path.suffix not in (".onnx", ".npz"):
            text = path.read_text(encoding="utf-8", errors="replace")
            for hostile_words in ("exec id", "$(id)", 'system("id")', "touch /tmp/owned"):
                assert hostile_words not in text, path
            if path.suffix in (".tcl", ".cfg", ".xdc", ".sdc", ".md") or path.name == "Makefile":
                assert "@PART@" not in text, path


@pytest.mark.parametrize("name", TARGETS)
def test_no_name_of_the_model_is_in_a_script(name: str, written: dict[str, Path]) -> None:
    assert_harmless(written[name])


@pytest.mark.parametrize("name", ["vitis-dma", *(pytest.param(name, marks=pytest.mark.slow) for name in TARGETS if name != "vitis-dma")])
def test_no_name_of_the_model_is_in_anything_that_a_tool_reads(name: str, tmp_path: Path) -> None:
    folder = gw.compile(hostile(mlp()), TARGETS[name], out=tmp_path / "art").path
    assert_harmless(folder)
    assert "exec id" in (folder / "manifest.json").read_text()  # the names are kept, as data


@pytest.mark.parametrize("name", TARGETS)
def test_the_makefile_and_the_readme_have_the_one_command(name: str, written: dict[str, Path]) -> None:
    folder = written[name]
    assert "`make`" in (folder / "README.md").read_text()
    make = (folder / "Makefile").read_text()
    assert {"quartus": "i++", "oneapi": "icpx", "catapult": "catapult -shell"}.get(name, "$(HLS) build.tcl") in make
    if name == "vitis-xrt":
        assert "v++ --link --target hw --platform xilinx_u50_gen3x16_xdma_5_202210_1" in make
        assert "HBM[0]" in (folder / "link.cfg").read_text()


def test_a_board_file_cannot_smuggle_words_into_a_script(tmp_path: Path) -> None:
    home = Path(gw.hw.device.__file__).parent / "boards"
    board = (home / "pynq-z2.toml").read_text()
    (tmp_path / "b.toml").write_text(board.replace("tul.com.tw:pynq-z2:part0:1.0", "}; exec id; {"))
    with pytest.raises(UsageError, match="vendor_board"):
        gw.compile(quantized(mlp()), f"hls:{tmp_path / 'b.toml'}", out=tmp_path / "art")
    (tmp_path / "c.toml").write_text(board.replace("xc7z020@xc7z020clg400-1", "xc7z020@x[exec id]"))
    with pytest.raises(UsageError, match="no toolchain takes"):
        gw.check(quantized(mlp()), f"hls:{tmp_path / 'c.toml'}")


@needs_gxx
def test_the_hosts_files_are_sound(written: dict[str, Path], tmp_path: Path) -> None:
    compile((written["vitis-dma"] / "driver.py").read_text(), "driver.py", "exec")
    about = json.loads((written["vitis-dma"] / "host.json").read_text())
    assert about["bus_bits"] == 64
    host = written["vitis-xrt"] / "host.cpp"
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", f"-I{lint.xrt_headers(tmp_path)}"]
    assert lint._run([*command, host], host.parent, tmp_path, "host.cpp").wrong is None
    (tmp_path / "broken").mkdir()
    for name in ("host.cpp", "host_ports.h"):
        shutil.copy(host.parent / name, tmp_path / "broken" / name)
    (tmp_path / "broken" / "host.cpp").write_text(host.read_text().replace("kernel.group_id(0)", "kernel.grup_id(0)"))
    broken = tmp_path / "broken" / "host.cpp"
    assert "grup_id" in (lint._run([*command, broken], broken.parent, tmp_path, "host.cpp").wrong or "")


@pytest.mark.slow
def test_a_residual_cnn_is_written_for_every_tool(tmp_path: Path) -> None:
    model = quantized(cnn(), "bits=8,grid=affine")
    for tool, device in (("vivado", "pynq-z2"), ("oneapi", "10ax115"), ("catapult", "zcu102")):
        folder = gw.compile(model, f"hls:{device}{{tool={tool},io=stream}}", out=tmp_path / tool).path
        assert (folder / "firmware" / "design.cpp").exists()
        assert "requantize" in (folder / "firmware" / "design.cpp").read_text()
        assert not list(folder.glob("*.tar.gz"))
