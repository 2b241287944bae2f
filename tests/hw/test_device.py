"""Shipped devices are sane and cited; a user's own file works the same way; a bad file gives one clear error."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from gatewright.errors import UsageError
from gatewright.hw import device as module
from gatewright.hw.device import Board, Device, Part, Processor, devices, load_device

SHIPPED = devices()

CPU = """
kind = "cpu"
description = "a CPU of mine"
url = "https://example.com/cpu.pdf"
cores = 4
clock_hz = 2e9
isa = ["avx2", "fma"]
mcpu = "haswell"
peak_ops_per_s = { float32 = 256e9 }
"""

PART = """
kind = "part"
vendor = "lattice"
family = "ecp5"
part_number = "LFE5U-12F-6BG256C"
toolchains = ["yosys-nextpnr"]
luts = 12000
lut_inputs = 4
ffs = 12000
dsps = 28
bram_blocks = 32
typical_clock_hz = 40e6
"""


def figures(device: Device) -> set[str]:
    """Keys of ``device`` that hold a figure: set, and no name, text or address."""
    texts = {"kind", "name", "description", "url", "source", "sources", "vendor", "family", "part_number", "toolchains"}
    texts |= {"isa", "triple", "mcpu"}
    return {
        f.name
        for f in dataclasses.fields(device)
        if f.name not in texts and getattr(device, f.name) not in (None, f.default, ()) and getattr(device, f.name) != {}
    }


def test_enough_of_each_kind() -> None:
    count = {kind: len(devices(kind)) for kind in ("cpu", "gpu", "tpu", "part", "board")}  # type: ignore[arg-type]
    assert min(count["cpu"], count["gpu"], count["tpu"]) >= 3
    assert count["part"] >= 6
    assert count["board"] >= 4
    assert {"znver3", "raspberry-pi-5", "sm_90", "v5e", "pynq-z2", "ulx3s-85f", "icebreaker", "de10-nano"} <= {d.name for d in SHIPPED}


def test_names_are_unique_and_the_files_stems() -> None:
    names = [d.name for d in SHIPPED]
    assert len(set(names)) == len(names)
    assert all(Path(d.source).stem == d.name for d in SHIPPED)
    home = Path(module.__file__).parent
    assert sum(1 for folder in ("processors", "parts", "boards") for _ in (home / folder).iterdir()) == len(names)


@pytest.mark.parametrize("device", SHIPPED, ids=lambda d: d.name)
def test_shipped_device_is_cited(device: Device) -> None:
    assert re.match(r"https://\S+$", device.url)
    assert device.description
    cited = {name for citation in device.sources for name in citation.figures}
    assert cited >= figures(device), "a figure without a source"
    assert cited <= {f.name for f in dataclasses.fields(device)}, "a citation of a figure that is not there"
    for citation in device.sources:
        assert citation.table
        assert citation.url.startswith("https://") or citation.figures == ("typical_clock_hz",)


@pytest.mark.parametrize("device", SHIPPED, ids=lambda d: d.name)
def test_shipped_device_round_trips(device: Device) -> None:
    text = json.dumps(device.to_json(), sort_keys=True)
    again = Device.from_json(json.loads(text))
    assert again == device
    assert again.source == device.source
    assert json.dumps(again.to_json(), sort_keys=True) == text
    assert load_device(device.name) == device
    hash(device)


@pytest.mark.parametrize("device", devices("cpu") + devices("gpu") + devices("tpu"), ids=lambda d: d.name)
def test_processor_is_plausible(device: Device) -> None:
    assert isinstance(device, Processor)
    assert device.threads is None or device.threads in (device.cores, 2 * device.cores)
    caches = [c for c in (device.l1d_bytes, device.l2_bytes, device.l3_bytes) if c]
    assert caches == sorted(caches)
    peak = device.peak_ops_per_s
    assert peak, "the roofline needs at least one peak rate"
    order = [peak[d] for d in ("float64", "float32", "float16", "int8", "int4") if d in peak]  # type: ignore[index]
    assert order == sorted(order), "narrower types are never slower"
    assert device.memory_bandwidth_bytes_per_s
    assert 1 <= max(peak.values()) / device.memory_bandwidth_bytes_per_s <= 2000
    if device.kind == "cpu":
        assert device.mcpu
        assert device.triple
        assert device.clock_hz
        assert device.vector_bits
        fma_per_cycle = peak["float32"] / (2 * device.cores * device.clock_hz * device.vector_bits / 32)
        assert 1 <= fma_per_cycle <= 4, "vector multiply-adds per core and cycle"
    if device.kind == "gpu":
        assert device.mcpu == device.name


@pytest.mark.parametrize("device", devices("part"), ids=lambda d: d.name)
def test_part_is_plausible(device: Device) -> None:
    assert isinstance(device, Part)
    assert 0.5 <= device.ffs / device.luts <= 2
    assert device.dsp_bits or not device.dsps
    assert device.bram_block_bits
    assert 4_096 <= device.bram_block_bits <= 36_864
    assert bool(device.uram_blocks) == bool(device.uram_block_bits)
    assert 1e6 <= device.typical_clock_hz <= 500e6
    expected = {"amd": "vitis", "intel": "quartus", "lattice": "yosys-nextpnr", "gowin": "yosys-nextpnr"}
    assert expected[device.vendor] in device.toolchains


@pytest.mark.parametrize(
    ("name", "kilobits"),
    [
        ("xc7z020", 5040),
        ("xczu9eg", 32832),
        ("ecp5-25f", 1008),
        ("ecp5-85f", 3744),
        ("ice40up5k", 120),
        ("gw1nr-9", 468),
        ("5cseba6", 5530),
        ("10ax115", 54260),
    ],
)
def test_memory_of_a_part_agrees_with_the_total_of_its_data_sheet(name: str, kilobits: int) -> None:
    part = load_device(name)
    assert isinstance(part, Part)
    assert part.bram_block_bits
    assert part.bram_blocks * part.bram_block_bits == kilobits * 1024


def test_board_holds_its_part_with_the_number_soldered_on() -> None:
    board = load_device("pynq-z2")
    assert isinstance(board, Board)
    assert board.part.name == "xc7z020"
    assert board.part.part_number == "xc7z020clg400-1"
    nano = load_device("de10-nano")
    assert isinstance(nano, Board)
    assert "quartus" in nano.part.toolchains
    assert nano.part.part_number == "5CSEBA6U23I7"


def test_unknown_name_shows_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no device 'pynq-z'.*did you mean .*pynq-z2") as caught:
        load_device("pynq-z")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="no device file"):
        load_device("nowhere/mine.toml")


def test_users_own_processor_works_like_a_shipped_one(tmp_path: Path) -> None:
    file = tmp_path / "my-cpu.toml"
    file.write_text(CPU, encoding="utf-8")
    device = load_device(file)
    assert isinstance(device, Processor)
    assert (device.name, device.kind, device.cores, device.clock_hz) == ("my-cpu", "cpu", 4, 2e9)
    assert device == load_device(str(file))
    assert Device.from_json(device.to_json()) == device
    assert str(tmp_path) not in json.dumps(device.to_json()), "an artifact must not depend on where the file lay"


def test_users_own_board_with_a_shipped_an_own_and_an_inline_part(tmp_path: Path) -> None:
    (tmp_path / "my-part.toml").write_text(PART, encoding="utf-8")
    inline = "[part]\n" + "\n".join(line for line in PART.splitlines() if not line.startswith("kind"))
    numbers = []
    for reference in ('part = "ecp5-25f"', 'part = "my-part.toml@LFE5U-12F-8BG256C"', inline):
        file = tmp_path / "my-board.toml"
        file.write_text(f'kind = "board"\nclock_hz = 25e6\n{reference}\n', encoding="utf-8")
        board = load_device(file)
        assert isinstance(board, Board)
        assert Device.from_json(json.loads(json.dumps(board.to_json()))) == board
        numbers.append(board.part.part_number)
    assert numbers == ["LFE5U-25F-6BG381C", "LFE5U-12F-8BG256C", "LFE5U-12F-6BG256C"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cores = 4", "coers = 4"), "there is no key 'coers'.*did you mean cores"),
        (("cores = 4", ""), "key 'cores' is missing.*whole number from 1"),
        (("cores = 4", "cores = 4.5"), "key 'cores' is 4.5; it takes a whole number"),
        (("cores = 4", "cores = 0"), "key 'cores' is 0; it takes a whole number from 1"),
        (("cores = 4", "cores = true"), "key 'cores' is True; it takes a whole number"),
        (("cores = 4", 'cores = "four"'), "key 'cores' is 'four'; it takes a whole number"),
        (("clock_hz = 2e9", "clock_hz = 2.4"), "key 'clock_hz' is 2.4; it takes a number from 1000 to"),
        (("float32 = 256e9", "float32 = true"), "entry 'float32', is True; it takes a number"),
        (("clock_hz = 2e9", "clock_hz = nan"), "key 'clock_hz' is nan; it takes a number"),
        (("clock_hz = 2e9", "clock_hz = [1]"), r"key 'clock_hz' is \[1\]; it takes a number"),
        (('isa = ["avx2", "fma"]', 'isa = "avx2"'), "key 'isa' is 'avx2'; it takes a list"),
        (('isa = ["avx2", "fma"]', 'isa = ["avx2", 1]'), "key 'isa', item 2, is 1; it takes a text"),
        (("float32 = 256e9", "flaot32 = 256e9"), "key 'peak_ops_per_s' has no entry 'flaot32'.*did you mean .*float32"),
        (("float32 = 256e9", 'float32 = "fast"'), "key 'peak_ops_per_s', entry 'float32', is 'fast'; it takes a number"),
        (('kind = "cpu"', 'kind = "npu"'), "key 'kind' is 'npu'; it takes 'cpu' or 'gpu'"),
        (('kind = "cpu"', ""), "key 'kind' is missing"),
        (('kind = "cpu"', 'kind = "board"'), "there is no key 'cores'"),
        (("cores = 4", "cores = "), "is not valid TOML"),
        (("cores = 4", "cores = 4\nsources = [{figures = []}]"), "key 'sources', item 1,: key 'table' is missing"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_bad_file_gives_one_clear_error(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in CPU
    file = tmp_path / "bad.toml"
    file.write_text(CPU.replace(*change), encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        load_device(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value).replace("\\n", "") or "TOML" in str(caught.value)


def test_bad_part_of_a_board_is_named(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text('kind = "board"\nclock_hz = 25e6\npart = "znver3"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="names 'znver3', which is a cpu, not an FPGA part"):
        load_device(file)
    file.write_text('kind = "board"\nclock_hz = 25e6\npart = "ecp5-25"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="did you mean ecp5-25f"):
        load_device(file)
    file.write_text('kind = "board"\nclock_hz = 25e6\npart = 7\n', encoding="utf-8")
    with pytest.raises(UsageError, match="key 'part' is 7; it takes a table"):
        load_device(file)


def test_unreadable_files(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00kind")
    with pytest.raises(UsageError, match="cannot be read"):
        load_device(binary)
    with pytest.raises(UsageError, match="cannot be read"):
        load_device(f"{tmp_path}/")
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (1 << 21))
    with pytest.raises(UsageError, match="larger than"):
        load_device(large)


def test_damaged_json_is_refused() -> None:
    table = load_device("znver3").to_json()
    for damage in ({"cores": "16"}, {"kind": "toaster"}, {"surprise": 1}):
        with pytest.raises(UsageError, match="device 'znver3'"):
            Device.from_json(table | damage)
