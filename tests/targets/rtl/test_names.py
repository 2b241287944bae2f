"""Names: none of a model's reaches Verilog, constraints, Tcl or a script; none of ours is a word of a language that reads it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rtl_kit import needs_verilator, tiny

import gatewright as gw
from gatewright.errors import UsageError
from gatewright.frontend.model import Model
from gatewright.hw.device import Board, load_device
from gatewright.targets import toolchain
from gatewright.targets.rtl import vivado, wrapper
from gatewright.targets.rtl.board import FAMILIES

HOSTILE = [
    'always; end\nmodule */ `include "/etc/passwd" $finish //',
    "[exec touch /tmp/owned]; {",
    "$(reboot) `id` ; & | > x",
    "..\\..\\/etc/passwd",
    "\\esc[0] \x1b[31m\N{RIGHT-TO-LEFT OVERRIDE}",
    "module",
    "entity",
    "proc",
    "inside",
]
# IEEE 1800-2017, annex B, without the words that Verilog-2001 has, and IEEE 1076-2008, 15.10.
SYSTEMVERILOG = """
accept_on alias always_comb always_ff always_latch assert assume before bind bins binsof bit break byte chandle checker class clocking
const constraint context continue cover covergroup coverpoint cross dist do endchecker endclass endclocking endgroup endinterface
endpackage endprogram endproperty endsequence enum eventually expect export extends extern final first_match foreach forkjoin global iff
ignore_bins illegal_bins implements implies import inside int interconnect interface intersect join_any join_none let local logic longint
matches modport nettype new nexttime null package packed priority program property protected pure rand randc randcase randsequence ref
reject_on restrict return s_always s_eventually s_nexttime s_until s_until_with sequence shortint shortreal soft solve static string strong
struct super sync_accept_on sync_reject_on tagged this throughout timeprecision timeunit type typedef union unique unique0 until until_with
untyped uwire var virtual void wait_order weak wildcard with within
"""
VHDL = """
abs access after alias all and architecture array assert assume attribute begin block body buffer bus case component configuration
constant context cover default disconnect downto else elsif end entity exit fairness file for force function generate generic group guarded
if impure in inertial inout is label library linkage literal loop map mod nand new next nor not null of on open or others out package
parameter port postponed procedure process property protected pure range record register reject release rem report restrict return rol ror
select sequence severity signal shared sla sll sra srl strong subtype then to transport type unaffected units until use variable vmode vprop
vunit wait when while with xnor xor
"""


def hostile(name: str) -> Model:
    """``tiny`` with every name of the graph replaced."""
    model = tiny()
    for number, node in enumerate(model.graph):
        node.name = f"{name}{number}"
    for number, value in enumerate((*model.graph.inputs, *model.graph.outputs)):
        value.name = f"{name}_{number}" if number else name
    for number, value in enumerate(list(model.graph.initializers.values())):
        value.name = f"{name}/{number}"
    return model.renamed(name)


@pytest.mark.parametrize("target", ["rtl:icebreaker", "rtl:pynq-z2"])
def test_no_name_of_the_model_reaches_a_tool(target: str, tmp_path: Path) -> None:
    clean = gw.compile(tiny(), target, out=tmp_path / "clean").path
    names = sorted(file.relative_to(clean) for file in clean.rglob("*") if file.is_file())
    for number, name in enumerate(HOSTILE):
        folder = gw.compile(hostile(name), target, out=tmp_path / str(number)).path
        assert sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file()) == names
        for file in names:
            if file.suffix not in (".json", ".onnx"):  # those two are data, read by parsers of their own
                assert (folder / file).read_bytes() == (clean / file).read_bytes(), (name, file)


@pytest.mark.parametrize("value", ["35 -nowarn x", "35\nset_io led 99", 'A";LOCATE COMP "x', ""])
def test_pins_of_a_users_board_are_checked(value: str) -> None:
    board = load_device("icebreaker")
    assert isinstance(board, Board)
    with pytest.raises(UsageError, match="is no pin of a package"):
        FAMILIES[board.part.family].pins(replace(board, pins={**board.pins, "clk": value}), "uart")


@pytest.mark.parametrize("value", ["xc7z020 [exec reboot]", "x;y", "$x", "a b", "{", "a\nb"])
def test_vivados_names_of_a_users_board_are_checked(value: str) -> None:
    board = load_device("pynq-z2")
    assert isinstance(board, Board)
    with pytest.raises(UsageError, match=r"of Vivado's"):
        vivado.require(replace(board, vendor_board=value))
    with pytest.raises(UsageError, match=r"of Vivado's"):
        vivado.require(replace(board, part=replace(board.part, part_number=value)))


def test_our_own_names_are_no_words_of_verilog_systemverilog_or_vhdl(tmp_path: Path) -> None:
    texts = {name: text for kind in ("uart", "spi", "axi") for name, text in wrapper.modules(kind).items()}
    for target in ("rtl:icebreaker{wrapper=spi}", "rtl:ulx3s-25f", "rtl:pynq-z2"):
        folder = gw.compile(tiny(), target, out=tmp_path / re.sub(r"\W", "_", target)).path
        texts |= {f"{target}/{name}": (folder / name).read_text(encoding="utf-8") for name in ("network.v", "top.v")}
    used = {word for text in texts.values() for word in re.findall(r"[A-Za-z_]\w*", re.sub(r'//.*|"[^"]*"', "", text))}
    assert {"network", "s_axis_tready", "under_way", "crc", "shift", "module", "reg"} <= used
    assert not used & set(SYSTEMVERILOG.split())
    # A VHDL design instantiates these: their ports and names must be sayable there.
    ports = {name for text in texts.values() for name in re.findall(r"\b(?:input|output) (?:wire|reg) (?:\[[^\]]*\]\s*)?(\w+)", text)}
    modules = {name for text in texts.values() for name in re.findall(r"^module (\w+)", text, re.MULTILINE)}
    assert len(ports) > 20
    assert not {name.lower() for name in ports | modules} & set(VHDL.split())
    assert not [name for name in ports | modules if name.startswith("_") or name.endswith("_") or "__" in name]


@needs_verilator
@pytest.mark.parametrize("target", ["rtl:icebreaker", "rtl:icebreaker{wrapper=spi}", "rtl:pynq-z2", "rtl:zcu102"])
def test_verilator_finds_nothing_to_complain_of(target: str, tmp_path: Path) -> None:
    folder = gw.compile(tiny(), target, out=tmp_path / "a").path
    top = "gatewright_stream" if "rtl:icebreaker" not in target else "top"
    sources = sorted(file.name for file in folder.glob("*.v"))
    program = toolchain.VERILATOR.require("the lint")
    # Widths are cut on purpose in shift registers; a network may leave bits of its inputs unread.
    words = [str(program), "--lint-only", "-Wall", "-Wno-WIDTH", "-Wno-DECLFILENAME", "-Wno-UNUSED", "--top-module", top, *sources]
    toolchain.run(words, cwd=folder, log=tmp_path / "lint.log", what="the lint", time_limit_s=60)
