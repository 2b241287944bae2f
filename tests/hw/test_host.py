"""The host is detected plausibly here, and rightly from the facts of machines that are not here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gatewright.hw import host as module
from gatewright.hw.device import Device, host, load_device
from gatewright.hw.host import _Facts, describe

AVX2 = {"avx", "avx2", "fma", "f16c", "bmi2", "ssse3", "sse4_1", "sse4_2"}
AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"}
ZEN4 = _Facts(
    machine="x86_64",
    system="Linux",
    model_name="AMD EPYC 9654",
    flags=frozenset(AVX2 | AVX512),
    identity=("AuthenticAMD", 25, 17),
    cores=8,
    threads=16,
    clock_hz=2.4e9,
    caches={1: 32 << 10, 2: 1 << 20, 3: 32 << 20},
    memory_bytes=64 << 30,
)


def test_host_is_plausible() -> None:
    device = host()
    assert device.kind == "cpu"
    assert device.source == "host"
    assert 1 <= device.cores <= (device.threads or 0)
    assert device.triple
    assert device.mcpu
    assert device.clock_hz
    assert 5e8 <= device.clock_hz <= 7e9
    assert device.vector_bits in (128, 256, 512)
    assert 1e9 <= device.peak_ops_per_s["float32"] <= 1e14
    assert Device.from_json(json.loads(json.dumps(device.to_json()))) == device
    assert load_device("host") == device


def test_every_estimate_is_labelled() -> None:
    for figure in ("peak_ops_per_s", "memory_bandwidth_bytes_per_s"):
        citation = host().cited(figure)
        assert citation is not None
        assert citation.table.startswith("estimated")


def test_host_is_the_same_at_every_call() -> None:
    module.detect.cache_clear()
    first = host()
    module.detect.cache_clear()
    assert host() == first


@pytest.mark.parametrize(
    ("identity", "dropped", "mcpu", "vector_bits"),
    [
        (("AuthenticAMD", 25, 17), "", "znver4", 512),
        (("AuthenticAMD", 25, 17), "avx512", "znver3", 256),  # a hypervisor that masks AVX-512
        (("AuthenticAMD", 25, 1), "avx512", "znver3", 256),
        (("AuthenticAMD", 23, 49), "avx512", "znver2", 256),
        (("AuthenticAMD", 23, 1), "avx512", "znver1", 256),
        (("AuthenticAMD", 26, 2), "", "znver5", 512),
        (("AuthenticAMD", 99, 2), "", "x86-64-v4", 512),
        (("GenuineIntel", 6, 85), "avx512_", "skylake-avx512", 512),
        (("GenuineIntel", 6, 85), "avx512_bf16", "cascadelake", 512),
        (("GenuineIntel", 6, 79), "avx512", "x86-64-v3", 256),
        (("GenuineIntel", 6, 42), "avx512 avx2 fma bmi2 f16c", "x86-64-v2", 128),
        (("", 0, 0), "avx sse ssse fma bmi f16c", "x86-64", 128),
    ],
)
def test_x86_names(identity: tuple[str, int, int], dropped: str, mcpu: str, vector_bits: int) -> None:
    flags = frozenset(flag for flag in ZEN4.flags if not dropped or not flag.startswith(tuple(dropped.split())))
    device = describe(replace(ZEN4, identity=identity, flags=flags))
    assert (device.mcpu, device.vector_bits) == (mcpu, vector_bits)


def test_arm() -> None:
    flags = frozenset({"fp", "asimd", "asimddp", "asimdhp"})
    facts = replace(ZEN4, machine="aarch64", flags=flags, identity=("0x41", 0, 0xD0B), cores=4, threads=4)
    device = describe(facts)
    assert (device.mcpu, device.triple, device.vector_bits) == ("cortex-a76", "aarch64-unknown-linux-gnu", 128)
    assert device.isa == ("dotprod", "fullfp16", "neon")
    assert describe(replace(facts, identity=("0x61", 0, 0x22))).mcpu == "generic"
    assert describe(replace(facts, machine="arm64", system="Darwin", flags=frozenset(), identity=("", 0, 0))).triple == "arm64-apple-darwin"


def test_peak_of_zen_4_counts_a_512_bit_multiply_add_as_two_halves() -> None:
    assert describe(ZEN4).peak_ops_per_s["float32"] == 8 * 2.4e9 * 2 * 8 * 2
    assert describe(ZEN4).peak_ops_per_s["int8"] == 4 * describe(ZEN4).peak_ops_per_s["float32"]
    intel = describe(replace(ZEN4, identity=("GenuineIntel", 6, 85)))
    assert intel.peak_ops_per_s["float32"] == 8 * 2.4e9 * 2 * 16 * 2


def test_nothing_known() -> None:
    """A system without /proc: the architecture's baseline, and no failure."""
    device = describe(_Facts("riscv64", "FreeBSD", "", frozenset(), ("", 0, 0), 1, 1, None, {}, None))
    assert (device.mcpu, device.cores, device.vector_bits, device.l3_bytes) == ("generic", 1, 128, None)
    citation = device.cited("clock_hz")
    assert citation is not None
    assert citation.table.startswith("estimated")


def test_cpuinfo_and_caches_are_parsed(tmp_path: Path) -> None:
    text = "\n\n".join(
        f"processor\t: {i}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.60GHz\n"
        f"physical id\t: 0\ncore id\t\t: {i // 2}\nbogomips\t: 5200.00\nflags\t\t: fma avx2 avx512f"
        for i in range(4)
    )
    entries = module._cpuinfo(text)
    assert len(entries) == 4
    assert module._physical_cores(entries) == 2
    assert module._identity(entries[0]) == ("GenuineIntel", 6, 85)
    assert module._cpuinfo("") == []
    caches = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "32M")]
    for index, (level, kind, size) in enumerate(caches):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(value + "\n", encoding="utf-8")
    assert module._caches(tmp_path) == {1: 48 << 10, 2: 2 << 20, 3: 32 << 20}
    assert module._caches(tmp_path / "nowhere") == {}
