"""The roofline, the energies and the FPGA estimate against numbers worked out by hand, and against synthesized designs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gatewright.hw.cost import (
    FpgaLayer,
    FpgaResources,
    LayerCost,
    energy_j,
    fits,
    fpga_interval_cycles,
    fpga_latency_cycles,
    fpga_resources,
    mac_energy_pj,
    roofline,
    signed_digits,
)
from gatewright.hw.device import Part, Processor, devices, host, load_device

# 1e9 operations/s in float32, four times that in int8, 1e8 bytes/s, no cache: round numbers to check by hand.
PLAIN = Processor(kind="cpu", name="plain", cores=1, memory_bandwidth_bytes_per_s=1e8, peak_ops_per_s={"float32": 1e9, "int8": 4e9})
GEMM = LayerCost("fc1", "Gemm", macs=1_000_000, elementwise_ops=0, weight_bytes=4_000, activation_bytes=1_000, dtype="float32")
RELU = LayerCost("relu", "Relu", macs=0, elementwise_ops=1_000, weight_bytes=0, activation_bytes=8_000, dtype="float32")


def part(name: str) -> Part:
    found = load_device(name)
    assert isinstance(found, Part)
    return found


def test_roofline_by_hand() -> None:
    report = roofline([GEMM, RELU], PLAIN)
    gemm, relu = report.layers
    assert gemm.bound == "compute"
    assert gemm.latency.value == pytest.approx(2e6 / 1e9)
    assert relu.bound == "memory"
    assert relu.latency.value == pytest.approx(8_000 / 1e8)
    assert report.latency.value == pytest.approx(2e-3 + 8e-5)
    assert (report.latency.unit, report.latency.source) == ("s", "estimated")
    assert (report.energy.unit, report.energy.source) == ("J", "estimated")
    assert (report.macs, report.weight_bytes, report.activation_bytes, report.elementwise_ops) == (1_000_000, 4_000, 9_000, 1_000)
    assert not report.on_chip


def test_int8_is_faster_and_costs_less() -> None:
    small = replace(GEMM, dtype="int8", weight_bytes=1_000, activation_bytes=250)
    assert roofline([small], PLAIN).latency.value == pytest.approx(roofline([GEMM], PLAIN).latency.value / 4)
    assert roofline([small], PLAIN).energy.value < roofline([GEMM], PLAIN).energy.value / 4


def test_type_without_a_rate_is_computed_in_the_next_wider_one() -> None:
    (layer,) = roofline([replace(GEMM, dtype="int4")], PLAIN).layers
    assert layer.computed_in == "int8"
    (layer,) = roofline([replace(GEMM, dtype="int16")], PLAIN).layers
    assert layer.computed_in == "float32"
    tpu = load_device("v5e")
    assert isinstance(tpu, Processor)
    (layer,) = roofline([GEMM], tpu).layers
    assert layer.computed_in == "bfloat16"
    assert layer.latency.value == pytest.approx(2e6 / (197e12 / 6))


def test_what_fits_the_cache_touches_no_dram() -> None:
    cached = replace(PLAIN, l2_bytes=20_000, clock_hz=1e9, vector_bits=256)
    report = roofline([GEMM, RELU], cached)
    assert report.on_chip
    assert report.layers[1].latency.value == pytest.approx(max(1_000 / 1e9, 8_000 / 32e9))
    assert report.energy.value < roofline([GEMM, RELU], PLAIN).energy.value
    assert not roofline([GEMM, RELU], replace(cached, l2_bytes=11_999)).on_chip  # 4,000 of weights + 8,000 of activations


def test_energy_by_hand() -> None:
    assert mac_energy_pj("float32") == pytest.approx(3.7 + 0.9)
    assert mac_energy_pj("int8") == pytest.approx(0.2 + 0.1)
    assert mac_energy_pj("float16") == pytest.approx(1.1 + 0.4)
    assert energy_j(GEMM) == pytest.approx((1e6 * 4.6 + 5_000 * 12.5) * 1e-12)
    assert energy_j(GEMM, on_chip=False) == pytest.approx((1e6 * 4.6 + 5_000 * (12.5 + 162.5)) * 1e-12)
    assert energy_j(RELU) == pytest.approx((1_000 * 0.9 + 8_000 * 12.5) * 1e-12)


def test_a_devices_own_energies_are_taken() -> None:
    own = replace(PLAIN, op_energy_pj={"float32": 10.0}, byte_energy_pj={"sram": 1.0})
    assert energy_j(GEMM, own) == pytest.approx((1e7 + 5_000) * 1e-12)
    assert energy_j(replace(GEMM, dtype="int8"), own) == pytest.approx((1e6 * 0.3 + 5_000) * 1e-12)


@pytest.mark.parametrize("device", [*devices("cpu"), *devices("gpu"), *devices("tpu"), host()], ids=lambda d: d.name)
def test_every_processor_gives_an_estimate(device: Processor) -> None:
    for dtype in ("float64", "float32", "float16", "bfloat16", "int32", "int16", "int8", "int4"):
        report = roofline([replace(GEMM, dtype=dtype), RELU], device)  # type: ignore[arg-type]
        assert 0 < report.latency.value < 1e-2
        assert 0 < report.energy.value < 1e-3
    assert roofline([], device).latency.value == 0
    assert set(report.to_json()) >= {"latency", "energy", "layers", "macs"}


@pytest.mark.parametrize(("weight", "digits"), [(0, 0), (1, 1), (-4, 1), (3, 2), (7, 2), (-7, 2), (11, 3), (127, 2), (-128, 1), (85, 4)])
def test_signed_digits(weight: int, digits: int) -> None:
    assert signed_digits(np.array([weight], np.int8)) == digits


def test_expected_digits_are_those_of_uniform_weights() -> None:
    weights = np.arange(-127, 128)
    assert signed_digits(weights) / weights.size == pytest.approx((8 + 1) / 3, rel=0.1)


def test_constant_weights_by_hand() -> None:
    """3 outputs from 10 digits: 7 adders and 3 biases, each (8 + 12) / 2 = 10 bits; no multiplier, no memory."""
    layer = FpgaLayer("fc", multiplications=6, outputs=3, weight_bits=4, activation_bits=8, accumulator_bits=12, signed_digits=10)
    assert fpga_resources([layer], part("ecp5-85f")) == FpgaResources(luts=100, ffs=100 + 24, dsps=0, brams=0)


def test_reused_multipliers_by_hand() -> None:
    """64 products on 16 multipliers: 8-bit ones are LUT arrays, 16-bit ones are DSP blocks."""
    narrow = FpgaLayer("fc", multiplications=64, outputs=4, weight_bits=8, activation_bits=8, accumulator_bits=22, reuse=4)
    zynq = part("xc7z020")
    used = fpga_resources([narrow], zynq)
    assert used.dsps == 0
    assert used.luts == 16 * 64 + (16 + 4) * 15
    assert used.brams == 2  # 16 weights of 8 bits a cycle through ports of 72 bits
    wide = replace(narrow, weight_bits=16, activation_bits=16)
    assert fpga_resources([wide], zynq).dsps == 16
    assert fpga_resources([wide], part("5cseba6")).dsps == 8  # two products in a block
    assert fpga_resources([replace(wide, weight_bits=24)], zynq).dsps == 16  # 25 x 18 takes it
    assert fpga_resources([replace(wide, weight_bits=24)], part("ecp5-85f")).dsps == 32
    assert fpga_resources([wide, wide], zynq).dsps == 32


def test_buffers_go_to_block_ram() -> None:
    layer = FpgaLayer("conv", 9, 1, 8, 8, 20, buffer_bits=40_000)
    assert fpga_resources([layer], part("xc7z020")).brams == 2


def test_cycles_by_hand() -> None:
    dense = FpgaLayer("fc", multiplications=64, outputs=4, weight_bits=8, activation_bits=8, accumulator_bits=22, reuse=4)
    conv = replace(dense, name="conv", passes=25)
    assert fpga_interval_cycles([dense, conv]) == 100
    assert fpga_latency_cycles([dense]) == 4 + 1 + 2  # 16 products per output, 4 of them a cycle: a tree of 2 levels
    assert fpga_latency_cycles([dense, conv]) == 7 + 100 + 3


def test_shortfalls_are_named() -> None:
    zynq = part("xc7z020")
    assert fits(zynq, FpgaResources(53_200, 106_400, 220, 140)) == ()
    shortfalls = ("LUT: needs about 53201, xc7z020 has 53200", "DSP: needs about 310, xc7z020 has 220")
    assert fits(zynq, FpgaResources(53_201, 10, 310, 0)) == shortfalls


def test_estimate_is_near_a_placed_and_routed_design() -> None:
    """A 64-32-10 MLP, int4, 75 % of the weights zero: 6,939 LUTs with its serial wrapper on an ECP5, 5,850 logic cells on an iCE40 it
    does not fit. The estimate knows neither shared subexpressions nor the wrapper; within a factor of two is what it promises.
    """
    layers = [FpgaLayer("fc1", 512, 32, 4, 4, 10), FpgaLayer("fc2", 80, 10, 4, 4, 10)]
    used = fpga_resources(layers, part("ecp5-25f"))
    assert 6_939 / 2 < used.luts < 6_939 * 2
    assert fits(part("ecp5-25f"), used) == ()
    assert fits(part("ice40up5k"), used)


def test_a_matrix_unit_without_an_integer_mode_multiplies_bytes_in_bfloat16() -> None:
    tpu = load_device("v3")
    assert isinstance(tpu, Processor)
    (layer,) = roofline([replace(GEMM, dtype="int8")], tpu).layers
    assert layer.computed_in == "bfloat16"
    assert layer.latency.value == pytest.approx(max(2 * GEMM.macs / 123e12, (GEMM.weight_bytes + GEMM.activation_bytes) / 900e9), rel=0.01)
